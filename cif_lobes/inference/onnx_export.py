"""A trained run as ONNX: two graphs and a json, for `cif_lobes.inference.onnx`.

- encoder.onnx: a waveform [1, samples] to the vectors [1, U, D] that CIF fires and
  their boundaries [1, U + 1] in encoder frames. Features, encoder and CIF in one graph;
  any number of samples, any number of fires.
- decoder.onnx: one step of the decoder. Its state [1, layers, 2, nhead, past, D / nhead]
  holds the keys and values of `past` steps, 0 of them before the first.
- recognizer.json: tokens by id, the indices of the specials, sample rate in Hz, times
  of the encoder frames and the longest window in seconds.
- tokenizer.ckpt: the vocabulary, with which hotwords are written.
"""

import json
import shutil

import torch

from cif_lobes.cif import cif_dense
from cif_lobes.cif.guided import GuidedCIF
from cif_lobes.devices.precision import full_float32
from cif_lobes.inference.alignment import frame_clock
from cif_lobes.inference.card import Exported, write_card
from cif_lobes.inference.export import VOCABULARY, open_run
from cif_lobes.inference.folders import TEACHER_VOCAB, copy_teacher_vocab
from cif_lobes.inference.onnx_int8 import quantize
from cif_lobes.nets.features import LogMel
from cif_lobes.storage.atomic_files import new_folder

ENCODER, DECODER, SETTINGS = "encoder.onnx", "decoder.onnx", "recognizer.json"


