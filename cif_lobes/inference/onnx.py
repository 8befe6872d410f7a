"""Recognise recordings with an ONNX export: onnxruntime, numpy, soundfile, no PyTorch.

python evaluate.py export results/AISHELL-1/cif/1986 my_onnx --format onnx
cif-transcribe my_onnx *.wav

Other sample rates need scipy. Greedy, one window at a time; for beams and batches there
is `cif_lobes.inference.recognizer`.
"""

import json
import math
import pathlib

import numpy as np
import onnxruntime
import soundfile

from cif_lobes.data import tokens as tokenizers
from cif_lobes.data.tokens import SPACE
from cif_lobes.decoding.greedy import GreedyPath
from cif_lobes.decoding.hotwords import load_hotwords
from cif_lobes.inference.alignment import FrameClock
from cif_lobes.inference.command import program
from cif_lobes.inference.folders import use_vocabularies
from cif_lobes.inference.pauses import shorten_pauses, true_time
from cif_lobes.inference.recordings import is_one, is_steady
from cif_lobes.inference.transcript import Token, Transcript, join_windows, words_of
from cif_lobes.inference.windows import MAX_SECONDS, check_longest, read_windows

VOCABULARY = "tokenizer.ckpt"  # as in exports for SpeechBrain


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
        self.folder, self.hotwords = folder, {}

    def use_hotwords(self, hotwords, weight=1.0):
        """As `cif_lobes.inference.recognizer.CIFRecognizer.use_hotwords`.

        Raises
        ------
        ValueError
            Also if the export has no tokenizer, with which phrases are written.
        """
        tree = None
        if hotwords is not None:
            tree = load_hotwords(hotwords, open_tokenizer(self.folder, self.settings))
        self.hotwords = {"hotwords": tree, "hotword_weight": weight}

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

        Returns and raises what that does.
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
        signal, lost = shorten_pauses(signal, self.sample_rate)
        vectors, boundaries = self.encoder.run(None, {"signal": signal[None]})
        choices = self._search(vectors)
        score = sum(choice.score for choice in choices)
        if choices and choices[-1].token == self.settings["eos_index"]:
            del choices[-1]
        settings = self.settings
        clock = FrameClock(settings["frame_start"], settings["frame_step"])
        times = clock.start + clock.step * boundaries[0].astype(float)
        times = np.minimum(times, len(signal) / self.sample_rate).tolist()
        times = [start + true_time(time, lost, self.sample_rate) for time in times]
        tokens = [
            Token(self._text([c.token]), times[u], times[u + 1], math.exp(c.log_prob))
            for u, c in enumerate(choices)
        ]
        text = self._text([c.token for c in choices])
        words = tokens if settings["language"] == "zh" else words_of(tokens, text)
        return [Transcript(text, score, tokens, words)]

    def _search(self, vectors):
        """The `Choice` of each fire, up to the end of sentence, which is among them."""
        settings = self.settings
        layers, pair, heads, head_width = settings["state_shape"]
        state = np.zeros((1, layers, pair, heads, 0, head_width), np.float32)
        before = np.zeros_like(vectors[:, 0]) if vectors.shape[1] else None
        indices = (settings[f"{name}_index"] for name in ("blank", "bos", "eos"))
        threshold = settings.get("eos_threshold")
        path, choices = GreedyPath(*indices, threshold, **self.hotwords), []
        for u in range(vectors.shape[1]):
            inputs = {
                "vector": vectors[:, u],
                "vector_before": before,
                "previous_token": np.array([path.previous]),
                "state": state,
            }
            logits, state = self.decoder.run(None, inputs)
            choices.append(path.choose(logits[0], last=u == vectors.shape[1] - 1))
            path.follow(choices[-1].token)
            before = vectors[:, u]
            if path.ended:
                break
        return choices

    def _text(self, ids):
        """What tokens spell; a mark stands before the first piece of a word."""
        pieces = (self.settings["tokens"][token] for token in ids)
        return "".join(pieces).replace(SPACE, " ").strip(" ")


def open_tokenizer(folder, settings):
    """The tokenizer of an export; `settings` are those of its recognizer.json."""
    arguments = dict(settings.get("tokenizer", {}))
    kinds = {kind.__name__: kind for kind in tokenizers.Tokenizer.__subclasses__()}
    kind = kinds.get(arguments.pop("kind", None))
    if kind is None:
        raise ValueError(
            f"hotwords: {folder} has no tokenizer that could write them, as exports of "
            "before: export the run again"
        )
    tokenizer = kind(folder / VOCABULARY, language=settings["language"], **arguments)
    use_vocabularies(tokenizer, folder, VOCABULARY)
    return tokenizer


if __name__ == "__main__":
    program()
