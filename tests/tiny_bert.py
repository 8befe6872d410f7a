"""BERTs of random weights in folders, and decoders of their sizes."""

import torch
import transformers
from tiny_teacher import SMALL, VOCAB, write_vocab

from cif_lobes.nets.bert_decoder import BERTDecoder

LETTERS = ["a", "b", "c", "d"]  # of the tone corpus
SPECIALS = ["<blank>", "<bos>", "<eos>", "<unk>"]
WIDTH = SMALL["hidden_size"]
SIZES = {"width": WIDTH, "nhead": SMALL["num_attention_heads"], "d_ffn": 32}


def make_bert(folder, head=True, num_layers=3, vocab=(*VOCAB, *LETTERS), **changes):
    """Save a BERT with or without its masked-LM head; its folder as str."""
    config = write_vocab(
        folder,
        vocab,
        num_hidden_layers=num_layers,
        layer_norm_eps=9.999999960041972e-13,  # as some configurations have it
        initializer_range=0.3,  # so that what differs a little is seen
        **changes,
    )
    cls = transformers.BertForMaskedLM if head else transformers.BertModel
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = cls(config)
        # A bias or LayerNorm that does nothing would hide that it is not copied.
        for name, p in model.named_parameters():
            if name.endswith("bias") or "LayerNorm" in name:
                torch.nn.init.normal_(p, mean=float("weight" in name), std=0.2)
    model.save_pretrained(folder)
    transformers.BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


def make_decoder(source=None, vocab_size=20, num_layers=3, **options):
    """A `BERTDecoder` of such a BERT's sizes, always of the same random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(6)
        return BERTDecoder(
            vocab_size, 8, source, num_layers=num_layers, **SIZES, **options
        )
