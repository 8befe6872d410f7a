"""The csv manifest of a corpus: one row per utterance.

Columns: ID, duration (seconds), wav (path), spk_id, wrd (the text), and offset (seconds)
if it is of stretches of recordings. What other toolkits write is read as well:
`cif_lobes.data.formats`.
"""

import csv
import dataclasses
import functools
import logging
import os

import soundfile

from cif_lobes.data.audio_files import SLACK, breaks_off
from cif_lobes.data.formats import read_records
from cif_lobes.storage.atomic_files import atomic_open

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
    "outside audio": "correct offset and duration, both in seconds",
    "wrong sample rate": "convert it: ffmpeg -i IN -ar RATE OUT.flac",
    "too short": "join it to what comes before or after it, or delete the row",
    "too long": "cut it at pauses, or delete the row",
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
    offset: float | None = None  # seconds into the file; None: the whole file


def read_manifest(path):
    """Read a csv of which every row must be usable.

    A file is read again only if it has changed: 281,241 rows take seconds, the look at
    each recording minutes on a slow disk, and a run asks for them three times.

    Arguments
    ---------
    path : str
        The csv, UTF-8, or SpeechBrain's json or NeMo's jsonl. Audio paths are absolute or
        relative to its folder. Missing durations are read from the audio headers;
        `spk_id` may be absent.

    Returns
    -------
    list of Utterance

    Raises
    ------
    FileNotFoundError
        If there is none; says what makes one.
    ValueError
        For missing columns, malformed rows, duplicate ids, unusable audio.
    """
    require(path)
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
    rows = [dataclasses.replace(u, wav=os.path.abspath(u.wav)) for u in utterances]
    whole = all(u.offset is None for u in rows)
    columns = COLUMNS if whole else (*COLUMNS, "offset")
    write_csv(path, columns, (dataclasses.astuple(u)[: len(columns)] for u in rows))


def read_rows(path, data_root=None):
    """Utterances of a file as they stand; only the form is checked.

    Arguments
    ---------
    path : str
        See `read_manifest`.
    data_root : str, optional
        Folder that takes the place of {data_root} or $data_root in audio paths; by
        default, the file's own.

    Returns
    -------
    list of Utterance

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_manifest`, which looks at the audio as well.
    """
    require(path)
    records, unused = read_records(path)
    if unused:
        logger.warning(f"{path}: not used: {', '.join(unused)}")
    if not records:
        raise ValueError(
            f"{path} has no utterance, only a header. Write one row for each"
        )
    folder = os.path.dirname(os.path.abspath(path))
    return [
        _parse(cells, folder, data_root or folder, f"{path}, {where}")
        for where, cells in records
    ]


def require(path):
    """Say what makes a manifest, if it is not there."""
    if os.path.exists(path):
        return
    folder = os.path.dirname(path) or "."
    raise FileNotFoundError(
        f"{path} does not exist. A recipe's train.py --data_folder CORPUS writes it, or: "
        f"python recipes/AISHELL-1/aishell_prepare.py CORPUS {folder} (librispeech_prepare"
        ".py, timit_prepare.py beside it for theirs). Your own file: correct its path"
    )


def _parse(cells, folder, data_root, where):
    """The utterance of one record; `folder` is the file's."""
    try:
        if not cells["ID"] or not cells["wav"]:
            raise ValueError("ID or wav is empty")
        duration = float(cells["duration"]) if cells.get("duration") else None
        wav = cells["wav"]
        for name in ("{data_root}", "$data_root"):
            if wav.startswith(name):
                wav = os.path.join(data_root, wav[len(name) :].lstrip("/"))
        wav = os.path.join(folder, wav)
        offset = float(cells["offset"]) if cells.get("offset") else None
        if offset is None and cells.get("start"):
            offset, duration = _seconds(cells["start"], cells.get("stop"), wav)
        if min(offset or 0, duration or 0) < 0:
            raise ValueError(f"offset {offset}, duration {duration}: seconds, from 0")
    except ValueError as error:
        raise ValueError(
            f"{where}: {error}. Correct or delete the row (text with "
            'commas goes in "double quotes", an unknown duration is left empty)'
        ) from None
    return Utterance(
        cells["ID"], duration, wav, cells.get("spk_id", ""), cells["wrd"], offset
    )


def _seconds(start, stop, wav):
    """Offset and duration of SpeechBrain's start and stop, which count samples."""
    try:
        first, last = int(start), int(stop) if stop else None
    except ValueError:
        raise ValueError(
            f"start {start}, stop {stop}: these count samples, as SpeechBrain's; seconds "
            "are called offset and duration"
        ) from None
    rate = _rate(wav)
    if rate is None:  # missing or broken, as its row will be told
        return None, None
    return first / rate, None if last is None else (last - first) / rate


@functools.lru_cache(maxsize=1024)
def _rate(wav):
    """Sample rate in Hz, None if the file cannot be read."""
    try:
        return soundfile.info(wav).samplerate
    except (OSError, soundfile.SoundFileError):
        return None


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
    duration, rate = info.frames / info.samplerate, info.samplerate
    fault = breaks_off(info.extra_info, duration)
    if fault:
        return u, rate, ("broken audio", fault)
    if u.offset is not None:
        left = duration - u.offset
        duration = left if u.duration is None else min(u.duration, left)
        if duration <= 0 or (u.duration or 0) - left > SLACK:
            end = u.offset + (u.duration or 0)
            detail = f"{u.offset:g} to {end:g} s, the file has {left + u.offset:g} s"
            return u, rate, ("outside audio", detail)
    return dataclasses.replace(u, duration=round(duration, 6)), rate, None
