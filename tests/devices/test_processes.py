"""What is scored by several processes has the figures of one process."""

import types

import pytest
import torch
import torch.multiprocessing
from conftest import write_corpus
from speechbrain import Stage

from cif_lobes.data.batches import eval_loader_options
from cif_lobes.decoding.scoring import ErrorRate
from cif_lobes.devices.processes import share_batches
from cif_lobes.runs.fithubert import make_audio_dataset
from cif_lobes.training import loaders
from cif_lobes.training.brain import TrainingBrain
from cif_lobes.training.fithubert import FitHuBERTBrain, Predictions
from cif_lobes.training.ledger import Ledger


@pytest.fixture(scope="module")
def sampler(tmp_path_factory):
    """Batches of 40 utterances."""
    csv = write_corpus(tmp_path_factory.mktemp("tones"), 40, 5)
    return eval_loader_options(make_audio_dataset(csv, 16000), 4, 0)["batch_sampler"]


@pytest.mark.parametrize("processes", [1, 2, 3, 8, 99])
def test_every_utterance_is_scored_once(sampler, processes):
    shares = [share_batches(sampler, rank, processes) for rank in range(processes)]
    batches = [batch for share in shares for batch in share]
    assert sorted(batches) == sorted(sampler)
    assert sorted(i for batch in batches for i in batch) == list(range(40))


@pytest.mark.parametrize("processes", [2, 3])
def test_shares_are_alike(sampler, processes):
    """No process has more to do than another by more than one batch."""
    loads = [
        sum(len(b) * max(sampler.get_durations(b)) for b in share)
        for share in (share_batches(sampler, r, processes) for r in range(processes))
    ]
    largest = max(len(b) * max(sampler.get_durations(b)) for b in sampler)
    assert max(loads) - min(loads) <= largest < min(loads)


def make_brain(device="cpu", distributed=False):
    """A Brain that makes DataLoaders and nothing else."""
    brain = TrainingBrain.__new__(TrainingBrain)
    brain.device, brain.distributed_launch = device, distributed
    brain.checkpointer, brain.hparams = None, types.SimpleNamespace()
    return brain


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("stage", Stage)
def test_batches_for_a_gpu_are_pinned(sampler, stage, device):
    brain = make_brain(device)
    loader = brain.make_dataloader([0] * 40, stage, batch_sampler=sampler)
    assert loader.pin_memory == (device == "cuda:0")


def test_more_processes_than_utterances_are_refused(monkeypatch):
    monkeypatch.setattr(loaders, "rank_and_processes", lambda: (0, 3))
    with pytest.raises(ValueError, match="3 processes cannot share 2 training"):
        make_brain(distributed=True).make_dataloader([0, 0], Stage.TRAIN)


class Student(FitHuBERTBrain):
    """A Brain without a network: its losses and scores."""

    def __init__(self):
        self.hparams = torch.nn.Module()
        self.hparams.hint_weight = 0.1
        self.ledger = Ledger()
        self.start_scoring()


def figures(batches):
    """Scores of two batches of a student's and a recogniser's, given their numbers."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(2, 4, 5, 8, generator=generator)
    student = teacher + 0.1 * torch.randn(2, 4, 5, 8, generator=generator)
    brain, rate = Student(), ErrorRate("char")
    for i in batches:
        lengths = torch.tensor([5, 3, 2, i + 1])
        found = Predictions({1: student[i]}, {1: teacher[i]}, lengths)
        brain.compute_objectives(found, None, Stage.VALID)
        brain.ledger.count("accuracy", i, 3)
        rate.append([f"utt{i}"], ["abc"], ["abd"[: i + 2]])
    brain.ledger.reduce()
    rate.gather()
    return brain.ledger.summary() | brain.scores() | rate.summary()


def _figures_of_a_process(rank, shares, folder):
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/meeting", rank=rank, world_size=len(shares)
    )
    torch.save(figures(shares[rank]), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("shares", [[[0], [1]], [[0, 1], []], [[], [1, 0]]])
def test_figures_are_those_of_one_process(shares, tmp_path):
    # Forked: to import everything anew takes longer than the test.
    torch.multiprocessing.start_processes(
        _figures_of_a_process, (shares, tmp_path), len(shares), start_method="fork"
    )
    expected = figures([0, 1])
    losses = expected.pop("losses")
    for rank in range(len(shares)):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.pop("losses")["layer_1"] == pytest.approx(losses["layer_1"])
        assert found == pytest.approx(expected)
