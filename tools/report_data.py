"""What tools/report.py shows of run folders: figures, curves, comparisons, utterances.

The folders may be someone else's: their files are read as data, numbers are numbers or
nothing, everything else is text, and a file that leads out of its folder is refused.
"""

import collections
import json
import math
import pathlib
import re

import numpy as np
from errors_by_frequency import CLASSES, by_class
from plot_curves import RATES

from cif_lobes.data.manifest import read_rows
from cif_lobes.decoding.alignments import read_alignments
from cif_lobes.decoding.scoring import ErrorRate
from cif_lobes.decoding.significance import compare_runs
from cif_lobes.runs.stages import manifest_paths
from cif_lobes.settings.safe_yaml import inside, read_settings

LONGEST_TEXT = 5000  # characters kept of any text: a command, a unit
STAGES = ("train", "valid")
# Numbers of an epoch that are no curve: they only make up others, or are the machine's.
COUNTS = """loss losses seconds unit substitutions deletions insertions reference_length
utterances""".split()
# Of a run's figures, those that stand first; the losses follow.
FIRST = ("error_rate", "utterance_error_rate")
HEAD = re.compile(
    r"^(\S+), %WER \S+ \[ (\d+) / (\d+), (\d+) ins, (\d+) del, (\d+) sub \]$", re.M
)
RULE = "=" * 80  # SpeechBrain's, between alignments


def number(value):
    """A finite number, or None."""
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if plain and math.isfinite(value) else None


def text(value):
    """Anything as a text of some length at most."""
    return "" if value is None else str(value)[:LONGEST_TEXT]


def mapping(value):
    """A dict, or an empty one."""
    return value if isinstance(value, dict) else {}


def attempt(notes, about, function, *arguments):
    """A part of the page; None if it cannot be made, and a note that says why."""
    try:
        return function(*arguments)
    except (ValueError, OSError) as error:
        note = f"{about}: {error}"
        if note not in notes:
            notes.append(note)
        return None


def read_json(path):
    """The JSON of a file, with its name if it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): copy it again, or leave this run out"
        ) from None


def read_record(folder):
    """run.json of a folder, as dict."""
    folder = pathlib.Path(folder)
    if not (folder / "run.json").exists():
        raise FileNotFoundError(
            f"{folder} is not a run folder: no run.json. Give the output_folder of a "
            "training run, for instance results/AISHELL-1/cif/1986"
        )
    return mapping(read_json(inside(folder, "run.json")))


def describe_run(folder, record, name):
    """A run's facts and its figures of every scored set."""
    results = {
        text(key): mapping(figures)
        for key, figures in mapping(record.get("results")).items()
    }
    commands = record.get("commands")
    return {
        "name": name,
        "folder": str(folder),
        "commands": [text(c) for c in commands] if isinstance(commands, list) else [],
        "parameters": number(record.get("parameters")),
        "facts": {
            key: text(record[key])
            for key in ("yaml", "seed", "commit", "hardware", "started")
            if key in record
        },
        "results": [result(key, figures) for key, figures in results.items()],
    }


def result(key, figures):
    """A line of the table of runs."""
    counts = ("substitutions", "deletions", "insertions", "reference_length")
    decoding = ("beam", "ctc_weight_decode", "lm_weight", "tail_threshold", "average")
    decoding += ("num_checkpoints",)
    names = ("error_rate", *counts, "utterances", "utterance_error_rate", "perplexity")
    return {
        "set": key,
        "unit": unit_name(figures),
        **{name: number(figures.get(name)) for name in names},
        "decoding": {n: text(figures[n]) for n in decoding if n in figures},
    }


def unit_name(figures):
    """CER, WER or PER; empty if the figures do not say."""
    unit = figures.get("unit")
    return RATES.get(unit, "") if isinstance(unit, str) else ""


# --- curves ---


def read_epochs(folder):
    """Lines of epochs.jsonl, as list of dict."""
    path = inside(folder, "epochs.jsonl")
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not there: no epoch has ended, or the file was not copied"
        )
    rows = []
    for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {n} is damaged ({error})") from None
        row = mapping(row)
        if number(row.get("epoch")) is None:
            raise ValueError(f"{path}, line {n} has no epoch as training writes it")
        rows.append(row)
    return rows


def curves(runs):
    """Every loss and figure of training, over epochs.

    Arguments
    ---------
    runs : list of list of dict
        Of each run, the lines of its epochs.jsonl.

    Returns
    -------
    list of dict
        Per figure its name as in epochs.jsonl, whether it is a loss, its unit, and its
        lines: number of the run, stage, and points (epoch, value). Error rates come
        first, then losses.
    """
    lines, units = {}, collections.defaultdict(set)
    for number_of_run, rows in enumerate(runs):
        for row in rows:
            for is_loss, name, stage, value in figures_of(row):
                key = (is_loss, name)
                points = lines.setdefault(key, {}).setdefault(
                    (number_of_run, stage), []
                )
                points.append([row["epoch"], number(value)])
            units["error_rate"].add(unit_name(mapping(row.get("valid"))))
    units["error_rate"] -= {""}

    def rank(key):
        is_loss, name = key
        return (0, FIRST.index(name)) if name in FIRST else (1 if is_loss else 2, 0)

    return [
        {
            "name": key[1],
            "loss": key[0],
            "unit": " or ".join(sorted(units.get(key[1], ()))),
            "lines": [
                {"run": run, "stage": stage, "points": points}
                for (run, stage), points in lines[key].items()
            ],
        }
        for key in sorted(lines, key=rank)
    ]


