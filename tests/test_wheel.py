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
        module = importlib.import_module(name)
        assert home in pathlib.Path(module.__file__).parents, module.__file__
print(len(names))
"""


def run(command, folder):
    """Outside the checkout, and without what PYTHONPATH says of it."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=kept,
        capture_output=True,
        text=True,
    )
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


@pytest.mark.slow
def test_every_module_of_the_wheel_is_imported_in_a_fresh_environment(wheel, tmp_path):
    venv.create(tmp_path / "fresh", with_pip=False)
    python = tmp_path / "fresh/bin/python"
    install = [sys.executable, "-m", "pip", "--python", python, "install"]
    run([*install, "--no-deps", "--no-index", wheel], tmp_path)
    # torch and the others are those of this environment. A folder in a .pth file has no
    # .pth files of its own, so the checkout's editable install is not seen.
    (packages,) = (tmp_path / "fresh/lib").glob("python*/site-packages")
    theirs = [path for path in sys.path if path.endswith("-packages")]
    (packages / "theirs.pth").write_text("\n".join(theirs) + "\n")
    found = int(run([python, "-c", IMPORT_ALL], tmp_path))
    assert found == len(list(ROOT.glob("cif_lobes/**/*.py")))
