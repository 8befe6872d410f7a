"""Broken checkpoints are named once and passed over, by whoever reads them."""

import json
import logging
import os
import shutil

import pytest
import torch
from conftest import epochs, tiny_arguments, train
from speechbrain.utils.checkpoints import Checkpointer
from tiny_asr import make_run
from tiny_checkpoints import make, save
from tiny_hubert import write_student_run

from cif_lobes.inference.export import export_run
from cif_lobes.nets.frozen_student import read_student
from cif_lobes.storage import checkpoints
from cif_lobes.storage.checkpoints import SafeCheckpointer
from cif_lobes.storage.parameters import average_parameters, read_parameters


@pytest.fixture(autouse=True)
def no_name_yet(monkeypatch):
    """No broken checkpoint has been named in this process."""
    monkeypatch.setattr(checkpoints, "_named", set())


def keep_counter_only(folder):
    """What a kill of older versions leaves."""
    for path in folder.iterdir():
        if path.name not in ("CKPT.yaml", "counter.ckpt"):
            path.unlink()


def cut_model(folder):
    path = folder / "model.ckpt"
    os.truncate(path, path.stat().st_size // 2)


def empty_meta(folder):
    os.truncate(folder / "CKPT.yaml", 0)


def empty_model(folder):
    os.truncate(folder / "model.ckpt", 0)


BREAK = [keep_counter_only, cut_model, empty_meta, empty_model]


@pytest.mark.parametrize("kind", [Checkpointer, SafeCheckpointer])
@pytest.mark.parametrize("harm", BREAK)
def test_a_broken_checkpoint_is_named_once_and_passed_over(
    tmp_path, caplog, kind, harm
):
    checkpointer = make(tmp_path, kind)
    good, broken = save(checkpointer, 1), save(checkpointer, 2)
    harm(broken.path)
    reader = make(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert reader.recover_if_possible().path == good.path
        assert average_parameters(tmp_path, "last", 2)[1] == [1]
        assert average_parameters(tmp_path, "best", 1)[1] == [1]
    warnings = [r.message for r in caplog.records if "passed over" in r.message]
    assert len(warnings) == 1 and str(broken.path) in warnings[0]
    save(reader, 3)
    reader.delete_checkpoints(num_to_keep=1)
    assert broken.path.exists()  # its owner may want what is left
    assert [c.meta["epoch"] for c in reader.list_checkpoints()] == [3]


def test_a_checkpoint_of_older_versions_that_lacks_the_optimizer(tmp_path):
    """It can be evaluated, and training cannot go on from it."""
    checkpointer = make(tmp_path, Checkpointer)
    good, broken = save(checkpointer, 1), save(checkpointer, 2)
    (broken.path / "optimizer.ckpt").unlink()
    assert average_parameters(tmp_path, "last", 1)[1] == [2]
    assert make(tmp_path).recover_if_possible().path == good.path


def test_what_is_only_missing_here_is_not_broken(tmp_path):
    """SpeechBrain's own error says that a whole checkpoint is of another kind."""
    make(tmp_path).save_checkpoint()
    reader = make(tmp_path)
    reader.add_recoverable("ledger", torch.nn.Linear(1, 1))
    with pytest.raises(RuntimeError, match="missing a load path for ledger"):
        reader.recover_if_possible()


def test_checkpoints_are_deleted_as_speechbrain_does(tmp_path):
    kept = []
    for kind in (Checkpointer, SafeCheckpointer):
        checkpointer = make(tmp_path / kind.__name__, kind)
        for epoch, rate in enumerate([5.0, 1.0, 4.0, 2.0, 3.0], 1):
            checkpointer.save_checkpoint(meta={"error_rate": rate, "epoch": epoch})
            checkpointer.save_checkpoint(meta={"within": True})
        checkpointer.delete_checkpoints(
            num_to_keep=2,
            min_keys=["error_rate"],
            ckpt_predicate=lambda c: "error_rate" in c.meta,
        )
        left = checkpointer.list_checkpoints()
        kept.append(sorted(c.meta.get("epoch", 0) for c in left))
    assert kept == [[0, 0, 0, 0, 0, 2, 4, 5]] * 2


def test_evaluation_goes_on_when_training_deletes_a_checkpoint(tmp_path, monkeypatch):
    checkpointer = make(tmp_path)
    first = save(checkpointer, 1)
    save(checkpointer, 2)
    load = checkpoints.load_parameters

    def delete_first(path, **kwargs):
        shutil.rmtree(first.path, ignore_errors=True)
        return load(path, **kwargs)

    monkeypatch.setattr("cif_lobes.storage.parameters.load_parameters", delete_first)
    assert average_parameters(tmp_path, "last", 2)[1] == [2]


# --- everything that reads runs ---


def break_newest(run):
    """A copy of the only checkpoint that looks newer, without its model."""
    good = next(run.glob("save/CKPT*"))
    broken = shutil.copytree(good, good.with_name("CKPT+9999"))
    meta = (good / "CKPT.yaml").read_text()
    start = meta.index("unixtime: ")
    (broken / "CKPT.yaml").write_text(f"{meta[:start]}unixtime: 9.0e+9\n")
    (broken / "model.ckpt").unlink()
    (broken / "sizes.json").unlink(missing_ok=True)
    return broken


def test_teachers_and_students_are_read_past_a_broken_checkpoint(corpus, tmp_path):
    run = make_run(corpus, tmp_path, 1)
    expected = read_parameters(run)
    broken = break_newest(run)
    assert read_parameters(run).keys() == expected.keys()
    with pytest.raises(ValueError, match=r"no whole checkpoint: model.ckpt is missing"):
        read_parameters(broken)
    student_run = tmp_path / "student"
    write_student_run(student_run)
    for checkpoint in student_run.glob("save/CKPT*"):
        if "loss: 1" in (checkpoint / "CKPT.yaml").read_text():
            cut_model(checkpoint)
    student, parameters = read_student(student_run)
    assert parameters and student["student"]


def test_an_export_is_made_past_a_broken_checkpoint(trained, tmp_path, caplog):
    run = shutil.copytree(trained, tmp_path / "run")
    newest = max(run.glob("save/CKPT*"), key=lambda f: (f / "CKPT.yaml").read_text())
    (newest / "model.ckpt").unlink()
    with caplog.at_level(logging.WARNING):
        export_run(run, tmp_path / "out")
    assert str(newest) in caplog.text
    assert (tmp_path / "out/model.safetensors").exists()


@pytest.mark.slow
def test_a_run_goes_on_past_broken_checkpoints_as_if_uninterrupted(corpus, tmp_path):
    for run in "ab":
        train(tiny_arguments(corpus, tmp_path / run, number_of_epochs=3))
    newest = max((tmp_path / "b/run/save").glob("CKPT*"))
    bare = shutil.copytree(newest, newest.with_name("CKPT+9999-killed"))
    keep_counter_only(bare)
    (newest / "sizes.json").unlink()
    cut_model(newest)
    lines = (tmp_path / "b/run/epochs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "b/run/epochs.jsonl").write_text("".join(lines[:2]))
    train(tiny_arguments(corpus, tmp_path / "b", number_of_epochs=3))
    assert epochs(tmp_path / "a/run") == epochs(tmp_path / "b/run")
    figures = [
        json.loads((tmp_path / f"{run}/run/run.json").read_text())["results"]["set2"]
        for run in "ab"
    ]
    # The average of two checkpoints, one of which was trained again.
    assert len({(f["loss"], f["error_rate"]) for f in figures}) == 1
