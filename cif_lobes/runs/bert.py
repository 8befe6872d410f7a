"""The BERT of a run's decoder: which, brought along once, before the first update."""

import json
import logging
import pathlib

from speechbrain.utils.distributed import if_main_process, run_on_main

from cif_lobes.nets.bert_decoder import BERTDecoder
from cif_lobes.storage.atomic_files import write_atomically

logger = logging.getLogger(__name__)

NOTE = "bert.json"  # of a run folder: source, hash, tokens that the BERT cannot write


def begin_with_bert(hparams, begins):
    """Load the BERT of a decoder, if it has one and the run begins; note which it is.

    A run that goes on has it in its checkpoints, and no longer needs its folder.

    Arguments
    ---------
    hparams : dict
        The loaded yaml, its vocabulary at hand.
    begins : bool
        Whether there is no checkpoint yet.

    Raises
    ------
    FileNotFoundError, ValueError
        As `cif_lobes.nets.bert_weights.load_bert`; also if the run began with another.
    """
    decoder = hparams.get("decoder")
    if not isinstance(decoder, BERTDecoder) or decoder.bert is None:
        return
    path = pathlib.Path(hparams["output_folder"]) / NOTE
    if not begins:
        before = json.loads(path.read_text(encoding="utf-8"))["source"]
        if before != decoder.source:
            raise ValueError(
                f"{path.parent} is a run with the BERT {before}, bert is {decoder.source}. "
                "Go on with that one, or train into another --output_folder"
            )
        return
    note = {"source": decoder.source}
    if decoder.source is not None:
        note |= _load(decoder, hparams["tokenizer"])
    text = json.dumps(note, ensure_ascii=False, indent=1) + "\n"
    run_on_main(write_atomically, args=[path, text])


def _load(decoder, tokenizer):
    """Load it; its hash and the tokens that it lacks, as dict."""
    # Here: other recognisers start without transformers.
    from cif_lobes.nets.bert_weights import load_bert

    symbols = tokenizer.symbols
    weights_hash, missing = load_bert(decoder, symbols)
    if missing and if_main_process():
        logger.warning(
            f"bert {decoder.source} cannot write {len(missing):,} of {len(symbols):,} "
            f"tokens, which begin with random embeddings: {' '.join(missing[:20])}"
        )
    return {"hash": weights_hash, "missing": missing}
