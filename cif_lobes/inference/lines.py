"""A stream as lines of text, one after the other, for as long as somebody speaks."""

MAX_UTTERANCE = 60.0  # seconds
# Seconds without speech that end an utterance. After one, people often go on with the
# sentence: the network, too, which otherwise begins anew in the middle of it.
PAUSE = 3.0


class Lines:
    """Audio chunks to lines, of which the last one grows.

    A line is an utterance. It ends where the network says so, after three seconds
    without speech, or after a minute: behind an end of sentence a `StreamingRecognizer` hears
    nothing until it is told that another utterance begins.

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

    def push(self, signal):
        """Hear the next samples, see `StreamingRecognizer.push`."""
        self._take(self.recognizer.push(signal))
        longest = MAX_UTTERANCE * self.recognizer.sample_rate
        if (
            self.recognizer.ended
            or self.recognizer.gate.silence >= PAUSE
            or self.recognizer.gate.passed > longest
        ):
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
