"""One NaN in the data costs an update, names its utterance, and loses no run."""

import csv
import json

import numpy as np
import pytest
import soundfile
import torch
from conftest import last_checkpoint, tiny_arguments, train, write_corpus
from speechbrain.dataio.batch import PaddedBatch

from cif_lobes.training.ledger import Ledger
from cif_lobes.training.nonfinite import NonFinite, explain


@pytest.fixture
def poisoned(corpus, tmp_path):
    """The tone corpus, of which the first utterances have a sample whose square is more
    than float32 holds: no fault of a file, but features that are not finite."""

    def make(count):
        path = write_corpus(tmp_path / "poisoned", 48, 1, suffix="wav")
        names = [row["wav"] for row in csv.DictReader(path.open())]
        for name in names[:count]:
            audio, rate = soundfile.read(path.parent / name, dtype="float32")
            audio[len(audio) // 2] = 1e30
            soundfile.write(path.parent / name, audio, rate, "FLOAT")
        return path, corpus[1]

    return make


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_one_bad_recording(poisoned, tmp_path, processes):
    """Its update is left out of parameters and figures, in every process alike."""
    arguments = tiny_arguments(poisoned(1), tmp_path)
    gloo = ["--distributed_backend", "gloo"]
    done = train([*arguments, *gloo], processes=processes)
    output = done.stdout + done.stderr
    assert "This update is left out" in output and "of the utterances utt1-" in output
    for value in last_checkpoint(tmp_path / "run").values():
        assert value.isfinite().all()
    lines = (tmp_path / "run/epochs.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        assert np.isfinite(row["train"]["loss"]) and np.isfinite(row["valid"]["loss"])


@pytest.mark.slow
def test_only_bad_recordings(poisoned, tmp_path):
    """Training ends after five updates, saved; with mended data it goes on."""
    train_csv, valid_csv = poisoned(48)
    arguments = tiny_arguments((train_csv, valid_csv), tmp_path)
    done = train(arguments, check=False)
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-2]
    assert "5 updates in a row were left out" in message and "utt1-" in message
    assert "loss ce, quantity, ctc" in message
    write_corpus(train_csv.parent, 48, 1, suffix="wav")  # mended
    train(arguments)
    assert len((tmp_path / "run/epochs.jsonl").read_text().splitlines()) == 2


def test_statistics_forget_the_update():
    """A running mean has counted the NaN before anybody knows."""
    modules = torch.nn.ModuleDict({"norm": torch.nn.BatchNorm1d(3)})
    guard = NonFinite(modules, patience=3)
    modules["norm"](torch.randn(8, 3))
    guard.keep()
    before = {k: v.clone() for k, v in modules.state_dict().items()}
    modules["norm"](torch.full((8, 3), float("nan")))
    assert modules["norm"].running_mean.isnan().any()
    assert guard.skip([], Ledger()) is None
    for name, value in modules.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_patience_is_for_updates_in_a_row(caplog):
    guard = NonFinite(torch.nn.ModuleDict(), patience=2)
    assert guard.skip([], Ledger()) is None
    guard.keep()
    assert guard.skip([], Ledger()) is None
    assert "2 updates in a row" in str(guard.skip([], Ledger()))
    assert "the gradient, of a finite loss" in caplog.text


def test_the_cause_is_named():
    """What is broken in the batch, else the batch; and the terms of the loss."""
    nan, ledger = torch.tensor(float("nan")), Ledger()
    ledger.add({"ce": (1.0, torch.tensor(1.0)), "ctc": (0.5, nan)}, 4)
    rows = [{"id": f"utt{i}", "teacher": torch.ones(2, 3)} for i in range(5)]
    whole = PaddedBatch(rows)
    words = explain([(whole, torch.tensor(1.0)), (whole, nan)], ledger)
    assert words == "loss ctc (of the utterances utt0, utt1, utt2 and 2 more)"
    rows[3]["teacher"][1, 2] = float("inf")
    words = explain([(PaddedBatch(rows), nan)], ledger)
    assert words == "loss ctc (teacher of utterance utt3 has NaN or infinite values)"
    assert explain([(whole, torch.tensor(1.0))], Ledger()) == ""


def test_parameters_that_are_not_finite_are_not_saved():
    network = torch.nn.ModuleDict(
        {"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)}
    )
    guard = NonFinite(network, patience=5)
    guard.check_parameters()
    network["b"].bias.data[1] = float("nan")
    with pytest.raises(
        FloatingPointError, match="b.bias is not finite, so nothing was"
    ):
        guard.check_parameters()
