"""Recognise recordings with a trained run or an exported folder.

python -m cif_lobes.inference results/AISHELL-1/cif/1986 *.wav --format ctm

Any format that libsndfile reads, any rate, number of channels and length. What cannot
be read is reported and skipped, and the exit status is then 1.
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

from cif_lobes.alignment import FrameClock, frame_clock, token_spans, word_spans
from cif_lobes.dataio import read_audio
from cif_lobes.export import PARAMETERS, open_export, open_run

PAUSE = 0.2  # seconds; the closure of a stop consonant is shorter
MAX_WORD = 1.0  # seconds; a span that is longer begins with a pause
MAX_CUE = 5.0  # seconds of speech in a subtitle


class Token(NamedTuple):
    """A token or word, when it fired, and how sure the network was."""

    token: str
    start: float
    """float: seconds; a pause belongs to the token that is fired after it."""
    end: float
    """float: seconds."""
    confidence: float
    """float, in [0, 1]: what the decoder's softmax gives the token, given the audio and
    the tokens before it; of a word, the product over its tokens. Not calibrated:
    networks are surer than they are right."""


class Transcript(NamedTuple):
    """What may have been said."""

    text: str
    score: float
    """float: log-probability, end of sentence included; of a recording that was cut,
    the sum over its windows."""
    tokens: list
    """list of Token"""
    words: list
    """list of Token: what stands between spaces; in Chinese, the tokens."""
    nbest: tuple = ()
    """tuple of Transcript: what the beam kept, best first, so this one is the first.
    Empty in these."""


class Window(NamedTuple):
    """A stretch of a recording that is recognised at once."""

    recording: int
    start: int  # samples of the recording before it
    signal: torch.Tensor


def split_at_pauses(signal, sample_rate, max_seconds):
    """Cut a long signal where it is quietest, until no window is too long.

    A cut is the middle of the quietest 0.2 s within the middle third of what is cut. So
    no window is shorter than a third of `max_seconds`, every sample is in one window,
    and a word is cut only where there is no pause for a third of a window.

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
        In order; together, the signal.

    Example
    -------
    >>> signal = torch.randn(40000)
    >>> signal[18000:22000] = 0.5
    >>> windows = split_at_pauses(signal, sample_rate=16000, max_seconds=2)
    >>> [18000 <= len(windows[0]) <= 22000, len(torch.cat(windows))]
    [True, 40000]
    """
    if len(signal) <= max_seconds * sample_rate:
        return [signal]
    hop, first = sample_rate // 100, len(signal) // 3
    # Variance, not energy: a constant offset is silence, too.
    loudness = signal[first : 2 * first].unfold(0, hop, hop).var(1)
    width = round(PAUSE * 100)
    quietest = torch.nn.functional.avg_pool1d(loudness[None], width, 1).argmin()
    cut = first + (int(quietest) + width // 2) * hop
    parts = signal[:cut], signal[cut:]
    return [
        w for part in parts for w in split_at_pauses(part, sample_rate, max_seconds)
    ]


class CIFRecognizer:
    """Recordings to text with times, confidences and alternatives.

    Arguments
    ---------
    hparams : dict
        From `cif_lobes.export.open_run` or `open_export`.
    device : str
        cpu or cuda.

    Example
    -------
    >>> recognizer = CIFRecognizer.from_run("results/x")  # doctest: +SKIP
    >>> (transcript,) = recognizer.transcribe(["speech.wav"])  # doctest: +SKIP
    >>> transcript.text, transcript.tokens[0].end  # doctest: +SKIP
    ('你好', 0.41)
    """

    def __init__(self, hparams, device="cpu"):
        self.device = device
        self.tokenizer = hparams["tokenizer"]
        self.space = "" if self.tokenizer.language == "zh" else " "
        self.sample_rate = hparams["sample_rate"]
        hparams["model"].to(device).eval()
        self.fire = hparams["modules"]["encoder"]
        self.searcher = hparams["searcher"]
        encoder, hop = self.fire.encoder, self.fire.features.hop / self.sample_rate
        strides, num_pools = encoder.frontend.strides, len(encoder.pool_after)
        self.clock = frame_clock(strides, num_pools, hop)

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
            Longer recordings are cut at pauses: a network does badly on what is longer
            than all that it was trained on.
        on_error : callable, optional
            Called with a recording that cannot be read, and the error. Without it, the
            error is raised.
        progress : bool
            Show a bar if stderr is a terminal.

        Returns
        -------
        list of Transcript
            In the order given; None where on_error was called.
        """
        nbests = collections.defaultdict(list)
        windows = self._windows(recordings, max_seconds, on_error, progress)
        for batch in self._batches(windows, batch_seconds * self.sample_rate):
            for window, nbest in zip(batch, self._recognize(batch), strict=True):
                nbests[window.recording].append((window.start, nbest))
        return [
            self._join(nbests[index]) if index in nbests else None
            for index in range(len(recordings))
        ]

    def _windows(self, recordings, max_seconds, on_error, progress):
        """Windows of all recordings, the longest recording and its longest first."""

        def attempt(function, index):
            try:
                return function(recordings[index])
            except (OSError, ValueError, soundfile.SoundFileError) as error:
                if on_error is None:
                    raise
                on_error(recordings[index], error)

        seconds = {i: attempt(self._seconds, i) for i in range(len(recordings))}
        readable = {i: s for i, s in seconds.items() if s is not None}
        hidden = None if progress else True  # None: hidden unless in a terminal
        with tqdm(total=sum(readable.values()), unit="s", disable=hidden) as bar:
            for index in sorted(readable, key=lambda i: -readable[i]):
                signal, start, windows = attempt(self._read, index), 0, []
                if signal is not None:
                    for part in split_at_pauses(signal, self.sample_rate, max_seconds):
                        windows.append(Window(index, start, part))
                        start += len(part)
                yield from sorted(windows, key=lambda w: -len(w.signal))
                bar.update(readable[index])

    def _seconds(self, recording):
        """Duration, without reading a file's samples."""
        if isinstance(recording, torch.Tensor):
            return len(recording) / self.sample_rate
        return soundfile.info(recording).duration

    def _read(self, recording):
        """Waveform [samples]."""
        signal = recording
        if not isinstance(recording, torch.Tensor):
            signal = read_audio(recording, self.sample_rate)
        if not len(signal) or not signal.isfinite().all():
            raise ValueError("no samples, or samples that are not finite")
        return signal

    @staticmethod
    def _batches(windows, max_samples):
        """Lists of windows that hold max_samples when padded, or one window more."""
        batch, longest = [], 0
        for window in windows:
            longest = max(longest, len(window.signal))
            if batch and (len(batch) + 1) * longest > max_samples:
                yield batch
                batch, longest = [], len(window.signal)
            batch.append(window)
        if batch:
            yield batch

    @torch.no_grad()
    def _recognize(self, batch):
        """Transcripts of each window, best first."""
        lengths = torch.tensor([len(w.signal) for w in batch], device=self.device)
        wavs = pad_sequence([w.signal for w in batch], batch_first=True)
        fired = self.fire(wavs.to(self.device), lengths / wavs.shape[1])
        found = self.searcher.nbest(fired.embeddings, fired.lengths)
        confidences = iter(self._confidences(fired.embeddings, found))
        return [
            [self._transcript(window, times, *h, next(confidences)) for h in nbest]
            for window, times, nbest in zip(
                batch, fired.boundaries.cpu(), found, strict=True
            )
        ]

    def _confidences(self, vectors, found):
        """Probability of each token, hypothesis by hypothesis over all utterances."""
        hypotheses = [ids for nbest in found for ids, _ in nbest]
        beams = torch.tensor([len(nbest) for nbest in found], device=self.device)
        bos = self.searcher.bos_index
        tokens = [torch.tensor([bos, *ids]) for ids in hypotheses]
        tokens = pad_sequence(tokens, batch_first=True).to(self.device)
        # One vector more: a hypothesis without tokens has a bos, but no fire.
        vectors = torch.nn.functional.pad(vectors, (0, 0, 0, 1))[:, : tokens.shape[1]]
        logits, _ = self.searcher.decoder(vectors.repeat_interleave(beams, 0), tokens)
        logits = logits[:, :-1].float()
        chosen = logits.gather(2, tokens[:, 1:, None]).squeeze(2)
        rows = (chosen - logits.logsumexp(2)).exp().tolist()
        return [row[: len(ids)] for row, ids in zip(rows, hypotheses, strict=True)]

    def _transcript(self, window, boundaries, ids, score, confidences):
        """Put times and confidences beside the tokens."""
        decode = self.tokenizer.decode
        text, names = decode(ids), [decode([token]) for token in ids]
        start, step = self.clock
        clock = FrameClock(start + window.start / self.sample_rate, step)
        spans = token_spans(names, boundaries[: len(ids) + 1], clock)
        # The last encoder frame may reach beyond the end of the audio.
        end = (window.start + len(window.signal)) / self.sample_rate
        tokens = [
            Token(s.token, min(s.start, end), min(s.end, end), confidence)
            for s, confidence in zip(spans, confidences, strict=True)
        ]
        words = tokens if not self.space else _words(tokens, text)
        return Transcript(text, score, tokens, words)

    def _join(self, nbests):
        """The Transcript of a recording from those of its windows."""
        best = [Transcript("", 0.0, [], [])]
        for _, nbest in sorted(nbests, key=lambda pair: pair[0]):
            # Scores add: the best pairs begin with the best so far.
            pairs = heapq.nlargest(
                self.searcher.beam_size,
                itertools.product(best, nbest),
                key=lambda pair: pair[0].score + pair[1].score,
            )
            best = [
                Transcript(
                    self.space.join(filter(None, [a.text, b.text])),
                    a.score + b.score,
                    a.tokens + b.tokens,
                    a.words + b.words,
                )
                for a, b in pairs
            ]
        return best[0]._replace(nbest=tuple(best))


