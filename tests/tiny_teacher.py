"""A BERT with random weights and a small vocabulary, in a folder."""

import torch
import transformers

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCAB += list("今天气好买房吗一二两三城市的电视") + ["，", "。", "'", ",", "."]
VOCAB += ["iphone", "tv", "the", "cat", "##s", "##ing", "run", "don", "t", "3", "##6"]


# Of a transformers configuration, whatever the kind.
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_vocab(folder, vocab, **changes):
    """A small BERT's configuration, whose vocabulary is written into its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    sizes = {"vocab_size": len(vocab), "intermediate_size": 32, **SMALL}
    return transformers.BertConfig(**{**sizes, **changes})


def make_teacher(
    folder, num_layers=3, width=16, positions=64, vocab=tuple(VOCAB), seed=0
):
    """Save model and tokenizer; returns the folder as str."""
    config = write_vocab(
        folder,
        vocab,
        num_hidden_layers=num_layers,
        hidden_size=width,
        intermediate_size=2 * width,
        max_position_embeddings=positions,
        initializer_range=0.5,  # so that states of different texts differ a lot
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformers.BertModel(config).save_pretrained(folder)
    tokenizer = transformers.BertTokenizer(
        vocab=str(folder / "vocab.txt"), model_max_length=positions
    )
    tokenizer.save_pretrained(folder)
    return str(folder)


class Units:
    """A recogniser's tokenizer with the interface of `cif_lobes.data.tokens`.

    Arguments
    ---------
    split : callable
        From a text to its tokens' character spans.
    """

    fingerprint = "units"

    def __init__(self, split):
        self.offsets = split

    def encode(self, text):
        return list(range(4, 4 + len(self.offsets(text))))


characters = Units(lambda text: [(i, i + 1) for i in range(len(text))])
