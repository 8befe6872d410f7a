"""The csv manifest of a corpus: one row per utterance.

Columns: ID, duration (seconds), wav (path), spk_id, wrd (the text).
"""

import csv
import dataclasses
import functools
import os

import soundfile

from cif_lobes.atomic_files import atomic_open

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


@dataclasses.dataclass(frozen=True, slots=True)
class Utterance:
    """One row of a manifest."""

    id: str
    duration: float | None  # seconds; None until measured
    wav: str  # path, in any format libsndfile reads
    spk_id: str  # "" if unknown
    wrd: str | None  # transcript; None if the corpus has none for this recording


def read_manifest(path):
    """Read a csv of which every row must be usable.

    A file is read again only if it has changed: 281,241 rows take seconds, the look at
    each recording minutes on a slow disk, and a run asks for them three times.

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
    status = os.stat(path)
    return list(_read_once(os.fspath(path), status.st_mtime_ns, status.st_size))


@functools.lru_cache(maxsize=8)
def _read_once(path, modified, size):
    """Rows of the file that was modified then."""
    utterances, seen = [], set()
    for u in read_rows(path):
        problem = None
        if u.id in seen:
            problem = "duplicate id", "in two rows"
        elif u.duration is None:
            u, _, problem = measure(u)
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
    return tuple(utterances)


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
    write_csv(path, COLUMNS, map(dataclasses.astuple, rows))


def read_rows(path):
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
    folder = os.path.dirname(os.path.abspath(path))
    return [_parse_row(row, columns, folder, path, line) for line, row in rows[1:]]


def _parse_row(row, columns, folder, path, line):
    """The utterance of one row; `folder` is the csv's."""
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
    wav = os.path.join(folder, cells["wav"])
    return Utterance(cells["ID"], duration, wav, cells.get("spk_id", ""), cells["wrd"])


def write_csv(path, columns, rows):
    """Replace a csv in one step: a reader never sees half of it."""
    with atomic_open(path, newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def measure(u):
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
