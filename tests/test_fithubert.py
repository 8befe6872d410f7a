"""FitHuBERT: student, teacher, the traps between them, and a distillation that learns."""

import json
import signal
import subprocess
import sys

import pytest
import torch
import transformers
from conftest import ROOT, last_checkpoint
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from torch.nn.utils.rnn import pad_sequence

from cif_lobes.dataio import train_loader_options
from cif_lobes.fithubert import FitHuBERT, HintedStudent, TimeNorm
from cif_lobes.fithubert_brain import (
    FitHuBERTBrain,
    Predictions,
    check_teacher,
    make_audio_dataset,
    make_brain,
)
from cif_lobes.ledger import Ledger
from cif_lobes.speech_teachers import SpeechTeacher

TEACHER = {
    "model_type": "hubert",
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "layerdrop": 0.9,
}
LENGTHS = [16000, 9000, 4321]  # samples; 49, 27 and 13 frames


def make_student(num_layers=3, teacher_width=32, **changes):
    """Small, with heads for all layers, without dropout."""
    small = {"d_model": 24, "nhead": 2, "d_ffn": 32, "position_kernel": 16}
    small |= {"position_groups": 2, "dropout": 0.0, "input_dropout": 0.0}
    student = FitHuBERT([8] * 9, num_layers=num_layers, **small | changes)
    return HintedStudent(student, teacher_width, range(1, num_layers))


def make_signals(lengths=LENGTHS):
    """Waveforms of these lengths, each of another loudness."""
    generator = torch.Generator().manual_seed(0)
    return [
        0.1 * i * torch.randn(n, generator=generator) for i, n in enumerate(lengths, 1)
    ]


def in_batch(signals, extra=0):
    """Padded batch with more padding behind the longest, and lengths."""
    batch = pad_sequence(signals, batch_first=True)
    lengths = torch.tensor([len(s) for s in signals])
    return torch.nn.functional.pad(batch, (0, extra)), lengths


def plain_teacher(**changes):
    """The teacher as transformers runs it, with the same weights as SpeechTeacher's."""
    settings = {k: v for k, v in TEACHER.items() if k != "model_type"} | changes
    model = transformers.HubertModel(transformers.HubertConfig(**settings))
    model.load_state_dict(SpeechTeacher(TEACHER).encoder.state_dict())
    return model.eval()


# --- the student ---


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


# --- the teacher, and its traps ---


@pytest.mark.parametrize("kind", ["hubert", "wav2vec2"])
def test_the_teacher_says_what_transformers_says(kind):
    """Without padding, which is where transformers is right."""
    teacher = SpeechTeacher({**TEACHER, "model_type": kind})
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
    teacher, plain = SpeechTeacher(TEACHER), plain_teacher()
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
    teacher = SpeechTeacher(TEACHER)
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
    teacher = SpeechTeacher(TEACHER)
    assert teacher.encoder.config.layerdrop == 0
    assert all(len(teacher.train()(batch, lengths)[0]) == 4 for _ in range(5))


def test_trap_frames_do_not_match():
    """As many layers, of the right width, but 25 frames a second."""
    check_teacher(make_student(), SpeechTeacher(TEACHER))
    strides = [5, 2, 2, 2, 2, 2, 4]
    slow = SpeechTeacher({**TEACHER, "conv_stride": strides})
    with pytest.raises(ValueError, match="400 samples, every 320, .* 400, every 640"):
        check_teacher(make_student(), slow)
    with pytest.raises(ValueError, match="has 2 layers, the teacher 3"):
        check_teacher(make_student(num_layers=2), SpeechTeacher(TEACHER))
    with pytest.raises(ValueError, match="teacher_width is 16, .* --teacher_width 32"):
        check_teacher(make_student(teacher_width=16), SpeechTeacher(TEACHER))


def test_a_random_teacher_is_always_the_same():
    torch.manual_seed(1)
    one, drawn = SpeechTeacher(TEACHER), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn), "it moved the random numbers of the run"
    other = SpeechTeacher(TEACHER)
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name]), name


def test_a_teacher_from_a_folder(tmp_path):
    plain = plain_teacher()
    plain.save_pretrained(tmp_path / "hubert")
    batch, lengths = in_batch(make_signals())
    states, _ = SpeechTeacher(tmp_path / "hubert")(batch, lengths)
    expected, _ = SpeechTeacher(TEACHER)(batch, lengths)
    torch.testing.assert_close(states[3], expected[3])


