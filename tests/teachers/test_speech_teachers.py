"""Speech teachers: what they say, the traps around them, and what cannot teach."""

import json

import pytest
import torch
import transformers
from tiny_hubert import (
    TEACHER,
    in_batch,
    make_signals,
    make_student,
    plain_teacher,
)

from cif_lobes.nets.pretrained import load_encoder
from cif_lobes.training.fithubert import check_teacher


@pytest.mark.parametrize("kind", ["hubert", "wav2vec2"])
def test_the_teacher_says_what_transformers_says(kind):
    """Without padding, which is where transformers is right."""
    teacher = load_encoder({**TEACHER, "model_type": kind})
    settings = teacher.encoder.config.to_dict() | {"layerdrop": 0.0}
    config = transformers.AutoConfig.for_model(**settings)
    plain = transformers.AutoModel.from_config(config).eval()
    plain.load_state_dict(teacher.encoder.state_dict())
    wave = torch.randn(2, 6000)
    states, x_lengths = teacher(wave, torch.tensor([6000, 6000]))
    expected = plain(wave, output_hidden_states=True).hidden_states
    assert x_lengths.tolist() == [expected[0].shape[1]] * 2
    for ours, theirs in zip(states, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert not any(s.requires_grad for s in states)


def test_trap_padding_moves_the_group_norm():
    """transformers lets an utterance change with its neighbours; our teacher does not."""
    signals = make_signals()
    batch, lengths = in_batch(signals, extra=8000)
    teacher, plain = load_encoder(TEACHER), plain_teacher()
    states, x_lengths = teacher(batch, lengths)
    attended = (torch.arange(batch.shape[1]) < lengths[:, None]).long()
    moved = plain(batch, attended).last_hidden_state
    for b, wave in enumerate(signals):
        alone, (T,) = teacher(wave[None], torch.tensor([len(wave)]))
        for n in range(4):
            torch.testing.assert_close(
                states[n][b, :T], alone[n][0], atol=1e-5, rtol=1e-4
            )
        error = (moved[b, :T] - alone[3][0]).norm() / alone[3][0].norm()
        assert error > 0.01, "transformers now masks: TimeNorm may go"


def test_trap_train_mode():
    """A frozen model among modules is switched to train mode, and then says otherwise."""
    batch, lengths = in_batch(make_signals())
    teacher = load_encoder(TEACHER)
    before, _ = teacher(batch, lengths)
    modules = torch.nn.ModuleDict({"teacher": teacher, "plain": plain_teacher()})
    modules.train()
    assert modules["plain"].training
    assert not any(module.training for module in teacher.modules())
    after, _ = teacher(batch, lengths)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_trap_layer_drop():
    """transformers leaves dropped layers out of hidden_states: 3 may be layer 1."""
    batch, lengths = in_batch(make_signals())
    torch.manual_seed(0)
    plain = plain_teacher(mask_time_prob=0.05).train()
    assert len(plain(batch, output_hidden_states=True).hidden_states) < 4
    teacher = load_encoder(TEACHER)
    assert teacher.encoder.config.layerdrop == 0
    assert all(len(teacher.train()(batch, lengths)[0]) == 4 for _ in range(5))


def test_trap_frames_do_not_match():
    """As many layers, of the right width, but 25 frames a second."""
    check_teacher(make_student(), load_encoder(TEACHER))
    strides = [5, 2, 2, 2, 2, 2, 4]
    slow = load_encoder({**TEACHER, "conv_stride": strides})
    with pytest.raises(ValueError, match="400 samples, every 320, .* 400, every 640"):
        check_teacher(make_student(), slow)
    with pytest.raises(ValueError, match="has 2 layers, the teacher 3"):
        check_teacher(make_student(num_layers=2), load_encoder(TEACHER))
    with pytest.raises(ValueError, match="teacher_width is 16, .* --teacher_width 32"):
        check_teacher(make_student(teacher_width=16), load_encoder(TEACHER))


def test_a_random_teacher_is_always_the_same():
    torch.manual_seed(1)
    one, drawn = load_encoder(TEACHER), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn), "it moved the random numbers of the run"
    other = load_encoder(TEACHER)
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name]), name


def test_a_teacher_from_a_folder(tmp_path):
    plain = plain_teacher()
    plain.save_pretrained(tmp_path / "hubert")
    batch, lengths = in_batch(make_signals())
    states, _ = load_encoder(tmp_path / "hubert")(batch, lengths)
    expected, _ = load_encoder(TEACHER)(batch, lengths)
    torch.testing.assert_close(states[3], expected[3])


def test_a_teacher_that_cannot_teach(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist: correct --teacher"):
        load_encoder(tmp_path / "nothing", name="teacher")
    with pytest.raises(ValueError, match="is a bert model, must be one of hubert"):
        load_encoder({"model_type": "bert"}, name="teacher")
    plain_teacher().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(ValueError, match="weights are not in the checkpoint.*layers.3"):
        load_encoder(tmp_path)
