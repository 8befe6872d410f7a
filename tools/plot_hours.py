"""Draw error rates over the hours that were trained on: what do more recordings give?

python tools/plot_hours.py results/my/half results/my/all --set valid --out hours.png

Reads run.json of run folders, or of those kept in docs/runs; a line a yaml, a dot a run.
Figures decoded with a beam are another set's, such as valid_beam=10.
"""

import argparse
import json
import pathlib
from itertools import cycle

from cif_lobes.settings.program import Parser, run_program

RATES = {"char": "CER", "word": "WER", "phone": "PER"}


def read_points(runs, name):
    """Hours and error rates of runs.

    Arguments
    ---------
    runs : list of pathlib.Path
    name : str
        Of the scored set, as in run.json.

    Returns
    -------
    points : dict of str to list of (float, float)
        By yaml: hours and per cent, with the fewest hours first.
    unit : str
        What is counted, such as WER.

    Raises
    ------
    ValueError
        Names the run whose figures are missing, or of another unit.
    """
    points, units = {}, {}
    for run in runs:
        path = run / "run.json"
        if not path.exists():
            raise ValueError(f"{run} is no run folder: it has no run.json")
        record = json.loads(path.read_text())
        hours, results = record.get("train_hours"), record["results"]
        if name not in results:
            has = ", ".join(results) or "nothing that was scored"
            raise ValueError(f"{run} has no set {name!r}, but {has}: choose with --set")
        if hours is None:
            raise ValueError(
                f"{path} does not say how many hours were trained on, it was written "
                "by an older version: run its command again, which scores it anew"
            )
        figures = results[name]
        units[RATES[figures["unit"]]] = run
        points.setdefault(record["yaml"], []).append((hours, figures["error_rate"]))
    if len(units) > 1:
        both = " and ".join(f"{unit} ({run})" for unit, run in units.items())
        raise ValueError(f"{both} do not go into one picture")
    return {yaml: sorted(line) for yaml, line in points.items()}, *units


def plot(points, unit):
    """Draw what `read_points` returns; a line joins the means of equal hours.

    Returns
    -------
    matplotlib.figure.Figure
    """
    # Here, so that --help needs neither; and without pyplot, nobody needs a display.
    from matplotlib.figure import Figure

    from cif_lobes.inference.plot import COLOURS

    figure = Figure((6.0, 3.6), dpi=120, layout="constrained")
    panel = figure.subplots()
    for (yaml, line), colour in zip(points.items(), cycle(COLOURS), strict=False):
        hours, rates = zip(*line, strict=True)
        panel.plot(hours, rates, "o", color=colour, ms=4)
        by_hours = {}
        for hour, rate in line:
            by_hours.setdefault(round(hour, 2), []).append(rate)
        means = [sum(rates) / len(rates) for rates in by_hours.values()]
        label = "/".join(pathlib.Path(yaml).with_suffix("").parts[1::2])
        panel.plot(list(by_hours), means, "-", color=colour, lw=1.3, label=label)
        for hour, mean in zip(by_hours, means, strict=True):
            where = {"textcoords": "offset points", "xytext": (4, 5), "fontsize": 8}
            panel.annotate(f"{mean:.1f}", (hour, mean), **where)
    panel.set_xlabel("hours trained on")
    panel.set_ylabel(f"{unit} (%)")
    panel.set_xlim(left=0)
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8)
    return figure


def main():
    """The command line."""
    parser = Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=pathlib.Path, help="run folders")
    parser.add_argument("--set", default="valid", help="scored set [%(default)s]")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="picture")
    given = parser.parse_args()
    plot(*read_points(given.runs, given.set)).savefig(given.out)
    print(given.out)


if __name__ == "__main__":
    run_program(main)
