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

# What a room may use beside the standard library; the rooms not named here may use
# SpeechBrain and everything below them, but not `brain` and what stands above it.
LIGHT = {
    "text": set(),
    "atomic_files": set(),
    "program": set(),
    "safe_yaml": {"ruamel", "hyperpyyaml"},
    "yaml_settings": {"ruamel"},
    "setting_checks": {"ruamel", "cif_lobes.yaml_settings"},
    "cli": {
        "ruamel",
        "speechbrain",
        "cif_lobes.setting_checks",
        "cif_lobes.yaml_settings",
    },  # the latter once arguments are known to be good
    "audio_files": {"soundfile", "numpy"},
    "manifest_formats": set(),
    "manifest": {
        "soundfile",
        "cif_lobes.atomic_files",
        "cif_lobes.audio_files",
        "cif_lobes.manifest_formats",
    },
    "text_report": set(),
    "audio_checks": {"tqdm", "cif_lobes.atomic_files", "cif_lobes.audio_files"},
    "validation": {
        "soundfile",
        "tqdm",
        "cif_lobes.audio_checks",
        "cif_lobes.manifest",
        "cif_lobes.text",
        "cif_lobes.text_report",
    },
    "token_alignment": set(),
    "cif": {
        "torch",
        "cif_lobes.cif_operator",
        "cif_lobes.cif_plan",
        "cif_lobes.cif_checks",
        "cif_lobes.precision",
    },
    "precision": {"torch"},
    "cif_plan": {"torch"},
    "cif_streaming": {"torch", "cif_lobes.cif_checks", "cif_lobes.cif_plan"},
    "cif_operator": {"torch", "cif_lobes.cif_plan"},
    "losses": {"torch"},
    "contrastive": {"torch", "cif_lobes.losses"},
    "lengths": {"torch"},
    "augment": {"torch", "speechbrain"},
    "multi_teacher": {"torch"},
    "fithubert": {"torch"},
    "teacher_cache": {"torch", "h5py", "cif_lobes.cache_checks"},
    "cache_checks": {"torch", "h5py"},
    "decoder": {"torch", "speechbrain"},
    "encoder": {"torch", "speechbrain"},
    "features": {"torch", "speechbrain"},
}
TOP = {"brain", "experiment", "inference", "fithubert_brain", "training_brain"}
TOP |= {"lm_brain", "recognizer_brain", "ctc_attention_brain", "evaluation"}


def imports(path):
    """Modules a file imports, functions included; cif_lobes.x stays whole."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
            if node.module == "cif_lobes":
                found |= {f"cif_lobes.{alias.name}" for alias in node.names}
    return {n if n.startswith("cif_lobes") else n.split(".")[0] for n in found}


@pytest.mark.parametrize("room", LIGHT)
def test_light_rooms(room):
    path = ROOT.joinpath("cif_lobes", *room.split(".")).with_suffix(".py")
    outside = {name for name in imports(path) if name not in STDLIB}
    assert outside <= LIGHT[room]


def room_of(path):
    """Dotted name of a file of the library, without cif_lobes."""
    return ".".join(path.relative_to(ROOT / "cif_lobes").with_suffix("").parts)


def test_every_room_named_here_is_there():
    assert {*LIGHT, *TOP} <= {room_of(path) for path in LIBRARY}


@pytest.mark.parametrize("path", LIBRARY, ids=room_of)
def test_library_rooms(path):
    used = imports(path)
    if room_of(path) not in TOP:
        assert not used & {f"cif_lobes.{name}" for name in TOP}
    if room_of(path) not in ("teachers", "speech_teachers"):
        assert "transformers" not in used


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_scripts_use_the_library_and_their_own_folder(path):
    neighbours = {p.stem for p in path.parent.glob("*.py")}
    others = {p.stem for p in SCRIPTS if p.parent != path.parent} - neighbours
    assert not imports(path) & others


@pytest.mark.parametrize(
    "module", ["cif_lobes", "cif_lobes.cli", "cif_lobes.manifest", "cif_lobes.text"]
)
def test_these_start_without_torch(module):
    code = f"import sys, {module}; assert not {{'torch', 'speechbrain'}} & {{*sys.modules}}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("module", ["cif", "losses", "contrastive", "teacher_cache"])
def test_these_work_without_speechbrain(module):
    code = f"import sys, cif_lobes.{module}; assert 'speechbrain' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_file_is_long():
    for path in [*LIBRARY, *SCRIPTS]:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 400, f"{path} has {lines} lines"
        assert path.name != "train.py" or lines < 200
