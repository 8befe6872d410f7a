"""Print the quickstart's figures, one line per row that was trained.

python tools/quickstart_summary.py cif=results/MiniSpeech/cif/1986
"""

import json
import pathlib
import sys

from cif_lobes.settings.program import run_program


def main():
    """Print a line for each argument."""
    for argument in sys.argv[1:]:
        row, _, run = argument.partition("=")
        results = json.loads((pathlib.Path(run) / "run.json").read_text())["results"]
        error_rate = results["test-clean-mini"]["error_rate"]
        print(f"quickstart: test WER {error_rate:.1f} % ({row})")


if __name__ == "__main__":
    run_program(main)
