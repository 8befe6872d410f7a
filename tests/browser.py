"""A headless Chromium, driven over its own pipe: what a page does, and what it logs."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run
--disable-background-networking --disable-component-update --disable-sync
--hide-scrollbars --mute-audio --remote-debugging-pipe""".split()


def find():
    """Path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """A tab.

    Attributes
    ----------
    complaints : list of str
        What has come onto its console, and what the network was asked for.
    """

    def __init__(self, commands, answers):
        self.commands, self.answers = commands, answers
        self.session, self.number, self.complaints = None, 0, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """Send a command of the DevTools protocol and wait for its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.commands.write(json.dumps(message).encode() + b"\0")
        self.commands.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _next(self):
        """The next message; complaints are kept."""
        message = bytearray()
        while (byte := self.answers.read(1)) != b"\0":
            assert byte, "Chromium has gone"
            message += byte
        message = json.loads(message)
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.consoleAPICalled":
                self.complaints.append(str(params["args"]))
            case "Runtime.exceptionThrown":
                self.complaints.append(str(params["exceptionDetails"]))
            case "Log.entryAdded":
                self.complaints.append(params["entry"]["text"])
            case "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith(("file:", "data:", "about:")):
                    self.complaints.append(url)
        return message

    def open(self, path):
        """Load a file, or a str's address, and wait for it."""
        url = path if isinstance(path, str) else path.resolve().as_uri()
        self.call("Page.navigate", url=url)
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def choose(self, selector, path):
        """Give a file to an input of the page."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        assert node, f"no {selector}"
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def wait(self, expression, seconds=60):
        """Until a JavaScript expression is true; its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(expression)):
            assert time.monotonic() < end, f"not within {seconds} s: {expression}"
            time.sleep(0.1)
        return value

    def run(self, expression):
        """The value of a JavaScript expression, awaited; a user has just clicked."""
        answer = self.call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def look(self, path, width=1280, height=900, dark=False, whole=True):
        """Take a picture, png."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1}
        self.call("Emulation.setDeviceMetricsOverride", **metrics, mobile=width < 600)
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def browser(chromium, *flags):
    """A `Page` in a Chromium of its own, which ends with the block."""
    to_child, commands = os.pipe()
    answers, from_child = os.pipe()
    # What it still writes while it ends is no error.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The pipe is the child's file descriptors 3 and 4. Not sh: dash has no more than 9.
        script = f'exec "$@" 3<&{to_child} 4>&{from_child}'
        words = ["bash", "-c", script, "-", chromium, *FLAGS, *flags]
        words.append(f"--user-data-dir={profile}")
        process = subprocess.Popen(
            words,
            pass_fds=(to_child, from_child),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_child)
        os.close(from_child)
        try:
            with open(commands, "wb") as write, open(answers, "rb") as read:
                yield Page(write, read)
            # With its pipe closed, it ends by itself.
            process.wait(timeout=20)
        finally:
            process.kill()
            process.wait()
