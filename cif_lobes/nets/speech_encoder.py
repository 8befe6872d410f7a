"""Pretrained speech encoders of HuggingFace: audio to the states of all their layers.

wav2vec 2.0, HuBERT, WavLM, data2vec-audio and Whisper, behind one interface. An utterance
has the same states alone and in any batch, which transformers does not give:

- the GroupNorm of the first convolution counts padding in: here over real frames only
- the position convolutions of data2vec-audio read what the ones before them have made of
  padding: here zeros
- Whisper hears 30 s whatever was said: here the utterance, a chosen silence behind it, and
  nothing else. How much silence follows changes its states.
"""

import json
import pathlib

import torch
from safetensors.torch import save_file
from torch import nn

from cif_lobes.nets.fithubert import TimeNorm, frame_grid, num_frames
from cif_lobes.storage.parameters import hash_weights

MADE_OF_STUDENT = "student.json"  # beside the weights of a kept student


class SpeechEncoder(nn.Module):
    """What all of them share: always in eval mode, without gradients unless asked for.

    Arguments
    ---------
    encoder : torch.nn.Module
        Its parameters are frozen here.

    Attributes
    ----------
    num_layers, width : int
        Layers, and width H of their states.
    reach, hop, centre : int
        Samples that a frame reads, from one frame to the next, and before the centre of
        the first.
    max_samples : int or None
        Longest utterance, if there is one.
    silence : int or None
        Samples of silence behind an utterance that are heard as well; None for those to
        whom it is nothing.
    weights_hash : str
        Of all weights that a state depends on.
    """

    max_samples = silence = None

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.requires_grad_(False).eval()

    def train(self, mode=True):
        """Stays in eval mode: Brain.fit switches all of its modules to train mode."""
        return super().train(False)

    @property
    def weights_hash(self):
        # The mask of pre-training is not used, and random if a checkpoint lacks it.
        return hash_weights(self.encoder, without="masked_spec_embed")

    def output_lengths(self, lengths):
        """Number of frames of signals of `lengths` samples."""
        return num_frames(lengths, self.reach, self.hop)

    def top_layers(self, count):
        """The last `count` layers, and what follows them, to be trained.

        Raises
        ------
        ValueError
            If there are fewer.
        """
        if count > self.num_layers:
            raise ValueError(
                f"ears_trained is {count}, the ears have {self.num_layers} layers"
            )
        return list(self._layers()[self.num_layers - count :]) + self._after_layers()

    def save(self, folder):
        """Write what `cif_lobes.nets.pretrained.load_encoder` reads."""
        self.encoder.save_pretrained(folder)

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
        raise NotImplementedError


class WaveformEncoder(SpeechEncoder):
    """wav2vec 2.0, HuBERT, WavLM or data2vec-audio.

    Those whose convolutions have a LayerNorm each want waveforms of mean 0 and variance 1,
    and get them; to those with one GroupNorm the level is nothing.

    Arguments
    ---------
    encoder : transformers.PreTrainedModel
    """

    def __init__(self, encoder):
        config = encoder.config
        config.layerdrop = 0.0
        first = encoder.feature_extractor.conv_layers[0]
        self.standardizes = getattr(config, "feat_extract_norm", "layer") != "group"
        if not self.standardizes:
            first.layer_norm = _NormOverRealFrames.like(first.layer_norm)
        super().__init__(encoder)
        self.num_layers, self.width = config.num_hidden_layers, config.hidden_size
        self.reach, self.hop = frame_grid(config.conv_kernel, config.conv_stride)
        self.centre = self.reach // 2
        self.positions = []  # of data2vec-audio: convolutions one upon another
        for layer in getattr(encoder.encoder.pos_conv_embed, "layers", ()):
            layer.activation = _ZeroPadding(layer.activation)
            self.positions.append(layer.activation)

    def _layers(self):
        return self.encoder.encoder.layers

    def _after_layers(self):
        stable = getattr(self.encoder.config, "do_stable_layer_norm", False)
        return [self.encoder.encoder.layer_norm] if stable else []

    def forward(self, signal, lengths):
        """See `SpeechEncoder`."""
        # One frame at least: what is shorter is heard with silence behind it.
        signal = nn.functional.pad(signal, (0, max(0, self.reach - signal.shape[1])))
        heard = lengths.clamp(min=self.reach)
        x_lengths = self.output_lengths(lengths)
        samples = torch.arange(signal.shape[1], device=signal.device)
        valid_mask = samples < heard[:, None]
        if self.standardizes:
            signal = _standardize(signal, samples < lengths[:, None])
        else:
            first = self.encoder.feature_extractor.conv_layers[0]
            first.layer_norm.x_lengths = num_frames(
                heard, first.conv.kernel_size[0], first.conv.stride[0]
            )
        for position in self.positions:
            position.x_lengths = x_lengths
        outputs = self.encoder(
            signal, attention_mask=valid_mask.long(), output_hidden_states=True
        )
        # Of some, the last layer's output is only normalised behind it.
        states = (*outputs.hidden_states[:-1], outputs.last_hidden_state)
        return states, x_lengths


