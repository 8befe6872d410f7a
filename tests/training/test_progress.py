"""What a training takes from its checkpoint, and what from the settings of now."""

import pytest
import torch
from speechbrain.utils.checkpoints import torch_save

from cif_lobes.training.progress import load_optimizer


def make(weight_decay=0.1, betas=(0.9, 0.999), share=1.0, begin=0, sizes=(3, 2)):
    """An optimizer of two groups after an update; the second learns apart."""
    torch.manual_seed(0)
    first, second = (torch.nn.Parameter(torch.randn(size)) for size in sizes)
    optimizer = torch.optim.AdamW([first], 1.0, betas, weight_decay=weight_decay)
    apart = {"params": [second], "lr_share": share, "begin": begin}
    optimizer.add_param_group(apart)
    (first.sum() + second.square().sum()).backward()
    optimizer.step()
    return optimizer


def settings(optimizer):
    return [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]


@pytest.fixture
def saved(tmp_path):
    """The file of an optimizer, and what is in it."""
    optimizer = make()
    for group in optimizer.param_groups:
        group["lr"] = 0.25
    torch_save(optimizer, tmp_path / "optimizer.ckpt")
    return tmp_path / "optimizer.ckpt", optimizer.state_dict()


def test_the_same_settings_change_nothing(saved):
    path, before = saved
    optimizer = make()
    load_optimizer(optimizer, path, True)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for number, state in before["state"].items():
        for name, value in state.items():
            assert torch.equal(after["state"][number][name], value)


def test_what_is_typed_counts(saved):
    path, before = saved
    changed = {"weight_decay": 0.5, "betas": (0.8, 0.9), "share": 0.3, "begin": 7}
    optimizer = make(**changed)
    parameters = [group["params"] for group in optimizer.param_groups]
    load_optimizer(optimizer, path, True)
    first, second = settings(optimizer)
    assert first["weight_decay"] == second["weight_decay"] == 0.5
    assert first["betas"] == second["betas"] == (0.8, 0.9)
    assert (second["lr_share"], second["begin"]) == (0.3, 7)
    # Of the schedule, which says it again with the next update.
    assert first["lr"] == second["lr"] == 0.25
    assert [group["params"] for group in optimizer.param_groups] == parameters
    state = optimizer.state_dict()["state"][1]["exp_avg"]
    assert torch.equal(state, before["state"][1]["exp_avg"])


def test_other_groups_are_refused(saved):
    path, _ = saved
    alone = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))])
    with pytest.raises(ValueError, match="learnt together.*output_folder"):
        load_optimizer(alone, path, True)
