"""Keep a run's figures under docs/runs, where tools/results.py reads them.

python tools/keep_run.py results/MiniSpeech/cif/1986 docs/runs/minispeech-cif-1986 --data "MiniSpeech: 3 h of synthesised English"

Copies run.json, epochs.jsonl, and of errors_*.txt the line with each utterance's counts.
"""  # noqa: E501

import argparse
import pathlib
import shutil

from cif_lobes.decoding.significance import SCORE
from cif_lobes.settings.program import run_program


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=pathlib.Path, help="run folder")
    parser.add_argument("kept", type=pathlib.Path, help="folder to write")
    parser.add_argument(
        "--data", required=True, help="what it was trained on, in words"
    )
    return parser.parse_args()


def main(arguments):
    """Copy what the page is made of."""
    run, kept = arguments.run, arguments.kept
    missing = [n for n in ("run.json", "epochs.jsonl") if not (run / n).exists()]
    if missing:
        raise SystemExit(f"{run} has no {missing[0]}: it is no run, or has just begun")
    kept.mkdir(parents=True, exist_ok=True)
    for name in ("run.json", "epochs.jsonl"):
        shutil.copyfile(run / name, kept / name)
    (kept / "data.txt").write_text(f"{arguments.data}\n", encoding="utf-8")
    for path in run.glob("errors_*.txt"):
        scores = SCORE.finditer(path.read_text(encoding="utf-8"))
        lines = "".join(f"{score[0]}\n" for score in scores)
        (kept / path.name).write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    run_program(lambda: main(parse_arguments()))
