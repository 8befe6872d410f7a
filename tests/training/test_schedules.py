"""Learning rates in shares of the training."""

from types import SimpleNamespace

import pytest
import torch
from speechbrain.nnet.schedulers import TriStageLRSchedule
from tiny_bert import make_decoder

from cif_lobes.training.cif import CIFBrain
from cif_lobes.training.schedules import RiseAndFall, TriStage


def test_it_is_the_papers_schedule():
    """30,000 / 90,000 / 120,000 updates, as SpeechBrain computes them."""
    theirs = TriStageLRSchedule(3e-4, 30000, 90000, 120000, 240000, 0.01, 0.01)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    ours = TriStage(3e-4, 0.125, 0.375)
    ours.start(240000)
    for update in (1, 100, 29999, 30000, 75000, 119999, 120000, 180000, 239999, 240000):
        theirs(optimizer, update)
        expected = optimizer.param_groups[0]["lr"]
        assert ours.lr_at(update) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("total", [1, 2, 3, 10, 999])
@pytest.mark.parametrize(
    "warmup, hold", [(0, 0), (1, 0), (0, 1), (0.5, 0.5), (0.1, 0.2)]
)
def test_it_ends_and_stays_there(total, warmup, hold):
    schedule = TriStage(1.0, warmup, hold)
    schedule.start(total)
    rates = [schedule.lr_at(update) for update in range(1, total + 3)]
    assert all(0.01 - 1e-12 <= rate <= 1 for rate in rates)
    end = 1.0 if warmup + hold == 1 else 0.01
    assert rates[total - 1 :] == pytest.approx([end] * 3)


@pytest.mark.parametrize("shares", [(0.7, 0.5), (-0.1, 0.5), (1.5, 0)])
def test_what_is_no_share_is_refused(shares):
    with pytest.raises(ValueError, match="share"):
        TriStage(1.0, *shares)
    if shares[0] != 0.7:
        with pytest.raises(ValueError, match="warmup is"):
            RiseAndFall(1.0, shares[0])


def test_a_bert_is_paced_by_updates():
    """What it is shown follows from their share, when it learns from their number."""
    decoder = make_decoder(true_share=(0.9, 0.1), falls=(0.0, 0.5))
    brain = SimpleNamespace(
        option={"decoder": decoder}.get,
        train_sampler=SimpleNamespace(num_updates=10),
        hparams=SimpleNamespace(number_of_epochs=2, bert_trained_from=5),
    )
    paces = []
    for brain.optimizer_step in (0, 4, 5, 10, 19):
        CIFBrain._pace_bert(brain)
        paces.append((round(decoder.share_now(), 3), decoder.learning))
    assert paces == [
        (0.9, False),
        (0.58, False),
        (0.5, True),
        (0.1, True),
        (0.1, True),
    ]
    brain.option = {}.get
    CIFBrain._pace_bert(brain)  # of another decoder nothing is said
