"""FitHuBERT's student: its size, its frames, and that it does not see padding."""

import pytest
import torch
from tiny_hubert import LENGTHS, in_batch, make_signals, make_student, plain_teacher

from cif_lobes.nets.fithubert import FitHuBERT, HintedStudent, TimeNorm


def test_it_has_the_published_size():
    student = FitHuBERT()
    assert sum(p.numel() for p in student.parameters()) == 21_200_096
    hinted = HintedStudent(student)
    # The published 22,492,064 are one head and a module that nothing calls.
    head = sum(p.numel() for p in hinted.heads["12"].parameters())
    assert 21_200_096 + head + 2 * 480**2 + 480 == 22_492_064
    assert len(hinted.heads) == 12


def test_it_has_as_many_frames_as_hubert():
    """Of every length between two frames, and for odd and even numbers of frames."""
    teacher, student = plain_teacher(), make_student().eval()
    lengths = torch.arange(400, 400 + 2 * 320)
    expected = teacher._get_feat_extract_output_lengths(lengths)
    assert torch.equal(student.student.frontend.output_lengths(lengths), expected)
    for length in (400, 719, 720, 1039, 1040, 1360):
        wave = torch.randn(1, length)
        states, x_lengths = student(wave, torch.tensor([length]))
        frames = teacher(wave).last_hidden_state.shape[1]
        assert {s.shape[1] for s in states.values()} == {frames} == {int(x_lengths)}
        x, x_lengths = student.student(wave, torch.tensor([length]))
        assert x.shape[1] == int(x_lengths) == (frames + 1) // 2


def test_an_utterance_shorter_than_a_frame_has_one():
    batch, lengths = in_batch(make_signals([5000, 100]))
    student = make_student().eval()
    states, x_lengths = student(batch, lengths)
    alone, _ = student(batch[1:, :100], lengths[1:])
    assert x_lengths.tolist() == [15, 1]
    torch.testing.assert_close(states[3][1, :1], alone[3][0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_student_does_not_see_padding(mode):
    """All layers; torch has another path through its Transformer for eval."""
    torch.manual_seed(0)
    student = make_student().train(mode == "train")
    signals = make_signals()
    with torch.set_grad_enabled(mode == "train"):
        states, x_lengths = student(*in_batch(signals, extra=3000))
        x, _ = student.student(*in_batch(signals, extra=3000))
        for b, wave in enumerate(signals):
            alone, (T,) = student(wave[None], torch.tensor([len(wave)]))
            assert T == x_lengths[b]
            for n in states:
                torch.testing.assert_close(
                    states[n][b, :T], alone[n][0], atol=1e-5, rtol=1e-4
                )
            last, (T,) = student.student(wave[None], torch.tensor([len(wave)]))
            torch.testing.assert_close(x[b, :T], last[0], atol=1e-5, rtol=1e-4)
            assert not x[b, T:].any()


def test_padding_gets_no_gradient_and_changes_none():
    signals = make_signals()
    gradients = []
    for extra in (0, 4000):
        torch.manual_seed(0)
        student, (batch, lengths) = make_student(), in_batch(signals, extra)
        batch.requires_grad_()
        states, x_lengths = student(batch, lengths)
        sum(
            s[b, :T].sum() for s in states.values() for b, T in enumerate(x_lengths)
        ).backward()
        for b, length in enumerate(lengths):
            assert not batch.grad[b, length:].any()
        gradients.append(batch.grad[:, : max(LENGTHS)])
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)


def test_time_norm_is_group_norm_where_nothing_is_padded():
    x = 3 + 2 * torch.randn(2, 4, 50)
    ours, theirs = TimeNorm(4), torch.nn.GroupNorm(4, 4)
    for norm in (ours, theirs):
        torch.nn.init.constant_(norm.weight, 1.5)
        torch.nn.init.constant_(norm.bias, 0.5)
    normed = ours(x, torch.tensor([50, 50]))
    torch.testing.assert_close(normed, theirs(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(x, torch.tensor([50, 50])), normed), "not in float32"


def test_only_taught_layers_get_a_head():
    student = make_student().student
    assert set(HintedStudent(student, 32, []).heads) == {"3"}
    assert set(HintedStudent(student, 32, [2]).heads) == {"2", "3"}
    with pytest.raises(ValueError, match="hint_layers: 3 is none of the layers 1 to 2"):
        HintedStudent(student, 32, [3])
