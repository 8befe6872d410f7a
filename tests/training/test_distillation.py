"""Distillation in training: heads, caches that do not fit, and no teacher afterwards."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, last_checkpoint, load_module, tiny_arguments, train
from tiny_cache import WIDTH, make_cache

from cif_lobes.runs.cif import load_run

LAYERS = [4, 8, 12]
YAML = ROOT / "recipes/AISHELL-1/hparams/cif_mini_hieradist.yaml"


@pytest.fixture(scope="module")
def teacher(corpus, tmp_path_factory):
    """A cache of random states, one vector per letter, and its manifest folder."""
    return make_cache(corpus, tmp_path_factory.mktemp("teacher"), 12)


@pytest.fixture(scope="module")
def layered(corpus, tmp_path_factory):
    """The same with three layers."""
    return make_cache(corpus, tmp_path_factory.mktemp("layers"), LAYERS)


def arguments(corpus, folder, teacher, **changes):
    path, manifest_folder = teacher
    settings = {
        "teacher_cache": path,
        "manifest_folder": manifest_folder,
        **changes,
    }
    return [str(YAML), *tiny_arguments(corpus, folder, **settings)[1:]]


def test_both_losses_fall_and_no_teacher_remains(corpus, tmp_path, teacher):
    settings = {"number_of_epochs": 8, "lrd_weight": 0.1}
    train(arguments(corpus, tmp_path, teacher, **settings))
    lines = (tmp_path / "run/epochs.jsonl").read_text().splitlines()
    first, last = (json.loads(lines[i])["train"] for i in (0, -1))
    for name in ("acd", "lrd"):
        assert last["losses"][name]["value"] < first["losses"][name]["value"]
    assert last["acd_accuracy"] > first["acd_accuracy"]
    assert "acd" not in json.loads(lines[-1])["valid"]["losses"]
    names = last_checkpoint(tmp_path / "run")
    blocks = {name.split(".")[0] for name in names}
    heads = {"ctc_head", "distillation"}
    assert blocks == {"features", "encoder", "cif", "decoder"} | heads
    heads = {name.removesuffix(".weight") for name in names if "distillation" in name}
    assert heads - {name for name in heads if "bias" in name} == {
        "distillation.acd.head",
        "distillation.lrd.head",
    }


def test_gradient_norms_of_each_loss(corpus, tmp_path, teacher, capsys):
    train(arguments(corpus, tmp_path, teacher, number_of_epochs=1, lrd_weight=0.1))
    tool = load_module(ROOT / "tools/loss_gradients.py")
    rows = {}
    for untrained in (True, False):
        run = str(tmp_path / "run")
        words = [run, "--utterances", "5", *["--untrained"] * untrained]
        tool.main(*tool.parse_arguments(words))
        lines = capsys.readouterr().out.splitlines()[2:]
        names = [cell.strip() for cell in lines[0].split("|")[1:-1]]
        for line in lines[2:]:
            cells = dict(zip(names, line.split("|")[1:-1], strict=True))
            loss = cells.pop("loss").strip()
            rows[loss, untrained] = {k: float(value) for k, value in cells.items()}
    assert rows["lrd", True]["weight"] == 0.1
    ctc, acd, lrd = (rows[name, True] for name in ("ctc", "acd", "lrd"))
    assert ctc["encoder"] > 0 and ctc["cif"] == ctc["decoder"] == ctc["acd_head"] == 0
    assert acd["encoder"] > 0 and acd["acd_head"] > 0 and acd["decoder"] == 0
    assert lrd["encoder"] > 0 and lrd["decoder"] > 0 and lrd["acd_head"] == 0
    assert rows["ce", True] != rows["ce", False]


def test_gradient_norms_before_any_training(corpus, tmp_path, teacher, capsys):
    """Of a yaml and settings as train.py takes them; no folder is made."""
    tool = load_module(ROOT / "tools/loss_gradients.py")
    words = arguments(corpus, tmp_path, teacher, lrd_weight=0.1, distil_after=9)
    tool.main(*tool.parse_arguments([*words, "--utterances", "5"]))
    lines = capsys.readouterr().out.splitlines()
    names = [line.split("|")[1].strip() for line in lines if "|" in line]
    assert names[-5:] == ["ce", "quantity", "ctc", "acd", "lrd"]
    weight, *norms = map(float, lines[-1].split("|")[2:-1])
    assert weight == 0.1 and norms[0] > 0  # which distil_after would hold back
    assert not (tmp_path / "run").exists()


def test_a_teacher_may_leave_the_firing_alone(corpus, tmp_path, teacher):
    """The gradient of its losses, and nobody else's, ends at the weights of CIF."""
    tool = load_module(ROOT / "tools/loss_gradients.py")
    rows = []
    for detach in (True, False):
        settings = {"lrd_weight": 0.1, "distil_detach_weights": detach}
        yaml, *words = arguments(corpus, tmp_path, teacher, **settings)
        torch.manual_seed(0)
        rows.append(tool.measure(*tool.open_yaml(Path(yaml), words), 5)[0])
    detached, as_usual = rows
    for name in ("acd", "lrd"):
        assert detached[name]["cif"] == 0 < as_usual[name]["cif"]
        assert detached[name]["encoder"] > 0
    assert detached["lrd"]["decoder"] == pytest.approx(as_usual["lrd"]["decoder"])
    for name in ("ce", "quantity", "ctc"):
        assert detached[name] == pytest.approx(as_usual[name])


