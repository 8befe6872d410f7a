"""A stream as lines of text, one after the other, for as long as somebody speaks."""

MAX_UTTERANCE = 60.0  # seconds
# Seconds without speech that end an utterance, whatever the network says.
PAUSE = 3.0


class Lines:
    """Audio chunks to lines, of which the last one grows.

    A line is an utterance. It ends where the network says so, which is asked once more
    when nobody has spoken for a second: people pause within sentences, too, and a network
    that is begun anew there has lost what came before. In any case it ends after three
    seconds without speech, or after a minute. Behind an end of sentence a
    `StreamingRecognizer` hears nothing until it is told that another utterance begins.

    Arguments
    ---------
    recognizer : cif_lobes.inference.stream.StreamingRecognizer

    Attributes
    ----------
    finished : list of str
        Lines that will not change, but empty ones.
    growing : str
        What has been said since.
    """

    def __init__(self, recognizer):
        self.recognizer = recognizer
        self.finished, self.growing = [], ""
        self._asked = False  # at this pause, whether the sentence is complete

    def push(self, signal):
        """Hear the next samples, see `StreamingRecognizer.push`."""
        self._take(self.recognizer.push(signal))
        if self._has_ended():
            self.finish()

    def finish(self):
        """End the line that grows."""
        self._take(self.recognizer.finish())
        if self.growing:
            self.finished.append(self.growing)
        self.growing = ""

    def _take(self, tokens):
        if tokens:
            self.growing = tokens[-1].text

    def _has_ended(self):
        gate = self.recognizer.gate
        longest = MAX_UTTERANCE * self.recognizer.sample_rate
        if self.recognizer.ended or gate.passed > longest or gate.silence >= PAUSE:
            return True
        asked, self._asked = self._asked, gate.silence > 0
        return gate.silence > 0 and not asked and self.recognizer.is_complete()
