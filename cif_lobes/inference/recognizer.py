"""Recognise recordings with a trained run or an exported folder.

Any format that libsndfile reads, any rate, number of channels and length. The command is
in `cif_lobes.inference.command`.
"""

import itertools
from operator import itemgetter

import soundfile
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from cif_lobes.data.batches import resample
from cif_lobes.decoding.fusion import fuse
from cif_lobes.decoding.hotwords import load_hotwords
from cif_lobes.devices.precision import full_float32
from cif_lobes.devices.processes import check_device
from cif_lobes.inference.alignment import frame_clock, token_spans
from cif_lobes.inference.folders import Opened
from cif_lobes.inference.pauses import shorten_pauses, true_time
from cif_lobes.inference.recordings import duration_of, is_one, is_steady
from cif_lobes.inference.transcript import Token, Transcript, join_windows, words_of
from cif_lobes.inference.windows import MAX_SECONDS, Window, check_longest, read_windows

AT_ONCE = 16  # windows of a recording that are sorted by length


class CIFRecognizer(Opened):
    """Recordings to text with times, confidences and alternatives.

    Arguments
    ---------
    hparams : dict
        From `cif_lobes.inference.folders.open_folder`.
    device : str
        cpu or cuda.

    Example
    -------
    >>> recognizer = CIFRecognizer.from_run("results/x")  # doctest: +SKIP
    >>> transcript = recognizer.transcribe("speech.wav")  # doctest: +SKIP
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
        self.writer = hparams.get("writer")  # of a run of train_llm.py
        if self.writer is not None:
            self.writer.to(device)
        self.clock = frame_clock(
            self.fire.features, self.fire.encoder, self.sample_rate
        )

    def use_hotwords(self, hotwords, weight=1.0):
        """Prefer phrases that are known beforehand, from the next recording on.

        Their weights are in the scores of transcripts, not in the confidences.

        Arguments
        ---------
        hotwords : str, os.PathLike, list of str or (str, float), or None
            A text file or a list, see `cif_lobes.decoding.hotwords.read_hotwords`. Phrases
            that the vocabulary cannot write are skipped and logged. None for no phrases.
        weight : float
            What a token of theirs earns, 0 for nothing.

        Raises
        ------
        FileNotFoundError, ValueError
            As `cif_lobes.decoding.hotwords.load_hotwords`; also if a language model writes.
        """
        if self.writer is not None and hotwords is not None:
            raise ValueError(
                "hotwords are for the search of a recogniser, and a language model writes "
                "here: give them to the recogniser that it was trained on"
            )
        tree = load_hotwords(hotwords, self.tokenizer) if hotwords is not None else None
        self.searcher.scorer = fuse(hotwords=tree, hotword_weight=weight)

    def transcribe(
        self,
        recordings,
        batch_seconds=60.0,
        max_seconds=None,
        on_error=None,
        progress=False,
        channel=None,
        vad=None,
    ):
        """Recognise recordings, in batches of like durations.

        Arguments
        ---------
        recordings : str, os.PathLike, torch.Tensor or numpy.ndarray, or list of them
            Audio files, or waveforms [samples] at `sample_rate`. What is silent or as
            loud throughout as only noise is (`cif_lobes.inference.recordings.is_steady`), and
            what is shorter than an encoder frame, has no text.
        batch_seconds : float
            Seconds of audio in a batch, padding included.
        max_seconds : float, optional
            Longer recordings are cut at pauses: a network does badly on what is longer
            than all that it was trained on. By default the longest of those, 20 at most.
            At least 1. An hour takes no more memory than some windows do.
        on_error : callable, optional
            Called with a recording that cannot be read, and the error. Without it, the
            error is raised.
        progress : bool
            Show a bar if stderr is a terminal.
        channel : int, optional
            Of files with several, from 1. Without it, the mean of all.

        vad : callable, optional
            Says where somebody speaks, for the cuts; see
            `cif_lobes.inference.windows.find_pause`.

        Returns
        -------
        Transcript, or list of them
            In the order given; None where on_error was called.

        Raises
        ------
        OSError, soundfile.SoundFileError, ValueError
            If one cannot be read or is no waveform, and there is no on_error.
        """
        if is_one(recordings):
            (transcript,) = self.transcribe(
                [recordings],
                batch_seconds,
                max_seconds,
                on_error,
                progress,
                channel,
                vad,
            )
            return transcript
        nbests, failed = [[] for _ in recordings], set()

        def attempt(index, function, *arguments):
            try:
                return function(*arguments)
            except (OSError, ValueError, soundfile.SoundFileError) as error:
                if on_error is None:
                    raise
                on_error(recordings[index], error)
                failed.add(index)

        longest = self.max_seconds if max_seconds is None else max_seconds
        how = check_longest(longest), channel, vad
        windows = self._windows(recordings, attempt, progress, how)
        for batch in self._batches(windows, batch_seconds * self.sample_rate):
            for window, nbest in zip(batch, self._recognize(batch), strict=True):
                nbests[window.recording].append((window.start, nbest))
        beam = (self.writer or self.searcher).beam_size
        return [
            None
            if index in failed
            else join_windows(
                [n for _, n in sorted(found, key=itemgetter(0))], self.space, beam
            )
            for index, found in enumerate(nbests)
        ]

    def _windows(self, recordings, attempt, progress, how):
        """Windows with speech, the longest recording first, of it the longest of some."""
        seconds = {
            index: attempt(index, duration_of, recording, self.sample_rate)
            for index, recording in enumerate(recordings)
        }
        readable = {index: s for index, s in seconds.items() if s is not None}
        hidden = None if progress else True  # None: hidden unless in a terminal
        with tqdm(total=sum(readable.values()), unit="s", disable=hidden) as bar:
            for index in sorted(readable, key=lambda i: -readable[i]):
                windows = self._cut(index, recordings[index], *how)
                # An hour of windows would be an hour of samples.
                while some := attempt(index, _take, windows, AT_ONCE):
                    for window in sorted(some, key=lambda w: -len(w.signal)):
                        if self._may_be_speech(window.signal):
                            yield self._shorten(window)
                        bar.update(len(window.signal) / self.sample_rate)

    def _cut(self, index, recording, *how):
        """All windows of a recording, at the rate of the recogniser."""
        for signal, start, rate in read_windows(recording, self.sample_rate, *how):
            signal = resample(torch.tensor(signal), rate, self.sample_rate)
            yield Window(index, start, signal)

    def _shorten(self, window):
        """A window without its long pauses."""
        signal, lost = shorten_pauses(window.signal.numpy(), self.sample_rate)
        return window._replace(signal=torch.from_numpy(signal), lost=lost)

    def _may_be_speech(self, signal):
        """Whether there is a frame to read, and more than silence or steady noise."""
        frame = self.clock.step * self.sample_rate
        return len(signal) >= frame and not is_steady(signal.numpy(), self.sample_rate)

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
        found = self.searcher.nbest(*fired.searched)
        confidences = iter(self._confidences(fired, found))
        boundaries = fired.boundaries.cpu()
        nbests = [
            [self._transcript(window, times, *h, next(confidences)) for h in nbest]
            for window, times, nbest in zip(batch, boundaries, found, strict=True)
        ]
        if self.writer is None:
            return nbests
        heard = [nbest[0] for nbest in nbests]
        return self.writer.write(fired, heard, [window.start for window in batch])

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
        spans = token_spans(names, boundaries[: len(ids) + 1], self.clock)
        # Encoder frames may reach beyond the audio, the first as well as the last.
        end = len(window.signal) / self.sample_rate

        def when(time):
            time = true_time(min(max(time, 0.0), end), window.lost, self.sample_rate)
            return window.start + time

        tokens = [
            Token(s.token, when(s.start), when(s.end), confidence)
            for s, confidence in zip(spans, confidences, strict=True)
        ]
        words = tokens if not self.space else words_of(tokens, text)
        return Transcript(text, score, tokens, words)


def _take(windows, count):
    """The next windows."""
    return list(itertools.islice(windows, count))
