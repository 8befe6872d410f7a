# %% [markdown]
# # From nothing to a recogniser, in two minutes on a CPU
#
#     python docs/tutorial.py [FOLDER]
#
# A script whose cells (`# %%`) Jupyter, VS Code and PyCharm run one by one. It makes a
# corpus, trains CIF on it, looks at how it fires, and uses what was trained in the ways that
# there are. Run it from the folder that holds `recipes/`.

# %%
import csv
import pathlib
import sys
import tempfile

import numpy as np
import soundfile
import torch

from cif_lobes.cif import CIF
from cif_lobes.inference.export import export_run
from cif_lobes.inference.recognizer import CIFRecognizer
from cif_lobes.runs.cif import run

torch.set_num_threads(1)
given = [word for word in sys.argv[1:] if not word.startswith("-")]
folder = pathlib.Path(given[0] if given else tempfile.mkdtemp())
RATE = 16000

# %% [markdown]
# ## A corpus
#
# Here, letters that are tones. With speech it is the same: a csv with ID, duration, wav,
# spk_id and wrd, its paths relative to it (docs/own_recordings.md).

# %%
PITCH = {"a": 300, "b": 700, "c": 1500, "d": 3000}  # Hz


def speak(text, generator):
    """A waveform that spells a text, a quarter of a second a letter."""
    time = np.arange(RATE // 4) / RATE
    swell = np.sin(np.pi * 4 * time) ** 2
    tones = [0.3 * swell * np.sin(2 * np.pi * PITCH[c] * time) for c in text]
    silence = np.zeros(RATE // 10)
    audio = np.concatenate([silence, *tones, silence])
    return (audio + 0.003 * generator.standard_normal(len(audio))).astype("float32")


def make_corpus(name, count, seed):
    """Recordings of random letters; the path of their csv."""
    generator = np.random.default_rng(seed)
    path = folder / f"{name}.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["ID", "duration", "wav", "spk_id", "wrd"])
        for i in range(count):
            text = "".join(generator.choice(list(PITCH), generator.integers(2, 7)))
            audio = speak(text, generator)
            soundfile.write(folder / f"{name}{i}.wav", audio, RATE)
            row = [f"{name}{i}", len(audio) / RATE, f"{name}{i}.wav", "one", text]
            writer.writerow(row)
    return str(path)


folder.mkdir(parents=True, exist_ok=True)
train_csv, valid_csv = make_corpus("train", 64, 1), make_corpus("dev", 16, 2)

# %% [markdown]
# ## Continuous integrate-and-fire, by itself
#
# Weights are added up frame by frame. Where their sum reaches the threshold, a vector fires:
# the weighted sum of the frames since the last fire. In training the weights are scaled so
# that as many fire as there are tokens.

# %%
cif = CIF(input_size=8).eval()
frames = torch.randn(1, 20, 8)
with torch.no_grad():
    fired = cif(frames, torch.tensor([20]), target_lengths=torch.tensor([5]))
print("vectors", tuple(fired.embeddings.shape), "ends in frames", fired.boundaries[0])

# %% [markdown]
# ## Training
#
# What `python recipes/AISHELL-1/train.py recipes/AISHELL-1/hparams/cif_mini.yaml` does, with
# settings that are small enough for tones. Stopped and run again, it goes on.

# %%
settings = {
    "skip_prep": True,
    "data_folder": "none",
    "train_csv": train_csv,
    "valid_csv": valid_csv,
    "test_csv": [valid_csv],
    "output_folder": str(folder / "run"),
    "manifest_folder": str(folder / "manifests"),
    "vocab_size": 8,
    "d_model": 32,
    "d_ffn": 64,
    "nhead": 2,
    "encoder_layers": 2,
    "pool_after": [1],
    "conv_channels": 8,
    "kernel_size": 5,
    "n_mels": 40,
    "number_of_epochs": 24,
    "batch_seconds": 10,
    "device_batch_seconds": 10,
    "lr": 2e-3,
    "warmup": 0.1,
    "num_workers": 0,
}
results = run(
    "recipes/AISHELL-1/hparams/cif_mini.yaml", {"device": "cpu"}, settings, prepare=None
)
error = results["dev"]["error_rate"]
print(f"{error:.1f} % of the letters of dev are wrong")

# %% [markdown]
# ## Use it
#
# A recogniser gives text, and each token with its times and how sure the network was. An
# export is one folder without the training, which others can use, and SpeechBrain too.

# %%
recording, text = folder / "hello.wav", "abcdbdac"
soundfile.write(recording, speak(text, np.random.default_rng(3)), RATE)
recognizer = CIFRecognizer.from_run(folder / "run", {"beam_size": 4})
transcript = recognizer.transcribe(recording)
print(f"said {text}, heard {transcript.text}")
for token in transcript.tokens:
    print(
        f"  {token.token}  {token.start:.2f} to {token.end:.2f} s  {token.confidence:.2f}"
    )
for other in transcript.nbest[1:]:
    print(f"  or {other.text}, log-probability {other.score:.1f}")

# %%
if not (folder / "export").exists():
    export_run(folder / "run", folder / "export")
exported = CIFRecognizer.from_export(folder / "export")
print("the export says", exported.transcribe(recording).text)

# %% [markdown]
# ## Where to go
#
# - your own recordings, a few hours of them: docs/own_recordings.md
# - a teacher for it: docs/train.md, "Distil"
# - your own loss, encoder or corpus: docs/extending.md
# - files, streams, ONNX, a page that listens: docs/recognise.md, docs/serve.md
