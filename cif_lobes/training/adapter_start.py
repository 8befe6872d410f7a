"""Where an adapter begins: the vector of a token lands where the token is written.

X-LLM (Chen et al., https://arxiv.org/abs/2305.04160) begins with random weights, which put
speech anywhere among the embeddings of a language model; and what a frozen model says to
noise teaches little. Here the adapter first learns, by regression, the mean embedding of the
pieces that write each token. The language model is not run for that: a vector costs a
row of its table.
"""

from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from cif_lobes.teachers.alignment import align, token_spans

LR = 1e-3


class Pairs(NamedTuple):
    """A batch of what is heard and where it is written."""

    vectors: torch.Tensor
    """torch.Tensor, [B, U, D]: CIF vectors."""
    lengths: torch.Tensor
    """torch.Tensor, [B], int64: of them, end of sentence included."""
    targets: torch.Tensor
    """torch.Tensor, [B, V, H]: embeddings, of an utterance one fewer than vectors."""


def embed_tokens(llm, text, tokenizer):
    """Where the tokens of a transcript are written.

    Arguments
    ---------
    llm : cif_lobes.nets.speech_llm.SpeechLLM
    text : str
        Normalised.
    tokenizer : cif_lobes.data.tokens.Tokenizer
        The recogniser's.

    Returns
    -------
    torch.Tensor, [U, H]
        Mean embedding of the model's pieces that share characters with each token.
    """
    spans = token_spans(tokenizer, text, text)
    pieces = llm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = torch.tensor(pieces["input_ids"], device=llm.embed.weight.device).long()
    embeddings = llm.embed(ids)
    if not len(ids):
        return embeddings.new_zeros(len(spans), llm.width)
    ranges = align(spans, [tuple(span) for span in pieces["offset_mapping"]])[:-1]
    rows = [embeddings[first:end].mean(0) for first, end in ranges]
    return torch.stack(rows) if rows else embeddings[:0]


def collect(fire, llm, tokenizer, batches):
    """Pairs of batches of a data set, on the CPU.

    Arguments
    ---------
    fire : callable
        From a batch and the number of tokens of each [B] to CIF vectors [B, U, D], and
        anything else.
    llm : cif_lobes.nets.speech_llm.SpeechLLM
    tokenizer : cif_lobes.data.tokens.Tokenizer
        The recogniser's.
    batches : iterable of speechbrain.dataio.batch.PaddedBatch

    Returns
    -------
    list of Pairs
    """
    pairs = []
    for batch in batches:
        targets = [embed_tokens(llm, text, tokenizer).cpu() for text in batch.text]
        lengths = torch.tensor([len(target) + 1 for target in targets])
        vectors = fire(batch, lengths)[0].cpu()
        pairs.append(Pairs(vectors, lengths, pad_sequence(targets, batch_first=True)))
    return pairs


def fit(adapter, pairs, passes, seed, device="cpu"):
    """Train an adapter on pairs by AdamW, with the mean squared error.

    Arguments
    ---------
    adapter : torch.nn.Module
        From [B, U, D] and lengths [B] to [B, U, H]; changed in place.
    pairs : list of Pairs
    passes : int
        Over them.
    seed : int
        Of their order and of dropout; random numbers elsewhere stay as they were.
    device : str
        That of the adapter.

    Returns
    -------
    float
        Share of the variance of the targets that the adapter explains in the end, 1 at
        most.

    Example
    -------
    >>> from cif_lobes.nets.speech_llm import LinearAdapter
    >>> vectors = torch.randn(64, 9, 4)
    >>> pairs = Pairs(vectors, torch.full((64,), 9), vectors[:, :-1].cumsum(-1))
    >>> fit(LinearAdapter(4, 4), [pairs], passes=2000, seed=1) > 0.99
    True
    """
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=LR)
    devices = [device] if torch.device(device).type == "cuda" else []
    adapter.train()
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for _ in range(passes):
            for number in torch.randperm(len(pairs)).tolist():
                error, _, count = _error(adapter, pairs[number], device)
                optimizer.zero_grad()
                (error / max(1, count)).backward()
                optimizer.step()
    adapter.eval()
    with torch.no_grad():
        sums = [_error(adapter, batch, device)[:2] for batch in pairs]
    errors, squares = torch.tensor(sums).sum(0).tolist()
    mean = sum(batch.targets.sum((0, 1)) for batch in pairs)
    total = sum(int((batch.lengths - 1).sum()) for batch in pairs)
    variance = squares - float(mean.square().sum()) / max(1, total)
    return 1 - errors / variance if variance > 0 else 1.0


def _error(adapter, pairs, device):
    """Squared error and squared targets of a batch, both summed; and their numbers."""
    vectors, lengths, targets = (part.to(device) for part in pairs)
    # Padding, and the end of sentence, which is not written.
    places = torch.arange(targets.shape[1], device=device)
    kept = places < lengths[:, None] - 1
    embeddings = adapter(vectors, lengths)[:, : targets.shape[1]]
    difference = (embeddings - targets)[kept]
    return difference.square().sum(), targets[kept].square().sum(), difference.numel()
