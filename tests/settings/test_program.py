"""Users' mistakes are one message; a closed pipe is none."""

import functools
import pathlib
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from cif_lobes.settings import program
from cif_lobes.settings.program import run_program
from cif_lobes.settings.safe_yaml import build
from cif_lobes.storage.run_files import keep_figures

SCRIPTS = [
    *ROOT.glob("*.py"),
    *ROOT.glob("tools/*.py"),
    *ROOT.glob("recipes/*/train*.py"),
    ROOT / "recipes/LibriSpeech/export_s3prl.py",
]
WITH_MAIN = [*ROOT.rglob("cif_lobes/**/*.py"), *SCRIPTS]
WITH_MAIN += ROOT.glob("recipes/*/*.py")
WITH_MAIN = [p for p in WITH_MAIN if '__name__ == "__main__"' in p.read_text()]


@pytest.fixture(autouse=True)
def command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "evaluate.py"), "x"])


def test_our_own_error_is_a_message(capsys):
    with pytest.raises(SystemExit) as caught:
        run_program(lambda: build("- 1"))
    assert caught.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["evaluate.py: the yaml holds no settings: a mapping is expected"]


def test_a_missing_file_is_a_message(capsys, tmp_path):
    with pytest.raises(SystemExit) as caught:
        run_program(lambda: (tmp_path / "x").read_text())
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert error == f"evaluate.py: {tmp_path}/x: No such file or directory\n"


def test_debug_shows_the_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--debug", "run"])
    with pytest.raises(ValueError, match="a mapping is expected"):
        run_program(lambda: build("- 1"))
    assert sys.argv == ["evaluate.py", "run"]
    assert capsys.readouterr().err == ""


def test_debug_stays_for_programs_that_have_such_an_option(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--debug"])
    run_program(lambda: None, own_debug=True)
    assert sys.argv == ["train.py", "--debug"]


@pytest.mark.parametrize(
    "faulty",
    [
        lambda: keep_figures(None, "x", None, "x", {}),  # an AttributeError of ours
        lambda: pathlib.Path("x").relative_to("/y"),  # a ValueError of a library
    ],
)
def test_other_errors_keep_their_traceback(faulty):
    with pytest.raises((AttributeError, ValueError)):
        run_program(faulty)


def test_the_line_of_a_script_itself_is_ours(monkeypatch, tmp_path):
    script = tmp_path / "tool.py"
    script.write_text(
        "from cif_lobes.settings.program import run_program\n"
        "def main():\n    raise ValueError('say what')\nrun_program(main)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "tool.py: say what\n")


class Unreadable(torch.utils.data.Dataset):
    """What cannot be read by our own code, or by a library."""

    def __init__(self, read):
        self.read = read

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.read()


def test_an_error_in_a_worker_is_a_message(capsys):
    data = Unreadable(functools.partial(build, "- 1"))
    with pytest.raises(SystemExit):
        run_program(lambda: list(torch.utils.data.DataLoader(data, num_workers=1)))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["evaluate.py: the yaml holds no settings: a mapping is expected"]


def test_an_error_of_a_library_in_a_worker_keeps_its_traceback():
    data = Unreadable(functools.partial(pathlib.Path("x").relative_to, "/y"))
    with pytest.raises(ValueError, match="Original Traceback"):
        run_program(lambda: list(torch.utils.data.DataLoader(data, num_workers=1)))


def test_ctrl_c_is_an_exit_status():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        run_program(interrupted)
    assert caught.value.code == 130


@pytest.mark.parametrize("count", [1, 100_000])
def test_a_closed_pipe_is_silent(count, tmp_path):
    code = (
        "from cif_lobes.settings.program import run_program\n"
        "def main():\n    input()\n"
        f"    for i in range({count}): print('a line')\nrun_program(main)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    child.stdout.close()  # before a word is printed
    child.stdin.write("go\n")
    child.stdin.close()
    assert child.stderr.read() == ""
    assert child.wait() == 1


def test_a_broken_pipe_that_is_not_stdout_is_not_hidden():
    def faulty():
        raise BrokenPipeError("of a worker")

    with pytest.raises(BrokenPipeError, match="of a worker"):
        run_program(faulty)


@pytest.mark.parametrize(
    "path",
    WITH_MAIN,
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_every_program_is_run_so(path):
    last = path.read_text().rpartition('__name__ == "__main__":')[2]
    assert re.search(r"\b(run_program|run_recipe|program)\(", last)


@pytest.mark.parametrize(
    "path",
    [path for path in SCRIPTS if path in WITH_MAIN],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_help_needs_no_torch(path):
    if path.name == "quickstart_summary.py":
        pytest.skip("has no options")
    code = (
        f"import runpy, sys; sys.argv = [{str(path)!r}, '--help']\n"
        f"sys.path.insert(0, {str(path.parent)!r})\n"
        f"try: runpy.run_path({str(path)!r}, run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


@pytest.mark.parametrize(
    "local, by_torchrun, command",
    [
        (4, True, "torchrun --standalone --nproc_per_node=4 train.py 'a b.yaml'"),
        (2, True, "(with your launcher) python train.py 'a b.yaml'"),
        (4, False, "(with your launcher) python train.py 'a b.yaml'"),
        (None, False, "(with your launcher) python train.py 'a b.yaml'"),
    ],
)
def test_a_command_of_several_processes(monkeypatch, local, by_torchrun, command):
    """One that cannot be typed is not told: torchrun on two machines needs more words."""
    monkeypatch.setattr(sys, "argv", ["train.py", "a b.yaml"])
    variables = {"WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": local}
    variables["TORCHELASTIC_RUN_ID"] = "none" if by_torchrun else None
    for name, value in variables.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, str(value))
    assert program.this_command() == command
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert program.this_command() == "python train.py 'a b.yaml'"


def test_the_message_of_an_error_with_a_file_has_its_name():
    assert program.describe(PermissionError(13, "denied", "a.txt")) == "a.txt: denied"
    assert program.describe(OSError("what to do")) == "what to do"
