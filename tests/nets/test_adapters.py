"""Adapters from CIF vectors to embeddings of a language model."""

import pytest
import torch

from cif_lobes.nets.adapters import LinearAdapter, TransformerAdapter


@pytest.fixture
def adapter():
    torch.manual_seed(0)
    return TransformerAdapter(8, 12, d_model=16, num_layers=2, nhead=2, d_ffn=32)


def test_the_transformer_adapter_sees_no_padding(adapter):
    adapter.eval()
    vectors, lengths = torch.randn(3, 6, 8), torch.tensor([6, 2, 0])
    together = adapter(vectors, lengths)
    assert together.isfinite().all()
    for i, n in enumerate([6, 2]):
        alone = adapter(vectors[i : i + 1, :n], lengths[i : i + 1])
        assert torch.allclose(alone[0], together[i, :n], atol=1e-6)


def test_it_knows_the_order(adapter):
    """Without positions, attention over other vectors would not tell which is next."""
    adapter.eval()
    vectors, lengths = torch.randn(1, 5, 8), torch.tensor([5])
    order = [0, 2, 1, 4, 3]
    assert not torch.allclose(
        adapter(vectors, lengths)[:, order],
        adapter(vectors[:, order], lengths),
        atol=1e-3,
    )


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_in_which_nothing_fired(adapter, training):
    """Every parameter has a gradient, of zeros: a distributed run waits for all."""
    adapter.train(training)
    found = adapter(torch.zeros(2, 0, 8), torch.tensor([0, 0]))
    assert found.shape == (2, 0, 12)
    found.sum().backward()
    assert all(not p.grad.any() for p in adapter.parameters())


def test_more_vectors_than_positions(adapter):
    with pytest.raises(ValueError, match="2,501 tokens in an utterance"):
        adapter(torch.zeros(1, 2501, 8), torch.tensor([2501]))


@pytest.mark.parametrize("kind", [LinearAdapter, TransformerAdapter])
def test_outputs_begin_as_large_as_embeddings(kind):
    torch.manual_seed(0)
    adapter = kind(64, 96).eval()
    vectors, lengths = torch.randn(4, 50, 64), torch.full((4,), 50)
    assert adapter(vectors, lengths).std() > 0.3
    adapter.start_like(0.02 * torch.randn(1000, 96))
    assert adapter(vectors, lengths).std().item() == pytest.approx(0.02, rel=0.1)
