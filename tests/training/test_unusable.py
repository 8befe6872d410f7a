"""A recording that cannot be read ends a training with its name and a checkpoint."""

import json

import numpy as np
import pytest
import soundfile
import torch
from conftest import tiny_arguments, train, write_corpus

from cif_lobes.data.batches import make_dataset
from cif_lobes.data.tokens import CharTokenizer
from cif_lobes.training import unusable

GLOO = ["--distributed_backend", "gloo"]


def cut(path):
    """Break a file off in the middle; its whole content."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return whole


def broken_run(tmp_path, corpus, name, processes=1, **changes):
    """Train with one file broken after the checks; then go on with the whole file."""
    folder = tmp_path / "mine"
    train_csv, valid_csv = write_corpus(folder, 48, 1), write_corpus(folder, 12, 2)
    settings = {"check_audio": "header", "ckpt_interval_minutes": 0, **changes}
    arguments = tiny_arguments((train_csv, valid_csv), tmp_path, **settings) + GLOO
    whole = cut(folder / f"{name}.flac")
    done = train(arguments, processes=processes, check=False)
    assert done.returncode
    said = done.stderr[done.stderr.index("stopped: utterance") :]
    assert (
        f"utterance {name} cannot be read: {folder / name}.flac: it cannot be" in said
    )
    assert "ffmpeg -i" in said and "train.py" in said
    if processes == 1:  # torchrun adds its own
        assert "Traceback" not in done.stderr
    (saved,) = (tmp_path / "run/save").glob("CKPT*")
    progress = json.loads((saved / "brain.ckpt").read_text())
    (folder / f"{name}.flac").write_bytes(whole)
    train(arguments)
    rows = (tmp_path / "run/epochs.jsonl").read_text().splitlines()
    assert len(rows) == 2
    return progress, list(map(json.loads, rows))


@pytest.mark.slow
@pytest.mark.parametrize("processes, num_workers", [(1, 0), (1, 1), (2, 0), (2, 1)])
def test_in_training(corpus, tmp_path, processes, num_workers):
    changes = {"num_workers": num_workers, "sorting": "ascending"}
    progress, _ = broken_run(tmp_path, corpus, "utt1-005", processes, **changes)
    # The update it belongs to has left no trace.
    assert progress["updates_in_epoch"] == progress["optimizer_step"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_in_validation(corpus, tmp_path, processes):
    """The epoch is kept: what goes on is its validation."""
    progress, rows = broken_run(tmp_path, corpus, "utt2-005", processes)
    assert progress["updates_in_epoch"] == progress["optimizer_step"]
    assert rows[0]["updates"] == progress["optimizer_step"]
    train_csv, valid_csv = write_corpus(tmp_path, 48, 1), write_corpus(tmp_path, 12, 2)
    settings = {"output_folder": tmp_path / "whole"}
    arguments = tiny_arguments((train_csv, valid_csv), tmp_path, **settings) + GLOO
    train(arguments, processes=processes)
    whole = json.loads((tmp_path / "whole/epochs.jsonl").read_text().splitlines()[0])
    assert rows[0]["train"]["loss"] == pytest.approx(whole["train"]["loss"], rel=1e-4)


@pytest.fixture
def noting(tmp_path):
    """Three utterances, of which the second has a NaN."""
    csv = write_corpus(tmp_path, 3, 7, suffix="wav")
    path = tmp_path / "utt7-001.wav"
    samples, rate = soundfile.read(path)
    samples[100] = np.nan
    soundfile.write(path, samples, rate, "FLOAT")
    tokenizer = CharTokenizer(tmp_path / "chars", 8, "en").fit(["abcd"])
    dataset = make_dataset(csv, tokenizer, 16000)
    return unusable.note_unusable(dataset, 16000), len(samples)


def test_it_comes_as_silence_with_a_note(noting):
    dataset, length = noting
    assert len(dataset) == 3 and dataset[0]["unusable"] == dataset[2]["unusable"] == ""
    item = dataset[1]
    assert "utterance utt7-001 cannot be read" in item["unusable"]
    assert "sample 100 (0.01 s) is NaN" in item["unusable"]
    assert torch.equal(item["signal"], torch.zeros(length))
    assert item.keys() == dataset[0].keys() and len(item["tokens"]) > 1


def test_texts_alone_are_left_as_they_are():
    assert unusable.note_unusable([1, 2], None) == [1, 2]


def test_all_are_named_up_to_five():
    assert unusable.gather_unusable(["", ""], learning=True) is None
    error = unusable.gather_unusable([f"u{n}" for n in range(7)], learning=True)
    assert "u4" in str(error) and "u5" not in str(error)
    assert "and 2 more; what was learnt before is saved" in str(error)
