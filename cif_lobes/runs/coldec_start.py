"""What a ColDec takes over from the recogniser that it is trained on, before training."""

import torch
from torch import nn

from cif_lobes.decoding.ctc_ranking import CTC_HEAD
from cif_lobes.storage.parameters import read_parameters

DECODER = "decoder."


def start_from_recognizer(hparams):
    """Do as a yaml's `start_from_decoder` and `start_from_ctc` say.

    Arguments
    ---------
    hparams : dict
        The loaded yaml, whose `coldec` is changed in place.

    Raises
    ------
    ValueError
        If the recogniser's sizes are others, or it has no CTC head.
    """
    if not (hparams["start_from_decoder"] or hparams["start_from_ctc"]):
        return
    coldec, run = hparams["coldec"], hparams["recognizer"]
    parameters = read_parameters(run)
    if hparams["start_from_decoder"]:
        found = {k: v for k, v in parameters.items() if k.startswith(DECODER)}
        decoder = {k.removeprefix(DECODER): v for k, v in found.items()}
        try:
            take_decoder(coldec, decoder)
        except RuntimeError as error:
            raise ValueError(
                f"start_from_decoder: the decoder of {run} has other sizes than the "
                "context decoder. Give its d_model, decoder_layers, nhead and d_ffn, or "
                f"--start_from_decoder False ({error})"
            ) from None
    if hparams["start_from_ctc"]:
        heads = [v for k, v in parameters.items() if k.endswith(f"{CTC_HEAD}.weight")]
        if not heads:
            raise ValueError(
                f"start_from_ctc: {run} was trained without a CTC head: "
                "--start_from_ctc False"
            )
        try:
            take_ctc(coldec, heads[0])
        except RuntimeError as error:
            raise ValueError(
                f"start_from_ctc: the CTC head of {run} has other sizes than the phrase "
                f"encoder. Give vector_size as d_model, or --start_from_ctc False ({error})"
            ) from None


@torch.no_grad()
def take_decoder(coldec, decoder):
    """Begin as the recogniser's own decoder, whatever the phrases.

    The papers do not say that they do; it leaves only the phrases to be learnt.

    Arguments
    ---------
    coldec : cif_lobes.nets.coldec.ColDec
    decoder : dict of str to torch.Tensor
        The decoder's parameters.

    Raises
    ------
    RuntimeError
        If its sizes are others.
    """
    coldec.decoder.load_state_dict(decoder)
    coldec.join.weight.zero_()
    coldec.join.weight[:, : coldec.vector_size].fill_diagonal_(1.0)
    coldec.join.bias.zero_()


@torch.no_grad()
def take_ctc(coldec, rows):
    """Begin with tokens of phrases as the recogniser's CTC head knows them.

    CIF vectors are sums of the frames that this head reads: a row of it looks like the
    vectors of its token, of one that is rare in training, too. Queries and keys begin as
    what they are made of. The papers learn tokens from nothing.

    Arguments
    ---------
    coldec : cif_lobes.nets.coldec.ColDec
    rows : torch.Tensor, [V, C]
        The head's weights.

    Raises
    ------
    RuntimeError
        If they are of another number or width.
    """
    coldec.phrase_encoder.embedding.weight.copy_(rows / rows.std())
    for linear in (coldec.query, coldec.key):
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
