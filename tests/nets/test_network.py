"""The network of the paper: sizes, padding, teacher forcing against stepping."""

import pathlib

import pytest
import torch
from conftest import speak, spoil_padding
from hyperpyyaml import load_hyperpyyaml
from speechbrain.lobes.features import Fbank

from cif_lobes.nets.decoder import MAX_TOKENS, CIFDecoder, DecoderState
from cif_lobes.nets.encoder import ConformerEncoder
from cif_lobes.nets.features import LogMel

ROOT = pathlib.Path(__file__).parents[2]


def count(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.fixture(scope="module")
def paper():
    """The objects of recipes/AISHELL-1/hparams/cif.yaml."""
    with open(ROOT / "recipes/AISHELL-1/hparams/cif.yaml") as file:
        overrides = {"data_folder": "none", "output_folder": "unused"}
        return load_hyperpyyaml(file, overrides)


def test_parameters_of_the_paper(paper):
    """Each block as published, and the one difference explained.

    Published: 47,208,587. SpeechBrain's relative attention projects queries, keys and
    values without bias: 3 x 256 fewer in each of 15 layers, 47,197,067 here.
    """
    encoder = paper["encoder"]
    assert count(encoder.frontend) == 1_345_280
    assert [count(layer) for layer in encoder.layers] == [2_634_496 - 3 * 256] * 15
    assert count(paper["cif"]) == 197_121
    assert count(paper["ctc_head"]) == 1_088_138
    assert count(paper["decoder"]) == 5_060_608
    total = sum(count(module) for module in paper["modules"].values())
    assert total == 47_208_587 - 15 * 3 * 256


def test_frame_rate_of_the_paper(paper):
    """One encoder frame is 80 ms: 8 feature frames of 10 ms."""
    seconds = torch.tensor([1.0, 4.0, 14.0])
    frames = paper["features"].output_lengths((seconds * 16000).long())
    encoded = paper["encoder"].output_lengths(frames)
    assert torch.allclose(encoded / seconds, torch.tensor(12.5), atol=0.6)


def small_encoder(pool_after=(1, 2), conv_strides=(2,)):
    torch.manual_seed(0)
    return ConformerEncoder(
        20, 16, 3, 2, 32, 7, pool_after, conv_channels=4, conv_strides=conv_strides
    ).eval()


@pytest.mark.parametrize("conv_strides", [(2,), (2, 2)])
@pytest.mark.parametrize("pool_after", [(), (1, 2), (3,)])
def test_encoder_alone_equals_in_a_batch(pool_after, conv_strides):
    """Whatever padding holds, NaN included, and down to a single feature frame."""
    encoder = small_encoder(pool_after, conv_strides)
    x_lengths = torch.tensor([150, 101, 64, 7, 2, 1])
    x = spoil_padding(torch.randn(6, 150, 20), x_lengths)
    together, lengths = encoder(x, x_lengths)
    assert torch.equal(lengths, encoder.output_lengths(x_lengths))
    for b, length in enumerate(x_lengths):
        alone, alone_lengths = encoder(x[b : b + 1, :length], x_lengths[b : b + 1])
        assert alone_lengths == lengths[b] == alone.shape[1]
        torch.testing.assert_close(together[b, : lengths[b]], alone[0])
        assert not together[b, lengths[b] :].any()


def test_last_frames_see_no_padding():
    """SpeechBrain's own convolution module would fail here: it masks too late."""
    encoder = small_encoder(())
    with torch.no_grad():  # a bias is what padding would show through
        for layer in encoder.layers:
            layer.convolution_module.layer_norm.bias.fill_(3.0)
    x = torch.randn(1, 60, 20)
    alone, lengths = encoder(x, torch.tensor([60]))
    padded = torch.nn.functional.pad(x, (0, 0, 0, 40))
    together, _ = encoder(padded, torch.tensor([60]))
    torch.testing.assert_close(together[:, : lengths[0]], alone)


def test_pool_after_a_layer_that_is_not_there():
    with pytest.raises(ValueError, match="layer 4 does not exist"):
        small_encoder((4,))


@pytest.mark.parametrize("normalization", ["speech", "sentence", "global"])
def test_features_alone_equal_in_a_batch(normalization):
    features = LogMel(n_mels=40, normalization=normalization).eval()
    lengths = torch.tensor([16000, 9001, 8000, 400, 1])
    waves = torch.randn(5, 16000)
    for wave, length in zip(waves, lengths, strict=True):
        wave[length:] = 0
    together, x_lengths = features(waves, lengths)
    for b, length in enumerate(lengths):
        alone, alone_lengths = features(waves[b : b + 1, :length], lengths[b : b + 1])
        assert alone.shape[1] == alone_lengths == x_lengths[b]
        torch.testing.assert_close(
            together[b, : x_lengths[b]], alone[0], atol=1e-4, rtol=1e-4
        )


def test_filters_and_window_are_those_of_speechbrain_and_move_with_the_module():
    """And are in no checkpoint, as there."""
    features, original = LogMel(n_mels=40), Fbank(n_fft=400, n_mels=40)
    wave = torch.randn(2, 8000)
    original.compute_STFT.center = False
    assert torch.equal(features.fbank(wave), original(wave))
    assert features.fbank.state_dict().keys() == original.state_dict().keys()
    assert features.double().fbank.compute_fbanks.filters.dtype == torch.float64
    assert features.fbank.compute_STFT.window.dtype == torch.float64


@pytest.mark.parametrize("normalization", ["speech", "sentence", "global"])
def test_silence_has_finite_features(normalization):
    features = LogMel(normalization=normalization).eval()
    x, _ = features(torch.zeros(1, 8000), torch.tensor([8000]))
    assert torch.isfinite(x).all()


def test_runs_made_before_have_the_features_they_were_trained_with():
    """Those of SpeechBrain, over all frames."""
    signal = torch.randn(1, 8000)
    x, _ = LogMel(n_mels=40)(signal, torch.tensor([8000]))
    fbank = Fbank(n_mels=40)(signal)
    # Bessel's correction is all that differs.
    wanted = (fbank - fbank.mean(1)) / fbank.std(1, correction=0)
    torch.testing.assert_close(x, wanted, atol=0.05, rtol=0)


@pytest.mark.parametrize("seconds", [0.5, 5])
@pytest.mark.parametrize("noise", [0.0, 1e-5])
def test_silence_moves_no_feature_of_speech(noise, seconds):
    """Before, behind and within; zeros and faint noise look alike, at any level."""
    features = LogMel(n_mels=40, normalization="speech").eval()
    speech = torch.from_numpy(speak("abcd"))
    half, silence = len(speech) // 2, noise * torch.randn(round(16000 * seconds))

    def extract(*parts):
        signal = torch.cat(parts)
        return features(signal[None], torch.tensor([len(signal)]))[0][0]

    alone = extract(speech)
    count, added = len(alone), round(100 * seconds)
    behind, before = extract(speech, silence), extract(silence, speech)
    within = extract(speech[:half], silence, speech[half:])
    # A window of the seam reads both.
    torch.testing.assert_close(behind[: count - 3], alone[:-3], atol=0.01, rtol=0)
    torch.testing.assert_close(before[added + 3 :], alone[3:], atol=0.01, rtol=0)
    seam = half // 160
    torch.testing.assert_close(within[: seam - 3], alone[: seam - 3], atol=0.01, rtol=0)
    assert torch.equal(behind[count + 3 : -3], behind[-4:-3].expand(added - 6, -1))
    for gain in 0.05, 20:
        torch.testing.assert_close(
            extract(gain * speech), alone, atol=1e-3, rtol=0, msg=f"at x {gain}"
        )


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    return CIFDecoder(11, d_model=16, num_layers=2, nhead=2, d_ffn=32).eval()


def test_steps_equal_teacher_forcing(decoder):
    """Longer than the state's first memory."""
    vectors, tokens = torch.randn(3, 40, 16), torch.randint(11, (3, 40))
    logits, _ = decoder(vectors, tokens)
    before, state = torch.zeros(3, 16), None
    for u in range(40):
        step, state = decoder.step(vectors[:, u], before, tokens[:, u], state)
        torch.testing.assert_close(step, logits[:, u], atol=1e-5, rtol=1e-5)
        before = vectors[:, u]


def test_an_utterance_beyond_the_positions_is_refused(decoder):
    state, before = DecoderState(), torch.zeros(1, 16)
    state.past = MAX_TOKENS
    with pytest.raises(ValueError, match="2,501 tokens in an utterance.*cut the audio"):
        decoder.step(before, before, torch.tensor([3]), state)


def test_decoder_is_causal(decoder):
    """A later token or vector changes no earlier step."""
    vectors, tokens = torch.randn(1, 6, 16), torch.randint(11, (1, 6))
    logits, states = decoder(vectors, tokens)
    vectors[:, 4:], tokens[:, 4:] = 7.0, 3
    changed, changed_states = decoder(vectors, tokens)
    torch.testing.assert_close(changed[:, :4], logits[:, :4])
    torch.testing.assert_close(changed_states[:, :4], states[:, :4])
    assert not torch.allclose(changed[:, 4:], logits[:, 4:])


def test_current_and_previous_vector_reach_a_step(decoder):
    """c_u joins above the layers, c_{u-1} below them; c_{u+1} not at all."""
    vectors = torch.randn(1, 5, 16, requires_grad=True)
    logits, _ = decoder(vectors, torch.randint(11, (1, 5)))
    (gradient,) = torch.autograd.grad(logits[0, 2].sum(), vectors)
    assert gradient[0].abs().sum(-1).bool().tolist() == [True] * 3 + [False] * 2


@pytest.fixture(scope="module")
def parallel():
    torch.manual_seed(0)
    options = {"d_model": 16, "num_layers": 2, "nhead": 2, "d_ffn": 32}
    return CIFDecoder(11, **options, autoregressive=False).eval()


def test_without_tokens_alone_equals_in_a_batch(parallel):
    """Whatever padding holds."""
    vectors, lengths = torch.randn(3, 6, 16), torch.tensor([6, 1, 4])
    spoil_padding(vectors, lengths)
    together = parallel(vectors, None, lengths)
    for b, length in enumerate(lengths):
        alone = parallel(vectors[b : b + 1, :length], None)
        for found, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(found[b, :length], expected[0])


def test_without_tokens_every_vector_reaches_every_step(parallel):
    vectors = torch.randn(1, 5, 16, requires_grad=True)
    logits, _ = parallel(vectors, None)
    for u in range(5):
        (gradient,) = torch.autograd.grad(
            logits[0, u].sum(), vectors, retain_graph=True
        )
        assert gradient[0].abs().sum(-1).bool().all()


def test_without_tokens_there_is_nothing_that_reads_them(parallel, decoder):
    """And every parameter is used: unused ones stop distributed training."""
    assert count(decoder) - count(parallel) == 11 * 16 + 2 * 16 * 16
    logits, _ = parallel(torch.randn(1, 5, 16), None)
    gradients = torch.autograd.grad(logits.square().sum(), [*parallel.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)
