"""Pretrained ears as features: what they give, what learns, where they are kept."""

import shutil

import pytest
import torch
from tiny_ears import FAMILIES
from tiny_hubert import in_batch, make_signals

from cif_lobes.nets.ears import PretrainedEars
from cif_lobes.nets.kept_ears import (
    export_ears,
    find_ears,
    keep_ears,
    open_ears,
    read_note,
)


def make_ears(source, layers=(3,), width=32, **options):
    features = PretrainedEars(width, list(layers), **options)
    features.load(source)
    return features


@pytest.mark.parametrize("family", [*FAMILIES, "student"])
@pytest.mark.parametrize("pool, stack", [(1, 1), (2, 1), (2, 2), (3, 2)])
def test_alone_equals_in_a_batch(family, pool, stack, pretrained):
    width = 24 if family == "student" else 32
    features = make_ears(pretrained[family], (1, 3), width, pool=pool, stack=stack)
    signals = make_signals([16000, 9000, 4321, 300])
    batch, lengths = in_batch(signals, extra=3000)
    x, x_lengths = features(batch, lengths)
    assert torch.equal(x_lengths, features.output_lengths(lengths))
    for b, wave in enumerate(signals):
        alone, (T,) = features(wave[None], torch.tensor([len(wave)]))
        assert alone.shape == (1, T, stack * width) and T == x_lengths[b]
        torch.testing.assert_close(x[b, :T], alone[0], atol=2e-5, rtol=1e-4)
        assert not x[b, T:].any()


def test_pairs_are_averaged_and_an_odd_frame_stands_alone(pretrained):
    one, two = (make_ears(pretrained["hubert"], pool=n) for n in (1, 2))
    stacked = make_ears(pretrained["hubert"], pool=2, stack=2)
    wave, length = torch.randn(1, 9000), torch.tensor([9000])
    x, (T,) = one(wave, length)
    assert T == 27
    pairs, _ = two(wave, length)
    torch.testing.assert_close(pairs[0, 0], x[0, :2].mean(0))
    torch.testing.assert_close(pairs[0, 13], x[0, 26])
    four, (T,) = stacked(wave, length)
    assert T == 7
    torch.testing.assert_close(four[0, 0], pairs[0, :2].flatten())
    assert (one.hop, two.hop, stacked.hop) == (320, 640, 1280)
    # In the middle of what two frames of 400 samples read, 320 apart.
    assert (one.centre, two.centre) == (200, 360)


def test_a_weighted_sum_is_the_mean_until_it_has_learnt(pretrained):
    features = make_ears(pretrained["wavlm"], (2, 3), pool=1)
    batch, lengths = in_batch(make_signals())
    states, _ = features.encoder(batch, lengths)
    expected = features.norm((states[2] + states[3]) / 2)
    x, x_lengths = features(batch, lengths)
    T = x_lengths[2]
    torch.testing.assert_close(x[2, :T], expected[2, :T])
    x.square().sum().backward()
    assert features.layer_logits.grad.abs().sum() > 0


def test_states_from_a_cache_are_what_is_heard(pretrained):
    features = make_ears(pretrained["whisper"], (1, 3))
    batch, lengths = in_batch(make_signals())
    states, x_lengths = features.listen(batch, lengths)
    assert states.shape[2:] == (2, 32)
    ours, theirs = features(states, x_lengths), features(batch, lengths)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_frozen_encoder_is_no_part(pretrained):
    features = make_ears(pretrained["hubert"])
    assert sorted(features.state_dict()) == ["norm.bias", "norm.weight"]
    assert len(list(features.parameters())) == 2
    assert features.frozen_parameters() == sum(
        p.numel() for p in features.encoder.parameters()
    )
    batch, lengths = in_batch(make_signals())
    features.train()(batch, lengths)[0].square().sum().backward()
    assert all(p.grad is None for p in features.encoder.parameters())
    assert not any(m.training for m in features.encoder.modules())
    # But it goes where the others go.
    features.double()
    assert {p.dtype for p in features.encoder.parameters()} == {torch.float64}


def test_top_layers_learn_and_are_parts(pretrained):
    features = make_ears(pretrained["whisper"], trained=1)
    names = {name.split(".")[0] for name in features.state_dict()}
    assert names == {"norm", "top"}
    batch, lengths = in_batch(make_signals())
    features.train()
    assert not any(m.training for m in features.top.modules())
    learning = {id(p) for p in features.top.parameters()}
    features.learning = False
    features(batch, lengths)[0][..., 0].square().sum().backward()
    assert all(not p.grad.any() for p in features.top.parameters())
    features.learning = True
    features(batch, lengths)[0][..., 0].square().sum().backward()
    for name, p in features.encoder.named_parameters():
        assert (p.grad is not None) == (id(p) in learning), name
        assert p.grad is None or p.grad.any(), name
    before = features.weights_hash
    with torch.no_grad():
        features.top[0].fc1.weight.add_(1.0)
    assert features.weights_hash == before != features.encoder.weights_hash


# --- kept once, found again ---


def test_kept_once_and_found_again(pretrained, tmp_path):
    source = shutil.copytree(pretrained["wavlm"], tmp_path / "wavlm")
    features, store = make_ears(source), tmp_path / "ears"
    for seed in "12":
        (tmp_path / seed).mkdir()
        keep_ears(features, source, store, tmp_path / seed)
    assert [p.name for p in store.iterdir()] == [features.weights_hash]
    shutil.rmtree(source)
    again = PretrainedEars(32, [3])
    open_ears(again, tmp_path / "2")
    batch, lengths = in_batch(make_signals())
    assert torch.equal(again(batch, lengths)[0], features(batch, lengths)[0])
    # An export holds them, and needs neither run nor store.
    exported = tmp_path / "exported"
    exported.mkdir()
    export_ears(tmp_path / "1", exported)
    shutil.rmtree(store)
    assert find_ears(exported).parent == exported
    assert read_note(exported)["files"] == ["config.json", "model.safetensors"]
    with pytest.raises(
        FileNotFoundError, match=r"its ears, .*wavlm with weights .* are"
    ):
        find_ears(tmp_path / "1")
    # Another encoder in its place is not taken.
    shutil.copytree(pretrained["hubert"], tmp_path / "1" / "ears")
    with pytest.raises(FileNotFoundError, match="has others, with weights"):
        find_ears(tmp_path / "1")


def test_ears_that_do_not_fit_are_refused(pretrained):
    with pytest.raises(ValueError, match="width 32, ears_width is 16.*--ears_width 32"):
        make_ears(pretrained["hubert"], width=16)
    with pytest.raises(ValueError, match=r"layers 1 to 3, ears_layers names 4"):
        make_ears(pretrained["hubert"], (2, 4))
    with pytest.raises(ValueError, match="ears_layers is empty"):
        PretrainedEars(32, [])
    with pytest.raises(ValueError, match="have not been loaded"):
        PretrainedEars(32, [3])(torch.zeros(1, 9000), torch.tensor([9000]))
