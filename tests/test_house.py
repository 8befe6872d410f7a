"""Who may import whom, how long a file may be, and what may not be in the project."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
LIBRARY = sorted((ROOT / "cif_lobes").rglob("*.py"))
SCRIPTS = [
    *ROOT.glob("*.py"),
    *ROOT.glob("recipes/*/*.py"),
    *ROOT.glob("tools/*.py"),
    *ROOT.glob("benchmarks/*.py"),
]
STDLIB = sys.stdlib_module_names

# The folders that each one may import from, besides itself.
ARROWS = {
    "settings": "",
    "devices": "",
    "storage": "settings",
    "data": "storage devices",
    "cif": "devices",
    "losses": "",
    "nets": "storage settings devices",
    "teachers": "nets storage settings devices",
    "decoding": "data storage settings devices",
    "cache": "teachers losses nets decoding data storage settings devices",
    "training": "cache teachers losses nets cif decoding data storage settings devices",
    "runs": "training cache teachers losses nets cif decoding data storage settings devices",
    "inference": "nets cif decoding data storage settings devices",
    "commands": "inference runs training cache teachers losses nets cif decoding data "
    "storage settings devices",
}

# What a room may use beside the standard library and other rooms, if that is less than
# SpeechBrain and all that it brings along.
TORCH, WAVES = {"torch"}, {"soundfile", "numpy"}
LIGHT = {
    "settings.program": set(),
    "commands.evaluate": set(),
    "commands.extract": set(),
    "settings.safe_yaml": {"ruamel", "hyperpyyaml"},
    "settings.yaml_settings": {"ruamel"},
    "settings.checks": {"ruamel"},
    "settings.cli": {"ruamel", "speechbrain"},  # once arguments are known to be good
    "storage.atomic_files": set(),
    "data.text": set(),
    "data.text_report": set(),
    "data.formats": set(),
    "data.audio_files": WAVES,
    "data.manifest": {"soundfile"},
    "data.audio_checks": {"tqdm"},
    "data.validation": {"soundfile", "tqdm"},
    "inference.onnx": {"onnxruntime", "scipy", "tqdm", *WAVES},
    "inference.recordings": WAVES,
    "inference.windows": WAVES,
    "inference.vad": {"webrtcvad", "numpy"},
    "inference.command": {"soundfile", "tqdm"},
    "inference.formats": set(),
    "inference.inputs": set(),
    "decoding.greedy": {"numpy"},
    "decoding.hotwords": {"numpy"},
    "teachers.alignment": set(),
    "devices.precision": TORCH,
    "devices.lengths": TORCH,
    "cif.module": TORCH,
    "cif.operator": TORCH,
    "cif.plan": TORCH,
    "cif.checks": TORCH,
    "cif.stream": TORCH,
    "losses.arguments": TORCH,
    "losses.recognition": TORCH,
    "losses.contrastive": TORCH,
    "losses.regression": TORCH,
    "losses.multi_teacher": TORCH,
    "nets.bert_decoder": TORCH,
    "nets.fithubert": TORCH,
    "nets.features": {"torch", "speechbrain"},
    "nets.encoder": {"torch", "speechbrain"},
    "nets.decoder": {"torch", "speechbrain"},
    "cache.checks": {"torch", "h5py"},
    "cache.reader": {"torch", "h5py"},
}
TRANSFORMERS = {
    "teachers.text",
    "nets.bert_weights",
    "nets.pretrained",
    "decoding.rescoring",
    "nets.pretrained_llm",
    "nets.speech_llm",
}


def room_of(path):
    """Dotted name of a file of the library, without cif_lobes."""
    return ".".join(path.relative_to(ROOT / "cif_lobes").with_suffix("").parts)


def imports(path):
    """Modules a file imports, functions included; cif_lobes.x.y stays whole."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
    return {n if n.startswith("cif_lobes") else n.split(".")[0] for n in found}


def test_every_folder_and_room_named_here_is_there():
    rooms = {room_of(path) for path in LIBRARY}
    assert {*LIGHT, *TRANSFORMERS} <= rooms
    assert {room.split(".")[0] for room in rooms} == {"__init__", *ARROWS}


def test_no_arrow_goes_back():
    """Every folder is below all that may import it: the table has no circle."""
    below = {folder: names.split() for folder, names in ARROWS.items()}
    seen = set()
    for folder, names in below.items():
        assert {*names} <= {*seen}, folder
        seen.add(folder)


@pytest.mark.parametrize("path", LIBRARY, ids=room_of)
def test_library_rooms(path):
    used, folder = imports(path), room_of(path).split(".")[0]
    ours = {name for name in used if name.startswith("cif_lobes")}
    allowed = {folder, *ARROWS.get(folder, "").split()}
    assert {name.split(".")[1] for name in ours} <= allowed
    if room_of(path) in LIGHT:
        assert used - ours - STDLIB <= LIGHT[room_of(path)]
    if room_of(path) not in TRANSFORMERS:
        assert "transformers" not in used
    if path.name == "__init__.py":
        assert not used or folder == "cif", "more than a docstring"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_scripts_use_the_library_and_their_own_folder(path):
    neighbours = {p.stem for p in path.parent.glob("*.py")}
    others = {p.stem for p in SCRIPTS if p.parent != path.parent} - neighbours
    assert not imports(path) & others


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_script_takes_from_a_neighbour_is_there(path):
    """Benchmarks are run by hand: without this, one that cannot start goes unseen."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        neighbour = path.parent / f"{getattr(node, 'module', None)}.py"
        if isinstance(node, ast.ImportFrom) and neighbour.is_file():
            there = set()
            for one in ast.parse(neighbour.read_text(encoding="utf-8")).body:
                there.add(getattr(one, "name", None))
                for target in getattr(one, "targets", []):  # a name, or several
                    there |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
            assert {alias.name for alias in node.names} <= there, neighbour


def start(modules, absent):
    """Import modules and see that others have not come along."""
    code = f"import sys, {', '.join(f'cif_lobes.{m}' for m in modules)}\n"
    code += f"assert not {absent!r} & {{*sys.modules}}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "module",
    "settings.cli data.manifest data.text inference.onnx inference.command commands.evaluate "
    "commands.extract".split(),
)
def test_these_start_without_torch(module):
    start([module], {"torch", "speechbrain"})


def test_these_work_without_speechbrain():
    rooms = ("losses.contrastive", "losses.regression", "losses.recognition")
    start(["cif", *rooms, "cache.reader"], {"speechbrain"})


def test_tests_lie_where_the_rooms_do():
    """A folder of the library has one among the tests."""
    folders = {path.name for path in ROOT.glob("tests/*") if any(path.glob("test_*"))}
    assert folders == {*ARROWS, "recipes", "tools"}


def test_no_file_is_long():
    for path in [*LIBRARY, *SCRIPTS]:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 400, f"{path} has {lines} lines"
        assert path.name != "train.py" or lines < 200
