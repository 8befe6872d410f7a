"""A run goes on with what it was begun with; a start that is refused leaves it as it was."""

import json
import logging
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, TINY, tiny_arguments, train
from hyperpyyaml import load_hyperpyyaml, resolve_references
from tiny_cache import make_cache

from cif_lobes.runs.resume import (
    check_network,
    check_parameters,
    check_updates,
    is_done,
)
from cif_lobes.runs.start import read_plain
from cif_lobes.runs.teacher import keep_teacher, meet_teacher
from cif_lobes.storage.checkpoints import SafeCheckpointer
from cif_lobes.training.schedules import TriStage

HPARAMS = ROOT / "recipes/AISHELL-1/hparams"
YAML = HPARAMS / "cif_mini.yaml"


def load(folder, **changes):
    changes = {**TINY, "pool_after": [1], "output_folder": str(folder), **changes}
    with open(YAML) as file:
        resolved = resolve_references(file, changes).getvalue()
    return load_hyperpyyaml(resolved), read_plain(YAML, changes), resolved


@pytest.fixture
def run(tmp_path):
    """A run folder with a checkpoint of random weights."""
    hparams, _, resolved = load(tmp_path / "run")
    (tmp_path / "run/hyperparams.yaml").write_text(resolved)
    model = torch.nn.ModuleDict(hparams["modules"])
    checkpointer = SafeCheckpointer(tmp_path / "run/save", {"model": model})
    checkpointer.save_checkpoint({"epoch": 1})
    return tmp_path / "run"


@pytest.fixture(scope="module")
def teacher(corpus, tmp_path_factory):
    """A cache of random states, and its manifest folder."""
    folder = tmp_path_factory.mktemp("teacher")
    return make_cache(corpus, folder, 12, teacher_weights="w1")


@pytest.fixture(scope="module")
def taught(corpus, teacher, tmp_path_factory):
    """A run of an epoch with a CTC head and two that know a teacher."""
    folder = tmp_path_factory.mktemp("taught")
    train(arguments(corpus, folder, teacher))
    return folder / "run"


def arguments(corpus, folder, teacher, **changes):
    path, manifest_folder = teacher
    settings = {"teacher_cache": path, "manifest_folder": manifest_folder}
    settings |= {"lrd_weight": 0.1, "number_of_epochs": 1, **changes}
    yaml = HPARAMS / "cif_mini_hieradist.yaml"
    return [str(yaml), *tiny_arguments(corpus, folder, **settings)[1:]]


