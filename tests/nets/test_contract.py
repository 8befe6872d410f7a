"""What features and encoders promise: the docstring of cif_lobes/nets/__init__.py."""

import pytest
import torch
from conftest import ROOT, docs_files
from tiny_hubert import SMALL

from cif_lobes.inference.alignment import frame_clock
from cif_lobes.nets.ctc_attention import CRDNNEncoder
from cif_lobes.nets.encoder import ConformerEncoder, ConvFrontEnd
from cif_lobes.nets.features import LogMel
from cif_lobes.nets.fithubert import FitHuBERT
from cif_lobes.nets.frozen_student import FrozenStudent

BANDS = 20


def branchformer():
    """The example of docs/extending.md, as it is printed there."""
    page = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    code, room = docs_files(page)["cif_lobes/nets/branchformer.py"], {}
    exec(code, room)
    # At most 15 lines of class.
    assert len(code.split("class ")[1].splitlines()) <= 15
    options = {"num_layers": 2, "nhead": 2, "kernel_size": 7, "csgu_linear_units": 32}
    return room["Branchformer"](BANDS, 16, channels=4, strides=(2, 2), **options)


def conformer(**changes):
    options = {"conv_channels": 4, "pool_after": (1, 2), "kernel_size": 7, **changes}
    return ConformerEncoder(BANDS, 16, 3, 2, 32, **options)


ENCODERS = {
    "front-end": lambda: ConvFrontEnd(BANDS, 16, channels=4, strides=(2, 2)),
    "Conformer": conformer,
    "Conformer without pools": lambda: conformer(pool_after=(), conv_strides=(2, 2)),
    "Conformer with chunks": lambda: conformer(pool_after=(2,), chunk_size=4),
    "Branchformer": branchformer,
    "CRDNN": lambda: CRDNNEncoder(BANDS, [4, 4], 4, "gru", 2, 8, 1, 16),
    "CRDNN with an LSTM": lambda: CRDNNEncoder(BANDS, [4, 4], 2, "lstm", 2, 8, 1, 16),
}
FEATURES = {
    "LogMel": lambda: LogMel(n_mels=BANDS, normalization="speech"),
    "LogMel of sentences": lambda: LogMel(n_mels=BANDS, normalization="sentence"),
    "LogMel of all speech": lambda: LogMel(n_mels=BANDS, normalization="global"),
    "FrozenStudent": lambda: FrozenStudent(FitHuBERT(**SMALL)),
}
ALL = {**ENCODERS, **FEATURES}


@pytest.fixture(params=ALL)
def module(request):
    torch.manual_seed(0)
    module = ALL[request.param]().eval()
    # Random parameters everywhere: a bias of 0 would hide the padding behind it.
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    module.reads_samples = request.param in FEATURES
    return module


def noise(module, *sizes):
    """An input of these sizes: samples, or feature frames."""
    return torch.randn(*sizes) if module.reads_samples else torch.randn(*sizes, BANDS)


def lengths_for(module):
    """Down to a single sample or frame."""
    hop = round(module.hop)
    return torch.tensor([40 * hop + 3, 40 * hop + 2, 17 * hop, 2 * hop, hop, 2, 1])


def test_alone_equals_in_a_batch(module):
    """Lengths exactly; waveforms are padded with zeros, features with anything."""
    x_lengths = lengths_for(module)
    x = noise(module, len(x_lengths), int(x_lengths.max()))
    for row, length in zip(x, x_lengths, strict=True):
        row[length:] = 0.0 if module.reads_samples else 7.0
    together, lengths = module(x, x_lengths)
    assert lengths.dtype == torch.int64 and lengths.min() == 1
    assert together.shape[:2] == (len(x), lengths.max())
    for b, length in enumerate(x_lengths):
        alone, alone_lengths = module(x[b : b + 1, :length], x_lengths[b : b + 1])
        assert alone_lengths == lengths[b] == alone.shape[1]
        torch.testing.assert_close(
            together[b, : lengths[b]], alone[0], atol=1e-4, rtol=1e-4
        )


def test_lengths_are_known_before(module):
    """Of any shape; as many as the clock has ticks, give or take an edge."""
    x_lengths = lengths_for(module)
    _, lengths = module(noise(module, len(x_lengths), int(x_lengths.max())), x_lengths)
    assert torch.equal(module.output_lengths(x_lengths), lengths)
    assert module.output_lengths(x_lengths[0]) == lengths[0]
    assert ((x_lengths / module.hop - lengths).abs() < 2).all()


def test_the_clock_is_where_a_frame_looks(module):
    """The frame that a change of the input moves most is the one it lies in.

    In the mean over places of all phases: a clock wrong by half a frame would show.
    """
    hop = round(module.hop)
    length = torch.tensor([60 * hop])
    places = [20 * hop + (i * 12 * hop) // 48 for i in range(48)]
    x = 0.1 * noise(module, 1, int(length))
    width = max(1, hop // 20)
    errors = []
    for place in places:
        changed = x.clone()
        # Samples need several frequencies to be heard by a filter bank.
        changed[0, place : place + width] += torch.randn(width) if width > 1 else 1.0
        before, after = module(x, length)[0], module(changed, length)[0]
        heard = int((after - before).square().sum(2)[0].argmax())
        middle = place + (width - 1) / 2
        errors.append((middle - module.centre) / module.hop - heard)
    errors = torch.tensor(errors)
    assert errors.mean().abs() < 0.25, errors
    assert errors.abs().median() < 0.5, errors


@pytest.mark.parametrize("features", FEATURES)
def test_both_clocks_make_seconds(features):
    """A frame of the encoder is a number of frames of the features."""
    features, encoder = FEATURES[features](), conformer(pool_after=(2,))
    clock = frame_clock(features, encoder, 16000)
    assert clock.step == pytest.approx(features.hop * encoder.hop / 16000)
    centre = features.centre + features.hop * encoder.centre
    assert clock.start + clock.step / 2 == pytest.approx(centre / 16000)
