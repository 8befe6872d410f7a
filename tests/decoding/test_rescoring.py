"""Causal language models that rank a beam again."""

import math

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5Model,
)

from cif_lobes.decoding.rescoring import HuggingFaceLMRescorer, RescoringSearcher
from cif_lobes.decoding.searcher import BeamSearcher

VOCABULARY = {"[UNK]": 0, "</s>": 1, "a": 2, "b": 3, "c": 4}


def make_lm(folder, pad=None, eos="</s>"):
    """A GPT-2 of random weights that knows three words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel(VOCABULARY, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", eos_token=eos, pad_token=pad
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 5}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=1))
    for weight in model.parameters():
        weight.data *= 8
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pad", [None, "</s>", "[UNK]"])
def test_log_probabilities_whatever_the_pad_token_is(tmp_path, pad):
    """Of one text by hand; alone as in a batch; each text once."""
    lm = HuggingFaceLMRescorer(str(make_lm(tmp_path, pad)))
    texts = [["a b c a", "c"], ["", "b b", "c"]]
    got = lm.rescore_hyps(texts)
    assert got.isfinite().all() and len({*got.tolist()}) == 4
    ids = torch.tensor([[1, 2, 3, 4, 2, 1]])
    log_probs = lm.lm(ids).logits.log_softmax(-1)[0]
    by_hand = sum(log_probs[i, ids[0, i + 1]] for i in range(5))
    assert got[0].item() == pytest.approx(by_hand.item(), abs=1e-4)
    alone = HuggingFaceLMRescorer(str(tmp_path))
    for place, text in enumerate(sum(texts, [])):
        assert alone.rescore_hyps([[text]]).item() == pytest.approx(
            got[place].item(), abs=1e-4
        )
    lm.lm = None  # all are known
    assert torch.equal(lm.rescore_hyps(texts), got)


class Fires(torch.nn.Module):
    """A decoder that says what its vectors say."""

    autoregressive = False

    def forward(self, vectors, previous, lengths):
        return vectors, vectors


def test_the_best_of_both(tmp_path):
    """Score and ranking are search + weight * language model; weight 0 changes nothing."""
    lm = HuggingFaceLMRescorer(str(make_lm(tmp_path)))
    torch.manual_seed(0)
    vectors, lengths = torch.randn(3, 4, 6), torch.tensor([4, 1, 0])
    search = BeamSearcher(Fires(), 8)

    def decode(ids):
        return " ".join("abc"[i - 3] for i in ids)

    for weight in (0.0, 2.0):
        best, scores = RescoringSearcher(search, decode, lm, weight)(vectors, lengths)
        for row, beam in enumerate(search.nbest(vectors, lengths)):
            totals = {}
            for ids, score in beam:
                of_lm = lm.rescore_hyps([[decode(ids)]]).item()
                totals.setdefault(decode(ids), score + weight * of_lm)
            assert math.isclose(scores[row], max(totals.values()), abs_tol=1e-3)
            assert totals[decode(best[row])] == max(totals.values())
    assert [search(vectors, lengths)[0][i] for i in range(3)] == (
        RescoringSearcher(search, decode, lm, 0.0)(vectors, lengths)[0]
    )


def test_what_is_no_causal_language_model(tmp_path):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    bert = BertModel(BertConfig(**small, intermediate_size=8, vocab_size=5))
    bert.config.architectures = ["BertForMaskedLM"]
    bert.save_pretrained(tmp_path / "bert")
    t5 = T5Model(T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=1, vocab_size=5))
    t5.save_pretrained(tmp_path / "t5")
    for name in ("bert", "t5"):
        with pytest.raises(ValueError, match=f"{name} is no causal language model"):
            HuggingFaceLMRescorer(str(tmp_path / name))
    with pytest.raises(ValueError, match="none: no such folder"):
        HuggingFaceLMRescorer(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="no end of sentence"):
        HuggingFaceLMRescorer(str(make_lm(tmp_path / "no_end", eos=None)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no language model and tokenizer"):
        HuggingFaceLMRescorer(str(tmp_path / "empty"))
