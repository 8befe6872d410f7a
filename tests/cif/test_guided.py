"""CIF guided by CTC: against loops over all paths, alone and in a batch, by its gradient."""

import itertools
import math

import pytest
import torch

from cif_lobes.cif import CIF
from cif_lobes.cif.guided import (
    GuidedCIF,
    forced_spikes,
    greedy_spikes,
    scale_segments,
    segment_edges,
    spike_posteriors,
)

D, V, BLANK = 8, 6, 0


def posteriors_by_hand(log_probs, tokens):
    """[T, U] by a walk over every path through blank, 1, blank, 2 ... blank."""
    frames, last = len(log_probs), 2 * len(tokens)
    found, total = torch.zeros(frames, len(tokens)).double(), 0.0
    for path in itertools.product(range(last + 1), repeat=frames):
        begins, ends = path[0] <= 1, path[-1] >= last - 1
        # From a blank to the next token, from a token also past the blank behind it.
        steps = all(
            0 <= b - a <= 1 + a % 2 for a, b in zip(path, path[1:], strict=False)
        )
        if not (begins and ends and steps):
            continue
        symbols = [tokens[s // 2] if s % 2 else BLANK for s in path]
        p = math.exp(sum(log_probs[t, s].item() for t, s in enumerate(symbols)))
        total += p
        for t, s in enumerate(path):
            if s % 2:
                found[t, s // 2] += p
    return found / total


@pytest.fixture
def lobe():
    torch.manual_seed(2)
    return GuidedCIF(D, V, dropout=0.0).eval()


@pytest.fixture
def batch():
    """Frames, their number, tokens, their number: one of a token, one of none, one of more
    tokens than frames, one without frames."""
    torch.manual_seed(7)
    x, x_lengths = torch.randn(5, 9, D), torch.tensor([9, 6, 4, 2, 0])
    targets = torch.tensor([[3, 3, 4, 2], [5, 9, 9, 9], [9] * 4, [3, 4, 5, 2], [9] * 4])
    return x, x_lengths, torch.tensor([4, 1, 0, 4, 0]), targets


@pytest.mark.parametrize("tokens", [[3], [3, 4], [3, 3], [3, 4, 3]])
def test_posteriors_are_those_of_all_paths(tokens):
    """Padded frames and tokens take no part, whatever they are."""
    torch.manual_seed(0)
    log_probs = (2 * torch.randn(2, 7, V)).log_softmax(-1)
    targets = torch.tensor([[*tokens, 1], [1] * (len(tokens) + 1)])
    lengths = torch.tensor([5, 7]), torch.tensor([len(tokens), 1])
    found = spike_posteriors(log_probs, targets, *lengths, BLANK)
    expected = posteriors_by_hand(log_probs[0, :5], tokens)
    close = torch.testing.assert_close
    close(found[0, :5, : len(tokens)].double(), expected, atol=1e-5, rtol=0)
    assert not found[0, 5:].any() and not found[:, :, len(tokens)].any()


def test_spikes_of_true_tokens_rise_and_leave_room():
    """Also where all want to be in the first frame, or in the last one."""
    for wanted in (0, 5):
        log_probs = torch.zeros(1, 6, V)
        log_probs[0, wanted, 3] = 50.0
        asked = log_probs.log_softmax(-1), torch.tensor([[3, 3, 3, 3, 9]])
        spikes = forced_spikes(*asked, torch.tensor([6]), torch.tensor([4]), BLANK)
        spikes = spikes[0, :4].tolist()
        assert spikes == sorted({*spikes}) and spikes[0] >= 0 and spikes[-1] < 6


def test_segments_between_spikes():
    """An edge is the frame most likely blank; a symbol that is heard longer is one."""
    best = torch.tensor([[0, 3, 3, 0, 0, 4, 5, 0], [0, 0, 4, 0, 3, 3, 3, 3]])
    log_probs = torch.nn.functional.one_hot(best, V).float().log_softmax(-1)
    first, last, counts = greedy_spikes(log_probs, torch.tensor([8, 4]), BLANK)
    assert counts.tolist() == [3, 1]
    blanks = torch.tensor([[0.0, 0, 0, 0.5, 0.7, 0, 0, 1]] * 2)
    lengths = torch.tensor([8, 4])
    edges = segment_edges(first, last, counts, blanks, lengths)
    assert edges.tolist() == [[0, 4, 6, 8], [0, 4, 4, 4]]
    alpha = torch.rand(2, 8)
    alpha[1, 4:] = torch.nan
    weights = scale_segments(alpha, edges, lengths)
    sums = [weights[0, a:b].sum() for a, b in itertools.pairwise(edges[0].tolist())]
    assert sums == pytest.approx([1.0, 1.0, 1.0])
    assert weights[1].sum() == pytest.approx(1.0) and not weights[1, 4:].any()


def test_true_tokens_fire_about_their_spikes(lobe, batch):
    """As many as there are; each one's spike is within it."""
    x, x_lengths, lengths, targets = batch
    output = lobe(x, x_lengths, lengths, targets)
    assert output.lengths.tolist() == lengths.tolist()
    seen = output.log_probs
    spikes = forced_spikes(seen, targets, x_lengths, lengths, BLANK)
    for b in (0, 1):
        edges = output.boundaries[b].tolist()
        for u in range(lengths[b]):
            assert (
                edges[u] - 1e-4 <= spikes[b, u]
                and spikes[b, u] + 1 <= edges[u + 1] + 1e-4
            )
    # The quantity is that of the weights as they were.
    alpha = lobe.weights(x, x_lengths)
    torch.testing.assert_close(output.quantity, alpha.sum(1))
    # More tokens than frames: as CIF does it.
    plain = CIF(D, dropout=0.0).eval()
    plain.load_state_dict(lobe.state_dict(), strict=False)
    expected = plain(x[3:4], x_lengths[3:4], lengths[3:4]).embeddings[0]
    torch.testing.assert_close(output.embeddings[3], expected)


@pytest.mark.parametrize("threshold", [1.0, 0.7])
def test_recognition_fires_as_often_as_ctc_spikes(threshold):
    """Without true tokens; what a token is made of lies between two edges."""
    torch.manual_seed(2)
    lobe = GuidedCIF(D, V, dropout=0.0, threshold=threshold, tail_threshold=1.0).eval()
    x, x_lengths = 3 * torch.randn(6, 30, D), torch.tensor([30, 21, 8, 3, 1, 0])
    output = lobe(x, x_lengths)
    for b, length in enumerate(x_lengths.tolist()):
        best = output.log_probs[b, :length].argmax(-1).tolist()
        spikes = [s for s, _ in itertools.groupby(best) if s != BLANK]
        assert output.lengths[b] == len(spikes)
    assert output.lengths[0] > 3
    sums = output.alpha.sum(1) / threshold
    torch.testing.assert_close(sums, output.lengths.float(), atol=1e-5, rtol=0)


def test_silence_fires_nothing(lobe):
    """Alone, and beside what has spikes."""
    x, x_lengths = 3 * torch.randn(2, 9, D), torch.tensor([9, 4])
    x[1] = 50 * lobe.ctc_head.weight.detach().pinverse()[:, BLANK]  # one logit of 50
    output = lobe(x, x_lengths)
    assert output.lengths[0] > 0 and output.lengths[1] == 0
    assert not output.alpha[1].any()
    with torch.no_grad():
        lobe.ctc_head.bias[BLANK] += 1000
    output = lobe(x, x_lengths)
    assert output.lengths.tolist() == [0, 0] and output.embeddings.shape == (2, 0, D)


@pytest.mark.parametrize("learning", [True, False])
def test_alone_as_in_a_batch_whatever_is_padded(lobe, batch, learning):
    x, x_lengths, lengths, targets = batch
    spoilt = x.clone()
    for b, length in enumerate(x_lengths.tolist()):
        spoilt[b, length:] = torch.nan
    asked = (lengths, targets) if learning else ()
    together = lobe(spoilt, x_lengths, *asked)
    for b, length in enumerate(x_lengths.tolist()):
        true = lengths[b : b + 1], targets[b : b + 1, : lengths[b]]
        frames = x[b : b + 1, : max(length, 1)]
        alone = lobe(frames, x_lengths[b : b + 1], *(true if learning else ()))
        count = int(alone.lengths)
        assert together.lengths[b] == count
        close = torch.testing.assert_close
        close(together.embeddings[b, :count], alone.embeddings[0], atol=1e-5, rtol=1e-5)
        close(
            together.boundaries[b, : count + 1], alone.boundaries[0], atol=1e-4, rtol=0
        )
        assert not together.embeddings[b, count:].any()


def test_gradient(lobe, batch):
    """Through the scaling, by differences; of padded frames there is none."""
    x, x_lengths, lengths, targets = (t[:3] for t in batch)
    alpha = torch.rand(3, 9, dtype=torch.float64, requires_grad=True)
    spikes = torch.tensor([[1, 3, 4, 7], [2, 9, 9, 9], [9] * 4])
    edges = segment_edges(spikes, spikes, lengths, torch.rand(3, 9), x_lengths)
    # A token's sum is 1 whatever its weights, so their squares.
    assert torch.autograd.gradcheck(
        lambda a: scale_segments(a, edges, x_lengths).square(), [alpha]
    )
    x = x.requires_grad_()
    output = lobe(x, x_lengths, lengths, targets)
    output.embeddings.square().sum().backward()
    assert x.grad[0].abs().sum(-1).min() > 0
    assert not x.grad[1, 6:].any() and x.grad.isfinite().all()
    assert lobe.linear.weight.grad.any() and lobe.ctc_head.weight.grad is None


def test_lengths_without_tokens_are_refused(lobe, batch):
    for asked in ((*batch[:3],), (*batch[:2], None, batch[3])):
        with pytest.raises(ValueError, match="Give both, or neither"):
            lobe(*asked)
    with pytest.raises(ValueError, match="x_lengths is 99, but x has 9 frames"):
        lobe(batch[0], torch.tensor([99] * 5))
    with pytest.raises(ValueError, match="For streams, use CIF"):
        GuidedCIF(D, V, causal=True)
    with pytest.raises(ValueError, match="not finite"):
        lobe(torch.full((1, 4, D), torch.nan), torch.tensor([4]))
