"""The speech of a stream: silence and steady noise are held back, however long."""

import math

import numpy as np

from cif_lobes.inference.pauses import true_time
from cif_lobes.inference.recordings import BLOCK, is_steady

# Seconds that pass before the first speech: its begin is seen within them, and a network
# writes something for more of silence.
BEFORE = 0.5


class SpeechGate:
    """Passes a stream on, from before somebody speaks to a second after.

    After every 50 ms it asks `cif_lobes.inference.recordings.is_steady` of the last
    second. Samples go through at once while the gate is open, and wait while it is
    closed; what has waited for a second is lost, and half a second before the first
    speech, unless that comes within a second of the begin. So the same samples pass
    whatever the chunks, and all of a recording without a pause of a second.

    Arguments
    ---------
    sample_rate : int
        Hz.
    seconds : float
        That decide, and that pass after speech.

    Example
    -------
    >>> gate, silence = SpeechGate(1000), np.zeros(60000)
    >>> word = np.sin(np.arange(500.0)) * np.arange(500)
    >>> sum(len(gate.push(sound)) for sound in (silence, word, silence, word)) < 5000
    True
    """

    def __init__(self, sample_rate, seconds=1.0):
        self.sample_rate = sample_rate
        self.block = round(BLOCK * sample_rate)
        self.size = math.ceil(seconds / BLOCK) * self.block
        self.before = round(BEFORE / BLOCK) * self.block
        self.heard = np.zeros(0, np.float32)  # the last second and an unfinished block
        self.waiting = 0  # samples at the end of it that have not passed
        self.is_open = False
        self.received = self.passed = 0  # samples
        self.spoken = 0  # samples received when somebody last spoke
        self.openings = []  # samples that had passed, seconds that had been lost

    def push(self, signal):
        """Hear the next samples.

        Arguments
        ---------
        signal : numpy.ndarray, [samples], float32

        Returns
        -------
        numpy.ndarray, [samples], float32
            Those to recognise now; often none.
        """
        first, passing = 0, [self.heard[:0]]
        while first < len(signal):
            size = self.block - self.received % self.block
            piece = signal[first : first + size]
            first += size
            self.received += len(piece)
            self.heard = np.concatenate([self.heard, piece])
            self.waiting += len(piece)
            if self.is_open:
                passing.append(self._pass())
            if self.received % self.block == 0:
                self.heard = self.heard[-self.size :]
                begins = not self.passed and self.received > self.size
                most = self.before if begins else len(self.heard)
                self.waiting = min(self.waiting, most)
                was_open = self.is_open
                self.is_open = not is_steady(self.heard, self.sample_rate)
                if was_open and not self.is_open:
                    self.spoken = self.received - len(self.heard)
                if self.is_open and not was_open:
                    lost = self.received - self.waiting - self.passed
                    self.openings.append((self.passed, lost / self.sample_rate))
                    passing.append(self._pass())
        return np.concatenate(passing)

    @property
    def silence(self):
        """float: seconds since somebody spoke; 0 while, and before, somebody does."""
        if self.is_open or not self.passed:
            return 0.0
        return (self.received - self.spoken) / self.sample_rate

    def true_time(self, seconds):
        """When what has passed was received, both in seconds from the first sample."""
        return true_time(seconds, self.openings, self.sample_rate)

    def _pass(self):
        """What has been waiting."""
        passing = self.heard[len(self.heard) - self.waiting :]
        self.passed += len(passing)
        self.waiting = 0
        return passing
