"""The distillation losses keep what all promise, and are listed."""

import pytest
import torch
from loss_contract import WIDTH, batch_of, check_contract

from cif_lobes.losses.distillation import ACD, LRD, DistillationLosses

OTHERS = {"temperature": 0.1, "num_negatives": WIDTH - 1}
LOSSES = {
    "acd": lambda: ACD(1, **OTHERS),
    "acd of states": lambda: ACD(1, **OTHERS, exclude_same_token=True, of="states"),
    "lrd": lambda: LRD(1),
    "lrd cosine": lambda: LRD(1, kind="cosine"),
    "lrd l1_cosine": lambda: LRD(1, kind="l1_cosine", of="vectors"),
}


@pytest.mark.parametrize("shape", [(WIDTH,), (3, WIDTH)], ids=["one", "layers"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_keeps_what_all_promise(name, shape):
    check_contract(LOSSES[name], shape)


@pytest.mark.parametrize("shape", [(5,), (3, 5)])
def test_a_teacher_of_other_tokens_is_refused(shape):
    losses = DistillationLosses([ACD(1), LRD(1)], 4, shape)
    with pytest.raises(ValueError, match="4 teacher states for 3 tokens"):
        losses(batch_of(torch.randn(3, 3, 4)), torch.randn(3, 4, *shape))


def test_those_that_weigh_nothing_are_not_built():
    losses = DistillationLosses([ACD(0), LRD(0.5)], 4, (5,))
    assert list(losses.state_dict()) == ["lrd.head.weight", "lrd.head.bias"]
    outputs = losses(batch_of(torch.randn(3, 4, 4)), torch.randn(3, 4, 5))
    assert {name: output.weight for name, output in outputs.items()} == {"lrd": 0.5}


def test_two_of_one_class_need_two_names():
    pair = [LRD(1), LRD(0.5, of="vectors")]
    with pytest.raises(ValueError, match="two losses .* named 'lrd'.*another name"):
        DistillationLosses(pair, 4, (5,))
    pair[1] = LRD(0.5, of="vectors", name="early")
    assert set(DistillationLosses(pair, 4, (5,))) == {"lrd", "early"}


@pytest.mark.parametrize("shape", [(5,), (3, 5)])
def test_the_teacher_is_centred_before(shape):
    """As if its states had come without their mean; which is not saved."""
    torch.manual_seed(0)
    batch, mean = batch_of(torch.randn(3, 4, 4)), torch.randn(*shape)
    teacher = torch.randn(3, 4, *shape)
    centred = DistillationLosses([LRD(1)], 4, shape, centre=mean)
    plain = DistillationLosses([LRD(1)], 4, shape)
    plain.load_state_dict(centred.state_dict())
    expected = plain(batch, teacher - mean)["lrd"].loss
    torch.testing.assert_close(centred(batch, teacher)["lrd"].loss, expected)
    assert not torch.isclose(plain(batch, teacher)["lrd"].loss, expected)
