"""What CIF did with one recording, in numbers: weights, fires, and their tokens."""

from typing import NamedTuple

import torch

from cif_lobes.data.tokens import SPACE
from cif_lobes.devices.precision import full_float32
from cif_lobes.inference.alignment import token_spans

END = "<eos>"  # what the fire of the end of sentence is called


class Fires(NamedTuple):
    """Weights and fires of a recording."""

    text: str
    alpha: list  # of float: weight of each encoder frame, 0 to 1
    spans: (
        list  # of TokenSpan: one per fire, those of and behind the end of sentence too
    )


def name_fires(tokens, num_fires):
    """What to call the fires of an utterance.

    The network names the fires up to the end of sentence; more may follow, which the
    search does not read.

    Arguments
    ---------
    tokens : list of str
        Of the hypothesis, without end of sentence.
    num_fires : int

    Returns
    -------
    list of str

    Example
    -------
    >>> name_fires(["h", "i"], 5)
    ['h', 'i', '<eos>', '<eos>+1', '<eos>+2']
    >>> name_fires(["h", "i"], 2)
    ['h', 'i']
    """
    behind = [f"{END}+{n}" for n in range(1, num_fires - len(tokens))]
    return [*tokens, END, *behind][:num_fires]


@torch.no_grad()
@full_float32()
def find_fires(recognizer, signal):
    """Recognise a waveform and say what fired when.

    Arguments
    ---------
    recognizer : cif_lobes.inference.recognizer.CIFRecognizer
    signal : torch.Tensor, [samples], float32
        At the recogniser's sample rate.

    Returns
    -------
    Fires

    Raises
    ------
    ValueError
        If the waveform is shorter than an encoder frame.
    """
    if len(signal) < recognizer.clock.step * recognizer.sample_rate:
        raise ValueError(
            f"{len(signal)} samples are less than an encoder frame of "
            f"{recognizer.clock.step:g} s: nothing can fire"
        )
    fire, searcher = recognizer.fire, recognizer.searcher
    lengths = torch.tensor([len(signal)], device=recognizer.device)
    x, x_lengths = fire.features(signal[None].to(recognizer.device), lengths)
    encoded, x_lengths = fire.encoder(x, x_lengths)
    fired = fire.cif(encoded, x_lengths)
    ids = searcher.nbest(fired.embeddings, fired.lengths, encoded, x_lengths)[0][0][0]
    decode = recognizer.tokenizer.decode
    tokens = [decode([token]) or SPACE for token in ids]
    spans = token_spans(
        name_fires(tokens, int(fired.lengths[0])),
        fired.boundaries[0].cpu(),
        recognizer.clock,
    )
    return Fires(decode(ids), fired.alpha[0].tolist(), spans)
