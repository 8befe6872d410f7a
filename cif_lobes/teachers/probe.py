"""What kind of language model a teacher is, found out by asking it."""

import torch

CLOSE = 1e-3  # of the largest state: rounding, and no more


@torch.no_grad()
def check_padding(encoder, source):
    """See that states do not depend on how far a text is padded.

    Arguments
    ---------
    encoder : torch.nn.Module
        A HuggingFace model, in eval mode.
    source : str
        For the error.

    Raises
    ------
    ValueError
        If they do.
    """
    pieces = _pieces(encoder)
    alone = encoder(input_ids=pieces).last_hidden_state
    mask = torch.ones_like(pieces)
    padded = encoder(
        input_ids=torch.cat([pieces, pieces], dim=1),
        attention_mask=torch.cat([mask, 0 * mask], dim=1),
    ).last_hidden_state
    if not _same(alone, padded[:, : pieces.shape[1]]):
        raise ValueError(
            f"teacher {source}: a {type(encoder).__name__} gives a text other states if "
            "it is padded, so they would depend on the batch. Use another teacher"
        )


@torch.no_grad()
def is_causal(encoder):
    """Whether no state depends on what comes after it."""
    pieces = _pieces(encoder)
    other = pieces.clone()
    other[:, -1] = pieces[:, 0]
    before, after = (
        encoder(input_ids=ids).last_hidden_state[:, :-1] for ids in (pieces, other)
    )
    return _same(before, after)


def _pieces(encoder):
    """A text [1, S] of different pieces."""
    return torch.arange(min(6, encoder.config.vocab_size))[None]


def _same(a, b):
    return bool((a - b).abs().max() <= CLOSE * a.abs().max())
