"""Run folders of tiny CTC-attention recognisers of random weights, made in no time."""

import torch
from conftest import ROOT
from hyperpyyaml import load_hyperpyyaml, resolve_references

from cif_lobes.runs.stages import used_modules

YAML = ROOT / "recipes/MiniSpeech/hparams/ctc_attention.yaml"
KD_YAML = ROOT / "recipes/MiniSpeech/hparams/ctc_attention_kd.yaml"
EXTRACT_YAML = ROOT / "recipes/MiniSpeech/hparams/extract_ensemble.yaml"
TINY_ASR = {
    "cnn_channels": "[8, 8]",
    "rnn_layers": 1,
    "rnn_neurons": 32,
    "dnn_neurons": 32,
    "emb_size": 16,
    "dec_neurons": 32,
    "attn_dim": 32,
    "attn_channels": 4,
    "attn_kernel": 3,
    "vocab_size": 8,
    "batch_seconds": 6,
    "eval_batch_seconds": 10,
    "num_buckets": 3,
}


def overrides(corpus, folder, **changes):
    """Settings of a tiny network on the tone corpus, as YAML."""
    train, valid = corpus
    settings = {
        **TINY_ASR,
        "manifest_folder": folder / "manifests",
        "train_csv": train,
        "valid_csv": valid,
        "test_csv": f"[{valid}]",
        "output_folder": folder / "run",
        **changes,
    }
    return settings, "".join(f"{k}: {v}\n" for k, v in settings.items())


def make_run(corpus, folder, seed, **changes):
    """A run folder as training leaves it, of random weights; its path."""
    run = folder / f"teacher{seed}"
    _, text = overrides(corpus, folder, output_folder=run, seed=seed, **changes)
    (run / "save").mkdir(parents=True)
    with open(YAML) as file:
        resolved = resolve_references(file, text)
    (run / "hyperparams.yaml").write_text(resolved.getvalue())
    hparams = load_hyperpyyaml(resolved.getvalue())
    hparams["tokenizer"].fit(["abcd", "abc", "ab", "a"])
    vocabulary = hparams["tokenizer"].path
    (run / vocabulary.name).write_bytes(vocabulary.read_bytes())
    model = torch.nn.ModuleDict(used_modules(hparams))
    hparams["checkpointer"].add_recoverable("model", model)
    hparams["checkpointer"].save_checkpoint({"error_rate": 50.0, "epoch": 1})
    return run


def list_teachers(folder, *runs):
    """teachers.txt; its path."""
    path = folder / "teachers.txt"
    path.write_text("# the ensemble\n" + "".join(f"{run}\n" for run in runs))
    return path
