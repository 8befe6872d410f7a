"""Where somebody speaks, by the voice activity detector of WebRTC, if it is installed."""

import numpy as np

RATE = 16000  # Hz at which it listens


class WebRtcVad:
    """Probability of speech, for `cif_lobes.inference.windows.find_pause`.

    Arguments
    ---------
    strictness : int, 0 to 3
        How much of what may be speech is not.

    Raises
    ------
    ValueError
        If the package is not installed.
    """

    def __init__(self, strictness=2):
        try:
            import webrtcvad
        except ImportError:
            raise ValueError(
                "--vad: the package webrtcvad is not installed: pip install "
                "webrtcvad-wheels. Without --vad recordings are cut where they are "
                "quietest"
            ) from None
        self.detector = webrtcvad.Vad(strictness)

    def __call__(self, signal, sample_rate):
        """Decide for each 10 ms of a signal, [samples], float32, of `sample_rate` Hz.

        Returns
        -------
        numpy.ndarray, [samples / (sample_rate / 100)], float
            1.0 where it is speech, else 0.0.
        """
        # Straight lines between samples are good enough to tell speech.
        times = np.arange(round(len(signal) * RATE / sample_rate)) * sample_rate / RATE
        heard = np.interp(times, np.arange(len(signal)), signal)
        samples = (heard.clip(-1, 1) * 32767).astype("<i2")
        frame = RATE // 100
        count = len(signal) // (sample_rate // 100)
        samples = np.pad(samples, (0, max(0, count * frame - len(samples))))
        frames = samples[: count * frame].reshape(count, frame)
        decide = self.detector.is_speech
        return np.array([decide(f.tobytes(), RATE) for f in frames], float)