class ConvSTFT(torch.nn.Module):
    """SpeechBrain's STFT as a strided convolution, which every runtime has.

    ONNX's own STFT operator is slow for windows that are not a power of two.

    Arguments
    ---------
    stft : speechbrain.processing.features.STFT
        Centred, padded with zeros.

    Example
    -------
    >>> from speechbrain.processing.features import STFT
    >>> stft, signal = STFT(sample_rate=16000), torch.rand(1, 1600)
    >>> torch.allclose(ConvSTFT(stft)(signal), stft(signal), atol=1e-3)
    True
    """

    def __init__(self, stft):
        super().__init__()
        size = stft.n_fft
        self.hop, self.pad = stft.hop_length, size // 2 if stft.center else 0
        bins, samples = torch.arange(size // 2 + 1), torch.arange(size)
        angles = 2 * torch.pi * (bins[:, None] * samples % size).double() / size
        basis = torch.stack([angles.cos(), -angles.sin()], dim=1)
        basis = (basis * stft.window.double()).flatten(0, 1)[:, None]
        self.register_buffer("basis", basis.float(), persistent=False)

    def forward(self, signal):
        """Signal [B, samples] to spectrum [B, T, bins, 2]."""
        signal = torch.nn.functional.pad(signal, (self.pad, self.pad))
        x = torch.nn.functional.conv1d(signal[:, None], self.basis, stride=self.hop)
        return x.transpose(1, 2).unflatten(2, (-1, 2))


class EncoderGraph(torch.nn.Module):
    """Waveform to fires, for one utterance; `fire` is a FireEncoder."""

    def __init__(self, fire):
        super().__init__()
        self.features, self.encoder, self.cif = fire.features, fire.encoder, fire.cif
        fbank = self.features.fbank
        fbank.compute_STFT = ConvSTFT(fbank.compute_STFT)

    def forward(self, signal):
        """Signal [1, samples] to embeddings [1, U, D], boundaries [1, U + 1]."""
        lengths = torch.full((1,), signal.shape[1])
        x, x_lengths = self.encoder(*self.features(signal, lengths))
        alpha = self.cif.weights(x, x_lengths)
        thresholds = self.cif.threshold, self.cif.tail_threshold
        output = cif_dense(x, alpha, x_lengths, None, *thresholds)
        return output.embeddings, output.boundaries


class CopiedState:
    """A `DecoderState` that copies at every step: a graph has no memory to write in.

    Arguments
    ---------
    state : torch.Tensor, [B, layers, 2, nhead, past, D / nhead]
        Keys and values of the steps before.
    """

    def __init__(self, state):
        self.layers = state.unbind(1)
        self.past = state.shape[4]
        self.longer = []

    def append(self, layer, keys_values):
        """As `DecoderState.append`."""
        known = self.layers[layer].transpose(0, 1)
        self.longer.append(torch.cat([known, keys_values], dim=3))
        return self.longer[-1]


class StepGraph(torch.nn.Module):
    """CIFDecoder.step as a forward method, its state as a tensor."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, vector, vector_before, previous_token, state):
        """Arguments of `CIFDecoder.step`; its logits, and the longer state."""
        copied = CopiedState(state)
        logits, _ = self.decoder.step(vector, vector_before, previous_token, copied)
        return logits, torch.stack(copied.longer).permute(2, 0, 1, 3, 4, 5)


@full_float32()
def export_onnx(
    run_folder,
    out_folder,
    average=None,
    num_checkpoints=None,
    decoding=None,
    license=None,
    int8=False,
):
    """Write the recogniser of a run as ONNX; see `cif_lobes.inference.export.export_run`.

    Whatever the yaml says, the search is greedy. With `int8`, matrices are kept as 8-bit
    integers; see `cif_lobes.inference.onnx_int8`.

    Raises
    ------
    FileNotFoundError, ValueError, FileExistsError
        As `export_run`; also if there is no graph for such a network, or a beam is asked
        for.
    """
    beam = (decoding or {}).get("beam_size", 1)
    if beam > 1:
        raise ValueError(
            f"a beam of {beam} is not for ONNX, which decodes greedily: export with "
            "--beam 1, or with --format speechbrain"
        )
    hparams = open_run(run_folder, decoding, average, num_checkpoints)
    hparams["model"].eval()
    fire, decoder = hparams["modules"]["encoder"], hparams["decoder"]
    if isinstance(fire.cif, GuidedCIF):
        raise ValueError(
            f"{run_folder}: ONNX is for CIF, not for a GuidedCIF. Use --format speechbrain"
        )
    if not decoder.autoregressive or not isinstance(fire.features, LogMel):
        raise ValueError(
            f"{run_folder}: ONNX is for log-mel features and a decoder with previous "
            "tokens, not for pretrained ears, a frozen student, a BERTDecoder or "
            "autoregressive: False. Use --format speechbrain"
        )
    with new_folder(out_folder) as folder:
        _write_graphs(hparams, folder)
        if int8:
            for name in (ENCODER, DECODER):
                quantize(folder / name)
        exported = Exported(
            "onnx",
            hparams["tokenizer"].language,
            hparams["sample_rate"],
            hparams["model"].parameters(),
            {
                "beam": 1,
                "tail_threshold": hparams["tail_threshold"],
                "average": average,
                "num_checkpoints": num_checkpoints,
            },
            int8,
        )
        write_card(folder, out_folder, run_folder, exported, license)


def _write_graphs(hparams, folder):
    """The files of `export_onnx`; `hparams` as `open_run` gives them."""
    fire, decoder = hparams["modules"]["encoder"], hparams["decoder"]
    clock = frame_clock(fire.features, fire.encoder, hparams["sample_rate"])
    layer = decoder.layers[0]
    width = decoder.norm.normalized_shape[0]
    shape = [len(decoder.layers), 2, layer.nhead, width // layer.nhead]
    past = torch.export.Dim("past", max=decoder.positions.pe.shape[1] - 1)
    # Two tensors: the tracer takes one object for one input.
    vector, vector_before = torch.zeros(1, width), torch.zeros(1, width)
    state = torch.zeros(1, *shape[:3], 3, shape[3])
    _export(
        StepGraph(decoder),
        folder / DECODER,
        {
            "vector": (vector, None),
            "vector_before": (vector_before, None),
            "previous_token": (torch.zeros(1, dtype=torch.int64), None),
            "state": (state, {4: past}),
        },
        ["logits", "next_state"],
    )
    # The tracer has to know that no slice is empty. Shorter signals run all the same.
    samples = torch.export.Dim("samples", min=hparams["sample_rate"])
    _export(
        EncoderGraph(fire),
        folder / ENCODER,
        # Loud enough for some fires: their number is an axis, too.
        {"signal": (torch.randn(1, 2 * hparams["sample_rate"]), {1: samples})},
        ["embeddings", "boundaries"],
    )
    searcher, tokenizer = hparams["searcher"], hparams["tokenizer"]
    settings = {
        "sample_rate": hparams["sample_rate"],
        "max_seconds": hparams["max_seconds"],
        "language": tokenizer.language,
        "frame_start": clock.start,
        "frame_step": clock.step,
        "state_shape": shape,
        "blank_index": searcher.blank_index,
        "bos_index": searcher.bos_index,
        "eos_index": searcher.eos_index,
        "eos_threshold": searcher.eos_threshold,
        "tokens": tokenizer.pieces(),
        "tokenizer": {
            "kind": type(tokenizer).__name__,
            "vocab_size": tokenizer.vocab_size,
        },
    }
    if copy_teacher_vocab(tokenizer, folder):
        settings["tokenizer"]["teacher_vocab"] = TEACHER_VOCAB
    shutil.copyfile(tokenizer.path, folder / VOCABULARY)
    text = json.dumps(settings, ensure_ascii=False, indent=0)
    (folder / SETTINGS).write_text(text, encoding="utf-8")


def _export(graph, path, inputs, output_names):
    """Write a graph; `inputs` are an example and the dynamic axes of each, by name."""
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                graph.eval(),
                tuple(example for example, _ in inputs.values()),
                input_names=list(inputs),
                output_names=output_names,
                dynamic_shapes=tuple(axes for _, axes in inputs.values()),
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        parts = " and ".join(type(part).__name__ for part in graph.children())
        reason = f"{error.__cause__ or error}".strip().splitlines()[0]
        raise ValueError(
            f"PyTorch cannot write {parts} as one graph for ONNX. Use --format speechbrain, "
            f"or change what it says (the whole of it: --debug): {reason}"
        ) from error
    program.save(path)
