"""Recognise recordings with a trained run or an exported folder.

python -m cif_lobes.inference results/AISHELL-1/cif/1986 *.wav --format ctm

Any format, rate, number of channels and length; what cannot be read is reported and
skipped, and the exit status is then 1.
"""

import argparse
import collections
import heapq
import itertools
import json
import math
import pathlib
import sys
from typing import NamedTuple

import soundfile
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from cif_lobes.alignment import frame_clock, token_spans, word_spans
from cif_lobes.dataio import read_audio
from cif_lobes.export import PARAMETERS, open_export, open_run

PAUSE = 0.2  # seconds; the closure of a stop consonant is shorter
MAX_CUE = 5.0  # seconds of speech in one subtitle
MAX_WORD = 1.0  # seconds; a span that is longer begins with a pause


class Token(NamedTuple):
    """A token or word, when it fired, and how sure the network was."""

    token: str
    start: float
    """float: seconds; a pause belongs to the token that is fired after it."""
    end: float
    """float: seconds."""
    confidence: float
    """float, in [0, 1]: the decoder's softmax at the fire of the token, given the audio
    and the tokens before it; of a word, the product over its tokens. Without scorers,
    and not calibrated: a network is surer than it is right."""


class Hypothesis(NamedTuple):
    """What may have been said."""

    text: str
    score: float
    """float: log-probability, end of sentence included; of a recording that was cut,
    the sum over its windows."""
    tokens: list
    """list of Token"""
    words: list
    """list of Token: what stands between spaces; in Chinese, the tokens."""


class Transcript(NamedTuple):
    """What a search found, best first; text, score, tokens and words are the best's."""

    nbest: list
    """list of Hypothesis: at least one, at most beam_size."""

    text = property(lambda self: self.nbest[0].text)
    score = property(lambda self: self.nbest[0].score)
    tokens = property(lambda self: self.nbest[0].tokens)
    words = property(lambda self: self.nbest[0].words)


class Window(NamedTuple):
    """A stretch of a recording that is recognised at once."""

    recording: int
    start: int
    """int: samples of the recording before it."""
    signal: torch.Tensor


def split_at_pauses(signal, sample_rate, max_seconds):
    """Cut a long signal where it is quietest, until no window is too long.

    Each cut is in the middle of the quietest stretch of 0.2 s within the middle third
    of a window: no window gets shorter than a third of `max_seconds`, and each sample
    is in one window, so no word is heard twice. A word can be cut only where a third of
    a window has no pause.

    Arguments
    ---------
    signal : torch.Tensor, [samples], float32
    sample_rate : int
        Hz.
    max_seconds : float
        Longest window in seconds, at least 1.

    Returns
    -------
    list of torch.Tensor, [samples]
        Together, the signal.

    Example
    -------
    >>> signal = torch.randn(40000)
    >>> signal[18000:22000] = 0
    >>> [len(window) / 16000 for window in split_at_pauses(signal, 16000, 2)]
    [1.25, 1.25]
    """
    if len(signal) <= max_seconds * sample_rate:
        return [signal]
    hop = sample_rate // 100
    first = len(signal) // 3
    blocks = signal[first : 2 * first].unfold(0, hop, hop)
    # Variance, not energy: a constant offset is silent, too.
    energy = blocks.var(1)[None]
    quiet = torch.nn.functional.avg_pool1d(energy, round(PAUSE * 100), stride=1)
    middle = quiet.argmin().item() * hop + round(PAUSE / 2 * sample_rate)
    cut = first + middle
    return [
        *split_at_pauses(signal[:cut], sample_rate, max_seconds),
        *split_at_pauses(signal[cut:], sample_rate, max_seconds),
    ]


