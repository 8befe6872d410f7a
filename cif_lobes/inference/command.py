"""`cif-transcribe`: recordings in, transcripts out.

cif-transcribe my_model talks/ 'more/*.flac' --output_dir texts --format all
ffmpeg -i film.mkv -f wav - | cif-transcribe my_model -
cif-transcribe my_streaming_model --microphone

Any format that libsndfile reads, any rate, number of channels and length, by a run, its
export, or its ONNX export (without PyTorch). What cannot be read is reported and skipped,
and the exit status is then 1.
"""

import argparse
import pathlib
import sys

import soundfile
from tqdm import tqdm

from cif_lobes.inference.folders import is_onnx, open_recognizer
from cif_lobes.inference.formats import FORMATS, as_row
from cif_lobes.inference.inputs import STDIN, check_names, find_inputs, readable
from cif_lobes.inference.recordings import duration_of
from cif_lobes.inference.vad import WebRtcVad
from cif_lobes.settings.checks import add_option, option_type
from cif_lobes.settings.program import Parser, installed_name, run_program
from cif_lobes.storage.atomic_files import write_atomically

ONE = {"srt", "vtt", "tsv"}  # not to be printed one below the other


def command_line():
    """The options, as a cif_lobes.settings.program.Parser; see `read_command`."""
    parser = Parser(
        installed_name("python -m cif_lobes.inference"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, count = parser.add_argument, option_type(1, "how many")
    add("model", help="output_folder of a training run, or an exported folder")
    add("files", nargs="*", help="audio files, folders, globs, or - for stdin")
    add(
        "--format",
        choices=["text", *FORMATS, "all"],
        help="default: text, a line of file and text; with --output_dir all",
    )
    add("--output_dir", help="write a file per recording and format into this folder")
    add("--stream", action="store_true", help="print words as they are spoken")
    add("--microphone", action="store_true", help="--stream what is said now")
    device = option_type("cpu", "", "device")
    add("--device", type=device, help="cpu, cuda or cuda:N (default: cpu)")
    add("--beam", type=count, help="hypotheses kept (default: as in the model's yaml)")
    add_option(parser, "--batch_seconds", 60.0, "seconds", "of audio in a batch")
    add("--threads", type=count, help="CPU threads of an ONNX export (default: 1)")
    add(
        "--max_seconds",
        type=option_type(60.0, "seconds"),
        help="cut longer files at pauses (default: the longest training utterance, or 20)",
    )
    add("--vad", action="store_true", help="find the pauses with the package webrtcvad")
    add("--channel", type=count, help="of files with several, from 1 (default: mixed)")
    add_hotwords(parser)
    return parser


def add_hotwords(parser, weight=1.0, default="1"):
    """The options of `use_hotwords`; the weight, and what is said of it."""
    parser.add_argument(
        "--hotwords",
        help="phrases to prefer: a text file, one a line, a weight behind a tab",
    )
    parser.add_argument(
        "--hotword_weight",
        type=option_type(1.0, "0 for none"),
        default=weight,
        help=f"what a token of theirs earns in the search (default: {default})",
    )


def read_command(argv=None):
    """The options given, once they are known to fit each other."""
    parser = command_line()
    given = parser.parse_args(argv)
    given.stream |= given.microphone
    if given.microphone == bool(given.files):
        parser.error("give files, or --microphone")
    if given.stream and (given.format or given.output_dir):
        parser.error("--stream prints text: no --format, no --output_dir")
    if given.stream and (given.beam or given.max_seconds or given.vad):
        parser.error(
            "--stream is greedy and has no windows: no --beam, --max_seconds, --vad"
        )
    if given.max_seconds is not None and given.max_seconds < 1:
        parser.error(f"--max_seconds {given.max_seconds:g}: at least 1")
    given.format = given.format or ("all" if given.output_dir else "text")
    if given.format == "all" and not given.output_dir:
        parser.error("--format all needs --output_dir")
    if is_onnx(given.model):
        for name in ("beam", "device", "stream"):
            if getattr(given, name):
                parser.error(
                    f"--{name} is not for an ONNX export, which is greedy and waits"
                )
    elif given.threads:
        parser.error("--threads is for an ONNX export; for others set OMP_NUM_THREADS")
    given.inputs = find_inputs(given.files)
    if given.output_dir:
        check_names(given.inputs, given.output_dir)
    elif given.format in ONE and len(given.inputs) > 1:
        parser.error(
            f"{given.format} is for one file, got {len(given.inputs)}: run it for each, or "
            "give --output_dir"
        )
    return given


def main(argv=None):
    """Recognise what is given; exit status 1 if something was skipped."""
    given = read_command(argv)
    if given.stream:
        from cif_lobes.inference.live import stream

        skipped = stream(given)
    else:
        recognizer, hparams = open_recognizer(
            given.model, given.device or "cpu", given.beam, given.threads or 1
        )
        # An ONNX export hears one recording at a time.
        options = {"batch_seconds": given.batch_seconds} if hparams else {}
        if given.hotwords:
            recognizer.use_hotwords(given.hotwords, given.hotword_weight)
        skipped = transcribe(recognizer, given, options)
    if skipped:
        count = max(1, len(given.inputs))
        sys.exit(f"{skipped} of {count} files could not be read")


def transcribe(recognizer, given, options):
    """Recognise files some at a time and print in the order given, or write.

    Arguments
    ---------
    recognizer : CIFRecognizer or OnnxRecognizer
    given : argparse.Namespace
        From `read_command`.
    options : dict
        Of its `transcribe`.

    Returns
    -------
    int
        How many were skipped.
    """
    skipped, vad = 0, WebRtcVad() if given.vad else None
    hidden = (
        None if len(given.inputs) > 1 else True
    )  # None: hidden unless in a terminal
    if hidden and options:
        options = {**options, "progress": True}
    with tqdm(total=len(given.inputs), unit="file", disable=hidden) as bar:
        for group in groups(given.inputs, given.batch_seconds if options else 0):
            faults = {}
            with readable(group[0].file) as first:
                paths = [first, *(one.file for one in group[1:])]
                transcripts = recognizer.transcribe(
                    paths,
                    max_seconds=given.max_seconds,
                    on_error=faults.setdefault,
                    channel=given.channel,
                    vad=vad,
                    **options,
                )
            for one, path, found in zip(group, paths, transcripts, strict=True):
                if found is None:
                    skipped += 1
                    message = skip_message(one.file, faults[path])
                    tqdm.write(message.replace(path, one.file), file=sys.stderr)
                elif given.output_dir:
                    write(one, found, given)
                else:
                    form = FORMATS.get(given.format, as_row)
                    tqdm.write(form(one.file, found), end="", file=sys.stdout)
            sys.stdout.flush()
            bar.update(len(group))
    return skipped


def groups(inputs, seconds):
    """Inputs in turn, together as long as a batch; what is piped in is alone."""
    group, length = [], 0.0
    for one in inputs:
        # libsndfile, too, reads stdin as -, and what it has read is gone.
        duration = float("inf") if one.file == STDIN else _seconds(one.file)
        if group and length + duration > seconds:
            yield group
            group, length = [], 0.0
        group.append(one)
        length += duration
    if group:
        yield group


def _seconds(file):
    """How long a file is; 0 of one that cannot be read, which is found out later."""
    try:
        return duration_of(file, sample_rate=None)
    except (OSError, ValueError, soundfile.SoundFileError):
        return 0.0


def write(one, transcript, given):
    """A file per format."""
    names = FORMATS if given.format == "all" else [given.format.replace("text", "txt")]
    for name in names:
        path = pathlib.Path(given.output_dir, f"{one.name}.{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, FORMATS[name](one.file, transcript))


def skip_message(file, error):
    """What is said of a recording that cannot be read."""
    known = file == STDIN or pathlib.Path(file).exists()
    cause = str(error).removeprefix(f"{file}: ") if known else "no such file"
    if known and "ffmpeg" not in cause:
        cause += " Try: ffmpeg -i IN OUT.flac"
    return f"skipped {file}: {cause}"


def program():
    """cif-transcribe, and python -m cif_lobes.inference in a checkout."""
    run_program(main)
