"""The csv manifest of a corpus: reading, writing, and checking what goes into it.

Corpus preparers and users' own csv files pass the same checks. Nothing is dropped in
silence: every utterance that cannot be used is in rejected.csv, with the reason.
"""

import collections
import csv
import dataclasses
import hashlib
import logging
import math
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor

import soundfile
from tqdm import tqdm

from cif_lobes.text import normalize

logger = logging.getLogger(__name__)

COLUMNS = ("ID", "duration", "wav", "spk_id", "wrd")

# Why an utterance may be rejected, and what its owner can do about it.
REMEDIES = {
    "duplicate id": "rename one: ids are the keys of results and of teacher caches",
    "missing transcript": "add its line to the transcript file",
    "empty text": "write its text, or delete the row",
    "missing audio": "correct the path, or unpack the corpus again",
    "empty audio": "copy the file again",
    "broken audio": "copy the file again, or convert it: ffmpeg -i IN OUT.flac",
    "wrong sample rate": "convert it: ffmpeg -i IN -ar RATE OUT.flac",
    "too short": "lower min_duration if such recordings are wanted",
    "too long": "cut it at pauses, or raise max_duration (takes more memory)",
    "too many tokens": "see whether the text belongs to another recording",
}

# One row of rejected.csv; reason is a key of REMEDIES.
Rejected = collections.namedtuple("Rejected", "ID split wav reason detail")


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One row of a manifest."""

    id: str
    duration: float | None  # seconds; None until measured
    wav: str  # path, in any format libsndfile reads
    spk_id: str  # "" if unknown
    wrd: str | None  # transcript; None if the corpus has none for this recording


@dataclasses.dataclass(frozen=True)
class Limits:
    """What an utterance must satisfy to be trained on or scored."""

    language: str  # "zh" or "en": which text normalisation
    sample_rate: int | None = None  # Hz; None accepts any, resampled when loaded
    min_duration: float = 0.2  # seconds
    max_duration: float = 40.0  # seconds; the longest of LibriSpeech has 35
    # One token per encoder frame of 80 ms, end of sentence included, is all that CIF
    # can fire. Speed perturbation by 1.1 leaves a tenth less.
    max_tokens_per_second: float = 12.5


def read_manifest(path):
    """Read a csv of which every row must be usable.

    Arguments
    ---------
    path : str
        The csv, UTF-8. Audio paths are absolute or relative to its folder. Missing
        durations are read from the audio headers; `spk_id` may be absent.

    Returns
    -------
    list of Utterance

    Raises
    ------
    ValueError
        For unknown or missing columns, malformed rows, duplicate ids, unusable audio.
    """
    utterances, seen = [], set()
    for u in _read_rows(path):
        problem = None
        if u.id in seen:
            problem = "duplicate id", "in two rows"
        elif u.duration is None:
            u, _, problem = _measure(u)
        elif not os.path.isfile(u.wav):
            problem = "missing audio", "was the corpus moved after its preparation?"
        if problem:
            reason, detail = problem
            raise ValueError(
                f"{path}: {u.id}: {reason} ({detail}): {u.wav}. Either "
                f"{REMEDIES[reason]}; or prepare the data again to check all rows"
            )
        seen.add(u.id)
        utterances.append(u)
    return utterances


def write_manifest(path, utterances):
    """Write a csv, whole or not at all.

    Audio paths become absolute, without placeholders such as $data_root: SpeechBrain
    opens relative paths against the working directory, and a run folder is often copied
    away from its audio.

    Arguments
    ---------
    path : str
    utterances : iterable of Utterance
    """
    rows = (dataclasses.replace(u, wav=os.path.abspath(u.wav)) for u in utterances)
    _write_csv(path, COLUMNS, map(dataclasses.astuple, rows))


def check_utterances(utterances, split, limits, count_tokens=None, taken=None):
    """Separate the utterances that can be used from those that cannot.

    Headers are read, samples are not: a FLAC file that breaks off in the middle passes.

    Arguments
    ---------
    utterances : list of Utterance
        The first of two equal ids is kept.
    split : str
    limits : Limits
    count_tokens : callable, optional
        From normalised text to its number of tokens, without end of sentence. By
        default characters ("zh") or words ("en", the fewest tokens it can have).
    taken : dict of str to str, optional
        Audio path by id in the splits before; gains this split's. An id that is
        another recording's there is a duplicate here.

    Returns
    -------
    accepted : list of Utterance
        With normalised text and the duration of the audio header.
    rejected : list of Rejected

    Example
    -------
    >>> lost = Utterance("a", None, "a.wav", "", "hello")
    >>> accepted, rejected = check_utterances([lost], "test", Limits("en"))
    >>> accepted, rejected[0].reason
    ([], 'missing audio')
    """
    taken = {} if taken is None else taken
    if count_tokens is None:
        count_tokens = len if limits.language == "zh" else lambda t: len(t.split())
    accepted, rejected, seen = [], [], set()
    with ThreadPoolExecutor() as pool:
        measured = pool.map(_measure, utterances)
        bar = tqdm(measured, split, len(utterances), unit=" files", disable=None)
        for u, rate, problem in bar:
            u = dataclasses.replace(u, wrd=u.wrd and normalize(u.wrd, limits.language))
            if u.id in seen:
                problem = "duplicate id", f"also earlier in {split}"
            elif taken.setdefault(u.id, u.wav) != u.wav:
                problem = "duplicate id", f"{taken[u.id]} in another split"
            elif u.wrd is None:
                problem = "missing transcript", "not in the transcript file"
            elif not u.wrd:
                problem = "empty text", "nothing but white space"
            problem = problem or _limit_problem(u, rate, limits, count_tokens)
            seen.add(u.id)
            if problem:
                rejected.append(Rejected(u.id, split, u.wav, *problem))
            else:
                accepted.append(u)
    return accepted, rejected


def prepare_splits(splits, save_folder, limits, max_rejected=0.01):
    """Check splits; write save_folder/<split>.csv and rejected.csv.

    Does nothing if prepared.txt has the hash of these very inputs (rows, limits, size
    and time of every recording).

    Arguments
    ---------
    splits : dict of str to list of Utterance
    save_folder : str
    limits : Limits
    max_rejected : float
        Largest share of a split, 0 to 1, that may be rejected.

    Returns
    -------
    dict of str to list of Utterance
        What each manifest holds; empty if nothing was to be done.

    Raises
    ------
    ValueError
        If more of a split is rejected, or nothing is left; rejected.csv is written.
    """
    folder = pathlib.Path(save_folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {split: folder / f"{split}.csv" for split in splits}
    record = folder / "prepared.txt"
    inputs = _fingerprint(splits, limits, max_rejected)
    there = all(path.exists() for path in (record, *files.values()))
    if there and record.read_text() == inputs:
        print(f"{', '.join(map(str, files.values()))}: up to date")
        return {}
    # Until all is written, no record may vouch for the files.
    record.unlink(missing_ok=True)
    accepted, rejected, taken = {}, {}, {}
    for split, rows in splits.items():
        kept, lost = check_utterances(rows, split, limits, taken=taken)
        print(f"{split}: {len(kept):,} utterances; rejected: {_per_reason(lost)}")
        accepted[split], rejected[split] = kept, lost
    lost = [row for rows in rejected.values() for row in rows]
    _write_csv(folder / "rejected.csv", Rejected._fields, lost)
    for split, kept in accepted.items():
        _raise_if_too_many(split, kept, rejected[split], max_rejected, folder)
    for split, kept in accepted.items():
        write_manifest(files[split], kept)
    record.write_text(inputs)
    return accepted


def prepare_own_data(csvs, save_folder, language, max_rejected=0.01, **limits):
    """Check users' own csv files and write the manifests that training reads.

    Arguments
    ---------
    csvs : dict
        {"train": path, "valid": path, "test": [paths]}; any of them may be left out.
    save_folder : str
        Receives train.csv, valid.csv, and each test csv under its own file name.
    language, max_rejected, **limits
        As in `Limits` and `prepare_splits`.

    Returns
    -------
    dict of str to str
        Path of each manifest written, by its name without .csv.
    """
    sources = [(role, csvs[role]) for role in ("train", "valid") if role in csvs]
    sources += [(pathlib.Path(path).stem, path) for path in csvs.get("test", [])]
    splits, targets = {}, {}
    for name, source in sources:
        target = os.path.join(save_folder, f"{name}.csv")
        if name in targets or os.path.realpath(source) == os.path.realpath(target):
            raise ValueError(
                f"{source} would be written to {target}, its own or another csv's "
                "place. Move it out of the save folder, or rename it (a test csv keeps "
                "its name)"
            )
        splits[name], targets[name] = _read_rows(source), target
    prepare_splits(splits, save_folder, Limits(language, **limits), max_rejected)
    return targets


def check_counts(split, found, published):
    """Print counts beside the published ones; warn if they differ, as a subset does.

    Arguments
    ---------
    split : str
    found, published : dict of str to int
        For instance {"utterances": 7176, "characters": 104765}.
    """
    print(f"{split:<16}{'found':>12}{'published':>12}")
    for what, count in published.items():
        print(f"  {what:<14}{found[what]:>12,}{count:>12,}")
    if found != published:
        logger.warning(
            f"{split} is not the published one: its results do not compare. Unless it "
            "is meant to be a part, see rejected.csv or download the corpus again"
        )


def _read_rows(path):
    """Rows of a csv as they stand; only the form is checked."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True)
            rows = [(reader.line_num, row) for row in reader if row]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 ({error}). If a Chinese Excel wrote it, run: "
            f"iconv -f GB18030 -t UTF-8 {path} > utf8.csv"
        ) from None
    columns = [name.strip() for name in rows[0][1]] if rows else []
    if not {"ID", "wav", "wrd"} <= set(columns) <= set(COLUMNS):
        raise ValueError(
            f"{path}: columns are {columns}; needed are ID, wav, wrd, possible also "
            "duration, spk_id. Correct its first line (comma-separated)"
        )
    return [_parse_row(row, columns, path, line) for line, row in rows[1:]]


