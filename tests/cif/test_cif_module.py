"""The CIF module; wrong arguments; export and GPU."""

import pytest
import torch

from cif_lobes.cif import CIF, cif, cif_dense

D = 5


def batch(*lengths):
    """Random frames; what lies behind an utterance is NaN."""
    torch.manual_seed(0)
    x, x_lengths = torch.randn(len(lengths), max(lengths), D), torch.tensor(lengths)
    x[torch.arange(max(lengths)) >= x_lengths[:, None]] = torch.nan
    return x, x_lengths


def weighted(*lengths):
    x, x_lengths = batch(*lengths)
    return x, torch.rand(x.shape[:2]), x_lengths


def test_module_has_the_parameters_of_the_paper():
    assert sum(p.numel() for p in CIF(256).parameters()) == 197_121
    with pytest.raises(ValueError, match="odd"):
        CIF(8, kernel_size=2)


def test_module_is_the_same_alone_and_in_a_batch():
    torch.manual_seed(0)
    lobe = CIF(D).eval()
    x, x_lengths = batch(30, 11, 1, 0)
    whole, alpha = lobe(x, x_lengths), lobe.weights(x, x_lengths)
    assert alpha.dtype == torch.float32 and not alpha[1, 11:].any()
    for b, n in enumerate([30, 11, 1]):
        alone = lobe(x[b : b + 1, :n], x_lengths[b : b + 1])
        U = int(alone.lengths)
        assert U == whole.lengths[b]
        torch.testing.assert_close(alone.embeddings[0], whole.embeddings[b, :U])
        torch.testing.assert_close(alone.boundaries[0], whole.boundaries[b, : U + 1])


def test_module_does_not_feel_autocast():
    torch.manual_seed(0)
    lobe = CIF(D).eval()
    x, x_lengths = batch(30, 11)
    expected = lobe(x, x_lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = lobe(x, x_lengths)
    for field, wanted in zip(output, expected, strict=True):
        assert torch.equal(field, wanted)


def test_module_learns_the_number_of_tokens():
    torch.manual_seed(0)
    lobe = CIF(D, dropout=0.0)
    x, x_lengths = batch(24, 16)
    targets = torch.tensor([6, 4])
    optimizer = torch.optim.Adam(lobe.parameters(), lr=0.05)
    for _ in range(60):
        output = lobe(x, x_lengths, targets)
        loss = (output.quantity - targets).abs().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert lobe(x, x_lengths).lengths.tolist() == [6, 4]


X, A, L = torch.zeros(2, 4, D), torch.full((2, 4), 0.5), torch.tensor([4, 3])


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((X[0], A, L), ValueError, r"got \[4, 5\] and \[2, 4\]"),
        ((X, A[:, :3], L), ValueError, r"got \[2, 4, 5\] and \[2, 3\]"),
        ((X, A.bfloat16(), L), TypeError, "alpha is torch.bfloat16"),
        ((X, A, L / 4), TypeError, "Relative lengths"),
        ((X, A, L[:1]), ValueError, r"shape \[1\], but x has 2"),
        ((X, A, L, L[:1]), ValueError, "target_lengths has shape"),
        ((X, A, torch.tensor([4, 5])), ValueError, "utterance 1 .* 5, but x has 4"),
        ((X, A, torch.tensor([-1, 4])), ValueError, "utterance 0 .* x_lengths is -1"),
        ((X, A, L, torch.tensor([1, -2])), ValueError, "utterance 1 .* negative"),
        ((X, A - 0.6, L), ValueError, "utterance 0 .* negative alpha"),
        ((X, A * torch.nan, L), ValueError, "utterance 0 .* not finite"),
        ((X, A / 0.0, L), ValueError, "utterance 0 .* not finite"),
        ((X, A, L, None, 0.0), ValueError, "threshold must be positive"),
        ((X, A, L, None, 1.0, -0.1), ValueError, "threshold must be positive"),
    ],
)
def test_errors_name_the_cause(arguments, error, message):
    with pytest.raises(error, match=message):
        cif(*arguments)


@pytest.mark.slow
def test_dense_form_exports_with_free_sizes():
    class Inference(torch.nn.Module):
        def forward(self, x, alpha, x_lengths):
            return tuple(cif_dense(x, alpha, x_lengths))

    free = torch.export.Dim.AUTO
    sizes = {0: free, 1: free}
    exported = torch.export.export(
        Inference(), weighted(20, 13, 7), dynamic_shapes=(sizes, sizes, {0: free})
    )
    arguments = weighted(33, 13, 7, 0, 2)
    for field, expected in zip(
        exported.module()(*arguments), cif(*arguments), strict=True
    ):
        torch.testing.assert_close(field, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("targets", [None, [44, 50, 2, 0, 20]])
def test_gpu_fires_like_the_cpu(targets):
    x, alpha, x_lengths = weighted(200, 37, 1, 0, 120)
    targets = None if targets is None else torch.tensor(targets)
    outputs, grads = [], []
    for device in "cpu", "cuda":
        leaves = [value.to(device).requires_grad_() for value in (x, alpha)]
        output = cif(*leaves, x_lengths, targets)
        (output.embeddings.cos().sum() + output.quantity.sum()).backward()
        outputs.append([field.detach().cpu() for field in output])
        grads.append([leaf.grad.cpu() for leaf in leaves])
    (tokens, *plan), (gpu_tokens, *gpu_plan) = outputs
    for field, expected in zip(gpu_plan, plan, strict=True):
        assert torch.equal(field, expected)
    torch.testing.assert_close(gpu_tokens, tokens)
    torch.testing.assert_close(grads[1], grads[0], atol=1e-5, rtol=1e-4)
