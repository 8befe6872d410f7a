"""Make RESULTS.md, README's table and a page per run from run folders: no figure is typed.

python tools/results.py docs/runs --out RESULTS.md --readme README.md

Runs of one row with several seeds are averaged, and every row of a part of a data set is
compared with the part's first by a paired bootstrap. docs/summary.md is what is said in
words; a figure in it is named, not written: {RUNS: SET} is the mean of run folders (a
pattern), {RUNS - OTHERS: SET} their difference. docs/headline.yaml names README's rows.
The dev set is what training validated on, but where data.txt has a line "dev: SET".
"""

import argparse
import fnmatch
import json
import pathlib
import re
import shlex

import yaml
from run_pages import UNITS, VALID, is_recogniser, run_page

from cif_lobes.decoding.significance import compare_runs
from cif_lobes.settings.program import run_program

ROOT = pathlib.Path(__file__).parent.parent
# Options that do not tell rows apart: places, the machine, and what seeds may share.
SILENT = """seed device num_workers noprogressbar skip_prep test_only debug init_from
distributed_backend""".split()
PLACES = ("_folder", "_csv")
HEAD = """# Results

Made by `python tools/results.py docs/runs --out RESULTS.md --readme README.md`; every
figure is from a run in [docs/runs](docs/runs), whose page has its commands. More:
[the data](docs/corpora.md), [when a teacher helps](docs/studies/hieradist_small.md).

"""
LEGEND = """
## How to read the tables

A cell is the mean of the seeds, and behind it the difference to the first row of its part
with its 95 % interval, by a paired bootstrap over utterances; a row that lacks a seed is
compared with the first row's runs of the others. Behind each seed are the run's commands,
with substitutions, deletions and insertions. "Published" is another program's figure for
the same yaml on the whole corpus, "measured here" this one's on the data named. Error
rates in %; greedy unless a beam is named; "chosen on dev" are beam and language model.
"""
MARKS = "<!-- results: begin -->\n", "<!-- results: end -->"
FIGURE = re.compile(r"\{([^{}:]+?)(?: - ([^{}:]+?))?: ([^{}:]+)\}")


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    path = pathlib.Path
    parser.add_argument("runs", type=path, help="folder that holds run folders")
    parser.add_argument("--out", type=path, default=path("RESULTS.md"))
    parser.add_argument("--readme", type=path, help="file with marks for the table")
    parser.add_argument("--summary", type=path, default=ROOT / "docs/summary.md")
    parser.add_argument("--headline", type=path, default=ROOT / "docs/headline.yaml")
    return parser.parse_args()


def main(arguments):
    """Read the runs, write the pages."""
    published = yaml.safe_load((ROOT / "docs/published.yaml").read_text())
    runs = [load(path) for path in sorted(arguments.runs.rglob("run.json"))]
    if not runs:
        raise ValueError(f"no run.json in or below {arguments.runs}: give docs/runs")
    parts = {}
    for run in runs:
        parts.setdefault(run["data"], []).append(run)
    for part in parts.values():
        part.sort(key=lambda run: (run["row"], run["seed"]))
        for run in part:
            run["name"] = ", ".join([run["row"], *changes(run, part)])
            page = run["folder"] / "README.md"
            page.write_text(run_page(run), encoding="utf-8")
    short = ""
    if arguments.headline:
        entries = yaml.safe_load(arguments.headline.read_text(encoding="utf-8"))
        short = headline(entries, runs, published)
    page = HEAD
    if arguments.summary:
        said = arguments.summary.read_text(encoding="utf-8")
        page += FIGURE.sub(lambda named: figure(runs, *named.groups()), said) + "\n"
    page += short + LEGEND
    page += "\n## Published, not measured here\n\n| row | dev / test |\n|---|---|\n"
    page += "".join(f"| {row} | {rates} |\n" for row, rates in published.items())
    sets = {}
    for (data, _), part in parts.items():
        sets.setdefault(data, []).append(part)
    for data, its_parts in sets.items():
        page += f"\n## {data}\n\n{table(its_parts, published)}"
    arguments.out.write_text(page, encoding="utf-8")
    print(f"{len(runs)} runs in {arguments.out}")
    if arguments.readme:
        before, rest = arguments.readme.read_text(encoding="utf-8").split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        text = f"{before}{MARKS[0]}{short}{MARKS[1]}{after}"
        arguments.readme.write_text(text, encoding="utf-8")


