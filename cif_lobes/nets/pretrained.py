"""Speech encoders where they are kept: a folder, the hub, a run of train_fithubert.py."""

import json
import os
import pathlib

import torch
from safetensors.torch import load_file

from cif_lobes.nets.fithubert import FitHuBERT
from cif_lobes.nets.frozen_student import read_student
from cif_lobes.nets.speech_encoder import (
    MADE_OF_STUDENT,
    StudentEars,
    WaveformEncoder,
    WhisperEars,
)

KINDS = ("hubert", "wav2vec2", "wavlm", "data2vec-audio", "whisper")


def load_encoder(source, silence_seconds=1.0, name="ears"):
    """The speech encoder of a folder, of the hub, or of a run of train_fithubert.py.

    Arguments
    ---------
    source : str or dict
        See `load_model`; or the output folder of a train_fithubert.py.
    silence_seconds : float
        See `cif_lobes.nets.speech_encoder.WhisperEars`; the others hear the utterance alone.
    name : str
        What it is to who asks, for messages.

    Returns
    -------
    cif_lobes.nets.speech_encoder.SpeechEncoder

    Raises
    ------
    FileNotFoundError, ValueError
        See `load_model`.
    """
    folder = pathlib.Path("" if isinstance(source, dict) else source)
    if (folder / MADE_OF_STUDENT).is_file():
        settings = json.loads((folder / MADE_OF_STUDENT).read_text())
        student = FitHuBERT(**settings)
        student.load_state_dict(load_file(folder / "model.safetensors"))
        return StudentEars(student, settings)
    if (folder / "hyperparams.yaml").is_file():
        settings, parameters = read_student(folder)
        student = FitHuBERT(**settings["student"])
        inner = {k: v for k, v in parameters.items() if k.startswith("student.")}
        student.load_state_dict({k.partition(".")[2]: v for k, v in inner.items()})
        return StudentEars(student, settings["student"])
    model = load_model(source, name)
    if model.config.model_type == "whisper":
        import transformers

        extractor = transformers.WhisperFeatureExtractor(model.config.num_mel_bins)
        mel_filters = torch.tensor(extractor.mel_filters, dtype=torch.float32)
        return WhisperEars(model, mel_filters, silence_seconds)
    return WaveformEncoder(model)


def load_model(source, name):
    """The HuggingFace model of a folder or of the hub, in float32; of Whisper, its encoder.

    Arguments
    ---------
    source : str or dict
        Folder (read with the hub off), or a name on the hub. Or a configuration,
        `model_type` and what differs from its default: random weights, always the same.
    name : str
        What it is to who asks, and the option that names it: ears or teacher.

    Returns
    -------
    transformers.PreTrainedModel

    Raises
    ------
    FileNotFoundError
        If source looks like a path and is no folder.
    ValueError
        If it is another kind of model, weights are missing, or it cannot be had.
    """
    # Here: recognisers without such ears start without transformers.
    import transformers
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    if isinstance(source, dict):
        return _random(source, name)
    source = os.fspath(source)
    is_folder = os.path.isdir(source)
    if not is_folder and source.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"{name} folder {source} does not exist: correct --{name}"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(
            source, local_files_only=is_folder
        )
    except OSError as error:
        where = (
            "folder lacks" if is_folder else "no such folder, and the hub has not given"
        )
        raise ValueError(
            f"{name} {source}: {where} its config.json. Correct --{name}, or give a folder "
            f"({str(error).splitlines()[0]})"
        ) from None
    _check_kind(config, f"{name} {source}", name)
    alone = config.architectures == [WhisperEncoder.__name__]  # as `save` leaves it
    cls = WhisperEncoder if alone else transformers.AutoModel
    model, report = cls.from_pretrained(
        source,
        dtype=torch.float32,
        output_loading_info=True,
        local_files_only=is_folder,
    )
    # The mask of pre-training is used in train mode only.
    unused = {"masked_spec_embed"}
    missing = sorted(k for k in report["missing_keys"] if k not in unused)
    if missing:
        raise ValueError(
            f"{name} {source}: {len(missing):,} weights are not in the checkpoint and "
            f"would be random, first {missing[0]}: the files do not belong together, or "
            "config.json names another architecture"
        )
    return model.encoder if config.model_type == "whisper" and not alone else model


def _random(settings, name):
    """The model of a configuration; its weights are the same in every run."""
    import transformers
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    settings = dict(settings)
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    _check_kind(config, name, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if config.model_type == "whisper":
            return WhisperEncoder(config)
        return transformers.AutoModel.from_config(config)


def _check_kind(config, name, option):
    if config.model_type not in KINDS:
        raise ValueError(
            f"{name} is a {config.model_type} model, must be one of {', '.join(KINDS)}: "
            f"correct --{option}"
        )
