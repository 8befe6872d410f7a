"""Pretrained encoders of every family: alone as in a batch, as transformers, saved."""

import pytest
import torch
import transformers
from tiny_ears import FAMILIES, make_encoder
from tiny_hubert import in_batch, make_signals

from cif_lobes.nets.pretrained import load_encoder


@pytest.mark.parametrize("family", [*FAMILIES, "student"])
def test_alone_equals_in_a_batch(family, pretrained):
    encoder = load_encoder(pretrained[family], silence_seconds=0.3)
    signals = make_signals([16000, 9000, 4321, 300])
    batch, lengths = in_batch(signals, extra=3000)
    with torch.no_grad():
        states, x_lengths = encoder(batch, lengths)
        assert torch.equal(x_lengths, encoder.output_lengths(lengths))
        assert len(states) == encoder.num_layers + 1
        for b, wave in enumerate(signals):
            alone, (T,) = encoder(wave[None], torch.tensor([len(wave)]))
            assert T == x_lengths[b]
            for ours, theirs in zip(states, alone, strict=True):
                assert theirs.shape == (1, T, encoder.width)
                torch.testing.assert_close(ours[b, :T], theirs[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "whisper"])
def test_it_says_what_transformers_says(family, pretrained):
    """Of one utterance without padding, which is where transformers is right."""
    encoder = load_encoder(pretrained[family])
    plain = transformers.AutoModel.from_pretrained(pretrained[family]).eval()
    wave = torch.randn(1, 9000)
    if family in ("wav2vec2-large", "data2vec"):
        extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
        given = extractor(wave[0].numpy(), sampling_rate=16000, return_tensors="pt")
        expected = plain(given.input_values)
    else:
        expected = plain(wave)
    with torch.no_grad():
        states, _ = encoder(5 * wave, torch.tensor([9000]))
    torch.testing.assert_close(
        states[-1], expected.last_hidden_state, atol=1e-4, rtol=1e-3
    )


def test_whisper_with_30_s_is_the_whisper_of_transformers(pretrained):
    plain = transformers.AutoModel.from_pretrained(pretrained["whisper"]).encoder.eval()
    wave = 0.1 * torch.randn(16000)
    extractor = transformers.WhisperFeatureExtractor()
    given = extractor(wave.numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        expected = plain(given.input_features).last_hidden_state
        encoder = load_encoder(pretrained["whisper"], silence_seconds=29.0)
        states, (T,) = encoder(wave[None], torch.tensor([16000]))
        short = load_encoder(pretrained["whisper"], silence_seconds=0.3)
        other, _ = short(wave[None], torch.tensor([16000]))
    assert T == 50 and states[-1].shape == (1, 50, 32)
    torch.testing.assert_close(states[-1], expected[:, :50], atol=1e-4, rtol=1e-3)
    assert (other[-1] - expected[:, :50]).norm() > 0.01 * expected[:, :50].norm()


def test_whisper_refuses_what_has_no_position(pretrained):
    encoder = load_encoder(pretrained["whisper"], silence_seconds=1.0)
    assert encoder.max_samples == 29 * 16000
    wave = torch.zeros(1, 29 * 16000 + 1)
    with pytest.raises(ValueError, match=r"29.0 s is longer .* hear: 29.0 s"):
        encoder(wave, torch.tensor([wave.shape[1]]))


@pytest.mark.parametrize("family", [*FAMILIES, "student"])
def test_saved_and_read_again_it_is_the_same(family, pretrained, tmp_path):
    encoder = load_encoder(pretrained[family])
    encoder.save(tmp_path)
    again = load_encoder(tmp_path)
    assert again.weights_hash == encoder.weights_hash
    batch, lengths = in_batch(make_signals())
    with torch.no_grad():
        ours, theirs = encoder(batch, lengths)[0], again(batch, lengths)[0]
    assert torch.equal(ours[-1], theirs[-1])


@pytest.mark.parametrize("family", [*FAMILIES, "student"])
def test_the_gradient_ends_below_the_layers_that_are_trained(family, pretrained):
    encoder = load_encoder(pretrained[family])
    trained = torch.nn.ModuleList(encoder.top_layers(1)).requires_grad_()
    batch, lengths = in_batch(make_signals())
    encoder(batch, lengths)[0][-1].square().sum().backward()
    learning = {id(p) for p in trained.parameters()}
    for name, p in encoder.named_parameters():
        assert (p.grad is not None) == (id(p) in learning), name
    with pytest.raises(ValueError, match="ears_trained is 9, the ears have 3 layers"):
        encoder.top_layers(9)


def test_it_stays_in_eval_mode(tmp_path):
    encoder = make_encoder("hubert", tmp_path)
    torch.nn.ModuleList([encoder]).train()
    assert not any(module.training for module in encoder.modules())


def test_what_cannot_hear_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is a bert model, must be one of hubert"):
        load_encoder({"model_type": "bert"})
    with pytest.raises(FileNotFoundError, match="ears folder .* correct --ears"):
        load_encoder(str(tmp_path / "nothing"))
