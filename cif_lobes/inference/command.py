"""The command line of the recognisers: files in, transcripts out."""

import pathlib
import sys

from tqdm import tqdm

from cif_lobes.inference.transcript import FORMATS
from cif_lobes.inference.vad import WebRtcVad
from cif_lobes.settings.checks import option_type
from cif_lobes.settings.program import Parser, installed_name


def command_line(name):
    """The options that all have.

    Arguments
    ---------
    name : str
        Of the program.

    Returns
    -------
    cif_lobes.settings.program.Parser
        To be read by `read_command`.
    """
    parser = Parser(installed_name(name), description="Recognise recordings.")
    add = parser.add_argument
    add("model", help="output_folder of a training run, or an exported folder")
    add("files", nargs="+", help="audio files")
    add("--format", choices=FORMATS, default="text", help="default: text")
    add(
        "--max_seconds",
        type=option_type(60.0, "seconds"),
        help="cut longer files at pauses (default: the longest training utterance, or 20)",
    )
    add("--vad", action="store_true", help="find the pauses with the package webrtcvad")
    add(
        "--channel",
        type=option_type(1, "how many"),
        help="of files with several, from 1 (default: mixed)",
    )
    add_hotwords(parser)
    return parser


def add_hotwords(parser):
    """The options of `use_hotwords`, which all recognisers have."""
    parser.add_argument(
        "--hotwords",
        help="phrases to prefer: a text file, one a line, a weight behind a tab",
    )
    parser.add_argument(
        "--hotword_weight",
        type=option_type(1.0, "0 for none"),
        default=1.0,
        help="what a token of theirs earns in the search (default: 1)",
    )


def read_command(parser, argv):
    """The options given, once they are known to fit each other."""
    given = parser.parse_args(argv)
    if given.format == "srt" and len(given.files) > 1:
        parser.error(f"srt is for one file, got {len(given.files)}: run it for each")
    if given.max_seconds is not None and given.max_seconds < 1:
        parser.error(f"--max_seconds {given.max_seconds:g}: at least 1")
    return given


def transcribe_and_print(recognizer, given, **options):
    """Recognise files, print in the order given; exit status 1 if one was skipped.

    Arguments
    ---------
    recognizer : CIFRecognizer or OnnxRecognizer
    given : argparse.Namespace
        From `read_command`.
    **options
        Of its `transcribe`.
    """
    if given.hotwords:
        recognizer.use_hotwords(given.hotwords, given.hotword_weight)
    skipped = []

    def skip(file, error):
        skipped.append(file)
        # Above the bar, if there is one.
        tqdm.write(skip_message(file, error), file=sys.stderr)

    transcripts = recognizer.transcribe(
        given.files,
        max_seconds=given.max_seconds,
        on_error=skip,
        channel=given.channel,
        vad=WebRtcVad() if given.vad else None,
        **options,
    )
    for file, transcript in zip(given.files, transcripts, strict=True):
        if transcript is not None:
            print(FORMATS[given.format](file, transcript), end="")
    if skipped:
        sys.exit(f"{len(skipped)} of {len(given.files)} files could not be read")


def skip_message(file, error):
    """What is said of a file that cannot be read."""
    known = pathlib.Path(file).exists()
    cause = str(error).removeprefix(f"{file}: ") if known else "no such file"
    if known and "ffmpeg" not in cause:
        cause += " Try: ffmpeg -i IN OUT.flac"
    return f"skipped {file}: {cause}"
