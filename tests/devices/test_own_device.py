"""Everything of a training is on the device of its process."""

import pytest
import torch
from conftest import ROOT

from cif_lobes.devices import processes
from cif_lobes.runs import coldec, speech_llm, stages
from cif_lobes.settings.cli import parse


@pytest.fixture
def gpus(monkeypatch):
    """A machine with four GPUs, and this process the third of its kind."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda: torch.device("cuda")
    )
    return monkeypatch


@pytest.mark.parametrize(
    "typed, alone, third",
    [
        (None, "cuda", "cuda:2"),
        ("cuda", "cuda", "cuda:2"),
        ("cuda:1", "cuda:1", "cuda:1"),
        ("cpu", "cpu", "cpu"),
    ],
)
def test_own_device(gpus, typed, alone, third):
    gpus.delenv("LOCAL_RANK", raising=False)
    assert processes.own_device(typed) == alone
    gpus.setenv("LOCAL_RANK", "2")
    assert processes.own_device(typed) == third


def test_one_that_is_not_there(gpus):
    with pytest.raises(
        ValueError, match="--device cuda:4: this machine has cpu, cuda:0"
    ):
        processes.own_device("cuda:4")


class Asked(Exception):
    """With the device that a frozen recogniser was asked to be on."""


@pytest.mark.parametrize("kind, yaml", [(speech_llm, "llm"), (coldec, "coldec")])
@pytest.mark.parametrize("typed", [[], ["--device", "cuda"]])
def test_what_is_frozen_is_where_the_training_is(
    gpus, corpus, tmp_path, kind, yaml, typed
):
    """Without --device, and with one that torchrun's processes share."""

    def ask(path, device):
        raise Asked(device)

    gpus.setenv("LOCAL_RANK", "2")
    gpus.setattr(stages, "ddp_init_group", lambda run_opts: None)
    # It would change what all of pytest's process logs.
    gpus.setattr(stages.sb, "create_experiment_directory", lambda folder: None)
    gpus.setattr(kind, "FrozenRecognizer", ask)
    path = ROOT / f"recipes/MiniSpeech/hparams/{yaml}.yaml"
    settings = {
        "output_folder": tmp_path,
        "train_csv": corpus[0],
        "valid_csv": corpus[1],
    }
    if yaml == "llm":
        settings |= {
            "skip_prep": True,
            "test_csv": "[]",
            "llm": "none",
            "language": "zh",
        }
    words = [part for k, v in settings.items() for part in (f"--{k}", str(v))]
    arguments = parse([str(path), *words, *typed], path, "A test.")
    prepare = [None] if yaml == "llm" else []
    with pytest.raises(Asked, match="cuda:2"):
        kind.run(*arguments, *prepare)
    assert arguments[1]["device"] == "cuda:2"
