"""Frozen HuBERT and wav2vec 2.0 encoders, run on the fly: audio to hidden states."""

import os

import torch
import transformers

from cif_lobes.nets.fithubert import TimeNorm, frame_grid, num_frames
from cif_lobes.teachers.text import hash_weights

KINDS = ("hubert", "wav2vec2")


class SpeechTeacher(torch.nn.Module):
    """A pre-trained speech encoder that only ever gives states.

    Always in eval mode, without gradients, LayerDrop and SpecAugment. An utterance has
    the same states alone and in any batch: the GroupNorm of the first convolution, in
    which transformers counts padding in, is taken over real frames.

    Arguments
    ---------
    source : str or dict
        Folder with a HuggingFace HuBERT or wav2vec 2.0 of the base kind (read with the
        hub off), or a name on the hub. Or a configuration, `model_type` and what
        differs from its default: random weights, always the same.

    Attributes
    ----------
    num_layers : int
    width : int
        Width H of the states.
    reach, hop : int
        Samples that a frame reads, and from one frame to the next.
    weights_hash : str
        Of all weights that a state depends on.

    Raises
    ------
    FileNotFoundError
        If source looks like a path and is no folder.
    ValueError
        If it is another kind of model, or weights are missing.

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
        super().__init__()
        random = isinstance(source, dict)
        self.encoder = _random(source) if random else _load(os.fspath(source))
        config = self.encoder.config
        config.layerdrop = 0.0
        self.num_layers, self.width = config.num_hidden_layers, config.hidden_size
        self.reach, self.hop = frame_grid(config.conv_kernel, config.conv_stride)
        first = self.encoder.feature_extractor.conv_layers[0]
        first.layer_norm = _NormOverRealFrames.like(first.layer_norm)
        self.requires_grad_(False).eval()

    def train(self, mode=True):
        """Stays in eval mode: Brain.fit switches all of its modules to train mode."""
        return super().train(False)

    @property
    def weights_hash(self):
        # The mask of pre-training is not used, and random if a checkpoint lacks it.
        return hash_weights(self.encoder, without="masked_spec_embed")

    # inference_mode would not let its tensors into a loss.
    @torch.no_grad()
    def forward(self, signal, lengths):
        """States of a padded batch.

        Arguments
        ---------
        signal : torch.Tensor, [B, samples], float32
            Waveforms, zero beyond the end of each.
        lengths : torch.Tensor, [B], int64
            Samples of each waveform.

        Returns
        -------
        states : tuple of torch.Tensor, [B, T, H]
            0 what the first layer reads, n the output of layer n; anything beyond the
            end of an utterance.
        x_lengths : torch.Tensor, [B], int64
            Frames of each utterance.
        """
        first = self.encoder.feature_extractor.conv_layers[0]
        reach, hop = first.conv.kernel_size[0], first.conv.stride[0]
        first.layer_norm.x_lengths = num_frames(lengths, reach, hop)
        samples = torch.arange(signal.shape[1], device=signal.device)
        outputs = self.encoder(
            signal,
            attention_mask=(samples < lengths[:, None]).long(),
            output_hidden_states=True,
        )
        return outputs.hidden_states, num_frames(lengths, self.reach, self.hop)


class _NormOverRealFrames(TimeNorm):
    """Stands in for a GroupNorm whose caller, in transformers, knows no lengths."""

    x_lengths = None

    @classmethod
    def like(cls, group_norm):
        norm = cls(group_norm.num_channels, group_norm.eps)
        norm.load_state_dict(group_norm.state_dict())
        return norm

    def forward(self, x):
        return super().forward(x, self.x_lengths)


def _random(settings):
    """The encoder of a configuration; its weights are the same in every run."""
    settings = dict(settings)
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    _check_kind(config, "teacher")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModel.from_config(config)


def _load(source):
    """The encoder of a folder or of the hub, in float32."""
    is_folder = os.path.isdir(source)
    if not is_folder and source.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"teacher folder {source} does not exist: correct --teacher"
        )
    config = transformers.AutoConfig.from_pretrained(source, local_files_only=is_folder)
    _check_kind(config, f"teacher {source}")
    encoder, report = transformers.AutoModel.from_pretrained(
        source,
        dtype=torch.float32,
        output_loading_info=True,
        local_files_only=is_folder,
    )
    # The mask of pre-training is used in train mode only.
    missing = sorted(k for k in report["missing_keys"] if k != "masked_spec_embed")
    if missing:
        raise ValueError(
            f"teacher {source}: {len(missing):,} weights are not in the checkpoint and "
            f"would be random, first {missing[0]}: the files do not belong together, or "
            "config.json names another architecture"
        )
    return encoder


def _check_kind(config, name):
    """Refuse what is not HuBERT-base or wav2vec 2.0-base in its architecture."""
    if config.model_type not in KINDS:
        raise ValueError(
            f"{name} is a {config.model_type} model, must be one of {', '.join(KINDS)}: "
            "correct --teacher"
        )
    if config.feat_extract_norm != "group":
        raise ValueError(
            f"{name} has feat_extract_norm {config.feat_extract_norm!r}, must be "
            "'group': large models want waveforms of unit variance, which this does "
            "not make. Use a base model, for instance facebook/hubert-base-ls960"
        )
