"""A run of joint CTC-attention recognition, alone or taught by several others."""

from speechbrain.utils.distributed import run_on_main

from cif_lobes.cache.ensemble import open_ensemble_cache
from cif_lobes.data.batches import make_dataset
from cif_lobes.runs.init_from import take_parameters
from cif_lobes.runs.stages import (
    assemble,
    fit_tokenizer,
    start,
    train_and_score,
    used_modules,
)
from cif_lobes.runs.teacher import meet_cached_teacher
from cif_lobes.storage.parameters import read_parameters
from cif_lobes.training.ctc_attention import CTCAttentionBrain

HEADS = ("ctc_head", "seq_head")  # not taken from a pretrained network


def run(hparams_file, run_opts, overrides, prepare):
    """Prepare the data, train, and score; see `cif_lobes.runs` and `train_and_score`."""
    hparams, manifests = start(hparams_file, run_opts, overrides, prepare)
    tokenizer = hparams["tokenizer"]
    run_on_main(fit_tokenizer, args=[hparams, manifests["train"]])
    datasets = {
        name: make_dataset(path, tokenizer, hparams["sample_rate"])
        for name, path in manifests.items()
    }
    if hparams.get("kd_weight") and not run_opts.get("test_only"):
        teachers = open_ensemble_cache(hparams, manifests["train"])
        meet_cached_teacher(hparams, teachers.cache)
        teachers.teach(datasets["train"])
    brain = make_brain(hparams, run_opts)
    if hparams.get("pretrain") and not run_opts.get("test_only"):
        folder = hparams["pretrain_st_dir"]
        take_parameters(
            hparams["model"],
            read_parameters(folder),
            HEADS,
            f"pretrain_st_dir {folder}",
        )
    return train_and_score(brain, hparams_file, hparams, datasets)


def make_brain(hparams, run_opts):
    """The Brain of a loaded yaml."""
    return assemble(CTCAttentionBrain, hparams, run_opts, used_modules(hparams))