def _parse_row(row, columns, path, line):
    """The utterance of one row."""
    cells = dict(zip(columns, map(str.strip, row), strict=False))
    try:
        if len(row) != len(columns):
            raise ValueError(f"{len(row)} cells under {len(columns)} columns")
        if not cells["ID"] or not cells["wav"]:
            raise ValueError("ID or wav is empty")
        duration = float(cells["duration"]) if cells.get("duration") else None
    except ValueError as error:
        raise ValueError(
            f"{path}, line {line}: {error}. Correct or delete the row (text with "
            'commas goes in "double quotes", an unknown duration is left empty)'
        ) from None
    wav = os.path.join(os.path.dirname(os.path.abspath(path)), cells["wav"])
    return Utterance(cells["ID"], duration, wav, cells.get("spk_id", ""), cells["wrd"])


def _write_csv(path, columns, rows):
    """Replace a csv in one step: a reader never sees half of it."""
    partial = f"{path}.partial"
    with open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
    os.replace(partial, path)


def _measure(u):
    """The utterance with its duration, the sample rate in Hz, the problem or None."""
    try:
        if os.path.getsize(u.wav) == 0:
            return u, None, ("empty audio", "the file has 0 bytes")
        info = soundfile.info(u.wav)
    except OSError as error:
        return u, None, ("missing audio", error.strerror)
    except soundfile.SoundFileError as error:
        return u, None, ("broken audio", str(error))
    if info.frames == 0:
        return u, None, ("empty audio", "no samples after the header")
    duration = round(info.frames / info.samplerate, 6)
    return dataclasses.replace(u, duration=duration), info.samplerate, None


