"""The page that listens, in a real browser, with a file and with a microphone."""

from functools import partial
from types import SimpleNamespace

import browser
import numpy as np
import pytest
import soundfile
from conftest import speak

pytest.importorskip("gradio", reason="the page is an optional extra")
pytest.importorskip("uvicorn")

from test_serve_api import served  # noqa: E402

from cif_lobes.data.batches import resample  # noqa: E402
from cif_lobes.inference.recognizer import CIFRecognizer  # noqa: E402
from cif_lobes.inference.serve.page import Listener, add_page  # noqa: E402
from cif_lobes.inference.serve.worker import Worker  # noqa: E402

TEXT = "document.querySelector('#text textarea')?.value"


@pytest.fixture(scope="module")
def chromium():
    return browser.find() or pytest.skip("no Chromium")


def press(tab, words):
    tab.run(
        "[...document.querySelectorAll('button')]"
        # Of tabs there are two, the first for measuring.
        f".findLast(b => b.textContent.trim() == {words!r}).click()"
    )


@pytest.mark.slow
def test_a_file_becomes_text(chromium, exported, utterances, tmp_path):
    recognizer = CIFRecognizer.from_export(exported)
    wav = utterances[0][0]
    worker = Worker(recognizer)
    with served(worker, page=add_page) as address, browser.browser(chromium) as tab:
        tab.open(address.removesuffix("transcribe"))
        tab.wait("!!document.querySelector('#transcribe')")
        press(tab, "Transcribe")
        tab.wait("document.body.innerText.includes('There is no recording')")
        tab.wait("!!document.querySelector('input[type=file]')")
        tab.choose("input[type=file]", wav)
        tab.wait("!!document.querySelector('audio, .waveform-container')")
        press(tab, "Transcribe")
        assert tab.wait(TEXT) == recognizer.transcribe(wav).text
        names = tab.wait("document.querySelector('#files').innerText")
        assert ".srt" in names and ".json" in names
        tab.look(tmp_path / "page.png")


class Counter:
    """Hears nothing, and counts seconds: a word for each that was not silent."""

    sample_rate, ended = 16000, False
    gate = SimpleNamespace(passed=1, silence=0.0)

    def __init__(self):
        self.heard = []

    def push(self, samples):
        self.heard.append(samples)
        seconds = np.concatenate(self.heard)
        seconds = seconds[: len(seconds) // 16000 * 16000].reshape(-1, 16000)
        words = ["sound" if rms > 0.01 else "hush" for rms in seconds.std(axis=1)]
        return [SimpleNamespace(text=" ".join(words))]

    def finish(self):
        return [SimpleNamespace(text="all")]


@pytest.mark.slow
def test_text_grows_while_one_speaks(chromium, tmp_path):
    """Into a microphone that Chromium makes of a file, over and over."""
    wav = tmp_path / "speech.wav"
    soundfile.write(wav, speak("abcdbdac" * 2), 16000)
    fake = [
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={wav}",
    ]
    worker, page = Worker(None), partial(add_page, make_stream=Counter)
    live = "document.querySelector('#live textarea')?.value"
    with (
        served(worker, page=page) as address,
        browser.browser(chromium, *fake) as tab,
    ):
        tab.open(address.removesuffix("transcribe"))
        tab.wait("[...document.querySelectorAll('button')].length > 1")
        press(tab, "While you speak")
        tab.wait("!!document.querySelector('button.record-button')")
        press(tab, "Record")
        begun = tab.wait(live)
        tab.wait(f"{live}.length > {len(begun)} + 12")
        assert tab.run(live).startswith(begun)
        assert "sound sound" in tab.run(live)
        press(tab, "Stop")
        tab.wait(f"{live} == 'all'")


def test_a_microphone_is_heard_as_the_file_is(signals):
    """At the 48 kHz of a browser, in stereo, half a second at a time."""
    signal = signals[0]
    loud = resample(signal, 16000, 48000).mul(32767).round().short().numpy()
    recognizer = Counter()
    listener = Listener(recognizer)
    stereo = np.stack([loud, loud], axis=1)
    texts = [
        listener.push(stereo[i : i + 24000], 48000) for i in range(0, len(loud), 24000)
    ]
    assert texts[2] == "sound"
    assert listener.finish() == "all"
    heard = np.concatenate(recognizer.heard)
    assert len(heard) == len(signal)
    assert np.corrcoef(heard, signal)[0, 1] > 0.99
