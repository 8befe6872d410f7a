"""Small stand-ins that several tests share: a spoken corpus of tones, a tiny yaml."""

import csv
import importlib.util
import json
import os
import pathlib
import re

import numpy as np
import pytest
import soundfile
import torch
from programs import run_python

# One thread in this process and in every one it starts, whatever the caller exported:
# tests are small, and runs that are compared bit by bit must sum in the same order.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# The hub is never asked.
os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = pathlib.Path(__file__).parent.parent
PITCH = {"a": 300.0, "b": 700.0, "c": 1500.0, "d": 3000.0}  # Hz of each letter


def pytest_collection_modifyitems(items):
    """The longest test first: else one of two workers ends minutes after the other."""
    items.sort(key=lambda item: item.name != "test_commands_run_in_order")


def speak(text, rate=16000, seconds=0.24, seed=0):
    """A waveform that spells a text in tones: enough to learn, cheap to make."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    envelope = np.sin(np.pi * time / seconds) ** 2
    tones = [envelope * np.sin(2 * np.pi * PITCH[c] * time) for c in text]
    silence = np.zeros(int(0.1 * rate))
    audio = np.concatenate([silence, *tones, silence])
    return (0.3 * audio + 0.003 * rng.standard_normal(len(audio))).astype("float32")


def write_corpus(folder, count, seed, suffix="flac"):
    """Write recordings of random letters and their csv; return the csv's path."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"set{seed}.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["ID", "duration", "wav", "spk_id", "wrd"])
        for i in range(count):
            text = "".join(rng.choice(list(PITCH), rng.integers(2, 6)))
            audio = speak(text, seed=seed * 1000 + i)
            name = f"utt{seed}-{i:03d}.{suffix}"
            soundfile.write(folder / name, audio, 16000)
            row = [f"utt{seed}-{i:03d}", len(audio) / 16000, name, "s", text]
            writer.writerow(row)
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Train and validation csv of the tone corpus."""
    folder = tmp_path_factory.mktemp("tones")
    return write_corpus(folder, 48, 1), write_corpus(folder, 12, 2)


TINY = {
    "d_model": 32,
    "conv_channels": 8,
    "encoder_layers": 2,
    "pool_after": "[1]",
    "nhead": 2,
    "d_ffn": 64,
    "kernel_size": 5,
    "vocab_size": 8,
    "n_mels": 40,
    "number_of_epochs": 2,
    "num_checkpoints": 2,
    "batch_seconds": 10,
    "device_batch_seconds": 10,
    "eval_batch_seconds": 10,
    "num_buckets": 3,
    "num_workers": 0,
    "warmup": 0.1,
    "hold": 0.5,
    "lr": 2e-3,
}


def tiny_arguments(corpus, folder, **changes):
    """Command line of the AISHELL-1 recipe, tiny, on the tone corpus."""
    train, valid = corpus
    settings = {
        "skip_prep": True,
        "data_folder": "none",
        "train_csv": train,
        "valid_csv": valid,
        "test_csv": f"[{valid}]",
        "output_folder": folder / "run",
        "manifest_folder": folder / "manifests",
        "device": "cpu",
        **TINY,
        **changes,
    }
    yaml = ROOT / "recipes/AISHELL-1/hparams/cif_mini.yaml"
    flags = [part for k, v in settings.items() for part in (f"--{k}", str(v))]
    return [str(yaml), *flags]


def train(arguments, recipe="AISHELL-1", processes=1, check=True):
    """Run a recipe's train.py in its own process."""
    script = ROOT / "recipes" / recipe / "train.py"
    return run_python([script, *arguments], check, processes=processes)


def stop_after(updates, arguments):
    """Train in a process of its own, which Ctrl-C ends after so many updates."""
    code = f"""
import runpy, sys
from cif_lobes.training.recognizer import RecognizerBrain
step, done = RecognizerBrain.optimizers_step, []
def counted(self):
    step(self)
    done.append(1)
    self.interrupted = len(done) == {updates}
RecognizerBrain.optimizers_step = counted
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("recipes/AISHELL-1/train.py", run_name="__main__")
"""
    ended = run_python(["-c", code, *arguments], check=False)
    assert ended.returncode, "it should have been stopped"


def last_checkpoint(run):
    """Parameters of the newest checkpoint."""
    newest = max(run.glob("save/CKPT*"), key=os.path.getmtime)
    return torch.load(newest / "model.ckpt")


def load_module(path):
    """Import a script that is not part of a package, and what it has from neighbours."""
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(pathlib.Path(path).parent))
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def trained(corpus, tmp_path_factory):
    """Folder of a tiny run that has learnt the tones."""
    folder = tmp_path_factory.mktemp("trained")
    train(tiny_arguments(corpus, folder, number_of_epochs=24))
    return folder / "run"


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory):
    """Folder with the export of that run."""
    from cif_lobes.inference.export import export_run

    folder = tmp_path_factory.mktemp("exported") / "tones"
    export_run(trained, folder)
    return folder


@pytest.fixture(scope="session")
def exported_onnx(trained, tmp_path_factory):
    """Folder with its ONNX export."""
    from cif_lobes.inference.onnx_export import export_onnx

    folder = tmp_path_factory.mktemp("onnx") / "tones"
    export_onnx(trained, folder)
    return folder


@pytest.fixture(scope="session")
def utterances(corpus):
    """Validation utterances: file, waveform, text."""
    from cif_lobes.data.batches import read_audio
    from cif_lobes.data.manifest import read_manifest

    rows = read_manifest(corpus[1])
    return [(u.wav, read_audio(u.wav, 16000), u.wrd) for u in rows]


@pytest.fixture(scope="session")
def signals(utterances):
    """Waveforms of the validation utterances."""
    return [signal for _, signal, _ in utterances]


@pytest.fixture(scope="session")
def found_by_the_run(trained, signals):
    """Token ids that the training code's own searcher finds."""
    from speechbrain import Stage
    from speechbrain.dataio.batch import PaddedBatch

    from cif_lobes.runs.cif import load_run

    brain, _ = load_run(trained)
    brain.on_evaluate_start()
    brain.modules.eval()
    batch = PaddedBatch([{"signal": signal} for signal in signals])
    with torch.no_grad():
        return brain.transcribe(*brain.encode(batch, Stage.TEST), Stage.TEST)[0]


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """Folders of tiny speech encoders by family, and of a student's run; as str."""
    from tiny_ears import FAMILIES, make_folder
    from tiny_hubert import write_student_run

    folder = tmp_path_factory.mktemp("hub")
    made = {family: make_folder(family, folder / family) for family in FAMILIES}
    write_student_run(folder / "student")
    return {**made, "student": str(folder / "student")}


def pad(signals, value=0.0):
    """Batch and relative lengths, as SpeechBrain wants them."""
    lengths = torch.tensor([len(signal) for signal in signals])
    waves = torch.nn.utils.rnn.pad_sequence(signals, True, value)
    return waves, lengths / waves.shape[1]


def spoil_padding(x, lengths):
    """A batch [B, T, ...] with NaN behind the end of each: nothing may be read there."""
    for row, length in zip(x, lengths, strict=True):
        row[length:] = float("nan")
    return x


def epochs(run):
    """Rows of epochs.jsonl without their wall-clock times."""
    rows = [
        json.loads(line) for line in (run / "epochs.jsonl").read_text().split("\n")[:-1]
    ]
    for row in rows:
        row.pop("seconds")
        row["train"].pop("seconds")
        row["valid"].pop("seconds")
    return rows


def docs_files(text):
    """Files that a page shows, by path: `path`, a colon, and a block of code."""
    return dict(
        re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    )


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
