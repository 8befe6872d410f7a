"""Within an epoch, a log without a progress bar hears every few minutes of the training."""

import math
import re

import pytest
from conftest import tiny_arguments
from programs import run_python

from cif_lobes.data.update_batches import UpdateBatches
from cif_lobes.training.progress_log import MINUTES, ProgressLog

LINE = (
    r"epoch (\d)  update (\d+) of (\d+)  lr (\S+)  train (\S+)  [\d,]+ s of audio per s"
)


class Clock:
    """Seconds, which a test moves on."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def sampler():
    """Nine updates of two utterances of 3 s and 2 s."""
    return UpdateBatches([[0, 1]] * 9, [3.0, 2.0], 10.0)


def test_a_line_when_the_minutes_have_passed(sampler, capsys):
    clock = Clock()
    log, told = ProgressLog(sampler, 2, True, clock), []
    for number in range(1, 10):
        clock.now += 60 * MINUTES / 4
        loss = math.nan if number == 6 else float(number)  # one is left out
        log.update(number, loss, 0.5)
        told.append(capsys.readouterr().out)
    assert [bool(line) for line in told] == [n % 4 == 3 for n in range(9)]
    audio = 20 / (60 * MINUTES)
    means = {3: 2.5, 7: (5 + 7 + 8) / 3}
    for n, mean in means.items():
        assert told[n] == (
            f"epoch 2  update {n + 1} of 9  lr 5.00e-01  train {mean:.3f}  "
            f"{audio:.0f} s of audio per s\n"
        )


def test_nothing_beside_a_bar(sampler, capsys):
    clock = Clock()
    log = ProgressLog(sampler, 1, False, clock)
    clock.now = 1e6
    log.update(1, 1.0, 0.5)
    assert capsys.readouterr().out == ""


def test_updates_have_the_size_of_all_processes():
    updates = [[0, 1, 2], [3]]
    for rank in (0, 1):
        sampler = UpdateBatches(updates, [1.0, 2.0, 3.0, 4.0], 4.0, rank, 2)
        assert sampler.update_sizes == [6.0, 4.0]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_first_process_alone_tells(corpus, tmp_path, processes):
    """After every update, if no minute need pass."""
    code = """
import runpy, sys
from cif_lobes.training import progress_log
progress_log.MINUTES = 0
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("recipes/AISHELL-1/train.py", run_name="__main__")
"""
    words = [*tiny_arguments(corpus, tmp_path, number_of_epochs=1)]
    words += ["--distributed_backend", "gloo"]
    done = run_python(["-c", code, *words], processes=processes)
    lines = re.findall(LINE, done.stdout)
    count = int(lines[0][2])
    assert [int(line[1]) for line in lines] == [*range(1, count + 1)] and count > 3
    assert all(0 < float(line[4]) < 100 and float(line[3]) > 0 for line in lines)