class CIFRecognizer:
    """Recordings to text, with times, confidences and alternatives.

    Arguments
    ---------
    hparams : dict
        From `cif_lobes.export.open_run` or `open_export`.
    device : str
        cpu or cuda.

    Example
    -------
    >>> recognizer = CIFRecognizer.from_run("results/run", {"beam_size": 10})
    ... # doctest: +SKIP
    >>> (transcript,) = recognizer.transcribe(["speech.wav"])  # doctest: +SKIP
    >>> [(t.token, t.end) for t in transcript.tokens]  # doctest: +SKIP
    [('你', 0.41), ('好', 0.57)]
    """

    def __init__(self, hparams, device="cpu"):
        self.device = device
        self.tokenizer = hparams["tokenizer"]
        self.sample_rate = hparams["sample_rate"]
        hparams["model"].to(device).eval()
        self.fire = hparams["modules"]["encoder"]
        self.searcher = hparams["searcher"]
        features, encoder = self.fire.features, self.fire.encoder
        self.clock = frame_clock(
            encoder.frontend.strides,
            len(encoder.pool_after),
            features.hop / self.sample_rate,
        )

    @classmethod
    def from_run(cls, folder, overrides=None, device="cpu"):
        """The recogniser of a run folder, with the checkpoints that its yaml averages.

        Arguments
        ---------
        folder : str
            Output folder of a training run.
        overrides : dict, optional
            Settings to change: beam_size, tail_threshold.
        device : str
            cpu or cuda.
        """
        return cls(open_run(folder, overrides), device)

    @classmethod
    def from_export(cls, folder, overrides=None, device="cpu"):
        """The recogniser of an exported folder; arguments as in `from_run`."""
        return cls(open_export(folder, overrides), device)

    def transcribe(
        self,
        recordings,
        batch_seconds=60.0,
        max_seconds=20.0,
        on_error=None,
        progress=False,
    ):
        """Recognise recordings, in batches of like durations.

        Arguments
        ---------
        recordings : list of str or torch.Tensor
            Audio files, or waveforms [samples] at `sample_rate`.
        batch_seconds : float
            Seconds of audio in a batch, padding included.
        max_seconds : float
            Longer recordings are cut at pauses: networks do badly on what is much
            longer than all that they were trained on.
        on_error : callable, optional
            Called with a recording that cannot be read and the error, which is raised
            if not given.
        progress : bool
            Whether to show a bar on stderr, unless it is a file.

        Returns
        -------
        list of Transcript
            In the order given; None for what could not be read.
        """
        windows = collections.defaultdict(list)
        bar = tqdm(unit="s", unit_scale=True, disable=None if progress else True)
        with bar:
            batches = self._batches(recordings, batch_seconds, max_seconds, on_error, bar)
            for batch in batches:
                found = self._recognize([window.signal for window in batch])
                for window, nbest in zip(batch, found, strict=True):
                    windows[window.recording].append((window.start, nbest))
                    bar.update(len(window.signal) / self.sample_rate)
        return [
            self._join(windows[index]) if index in windows else None
            for index in range(len(recordings))
        ]

    def _batches(self, recordings, batch_seconds, max_seconds, on_error, bar):
        """Lists of Windows, the longest recordings first; only one is read ahead."""

        def attempt(function, recording):
            try:
                return function(recording)
            except (OSError, ValueError, soundfile.SoundFileError) as error:
                if on_error is None:
                    raise
                on_error(recording, error)

        seconds = [attempt(self._seconds, recording) for recording in recordings]
        order = [index for index, s in enumerate(seconds) if s is not None]
        bar.reset(sum(seconds[index] for index in order))
        batch, longest = [], 0
        for index in sorted(order, key=seconds.__getitem__, reverse=True):
            signal = attempt(self._read, recordings[index])
            if signal is None:
                continue
            parts = split_at_pauses(signal, self.sample_rate, max_seconds)
            starts = itertools.accumulate((len(part) for part in parts), initial=0)
            windows = [Window(index, *pair) for pair in zip(starts, parts, strict=False)]
            for window in sorted(windows, key=lambda w: -len(w.signal)):
                longest = max(longest, len(window.signal))
                if (len(batch) + 1) * longest > batch_seconds * self.sample_rate and batch:
                    yield batch
                    batch, longest = [], len(window.signal)
                batch.append(window)
        if batch:
            yield batch

    def _seconds(self, recording):
        """Duration, without reading a file's samples."""
        if isinstance(recording, torch.Tensor):
            return len(recording) / self.sample_rate
        return soundfile.info(recording).duration

    def _read(self, recording):
        """Waveform [samples]."""
        if isinstance(recording, torch.Tensor):
            signal = recording.cpu()
        else:
            signal = read_audio(recording, self.sample_rate)
        if not len(signal) or not signal.isfinite().all():
            raise ValueError("no samples, or samples that are not finite")
        return signal

    @torch.no_grad()
    def _recognize(self, signals):
        """Hypotheses of waveforms [samples], best first; times start with each."""
        lengths = torch.tensor([len(signal) for signal in signals])
        wavs = pad_sequence(signals, batch_first=True)
        relative = lengths / wavs.shape[1]
        fired = self.fire(wavs.to(self.device), relative.to(self.device))
        found = self.searcher.nbest(fired.embeddings, fired.lengths)
        confidences = iter(self._confidences(fired.embeddings, found))
        boundaries = fired.boundaries.cpu()
        seconds = (lengths / self.sample_rate).tolist()
        return [
            [
                self._hypothesis(tokens, score, next(confidences), boundaries[b], seconds[b])
                for tokens, score in nbest
            ]
            for b, nbest in enumerate(found)
        ]

    def _confidences(self, vectors, found):
        """Probability of each token of each hypothesis, all utterances in one list."""
        decoder, bos = self.searcher.decoder, self.searcher.bos_index
        counts = torch.tensor([len(nbest) for nbest in found], device=self.device)
        hypotheses = [tokens for nbest in found for tokens, _ in nbest]
        inputs = pad_sequence(
            [torch.tensor([bos, *tokens]) for tokens in hypotheses], batch_first=True
        ).to(self.device)
        # One vector more: the last input is a token, too, and there may be none.
        vectors = torch.nn.functional.pad(vectors, (0, 0, 0, 1))[:, : inputs.shape[1]]
        logits, _ = decoder(vectors.repeat_interleave(counts, dim=0), inputs)
        logits = logits[:, :-1].float()
        chosen = logits.gather(2, inputs[:, 1:, None]).squeeze(2)
        probabilities = (chosen - logits.logsumexp(2)).exp().tolist()
        return [
            row[: len(tokens)]
            for row, tokens in zip(probabilities, hypotheses, strict=True)
        ]

    def _hypothesis(self, ids, score, confidences, boundaries, seconds):
        """Put times and confidences beside the tokens."""
        decode = self.tokenizer.decode
        names = [decode([token]) for token in ids]
        # The last frame may reach beyond the end of the audio.
        tokens = [
            Token(s.token, min(s.start, seconds), min(s.end, seconds), confidence)
            for s, confidence in zip(
                token_spans(names, boundaries[: len(ids) + 1], self.clock),
                confidences,
                strict=True,
            )
        ]
        text = decode(ids)
        if self.tokenizer.language == "zh":
            return Hypothesis(text, score, tokens, tokens)
        words = [
            Token(
                *span,
                math.prod(
                    t.confidence for t in tokens if span.start <= t.start < span.end
                ),
            )
            for span in word_spans(tokens, text)
        ]
        return Hypothesis(text, score, tokens, words)

    def _join(self, windows):
        """One Transcript from those of a recording's windows."""
        best = [Hypothesis("", 0.0, [], [])]
        for start, nbest in sorted(windows, key=lambda window: window[0]):
            # Scores add, so no joined hypothesis outside of these can be better.
            pairs = heapq.nlargest(
                self.searcher.beam_size,
                itertools.product(best, nbest),
                key=lambda pair: pair[0].score + pair[1].score,
            )
            best = [self._append(*pair, start / self.sample_rate) for pair in pairs]
        return Transcript(best)

    def _append(self, left, right, offset):
        """What was said in the windows so far, and in one that begins at `offset`."""
        space = "" if self.tokenizer.language == "zh" else " "
        tokens, words = (
            [*before, *(t._replace(start=t.start + offset, end=t.end + offset) for t in after)]
            for before, after in ((left.tokens, right.tokens), (left.words, right.words))
        )
        text = space.join(filter(None, [left.text, right.text]))
        return Hypothesis(text, left.score + right.score, tokens, words)


