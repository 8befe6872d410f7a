"""Causal language models as teachers, and kinds that padding would change."""

import pytest
import torch
import transformers
from tiny_teacher import SMALL, characters, make_teacher
from transformers import PreTrainedTokenizerFast

from cif_lobes.teachers.text import TextTeacher

SIZES = {**SMALL, "vocab_size": 24, "intermediate_size": 32, "num_key_value_heads": 2}
OPT = {**SMALL, "vocab_size": 24, "ffn_dim": 32, "word_embed_proj_dim": 16}
GPT = {"vocab_size": 24, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 12}
PIECES = ["[UNK]", "<s>", "</s>", *"abcdefgh", "ab", "cde"]


def make_tokenizer(folder, bos="<s>", eos="</s>"):
    """Pieces of one to three letters; nothing is put around a text."""
    from tokenizers import Tokenizer, models

    ids = {piece: i for i, piece in enumerate(PIECES)}
    merges = [("a", "b"), ("d", "e"), ("c", "de")]
    ids["de"] = len(ids)
    pieces = Tokenizer(models.BPE(ids, merges, unk_token="[UNK]"))
    PreTrainedTokenizerFast(
        tokenizer_object=pieces, unk_token="[UNK]", bos_token=bos, eos_token=eos
    ).save_pretrained(folder)


KINDS = {
    "gpt2": lambda: transformers.GPT2Model(transformers.GPT2Config(**GPT)),
    "llama": lambda: transformers.LlamaModel(transformers.LlamaConfig(**SIZES)),
    "qwen2": lambda: transformers.Qwen2Model(transformers.Qwen2Config(**SIZES)),
    "opt": lambda: transformers.OPTModel(transformers.OPTConfig(**OPT)),
}


def make(folder, kind, **special):
    torch.manual_seed(1)
    model = KINDS[kind]()
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.normal_(std=0.3)
    model.save_pretrained(folder)
    make_tokenizer(folder, **special)
    return str(folder)


def encode(teacher, *texts):
    aligned = teacher.align({text: text for text in texts}, characters)
    states = teacher(aligned).split([len(a.ranges) for a in aligned])
    return dict(zip([a.text for a in aligned], states, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_of_a_token_is_that_of_its_last_piece_or_of_the_one_before(
    tmp_path, kind
):
    """h | ab | cde, characters as tokens, against the model itself."""
    folder = make(tmp_path, kind)
    last = TextTeacher(folder)
    before = TextTeacher(folder, pooling="before")
    assert (last.pooling, before.pooling) == ("last", "before")
    pieces = torch.tensor([[1, 10, 11, 12, 2]])  # <s> h ab cde </s>
    with torch.no_grad():
        states = last.encoder(input_ids=pieces).last_hidden_state[0]
    got = encode(last, "habcde")["habcde"]
    assert torch.allclose(got, states[[1, 2, 2, 3, 3, 3, 4]], atol=1e-5)
    got = encode(before, "habcde")["habcde"]
    assert torch.allclose(got, states[[0, 1, 1, 2, 2, 2, 3]], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_no_state_and_what_follows_neither(tmp_path, kind):
    teacher = TextTeacher(make(tmp_path, kind), layer=[1, -1])
    alone = encode(teacher, "hg")["hg"]
    together = encode(teacher, "hg", "hgfabcde", "")
    assert torch.allclose(together["hg"], alone, atol=1e-5)
    assert torch.allclose(together["hgfabcde"][:2], alone[:2], atol=1e-5)
    assert together[""].shape == (1, 2, 16)


def test_a_text_begins_behind_another_where_there_is_no_begin(tmp_path):
    """As GPT-2 and Qwen have it; the limit of positions counts both ends."""
    teacher = TextTeacher(make(tmp_path, "gpt2", bos=None))
    (aligned,) = teacher.align({"h": "u1"}, characters)
    assert aligned.piece_ids.tolist() == [2, 10, 2]
    encode(teacher, "h" * 10)
    with pytest.raises(ValueError, match="utterance .*13 teacher pieces.*12 at most"):
        encode(teacher, "h" * 11)


def test_what_cannot_be(tmp_path):
    folder = make(tmp_path / "gpt", "gpt2")
    with pytest.raises(ValueError, match="pooling is 'first', must be one of mean"):
        TextTeacher(folder, pooling="first")
    no_end = make(tmp_path / "no_end", "llama", eos=None)
    with pytest.raises(ValueError, match="no piece for the end of a text"):
        TextTeacher(no_end)
    bert = make_teacher(tmp_path / "bert")
    assert TextTeacher(bert).pooling == "mean"
    assert TextTeacher(bert, pooling="before").pooling == "before"
    t5 = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    transformers.T5Model(t5).save_pretrained(tmp_path / "t5")
    transformers.T5Tokenizer(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("a", -1)]
    ).save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="puts no piece before a text"):
        TextTeacher(tmp_path / "t5", pooling="before")


def test_states_that_depend_on_padding_are_refused(tmp_path, monkeypatch):
    """As those of a model do that takes no notice of the attention mask."""
    folder = make(tmp_path, "llama")
    forward = transformers.BertModel.forward

    def unmasked(self, input_ids, attention_mask=None, **kwargs):
        return forward(self, input_ids, **kwargs)

    monkeypatch.setattr(transformers.BertModel, "forward", unmasked)
    folder = make_teacher(tmp_path / "bert")
    with pytest.raises(ValueError, match="BertModel gives a text other states if it"):
        TextTeacher(folder)


@pytest.mark.parametrize("kind", ["electra", "t5", "xlnet", "deberta-v2", "mpnet"])
def test_other_kinds_give_the_same_states_alone_or_are_refused(tmp_path, kind):
    sizes = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 2, "num_heads": 2}
    if kind == "xlnet":
        sizes = {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32}
    elif kind != "t5":
        sizes = {**SIZES, "embedding_size": 16}
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(kind, **{**sizes, "vocab_size": 64})
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        make_teacher(tmp_path / "bert")
    )
    tokenizer.save_pretrained(tmp_path)
    teacher = TextTeacher(tmp_path)
    texts = "今天天气好", "房"
    together = encode(teacher, *texts)
    for text in texts:
        assert torch.allclose(encode(teacher, text)[text], together[text], atol=1e-4)
