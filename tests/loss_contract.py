"""What every distillation loss promises: the checks of `cif_lobes.losses`, for any class."""

import torch

from cif_lobes.losses.distillation import TokenStates

LENGTHS = [4, 2, 1]  # tokens of the utterances
WIDTH = sum(LENGTHS)  # of network and teacher alike


def check_contract(make, shape):
    """All that is promised.

    Arguments
    ---------
    make : callable
        The loss, of weight 1. One that draws must take all others that it may draw from.
    shape : tuple of int
        Of a teacher's state: (WIDTH,) or (L, WIDTH).
    """
    torch.manual_seed(0)
    vectors, teacher = torch.randn(3, 4, WIDTH), torch.randn(3, 4, *shape)
    loss = make()
    loss.build(WIDTH, shape)
    assert isinstance(loss.name, str) and loss.weight == 1
    check_perfect_student(make(), shape)
    check_padding(loss, vectors, teacher)
    check_gradients(loss, vectors, teacher)
    check_few_tokens(loss, vectors, teacher)
    if len(shape) == 2:
        check_layers(make, loss, vectors, teacher)


def batch_of(vectors, lengths=LENGTHS):
    """Vectors [B, U, D] as both what CIF fired and what the decoder says."""
    B, U = vectors.shape[:2]
    mask = torch.arange(U) < torch.tensor(lengths)[:, None]
    tokens = torch.arange(U) + 10 * torch.arange(B)[:, None]  # no two alike
    return TokenStates(vectors, vectors, tokens, mask, mask.flatten().nonzero()[:, 0])


def check_perfect_student(loss, shape):
    """To say what the teacher says is the minimum."""
    loss.build(WIDTH, shape)
    for layer in loss.head.weight.data.split(WIDTH):
        layer.copy_(torch.eye(WIDTH))
    loss.head.bias.data.zero_()
    # Corners of a simplex, as far from one another as can be: for contrasts, too.
    vectors = torch.zeros(3, 4, WIDTH)
    mask = batch_of(vectors).valid_mask
    vectors[mask] = torch.eye(WIDTH) - 1 / WIDTH
    teacher = vectors.unsqueeze(2).expand(3, 4, *shape) if shape[1:] else vectors
    x = vectors.clone().requires_grad_()
    least = loss(batch_of(x), teacher).loss
    least.backward()
    torch.testing.assert_close(x.grad, torch.zeros_like(x), atol=1e-4, rtol=0)
    for scale in (0.1, 0.5):
        moved = vectors + scale * torch.randn_like(vectors)
        assert loss(batch_of(moved), teacher).loss > least + 1e-4


def check_padding(loss, vectors, teacher):
    """It changes nothing, whatever stands there, and gets no gradient."""
    more = torch.nn.functional.pad(vectors, (0, 0, 0, 2))
    states = torch.cat([teacher, torch.zeros_like(teacher[:, :2])], dim=1)
    mask = batch_of(more).valid_mask
    more[~mask], states[~mask] = 1e3, torch.nan
    more.requires_grad_()
    loss.zero_grad()
    found = loss(batch_of(more), states).loss
    found.backward()
    torch.testing.assert_close(found, loss(batch_of(vectors), teacher).loss)
    assert more.grad[mask].isfinite().all() and not more.grad[~mask].any()


def check_gradients(loss, vectors, teacher):
    """None for the teacher; with heads_only none for the network."""
    teacher = teacher.clone().requires_grad_()
    for heads_only in (False, True):
        x = vectors.clone().requires_grad_()
        loss.zero_grad()
        loss(batch_of(x), teacher, heads_only=heads_only).loss.backward()
        assert teacher.grad is None and (x.grad is None) == heads_only
        assert (loss.head.weight.grad.abs().sum(1) > 0).all()


def check_few_tokens(loss, vectors, teacher):
    """No token costs nothing; one has a finite cost and gradient."""
    for lengths in ([0, 0, 0], [1, 0, 0], [0, 1, 1]):
        x = vectors.clone().requires_grad_()
        found = loss(batch_of(x, lengths), teacher).loss
        found.backward()
        assert found.shape == () and found.isfinite() and x.grad.isfinite().all()
        assert found == 0 or any(lengths)


def check_layers(make, loss, vectors, teacher):
    """Of several, the mean, as if each had been the only one."""
    alone = []
    for i, weight in enumerate(loss.head.weight.data.split(WIDTH)):
        one = make()
        one.build(WIDTH, (WIDTH,))
        one.head.weight.data = weight
        one.head.bias.data = loss.head.bias.data[i * WIDTH :][:WIDTH]
        alone.append(one(batch_of(vectors), teacher[:, :, i]))
    together = loss(batch_of(vectors), teacher)
    mean = sum(output.loss for output in alone) / len(alone)
    torch.testing.assert_close(together.loss, mean)
    for name, (amount, out_of) in together.ratios.items():
        amounts = [float(output.ratios[name][0]) for output in alone]
        assert abs(float(amount) - sum(amounts) / len(alone)) < 1e-4
        assert out_of == alone[0].ratios[name][1]