def load(path):
    """One run: its record, epochs, name of the row, and (data set, part) of data.txt.

    In `dev` the name of the set that is all of dev.
    """
    run = json.loads(path.read_text())
    lines = (path.parent / "epochs.jsonl").read_text().splitlines()
    run["epochs"] = [json.loads(line) for line in lines]
    yaml_path = pathlib.Path(run["yaml"])
    run["row"] = f"{yaml_path.parts[-3]}/{yaml_path.stem}"
    about = path.parent / "data.txt"
    about = about.read_text().strip() if about.exists() else yaml_path.parts[-3]
    about, *keys = about.splitlines()
    data, _, part = about.partition(": ")
    run["data"], run["folder"] = (data, part), path.parent
    run["dev"] = dict(line.split(": ") for line in keys).get("dev", VALID)
    return run


def table(parts, published):
    """Markdown table of a data set: the rows of each of its parts."""
    lines = [
        "| row | published dev / test | unit | measured here, dev | test | runs by seed |",
        "|---|---|---|---:|---:|---|",
    ]
    for part in parts:
        if part[0]["data"][1]:
            lines.append(f"| **{part[0]['data'][1]}** | | | | | |")
        rows = by_row(part)
        first = next(iter(rows.values()))
        for name, runs in rows.items():
            if not is_recogniser(runs[0]):
                unit, value = other_figure(runs[0])
                lines.append(f"| {name} | - | {unit} | {value} | | {links(runs)} |")
                continue
            for way, names in ways(runs).items():
                baseline = None if runs is first else first
                dev, test = cells(runs, names, baseline)
                unit = UNITS[runs[0]["results"][names[0]]["unit"]]
                known = published.get(runs[0]["row"], "-")
                lines.append(
                    f"| {name}{way} | {known} | {unit} | {dev} | {test} "
                    f"| {links(runs)} |"
                )
    return "\n".join(lines) + "\n"


def by_row(runs):
    """Runs of the same row, whatever their seeds, by its name."""
    rows = {}
    for run in runs:
        rows.setdefault(run["name"], []).append(run)
    return rows


def links(runs):
    """A link to each run's page, by seed."""
    return " ".join(f"[{r['seed']}]({r['folder'].as_posix()}/README.md)" for r in runs)


# How sets were decoded, as their names have it.
IN_WORDS = {
    "swept": "chosen on dev",
    "error_unit": "unit",
    "ctc_weight_decode": "ranked by CTC x",
    "num_checkpoints": "checkpoints averaged",
    "rescore_weight": "ranked by a language model x",
    "rescore=": "",
}


def ways(runs):
    """Sets of a row by the way in which they were decoded, in words."""
    found = {}
    for name in common_sets(runs):
        plain = name
        for setting, words in IN_WORDS.items():
            plain = plain.replace(f"_{setting}", f"_{words}")
        words = ", ".join(plain.split("_")[1:]).replace("=", " ")
        found.setdefault(f"; {words}" if words else "", []).append(name)
    return found


def cells(runs, names, first):
    """What a row reaches on dev and on its test sets, and what the first row does not."""
    tests = [name for name in names if not is_of(name, runs[0]["dev"])]
    found = {True: [], False: []}
    for split in names:
        text = f"{split}: " if split in tests and len(tests) > 1 else ""
        text += f"{mean(runs, split):.2f}"
        other = against(runs, first, split) if first else None
        if other:
            low, high = other["low"], other["high"]
            text += f" ({other['difference']:+.2f}: {low:+.2f} to {high:+.2f})"
        found[split in tests].append(text)
    return "<br>".join(found[False]), "<br>".join(found[True])


