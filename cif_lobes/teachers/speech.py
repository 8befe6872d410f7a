"""Frozen HuBERT and wav2vec 2.0 encoders, run on the fly: audio to hidden states."""

import torch

from cif_lobes.nets.pretrained import load_model
from cif_lobes.nets.speech_encoder import WaveformEncoder

KINDS = ("hubert", "wav2vec2")


class SpeechTeacher(WaveformEncoder):
    """A pre-trained speech encoder that only ever gives states.

    Always in eval mode, without gradients, LayerDrop and SpecAugment; see
    `cif_lobes.nets.speech_encoder`.

    Arguments
    ---------
    source : str or dict
        Folder with a HuggingFace HuBERT or wav2vec 2.0 of the base kind (read with the
        hub off), or a name on the hub. Or a configuration, `model_type` and what
        differs from its default: random weights, always the same.

    Raises
    ------
    FileNotFoundError, ValueError
        As `cif_lobes.nets.pretrained.load_model`; also for a model that is not of the base
        kind.

    Example
    -------
    >>> tiny = {"model_type": "hubert", "hidden_size": 32, "num_hidden_layers": 2,
    ...     "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": [8] * 7}
    >>> teacher = SpeechTeacher(tiny)
    >>> states, x_lengths = teacher(torch.rand(2, 16000), torch.tensor([16000, 8000]))
    >>> len(states), states[2].shape, x_lengths
    (3, torch.Size([2, 49, 32]), tensor([49, 24]))
    """

    def __init__(self, source):
        encoder = load_model(source, KINDS, "teacher")
        norm = encoder.config.feat_extract_norm
        if norm != "group":
            name = "teacher" if isinstance(source, dict) else f"teacher {source}"
            raise ValueError(
                f"{name} has feat_extract_norm {norm!r}, must be 'group': a student of "
                "FitHuBERT has no way to hear waveforms of unit variance. Use a base "
                "model, for instance facebook/hubert-base-ls960"
            )
        super().__init__(encoder)

    # inference_mode would not let its tensors into a loss.
    @torch.no_grad()
    def forward(self, signal, lengths):
        """See `cif_lobes.nets.speech_encoder.SpeechEncoder`."""
        return super().forward(signal, lengths)
