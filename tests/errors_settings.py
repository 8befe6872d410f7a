"""Bad settings and folders, for docs/errors.md."""

import json
from unittest import mock

import torch
from conftest import ROOT
from typed import refused

from cif_lobes.devices.processes import check_device
from cif_lobes.inference.export import open_export, open_run
from cif_lobes.runs.resume import check_network, check_parameters, check_updates
from cif_lobes.settings.cli import parse
from cif_lobes.settings.safe_yaml import inside, read_settings
from cif_lobes.storage.checkpoints import SafeCheckpointer
from cif_lobes.storage.lock import lock_run

TITLE = "Settings and folders"
YAML = ROOT / "recipes/AISHELL-1/hparams/cif_mini.yaml"


def _train(words):
    return parse(words, YAML, "Train.")


def _option(*words):
    """What the command line of a training says."""
    return refused(_train, *words)


def _yaml(text, needed=()):
    def cause(folder):
        (folder / "hyperparams.yaml").write_text(text)
        read_settings(folder / "hyperparams.yaml", *needed)

    return cause


def _network(folder):
    """A run of 4 outputs goes on with 5."""
    (folder / "hyperparams.yaml").write_text("vocab_size: 4\n")
    model = torch.nn.ModuleDict({"ctc_head": torch.nn.Linear(2, 4)})
    SafeCheckpointer(folder / "save", {"model": model}).save_checkpoint()
    check_network(folder, {"ctc_head": torch.nn.Linear(2, 5)}, {"vocab_size": 5})


def _heads(folder):
    """A run with a CTC head goes on without one."""
    (folder / "hyperparams.yaml").write_text("ctc_weight: 0.5\n")
    modules = {"encoder": torch.nn.Linear(2, 2), "ctc_head": torch.nn.Linear(2, 4)}
    model = torch.nn.ModuleDict(modules)
    SafeCheckpointer(folder / "save", {"model": model}).save_checkpoint()
    del model["ctc_head"]
    check_parameters(folder, model, {"ctc_weight": 0, "init_from": None})


def _updates(folder):
    """A run goes on with twice the batch_seconds."""
    (folder / "hyperparams.yaml").write_text("batch_seconds: 100\n")
    settings = {"batch_seconds": 200, "init_from": None}
    check_updates(folder, 1006, 503, settings)


def _device(folder):
    with mock.patch("torch.cuda.device_count", return_value=0):
        check_device("cuda:1")


def _link(folder):
    (folder / "run").mkdir()
    (folder / "secret").touch()
    (folder / "run/chars.txt").symlink_to(folder / "secret")
    inside(folder / "run", "chars.txt")


def _at_work(folder):
    owner = {"host": "gpu7", "pid": 1234, "since": "2026-11-26 10:00:00"}
    (folder / "run").mkdir()
    (folder / "run/run.lock").write_text(json.dumps(owner))
    lock_run(folder / "run")


def _another_kind(folder):
    (folder / "save").mkdir()
    (folder / "hyperparams.yaml").write_text("modules: {student: 1}\n")
    open_run(folder)


CASES = {
    "`--lr abc`": _option("--lr", "abc"),
    "`--lr 0`": _option("--lr", "0"),
    "`--d_model 255`": _option("--d_model", "255"),
    "`--num_workers -1`": _option("--num_workers", "-1"),
    "`--number_of_epochs ten`": _option("--number_of_epochs", "ten"),
    "`--ctc_weight -1`": _option("--ctc_weight", "-1"),
    "`--tail_threshold 5`": _option("--tail_threshold", "5"),
    "`--num_checkpoints 0`": _option("--num_checkpoints", "0"),
    "`--average mean`": _option("--average", "mean"),
    "`--speeds 90`": _option("--speeds", "90"),
    "`--skip_prep no`": _option("--skip_prep", "no"),
    "`--device gpu`": _option("--device", "gpu"),
    "`--num_epochs 3`": _option("--num_epochs", "3"),
    "`--lr` without a value": _option("--lr"),
    "a run goes on with another network": _network,
    "a run goes on with `--ctc_weight 0`": _heads,
    "a run goes on with `--batch_seconds 200`, before 100": _updates,
    "a folder in which another training is at work": _at_work,
    "`!apply:os.system [ls]` in a run's yaml": _yaml(
        "a: 1\nb: !apply:os.system [ls]\n"
    ),
    "a tuple in a run's yaml": _yaml("a: (1, 2)\n"),
    "a yaml that is none": _yaml("- 1\n"),
    "a bracket that is never closed": _yaml("a: [1, 2\nb: 3\n"),
    "`!ref` to a setting that is not there": _yaml("a: !ref <lost>\n"),
    "a run's yaml without a setting that is needed": _yaml("a: 1\n", ["tokenizer"]),
    "a vocabulary that is a link out of its folder": _link,
    "a run of another kind where a recogniser is expected": _another_kind,
    "`--device cuda:1` without a GPU": _device,
    "no run folder": open_run,
    "no export": open_export,
}
