"""A frozen student as features: its states, where its parameters come from, a whole run."""

import pathlib
import shutil

import pytest
import torch
from conftest import ROOT, TINY, last_checkpoint, train
from hyperpyyaml import load_hyperpyyaml
from programs import run_python
from tiny_hubert import (
    LENGTHS,
    SMALL,
    distil_arguments,
    in_batch,
    make_signals,
    write_student_run,
)

from cif_lobes.inference.export import export_run
from cif_lobes.inference.recognizer import CIFRecognizer
from cif_lobes.nets.fithubert import FitHuBERT, TimeNorm
from cif_lobes.nets.frozen_student import FrozenStudent, _sizes


def make_features(weighted_sum=False, **changes):
    return FrozenStudent(FitHuBERT(**SMALL | changes), weighted_sum)


@pytest.fixture(scope="module")
def student_run(tmp_path_factory):
    """A run folder and the student of its best epoch."""
    folder = tmp_path_factory.mktemp("distilled") / "run"
    return folder, write_student_run(folder)


# --- the module ---


def test_it_says_what_the_best_student_says(student_run):
    folder, hinted = student_run
    features = make_features()
    batch, lengths = in_batch(make_signals())
    before, _ = features(batch, lengths)
    features.load_run(folder)
    x, x_lengths = features(batch, lengths)
    expected, expected_lengths = hinted.student(batch, lengths)
    assert torch.equal(x_lengths, expected_lengths)
    assert torch.equal(features.output_lengths(lengths), x_lengths)
    for b, T in enumerate(x_lengths):
        torch.testing.assert_close(x[b, :T], expected[b, :T])
        assert not torch.allclose(x[b, :T], before[b, :T])


def test_a_weighted_sum_is_the_mean_until_it_has_learnt():
    features = make_features(weighted_sum=True)
    batch, lengths = in_batch(make_signals())
    x, _ = features(batch, lengths)
    layers = torch.stack(features.student.layer_outputs(batch, lengths))
    torch.testing.assert_close(x, layers.mean(0))
    with torch.no_grad():
        features.layer_logits[1] = 100.0
    torch.testing.assert_close(features(batch, lengths)[0], layers[1])


def test_nothing_but_the_weights_of_the_sum_is_trained():
    features = make_features(weighted_sum=True, dropout=0.5)
    batch, lengths = in_batch(make_signals())
    once, _ = features.eval()(batch, lengths)
    features.train()
    assert not any(module.training for module in features.student.modules())
    again, _ = features(batch, lengths)
    torch.testing.assert_close(again, once)
    again[:, :, 0].sum().backward()
    assert features.layer_logits.grad.abs().sum() > 0
    assert all(p.grad is None for p in features.student.parameters())


def test_the_centre_of_its_frames(monkeypatch):
    """A click there is heard by the frame alone, by both of the two it is made of."""
    torch.manual_seed(0)
    features = make_features(conv_dims=[32] * 9)
    frontend, t = features.student.frontend, 20
    samples = features.centre + t * features.hop
    click = torch.zeros(1, 16000)
    click[0, samples - 1 : samples + 1] = 1.0
    # The normalisation over time would let all frames hear it.
    monkeypatch.setattr(TimeNorm, "forward", lambda self, x, x_lengths: x)
    heard = frontend(click, torch.tensor([16000]))[0].abs().sum(2)[0]
    assert heard.nonzero().flatten().tolist() == [2 * t, 2 * t + 1]


def test_a_student_of_another_size_is_refused(student_run):
    folder, _ = student_run
    with pytest.raises(
        ValueError, match=r"project.weight is \[24, 8\] there, \[12, 8\] here"
    ):
        make_features(d_model=12).load_run(folder)
    with pytest.raises(ValueError, match="nhead is 2 there, 4 here"):
        make_features(nhead=4).load_run(folder)
    with pytest.raises(
        ValueError, match=r"layers\.3\.\S+ is None there, \[72, 24\] here"
    ):
        make_features(num_layers=4).load_run(folder)


