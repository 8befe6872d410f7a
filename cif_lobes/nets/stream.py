"""Features and encoder over a stream: what the whole utterance gives, chunk by chunk.

For a `LogMel` of global normalisation and a `ConformerEncoder` with `chunk_size`. A
chunk of C encoder frames leaves the encoder once the audio under it has been received,
and a little more, the look-ahead: half an analysis window and what the unpadded
convolutions of the front-end read beyond the chunk.
"""

import torch

from cif_lobes.nets.encoder import ConformerEncoder, max_pool
from cif_lobes.nets.features import LogMel


class FeatureStream:
    """Waveform to features; carries the samples that the next frame shares.

    Arguments
    ---------
    features : cif_lobes.nets.features.LogMel
        In eval mode.
    """

    def __init__(self, features):
        if not isinstance(features, LogMel):
            _refuse(f"{type(features).__name__} reads")
        if features.normalization != "global":
            _refuse(f'features of normalization "{features.normalization}" read')
        self.features = features
        self.look_ahead = features.window / 2  # samples
        self.samples = torch.zeros(features.window // 2)

    def push(self, signal):
        """Features [T, F] that the next samples [samples] complete; T may be 0."""
        hop, window = self.features.hop, self.features.window
        self.samples = torch.cat([self.samples.to(signal), signal])
        count = max(0, (len(self.samples) - window) // hop + 1)
        ready = self.samples[: (count - 1) * hop + window]
        self.samples = self.samples[count * hop :]
        if count == 0:
            return signal.new_zeros(0, self.features.fbank.compute_fbanks.n_mels)
        x = self.features.fbank(ready[None])
        return self.features.normalize(x, x.new_ones(1))[0]

    def finish(self):
        """Features [T, F] whose windows reach beyond the end."""
        return self.push(self.samples.new_zeros(self.features.window // 2))


class EncoderStream:
    """Features to encoder frames; carries what each layer sees of earlier chunks.

    Arguments
    ---------
    encoder : cif_lobes.nets.encoder.ConformerEncoder
        In eval mode.
    """

    def __init__(self, encoder):
        if not isinstance(encoder, ConformerEncoder):
            _refuse(f"{type(encoder).__name__} reads")
        if encoder.chunk_size is None:
            _refuse("an encoder that has no chunk_size reads")
        self.encoder, frontend = encoder, encoder.frontend
        self.chunk_size = encoder.chunk_size  # encoder frames
        self.look_ahead = frontend.shortest - 1 - frontend.hop  # feature frames
        self.size = encoder.chunk_config(1).chunk_size
        self.contexts = []
        for number, layer in enumerate(encoder.layers, start=1):
            left = encoder.chunk_config(number).left_context_size_frames()
            self.contexts.append(layer.make_streaming_context(left))
        weight = frontend.linear.weight
        # Features that the next frame of the front-end reads, frames of no full chunk.
        self.features = weight.new_zeros(1, 0, frontend.input_size)
        self.frames = weight.new_zeros(1, 0, len(weight))
        self.has_begun = False

    def push(self, x):
        """Encoder frames [T', D] of the chunks that features [T, F] complete."""
        self.features = torch.cat([self.features, x[None]], dim=1)
        if self.features.shape[1] >= self.encoder.frontend.shortest:
            self._read_features()
        encoded = [self.frames[:, :0]]
        while self.frames.shape[1] >= self.size:
            encoded.append(self._encode(self.frames[:, : self.size]))
            self.frames = self.frames[:, self.size :]
        return torch.cat(encoded, dim=1)[0]

    def finish(self):
        """Encoder frames [T', D] of the last chunk, which need not be full."""
        if not self.has_begun:  # too short for one frame: the front-end pads it
            self._read_features()
        return self._encode(self.frames)[0] if self.frames.shape[1] else self.frames[0]

    def _read_features(self):
        """Run the front-end on all the features there are."""
        x_lengths = torch.tensor([self.features.shape[1]], device=self.features.device)
        x, count = self.encoder.frontend(self.features, x_lengths)
        read = int(count) * self.encoder.frontend.hop
        self.features = self.features[:, read:]
        self.frames = torch.cat([self.frames, x], dim=1)
        self.has_begun = True

    def _encode(self, x):
        """One chunk through all layers."""
        layers = zip(self.encoder.layers, self.contexts, strict=True)
        for number, (layer, context) in enumerate(layers, start=1):
            before = context.mha_left_context
            seen = x.shape[1] + (0 if before is None else before.shape[1])
            x, _ = layer.forward_streaming(
                x, context, self.encoder.positions.make_pe(seen)
            )
            if number in self.encoder.pool_after:
                x = max_pool(x, x.new_zeros(x.shape[:2], dtype=torch.bool))
        return x


class WeightStream:
    """Encoder frames to their CIF weights; carries the frames that the kernel sees.

    Arguments
    ---------
    cif : cif_lobes.cif.CIF
        In eval mode.
    """

    def __init__(self, cif):
        if not cif.causal:
            _refuse("a CIF module that is not causal reads")
        self.cif = cif
        self.before = None

    def push(self, x):
        """Weights [T] of frames x [T, D]; T may be 0."""
        if not len(x):
            return x.new_zeros(0, dtype=torch.float32)
        seen = x if self.before is None else torch.cat([self.before, x])
        length = torch.tensor([len(seen)])
        first = max(0, len(seen) - self.cif.conv.kernel_size[0] + 1)
        self.before = seen[first:]
        return self.cif.weights(seen[None], length)[0, len(seen) - len(x) :]


def _refuse(what):
    """Say why there is no stream."""
    raise ValueError(
        f"{what} beyond the chunk that a stream has received. Train with a streaming yaml, "
        "for instance recipes/AISHELL-1/hparams/cif_mini_streaming.yaml"
    )
