"""An update is the same utterances whatever runs it, at the sizes of the corpora."""

import numpy as np
import pytest
from conftest import ROOT
from hyperpyyaml import load_hyperpyyaml

from cif_lobes.data import batches as dataio
from cif_lobes.data.update_batches import UpdateBatches, split

PROCESSES = (1, 2, 4, 8)


class Durations:
    """As much of a dataset as the sampler reads."""

    def __init__(self, durations):
        self.data = {f"utt{i}": {"duration": d} for i, d in enumerate(durations)}

    def __len__(self):
        return len(self.data)


def aishell():
    """120,098 utterances, 150.6 hours, 1.2 to 14.5 s."""
    rng = np.random.default_rng(0)
    seconds = np.clip(rng.lognormal(np.log(4.3), 0.33, 120098), 1.2, 14.5)
    return np.clip(seconds * 150.6 * 3600 / seconds.sum(), 1.2, 14.5).tolist()


def librispeech():
    """281,241 utterances, about 960 hours: most of 12 to 16 s, the longest of 35."""
    rng = np.random.default_rng(0)
    long, short = rng.normal(14.4, 1.2, 281241), rng.uniform(1.4, 14, 281241)
    seconds = np.where(rng.random(281241) < 0.7, long, short)
    seconds[:50] = rng.uniform(20, 35, 50)
    return np.clip(seconds, 1.3, 35).tolist()


def dealt(monkeypatch, dataset, hparams):
    """The sampler of each process, by the number of processes."""
    names = ("batch_seconds", "device_batch_seconds", "num_buckets", "sorting")
    settings = [hparams[name] for name in names]
    monkeypatch.setattr(dataio, "rank_and_processes", lambda: (3, 8))
    last = dataio.train_loader_options(dataset, *settings, 1986, 0)["batch_sampler"]
    assert (last.rank, last.num_ranks) == (3, 8)
    updates = list(last.updates)
    for processes in PROCESSES:
        yield [
            UpdateBatches(updates, last.sizes, last.device_size, rank, processes)
            for rank in range(processes)
        ]


def check(samplers, durations, hparams):
    """Passes fit a device and are in step; return each update's utterances."""
    updates, current = [], []
    for passes in zip(*(s.passes for s in samplers), strict=True):
        assert len({p.ends_update for p in passes}) == 1
        for p in passes:
            longest = max(durations[i] for i in p.indices)
            assert len(p.indices) * longest <= hparams["device_batch_seconds"]
            current += p.indices if p.counts else []
        if passes[0].ends_update:
            updates.append(sorted(current))
            current = []
    assert not current
    return updates


@pytest.mark.parametrize(
    "corpus, recipe, expected",
    [
        # The reference makes 968 updates an epoch of its own batches, 240,000 in all.
        (aishell, "AISHELL-1", 248 * 1006),
        pytest.param(librispeech, "LibriSpeech", 60 * 1618, marks=pytest.mark.slow),
    ],
)
def test_a_full_recipe_is_the_same_on_1_2_4_and_8_devices(
    monkeypatch, corpus, recipe, expected
):
    durations = corpus()
    dataset = Durations(durations)
    with open(ROOT / f"recipes/{recipe}/hparams/cif.yaml") as file:
        hparams = load_hyperpyyaml(file, {"encoder_layers": 1, "pool_after": [1]})
    outcomes = []
    for samplers in dealt(monkeypatch, dataset, hparams):
        updates = check(samplers, durations, hparams)
        schedule = hparams["lr_scheduler"]
        total = samplers[0].num_updates * hparams["number_of_epochs"]
        assert total == expected
        schedule.start(total)
        tenths = [schedule.lr_at(total * n // 10) for n in range(11)]
        outcomes.append((updates, tenths))
    for updates, rates in outcomes[1:]:
        assert updates == outcomes[0][0] and rates == outcomes[0][1]
    assert sorted(i for update in updates for i in update) == list(
        range(len(durations))
    )
    assert rates[2] == rates[5] == hparams["lr"]
    assert rates[-1] == pytest.approx(hparams["lr"] / 100)
    # Where the memory allows one pass, nobody waits for a second.
    assert len(samplers[0].passes) == samplers[0].num_updates


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("device_seconds", [3.0, 5.0, 100.0])
def test_small_sets_and_odd_numbers(processes, device_seconds):
    """Fewer utterances than processes, too: stand-ins keep in step and do not count."""
    rng = np.random.default_rng(1)
    durations = rng.uniform(0.5, 3.0, 11).tolist()
    batches = [[3, 1, 9, 4], [0], [2, 5, 6, 7, 8], [10]]
    samplers = [
        UpdateBatches(batches, durations, device_seconds, rank, processes)
        for rank in range(processes)
    ]
    updates = check(samplers, durations, {"device_batch_seconds": device_seconds})
    assert updates == [sorted(batch) for batch in batches]
    for s in samplers:
        assert len(list(s)) == len(s.passes) == s.first_pass(s.num_updates)


def test_it_begins_where_another_number_of_processes_stopped():
    updates = [[0, 1, 2, 3], [4, 5], [6, 7, 8]]
    for processes in (1, 2):
        sampler = UpdateBatches(updates, [1.0] * 9, 2.0, 0, processes)
        sampler.start = 1
        rest = [p.indices for p in sampler.passes[sampler.first_pass(1) :]]
        assert list(sampler) == rest and rest[0][0] == 4
        assert len(list(sampler)) == len(sampler), "the next epoch is whole"


def test_parts_are_as_even_as_they_can_be():
    """Against every way to cut a sorted list in three."""
    rng = np.random.default_rng(2)
    for count in (3, 5, 9):
        sizes = sorted(rng.uniform(1, 10, count), reverse=True)
        best = min(
            max(a * sizes[0], (b - a) * sizes[a], (count - b) * sizes[b])
            for a in range(1, count - 1)
            for b in range(a + 1, count)
        )
        parts = split(range(count), lambda i, sizes=sizes: sizes[i], 3)
        assert sorted(i for part in parts for i in part) == list(range(count))
        largest = max(len(part) * sizes[part[0]] for part in parts)
        assert largest <= best * 1.002 and len(parts) == 3