def test_a_teacher_that_cannot_teach(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist: correct --teacher"):
        SpeechTeacher(tmp_path / "nothing")
    with pytest.raises(ValueError, match="is a bert model, must be one of hubert"):
        SpeechTeacher({"model_type": "bert"})
    with pytest.raises(ValueError, match="feat_extract_norm 'layer', must be 'group'"):
        SpeechTeacher({**TEACHER, "feat_extract_norm": "layer"})
    plain_teacher().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(ValueError, match="weights are not in the checkpoint.*layers.3"):
        SpeechTeacher(tmp_path)


# --- the loss ---


class Loss(FitHuBERTBrain):
    """The loss alone."""

    def __init__(self, hint_weight):
        self.hparams = torch.nn.Module()
        self.hparams.hint_weight = hint_weight
        self.ledger = Ledger()

    def __call__(self, student, teacher, x_lengths, stage="train"):
        return self.compute_objectives(
            Predictions(student, teacher, x_lengths), None, stage
        )


def test_the_loss_is_the_weighted_mean_squared_error_of_real_frames():
    x_lengths = torch.tensor([5, 3])
    teacher = tuple(torch.randn(2, 5, 8) for _ in range(4))
    student = {n: torch.randn(2, 5, 8) for n in (1, 2, 3)}
    loss = Loss(0.1)(student, teacher, x_lengths)
    errors = [
        torch.cat([(student[n] - teacher[n])[0], (student[n] - teacher[n])[1, :3]])
        for n in (1, 2, 3)
    ]
    one, two, three = (e.square().mean() for e in errors)
    torch.testing.assert_close(loss / 8, three + 0.1 * (one + two))


def test_the_loss_is_zero_for_a_perfect_student_whatever_is_padded():
    x_lengths = torch.tensor([5, 3])
    teacher = tuple(torch.randn(2, 5, 8) for _ in range(4))
    student = {n: teacher[n].clone() for n in (1, 3)}
    student[1][1, 3:], student[3][1, 3:] = 1e6, torch.nan
    brain = Loss(0.1)
    assert brain(student, teacher, x_lengths, stage="valid") == 0
    assert brain.ledger.summary()["unexplained"] == 0


# --- training ---


def train_tiny(corpus, folder, student, epochs=4):
    """Distil in this process; return the Brain."""
    train, valid = (make_audio_dataset(path, 16000) for path in corpus)
    counter = EpochCounter(epochs)
    folder.mkdir()
    hparams = {
        "output_folder": folder,
        "modules": {"student": student},
        "optimizer": lambda p: torch.optim.AdamW(p, 0.01, (0.9, 0.98), 1e-6),
        "checkpointer": Checkpointer(folder / "save", {"counter": counter}),
        "lr": 0.01,
        "warmup": 0.25,
        "number_of_epochs": epochs,
        "hint_weight": 0.1,
        "num_checkpoints": 1,
        "seed": 1,
        "max_grad_norm": float("inf"),
    }
    options = {"device": "cpu", "noprogressbar": True}
    brain = make_brain(hparams, options, SpeechTeacher(TEACHER))
    loader = train_loader_options(train, 6, 2, "random", 1, 0)
    brain.fit(counter, train, valid, train_loader_kwargs=loader)
    return brain


@pytest.fixture(scope="module")
def distilled(corpus, tmp_path_factory):
    """A Brain that has distilled the tones, and its folder."""
    folder = tmp_path_factory.mktemp("distilled") / "run"
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "signal", lambda *handler: None)
        return train_tiny(corpus, folder, make_student(dropout=0.1)), folder


def test_it_learns(distilled):
    _, folder = distilled
    rows = [json.loads(r) for r in (folder / "epochs.jsonl").read_text().splitlines()]
    assert rows[-1]["valid"]["loss"] < 0.7 * rows[0]["valid"]["loss"]
    assert rows[-1]["valid"]["unexplained"] < 0.9
    terms = rows[-1]["train"]["losses"]
    assert {n: t["weight"] for n, t in terms.items()} == {
        "layer_1": 0.1,
        "layer_2": 0.1,
        "layer_3": 1.0,
    }


def test_the_learning_rate_rises_and_falls_to_zero(distilled):
    """A quarter of 4 epochs up, three quarters down."""
    _, folder = distilled
    rows = [json.loads(r) for r in (folder / "epochs.jsonl").read_text().splitlines()]
    rates = [row["learning_rate"] for row in rows]
    assert rates == pytest.approx([0.01, 0.02 / 3, 0.01 / 3, 0])


def test_the_teacher_is_never_trained_and_never_saved(distilled):
    brain, folder = distilled
    assert not any(module.training for module in brain.teacher.modules())
    fresh = SpeechTeacher(TEACHER).state_dict()
    for name, weight in brain.teacher.state_dict().items():
        assert torch.equal(weight, fresh[name]), name
    teachers = {id(p) for p in brain.teacher.parameters()}
    optimized = [p for g in brain.optimizer.param_groups for p in g["params"]]
    assert not teachers & {id(p) for p in [*optimized, *brain.modules.parameters()]}
    names = set(last_checkpoint(folder))
    assert {name.split(".")[1] for name in names} == {"student", "heads"}
    assert names == set(brain.hparams.model.state_dict())


# --- the recipe ---


def arguments(corpus, folder):
    """Command line of the recipe on the tones."""
    train, valid = corpus
    settings = {
        "skip_prep": True,
        "train_csv": train,
        "valid_csv": valid,
        "output_folder": folder / "run",
        "number_of_epochs": 3,
        "batch_seconds": 10,
        "num_buckets": 3,
        "num_workers": 0,
        "num_layers": 2,
        "hint_layers": "[1]",
        "teacher": json.dumps({**TEACHER, "num_hidden_layers": 2}),
        "teacher_width": 32,
        "device": "cpu",
    }
    yaml = ROOT / "recipes/MiniSpeech/hparams/fithubert_mini.yaml"
    script = ROOT / "recipes/LibriSpeech/train_fithubert.py"
    flags = [part for k, v in settings.items() for part in (f"--{k}", str(v))]
    return [sys.executable, str(script), str(yaml), *flags]


@pytest.mark.slow
def test_resuming_equals_running_through(corpus, tmp_path):
    """With dropout, interrupted within the second epoch."""
    subprocess.run(arguments(corpus, tmp_path / "a"), check=True, cwd=ROOT)
    resumed = arguments(corpus, tmp_path / "b")
    resumed += ["--ckpt_interval_steps", "1", "--ckpt_interval_minutes", "0"]
    process = subprocess.Popen(
        resumed,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    for line in process.stdout:
        if "Going into epoch 2" in line:
            process.send_signal(signal.SIGINT)
    assert process.wait() == 1
    assert len((tmp_path / "b/run/epochs.jsonl").read_text().splitlines()) < 3
    subprocess.run(resumed, check=True, cwd=ROOT)
    expected, got = (last_checkpoint(tmp_path / f"{run}/run") for run in "ab")
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name
    assert json.loads((tmp_path / "a/run/run.json").read_text())["parameters"]
