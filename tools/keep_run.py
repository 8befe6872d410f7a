"""Keep a run's figures under docs/runs, where tools/results.py reads them.

python tools/keep_run.py results/MiniSpeech/cif/1986 docs/runs/minispeech-cif-1986 --data "MiniSpeech, 3 h: the quickstart's row" --rename /scratch/mini=data/MiniSpeech

Copies run.json, epochs.jsonl, and of errors_*.txt the line with each utterance's counts.
The commands have to run elsewhere: folders of this machine get other names.
"""  # noqa: E501

import argparse
import json
import pathlib
import re
import shlex
import shutil

from cif_lobes.decoding.significance import SCORE
from cif_lobes.settings.program import run_program

ABSOLUTE = re.compile(r"(?<![\w./*-])/\w[^\s,'\"\]]*")


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=pathlib.Path, help="run folder")
    parser.add_argument("kept", type=pathlib.Path, help="folder to write")
    parser.add_argument(
        "--data",
        required=True,
        help="what it was trained on, in words: DATA SET, or DATA SET: PART OF THE TABLE",
    )
    parser.add_argument(
        "--dev",
        metavar="SET",
        help="scored set that is all of dev, where training validated on a part of it",
    )
    parser.add_argument(
        "--rename",
        nargs="*",
        default=[],
        metavar="OLD=NEW",
        help="path in a command, and what it is called in docs/runs",
    )
    return parser.parse_args()


def main(arguments):
    """Copy what the page is made of."""
    run, kept = arguments.run, arguments.kept
    missing = [n for n in ("run.json", "epochs.jsonl") if not (run / n).exists()]
    if missing:
        raise SystemExit(f"{run} has no {missing[0]}: it is no run, or has just begun")
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    if arguments.dev and arguments.dev not in record.get("results", {}):
        raise ValueError(
            f"{run} has not been scored on {arguments.dev}: score it with evaluate.py, or "
            f"name one of {', '.join(record.get('results', {})) or 'no set'}"
        )
    record["commands"] = [renamed(c, arguments.rename) for c in record["commands"]]
    for figures in record.get("results", {}).values():
        paths = {k: v for k, v in figures.items() if isinstance(v, str) and "/" in v}
        figures |= {k: renamed(v, arguments.rename) for k, v in paths.items()}
    kept.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1) + "\n"
    (kept / "run.json").write_text(text, encoding="utf-8")
    shutil.copyfile(run / "epochs.jsonl", kept / "epochs.jsonl")
    about = f"{arguments.data}\n" + (f"dev: {arguments.dev}\n" if arguments.dev else "")
    (kept / "data.txt").write_text(about, encoding="utf-8")
    for path in run.glob("errors_*.txt"):
        scores = SCORE.finditer(path.read_text(encoding="utf-8"))
        lines = "".join(f"{score[0]}\n" for score in scores)
        (kept / path.name).write_text(lines, encoding="utf-8")


def renamed(command, names):
    """A command in which no path is of one machine.

    Arguments
    ---------
    command : str
        As in run.json.
    names : list of str
        OLD=NEW.

    Returns
    -------
    str
        Its values quoted for a shell.

    Raises
    ------
    ValueError
        If an absolute path is left.

    Example
    -------
    >>> renamed("train.py --train_text [/a/x.csv, /a/y.txt]", ["/a=data"])
    "train.py --train_text '[data/x.csv, data/y.txt]'"
    """
    for pair in names:
        old, _, new = pair.partition("=")
        command = re.sub(rf"(?<![\w./-]){re.escape(old)}(?![\w.-])", new, command)
    left = ABSOLUTE.search(command)
    if left:
        raise ValueError(
            f"{left[0]} is a path of this machine: name what it is elsewhere with "
            f"--rename {left[0]}=data/..."
        )
    # A value is what follows an option up to the next one: older records have no quotes.
    first, *options = f" {' '.join(shlex.split(command))}".split(" --")
    words = shlex.split(first)
    for option in options:
        name, space, value = option.partition(" ")
        words += [f"--{name}", value] if space else [f"--{name}"]
    return shlex.join(words)


if __name__ == "__main__":
    run_program(lambda: main(parse_arguments()))
