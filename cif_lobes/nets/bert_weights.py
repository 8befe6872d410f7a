"""The weights of a BERT as HuggingFace has it, for a `BERTDecoder` that is to be trained.

Of its vocabulary those pieces are taken that the recogniser's tokens are. Which piece a
token is: specials by `SPECIALS`, others by their own spelling, or without a leading ##
where BERT has no such piece (our WordPieces mark what stands behind an apostrophe).
"""

import math
import os

import torch
import transformers

from cif_lobes.nets.bert_decoder import EPSILON, MAX_POSITIONS
from cif_lobes.storage.parameters import hash_parameters

SPECIALS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]  # of the ids of blank, bos, eos, unk
MOST_MISSING = 0.1  # share of tokens that a BERT may lack


def load_bert(decoder, symbols):
    """Give a decoder the weights of its BERT, before training.

    Arguments
    ---------
    decoder : cif_lobes.nets.bert_decoder.BERTDecoder
        Changed in place.
    symbols : list of str
        Spelling of every token, by id, the four specials first.

    Returns
    -------
    weights_hash : str
        Of all of the BERT's weights.
    missing : list of str
        Tokens that it cannot write, whose embeddings are left as they are.

    Raises
    ------
    FileNotFoundError
        If source looks like a path and is no folder.
    ValueError
        If it is no BERT, of other sizes, or lacks weights or too many tokens.
    """
    source = os.fspath(decoder.source)
    is_folder = os.path.isdir(source)
    if not is_folder and source.startswith((".", "/", "~")):
        raise FileNotFoundError(f"bert folder {source} does not exist: correct --bert")
    config = transformers.AutoConfig.from_pretrained(source, local_files_only=is_folder)
    _check_kind(config, source)
    model, absent = _read(source, is_folder)
    weights = {k: w for k, w in model.state_dict().items() if k not in absent}
    _check_sizes(decoder, config, source, not any("transform" in k for k in absent))
    vocabulary = transformers.AutoTokenizer.from_pretrained(
        source, local_files_only=is_folder
    ).get_vocab()
    ids = find_pieces(symbols, vocabulary)
    missing = [s for s, i in zip(symbols, ids, strict=True) if i is None]
    _check_missing(missing, symbols, source)
    with torch.no_grad():
        _copy(decoder, weights, ids)
    return hash_parameters(weights), missing


def find_pieces(symbols, vocabulary):
    """The id of every token's piece in a BERT's vocabulary; see the module.

    Arguments
    ---------
    symbols : list of str
        Spelling of every token, by id.
    vocabulary : dict of str to int
        Of the BERT.

    Returns
    -------
    list of int or None
        None where it has no such piece.

    Example
    -------
    >>> pieces = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "don": 4, "'": 5}
    >>> find_pieces(["<blank>", "<bos>", "<eos>", "<unk>", "don", "##'", "##x"], pieces)
    [0, 2, 3, 1, 4, 5, None]
    """
    names = [*SPECIALS, *symbols[len(SPECIALS) :]]
    return [vocabulary.get(n, vocabulary.get(n.removeprefix("##"))) for n in names]


def _read(source, is_folder):
    """The model with its head, and the names of weights that the checkpoint lacks."""
    # Its report of missing weights is replaced by the check below.
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with torch.random.fork_rng(devices=[]):
            model, report = transformers.BertForMaskedLM.from_pretrained(
                source,
                dtype=torch.float32,
                output_loading_info=True,
                local_files_only=is_folder,
            )
    finally:
        transformers.logging.set_verbosity(verbosity)
    absent = {*report["missing_keys"]}
    random = sorted(k for k in absent if not k.startswith("cls."))
    if random:
        raise ValueError(
            f"bert {source}: {len(random):,} weights are not in the checkpoint and would "
            f"be random, first {random[0]}: the files do not belong together, or "
            "config.json names another architecture"
        )
    return model, absent


def _check_kind(config, source):
    """Refuse what PyTorch's layers would not compute."""
    expected = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "layer_norm_eps": EPSILON,
        "is_decoder": False,
    }
    for name, value in expected.items():
        found = getattr(config, name, None)
        # Configurations of float16 weights have 9.999999960041972e-13.
        if found != value and not _is_near(found, value):
            raise ValueError(
                f"bert {source}: its {name} is {found}, must be {value}. Give a BERT: "
                "bert-base-chinese, bert-base-uncased, or one of their kind"
            )
    if config.max_position_embeddings < MAX_POSITIONS:
        raise ValueError(
            f"bert {source} reads {config.max_position_embeddings} pieces, "
            f"{MAX_POSITIONS} are expected: give another one"
        )


