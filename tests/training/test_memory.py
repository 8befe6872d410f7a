"""A device without memory left: which pass it was, and what is smaller."""

import types

import pytest
import torch
from conftest import epochs, tiny_arguments, train
from programs import run_python

from cif_lobes.data.update_batches import UpdateBatches
from cif_lobes.settings.program import is_users
from cif_lobes.training.memory import explain_memory

EVERY_SECOND = {"ckpt_interval_steps": 2, "ckpt_interval_minutes": 0}

FULL = """
import os, runpy, sys
import torch
from speechbrain import Stage
from cif_lobes.training.cif import CIFBrain
from cif_lobes.training.augment import SpeedPerturb
from cif_lobes.training.wave_augment import InsertSilence
forward, passes, silences = CIFBrain.compute_forward, [], [0]
insert = InsertSilence.forward
def insert_silence(self, waves, lengths):
    longer, added = insert(self, waves, lengths)
    silences.append(added)
    return longer, added
InsertSilence.forward = insert_silence
perturb, speeds = SpeedPerturb.forward, [0]
def at_a_speed(self, waves):
    longer = perturb(self, waves)
    speeds.append(100 * waves.shape[1] / longer.shape[1])
    return longer
SpeedPerturb.forward = at_a_speed
def compute_forward(self, batch, stage):
    passes.append(stage)
    if len(passes) == FAILS:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU")
    return forward(self, batch, stage)
CIFBrain.compute_forward = compute_forward
sys.argv = ["train.py", *sys.argv[1:]]
try:
    runpy.run_path("recipes/AISHELL-1/train.py", run_name="__main__")
finally:
    print(f"{max(silences) / 16000} s of silence at most, {speeds[-1]:.0f} % at last")
"""


def run(arguments, fails):
    return run_python(
        ["-c", FULL.replace("FAILS", str(fails)), *arguments], check=False
    )


def test_a_training_ends_with_the_remedy_and_goes_on(corpus, tmp_path):
    arguments = tiny_arguments(corpus, tmp_path, **EVERY_SECOND)
    done = run(arguments, 4)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    said = done.stderr.strip().splitlines()[-1]
    assert "out of memory in pass 4 of epoch 1" in said
    assert "lower --device_batch_seconds, which is 10" in said
    assert "from the last checkpoint" in said
    assert "CUDA out of memory. Tried to allocate 2.00 GiB" not in said
    assert said.endswith("(CUDA out of memory)")
    at = arguments.index("--device_batch_seconds") + 1
    arguments[at] = "3"
    train(arguments)
    assert len(epochs(tmp_path / "run")) == 2


def test_a_dry_run_meets_the_longest_silence_at_the_slowest_speed(corpus, tmp_path):
    """And says what did not fit."""
    settings = {"silence_seconds": 4.0, "silence_probability": 0.001}
    settings["speeds"] = [100, 100, 100, 80, 100, 100, 100]
    arguments = [*tiny_arguments(corpus, tmp_path, **settings), "--dry_run"]
    done = run(arguments, 9999)
    assert done.returncode == 0, done.stderr
    assert "4.0 s of silence at most, 80 % at last" in done.stdout
    done = run(arguments, 1)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "up to 4 s of silence" in done.stderr.strip().splitlines()[-1]


def brain(**settings):
    """What is asked of one in its first pass: of 2 utterances, then of one."""
    made = types.SimpleNamespace(step=1, epoch=3, rounds_left=0)
    made.train_sampler = UpdateBatches([[0, 1], [2]], [3.0, 2.0, 5.0], 6.0)
    made.hparams = types.SimpleNamespace(**settings)
    return made


def told(made):
    with pytest.raises(ValueError) as caught, explain_memory(made):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried")
    assert is_users(caught.value)
    return str(caught.value)


def test_what_is_said():
    seconds = {"device_batch_seconds": 6.0, "eval_batch_seconds": 60}
    made = brain(**seconds)
    said = told(made)
    assert "pass 1 of epoch 3, of 2 x 3 s of audio" in said and "silence" not in said
    assert "--device_batch_seconds, which is 6 (the longest utterance has 5)" in said
    made.step = 2
    assert "leave the utterance out" in told(made)
    made.rounds_left = 1
    assert "lower --eval_batch_seconds, which is 60" in told(made)
    words = brain(device_batch_tokens=6)
    assert "lower --device_batch_tokens, which is 6" in told(words)


def test_another_error_is_left_alone():
    with pytest.raises(RuntimeError, match="other"), explain_memory(brain()):
        raise RuntimeError("other")
