"""Recognise recordings with a trained run or an exported folder.

python -m cif_lobes.inference results/AISHELL-1/cif/1986 *.wav --format ctm

Any format that libsndfile reads, any rate, number of channels and length. What cannot
be read is reported and skipped, and the exit status is then 1.
"""

import argparse
import heapq
import os
import pathlib
import sys
from typing import NamedTuple

import soundfile
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from cif_lobes.data.batches import resample
from cif_lobes.devices.precision import full_float32
from cif_lobes.devices.processes import check_device
from cif_lobes.inference.alignment import FrameClock, frame_clock, token_spans
from cif_lobes.inference.export import MAX_SECONDS, PARAMETERS, open_export, open_run
from cif_lobes.inference.recordings import is_steady, read_mono
from cif_lobes.inference.transcript import (
    FORMATS,
    PAUSE,
    Token,
    Transcript,
    check_format,
    skip_message,
    words_of,
)
from cif_lobes.settings.checks import option_type


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
    """
    if len(signal) <= max_seconds * sample_rate:
        return [signal]
    hop, first = sample_rate // 100, len(signal) // 3
    energy = signal[first : 2 * first].unfold(0, hop, hop).square().sum(1)
    width = round(PAUSE * 100)
    quietest = torch.nn.functional.avg_pool1d(energy[None], width, 1).argmin()
    cut = first + (int(quietest) + width // 2) * hop
    return [
        window
        for part in (signal[:cut], signal[cut:])
        for window in split_at_pauses(part, sample_rate, max_seconds)
    ]


class CIFRecognizer:
    """Recordings to text with times, confidences and alternatives.

    Arguments
    ---------
    hparams : dict
        From `cif_lobes.inference.export.open_run` or `open_export`.
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
        check_device(device)
        self.device = device
        self.tokenizer = hparams["tokenizer"]
        self.space = "" if self.tokenizer.language == "zh" else " "
        self.sample_rate = hparams["sample_rate"]
        self.max_seconds = hparams.get("max_seconds", MAX_SECONDS)
        hparams["model"].to(device).eval()
        self.fire = hparams["modules"]["encoder"]
        self.searcher = hparams["searcher"]
        self.clock = frame_clock(
            self.fire.features, self.fire.encoder, self.sample_rate
        )

    @classmethod
    def from_run(cls, folder, overrides=None, device="cpu"):
        """The recogniser of a run folder; see `cif_lobes.inference.export.open_run`."""
        return cls(open_run(folder, overrides), device)

    @classmethod
    def from_export(cls, folder, overrides=None, device="cpu"):
        """The recogniser of an exported folder; see `export.open_export`."""
        return cls(open_export(folder, overrides), device)

    def transcribe(
        self,
        recordings,
        batch_seconds=60.0,
        max_seconds=None,
        on_error=None,
        progress=False,
        channel=None,
    ):
        """Recognise recordings, in batches of like durations.

        Arguments
        ---------
        recordings : list of str or torch.Tensor
            Audio files, or waveforms [samples] at `sample_rate`. What is silent or as
            loud throughout as only noise is (`cif_lobes.inference.recordings.is_steady`), and
            what is shorter than an encoder frame, has no text.
        batch_seconds : float
            Seconds of audio in a batch, padding included.
        max_seconds : float, optional
            Longer recordings are cut at pauses: a network does badly on what is longer
            than all that it was trained on. By default the longest of those, 20 at most.
        on_error : callable, optional
            Called with a recording that cannot be read, and the error. Without it, the
            error is raised.
        progress : bool
            Show a bar if stderr is a terminal.
        channel : int, optional
            Of files with several, from 1. Without it, the mean of all.

        Returns
        -------
        list of Transcript
            In the order given; None where on_error was called.

        Raises
        ------
        TypeError
            If recordings is one of them, not a list.
        """
        if isinstance(recordings, (str, os.PathLike, torch.Tensor)):
            raise TypeError(
                f"recordings is one {type(recordings).__name__}, not a list: "
                "(transcript,) = recognizer.transcribe([recording])"
            )
        nbests, failed = [[] for _ in recordings], set()

        def attempt(function, index, *arguments):
            try:
                return function(recordings[index], *arguments)
            except (OSError, ValueError, soundfile.SoundFileError) as error:
                if on_error is None:
                    raise
                on_error(recordings[index], error)
                failed.add(index)

        seconds = {i: attempt(self._seconds, i) for i in range(len(recordings))}
        readable = {i: s for i, s in seconds.items() if s is not None}
        max_seconds = self.max_seconds if max_seconds is None else max_seconds
        windows = self._windows(readable, attempt, max_seconds, progress, channel)
        for batch in self._batches(windows, batch_seconds * self.sample_rate):
            for window, nbest in zip(batch, self._recognize(batch), strict=True):
                nbests[window.recording].append((window.start, nbest))
        return [
            None if index in failed else self._join(windows)
            for index, windows in enumerate(nbests)
        ]

    def _windows(self, readable, attempt, max_seconds, progress, channel):
        """Windows with speech, the longest recording and its longest first."""
        hidden = None if progress else True  # None: hidden unless in a terminal
        with tqdm(total=sum(readable.values()), unit="s", disable=hidden) as bar:
            for index in sorted(readable, key=lambda i: -readable[i]):
                signal, start, windows = attempt(self._read, index, channel), 0, []
                if signal is not None:
                    for part in split_at_pauses(signal, self.sample_rate, max_seconds):
                        windows.append(Window(index, start, part))
                        start += len(part)
                for window in sorted(windows, key=lambda w: -len(w.signal)):
                    if self._may_be_speech(window.signal):
                        yield window
                    bar.update(len(window.signal) / self.sample_rate)

    def _seconds(self, recording):
        """Duration, without reading a file's samples."""
        if isinstance(recording, torch.Tensor):
            return len(recording) / self.sample_rate
        return soundfile.info(recording).duration

    def _read(self, recording, channel):
        """Waveform [samples]."""
        signal = recording
        if not isinstance(recording, torch.Tensor):
            mono, rate = read_mono(recording, channel)
            signal = resample(torch.from_numpy(mono), rate, self.sample_rate)
        if not len(signal) or not signal.isfinite().all():
            raise ValueError("no samples, or samples that are not finite.")
        return signal

    def _may_be_speech(self, signal):
        """Whether there is a frame to read, and more than silence or steady noise."""
        frame, samples = self.clock.step * self.sample_rate, signal.cpu().numpy()
        return len(samples) >= frame and not is_steady(samples, self.sample_rate)

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
    @full_float32()
    def _recognize(self, batch):
        """Transcripts of each window, best first."""
        lengths = torch.tensor([len(w.signal) for w in batch], device=self.device)
        wavs = pad_sequence([w.signal for w in batch], batch_first=True)
        fired = self.fire(wavs.to(self.device), lengths / wavs.shape[1])
        found = self.searcher.nbest(fired.embeddings, fired.lengths)
        confidences = iter(self._confidences(fired, found))
        boundaries = fired.boundaries.cpu()
        return [
            [self._transcript(window, times, *h, next(confidences)) for h in nbest]
            for window, times, nbest in zip(batch, boundaries, found, strict=True)
        ]

    def _confidences(self, fired, found):
        """Probability of each token, hypothesis by hypothesis over all utterances."""
        hypotheses = [ids for nbest in found for ids, _ in nbest]
        beams = torch.tensor([len(nbest) for nbest in found], device=self.device)
        bos = self.searcher.bos_index
        tokens = [torch.tensor([bos, *ids]) for ids in hypotheses]
        tokens = pad_sequence(tokens, batch_first=True).to(self.device)
        missing = fired.embeddings.shape[1] + 1 - tokens.shape[1]
        tokens = torch.nn.functional.pad(tokens, (0, missing))
        vectors = fired.embeddings.repeat_interleave(beams, 0)
        lengths = fired.lengths.repeat_interleave(beams)
        logits, _ = self.searcher.decoder(vectors, tokens[:, :-1], lengths)
        logits = logits.float()
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
        words = tokens if not self.space else words_of(tokens, text)
        return Transcript(text, score, tokens, words)

    def _join(self, nbests):
        """The Transcript of a recording from those of its windows."""
        best = [()]
        for _, nbest in sorted(nbests, key=lambda pair: pair[0]):
            # Scores add: the best combinations begin with the best so far.
            longer = [(*parts, part) for parts in best for part in nbest]
            best = heapq.nlargest(self.searcher.beam_size, longer, key=_score)
        joined = tuple(
            Transcript(
                self.space.join(part.text for part in parts if part.text),
                _score(parts),
                [token for part in parts for token in part.tokens],
                [word for part in parts for word in part.words],
            )
            for parts in best
        )
        return joined[0]._replace(nbest=joined)