def against(runs, baseline, split):
    """Paired bootstrap of two rows; None if not all runs have the set's scores.

    A row that lacks a seed is compared with the baseline's runs of the others.
    """
    seeds = {run["seed"] for run in runs}
    baseline = [run for run in baseline if run["seed"] in seeds] or baseline
    both = [[run["folder"] for run in row] for row in (runs, baseline)]
    scores = f"errors_{split}.txt"
    if not all((folder / scores).exists() for row in both for folder in row):
        return None
    return compare_runs(*both, split, resamples=2000)


def headline(entries, runs, published):
    """README's table: a line of each entry of docs/headline.yaml."""
    lines = [
        "| data | row | published dev / test | measured here, dev / test | seeds |",
        "|---|---|---:|---:|---:|",
    ]
    for entry in entries:
        if isinstance(entry, str) and entry in published:
            lines.append(
                f"| the whole corpus | {entry} | {published[entry]} | not yet | |"
            )
            continue
        if isinstance(entry, str):
            group = matching(runs, entry)
            row = group[0]["name"]
        else:
            group = [r for pattern in entry["runs"] for r in matching(runs, pattern)]
            row = f"{group[0]['row']}, {entry['words']}"
        # As scored after training, not by evaluate.py.
        names = ways(group)[""]
        rates = " / ".join(f"{mean(group, name):.2f}" for name in names)
        if len(names) == 1:
            rates += f" ({'dev' if is_of(names[0], group[0]['dev']) else 'test'})"
        unit = UNITS[group[0]["results"][names[0]]["unit"]]
        data = group[0]["data"][0]
        lines.append(f"| {data} | {row} | - | {unit} {rates} | {len(group)} |")
    return "\n".join(lines) + "\n"


def matching(runs, pattern):
    """The runs whose folder has a name of this pattern; all of one row."""
    found = [r for r in runs if fnmatch.fnmatchcase(r["folder"].name, pattern)]
    if len({(r["data"], r["name"]) for r in found}) != 1:
        names = ", ".join(r["folder"].name for r in found) or "no run"
        raise ValueError(
            f"{pattern} means {names}: name the seeds of one row of docs/runs"
        )
    return found


def figure(runs, pattern, others, split):
    """A figure that docs/summary.md names."""
    ours = matching(runs, pattern)
    if not others:
        return f"{mean(ours, split):.2f}"
    found = against(ours, matching(runs, others), split)
    low, high = found["low"], found["high"]
    return f"{found['relative']:+.1%} ({low:+.2f} to {high:+.2f} points)"


def common_sets(runs):
    """Names of the sets on which all runs of a row were scored, the first's order.

    Without what training validated on, where that is a part of dev.
    """
    part = VALID if runs[0]["dev"] != VALID else None
    return [
        name
        for name in runs[0]["results"]
        if all(name in run["results"] for run in runs) and not is_of(name, part)
    ]


def is_of(name, split):
    """Whether a name in results is this set's, however it was decoded."""
    return name.split("_")[0] == split


def mean(runs, split):
    """Mean error rate of a row's runs."""
    rates = [run["results"][split]["error_rate"] for run in runs]
    return sum(rates) / len(rates)


def changes(run, runs):
    """What a run's command set, unless all runs of its yaml in the part agree."""
    ours = options(run)
    peers = [options(r) for r in runs if r["row"] == run["row"]]
    return [
        f"{key} {value}"
        for key, value in ours.items()
        if any(peer.get(key) != value for peer in peers)
    ]


def options(run):
    """Options of the commands that trained and scored a run, by name; the last counts."""
    found = {}
    for command in run["commands"]:
        # What follows an option up to the next one: older records have no quotes.
        for words in f" {' '.join(shlex.split(command))}".split(" --")[1:]:
            key, _, value = words.replace("=", " ", 1).partition(" ")
            if key not in SILENT and not key.endswith(PLACES):
                found[key] = value
    return found


def other_figure(run):
    """Unit and value of a run that recognises nothing."""
    last = run["epochs"][-1]["valid"]
    if "unexplained" in last:
        return (
            "unexplained variance of the last layer, %",
            f"{100 * last['unexplained']:.1f}",
        )
    return "perplexity", f"{run['results']['valid']['perplexity']:.1f}"


if __name__ == "__main__":
    run_program(lambda: main(parse_arguments()))
