"""How often a training step makes the CPU wait for a GPU, and the counter that knows."""

import pytest
import speechbrain as sb
import torch
import torch.distributed as dist
from conftest import ROOT, TINY
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.batch import PaddedBatch
from sync_counter import SyncCounter

from cif_lobes.runs.stages import used_modules
from cif_lobes.training.cif import CIFBrain
from cif_lobes.training.distillation import add_losses
from cif_lobes.training.ledger import Ledger

YAML = ROOT / "recipes/AISHELL-1/hparams/cif_hieradist.yaml"


def make_brain(folder, **changes):
    """A tiny recogniser with all heads, on the CPU."""
    settings = {
        **TINY,
        "pool_after": [1],
        "data_folder": "none",
        "output_folder": str(folder),
        "manifest_folder": str(folder),
        **changes,
    }
    with open(YAML) as file:
        hparams = load_hyperpyyaml(file, settings)
    add_losses(hparams, (12,), torch.zeros(12))
    brain = CIFBrain(
        used_modules(hparams), torch.optim.SGD, hparams, run_opts={"device": "cpu"}
    )
    brain.ledger, brain.optimizer_step = Ledger(), 0
    return brain


def make_batch():
    """Five utterances of noise, each of other lengths."""
    generator = torch.Generator().manual_seed(0)
    examples = []
    for i in range(5):
        tokens = torch.randint(4, 8, (3 + i,), generator=generator)
        states = torch.randn(3 + i, 12, generator=generator).half()
        signal = torch.randn(8000 + 1000 * i, generator=generator)
        examples.append(
            {"id": str(i), "signal": signal, "tokens": tokens, "teacher": states}
        )
    return PaddedBatch(examples)


def step(brain):
    """All of a training step but the optimizer's; the loss per token."""
    batch = make_batch()
    predictions = brain.compute_forward(batch, sb.Stage.TRAIN)
    loss = brain.compute_objectives(predictions, batch, sb.Stage.TRAIN)
    loss.backward()
    return loss / brain.count_units(predictions)


@pytest.mark.parametrize("options", [{}, {"speeds": [90]}, {"centre_teacher": True}])
def test_a_training_step_waits_three_times(tmp_path, options):
    """For the sizes of what CIF fires, and within PyTorch's CTC in both directions."""
    brain = make_brain(tmp_path, exclude_same_token=True, **options)
    with SyncCounter() as counter:
        brain.modules.to("meta")
        brain.device = "meta"
        step(brain)  # a resampler is moved the first time
        counter.places.clear()
        step(brain)
    where = {place.split(":")[0] for place in counter.places}
    assert counter.total == 3, str(counter)
    assert where == {
        "cif/module.py",
        "losses/recognition.py",
        "elsewhere aten._ctc_loss_backward.Tensor",
    }


def test_the_simulated_device_computes_the_same(tmp_path):
    """Or what it counts would be of another step."""
    options = {"freq_masks": 0, "time_masks": 0, "num_negatives": 3}
    losses, gradients = [], []
    for device in ("cpu", "meta"):
        torch.manual_seed(0)
        brain = make_brain(tmp_path, dropout=0, decoder_dropout=0, **options)
        brain.modules.eval()
        torch.manual_seed(0)
        with SyncCounter():
            brain.modules.to(device)
            brain.device = device
            losses.append(step(brain).item())
            weight = brain.hparams.encoder.frontend.convs[0].weight
            gradients.append(weight.grad.cpu())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_no_buffer_is_broadcast_before_a_forward(tmp_path):
    """By DistributedDataParallel, which would send the decoder's positions each time."""
    brain = make_brain(tmp_path)
    address = f"file://{tmp_path}/rendezvous"
    dist.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    try:
        brain.distributed_launch, brain.distributed_backend = True, "gloo"
        brain._wrap_distributed()
        wrapped = brain.modules["decoder"]
        assert wrapped.modules_buffers
        assert not wrapped.will_sync_module_buffers()
        assert step(brain).isfinite()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    "wait",
    [
        lambda x, mask: x.sum().item(),
        lambda x, mask: int(x[0]),
        lambda x, mask: bool(mask.any()),
        lambda x, mask: x.tolist(),
        lambda x, mask: x.cpu(),
        lambda x, mask: x[mask],
        lambda x, mask: x.masked_select(mask),
        lambda x, mask: mask.nonzero(),
        lambda x, mask: torch.unique(x),
        lambda x, mask: torch.equal(x, x.clone()),
        lambda x, mask: torch.repeat_interleave(mask.long()),
        lambda x, mask: x[torch.tensor([1, 2])],
        lambda x, mask: x.copy_(torch.zeros(4)),
        lambda x, mask: torch.zeros(4).to(x.device),
        lambda x, mask: torch.tensor([1.0, 2.0], device=x.device),
        lambda x, mask: x.index_put_((mask,), x[:0]),
    ],
)
def test_the_counter_sees(wait):
    with SyncCounter() as counter:
        x = torch.rand(4).to("meta", non_blocking=True)
        mask = (torch.rand(4) > 2).to("meta", non_blocking=True)
        assert counter.total == 0
        wait(x, mask)
    assert counter.total == 1


def test_the_counter_does_not_see_what_is_queued():
    with SyncCounter() as counter:
        x = torch.rand(4, 3).to("meta", non_blocking=True).requires_grad_()
        rows = torch.tensor([1, 2]).to(x.device, non_blocking=True)
        mask = torch.arange(3, device=x.device) < 2
        y = x.index_select(0, rows).masked_fill(~mask, 0.0)
        y[:, 0] = 1.0
        z = torch.where(mask, y, 0.0) + torch.tensor(1.0)
        z.sum().backward()
        assert counter.total == 0
        assert x.grad.tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]]
        assert counter.total == 1


def test_tensors_of_two_devices_do_not_meet():
    with SyncCounter(), pytest.raises(AssertionError, match="of the CPU meet"):
        torch.rand(3).to("meta") + torch.rand(3)
