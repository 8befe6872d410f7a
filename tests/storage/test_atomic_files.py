"""Files and exported folders are there whole or not at all."""

import errno
import json
import logging
import multiprocessing
import pathlib
import shutil
import types

import pytest
from tiny_hubert import write_student_run

from cif_lobes.commands import evaluate
from cif_lobes.inference.export import export_run
from cif_lobes.inference.onnx_export import export_onnx
from cif_lobes.inference.s3prl_export import export_s3prl
from cif_lobes.runs import stages
from cif_lobes.storage.atomic_files import (
    DiskFull,
    atomic_folder,
    new_folder,
    write_atomically,
)


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "figures.txt"
    write_atomically(path, "old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskFull, match=f"no room to write in {tmp_path}: free are"):
        write_atomically(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["figures.txt"]
    assert path.read_text() == "old"


def test_another_error_is_passed_on(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        write_atomically(tmp_path / "file" / "x", "text")


def test_others_may_read_what_was_written(tmp_path):
    (tmp_path / "plain").write_text("x")
    write_atomically(tmp_path / "atomic", "x")
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def write_until_killed(path):
    with atomic_folder(path) as folder:
        (folder / "first").write_text("x")
        (path.parent / "begun").touch()
        multiprocessing.Event().wait()


def test_a_killed_export_leaves_nothing_and_can_be_repeated(tmp_path):
    path = tmp_path / "out"
    process = multiprocessing.get_context("fork").Process(
        target=write_until_killed, args=[path]
    )
    process.start()
    while not (tmp_path / "begun").exists():
        pass
    process.kill()
    process.join()
    assert not path.exists() and (tmp_path / ".out.partial").exists()
    path.mkdir()  # an empty one may be there
    with new_folder(path) as folder:
        (folder / "second").write_text("x")
        assert not [*path.iterdir()]
    assert [p.name for p in path.iterdir()] == ["second"]
    assert {p.name for p in tmp_path.iterdir()} == {"begun", "out"}


def test_a_mount_point_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pathlib.Path, "is_mount", lambda path: True)
    with pytest.raises(FileExistsError, match="give a new folder in it"):
        with new_folder(tmp_path / "out"):
            pass


@pytest.mark.parametrize("kind", ["speechbrain", "onnx", "s3prl"])
def test_an_export_on_a_full_disk_leaves_nothing(trained, tmp_path, monkeypatch, kind):
    write, run, last = {
        "speechbrain": (export_run, trained, "hyperparams.yaml"),
        "onnx": (export_onnx, trained, "recognizer.json"),
        "s3prl": (export_s3prl, tmp_path / "run", "hubconf.py"),
    }[kind]
    if kind == "s3prl":
        write_student_run(run)
    if kind == "onnx":
        monkeypatch.setattr("cif_lobes.inference.onnx_export._export", lambda *_: None)
    write_text = pathlib.Path.write_text

    def full_at_last(self, *args, **kwargs):
        (full if self.name == last else write_text)(self, *args, **kwargs)

    monkeypatch.setattr("pathlib.Path.write_text", full_at_last)
    (tmp_path / "exports").mkdir()
    with pytest.raises(DiskFull, match="no room"):
        write(run, tmp_path / "exports/out")
    assert not [*(tmp_path / "exports").iterdir()]


# --- figures ---


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the tiny run."""
    return shutil.copytree(trained, tmp_path / "run")


def call(*arguments):
    """evaluate.py in this process."""
    evaluate.main(evaluate.parse_arguments([*map(str, arguments)]))


def test_figures_are_printed_though_nothing_can_be_written(
    run, monkeypatch, capsys, caplog
):
    """As of a run folder that may only be read."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def read_only(file, mode="r", **kwargs):
        if "w" in mode:
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return open(file, mode, **kwargs)

    monkeypatch.setattr("cif_lobes.storage.atomic_files.open", read_only, raising=False)
    with caplog.at_level(logging.WARNING):
        call(run)
    printed = capsys.readouterr().out
    assert "valid: CER" in printed and "set2: CER" in printed
    warnings = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1 and "Permission denied" in warnings[0]
    call(run, "--sweep", "--beam", "1", "--tail_threshold", "0.5")
    printed = capsys.readouterr()
    assert "CER %" in printed.out and "Permission denied" in printed.err
    assert "to use the first" not in printed.out
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert after == before


def test_figures_are_written_after_they_are_printed(run, monkeypatch, capsys):
    """A kill while they are written loses no figure."""

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cif_lobes.decoding.scoring.ErrorRate.write", killed)
    with pytest.raises(KeyboardInterrupt):
        call(run, "--split", "set2")
    assert "set2: CER" in capsys.readouterr().out


def test_a_training_on_a_full_disk_ends_with_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "cif.yaml"])
    record = types.SimpleNamespace(start=lambda *_: None, path=tmp_path / "run.json")
    hparams = {"record": record, "seed": 1, "model": types.SimpleNamespace()}
    hparams["model"].parameters = list
    hparams |= {
        "epoch_counter": types.SimpleNamespace(limit=1),
        "save_folder": tmp_path,
    }
    hparams |= {"checkpointer": types.SimpleNamespace(list_checkpoints=list)}
    hparams |= {"overrides": "", "output_folder": tmp_path / "run"}
    (tmp_path / "cif.yaml").write_text("seed: 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages, "check_parameters", lambda *_: None)
    monkeypatch.setattr(stages, "is_done", lambda *_: False)

    def fit(*_, **__):
        raise DiskFull("no room to write in here")

    brain = types.SimpleNamespace(test_only=False, device="cpu", fit=fit)
    data = {"train": [], "valid": []}
    options = {"batch_sampler": types.SimpleNamespace(num_updates=1)}
    with pytest.raises(SystemExit) as stop:
        stages.fit_batches(brain, "cif.yaml", hparams, data, options, {})
    assert stop.value.code.startswith("stopped: no room to write in here")
    assert "python train.py cif.yaml" in stop.value.code


def test_settings_are_not_lost_when_they_cannot_be_written_again(
    run, monkeypatch, tmp_path
):
    from cif_lobes.storage.run_files import keep_settings

    (tmp_path / "x.yaml").write_text("a: 1\nb: !ref <a>\n")
    keep_settings({"output_folder": run}, str(tmp_path / "x.yaml"), "a: 2")
    text = (run / "hyperparams.yaml").read_text()
    assert text.startswith("# Generated") and "b: 2" in text
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskFull):
        keep_settings({"output_folder": run}, str(tmp_path / "x.yaml"), "a: 3")
    assert (run / "hyperparams.yaml").read_text() == text
    assert json.loads((run / "run.json").read_text())["results"]