def _is_near(found, value):
    numbers = isinstance(found, float) and isinstance(value, float)
    return numbers and math.isclose(found, value, rel_tol=1e-4)


def _check_sizes(decoder, config, source, has_head):
    """Refuse a BERT that the yaml does not describe."""
    layer = decoder.bert.layers[0]
    sizes = [
        ("bert_width", decoder.project.out_features, config.hidden_size),
        ("bert_heads", layer.self_attn.num_heads, config.num_attention_heads),
        ("bert_ffn", layer.linear1.out_features, config.intermediate_size),
    ]
    for name, ours, theirs in sizes:
        if ours != theirs:
            raise ValueError(
                f"bert {source}: {name} is {ours}, that of the model is {theirs}. Run "
                f"with --{name} {theirs}"
            )
    if len(decoder.bert.layers) > config.num_hidden_layers:
        raise ValueError(
            f"bert {source} has {config.num_hidden_layers} layers, bert_layers is "
            f"{len(decoder.bert.layers)}. Run with --bert_layers {config.num_hidden_layers}"
        )
    if decoder.acoustic.built and not has_head:
        raise ValueError(
            f"bert {source} was saved without its masked-LM head. --bert_head False takes "
            "its embeddings for the output, which is the nearest thing"
        )


def _check_missing(missing, symbols, source):
    """Refuse a BERT that cannot write much of what is said."""
    if len(missing) > MOST_MISSING * len(symbols):
        raise ValueError(
            f"bert {source} cannot write {len(missing):,} of {len(symbols):,} tokens: "
            f"{' '.join(missing[:10])} ... Use a BERT of this language, with characters or "
            "with the WordPieces of its own vocab.txt as tokens"
        )


def _copy(decoder, weights, ids):
    """Into the decoder, from the names of HuggingFace to those of PyTorch's layers."""
    bert = decoder.bert
    ours = torch.tensor([n for n, i in enumerate(ids) if i is not None])
    theirs = torch.tensor([i for i in ids if i is not None])
    inner = {k.removeprefix("bert."): w for k, w in weights.items()}
    places = "embeddings."
    words = inner[places + "word_embeddings.weight"]
    bert.embeddings.words.weight[ours] = words[theirs]
    bert.embeddings.positions.copy_(
        inner[places + "position_embeddings.weight"][:MAX_POSITIONS]
        + inner[places + "token_type_embeddings.weight"][0]
    )
    _fill(bert.embeddings.norm, inner, places + "LayerNorm")
    for number, layer in enumerate(bert.layers):
        name = f"encoder.layer.{number}."
        attention = name + "attention."
        for kind, joined in (
            ("weight", layer.self_attn.in_proj_weight),
            ("bias", layer.self_attn.in_proj_bias),
        ):
            parts = [
                inner[f"{attention}self.{part}.{kind}"]
                for part in ("query", "key", "value")
            ]
            joined.copy_(torch.cat(parts))
        _fill(layer.self_attn.out_proj, inner, attention + "output.dense")
        _fill(layer.norm1, inner, attention + "output.LayerNorm")
        _fill(layer.linear1, inner, name + "intermediate.dense")
        _fill(layer.linear2, inner, name + "output.dense")
        _fill(layer.norm2, inner, name + "output.LayerNorm")
    if bert.head.built:
        # The acoustic head begins as the language's.
        for head in (bert.head, decoder.acoustic):
            _fill(head.dense, inner, "cls.predictions.transform.dense")
            _fill(head.norm, inner, "cls.predictions.transform.LayerNorm")
        bert.bias[ours] = inner["cls.predictions.bias"][theirs]
        decoder.acoustic_out.bias.copy_(bert.bias)
    decoder.acoustic_out.weight.copy_(bert.embeddings.words.weight)


def _fill(module, weights, name):
    module.weight.copy_(weights[f"{name}.weight"])
    module.bias.copy_(weights[f"{name}.bias"])
