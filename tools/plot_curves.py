"""Draw how training went: error rate, losses, learning rate and more, over epochs.

python tools/plot_curves.py results/AISHELL-1/cif/1986 --out curves.png
python tools/plot_curves.py results/AISHELL-1/cif*/1986 --out curves.png

Several runs are drawn over each other, under the part of their paths that tells them
apart; one that is still training may be among them. Solid lines are the validation set,
dashed ones the training set. Losses are not weighted.
"""

import argparse
import json
import pathlib
from itertools import cycle

from cif_lobes.settings.program import run_program

PANELS = {  # figure in epochs.jsonl -> title and unit
    "error_rate": "{} (%)",
    "accuracy": "teacher-forced accuracy",
    "quantity_error": "quantity error (tokens per utterance)",
    "acd_accuracy": "contrastive accuracy",
    "learning_rate": "learning rate",
}
LOSS = "loss: {} (per token)"
COLUMNS = 4
STYLES = {"train": "--", "valid": "-"}
STAGES = {"valid": "validation", "train": "training"}  # as the legend has them
RATES = {"char": "CER", "word": "WER", "phone": "PER"}


def short_names(folders):
    """What tells run folders apart: their paths without what all have in common.

    Arguments
    ---------
    folders : list of str

    Returns
    -------
    list of str
        Of one folder alone, its last two parts.
    """
    paths = [list(pathlib.Path(folder).parts) for folder in folders]
    if len(paths) == 1:
        return ["/".join(paths[0][-2:])]
    for end in (0, -1):
        while all(len(p) > 1 for p in paths) and len({p[end] for p in paths}) == 1:
            for path in paths:
                del path[end]
    return ["/".join(path) for path in paths]


def read_epochs(run):
    """One dict per epoch that a run has finished."""
    path = pathlib.Path(run, "epochs.jsonl")
    if not path.exists():
        raise SystemExit(
            f"{run} has no epochs.jsonl: it is not the output_folder of a training run, "
            "or its first epoch has not ended yet"
        )
    return [json.loads(line) for line in path.read_text().splitlines()]


def curves(epochs):
    """Points of each curve of a run.

    Arguments
    ---------
    epochs : list of dict
        Lines of epochs.jsonl.

    Returns
    -------
    dict of (str, str) to list of (int, float)
        By title of the panel and stage, train or valid: epoch and value.
    """
    points = {}
    for row in epochs:
        for stage in STYLES:
            figures = row[stage]
            values = {
                PANELS[key].format(RATES.get(figures.get("unit"), "error rate")): v
                for key, v in figures.items()
                if key in PANELS
            }
            for name, term in figures["losses"].items():
                values[LOSS.format(name)] = term["value"]
            for title, value in values.items():
                points.setdefault((title, stage), []).append((row["epoch"], value))
        rates = points.setdefault((PANELS["learning_rate"], "valid"), [])
        rates.append((row["epoch"], row["learning_rate"]))  # at the end of the epoch
    return points


def plot(runs):
    """Draw the curves of runs, one panel per figure, one colour per run.

    Arguments
    ---------
    runs : dict of str to list of dict
        By what to call a run: lines of its epochs.jsonl.

    Returns
    -------
    matplotlib.figure.Figure
    """
    # Here, so that --help needs neither; and without pyplot, nobody needs a display.
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogFormatter, MaxNLocator

    from cif_lobes.inference.plot import COLOURS

    found = {name: curves(epochs) for name, epochs in runs.items()}
    present = {title: None for points in found.values() for title, _ in points}
    # Error rates, losses, and what comes after both.
    last = [title for title in PANELS.values() if title in present]
    losses = [title for title in present if title.startswith("loss")]
    rates = [title for title in present if title not in [*last, *losses]]
    titles = rates + losses + last
    num_rows = -(-len(titles) // COLUMNS)
    figure = Figure((3.6 * COLUMNS, 2.6 * num_rows), dpi=120, layout="constrained")
    panels = figure.subplots(num_rows, COLUMNS, squeeze=False, sharex=True).flatten()
    for panel, title in zip(panels, titles, strict=False):
        for points, colour in zip(found.values(), cycle(COLOURS), strict=False):
            for stage, style in STYLES.items():
                if (title, stage) in points:
                    x, y = zip(*points[title, stage], strict=True)
                    panel.plot(x, y, style, color=colour, lw=1.3)
        if title.startswith("loss"):
            panel.set_yscale("log")  # or the first epochs hide all others
            panel.yaxis.set_major_formatter(LogFormatter())
            panel.yaxis.set_minor_formatter(LogFormatter())
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("epoch", fontsize=8)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.tick_params(labelsize=8, labelbottom=True, which="both")
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(titles) :]:
        panel.set_axis_off()
    lines = [
        Line2D([], [], color=colour, label=name)
        for name, colour in zip(found, cycle(COLOURS), strict=False)
    ]
    lines += [
        Line2D([], [], color="grey", ls=STYLES[stage], label=label)
        for stage, label in STAGES.items()
    ]
    figure.legend(
        handles=lines, loc="outside upper left", ncols=6, fontsize=9, frameon=False
    )
    return figure


def main():
    """Read the runs, draw, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="output_folders of training runs")
    parser.add_argument("--out", default="curves.png", help="picture; png, pdf or svg")
    arguments = parser.parse_args()
    names = short_names(arguments.runs)
    runs = {n: read_epochs(run) for n, run in zip(names, arguments.runs, strict=True)}
    plot(runs).savefig(arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    run_program(main)