class WhisperEars(SpeechEncoder):
    """The encoder of a Whisper, without its padding to 30 s.

    It was trained on 30 s always, so its states depend on how much silence follows: with
    0.3 s the mean cosine to those of 30 s is .960, with 1 s .974. No utterance may be
    longer than 30 s, silence included: there are no positions for it.

    Arguments
    ---------
    encoder : transformers.WhisperEncoder
    mel_filters : torch.Tensor, [201, F], float32
        Mel bands of a power spectrum.
    silence_seconds : float
        Zeros behind an utterance that are heard; their own frames are left out.
    """

    MEL_HOP, MEL_WINDOW, SAMPLE_RATE = 160, 400, 16000

    def __init__(self, encoder, mel_filters, silence_seconds=1.0):
        encoder.layerdrop = 0.0
        super().__init__(encoder)
        config = encoder.config
        self.num_layers, self.width = config.encoder_layers, config.d_model
        self.reach, self.hop, self.centre = self.MEL_WINDOW, 2 * self.MEL_HOP, 0
        self.silence = round(silence_seconds * self.SAMPLE_RATE)
        self.max_samples = config.max_source_positions * self.hop - self.silence
        self.register_buffer("mel_filters", mel_filters, persistent=False)
        window = torch.hann_window(self.MEL_WINDOW)
        self.register_buffer("window", window, persistent=False)

    def output_lengths(self, lengths):
        """Number of frames of signals of `lengths` samples."""
        return ((lengths // self.MEL_HOP + 1) // 2).clamp(min=1)

    def _layers(self):
        return self.encoder.layers

    def _after_layers(self):
        return [self.encoder.layer_norm]

    def forward(self, signal, lengths):
        """See `SpeechEncoder`.

        Raises
        ------
        ValueError
            If an utterance is too long.
        """
        if signal.shape[1] > self.max_samples:
            longest = signal.shape[1] / self.SAMPLE_RATE
            raise ValueError(
                f"an utterance of {longest:.1f} s is longer than these ears hear: "
                f"{self.max_samples / self.SAMPLE_RATE:.1f} s. Cut it at pauses"
            )
        # In float16 what is quiet is 0, and its logarithm none.
        with torch.autocast(signal.device.type, enabled=False):
            mel, num_mels = self._log_mel(signal.float(), lengths)
        x = nn.functional.gelu(self.encoder.conv1(mel))
        # The convolution's bias has filled what is zero when an utterance is alone.
        x = _zero_padding(x, num_mels)
        x = nn.functional.gelu(self.encoder.conv2(x)).transpose(1, 2)
        frames = torch.arange(x.shape[1], device=x.device)
        x = x + self.encoder.embed_positions(frames)
        padding_mask = frames >= ((num_mels + 1) // 2)[:, None]
        mask = torch.zeros_like(padding_mask, dtype=x.dtype)
        mask = mask.masked_fill(padding_mask, torch.finfo(x.dtype).min)
        states = [x]
        for layer in self.encoder.layers:
            states.append(layer(states[-1], mask[:, None, None]))
        states[-1] = self.encoder.layer_norm(states[-1])
        x_lengths = self.output_lengths(lengths)
        # That of the longest, without asking the device which it is.
        longest = int(self.output_lengths(torch.tensor(signal.shape[1])))
        return tuple(x[:, :longest] for x in states), x_lengths

    def _log_mel(self, signal, lengths):
        """Whisper's features [B, F, T] of utterances and silence, and their number."""
        half = self.MEL_WINDOW // 2
        signal = nn.functional.pad(signal, (0, self.silence + self.MEL_WINDOW))
        x = nn.functional.pad(signal, (half, 0), mode="reflect")
        num_mels = ((lengths + self.silence) // self.MEL_HOP).clamp(min=1)
        spectrum = torch.stft(
            x,
            self.MEL_WINDOW,
            self.MEL_HOP,
            window=self.window,
            center=False,
            return_complex=True,
        )
        power = spectrum.abs().square()
        x = (self.mel_filters.T @ power).clamp(min=1e-10).log10()
        longest = signal.shape[1] - self.MEL_WINDOW
        x = x[:, :, : max(1, longest // self.MEL_HOP)]
        frames = torch.arange(x.shape[2], device=x.device)
        padding_mask = (frames >= num_mels[:, None])[:, None]
        loudest = x.masked_fill(padding_mask, -10.0).amax((1, 2), keepdim=True)
        x = (x.maximum(loudest - 8.0) + 4.0) / 4.0
        return x.masked_fill(padding_mask, 0.0), num_mels


class StudentEars(SpeechEncoder):
    """A student of train_fithubert.py among the others.

    Arguments
    ---------
    encoder : cif_lobes.nets.fithubert.FitHuBERT
    settings : dict
        Its arguments.
    """

    def __init__(self, encoder, settings):
        super().__init__(encoder)
        self.settings = settings
        self.num_layers, self.width = len(encoder.layers), encoder.d_model
        self.hop = encoder.hop
        self.reach = encoder.frontend.reach + encoder.frontend.hop
        self.centre = self.reach // 2

    def output_lengths(self, lengths):
        """Number of frames of signals of `lengths` samples."""
        return self.encoder.output_lengths(lengths)

    def _layers(self):
        return self.encoder.layers

    def _after_layers(self):
        return []

    def save(self, folder):
        """Write what `cif_lobes.nets.pretrained.load_encoder` reads."""
        folder = pathlib.Path(folder)
        (folder / MADE_OF_STUDENT).write_text(json.dumps(self.settings) + "\n")
        weights = {k: v.contiguous() for k, v in self.encoder.state_dict().items()}
        save_file(weights, folder / "model.safetensors")

    def forward(self, signal, lengths):
        """See `SpeechEncoder`; what the first layer reads is not among the states."""
        outputs = self.encoder.layer_outputs(signal, lengths)
        return (outputs[0], *outputs), self.output_lengths(lengths)


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


class _ZeroPadding(nn.Module):
    """Stands in for an activation; what lies beyond the end of an utterance is zero."""

    x_lengths = None

    def __init__(self, activation):
        super().__init__()
        self.activation = activation

    def forward(self, x):
        return _zero_padding(self.activation(x), self.x_lengths)


def _zero_padding(x, x_lengths):
    """x [B, D, T], zero beyond the end of each utterance."""
    frames = torch.arange(x.shape[2], device=x.device)
    return x.masked_fill((frames >= x_lengths[:, None])[:, None], 0.0)


def _standardize(signal, valid_mask):
    """Waveforms [B, samples] of mean 0 and variance 1, zero beyond the end of each."""
    count = valid_mask.sum(1, keepdim=True).clamp(min=1)
    real = (signal - signal.sum(1, keepdim=True) / count).masked_fill(~valid_mask, 0.0)
    variance = real.square().sum(1, keepdim=True) / count
    return real * (variance + 1e-7).rsqrt()
