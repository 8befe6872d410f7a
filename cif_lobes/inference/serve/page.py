"""The page: a recording or a microphone, text, words with their times, files to download."""

import pathlib
import tempfile

import gradio
import soundfile

from cif_lobes.inference.formats import FORMATS
from cif_lobes.inference.lines import Lines
from cif_lobes.inference.serve.worker import Busy, phrases
from cif_lobes.inference.stream_resampler import StreamResampler

KEPT = 3600  # seconds, of downloads and of what was uploaded
SECONDS = 0.5  # of microphone at a time


def add_page(app, worker, make_stream=None, max_megabytes=200):
    """Put the page at / of an application.

    Arguments
    ---------
    app : fastapi.FastAPI
    worker : cif_lobes.inference.serve.worker.Worker
    make_stream : callable, optional
        Makes a `StreamingRecognizer`: there is then a tab that writes while one speaks.
    max_megabytes : float
        Of an upload.

    Returns
    -------
    fastapi.FastAPI
    """
    page = make_page(worker, make_stream)
    limit = int(max_megabytes * 1e6)
    return gradio.mount_gradio_app(app, page, path="/", max_file_size=limit)


def make_page(worker, make_stream=None):
    """The page by itself, a `gradio.Blocks`."""
    with gradio.Blocks(title="cif-lobes", delete_cache=(KEPT, KEPT)) as page:
        if make_stream is None:
            _recordings(worker)
        else:
            with gradio.Tab("Recording"):
                _recordings(worker)
            with gradio.Tab("While you speak"):
                _microphone(worker, make_stream)
    return page


def _recordings(worker):
    """Upload or record, then read."""
    audio = gradio.Audio(
        sources=["upload", "microphone"], type="filepath", label="Recording"
    )
    hotwords = gradio.Textbox(
        lines=2, label="Hotwords", info="Names and terms that may occur, one a line"
    )
    button = gradio.Button("Transcribe", variant="primary", elem_id="transcribe")
    text = gradio.Textbox(label="Text", lines=3, elem_id="text", buttons=["copy"])
    with gradio.Accordion("Words", open=False):
        words = gradio.Dataframe(
            headers=["word", "start, s", "end, s", "confidence"], label="Words"
        )
    with gradio.Accordion("Alternatives", open=False):
        nbest = gradio.Dataframe(headers=["text", "log-probability"], label="n-best")
    files = gradio.Files(label="Download", elem_id="files", interactive=False)

    def transcribe(path, hotwords):
        if path is None:
            raise _error("There is no recording: upload one, or press record")
        name = pathlib.Path(path).name
        try:
            transcript = worker.transcribe(path, phrases(hotwords)).result()
        except (Busy, OSError, ValueError, soundfile.SoundFileError) as error:
            raise _error(str(error).replace(path, name)) from None
        return (
            transcript.text,
            [
                [w.token, round(w.start, 2), round(w.end, 2), round(w.confidence, 3)]
                for w in transcript.words
            ],
            [[t.text, round(t.score, 2)] for t in transcript.nbest],
            _write_files(name, transcript),
        )

    button.click(
        transcribe,
        [audio, hotwords],
        [text, words, nbest, files],
        concurrency_limit=None,
        api_name=False,
    )


def _error(message):
    """For the visitor, and not for the log: it is no fault of ours."""
    return gradio.Error(message, print_exception=False)


def _write_files(name, transcript):
    """The transcript in every format, where gradio may read it until it is old."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=_temporary_folder()))
    paths = []
    for kind, write in FORMATS.items():
        path = folder / f"{pathlib.Path(name).stem}.{kind}"
        path.write_text(write(name, transcript), encoding="utf-8")
        paths.append(str(path))
    return paths


def _temporary_folder():
    """Where gradio looks for files to delete."""
    folder = gradio.utils.get_upload_folder()
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    return folder


def _microphone(worker, make_stream):
    """Text that grows while one speaks."""
    audio = gradio.Audio(
        sources=["microphone"], streaming=True, type="numpy", label="Microphone"
    )
    text = gradio.Textbox(label="Text", lines=5, elem_id="live")
    listener = gradio.State(None)

    def push(chunk, heard):
        heard = heard or Listener(make_stream())
        rate, samples = chunk
        return heard, ask(heard.push, samples, rate)

    def finish(heard):
        return None, ask(heard.finish) if heard else ""

    def ask(function, *arguments):
        try:
            return worker.submit(function, *arguments).result()
        except (Busy, ValueError) as error:
            raise _error(str(error)) from None

    both = [listener, text]
    options = {"api_name": False, "concurrency_limit": None}
    audio.stream(push, [audio, listener], both, stream_every=SECONDS, **options)
    audio.stop_recording(finish, listener, both, **options)


class Listener:
    """Chunks of a microphone to text, of one visitor.

    Arguments
    ---------
    recognizer : cif_lobes.inference.stream.StreamingRecognizer
    """

    def __init__(self, recognizer):
        self.lines, self.resampler = Lines(recognizer), None

    def push(self, samples, rate):
        """What was said so far, with the next samples [n] or [n, channels], int16."""
        samples = (
            samples.reshape(len(samples), -1).mean(axis=1, dtype="float32") / 32768
        )
        if self.resampler is None:
            self.resampler = StreamResampler(rate, self.lines.recognizer.sample_rate)
        self.lines.push(self.resampler.push(samples))
        return self._text()

    def finish(self):
        """All that was said."""
        if self.resampler:
            self.lines.push(self.resampler.finish())
        self.lines.finish()
        return self._text()

    def _text(self):
        return "\n".join(filter(None, [*self.lines.finished, self.lines.growing]))