def test_a_folder_without_student_is_refused(student_run, tmp_path):
    features = make_features()
    with pytest.raises(FileNotFoundError, match="not a run folder: .* train_fithubert"):
        features.load_run(tmp_path / "nothing")
    (tmp_path / "hyperparams.yaml").write_text("modules: {encoder: 1, decoder: 2}\n")
    with pytest.raises(ValueError, match="its modules are encoder, decoder"):
        features.load_run(tmp_path)
    unfinished = shutil.copytree(student_run[0], tmp_path / "run")
    for checkpoint in unfinished.glob("save/CKPT*"):
        shutil.rmtree(checkpoint)
    with pytest.raises(FileNotFoundError, match="no checkpoint of a whole epoch"):
        features.load_run(unfinished)


@pytest.mark.parametrize(
    "recipe, distillation",
    [("MiniSpeech", "fithubert_mini"), ("LibriSpeech", "fithubert_100h")],
)
def test_the_yamls_fit(recipe, distillation, tmp_path):
    """A student of the one is accepted by the other."""

    def student_of(name, module):
        path = ROOT / f"recipes/{recipe}/hparams/{name}.yaml"
        overrides = {"output_folder": str(tmp_path)}
        if name == "cif_fithubert":
            overrides["student_run"] = "x"
        with open(path) as file:
            hparams = load_hyperpyyaml(file, overrides)
        return hparams["modules"][module].student

    trained = student_of(distillation, "student")
    assert _sizes(trained) == _sizes(student_of("cif_fithubert", "features"))


# --- a whole run ---


@pytest.mark.slow
def test_the_recogniser_outlives_the_distillation(corpus, tmp_path):
    """Distil, train on it, delete it; score, export and recognise without it."""
    run_python(distil_arguments(corpus, tmp_path / "student"))
    student = tmp_path / "student/run"
    settings = {k: v for k, v in TINY.items() if k not in ("n_mels", "conv_channels")}
    train_csv, valid_csv = corpus
    settings |= {
        "student_run": student,
        "skip_prep": True,
        "train_csv": train_csv,
        "valid_csv": valid_csv,
        "test_csv": f"[{valid_csv}]",
        "output_folder": tmp_path / "run",
        "manifest_folder": tmp_path / "manifests",
        "device": "cpu",
        "pool_after": "[]",
    }
    flags = [part for k, v in settings.items() for part in (f"--{k}", str(v))]
    yaml = tmp_path / "cif_fithubert.yaml"
    # The tests' distillation is shallower than the recipe's.
    text = (ROOT / "recipes/MiniSpeech/hparams/cif_fithubert.yaml").read_text()
    yaml.write_text(text.replace("num_layers: 3\n", "num_layers: 2\n"))
    train([str(yaml), *flags], recipe="LibriSpeech")

    trained = last_checkpoint(student)
    saved = last_checkpoint(tmp_path / "run")
    names = [n for n in saved if n.startswith("features.student.")]
    assert len(names) > 20
    for name in names:
        before = trained["student.student." + name.removeprefix("features.student.")]
        assert torch.equal(saved[name], before), name

    shutil.rmtree(student)
    run = str(tmp_path / "run")
    for arguments in (
        ["evaluate.py", run, "--split", "valid"],
        ["tools/plot_alignment.py", run, "--out", str(tmp_path / "fires.png")],
    ):
        run_python(arguments)
    export_run(run, tmp_path / "exported")
    wave = torch.randn(max(LENGTHS))
    (a,) = CIFRecognizer.from_run(run).transcribe([wave])
    (b,) = CIFRecognizer.from_export(tmp_path / "exported").transcribe([wave])
    assert a == b
    settings = pathlib.Path(tmp_path / "exported/hyperparams.yaml").read_text()
    assert str(student) not in settings
