"""Try the ranges of pyproject.toml: a fresh environment per pair of torch and torchaudio.

    python tools/try_versions.py --folder my/versions
    python tools/try_versions.py 2.8.0 2.13.0/2.11.0 --folder my/versions

tries the oldest pair that pyproject.toml allows, with the oldest of all other packages, and
the newest torchaudio with its torch; or the pairs given, TORCH or TORCH/TORCHAUDIO. Each
environment is made in --folder, gets this checkout and what it depends on, imports
SpeechBrain and every module of cif_lobes, runs some tests, and is deleted. One takes 6 GB and
some minutes. Prints a table in markdown; exit status 1 if a pair failed.

Needs Python 3.11 and the package index; pip's own settings hold (PIP_INDEX_URL and others).
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import tomllib

from cif_lobes.settings.program import run_program

ROOT = pathlib.Path(__file__).resolve().parents[1]
NEWEST = "2.11.0"  # the last torchaudio
HEAD = """\
| torch | torchaudio | SpeechBrain | other packages | works | | GB | minutes |
|---|---|---|---|---|---|---:|---:|"""
# One trains, exports and recognises.
TESTS = ["tests/cif", "tests/nets/test_network.py", "tests/inference/test_export.py"]
# All that needs no extra.
IMPORT_ALL = """
import importlib, pkgutil, speechbrain, cif_lobes
for module in pkgutil.walk_packages(cif_lobes.__path__, "cif_lobes."):
    extra = any(room in module.name for room in ("inference.onnx", "inference.serve"))
    if not extra and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
import torch, torchaudio
print(torch.__version__, torchaudio.__version__, speechbrain.__version__, sep="/")
"""


def lowest():
    """dict of str to str: the oldest version of every package that pyproject.toml allows."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    needed = tomllib.loads(text)["project"]["dependencies"]
    return dict(re.match(r"([\w.-]+)>=([\d.]+)", line).groups() for line in needed)


class Failed(Exception):
    """A step that did not work, and what it said last."""


def run(*command):
    """A step's last line."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    kept |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env=kept,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = done.stdout.strip().splitlines() or [""]
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        faults = [line for line in lines if re.match(r"(E  |ERROR|\w*Error)", line)]
        raise Failed((faults or lines[-1:])[0].replace("|", "/")[:200])
    return lines[-1]


def try_pair(pair, folder, interpreter):
    """The row of a pair (torch, torchaudio); the oldest has the oldest of the others."""
    torch, torchaudio = pair
    oldest = pair == (lowest()["torch"], lowest()["torchaudio"])
    began, environment, stage = time.monotonic(), folder / f"torch-{torch}", "install"
    versions = f"{torch}/{torchaudio}/"
    python = environment / "bin/python"
    others = lowest() if oldest else {}
    others |= {"torch": torch, "torchaudio": torchaudio}
    pinned = [f"{name}=={version}" for name, version in others.items()]
    try:
        run(interpreter, "-m", "venv", environment)
        run(python, "-m", "pip", "install", "-q", *pinned, "-e", ROOT, "pytest")
        stage = "import"
        versions = run(python, "-c", IMPORT_ALL)
        stage = "tests"
        said = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS)
        works = True
    except Failed as error:
        works, said = False, f"{stage}: {error}"
    finally:
        gigabytes = sum(p.lstat().st_size for p in environment.rglob("*")) / 1e9
        shutil.rmtree(environment, ignore_errors=True)
    minutes = (time.monotonic() - began) / 60
    words = [*versions.split("/"), "oldest" if oldest else "newest"]
    words += [
        "yes" if works else "no",
        said.strip("= "),
        f"{gigabytes:.1f}",
        f"{minutes:.0f}",
    ]
    return works, f"| {' | '.join(words)} |"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", nargs="*", help="TORCH or TORCH/TORCHAUDIO")
    parser.add_argument("--folder", required=True, help="for the environments, 6 GB")
    parser.add_argument(
        "--python", default=sys.executable, help="interpreter (default: this one)"
    )
    given = parser.parse_args()
    words = [pair.partition("/") for pair in given.pairs or [lowest()["torch"], NEWEST]]
    pairs = [(torch, torchaudio or torch) for torch, _, torchaudio in words]
    folder = pathlib.Path(given.folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    print(HEAD, flush=True)
    all_work = True
    for pair in pairs:
        works, row = try_pair(pair, folder, given.python)
        print(row, flush=True)
        all_work &= works
    sys.exit(0 if all_work else 1)


if __name__ == "__main__":
    run_program(main)
