"""Recognise recordings with an ONNX export: onnxruntime, numpy, soundfile, no PyTorch.

python evaluate.py export results/AISHELL-1/cif/1986 my_onnx --format onnx
python -m cif_lobes.inference.onnx my_onnx *.wav

Other sample rates need scipy. Greedy, one window at a time; for beams and batches there
is `cif_lobes.inference.recognizer`.
"""

import json
import math
import pathlib

import numpy as np
import onnxruntime
import soundfile

from cif_lobes.data.tokens import SPACE
from cif_lobes.inference.alignment import FrameClock
from cif_lobes.inference.command import (
    command_line,
    read_command,
    transcribe_and_print,
)
from cif_lobes.inference.recordings import is_one, is_steady
from cif_lobes.inference.transcript import Token, Transcript, join_windows, words_of
from cif_lobes.inference.windows import MAX_SECONDS, check_longest, read_windows
from cif_lobes.settings.checks import option_type
from cif_lobes.settings.program import run_program


class OnnxRecognizer:
    """Recordings to transcripts.

    Arguments
    ---------
    folder : str
        Written by `cif_lobes.inference.onnx_export.export_onnx`.
    threads : int
        CPU threads within an operator.

    Example
    -------
    >>> recognizer = OnnxRecognizer("my_onnx")  # doctest: +SKIP
    >>> recognizer.transcribe("speech.wav").text  # doctest: +SKIP
    '你好'
    """

    def __init__(self, folder, threads=1):
        folder = pathlib.Path(folder)
        if not (folder / "recognizer.json").exists():
            raise FileNotFoundError(
                f"{folder} is not an ONNX export: no recognizer.json. Make one with: "
                f"python evaluate.py export RUN {folder} --format onnx"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.encoder, self.decoder = (
            onnxruntime.InferenceSession(
                folder / name, options, providers=["CPUExecutionProvider"]
            )
            for name in ("encoder.onnx", "decoder.onnx")
        )
        text = (folder / "recognizer.json").read_text(encoding="utf-8")
        self.settings = json.loads(text)
        self.sample_rate = self.settings["sample_rate"]
        self.max_seconds = self.settings.get("max_seconds", MAX_SECONDS)
        self.space = "" if self.settings["language"] == "zh" else " "

    def transcribe(
        self, recordings, max_seconds=None, on_error=None, channel=None, vad=None
    ):
        """Recognise recordings, one after the other.

        Arguments
        ---------
        recordings : str, os.PathLike or numpy.ndarray, or list of them
            Files that libsndfile reads, or waveforms [samples] at `sample_rate`. Silence,
            steady noise and what is shorter than an encoder frame have no text.
        max_seconds, on_error, channel, vad : optional
            As `cif_lobes.inference.recognizer.CIFRecognizer.transcribe`.

        Returns
        -------
        cif_lobes.inference.transcript.Transcript, or list of them
            In the order given; None where on_error was called.

        Raises
        ------
        OSError, soundfile.SoundFileError, ValueError
            If one cannot be read or is no waveform, and there is no on_error.
        """
        if is_one(recordings):
            (transcript,) = self.transcribe(
                [recordings], max_seconds, on_error, channel, vad
            )
            return transcript
        how = (
            check_longest(self.max_seconds if max_seconds is None else max_seconds),
            channel,
            vad,
        )
        transcripts = []
        for recording in recordings:
            try:
                windows = read_windows(recording, self.sample_rate, *how)
                found = [self._recognize(*window) for window in windows]
                transcripts.append(join_windows(filter(None, found), self.space))
            except (OSError, ValueError, soundfile.SoundFileError) as error:
                if on_error is None:
                    raise
                on_error(recording, error)
                transcripts.append(None)
        return transcripts

    def _recognize(self, signal, start, rate):
        """A list of the Transcript of a window; an empty one if nobody speaks."""
        if rate != self.sample_rate:
            from scipy.signal import resample_poly

            divisor = math.gcd(rate, self.sample_rate)
            signal = resample_poly(signal, self.sample_rate // divisor, rate // divisor)
        frame = self.settings["frame_step"] * self.sample_rate
        if len(signal) < frame or is_steady(signal, self.sample_rate):
            return []
        vectors, boundaries = self.encoder.run(None, {"signal": signal[None]})
        ids, log_probs = self._search(vectors)
        settings = self.settings
        clock = FrameClock(settings["frame_start"], settings["frame_step"])
        times = clock.start + clock.step * boundaries[0].astype(float)
        times = start + np.minimum(times, len(signal) / self.sample_rate)
        times = times.tolist()
        tokens = [
            Token(self._text([token]), times[u], times[u + 1], math.exp(log_probs[u]))
            for u, token in enumerate(ids)
        ]
        text = self._text(ids)
        words = tokens if settings["language"] == "zh" else words_of(tokens, text)
        return [Transcript(text, sum(log_probs), tokens, words)]

    def _search(self, vectors):
        """Greedy tokens, end of sentence excluded, and log-probabilities with it."""
        settings = self.settings
        layers, pair, heads, head_width = settings["state_shape"]
        state = np.zeros((1, layers, pair, heads, 0, head_width), np.float32)
        before = np.zeros_like(vectors[:, 0]) if vectors.shape[1] else None
        previous, ids, log_probs = settings["bos_index"], [], []
        for u in range(vectors.shape[1]):
            inputs = {
                "vector": vectors[:, u],
                "vector_before": before,
                "previous_token": np.array([previous]),
                "state": state,
            }
            logits, state = self.decoder.run(None, inputs)
            logits = logits[0].astype(float)
            log_total = logits.max() + np.log(np.exp(logits - logits.max()).sum())
            # Never a target, so never wanted.
            logits[[settings["blank_index"], settings["bos_index"]]] = -np.inf
            previous, before = int(logits.argmax()), vectors[:, u]
            log_probs.append(float(logits[previous] - log_total))
            if previous == settings["eos_index"]:
                break
            ids.append(previous)
        return ids, log_probs

    def _text(self, ids):
        """What tokens spell; a mark stands before the first piece of a word."""
        pieces = (self.settings["tokens"][token] for token in ids)
        return "".join(pieces).replace(SPACE, " ").strip(" ")


def main(argv=None):
    """Recognise files and print."""
    parser = command_line("python -m cif_lobes.inference.onnx")
    threads = option_type(1, "how many")
    parser.add_argument("--threads", type=threads, default=1, help="CPU threads")
    given = read_command(parser, argv)
    transcribe_and_print(OnnxRecognizer(given.model, given.threads), given)


if __name__ == "__main__":
    run_program(main)
