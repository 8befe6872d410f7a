"""What a run folder holds beside checkpoints and record: settings, vocabulary, errors."""

import os
import pathlib
import time

from hyperpyyaml import resolve_references

from cif_lobes.settings.safe_yaml import inside
from cif_lobes.storage.atomic_files import atomic_open, write_atomically

# Of a run of train_llm.py, or its export: what the adapter was trained for.
LLM_NOTE = "llm.json"


def is_llm_run(folder):
    """Whether a folder is a run of train_llm.py or an export of one."""
    return pathlib.Path(folder, LLM_NOTE).exists()


def keep_settings(hparams, hparams_file, overrides):
    """Write hyperparams.yaml, as SpeechBrain does, but never half of it.

    The checkpoints of a run that goes on cannot be read without it.

    Arguments
    ---------
    hparams : dict
        The loaded yaml.
    hparams_file : str
        The recipe's yaml.
    overrides : str or dict
        Settings of the command line.
    """
    with open(hparams_file, encoding="utf-8") as file:
        resolved = resolve_references(file, overrides).getvalue()
    write_atomically(
        pathlib.Path(hparams["output_folder"]) / "hyperparams.yaml",
        f"# Generated {time.strftime('%Y-%m-%d')} from:\n"
        f"# {os.path.abspath(hparams_file)}\n# yamllint disable\n{resolved}",
    )


def kept_tokenizer(hparams):
    """The run folder's copy of the vocabulary."""
    return inside(hparams["output_folder"], hparams["tokenizer"].path)


def keep_tokenizer(hparams):
    """Copy the vocabulary: a run folder alone is enough to recognise speech."""
    path, kept = hparams["tokenizer"].path, kept_tokenizer(hparams)
    if not kept.exists():
        with atomic_open(kept, "wb") as file:
            file.write(path.read_bytes())
    elif kept.read_bytes() != path.read_bytes():
        raise ValueError(
            f"{path} is not the vocabulary that {kept.parent} was trained with: it has "
            f"been made again since. Train into another --output_folder, or go on with "
            f"the old one: cp {kept} {path}"
        )


def keep_figures(error_rate, path, record, name, figures):
    """Write down what has been printed.

    Arguments
    ---------
    error_rate : cif_lobes.decoding.scoring.ErrorRate
    path : str
        Of its errors_*.txt.
    record : cif_lobes.storage.record.RunRecord
    name : str
        Of the figures in it.
    figures : dict

    Returns
    -------
    str or None
        Why it could not be written.
    """
    try:
        error_rate.write(path)
        record.result(name, figures)
    except OSError as error:
        return str(error)
    return None