def format_text(file, transcript):
    """File and text, a tab between."""
    return f"{file}\t{transcript.text}"


def format_json(file, transcript):
    """One object in one line: the best hypothesis in full, the others as text."""
    best = transcript.nbest[0]
    row = {"file": file, "text": best.text, "score": best.score}
    row["tokens"] = [token._asdict() for token in best.tokens]
    row["words"] = [word._asdict() for word in best.words]
    row["nbest"] = [{"text": h.text, "score": h.score} for h in transcript.nbest]
    return json.dumps(row, ensure_ascii=False)


def format_ctm(file, transcript):
    """NIST's time marks: recording, channel, start, duration, word, confidence."""
    name = pathlib.Path(file).stem.replace(" ", "_")
    return "\n".join(
        f"{name} 1 {w.start:.2f} {w.end - w.start:.2f} {w.token} {w.confidence:.4f}"
        for w in transcript.words
    )


def format_srt(file, transcript):
    """Subtitles; a new one after a pause, and before one gets longer than 5 s."""
    cues = []
    for word in transcript.words:
        paused = word.end - word.start > MAX_WORD
        start = max(word.start, word.end - MAX_WORD)
        if not cues or paused or word.end - cues[-1][0] > MAX_CUE:
            cues.append((start, []))
        cues[-1][1].append(word)
    space = " " if " " in transcript.text else ""
    return "\n".join(
        f"{number}\n{_clock(start)} --> {_clock(words[-1].end)}\n"
        f"{space.join(word.token for word in words)}\n"
        for number, (start, words) in enumerate(cues, start=1)
    )


def _clock(seconds):
    """00:00:00,000"""
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    return (
        f"{minutes // 60:02d}:{minutes % 60:02d}:"
        f"{milliseconds // 1000:02d},{milliseconds % 1000:03d}"
    )


FORMATS = {
    "text": format_text,
    "json": format_json,
    "ctm": format_ctm,
    "srt": format_srt,
}


def main(argv=None):
    """Command line: recognise files, print in the order given."""
    parser = argparse.ArgumentParser(
        prog="python -m cif_lobes.inference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="output_folder of a training run, or its export")
    parser.add_argument("files", nargs="+", help="audio that libsndfile reads")
    parser.add_argument("--format", choices=FORMATS, default="text")
    parser.add_argument("--beam", type=int, default=1, help="hypotheses kept; 1: greedy")
    parser.add_argument(
        "--batch_seconds", type=float, default=60.0, help="seconds of audio in a batch"
    )
    parser.add_argument(
        "--max_seconds", type=float, default=20.0, help="longer files are cut at pauses"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    arguments = parser.parse_args(argv)
    if arguments.format == "srt" and len(arguments.files) > 1:
        parser.error(
            f"srt holds the subtitles of one recording, got {len(arguments.files)} "
            "files: run it once for each"
        )
    ...


if __name__ == "__main__":
    sys.exit(main())