def content(folder):
    """All files of a run but its log and lock, and what is in them."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {p: p.read_bytes() for p in files if p.name not in ("log.txt", "run.lock")}


def refused(run, words):
    """What is said of a start that is refused and changes nothing of a run."""
    before = content(run)
    done = train(words, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert content(run) == before
    return done.stderr


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"vocab_size": 9}, "vocab_size is 8 there and 9 here"),
        ({"d_model": 64}, "d_model is 32 there and 64 here"),
        ({"encoder_layers": 1}, "encoder_layers is 2 there and 1 here"),
        # These change no parameter's shape.
        ({"threshold": 0.9}, "threshold is 1.0 there and 0.9 here"),
        ({"nhead": 4}, "nhead is 2 there and 4 here"),
    ],
)
def test_another_network_is_told_by_its_settings(run, changes, told):
    hparams, settings, _ = load(run, **changes)
    with pytest.raises(ValueError, match="another network") as caught:
        check_network(run, hparams["modules"], settings)
    assert told in str(caught.value)
    assert "size mismatch" not in str(caught.value)


def test_the_same_network_goes_on(run, tmp_path):
    hparams, settings, _ = load(run, lr=0.1, number_of_epochs=9, dropout=0.3)
    check_network(run, hparams["modules"], settings)
    check_parameters(run, torch.nn.ModuleDict(hparams["modules"]), settings)
    check_parameters(tmp_path / "none", torch.nn.ModuleDict(), settings)
    check_network(tmp_path / "none", {}, settings)


def test_heads_neither_come_nor_go(run):
    """They are made after the data are read: only then all of the network is known."""
    hparams, settings, _ = load(run, ctc_weight=0, lr=0.1)
    modules = hparams["modules"]
    head = modules.pop("ctc_head")
    check_network(run, modules, settings)
    with pytest.raises(ValueError, match="ctc_head.* none here") as caught:
        check_parameters(run, torch.nn.ModuleDict(modules), settings)
    assert "ctc_weight is 0.5 there and 0 here" in str(caught.value)
    assert "lr is" not in str(caught.value) and "--init_from" in str(caught.value)
    modules |= {"ctc_head": head, "distillation": torch.nn.Linear(2, 3)}
    with pytest.raises(ValueError, match="first distillation.bias, none there"):
        check_parameters(run, torch.nn.ModuleDict(modules), settings)


def test_only_training_has_the_heads_of_a_teacher(run):
    hparams, settings, _ = load(run)
    model = torch.nn.ModuleDict(hparams["modules"])
    model["distillation"] = torch.nn.Linear(2, 3)
    SafeCheckpointer(run / "save", {"model": model}).save_checkpoint({"epoch": 2})
    check_parameters(run, model, settings)
    del model["distillation"]
    check_parameters(run, model, settings)


def test_another_vocabulary_leaves_the_run_as_it_was(run, corpus, tmp_path):
    told = refused(run, tiny_arguments(corpus, tmp_path, vocab_size=9))
    assert "vocab_size is 8 there and 9 here" in told


@pytest.mark.parametrize(
    "weight, more",
    [
        ("ctc_weight", []),
        ("ctc_weight", ["--test_only"]),
        ("acd_weight", []),
        ("lrd_weight", []),
    ],
)
def test_a_weight_of_zero_leaves_a_run_as_it_was(
    taught, teacher, corpus, tmp_path, weight, more
):
    shutil.copytree(taught, tmp_path / "run")
    changes = {weight: 0, "number_of_epochs": 2}
    words = arguments(corpus, tmp_path, teacher, **changes)
    told = refused(tmp_path / "run", [*words, *more])
    assert f"{weight} is " in told and "and 0 here" in told
    assert f"--init_from {tmp_path / 'run'}" in told


def test_whatever_stops_a_start_leaves_a_run_as_it_was(
    taught, teacher, corpus, tmp_path
):
    """What cannot be loaded, for instance: settings are kept after that."""
    shutil.copytree(taught, tmp_path / "run")
    (broken,) = (tmp_path / "run/save").glob("CKPT*/optimizer.ckpt")
    broken.write_bytes(bytes(broken.stat().st_size))
    before = content(tmp_path / "run")
    words = arguments(corpus, tmp_path, teacher, lr=0.5, number_of_epochs=2)
    assert train(words, check=False).returncode
    assert content(tmp_path / "run") == before


@pytest.mark.parametrize("changes", [{"batch_seconds": 20}, {"train_csv": None}])
def test_other_updates_leave_a_run_as_it_was(
    taught, teacher, corpus, tmp_path, changes
):
    """A learning rate is that of a number of updates, of which an epoch has as many."""
    shutil.copytree(taught, tmp_path / "run")
    if "train_csv" in changes:  # the file itself is another
        rows = corpus[0].read_text().splitlines()
        fewer = corpus[0].with_name("fewer.csv")
        fewer.write_text("\n".join(rows[:20]) + "\n")
        changes = {"train_csv": fewer}
    words = arguments(corpus, tmp_path, teacher, number_of_epochs=2, **changes)
    told = refused(tmp_path / "run", words)
    (saved,) = (taught / "save").glob("CKPT*/brain.ckpt")
    before = json.loads(saved.read_text())["optimizer_step"]
    assert f"an epoch of this run has {before} updates" in told
    assert f"Other settings: {next(iter(changes))} is " in told
    # There is nothing to train: then it may be scored.
    words = arguments(corpus, tmp_path, teacher, **changes)
    assert "nothing is trained" in train(words).stdout


def test_an_update_in_a_hundred_is_a_broken_recording(run):
    """Which messages say to take out; checkpoints of before do not say how many."""
    _, settings, _ = load(run)
    for before, now in [(None, 3), (1000, 1000), (1000, 990), (100, 101), (3, 3)]:
        check_updates(run, before, now, settings)
    for before, now in [(1000, 989), (99, 98), (3, 2), (1000, 2000)]:
        with pytest.raises(ValueError, match=f"{before:,} updates.* {now:,}.*another"):
            check_updates(run, before, now, settings)


@pytest.mark.parametrize("warmup, hold, again", [(0.1, 0.5, "1"), (0.1, 0.1, "0.18")])
def test_more_epochs_are_said_to_raise_the_learning_rate(
    run, caplog, warmup, hold, again
):
    """By the schedule itself: 60 epochs are done, and there could be 120."""
    schedule = TriStage(1.0, warmup, hold)
    meta = SimpleNamespace(meta={"epoch": 60})
    hparams = {
        "output_folder": run,
        "epoch_counter": SimpleNamespace(limit=61),
        "checkpointer": SimpleNamespace(list_checkpoints=lambda: [meta]),
        "lr_scheduler": schedule,
    }
    assert not is_done(hparams, {"init_from": None}, 10)
    hparams["epoch_counter"].limit = 60
    with caplog.at_level(logging.WARNING):
        assert is_done(hparams, {"init_from": None}, 10)
    assert "60 of 60 epochs are done, nothing is trained" in caplog.text
    assert "--number_of_epochs 120 would go on" in caplog.text
    assert f"of 0.01, the next would have {again}" in caplog.text
    assert f"--init_from {run} and another --output_folder" in caplog.text
    schedule.start(1200)
    assert f"{schedule.lr_at(601):.2g}" == again
    assert is_done(hparams, {}, 10) and "own, or other settings: another" in caplog.text


def test_a_setting_of_the_optimizer_that_is_typed_counts(
    taught, teacher, corpus, tmp_path
):
    """And not that of the checkpoint, as PyTorch has it."""
    shutil.copytree(taught, tmp_path / "run")
    changes = {"weight_decay": 0.7, "number_of_epochs": 2}
    train(arguments(corpus, tmp_path, teacher, **changes))
    newest = max(
        (tmp_path / "run/save").glob("CKPT*/optimizer.ckpt"), key=os.path.getmtime
    )
    groups = torch.load(newest)["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.7]


@pytest.mark.parametrize(
    "layer, changes, told",
    [
        (12, {"teacher_weights": "w2"}, "teacher_weights w1 there, w2 here"),
        (11, {"teacher_weights": "w1"}, "layer 12 there, 11 here"),
        (12, {"teacher_weights": "w1", "pooling": "last"}, "pooling None there, last"),
    ],
)
def test_a_run_keeps_its_teacher(taught, corpus, tmp_path, layer, changes, told):
    """One of the same width says other things to the same heads."""
    shutil.copytree(taught, tmp_path / "run")
    other = make_cache(corpus, tmp_path, layer, **changes)
    words = arguments(corpus, tmp_path, other, number_of_epochs=2)
    said = refused(tmp_path / "run", words)
    assert told in said and f"{tmp_path / 'run'} was begun with states of" in said


def test_a_run_of_before_goes_on_and_notes_its_teacher(
    taught, teacher, corpus, tmp_path
):
    shutil.copytree(taught, tmp_path / "run")
    note = tmp_path / "run/teacher.json"
    before = note.read_text()
    assert json.loads(before)["teacher_weights"] == "w1"
    note.unlink()
    words = arguments(corpus, tmp_path, teacher, number_of_epochs=2)
    train(words)
    assert note.read_text() == before


def test_a_teacher_is_met_again_once_there_is_a_checkpoint(run):
    """A run that has learnt nothing yet may have another."""
    checkpointer = SafeCheckpointer(run / "save")
    hparams = {"output_folder": run, "checkpointer": checkpointer}
    meet_teacher(hparams, ["a", "b"], {"teacher_weights": ["w1", "w2"]})
    assert not (run / "teacher.json").exists()  # before the training begins
    keep_teacher(hparams)
    meet_teacher(hparams, ["elsewhere/a", "b"], {"teacher_weights": ["w1", "w2"]})
    with pytest.raises(ValueError, match="states of .'a', 'b'., these of c are"):
        meet_teacher(hparams, "c", {"teacher_weights": ["w1"]})
    shutil.rmtree(*(run / "save").glob("CKPT*"))
    meet_teacher(hparams, "c", {"teacher_weights": ["w1"]})
    keep_teacher({"output_folder": run})  # of a run without
    assert json.loads((run / "teacher.json").read_text())["teacher"] == ["a", "b"]
