"""What a ColDec begins with."""

import pytest
import torch

from cif_lobes.nets.coldec import ColDec, pad_phrases
from cif_lobes.nets.decoder import CIFDecoder
from cif_lobes.runs.coldec_start import take_ctc, take_decoder

V, D = 40, 32
SIZES = {"d_model": D, "decoder_layers": 1, "nhead": 2, "d_ffn": 64}


@pytest.fixture
def coldec():
    torch.manual_seed(0)
    how = {"phrase_layers": 1, "over_tokens": True, "query_context": 3}
    return ColDec(V, D, **SIZES, **how).eval()


def test_it_begins_as_the_recogniser_s_decoder(coldec):
    """Whatever the phrases."""
    decoder = CIFDecoder(V, D, 1, 2, 64, 0.1, 0.1).eval()
    take_decoder(coldec, decoder.state_dict())
    vectors, tokens = torch.randn(2, 6, D), torch.randint(4, V, (2, 6))
    lengths, sees = torch.tensor([6, 3]), torch.ones(2, 2, dtype=torch.bool)
    phrases = pad_phrases([[4, 5], [7, 8, 9]])
    logits, _ = coldec(vectors, lengths, tokens, *phrases, sees)
    expected = decoder(vectors, tokens, lengths)[0]
    for got, wanted, U in zip(logits, expected, lengths, strict=True):
        torch.testing.assert_close(got[:U], wanted[:U], rtol=1e-4, atol=1e-5)


def test_fires_find_tokens_that_were_never_in_a_phrase(coldec):
    """CIF vectors that look like the rows of the CTC head, before any training."""
    rows = 0.1 * torch.randn(V, D)
    vectors = 20 * rows[None, 4:] + 0.5 * torch.randn(1, V - 4, D)
    phrases = coldec.encode([[token] for token in range(4, V)])
    lengths, wanted = torch.tensor([V - 4]), torch.arange(V - 4)

    def found():
        with torch.no_grad():
            attention = coldec.attend(vectors, lengths, phrases)[0, :, 1:]
        return (attention.argmax(-1) == wanted).float().mean()

    assert found() < 0.3
    take_ctc(coldec, rows)
    with torch.no_grad():
        phrases = coldec.encode([[token] for token in range(4, V)])
    assert found() > 0.9
