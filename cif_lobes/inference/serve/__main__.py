"""Listen on a page and at POST /transcribe, with a run, an export or an ONNX export.

python -m cif_lobes.inference.serve results/AISHELL-1/cif/1986

Then open http://127.0.0.1:7860, or: curl -F file=@a.wav http://127.0.0.1:7860/transcribe
Nobody else reaches it unless --host says so: there is no password and no encryption.
"""

import os
import sys

from cif_lobes.inference.folders import is_onnx, open_recognizer
from cif_lobes.settings.checks import add_option, option_type
from cif_lobes.settings.program import Parser, run_program

GRACE = 5  # seconds after Ctrl-C for answers that are nearly ready


def parse_arguments(argv):
    """The command line."""
    parser = Parser("python -m cif_lobes.inference.serve", description=__doc__)
    add = parser.add_argument
    add("model", help="output_folder of a training run, an export or an ONNX export")
    add(
        "--host", default="127.0.0.1", help="address (default: 127.0.0.1, this machine)"
    )
    add_option(parser, "--port", 7860, "port", "of this machine")
    add("--beam", type=option_type(10, "how many"), help="hypotheses kept")
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    add_option(parser, "--max_minutes", 60.0, "minutes", "of a recording")
    add_option(parser, "--max_megabytes", 200.0, "megabytes", "of an upload")
    add_option(parser, "--max_waiting", 100, "how many", "recordings in the queue")
    return parser.parse_args(argv)


def main(argv=None):
    """Serve until Ctrl-C."""
    given = parse_arguments(argv)
    try:
        import uvicorn

        from cif_lobes.inference.serve.api import make_app
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is missing: pip install 'cif-lobes[serve]'")
    from cif_lobes.inference.serve.worker import Worker, find_stream

    if is_onnx(given.model) and (given.beam or given.device != "cpu"):
        raise ValueError(
            f"{given.model} is an ONNX export, which is greedy and runs on the cpu: "
            "leave out --beam and --device, or serve the run"
        )
    threads = os.cpu_count() or 1
    recognizer, hparams = open_recognizer(
        given.model, given.device, given.beam, threads
    )
    make_stream = hparams and find_stream(hparams, given.device)
    worker = Worker(recognizer, given.max_waiting, given.max_minutes)
    app = make_app(worker, given.max_megabytes)
    try:
        from cif_lobes.inference.serve.page import add_page

        app = add_page(app, worker, make_stream, given.max_megabytes)
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        print(
            "POST /transcribe only: the page needs gradio, "
            "pip install 'cif-lobes[serve]'",
            file=sys.stderr,
        )
    print(f"http://{given.host}:{given.port}", flush=True)
    try:
        uvicorn.run(
            app,
            host=given.host,
            port=given.port,
            log_level="warning",
            timeout_graceful_shutdown=GRACE,
        )
    finally:
        worker.close()


if __name__ == "__main__":
    run_program(main)
