"""Distillation of a speech encoder: its loss, that it learns, that it resumes."""

import json
import signal

import pytest
import torch
from conftest import last_checkpoint
from programs import interrupt, run_python
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.epoch_loop import EpochCounter
from tiny_hubert import TEACHER, distil_arguments, make_student

from cif_lobes.data.batches import train_loader_options
from cif_lobes.nets.pretrained import load_encoder
from cif_lobes.runs.fithubert import make_audio_dataset, make_brain
from cif_lobes.storage.checkpoints import SafeCheckpointer
from cif_lobes.training.fithubert import FitHuBERTBrain, Predictions
from cif_lobes.training.ledger import Ledger
from cif_lobes.training.schedules import RiseAndFall

# --- the loss ---


class Loss(FitHuBERTBrain):
    """The loss alone."""

    def __init__(self, hint_weight):
        self.hparams = torch.nn.Module()
        self.hparams.hint_weight = hint_weight
        self.ledger, self.distributed_launch = Ledger(), False
        self.start_scoring()

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


def test_what_is_unexplained_does_not_depend_on_the_batch():
    """Against the mean of the whole set, in one batch or in two unlike ones."""
    x_lengths = torch.tensor([5, 3])
    teacher = (torch.randn(2, 5, 8) + torch.tensor([0.0, 9.0])[:, None, None],)
    student = {0: teacher[0] + 0.5 * torch.randn(2, 5, 8)}
    brain = Loss(0.1)
    brain(student, teacher, x_lengths, stage="valid")
    together = brain.scores()["unexplained"]
    brain.start_scoring()
    for i in (0, 1):
        part = slice(i, i + 1)
        brain({0: student[0][part]}, (teacher[0][part],), x_lengths[part], "valid")
    assert brain.scores()["unexplained"] == pytest.approx(together)
    real = [torch.cat([x[0], x[1, :3]]) for x in (student[0], teacher[0])]
    spread = (real[1] - real[1].mean(0)).square().sum()
    expected = (real[0] - real[1]).square().sum() / spread
    assert together == pytest.approx(float(expected), rel=1e-5)


def test_the_loss_is_zero_for_a_perfect_student_whatever_is_padded():
    x_lengths = torch.tensor([5, 3])
    teacher = tuple(torch.randn(2, 5, 8) for _ in range(4))
    student = {n: teacher[n].clone() for n in (1, 3)}
    student[1][1, 3:], student[3][1, 3:] = 1e6, torch.nan
    brain = Loss(0.1)
    assert brain(student, teacher, x_lengths, stage="valid") == 0
    assert brain.scores()["unexplained"] == 0


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
        "checkpointer": SafeCheckpointer(folder / "save", {"counter": counter}),
        "lr_scheduler": RiseAndFall(0.01, 0.25),
        "number_of_epochs": epochs,
        "hint_weight": 0.1,
        "num_checkpoints": 1,
        "seed": 1,
        "max_grad_norm": float("inf"),
        "tf32": False,
    }
    options = {"device": "cpu", "noprogressbar": True}
    brain = make_brain(hparams, options, load_encoder(TEACHER))
    loader = train_loader_options(train, 6, 6, 2, "random", 1, 0)
    padded = {"collate_fn": PaddedBatch}
    brain.fit(
        counter, train, valid, train_loader_kwargs=loader, valid_loader_kwargs=padded
    )
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
    fresh = load_encoder(TEACHER).state_dict()
    for name, weight in brain.teacher.state_dict().items():
        assert torch.equal(weight, fresh[name]), name
    teachers = {id(p) for p in brain.teacher.parameters()}
    optimized = [p for g in brain.optimizer.param_groups for p in g["params"]]
    assert not teachers & {id(p) for p in [*optimized, *brain.modules.parameters()]}
    names = set(last_checkpoint(folder))
    assert {name.split(".")[1] for name in names} == {"student", "heads"}
    assert names == set(brain.hparams.model.state_dict())


# --- the recipe ---


@pytest.mark.slow
def test_resuming_equals_running_through(corpus, tmp_path):
    """With dropout, interrupted within the second epoch."""
    run_python(distil_arguments(corpus, tmp_path / "a"))
    resumed = distil_arguments(corpus, tmp_path / "b")
    resumed += ["--ckpt_interval_steps", "1", "--ckpt_interval_minutes", "0"]
    interrupt(resumed, "Going into epoch 2")
    assert len((tmp_path / "b/run/epochs.jsonl").read_text().splitlines()) < 3
    run_python(resumed)
    expected, got = (last_checkpoint(tmp_path / f"{run}/run") for run in "ab")
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name
    assert json.loads((tmp_path / "a/run/run.json").read_text())["parameters"]
    note = json.loads((tmp_path / "a/run/teacher.json").read_text())
    teacher = load_encoder({**TEACHER, "num_hidden_layers": 2})
    assert note["teacher_weights"] == teacher.weights_hash