def _score(parts):
    return sum(part.score for part in parts)


def main(argv=None):
    """Recognise files, print in the order given; exit status 1 if one was skipped."""
    parser = argparse.ArgumentParser(
        "python -m cif_lobes.inference", description="Recognise recordings."
    )
    add, seconds = parser.add_argument, option_type(60.0, "seconds")
    add("model", help="output_folder of a training run, or an exported folder")
    add("files", nargs="+", help="audio files")
    add("--format", choices=FORMATS, default="text", help="default: text")
    add(
        "--beam",
        type=option_type(1, "how many"),
        help="hypotheses kept (default: as in the model's yaml)",
    )
    add(
        "--batch_seconds",
        type=seconds,
        default=60.0,
        help="seconds of audio in a batch",
    )
    add(
        "--max_seconds",
        type=seconds,
        help="cut longer files at pauses (default: the longest training utterance, or 20)",
    )
    channel = option_type(1, "how many")
    add(
        "--channel", type=channel, help="of files with several, from 1 (default: mixed)"
    )
    device = option_type("cpu", "", "device")
    add("--device", type=device, default="cpu", help="cpu, cuda or cuda:N")
    given = parser.parse_args(argv)
    check_format(parser, given)
    if given.max_seconds is not None and given.max_seconds < 1:
        parser.error(f"--max_seconds {given.max_seconds:g}: at least 1")
    skipped = []

    def skip(file, error):
        skipped.append(file)
        tqdm.write(skip_message(file, error), file=sys.stderr)

    is_export = pathlib.Path(given.model, PARAMETERS).exists()
    load = CIFRecognizer.from_export if is_export else CIFRecognizer.from_run
    changed = {"beam_size": given.beam} if given.beam else None
    try:
        recognizer = load(given.model, changed, given.device)
    except (FileNotFoundError, ValueError) as error:
        parser.error(error)
    transcripts = recognizer.transcribe(
        given.files,
        given.batch_seconds,
        given.max_seconds,
        skip,
        progress=True,
        channel=given.channel,
    )
    for file, transcript in zip(given.files, transcripts, strict=True):
        if transcript is not None:
            print(FORMATS[given.format](file, transcript), end="")
    if skipped:
        sys.exit(f"{len(skipped)} of {len(given.files)} files could not be read")
