"""What an installed package needs is in its wheel: every module, and no file beside them.

Built without a network: by the setuptools of requirements.txt, from a copy of the sources,
since a build leaves its traces in them.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import venv
import zipfile

import pytest
from conftest import ROOT

IMPORT_ALL = """
import importlib, pathlib, pkgutil, sys, cif_lobes
home = pathlib.Path(sys.prefix)
names = ["cif_lobes"]
names += [m.name for m in pkgutil.walk_packages(cif_lobes.__path__, "cif_lobes.")]
for name in names:
    if not name.endswith("__main__"):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            assert error.name == "gradio", error  # not even make setup installs it
            continue
        assert home in pathlib.Path(module.__file__).parents, module.__file__
print(len(names))
"""


def start(command, folder):
    """Outside the checkout, and without what PYTHONPATH says of it."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=kept,
        capture_output=True,
        text=True,
    )


def run(command, folder):
    """What a command prints that works."""
    done = start(command, folder)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout."""
    version = importlib.metadata.version("setuptools")
    assert int(version.split(".")[0]) >= 77, f"setuptools is {version}: make setup"
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "cif_lobes", sources / "cif_lobes", ignore=without)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, sources / name)
    build = [sys.executable, "-m", "pip", "wheel", sources, "-w", folder]
    run([*build, "--no-deps", "--no-build-isolation", "--no-index"], folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_has_every_module_and_nothing_of_the_checkout_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    packed = {name for name in names if ".dist-info/" not in name}
    ours = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("cif_lobes/**/*.py")}
    assert packed == ours
    assert any(name.endswith("LICENSE") for name in names)


@pytest.fixture(scope="module")
def fresh(wheel, tmp_path_factory):
    """The bin folder of an environment that has the wheel."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False)
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        folder / "bin/python",
        "install",
    ]
    run([*install, "--no-deps", "--no-index", wheel], folder)
    # torch and the others are those of this environment. A folder in a .pth file has no
    # .pth files of its own, so the checkout's editable install is not seen.
    (packages,) = (folder / "lib").glob("python*/site-packages")
    theirs = [path for path in sys.path if path.endswith("-packages")]
    (packages / "theirs.pth").write_text("\n".join(theirs) + "\n")
    return folder / "bin"


@pytest.mark.slow
def test_every_module_of_the_wheel_is_imported_in_a_fresh_environment(fresh, tmp_path):
    found = int(run([fresh / "python", "-c", IMPORT_ALL], tmp_path))
    assert found == len(list(ROOT.glob("cif_lobes/**/*.py")))


HELPS = {
    "cif-transcribe": ("usage: cif-transcribe ", "--output_dir"),
    "cif-evaluate": ("usage: cif-evaluate ", "--swept"),
    "cif-extract": (
        "usage: cif-extract HPARAMS.yaml ",
        "cif-extract HPARAMS.yaml --help",
    ),
}


@pytest.mark.slow
def test_the_commands_of_the_wheel(fresh, tmp_path):
    """All that pyproject.toml names; each knows its name."""
    assert {path.name for path in fresh.glob("cif-*")} == {*HELPS}
    for name, (usage, word) in HELPS.items():
        said = run([fresh / name, "--help"], tmp_path)
        assert said.startswith(usage) and word in said


@pytest.mark.slow
def test_a_command_of_the_wheel_says_what_is_wrong(fresh, tmp_path):
    for words, message in (
        (["cif-evaluate", "lost"], "cif-evaluate: lost"),
        (["cif-evaluate", "run", "--bem", "3"], "cif-evaluate: unknown option --bem"),
        (
            ["cif-extract"],
            "cif-extract: which yaml? Give one, for instance",
        ),
        (
            ["cif-transcribe", "lost", "a.wav"],
            "cif-transcribe: lost is not a run folder",
        ),
    ):
        done = start([fresh / words[0], *words[1:]], tmp_path)
        assert done.returncode and done.stderr.startswith(message), done.stderr
