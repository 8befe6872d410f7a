"""Teachers, cache and student end to end, as the commands of the recipe do it."""

import json

import pytest
import torch
from conftest import ROOT, last_checkpoint
from programs import interrupt, run_python
from tiny_asr import EXTRACT_YAML, KD_YAML, TINY_ASR, YAML, list_teachers, overrides
from tiny_timit import write_corpus

SCRIPTS = ROOT / "recipes/TIMIT"


def arguments(corpus, folder, **changes):
    """Command line of a tiny run in folder, beside its manifests."""
    settings, _ = overrides(corpus, folder, **changes)
    flags = [part for k, v in settings.items() for part in (f"--{k}", str(v))]
    return [*flags, "--device", "cpu"]


def run(*command, processes=1):
    return run_python([*map(str, command)], processes=processes).stdout


def epochs(folder):
    lines = (folder / "epochs.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def taught(corpus, tmp_path_factory):
    """Folder with two trained teachers and their cache; the arguments that read it."""
    folder = tmp_path_factory.mktemp("taught")
    runs = [folder / f"teacher{seed}" for seed in (1, 2)]
    settings = {"lr": 5e-3, "warmup": 0.08, "hold": 0.84}
    settings |= {"freq_masks": 0, "silence_probability": 0, "number_of_epochs": 20}
    settings["batch_seconds"] = 3
    for seed, output in enumerate(runs, start=1):
        changes = {**settings, "output_folder": output, "seed": seed}
        run(SCRIPTS / "train.py", YAML, *arguments(corpus, folder, **changes))
    cache = folder / "ensemble.h5"
    out = run(
        ROOT / "extract_teacher.py",
        *(EXTRACT_YAML, "--teachers", list_teachers(folder, *runs), "--cache", cache),
        *("--manifest_folder", folder / "manifests", "--manifest", corpus[0]),
        *("--vocab_size", 8),
    )
    assert "48 utterances, 2 teachers" in out
    return folder, {"teacher_cache": cache, **settings}


@pytest.mark.slow
def test_a_student_learns_from_teachers_alone(corpus, taught):
    """kd_weight 1: no loss sees a transcript, and those on transcripts fall."""
    folder, settings = taught
    output = folder / "student"
    settings = {**settings, "output_folder": output}
    run(SCRIPTS / "train_kd.py", KD_YAML, *arguments(corpus, folder, **settings))
    rows = epochs(output)
    assert set(rows[-1]["train"]["losses"]) == {"seq_kd", "ctc_kd"}
    first, last = (rows[i]["valid"]["losses"] for i in (0, -1))
    assert last["ctc"]["value"] < 0.5 * first["ctc"]["value"]
    assert last["seq"]["value"] < 0.8 * first["seq"]["value"]
    names = {name.split(".")[0] for name in last_checkpoint(output)}
    expected = {"features", "encoder", "ctc_head", "embedding", "decoder", "seq_head"}
    assert names == expected, "no teacher in the student's checkpoint"
    note = json.loads((output / "teacher.json").read_text())
    assert len(note["teacher_weights"]) == len(note["teacher"]) == 2
    # Nor is one needed to recognise.
    settings["teacher_cache"] = folder / "lost.h5"
    command = [*arguments(corpus, folder, **settings), "--test_only"]
    run(SCRIPTS / "train_kd.py", KD_YAML, *command)


@pytest.mark.slow
def test_resuming_equals_running_through(corpus, taught):
    """Interrupted within an epoch, started from a teacher's weights, with dropout."""
    folder, settings = taught
    settings = {
        **settings,
        "pretrain": True,
        "pretrain_st_dir": folder / "teacher1",
        "kd_weight": 0.7,
        "strategy": "best",
        "number_of_epochs": 3,
        "freq_masks": 1,
        "temperature": 2.0,
    }
    for name in ("through", "resumed"):
        changes = {**settings, "output_folder": folder / name}
        command = [str(SCRIPTS / "train_kd.py"), str(KD_YAML)]
        command += arguments(corpus, folder, **changes)
        if name == "resumed":
            command += ["--ckpt_interval_minutes", "0", "--ckpt_interval_steps", "1"]
            interrupt(command, "Going into epoch 2")
        run(*command)
    terms = epochs(folder / "through")[-1]["train"]["losses"]
    assert set(terms) == {"seq", "ctc", "seq_kd", "ctc_kd"}
    expected, got = (last_checkpoint(folder / name) for name in ("through", "resumed"))
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name


@pytest.mark.slow
def test_torchrun_equals_one_process(corpus, taught):
    """Two processes, or one that takes an update in two passes: the same losses."""
    folder, settings = taught
    exact = {"dec_dropout": 0.0, "number_of_epochs": 2, "device_batch_seconds": 3}
    settings = {**settings, **exact}
    one = {**settings, "output_folder": folder / "one"}
    two = {**settings, "output_folder": folder / "two"}
    script = SCRIPTS / "train_kd.py"
    run(script, KD_YAML, *arguments(corpus, folder, **one))
    gloo = ["--distributed_backend", "gloo"]
    run(script, KD_YAML, *arguments(corpus, folder, **two), *gloo, processes=2)
    for a, b in zip(epochs(folder / "one"), epochs(folder / "two"), strict=True):
        assert a["updates"] == b["updates"]
        assert a["train"]["loss"] == pytest.approx(b["train"]["loss"], rel=1e-4)
        assert a["valid"]["loss"] == pytest.approx(b["valid"]["loss"], rel=1e-4)


@pytest.mark.slow
def test_timit(tmp_path):
    """From the LDC's folders to a phone error rate of a beam search."""
    settings = {
        **TINY_ASR,
        "data_folder": write_corpus(tmp_path / "timit", upper=True),
        "manifest_folder": tmp_path / "manifests",
        "output_folder": tmp_path / "run",
        "vocab_size": 12,
        "number_of_epochs": 1,
        "num_workers": 0,
        "beam_size": 3,
        "device": "cpu",
    }
    flags = [part for k, v in settings.items() for part in (f"--{k}", str(v))]
    out = run(SCRIPTS / "train.py", SCRIPTS / "hparams/ctc_attention.yaml", *flags)
    assert "test: PER" in out and "of 18 phones, 2 utterances" in out
    result = json.loads((tmp_path / "run/run.json").read_text())["results"]["test"]
    assert result["searcher"] == "S2SRNNBeamSearcher" and result["beam"] == 3