def _words(tokens, text):
    """What stands between the spaces of a text, from its Tokens."""
    words = []
    for word, start, end in word_spans(tokens, text):
        inside = (t.confidence for t in tokens if start <= t.start < end)
        words.append(Token(word, start, end, math.prod(inside)))
    return words


def as_text(file, transcript):
    """File and text, a tab between."""
    return f"{file}\t{transcript.text}"


def as_json(file, transcript):
    """One object in one line: the best hypothesis in full, all as text."""
    row = {"file": file, "text": transcript.text, "score": transcript.score}
    row["tokens"] = [token._asdict() for token in transcript.tokens]
    row["words"] = [word._asdict() for word in transcript.words]
    row["nbest"] = [{"text": t.text, "score": t.score} for t in transcript.nbest]
    return json.dumps(row, ensure_ascii=False)


def as_ctm(file, transcript):
    """NIST's time marks: recording, channel, start, duration, word, confidence."""
    name = pathlib.Path(file).stem.replace(" ", "_")
    return "\n".join(
        f"{name} 1 {w.start:.2f} {w.end - w.start:.2f} {w.token} {w.confidence:.4f}"
        for w in transcript.words
    )


def as_srt(file, transcript):
    """Subtitles: a new one after each pause, and before one gets longer than 5 s."""
    cues, space = [], " " if " " in transcript.text else ""
    for word in transcript.words:
        start = max(word.start, word.end - MAX_WORD)
        if not cues or start > word.start or word.end - cues[-1][0] > MAX_CUE:
            cues.append((start, []))
        cues[-1][1].append(word)
    return "\n".join(
        f"{number}\n{_clock(start)} --> {_clock(words[-1].end)}\n"
        f"{space.join(word.token for word in words)}\n"
        for number, (start, words) in enumerate(cues, start=1)
    )


