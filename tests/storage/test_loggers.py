"""train_logger: SpeechBrain's loggers are given what epochs.jsonl is given."""

import json
import pathlib
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


class Closing:
    """What a logger of SpeechBrain's writes with."""

    closed = 0

    def end(self):
        self.closed += 1


class TensorBoard(Closing):
    close = Closing.end


class WeightsAndBiases(Closing):
    finish = Closing.end


@pytest.mark.parametrize(
    "name, kind", [("writer", TensorBoard), ("run", WeightsAndBiases)]
)
def test_what_can_be_closed_is_closed(tmp_path, name, kind):
    """Once, whatever it is called; a logger's own way comes first."""
    kept = Kept([])
    record = RunRecord(tmp_path, lambda: kept)
    record.close()  # not made yet
    epochs(record, 1)
    record.close()  # has no way
    setattr(kept, name, kind())
    record.close()
    assert getattr(kept, name).closed == 1
    kept.close = lambda: kept.calls.append("closed")
    record.close()
    assert kept.calls[-1] == "closed" and getattr(kept, name).closed == 1
    RunRecord(tmp_path).close()


@pytest.mark.slow
def test_processes_of_torchrun_close_it(corpus, tmp_path):
    """They leave by os._exit, at which nothing is written."""
    yaml, *arguments = tiny_arguments(corpus, tmp_path, number_of_epochs=1)
    (tmp_path / "closing.py").write_text(
        "from speechbrain.utils.train_logger import TrainLogger\n"
        "class Logger(TrainLogger):\n"
        "    def __init__(self, path):\n"
        "        self.file = open(path, 'w', buffering=10**6)\n"
        "    def log_stats(self, meta, *stats):\n"
        "        self.file.write(f'{meta}\\n')\n"
        "    def close(self):\n"
        "        self.file.close()\n"
    )
    text = pathlib.Path(yaml).read_text(encoding="utf-8")
    line = f"train_logger: !name:closing.Logger {{path: {tmp_path}/log}}\n"
    (tmp_path / "mine.yaml").write_text(f"{text}\n{line}", encoding="utf-8")
    words = ["recipes/AISHELL-1/train.py", tmp_path / "mine.yaml", *arguments]
    words += ["--distributed_backend", "gloo"]
    run_python(words, env={"PYTHONPATH": str(tmp_path)}, processes=2)
    assert "'epoch': 1" in (tmp_path / "log").read_text()


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
