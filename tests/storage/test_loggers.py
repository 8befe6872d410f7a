"""train_logger: SpeechBrain's loggers are given what epochs.jsonl is given."""

import json
from functools import partial

import pytest
from conftest import tiny_arguments, train
from programs import run_python
from speechbrain.utils.train_logger import TrainLogger

from cif_lobes.storage.record import RunRecord

FIGURES = {
    "loss": 2.0,
    "losses": {"ce": {"value": 1.5, "weight": 1.0, "share": 1.0}},
    "seconds": 3.0,
}


class Kept(TrainLogger):
    def __init__(self, calls):
        self.calls = calls

    def log_stats(self, *stats):
        self.calls.append(stats)


def epochs(record, *numbers):
    for number in numbers:
        valid = {**FIGURES, "error_rate": 50.0 / number, "unit": "word"}
        record.epoch(number, 9, 1e-3, 10 * number, FIGURES, valid, "")


def test_figures_have_the_names_of_epochs_jsonl(tmp_path):
    calls = []
    record = RunRecord(tmp_path, partial(Kept, calls))
    assert not calls  # nothing is made before there is something to log
    epochs(record, 1, 2)
    meta, trained, valid = calls[1]
    assert meta == {"epoch": 2, "updates": 20, "learning_rate": 1e-3, "seconds": 6.0}
    terms = {f"losses.ce.{name}" for name in ("value", "weight", "share")}
    names = {"loss", "seconds", *terms}
    assert trained.keys() == names
    assert valid.keys() == names | {"error_rate"}  # and no words
    row = json.loads((tmp_path / "epochs.jsonl").read_text().splitlines()[1])
    assert row["valid"]["losses"]["ce"]["value"] == valid["losses.ce.value"]


def test_tensorboard_counts_epochs_after_a_stop_too(tmp_path):
    pytest.importorskip("tensorboard", reason="an optional package")
    pytest.importorskip("torchvision", reason="SpeechBrain's logger wants it as well")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from cif_lobes.storage.loggers import TensorboardLogger

    epochs(RunRecord(tmp_path, TensorboardLogger(tmp_path / "board")), 1, 2)
    second = TensorboardLogger(tmp_path / "board")
    epochs(RunRecord(tmp_path, second), 3)
    second.writer.flush()
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    assert [e.step for e in board.Scalars("losses.ce.value/train")] == [1, 2, 3]
    assert [e.value for e in board.Scalars("updates")] == [10, 20, 30]


@pytest.mark.slow
def test_one_line_in_a_yaml(corpus, tmp_path):
    """And the run that has it is evaluated like any other."""
    yaml, *arguments = tiny_arguments(corpus, tmp_path)
    with open(yaml, encoding="utf-8") as file:
        text = file.read()
    line = (
        "train_logger: !name:speechbrain.utils.train_logger.FileTrainLogger\n"
        "    save_file: !ref <output_folder>/figures.txt\n"
    )
    (tmp_path / "mine.yaml").write_text(f"{text}\n{line}", encoding="utf-8")
    train([str(tmp_path / "mine.yaml"), *arguments])
    lines = (tmp_path / "run/figures.txt").read_text().splitlines()
    assert len(lines) == 2 and "valid error_rate" in lines[1]
    run_python(["evaluate.py", tmp_path / "run", "--split", "valid"])
