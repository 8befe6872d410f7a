"""CIF that is guided by CTC: every token's weights lie about its spike, and sum to one.

Weights that only have to sum to the number of tokens drift: on speech of other voices each
token has a little too much or too little, what has been missed adds up, and by the end of
an utterance a vector holds half of the next token. The drift is what an English recogniser
loses (docs/studies/voice_actors.md), and a CTC head on the same frames has none: it says
where each token is, by spikes. That spikes should guide the boundaries is from Yu et al.,
"Boundary and Context Aware Training for CIF-based Non-Autoregressive End-to-end ASR"
(https://arxiv.org/abs/2104.04702), who add it as a loss. Here weights are scaled, as CIF
scales them to the number of tokens in training (https://arxiv.org/abs/1905.11235, "scaling
strategy"), but from each boundary between two spikes to the next: in training by the
alignment of the true tokens, in recognition by the spikes that the head shows by itself.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cif_lobes.cif.module import CIF, cif

# A segment of no weight at all is divided evenly.
LEAST = 1e-3
# Weights sum to whole numbers but for rounding, which must neither add nor cost a token.
TAIL = 0.5


class GuidedOutput(NamedTuple):
    """A `CIFOutput`, and what guided it."""

    embeddings: Tensor
    """torch.Tensor, [B, U, D]."""
    lengths: Tensor
    """torch.Tensor, [B], int64."""
    quantity: Tensor
    """torch.Tensor, [B], float32: sum of the weights before they were scaled, in tokens."""
    boundaries: Tensor
    """torch.Tensor, [B, U + 1], float32."""
    alpha: Tensor
    """torch.Tensor, [B, T], float32: the scaled weights."""
    log_probs: Tensor
    """torch.Tensor, [B, T, V], float32: of the CTC head."""

    @property
    def durations(self):
        """torch.Tensor, [B, U], float32: duration of each token in encoder frames."""
        return self.boundaries.diff(dim=1)


class GuidedCIF(CIF):
    """`CIF` with a CTC head, whose spikes say where tokens end.

    In place of `CIF` and the module `ctc_head` of a yaml; for whole utterances, not for
    streams.

    Arguments
    ---------
    input_size : int
        Width D of the encoder frames.
    vocab_size : int
        Symbols V of the CTC head.
    blank_index : int
    **options
        As `CIF`; `tail_threshold` has no effect, as the spikes are counted.

    Raises
    ------
    ValueError
        If it is asked to be causal.

    Example
    -------
    >>> lobe = GuidedCIF(input_size=16, vocab_size=10)
    >>> x, x_lengths = torch.rand(2, 40, 16), torch.tensor([40, 25])
    >>> targets = torch.tensor([[3, 4, 4, 2], [5, 2, 0, 0]])
    >>> output = lobe(x, x_lengths, torch.tensor([4, 2]), targets)
    >>> output.embeddings.shape, output.log_probs.shape
    (torch.Size([2, 4, 16]), torch.Size([2, 40, 10]))
    """

    def __init__(self, input_size, vocab_size, blank_index=0, **options):
        super().__init__(input_size, **options)
        if self.causal:
            raise ValueError(
                "GuidedCIF is for whole utterances: where a token ends depends on the next "
                "one's spike. For streams, use CIF"
            )
        self.blank_index = blank_index
        self.ctc_head = nn.Linear(input_size, vocab_size)

    def forward(self, x, x_lengths, target_lengths=None, targets=None):
        """Integrates `x` between spikes.

        Arguments
        ---------
        x, x_lengths, target_lengths
            As `cif_lobes.cif.cif`.
        targets : torch.Tensor, [B, U], int64, optional
            The true tokens, with `target_lengths`: their own spikes are used. Padded as
            you like.

        Returns
        -------
        GuidedOutput
            An utterance with more target tokens than frames has no spikes for them: its
            weights are scaled as a whole.

        Raises
        ------
        ValueError
            If there are target lengths without targets; as `cif`.
        """
        if (target_lengths is None) != (targets is None):
            raise ValueError(
                "GuidedCIF takes target_lengths and targets: the spikes of the true tokens "
                "are found by what they are. Give both, or neither"
            )
        asked, x_lengths = x_lengths, x_lengths.to(x.device).clamp(max=x.shape[1])
        alpha = self.weights(x, x_lengths)
        padding_mask = torch.arange(x.shape[1], device=x.device) >= x_lengths[:, None]
        heard = x.masked_fill(padding_mask[:, :, None], 0.0)
        log_probs = self.ctc_head(heard.to(self.ctc_head.weight.dtype))
        log_probs = log_probs.float().log_softmax(-1)
        seen = log_probs.detach()
        if targets is None:
            first, last, lengths = greedy_spikes(seen, x_lengths, self.blank_index)
        else:
            lengths = target_lengths.to(x.device)
            true = targets.to(x.device), x_lengths, lengths, self.blank_index
            first = last = forced_spikes(seen, *true)
        blanks = seen[:, :, self.blank_index]
        edges = segment_edges(first, last, lengths, blanks, x_lengths)
        guided = scale_segments(alpha, edges, x_lengths) * self.threshold
        # Without a place for every token, as CIF scales; what is not finite, as CIF says.
        guides = (lengths <= x_lengths)[:, None] & alpha.isfinite()
        guided = torch.where(guides, guided, alpha)
        # Not scaled again when recognising: then weights that are not finite are refused.
        scaled = None if targets is None else lengths
        fired = cif(x, guided, asked, scaled, self.threshold, TAIL)
        quantity = alpha.sum(1) / self.threshold
        return GuidedOutput(*fired._replace(quantity=quantity), log_probs)


def spike_posteriors(log_probs, targets, x_lengths, target_lengths, blank_index):
    """Where CTC has each of the true tokens.

    The derivative of log p(targets) with respect to a score that is added to a token in a
    frame is the probability that the token is there. Tokens are told apart by their places,
    so that one that comes twice in a row is two.

    Arguments
    ---------
    log_probs : torch.Tensor, [B, T, V], float
    targets : torch.Tensor, [B, U], int64
    x_lengths, target_lengths : torch.Tensor, [B], int64
    blank_index : int

    Returns
    -------
    torch.Tensor, [B, T, U]
        Without gradient; 0 where there is no frame or no token. An utterance with fewer
        frames than tokens has no path, and what is said of it is meaningless.

    Example
    -------
    >>> log_probs = torch.tensor([[[0.1, 0.9], [0.8, 0.2]]]).log()
    >>> posteriors = spike_posteriors(log_probs, *map(torch.tensor, ([[1]], [2], [1])), 0)
    >>> posteriors.flatten().tolist()  # of the paths 1 0, 1 1, 0 1
    [0.978..., 0.217...]
    """
    frames = log_probs.shape[1]
    places = torch.arange(targets.shape[1], device=targets.device)
    real = places < target_lengths[:, None]
    classes = F.pad(targets.masked_fill(~real, blank_index), (1, 0), value=blank_index)
    scores = log_probs.detach().float()
    scores = scores.gather(2, classes[:, None].expand(-1, frames, -1)).requires_grad_()
    with torch.enable_grad():
        # A constant for each frame more or less: every path has one symbol of it.
        normal = scores.log_softmax(-1)
        loss = F.ctc_loss(
            normal.transpose(0, 1),
            (places + 1).expand_as(targets),
            x_lengths,
            target_lengths,
            reduction="sum",
            zero_infinity=True,
        )
        (gradient,) = torch.autograd.grad(loss, scores)
    posteriors = (normal.detach().exp() - gradient)[:, :, 1:].clamp_(min=0.0)
    t = torch.arange(frames, device=x_lengths.device)
    inside = (t < x_lengths[:, None])[:, :, None] & real[:, None]
    return posteriors.masked_fill_(~inside, 0.0)


def forced_spikes(log_probs, targets, x_lengths, target_lengths, blank_index):
    """The frame of each true token; arguments as `spike_posteriors`.

    Returns
    -------
    torch.Tensor, [B, U], int64
        The most probable one, behind that of the token before, with room for those to
        come. Behind `target_lengths`, and of an utterance with fewer frames than tokens,
        any number.
    """
    posteriors = spike_posteriors(
        log_probs, targets, x_lengths, target_lengths, blank_index
    )
    u = torch.arange(targets.shape[1], device=targets.device)
    # Posteriors of neighbours can have their tops in the same frame.
    spikes = (posteriors.argmax(1) - u).cummax(1).values + u
    last = (x_lengths - target_lengths)[:, None] + u
    return torch.minimum(spikes, last)


def greedy_spikes(log_probs, x_lengths, blank_index):
    """What CTC hears by itself: frames in a row whose best symbol is the same, not blank.

    Arguments
    ---------
    log_probs : torch.Tensor, [B, T, V]
    x_lengths : torch.Tensor, [B], int64
    blank_index : int

    Returns
    -------
    first, last : torch.Tensor, [B, U], int64
        Frames that a symbol begins and ends with; behind `counts`, T.
    counts : torch.Tensor, [B], int64
        Symbols of each utterance.

    Example
    -------
    >>> best = torch.tensor([[0, 3, 3, 0, 3, 4, 0]])
    >>> log_probs = torch.nn.functional.one_hot(best, 5).float()
    >>> first, last, counts = greedy_spikes(log_probs, torch.tensor([7]), 0)
    >>> first.tolist(), last.tolist(), counts.tolist()
    ([[1, 4, 5]], [[2, 4, 5]], [3])
    """
    frames = log_probs.shape[1]
    t = torch.arange(frames, device=log_probs.device)
    best = log_probs.argmax(-1).masked_fill(t >= x_lengths[:, None], blank_index)
    padded = F.pad(best, (1, 1), value=blank_index)
    heard = best != blank_index
    begins, ends = heard & (best != padded[:, :-2]), heard & (best != padded[:, 2:])
    counts = begins.sum(1)
    most = int(counts.max()) if len(counts) else 0
    # Those that are none are T, and come last.
    first, last = (
        torch.where(mark, t, frames).sort(1).values[:, :most] for mark in (begins, ends)
    )
    return first, last, counts


def segment_edges(first, last, lengths, blanks, x_lengths):
    """Where one token's frames end and the next one's begin.

    Arguments
    ---------
    first, last : torch.Tensor, [B, U], int64
        Frames of each token, rising, no two tokens' the same.
    lengths : torch.Tensor, [B], int64
        Tokens of each utterance.
    blanks : torch.Tensor, [B, T]
        How likely a frame is blank, on any scale.
    x_lengths : torch.Tensor, [B], int64

    Returns
    -------
    torch.Tensor, [B, U + 1], int64
        The first frame of each token, which is the one most likely blank since the token
        before, or, if none is between, its own. The first token begins with the first
        frame; behind `lengths`, number of frames.

    Example
    -------
    >>> spikes, blanks = torch.tensor([[1, 4, 5]]), torch.tensor([[0, 0, 0.8, 0.9, 0, 0, 0]])
    >>> segment_edges(spikes, spikes, torch.tensor([3]), blanks, torch.tensor([7])).tolist()
    [[0, 3, 5, 7]]
    """
    batch, most = first.shape
    t = torch.arange(blanks.shape[1], device=blanks.device)
    # Not as unlikely as what is not between.
    blanks = blanks.clamp(min=torch.finfo(torch.float32).min)
    between = (t > last[:, :-1, None]) & (t <= first[:, 1:, None])
    cuts = torch.where(between, blanks[:, None], -torch.inf).argmax(2)
    edges = F.pad(cuts, (1, 1)) if most else cuts.new_zeros(batch, 1)
    u = torch.arange(most + 1, device=blanks.device)
    return torch.where(u < lengths[:, None], edges, x_lengths[:, None])


def scale_segments(alpha, edges, x_lengths):
    """Weights of which those of each segment sum to one.

    Arguments
    ---------
    alpha : torch.Tensor, [B, T], float, >= 0
    edges : torch.Tensor, [B, U + 1], int64
        From `segment_edges`.
    x_lengths : torch.Tensor, [B], int64

    Returns
    -------
    torch.Tensor, [B, T], dtype of alpha
        0 at padded frames. Sums are formed in float64, whatever the batch.

    Example
    -------
    >>> alpha, edges = torch.tensor([[0.2, 0.6, 0.3, 0.0]]), torch.tensor([[0, 2, 4]])
    >>> scale_segments(alpha, edges, torch.tensor([4])).sum().item()
    2.0
    """
    t = torch.arange(alpha.shape[1], device=alpha.device)
    padding_mask = t >= x_lengths[:, None]
    some = (alpha.double() + LEAST).masked_fill(padding_mask, 0.0)
    if edges.shape[1] < 2:
        return torch.zeros_like(alpha)
    sums = F.pad(some.cumsum(1), (1, 0)).gather(1, edges).diff(dim=1)
    t = t.expand_as(alpha).contiguous()
    token = torch.searchsorted(edges[:, 1:].contiguous(), t, right=True)
    of_frame = sums.gather(1, token.clamp_(max=sums.shape[1] - 1))
    # Frames of no token: behind the last one, and of an utterance without tokens.
    return (some / of_frame.masked_fill(of_frame == 0.0, torch.inf)).to(alpha.dtype)
