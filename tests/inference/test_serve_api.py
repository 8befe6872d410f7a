"""POST /transcribe, asked over a real socket."""

import concurrent.futures
import contextlib
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import requests
import soundfile
from conftest import ROOT

uvicorn = pytest.importorskip("uvicorn")

from cif_lobes.inference.recognizer import CIFRecognizer  # noqa: E402
from cif_lobes.inference.serve.__main__ import main  # noqa: E402
from cif_lobes.inference.serve.api import make_app  # noqa: E402
from cif_lobes.inference.serve.worker import Worker  # noqa: E402


@contextlib.contextmanager
def served(worker, page=None, **limits):
    """The address of a server that runs within the block."""
    app = make_app(worker, **limits)
    if page:
        app = page(app, worker)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/transcribe"
    finally:
        server.should_exit = True
        thread.join()
        worker.close()


@pytest.fixture(scope="module")
def recognizer(exported):
    return CIFRecognizer.from_export(exported)


@pytest.fixture(scope="module")
def address(recognizer):
    with served(Worker(recognizer), max_megabytes=1) as address:
        yield address


def post(address, path, **fields):
    with open(path, "rb") as file:
        return requests.post(address, files={"file": file}, data=fields, timeout=60)


def test_an_answer_is_what_the_recogniser_says(address, recognizer, utterances):
    path, _, text = utterances[0]
    wanted = recognizer.transcribe(path)
    found = post(address, path).json()
    assert found["text"] == wanted.text == text
    assert [word["token"] for word in found["words"]] == list(text)
    assert found["words"][0]["end"] == pytest.approx(wanted.words[0].end)


def test_a_body_is_a_recording_too(address, utterances):
    path, _, text = utterances[1]
    with open(path, "rb") as file:
        answer = requests.post(f"{address}?format=srt", data=file, timeout=60)
    assert answer.text.startswith("1\n00:00:")
    assert text in answer.text
    assert answer.headers["content-type"].startswith("text/plain")


def test_fifty_clients_get_fifty_answers(address, recognizer, utterances):
    """Each its own, while others wait."""
    files = [wav for wav, _, _ in utterances]
    wanted = [transcript.text for transcript in recognizer.transcribe(files)]
    assert len(set(wanted)) > 8
    asked = [i % len(files) for i in range(50)]
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        answers = pool.map(lambda i: post(address, files[i]).json()["text"], asked)
        assert list(answers) == [wanted[i] for i in asked]


def test_hotwords_are_of_one_call(recognizer):
    used = []

    class Recognizer:
        sample_rate = 16000

        def use_hotwords(self, hotwords):
            used.append(hotwords)

        def transcribe(self, path, channel):
            used.append("heard")
            return recognizer.transcribe(path, channel=channel)

    sound = io.BytesIO()
    soundfile.write(sound, [0.0] * 8000, 16000, format="WAV")
    with served(Worker(Recognizer())) as address:
        for hotwords in ("one two\n\nthree\n", ""):
            data = {"file": ("a.wav", sound.getvalue())}
            answer = requests.post(address, files=data, data={"hotwords": hotwords})
            assert answer.status_code == 200
    assert used == [["one two", "three"], "heard", None, "heard"]


def test_what_is_wrong_is_said(address, tmp_path, utterances):
    """With the name that the client gave, and no path of this machine."""
    path = tmp_path / "notes.wav"
    path.write_text("no sound at all")
    answer = post(address, path)
    assert answer.status_code == 400
    assert "notes.wav" in answer.text and "/tmp" not in answer.text
    wav = utterances[0][0]
    for fields, said in [
        ({"format": "doc"}, "format 'doc': one of txt, "),
        ({"channel": "0"}, "channel '0': a number from 1"),
        ({"channel": "3"}, "channel"),
    ]:
        answer = post(address, wav, **fields)
        assert answer.status_code == 400
        assert said in answer.text
    answer = requests.post(address, files={"sound": b"x"}, timeout=60)
    assert (answer.status_code, "no field `file`" in answer.text) == (400, True)
    assert requests.post(address, timeout=60).status_code == 400  # an empty body
    for name in ("../../etc/passwd", "..", "a.raw", "名" * 100):
        answer = requests.post(address, files={"file": (name, b"x")}, timeout=60)
        assert answer.status_code == 400


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_before_it_is_kept(address, chunked):
    """Also one that does not say how large it is."""
    body = bytes(2_000_000)
    parts = (body[i : i + 100_000] for i in range(0, len(body), 100_000))
    try:
        answer = requests.post(address, data=parts if chunked else body, timeout=60)
    except requests.ConnectionError:  # closed while we were still sending
        return
    assert answer.status_code == 413
    assert "more than 1 MB" in answer.text


def test_a_long_recording_is_refused(recognizer, tmp_path):
    soundfile.write(tmp_path / "long.flac", [0.0] * 16000 * 61, 16000)
    with served(Worker(recognizer, max_minutes=1)) as address:
        answer = post(address, tmp_path / "long.flac")
    assert answer.status_code == 400
    assert "1.0 minutes of audio, at most 1 are taken" in answer.text


def test_a_full_queue_and_a_slow_answer_say_so(recognizer, utterances):
    free = threading.Event()

    class Slow:
        sample_rate = 16000

        def transcribe(self, path, channel):
            free.wait(30)
            return recognizer.transcribe(path)

    worker = Worker(Slow(), max_waiting=1)
    with served(worker) as address, concurrent.futures.ThreadPoolExecutor(2) as pool:
        wav, _, text = utterances[0]
        heard = [pool.submit(post, address, wav) for _ in range(2)]
        while worker._asked < 2:
            time.sleep(0.01)
        refused = post(address, wav)
        free.set()
        assert [answer.result().json()["text"] for answer in heard] == [text] * 2
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "60"
    free.clear()
    with served(Worker(Slow()), max_wait=0.1) as address:
        answer = post(address, wav)
        free.set()
    assert (answer.status_code, answer.text) == (503, "no answer after 0.1 s\n")


def test_json_is_one_object(address, utterances):
    answer = post(address, utterances[0][0], format="json")
    assert answer.headers["content-type"] == "application/json"
    assert set(json.loads(answer.text)) >= {"text", "words", "tokens", "nbest"}


def test_the_command_serves_until_it_is_stopped(exported, utterances):
    """As docs/serve.md has it, on a port that is free."""
    documented = "python -m cif_lobes.inference.serve results/"
    assert documented in (ROOT / "docs/serve.md").read_text()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "cif_lobes.inference.serve", exported]
    process = subprocess.Popen(
        [*command, "--port", port], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        address = process.stdout.readline().decode().strip()
        assert address == f"http://127.0.0.1:{port}"
        wait_for(f"{address}/docs")
        wav, _, text = utterances[0]
        assert post(f"{address}/transcribe", wav).json()["text"] == text
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert b"Traceback" not in errors, errors
    assert process.returncode in (0, 130)


def wait_for(address):
    """Until somebody listens there."""
    end = time.monotonic() + 60
    while True:
        try:
            return requests.get(address, timeout=5)
        except requests.ConnectionError:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_a_missing_package_is_named(monkeypatch, exported):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit, match=r"uvicorn is missing: pip install 'cif-lobes"):
        main([str(exported)])


def test_an_onnx_export_is_greedy(tmp_path):
    (tmp_path / "recognizer.json").write_text("{}")
    with pytest.raises(ValueError, match="leave out --beam and --device"):
        main([str(tmp_path), "--beam", "4"])
