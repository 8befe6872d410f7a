"""A student, a teacher and waveforms, all small, that several tests share."""

import json

import torch
import transformers
from conftest import ROOT
from speechbrain.utils.checkpoints import Checkpointer
from torch.nn.utils.rnn import pad_sequence

from cif_lobes.nets.fithubert import FitHuBERT, HintedStudent
from cif_lobes.nets.pretrained import load_encoder

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


SMALL = {"d_model": 24, "nhead": 2, "d_ffn": 32, "position_kernel": 16}
SMALL |= {"position_groups": 2, "conv_dims": [8] * 9, "num_layers": 3}


def make_student(num_layers=3, teacher_width=32, dropout=0.0, **changes):
    """Small, with heads for all layers."""
    changes |= {"num_layers": num_layers, "dropout": dropout, "input_dropout": 0.0}
    student = FitHuBERT(**SMALL | changes)
    return HintedStudent(student, teacher_width, range(1, num_layers))


def write_student_run(folder, **changes):
    """What train_fithubert.py leaves behind; returns the student of the best epoch.

    The best is the first of two.
    """
    settings = "\n".join(f"            {k}: {v}" for k, v in (SMALL | changes).items())
    folder.mkdir(parents=True)
    (folder / "hyperparams.yaml").write_text(f"""\
modules:
    student: !new:cif_lobes.nets.fithubert.HintedStudent
        student: !new:cif_lobes.nets.fithubert.FitHuBERT
{settings}
        teacher_width: 32
        hint_layers: [1, 2]
""")
    best, last = make_student(**changes), make_student(**changes)
    for student, loss in ((best, 1.0), (last, 2.0)):
        model = torch.nn.ModuleDict({"student": student})
        checkpointer = Checkpointer(folder / "save", {"model": model})
        checkpointer.save_checkpoint(meta={"loss": loss, "epoch": int(loss)})
    return best.eval()


def make_hubert(folder):
    """Save a teacher as deep as HuBERT-base."""
    settings = {**TEACHER, "num_hidden_layers": 12, "hidden_size": 16}
    load_encoder(settings).encoder.save_pretrained(folder)


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
    """The teacher as transformers runs it, with the same weights as load_encoder's."""
    settings = {k: v for k, v in TEACHER.items() if k != "model_type"} | changes
    model = transformers.HubertModel(transformers.HubertConfig(**settings))
    model.load_state_dict(load_encoder(TEACHER).encoder.state_dict())
    return model.eval()


def cache_settings(manifest, path, **changes):
    """Those of a cache of the teacher over a manifest."""
    return {
        "teacher": TEACHER,
        "teacher_silence_seconds": 1.0,
        "max_rejected": 0.01,
        "layers": [1, 2, 3],
        "cache": str(path),
        "overwrite": False,
        "manifests": [str(manifest)],
        "sample_rate": 16000,
        "dtype": "float32",
        "batch_seconds": 4,
        "device": "cpu",
        **changes,
    }


def distil_arguments(corpus, folder):
    """Command line of the MiniSpeech recipe, on the tones."""
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
    return [str(script), str(yaml), *flags]