@pytest.mark.parametrize("gone", ["acd", "lrd"])
def test_a_weight_of_zero_builds_no_head(corpus, tmp_path, teacher, gone):
    settings = {"number_of_epochs": 1, f"{gone}_weight": 0}
    train(arguments(corpus, tmp_path, teacher, **settings))
    names = last_checkpoint(tmp_path / "run")
    assert not [name for name in names if gone in name]
    line = json.loads((tmp_path / "run/epochs.jsonl").read_text())
    assert set(line["train"]["losses"]) == {"ce", "quantity", "ctc"} | (
        {"acd", "lrd"} - {gone}
    )


def test_testing_needs_no_cache(corpus, tmp_path, teacher):
    settings = {"number_of_epochs": 1}
    train(arguments(corpus, tmp_path, teacher, **settings))
    settings["teacher_cache"] = tmp_path / "gone.h5"
    words = arguments(corpus, tmp_path, teacher, **settings)
    train([*words, "--test_only"])
    done = train(words, check=False)
    assert done.returncode and "gone.h5 does not exist" in done.stdout + done.stderr


def test_a_cache_of_other_text_is_refused(corpus, tmp_path, teacher):
    """Before training, naming the utterance and the remedy."""
    lines = corpus[0].read_text().splitlines()
    changed = lines[1].rsplit(",", 1)[0] + ",dada"
    other = corpus[0].parent / "other.csv"
    other.write_text("\n".join([lines[0], changed, *lines[2:]]) + "\n")
    words = arguments(corpus, tmp_path, teacher, train_csv=other)
    done = train(words, check=False)
    output = done.stdout + done.stderr
    assert done.returncode and "1 of 48 transcripts differ" in output
    assert "utt1-000" in output and "--overwrite True" in output
    assert not (tmp_path / "run/epochs.jsonl").exists()


def test_a_head_for_each_layer_and_none_afterwards(corpus, tmp_path, layered):
    """Train on all layers and go on; score, start from and look at the run without."""
    settings = {"number_of_epochs": 1, "lrd_weight": 0.1, "distil_after": 0}
    words = arguments(corpus, tmp_path, layered, **settings)
    train(words)
    train([*words, "--number_of_epochs", "2"])
    names = last_checkpoint(tmp_path / "run")
    for name in ("acd", "lrd"):
        assert names[f"distillation.{name}.head.weight"].shape == (
            len(LAYERS) * WIDTH,
            32,
        )
    lines = (tmp_path / "run/epochs.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert 0 <= json.loads(lines[-1])["train"]["acd_accuracy"] <= 1

    train([*words, "--test_only", "--teacher_cache", str(tmp_path / "gone.h5")])
    brain, _ = load_run(tmp_path / "run")
    brain.on_evaluate_start()
    assert set(brain.modules) == {"features", "encoder", "cif", "decoder", "ctc_head"}
    # Another run, from this one, learns two of the layers.
    settings |= {"teacher_layers": "[12, 4]", "init_from": tmp_path / "run"}
    train(arguments(corpus, tmp_path / "next", layered, **settings))
    head = last_checkpoint(tmp_path / "next/run")["distillation.acd.head.weight"]
    assert head.shape == (2 * WIDTH, 32)


def test_a_layer_that_the_cache_lacks_is_named(corpus, tmp_path, layered):
    words = arguments(corpus, tmp_path, layered, teacher_layers="[4, 6]")
    done = train(words, check=False)
    output = " ".join((done.stdout + done.stderr).split())
    assert "has layer [4, 8, 12] of the teacher, asked for is [4, 6]" in output
    assert "--layer '[4, 6]' --overwrite True" in output


@pytest.mark.slow
def test_torchrun_with_one_head(corpus, tmp_path, teacher):
    """A head without a loss would make DistributedDataParallel stop."""
    settings = {"number_of_epochs": 1, "lrd_weight": 0, "batch_seconds": 5}
    words = arguments(corpus, tmp_path, teacher, **settings)
    train([*words, "--distributed_backend", "gloo"], processes=2)
    assert (tmp_path / "run/epochs.jsonl").exists()