def _limit_problem(u, rate, limits, count_tokens):
    """(reason, detail) of the first limit that a readable utterance breaks."""
    if limits.sample_rate not in (None, rate):
        return "wrong sample rate", f"{rate} Hz, expected {limits.sample_rate} Hz"
    if u.duration < limits.min_duration:
        return "too short", f"{u.duration} s, min_duration is {limits.min_duration} s"
    if u.duration > limits.max_duration:
        return "too long", f"{u.duration} s, max_duration is {limits.max_duration} s"
    tokens = count_tokens(u.wrd) + 1
    room = math.ceil(u.duration * limits.max_tokens_per_second)
    if tokens > room:
        return "too many tokens", f"{tokens} with end of sentence, room for {room}"
    return None


def _per_reason(rejected):
    """Such as "3 too long, 1 broken audio"."""
    counts = collections.Counter(r.reason for r in rejected).most_common()
    return ", ".join(f"{n:,} {reason}" for reason, n in counts) or "none"


def _raise_if_too_many(split, kept, rejected, max_rejected, folder):
    """Stop before hours are spent on data that is not what its owner thinks."""
    total = len(kept) + len(rejected)
    if kept and len(rejected) <= max_rejected * total:
        return
    message = [
        f"{split}: {len(rejected):,} of {total:,} utterances rejected, max_rejected "
        f"allows {max_rejected:.1%}: {_per_reason(rejected)}. First:",
        *(f"{r.ID}: {r.reason} ({r.detail}): {r.wav}" for r in rejected[:5]),
        f"All are in {folder / 'rejected.csv'}. Remedies:",
        *(f"{why}: {REMEDIES[why]}" for why in sorted({r.reason for r in rejected})),
    ]
    if kept:
        share = math.ceil(1000 * len(rejected) / total) / 1000
        message.append(f"or go on with the other {len(kept):,}: --max_rejected {share}")
    raise ValueError("\n  ".join(message))


def _fingerprint(splits, limits, max_rejected):
    """Hash of all that decides what the manifests hold."""
    digest = hashlib.sha256(repr((limits, max_rejected)).encode())
    with ThreadPoolExecutor() as pool:
        for split, utterances in splits.items():
            stamps = pool.map(_stamp, [u.wav for u in utterances])
            for u, stamp in zip(utterances, stamps, strict=True):
                # Normalised, so that a change of the rules makes the manifests again.
                text = u.wrd and normalize(u.wrd, limits.language)
                digest.update(f"{split, u.id, u.wav, u.spk_id, text, stamp}".encode())
    return digest.hexdigest()


def _stamp(wav):
    """Size in bytes and time of change of a file, None if it is missing."""
    if os.path.exists(wav):
        return os.path.getsize(wav), os.path.getmtime(wav)