def _clock(seconds):
    """For instance 01:02:03,456."""
    rest, milliseconds = divmod(round(seconds * 1000), 1000)
    rest, seconds = divmod(rest, 60)
    return f"{rest // 60:02d}:{rest % 60:02d}:{seconds:02d},{milliseconds:03d}"


FORMATS = {"text": as_text, "json": as_json, "ctm": as_ctm, "srt": as_srt}


def main(argv=None):
    """Recognise files, print in the order given; exit status 1 if one was skipped."""
    parser = argparse.ArgumentParser(
        "python -m cif_lobes.inference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", help="output_folder of a training run, or an exported folder")
    add("files", nargs="+", help="audio files")
    add("--format", choices=FORMATS, default="text", help="default: text")
    add(
        "--beam", type=int, help="hypotheses kept; 1: greedy (default: as in the model)"
    )
    add("--batch_seconds", type=float, default=60.0, help="seconds of audio in a batch")
    add("--max_seconds", type=float, default=20.0, help="cut longer files at pauses")
    add("--device", default="cpu", help="cpu or cuda")
    given = parser.parse_args(argv)
    if given.format == "srt" and len(given.files) > 1:
        parser.error(
            f"srt has no place for the names of {len(given.files)} files: run it once "
            "for each, or use --format json"
        )
    skipped = []

    def skip(file, error):
        skipped.append(file)
        tqdm.write(f"skipped {file}: {error}", file=sys.stderr)

    is_export = pathlib.Path(given.model, PARAMETERS).exists()
    load = CIFRecognizer.from_export if is_export else CIFRecognizer.from_run
    try:
        recognizer = load(
            given.model, given.beam and {"beam_size": given.beam}, given.device
        )
    except FileNotFoundError as error:
        parser.error(error)
    transcripts = recognizer.transcribe(
        given.files, given.batch_seconds, given.max_seconds, skip, progress=True
    )
    for file, transcript in zip(given.files, transcripts, strict=True):
        if transcript and (lines := FORMATS[given.format](file, transcript)):
            print(lines)
    if skipped:
        sys.exit(f"{len(skipped)} of {len(given.files)} files could not be read")


if __name__ == "__main__":
    main()
