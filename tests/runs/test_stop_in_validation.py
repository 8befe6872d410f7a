"""A signal during validation: saved at once, and the run goes on as if uninterrupted."""

import json

import pytest
import torch
from conftest import epochs, last_checkpoint, tiny_arguments, train
from programs import run_python

GLOO = ["--distributed_backend", "gloo"]

STOP = """
import os, runpy, signal, sys
from speechbrain import Stage
from cif_lobes.training.recognizer import RecognizerBrain
evaluate, rank, seen = RecognizerBrain.evaluate_batch, os.environ.get("RANK", "0"), []
def evaluate_batch(self, batch, stage):
    seen.append(stage)
    print(f"rank {rank}, {stage}", flush=True)
    if (rank, len(seen)) == ("HEARS", BATCH):
        os.kill(os.getpid(), signal.SIGTERM)
    return evaluate(self, batch, stage)
RecognizerBrain.evaluate_batch = evaluate_batch
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("recipes/AISHELL-1/train.py", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "processes, hears, batch, evaluated",
    [
        (1, 0, 2, {0: 2}),
        (2, 0, 1, {0: 1, 1: 1}),
        (2, 1, 2, {0: 2, 1: 2}),
        # The other has no batch left, and waits.
        (2, 0, 3, {0: 3, 1: 2}),
    ],
)
def test_it_stops_within_a_batch(corpus, tmp_path, processes, hears, batch, evaluated):
    settings = {"eval_batch_seconds": 4, "ckpt_interval_minutes": 0}
    through, stopped = (
        [*tiny_arguments(corpus, tmp_path / name, **settings), *GLOO] for name in "ab"
    )
    train(through, processes=processes)
    code = STOP.replace("HEARS", str(hears)).replace("BATCH", str(batch))
    done = run_python(["-c", code, *stopped], check=False, processes=processes)
    assert done.returncode and "stopped; saved in" in done.stdout + done.stderr
    for rank, count in evaluated.items():
        assert done.stdout.count(f"rank {rank}, Stage.VALID") == count
    assert not (tmp_path / "b/run/epochs.jsonl").exists()
    (saved,) = (tmp_path / "b/run/save").glob("CKPT*")
    progress = json.loads((saved / "brain.ckpt").read_text())
    assert progress["updates_in_epoch"] == progress["optimizer_step"] > 0
    train(stopped, processes=processes)
    assert epochs(tmp_path / "a/run") == epochs(tmp_path / "b/run")
    assert len([*(tmp_path / "b/run/save").glob("CKPT*")]) == 2
    expected, got = (last_checkpoint(tmp_path / f"{name}/run") for name in "ab")
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name
