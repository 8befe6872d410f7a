"""One recogniser for many clients: their recordings stand in one queue."""

import functools
import threading
from concurrent.futures import ThreadPoolExecutor

from cif_lobes.inference.recordings import duration_of


class Busy(RuntimeError):
    """Too many wait already."""


class Worker:
    """Runs one thing at a time, in the order in which it was asked.

    A second thread would not be quicker: the network uses the cores that there are, and
    hotwords belong to the recogniser, not to a call.

    Arguments
    ---------
    recognizer : CIFRecognizer or OnnxRecognizer
    max_waiting : int
        Recordings in the queue beside the one that is heard; what comes on top is refused.
    max_minutes : float
        Longer recordings are refused.
    """

    def __init__(self, recognizer, max_waiting=100, max_minutes=60.0):
        self.recognizer = recognizer
        self.max_waiting, self.max_minutes = max_waiting, max_minutes
        self._lock, self._asked = threading.Lock(), 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="recogniser")

    def transcribe(self, path, hotwords=None, channel=None):
        """Put a recording into the queue.

        Arguments
        ---------
        path : str
            File that libsndfile reads. It must stay until the future is done.
        hotwords : list of str, optional
            For this recording alone.
        channel : int, optional
            Of a file with several, from 1.

        Returns
        -------
        concurrent.futures.Future
            Of a `cif_lobes.inference.transcript.Transcript`, or of the error that the
            recogniser raises.

        Raises
        ------
        Busy
            If the queue is full.
        """
        return self.submit(self._transcribe, path, hotwords, channel)

    def submit(self, function, *arguments):
        """Put anything that runs the network into the queue; see `transcribe`."""
        with self._lock:
            if self._asked > self.max_waiting:
                raise Busy(
                    f"{self.max_waiting} recordings wait already: try again in a minute"
                )
            self._asked += 1
        future = self._thread.submit(function, *arguments)
        future.add_done_callback(self._done)
        return future

    def close(self):
        """Let go of the thread; what waits is cancelled."""
        self._thread.shutdown(cancel_futures=True)

    def _done(self, future):
        with self._lock:
            self._asked -= 1

    def _transcribe(self, path, hotwords, channel):
        minutes = duration_of(path, self.recognizer.sample_rate) / 60
        if minutes > self.max_minutes:
            raise ValueError(
                f"{minutes:.1f} minutes of audio, at most {self.max_minutes:g} are "
                "taken: send it in parts"
            )
        if not hotwords:
            return self.recognizer.transcribe(path, channel=channel)
        self.recognizer.use_hotwords(hotwords)
        try:
            return self.recognizer.transcribe(path, channel=channel)
        finally:
            self.recognizer.use_hotwords(None)


def phrases(text):
    """Hotwords of a text with one a line; empty lines do not count."""
    return list(filter(None, map(str.strip, (text or "").splitlines())))


def find_stream(hparams, device):
    """Makes a `StreamingRecognizer` of a recogniser's objects; None if it cannot be.

    Arguments
    ---------
    hparams : dict
        From `cif_lobes.inference.folders.open_recognizer`: the network is shared.
    device : str
    """
    from cif_lobes.inference.stream import StreamingRecognizer

    make_stream = functools.partial(StreamingRecognizer, hparams, device)
    try:
        make_stream()
    except ValueError:  # its features, encoder or decoder hear the whole utterance
        return None
    return make_stream
