"""A BERT that cannot be a decoder, for docs/errors.md."""

import json

from tiny_bert import SPECIALS, make_bert, make_decoder

from cif_lobes.nets.bert_weights import load_bert
from cif_lobes.runs.bert import begin_with_bert

TITLE = "A BERT as decoder"
SYMBOLS = [*SPECIALS, *"今天气好买房吗"]


def _load(options=None, symbols=SYMBOLS, **bert):
    """Load a tiny BERT into a decoder of other sizes, or for other tokens."""

    def load(folder):
        source = make_bert(folder / "bert", **bert)
        load_bert(make_decoder(source, 30, **(options or {})), symbols)

    return load


def _another(folder):
    (folder / "bert.json").write_text(json.dumps({"source": "bert-base-chinese"}))
    decoder = make_decoder("google-bert/bert-base-uncased", 30)
    begin_with_bert({"decoder": decoder, "output_folder": folder}, begins=False)


CASES = {
    "`--bert /models/none`": lambda folder: load_bert(
        make_decoder(str(folder / "none")), SYMBOLS
    ),
    "a BERT with ReLU": _load(hidden_act="relu"),
    "a BERT that reads 64 pieces": _load(max_position_embeddings=64),
    "a BERT without masked-LM head": _load(head=False),
    "`--bert_layers 12` with three layers": _load({"num_layers": 12}),
    "a BERT of another language": _load(symbols=[*SYMBOLS, *"žščř"]),
    "a run that goes on with another BERT": _another,
    "`--true_share_falls '[0.5, 0.1]'`": lambda folder: make_decoder(falls=(0.5, 0.1)),
}