def figures_of(row):
    """Of an epoch: whether it is a loss, its name, stage and value."""
    for stage in STAGES:
        figures = mapping(row.get(stage))
        for name, term in mapping(figures.get("losses")).items():
            yield True, text(name), stage, mapping(term).get("value")
        for name, value in figures.items():
            if name not in COUNTS and number(value) is not None:
                yield False, text(name), stage, value
    yield False, "learning_rate", "train", row.get("learning_rate")


def training_time(rows):
    """Epochs, updates and hours of a run."""
    seconds = [number(row.get("seconds")) or 0 for row in rows]
    return {
        "epochs": len(rows),
        "updates": number(rows[-1].get("updates")) if rows else None,
        "hours": sum(seconds) / 3600,
    }


# --- scored sets ---


def scored_sets(folder):
    """Names of the sets of which a folder has errors_*.txt."""
    paths = sorted(pathlib.Path(folder).glob("errors_*.txt"))
    return [path.stem.removeprefix("errors_") for path in paths]


def read_scores(folder, key):
    """Counts and alignment of every utterance of a scored set.

    Arguments
    ---------
    folder : pathlib.Path
        Run folder.
    key : str
        Name of the set, as in errors_<key>.txt.

    Returns
    -------
    dict of str to dict
        By utterance: edits, number of reference units, substitutions, deletions,
        insertions, and pairs: a text where reference and hypothesis agree, else both,
        None for what is missing. Without pairs if the file has counts only, as those
        that tools/keep_run.py keeps.

    Raises
    ------
    ValueError
        If it cannot be read.
    """
    path = inside(folder, f"errors_{key}.txt")
    content = path.read_text(encoding="utf-8")
    heads = HEAD.findall(content)
    if not heads:
        raise ValueError(f"{path} has no scored utterance")
    scores = {}
    for utterance, edits, of, ins, dels, subs in heads:
        counts = [int(n) for n in (edits, of, subs, dels, ins)]
        scores[utterance] = {"counts": counts, "pairs": None}
    if RULE in content:
        try:
            alignments, _ = read_alignments(path)
            for head, pairs in zip(heads, alignments, strict=True):
                scores[head[0]]["pairs"] = [a if a == b else [a, b] for a, b in pairs]
        except ValueError as error:
            raise ValueError(
                f"{path}: its alignments cannot be read ({error}); python evaluate.py "
                f"{folder} writes them again"
            ) from None
    return scores


def manifests(folder):
    """Utterances of a run's sets, by name of the set and id.

    Returns
    -------
    callable
        From the name of a set to a dict of utterances by their id.
    """
    needed = ("skip_prep", "train_csv", "valid_csv", "test_csv")
    path = inside(folder, "hyperparams.yaml")
    if not path.exists():
        raise FileNotFoundError(f"{path}, which names its manifests, is not there")
    settings = read_settings(path, *needed)
    paths = manifest_paths({**settings, "save_folder": str(folder / "save")})
    rows = {}

    def of_set(key):
        # test_beam=10 is the set test, decoded in another way.
        names = [n for n in paths if key == n or key.startswith(f"{n}_")]
        if not names:
            raise ValueError(f"{folder} does not say which file is {key}")
        path = pathlib.Path(paths[max(names, key=len)])
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is not there: start this in the folder in which the run was "
                "trained, or put the file back"
            )
        if path not in rows:
            rows[path] = {u.id: u for u in read_rows(path)}
        return rows[path]

    return of_set


def by_frequency(folder, key, unit, of_set):
    """Errors and occurrences of reference units, by how often training had them.

    Arguments
    ---------
    folder : pathlib.Path
        Run folder.
    key : str
        Scored set.
    unit : str
        char, word or phone.
    of_set : callable
        From `manifests`.

    Returns
    -------
    list of dict
        Per class that occurs: its span, errors and occurrences.
    """
    split = ErrorRate(unit).split
    counts = collections.Counter()
    for utterance in of_set("train").values():
        counts.update(split((utterance.wrd or "").lower()))
    spans = []
    for low, above in zip(CLASSES, [*CLASSES[1:], None], strict=True):
        last = f"{low} or more" if above is None else f"{low} to {above - 1}"
        spans.append(str(low) if above == low + 1 else last)
    found = zip(spans, by_class([folder], key, counts), strict=True)
    return [{"span": s, "errors": e, "of": of} for s, (e, of) in found if of]


def comparisons(folders, key):
    """Paired bootstrap of each run against the first, on a set that they share."""
    first, *others = ((n, f) for n, f in folders if key in scored_sets(f))
    rows = []
    for run, folder in others:
        row = {"run": run, "against": first[0], "set": key}
        try:
            with np.errstate(invalid="ignore", divide="ignore"):  # no error at all
                found = compare_runs([folder], [first[1]], key)
            row |= {name: number(float(value)) for name, value in found.items()}
        except ValueError as error:
            row["problem"] = str(error)
        rows.append(row)
    return rows
