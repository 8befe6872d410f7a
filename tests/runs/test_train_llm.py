"""From a trained recogniser through an adapter into a language model, end to end."""

import json
import shutil

import pytest
import speechbrain as sb
import torch
from conftest import ROOT, epochs, last_checkpoint
from programs import interrupt, run_python
from speechbrain.dataio.batch import PaddedBatch
from tiny_llm import PIECES, make_llm
from tiny_llm_run import make_llm_run


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return make_llm(tmp_path_factory.mktemp("llm"))


def arguments(corpus, folder, trained, llm, **changes):
    settings = {
        "skip_prep": True,
        "data_folder": "none",
        "train_csv": corpus[0],
        "valid_csv": corpus[1],
        "test_csv": f"[{corpus[1]}]",
        "language": "zh",
        "error_unit": "char",
        "output_folder": folder / "run",
        "manifest_folder": folder / "manifests",
        "recognizer": trained,
        "llm": llm,
        "llm_width": 32,
        "cif_width": 32,
        "prompt": '"S:{speech}T:"',
        "number_of_epochs": 12,
        "batch_seconds": 4,
        "device_batch_seconds": 10,
        "lr": 3e-2,
        "num_workers": 0,
        "beam_size": 2,
        "device": "cpu",
        **changes,
    }
    return [part for k, v in settings.items() for part in (f"--{k}", str(v))]


def command():
    script = str(ROOT / "recipes/LibriSpeech/train_llm.py")
    return [script, str(ROOT / "recipes/MiniSpeech/hparams/llm.yaml")]


def run(words, check=True):
    return run_python([*command(), *words], check)


@pytest.mark.slow
def test_it_learns_and_holds_the_adapter_alone(corpus, tmp_path, trained, llm):
    """A model of random weights is taught to write what the vectors say."""
    trained = shutil.copytree(trained, tmp_path / "recognizer")
    words = arguments(corpus, tmp_path, trained, llm)
    before = {p: p.read_bytes() for p in trained.rglob("model.ckpt")}
    run(words)
    rows = epochs(tmp_path / "run")
    assert rows[-1]["train"]["loss"] < 0.7 * rows[0]["train"]["loss"]
    names = last_checkpoint(tmp_path / "run")
    assert {name.split(".")[0] for name in names} == {"adapter"}
    assert {p: p.read_bytes() for p in trained.rglob("model.ckpt")} == before
    results = json.loads((tmp_path / "run/run.json").read_text())["results"]
    assert results["set2"]["llm"] == llm and results["set2"]["beam"] == 2
    accuracy = [row["valid"]["accuracy"] for row in rows]
    assert accuracy[-1] > accuracy[0] + 0.05
    # Another language model than the one it has been trained for.
    other = make_llm(tmp_path / "other", seed=2)
    done = run([*words, "--test_only", "--llm", other], check=False)
    assert done.returncode == 1 and "trained with weights other than" in done.stderr
    done = run(
        [
            *words,
            "--test_only",
            "--llm",
            make_llm(tmp_path / "new", pieces=(*PIECES, "e")),
        ],
        check=False,
    )
    assert "trained with tokenizer and weights other than" in done.stderr
    # The same folder of a recogniser that has been trained on.
    for path in before:
        network = torch.load(path, weights_only=True)
        network["encoder.frontend.linear.bias"] += 0.1
        torch.save(network, path)
    done = run([*words, "--test_only"], check=False)
    assert "trained with recognizer other than" in done.stderr


@pytest.mark.slow
def test_resuming_equals_running_through(corpus, tmp_path, trained, llm):
    """Stopped within the second epoch, with random weights and LoRA in them."""
    settings = {"number_of_epochs": 2, "random_llm": True, "beam_size": 1}
    settings |= {"lora_rank": 2, "lora_targets": "[c_attn]"}
    through = arguments(corpus, tmp_path / "a", trained, llm, **settings)
    resumed = arguments(corpus, tmp_path / "b", trained, llm, **settings)
    run(through)
    save_often = ["--ckpt_interval_minutes", "0", "--ckpt_interval_steps", "1"]
    interrupt([*command(), *resumed, *save_often], "Going into epoch 2")
    assert len(epochs(tmp_path / "b/run")) == 1
    run(resumed)
    a, b = (last_checkpoint(tmp_path / f"{x}/run") for x in "ab")
    assert {name.split(".")[0] for name in a} == {"adapter", "lora"}
    assert all(torch.equal(a[name], b[name]) for name in a)
    done = run([*resumed, "--lora_rank", "3"], check=False)
    assert done.returncode == 1 and "trained with lora other than" in done.stderr
    assert epochs(tmp_path / "a/run")[-1] == epochs(tmp_path / "b/run")[-1]


def test_speeds_are_drawn_in_training_alone(corpus, tmp_path, trained, llm):
    """What is fired is of the recording at that speed; a cache may have it, too."""
    changes = {"speeds": [50], "freq_masks": 0}
    brain = make_llm_run(tmp_path / "run", trained, llm, corpus, **changes)
    waves = torch.randn(2, 16000)
    waves[1, 8000:] = 0.0
    lengths = torch.tensor([1.0, 0.5])
    rows = [
        {"id": str(i), "signal": waves[i, : int(16000 * n)]}
        for i, n in enumerate(lengths)
    ]
    found = {}
    for stage in (sb.Stage.TRAIN, sb.Stage.VALID):
        found[stage] = brain.listen(PaddedBatch(rows), stage)
    slow, asis = found[sb.Stage.TRAIN], found[sb.Stage.VALID]
    assert slow[0].shape == (2, 32000) and slow[1].on_host.tolist() == [32000, 16000]
    assert torch.equal(asis[0], waves) and asis[1].on_host.tolist() == [16000, 8000]
    vectors, number = brain.fire(PaddedBatch(rows), sb.Stage.TRAIN)
    hear, fire = brain.recognizer.hear, brain.recognizer.fire
    expected = fire(*hear(slow[0], slow[1].on_device))
    assert torch.equal(number, expected.lengths)
    assert torch.equal(vectors, expected.embeddings)


def test_masks_are_drawn_in_training_alone(corpus, tmp_path, trained, llm):
    """With all bands masked, nothing of the recording is left but its length."""
    changes = {"freq_masks": 1000, "freq_mask_width": 80}
    brain = make_llm_run(tmp_path / "run", trained, llm, corpus, **changes)
    signal = torch.randn(16000)
    batch = [{"id": "1", "signal": signal}]
    x, x_lengths = brain.recognizer.hear(signal[None], torch.tensor([16000]))
    silent, _ = brain.fire(PaddedBatch(batch), sb.Stage.TRAIN)
    assert torch.equal(silent, brain.recognizer.fire(0 * x, x_lengths).embeddings)
    clear, _ = brain.fire(PaddedBatch(batch), sb.Stage.VALID)
    assert torch.equal(clear, brain.recognizer.fire(x, x_lengths).embeddings)
    assert clear.shape != silent.shape or not torch.equal(clear, silent)


def test_widths_that_do_not_fit(corpus, tmp_path, trained, llm):
    words = arguments(corpus, tmp_path, trained, llm, llm_width=16)
    done = run(words, check=False)
    assert done.returncode == 1
    assert "llm_width is 16, that of the model is 32: --llm_width 32" in done.stderr
    assert "rejected" not in done.stdout, "before any recording is decoded"
    assert not (tmp_path / "run").exists()
