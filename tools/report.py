"""One page of one run or several: curves, table, and every scored utterance to hear.

python tools/report.py results/AISHELL-1/cif/1986 --out report.html
python tools/report.py results/AISHELL-1/cif/1986 results/AISHELL-1/cif_hieradist/1986 --fires 200 --out report.html

The page is one file and opens without a network. Runs after the first are compared with
it by a paired bootstrap. What a run lacks is left out, and the page says so.
"""  # noqa: E501

import argparse
import base64
import hashlib
import json
import pathlib
import sys
import time

from cif_lobes.settings.checks import add_option, option_type
from cif_lobes.settings.program import run_program
from cif_lobes.storage.atomic_files import write_atomically

TEMPLATE = pathlib.Path(__file__).with_suffix(".html")
SHOWN = 3  # notes of a kind that the page lists


def parse_arguments(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, count = parser.add_argument, option_type(1, "how many")
    add("runs", nargs="+", metavar="RUN", help="run folders; the first is the baseline")
    add("--out", default="report.html", help="page to write (default: report.html)")
    add_option(
        parser,
        "--audio_mb",
        30.0,
        "0 for none",
        "MB of recordings in the page, those with the most errors first; the rest is "
        "linked",
    )
    add(
        "--fires",
        type=count,
        nargs="?",
        const=1000,
        help="compute when tokens fired, for this many utterances of each run and set, "
        "those with the most errors first (alone: 1000)",
    )
    device = option_type("cpu", "", "device")
    add("--device", type=device, default="cpu", help="for --fires: cpu, cuda or cuda:N")
    return parser.parse_args(argv)


def main(arguments):
    """Read the runs, write the page, say what is missing."""
    data, audio = collect(arguments)
    page = render(TEMPLATE.read_text(encoding="utf-8"), data, audio)
    # Lone surrogates, which JSON can smuggle in, become JSON escapes again.
    page = page.encode("utf-8", "backslashreplace").decode()
    write_atomically(arguments.out, page)
    for note in data["notes"]:
        print(f"not on the page: {note}", file=sys.stderr)
    shown = sum(len(s["utterances"]) for s in data["sets"])
    print(
        f"{arguments.out}: {len(data['runs'])} runs, {len(data['curves'])} curves, "
        f"{shown:,} utterances, {len(audio):,} recordings in it, {len(page) / 1e6:.1f} MB"
    )


def collect(arguments):
    """What the page shows.

    Arguments
    ---------
    arguments : argparse.Namespace
        See `parse_arguments`.

    Returns
    -------
    data : dict
        Plain JSON.
    audio : list of str
        Recordings in base64.

    Raises
    ------
    FileNotFoundError, ValueError
        If a folder is no run, or is given twice.
    """
    # Here, so that --help and a misspelt option need no torch.
    import report_data as read
    from plot_curves import short_names

    folders = [pathlib.Path(run) for run in arguments.runs]
    twice = [str(f) for n, f in enumerate(folders) if f in folders[:n]]
    if twice:
        raise ValueError(f"{twice[0]} is given twice: name each run once")
    records = [read.read_record(folder) for folder in folders]
    names = short_names(folders)
    notes, epochs = [], []
    for folder in folders:
        rows = read.attempt(notes, "curves", read.read_epochs, folder)
        epochs.append(rows or [])
    runs = [
        read.describe_run(folder, record, name) | read.training_time(rows)
        for folder, record, name, rows in zip(
            folders, records, names, epochs, strict=True
        )
    ]
    sets, audio = collect_sets(arguments, folders, records, notes)
    data = {
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "notes": notes,
        "runs": runs,
        "curves": read.curves(epochs),
        "comparisons": [
            row
            for scored in sets
            for row in read.comparisons([*enumerate(folders)], scored["name"])
        ],
        "sets": sets,
        "audio_format": audio.format.lower(),
    }
    return data, audio.embedded


def collect_sets(arguments, folders, records, notes):
    """Scored sets with their utterances, and the recordings of these."""
    import report_data as read
    from report_audio import Recordings

    audio, sets = Recordings(arguments.out, arguments.audio_mb), {}
    for run, (folder, record) in enumerate(zip(folders, records, strict=True)):
        results = read.mapping(record.get("results"))
        found = read.scored_sets(folder)
        if not found:
            notes.append(
                f"utterances: {folder} has no errors_*.txt. Make them with: "
                f"python evaluate.py {folder}"
            )
            continue
        of_set = read.attempt(
            notes,
            f"speakers, durations, recordings of {folder}",
            read.manifests,
            folder,
        )
        # In the order of scoring; what run.json does not know of comes last.
        order = [*results, *found]
        for key in sorted(found, key=order.index):
            scores = read.attempt(notes, "utterances", read.read_scores, folder, key)
            if scores is None:
                continue
            figures = read.mapping(results.get(key))
            rows = of_set and read.attempt(
                notes, f"speakers, durations, recordings of {key}", of_set, key
            )
            scored = {"run": run, "scores": scores, "rows": rows or {}}
            if any(s["pairs"] for s in scores.values()) and of_set:
                scored["frequency"] = read.attempt(
                    notes,
                    "errors by frequency",
                    read.by_frequency,
                    *(folder, key, figures.get("unit"), of_set),
                )
            if arguments.fires and rows:
                scored["fires"] = read.attempt(
                    notes,
                    f"fires of {folder}",
                    fires,
                    arguments,
                    folder,
                    figures,
                    scored,
                )
            unit = read.unit_name(figures)
            sets.setdefault(key, {"name": key, "unit": unit, "runs": []})
            sets[key]["runs"].append(scored)
    sets = [merge(scored, audio) for scored in sets.values()]
    for n, (utterance, why) in enumerate(audio.missing.items()):
        if n == SHOWN:
            notes.append(
                f"recordings of {len(audio.missing) - SHOWN:,} utterances more"
            )
            break
        notes.append(f"recording of {utterance}: {why}")
    return sets, audio


def fires(arguments, folder, figures, scored):
    """Weights and fires of the utterances of a run's set that have the most errors."""
    from report_audio import compute_fires, open_recognizer

    recognizer = open_recognizer(folder, figures, arguments.device)
    known = [u for u in worst_first(scored["scores"]) if u in scored["rows"]]
    return compute_fires(
        recognizer, [scored["rows"][u] for u in known[: arguments.fires]]
    )


def worst_first(scores):
    """Utterances by their number of errors, as list of str."""
    return sorted(scores, key=lambda u: -scores[u]["counts"][0])


def merge(scored, audio):
    """A set of several runs as lists over its utterances."""
    runs = scored["runs"]
    ids = [*dict.fromkeys(u for run in runs for u in run["scores"])]
    place, known = {u: n for n, u in enumerate(ids)}, {}
    for run in reversed(runs):
        known |= run["rows"]
    sounds = {
        u: audio.add(known[u])
        for u in dict.fromkeys(u for run in runs for u in worst_first(run["scores"]))
        if u in known
    }
    utterances = []
    for utterance in ids:
        u = known.get(utterance)
        utterances.append(
            {
                "id": utterance,
                "speaker": u.spk_id if u else "",
                "seconds": u.duration if u else None,
                "audio": sounds.get(utterance),
            }
        )
    for run in runs:
        scores, found = run.pop("scores"), run.get("fires")
        run.pop("rows")
        run["counts"] = [scores[u]["counts"] if u in scores else None for u in ids]
        run["pairs"] = [scores[u]["pairs"] if u in scores else None for u in ids]
        if found:
            found["utterances"] = {
                place[u]: value for u, value in found["utterances"].items()
            }
    return {**scored, "utterances": utterances}


def render(template, data, audio):
    """The page.

    Arguments
    ---------
    template : str
        With one style, one script, and the marks POLICY, DATA and AUDIO.
    data, audio
        Plain JSON.

    Returns
    -------
    str
    """
    # Only these run, whatever a text of a run could make of itself.
    style = template.partition("<style>")[2].partition("</style>")[0]
    script = template.partition("<script>")[2].partition("</script>")[0]
    policy = (
        f"default-src 'none'; style-src {digest(style)}; script-src {digest(script)}; "
        "media-src data: file: 'self'"
    )
    page = template
    for mark, content in (
        ("{{POLICY}}", policy),
        ("{{AUDIO}}", as_json(audio)),
        ("{{DATA}}", as_json(data)),
    ):
        before, _, after = page.rpartition(mark)
        page = f"{before}{content}{after}"
    return page


def digest(code):
    """How a policy names the one style or script that it allows."""
    hashed = hashlib.sha256(code.encode()).digest()
    return f"'sha256-{base64.b64encode(hashed).decode()}'"


def as_json(content):
    """JSON that no text in it can end: `<` is written as an escape."""
    dumped = json.dumps(
        content, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    return dumped.replace("<", "\\u003c")


if __name__ == "__main__":
    run_program(lambda: main(parse_arguments()))
