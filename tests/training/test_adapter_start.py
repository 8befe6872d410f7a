"""Where an adapter begins: vectors land where their words are written."""

import pytest
import torch
from tiny_llm import make_llm

from cif_lobes.data.tokens import CharTokenizer
from cif_lobes.nets.speech_llm import LinearAdapter, SpeechLLM, TransformerAdapter
from cif_lobes.training.adapter_start import Pairs, embed_tokens, fit

CAUSAL = {"output_size": 6, "d_model": 16, "num_layers": 1, "nhead": 2, "d_ffn": 32}


def pairs(seed=0, padding=0.0):
    """Utterances of 0 to 5 tokens, of which the embedding follows from the vector."""
    random = torch.Generator().manual_seed(seed)
    table = torch.randn(8, 6, generator=torch.Generator().manual_seed(9))
    vectors = torch.randn(20, 7, 8, generator=random)
    lengths = torch.randint(1, 7, (20,), generator=random)
    targets = vectors[:, :5] @ table
    for b, length in enumerate(lengths.tolist()):
        vectors[b, length:] = padding
        targets[b, length - 1 :] = padding
    return Pairs(vectors, lengths, targets)


@pytest.mark.parametrize(
    "kind, options", [(LinearAdapter, {"output_size": 6}), (TransformerAdapter, CAUSAL)]
)
def test_it_learns_where_words_are_written(kind, options):
    torch.manual_seed(0)
    adapter = kind(8, **options)
    before = torch.get_rng_state()
    batches = [pairs(seed) for seed in range(8)]
    assert fit(adapter, batches, 0, seed=1) < 0.1
    share = fit(adapter, batches, 300, seed=1)
    assert 0.8 < share <= 1
    assert torch.equal(torch.get_rng_state(), before)
    assert not adapter.training


def test_padding_and_ends_do_not_count():
    adapters = []
    for padding in (0.0, 1e3):
        torch.manual_seed(0)
        adapters.append(LinearAdapter(8, 6))
        fit(adapters[-1], [pairs(padding=padding)], 30, seed=1)
    first, second = (list(adapter.parameters()) for adapter in adapters)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_nothing_said():
    """Only utterances without a word, of which nothing can be learnt."""
    adapter = LinearAdapter(8, 6)
    empty = Pairs(torch.randn(2, 1, 8), torch.ones(2).long(), torch.zeros(2, 0, 6))
    assert fit(adapter, [empty], 3, seed=1) == 1.0
    assert all(weight.isfinite().all() for weight in adapter.parameters())


def test_a_token_is_written_by_the_pieces_that_share_its_characters(tmp_path):
    llm = SpeechLLM(make_llm(tmp_path / "llm"), "S:{speech}T:")
    tokenizer = CharTokenizer(tmp_path / "chars", 8, "en").fit(["abcd"])
    written = embed_tokens(llm, "abd", tokenizer)
    assert torch.equal(written, llm.embed(torch.tensor(llm.pieces("abd"))))
    assert embed_tokens(llm, "", tokenizer).shape == (0, 32)
