"""Checks that every utterance passes before anything is trained or scored.

Corpus preparers and users' own csv files go the same way, and nothing is dropped in
silence: every rejected utterance is in rejected.csv, with the reason.
"""

import collections
import contextlib
import dataclasses
import hashlib
import math
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from cif_lobes.data.audio_checks import AudioMemory
from cif_lobes.data.manifest import (
    REMEDIES,
    measure,
    read_rows,
    write_csv,
    write_manifest,
)
from cif_lobes.data.text import normalize
from cif_lobes.data.text_report import report_texts

MEMORY = "decoded.txt"  # remembers what check_audio has decoded

# One row of rejected.csv; reason is a key of REMEDIES.
Rejected = collections.namedtuple("Rejected", "ID split wav reason detail")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What an utterance must satisfy to be trained on or scored."""

    language: str  # "zh", "en" or "none": which text normalisation
    sample_rate: int | None = None  # Hz; None accepts any, resampled when loaded
    min_duration: float = 0.2  # seconds
    max_duration: float = 40.0  # seconds; the longest of LibriSpeech has 35
    # One token per encoder frame of 80 ms, end of sentence included, is all that CIF
    # can fire. Speed perturbation by 1.1 leaves a tenth less.
    max_tokens_per_second: float = 12.5
    check_audio: str = "full"  # decode every file once; "header": read its header only

    def __post_init__(self):
        if self.check_audio not in ("full", "header"):
            raise ValueError(
                f"check_audio is {self.check_audio!r}: full (decode every file once) or "
                "header"
            )


def check_utterances(
    utterances, split, limits, count_tokens=None, taken=None, examined=None
):
    """Separate the utterances that can be used from those that cannot.

    Headers are read; without `examined`, samples are not, and a FLAC file that breaks off
    in the middle passes.

    Arguments
    ---------
    utterances : list of Utterance
        The first of two equal ids is kept.
    split : str
    limits : Limits
    count_tokens : callable, optional
        From normalised text to its number of tokens, without end of sentence. By
        default characters ("zh") or words ("en", the fewest tokens it can have).
    taken : dict of str to Utterance, optional
        By id, of the splits before; gains this split's. An id that is another
        recording's there is a duplicate here.
    examined : dict of str to cif_lobes.data.audio_checks.Examined, optional
        What decoding found, by audio path.

    Returns
    -------
    accepted : list of Utterance
        With normalised text and the duration of the audio header.
    rejected : list of Rejected

    Example
    -------
    >>> from cif_lobes.data.manifest import Utterance
    >>> lost = Utterance("a", None, "a.wav", "", "hello")
    >>> accepted, rejected = check_utterances([lost], "test", Limits("en"))
    >>> accepted, rejected[0].reason
    ([], 'missing audio')
    """
    taken, examined = {} if taken is None else taken, examined or {}
    if count_tokens is None:
        count_tokens = len if limits.language == "zh" else lambda t: len(t.split())
    accepted, rejected, seen = [], [], set()
    for u, rate, problem in _measured(utterances, split, examined):
        u = dataclasses.replace(u, wrd=u.wrd and normalize(u.wrd, limits.language))
        if u.id in seen:
            problem = "duplicate id", f"also earlier in {split}"
        elif _is_another(taken.setdefault(u.id, u), u):
            problem = "duplicate id", f"{_where(taken[u.id])} in another split"
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


def prepare_splits(splits, save_folder, limits, max_rejected=0.01, audio_memory=None):
    """Check splits; write save_folder/<split>.csv and rejected.csv.

    Does nothing if prepared.txt has the hash of these very inputs (rows, limits, size
    and time of every recording).

    Arguments
    ---------
    splits : dict of str to list of Utterance
    save_folder : str
    limits : Limits
        Of which a corpus preparer knows language and sample_rate; others are its
        `**limits`.
    max_rejected : float
        Largest share of a split, 0 to 1, that may be rejected.
    audio_memory : str, optional
        File that remembers what was decoded; by default in save_folder.

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
    accepted, rejected, taken, examined = {}, {}, {}, {}
    if limits.check_audio == "full":
        memory = AudioMemory(audio_memory or folder / MEMORY)
        examined = memory.examine(u.wav for rows in splits.values() for u in rows)
    for split, rows in splits.items():
        kept, lost = check_utterances(
            rows, split, limits, taken=taken, examined=examined
        )
        print(f"{split}: {len(kept):,} utterances; rejected: {_per_reason(lost)}")
        accepted[split], rejected[split] = kept, lost
        for line in report_texts(kept) if split == "train" else ():
            print(f"{split}: {line}")
    lost = [row for rows in rejected.values() for row in rows]
    listing = folder / "rejected.csv"
    write_csv(listing, Rejected._fields, lost)
    for split, kept in accepted.items():
        _raise_if_too_many(split, kept, rejected[split], max_rejected, listing)
    for split, kept in accepted.items():
        write_manifest(files[split], kept)
    record.write_text(inputs)
    return accepted


def take_usable(utterances, name, listing, max_rejected, audio_memory):
    """Those whose recordings can be decoded, for who needs no transcripts.

    Writes a list like rejected.csv if some cannot, else there is none.

    Arguments
    ---------
    utterances : list of Utterance
        The same recording may be there twice, as in two manifests: it is taken once. The
        first of two recordings with one id is kept.
    name : str
        What they are, for messages.
    listing : str or None
        The list, a csv. None: nothing is written.
    max_rejected, audio_memory
        As in `prepare_splits`.

    Returns
    -------
    list of Utterance
        With the durations that decoding found.

    Raises
    ------
    ValueError
        If more than max_rejected cannot, or none can; the list is written.
    """
    examined = AudioMemory(audio_memory).examine(u.wav for u in utterances)
    kept, lost, seen = [], [], {}
    for u, _, problem in _measured(utterances, name, examined):
        first = seen.setdefault(u.id, u)
        if _is_another(first, u):
            problem = "duplicate id", f"also of {_where(first)}"
        elif first is not u:
            continue
        if problem:
            lost.append(Rejected(u.id, name, u.wav, *problem))
        else:
            kept.append(u)
    if lost and listing:
        os.makedirs(os.path.dirname(os.path.abspath(listing)), exist_ok=True)
        write_csv(listing, Rejected._fields, lost)
    elif listing:  # what stood there has been mended
        with contextlib.suppress(FileNotFoundError):
            os.unlink(listing)
    if lost:
        _raise_if_too_many(name, kept, lost, max_rejected, listing)
        see = f", see {listing}" if listing else ""
        print(f"{name}: {len(kept):,} utterances; rejected: {_per_reason(lost)}{see}")
    return kept


def prepare_own_data(
    csvs,
    save_folder,
    language,
    max_rejected=0.01,
    data_root=None,
    audio_memory=None,
    **limits,
):
    """Check users' own manifests and write those that training reads.

    Arguments
    ---------
    csvs : dict
        {"train": path, "valid": path, "test": [paths]}; any of them may be left out.
    save_folder : str
        Receives train.csv, valid.csv, and each test csv under its own file name.
    data_root : str, optional
        See `cif_lobes.data.manifest.read_rows`.
    language, max_rejected, audio_memory, **limits
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
        splits[name], targets[name] = read_rows(source, data_root), target
    limits = Limits(language, **limits)
    prepare_splits(splits, save_folder, limits, max_rejected, audio_memory)
    return targets


def _measured(utterances, name, examined):
    """Each utterance with its duration, the sample rate in Hz, the problem or None."""
    with ThreadPoolExecutor() as pool:
        measured = pool.map(measure, utterances)
        bar = tqdm(measured, name, len(utterances), unit=" files", disable=None)
        for u, rate, problem in bar:
            if not problem and u.wav in examined:
                u, problem = _decoded(u, examined[u.wav])
            yield u, rate, problem


def _decoded(u, examined):
    """The utterance with the duration that decoding found, the problem or None."""
    if examined.fault:
        return u, ("broken audio", examined.fault)
    if u.offset is None:  # that of the header may be a guess, as an mp3's is
        u = dataclasses.replace(u, duration=examined.seconds)
    return u, None


def _is_another(first, u):
    """Whether two utterances of one id are of different recordings."""
    if first is u:
        return False
    places = {(os.path.realpath(x.wav), x.offset) for x in (first, u)}
    return len(places) > 1


def _where(u):
    """The recording of an utterance, in words."""
    return u.wav if u.offset is None else f"{u.wav} from {u.offset:g} s"


def _limit_problem(u, rate, limits, count_tokens):
    """(reason, detail) of the first limit that a readable utterance breaks."""
    if limits.sample_rate not in (None, rate):
        return "wrong sample rate", f"{rate} Hz, expected {limits.sample_rate} Hz"
    if u.duration < limits.min_duration:
        return "too short", f"{u.duration} s, the shortest is {limits.min_duration:g} s"
    if u.duration > limits.max_duration:
        return "too long", f"{u.duration} s, the longest is {limits.max_duration:g} s"
    tokens = count_tokens(u.wrd) + 1
    room = math.ceil(u.duration * limits.max_tokens_per_second)
    if tokens > room:
        return "too many tokens", f"{tokens} with end of sentence, room for {room}"
    return None


def _per_reason(rejected):
    """Such as "3 too long, 1 broken audio"."""
    counts = collections.Counter(r.reason for r in rejected).most_common()
    return ", ".join(f"{n:,} {reason}" for reason, n in counts) or "none"


def _raise_if_too_many(split, kept, rejected, max_rejected, listing):
    """Stop before hours are spent on data that is not what its owner thinks."""
    total = len(kept) + len(rejected)
    if kept and len(rejected) <= max_rejected * total:
        return
    message = [
        f"{split}: {len(rejected):,} of {total:,} utterances rejected, max_rejected "
        f"allows {max_rejected:.1%}: {_per_reason(rejected)}. First:",
        *(f"{r.ID}: {r.reason} ({r.detail}): {r.wav}" for r in rejected[:5]),
        f"All are in {listing}. Remedies:" if listing else "Remedies:",
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
            stamps = pool.map(_size_and_time, [u.wav for u in utterances])
            for u, stamp in zip(utterances, stamps, strict=True):
                # Normalised, so that a change of the rules makes the manifests again.
                text = u.wrd and normalize(u.wrd, limits.language)
                stretch = None if u.offset is None else (u.offset, u.duration)
                row = split, u.id, u.wav, u.spk_id, text, stamp, stretch
                digest.update(f"{row}".encode())
    return digest.hexdigest()


def _size_and_time(wav):
    """Size in bytes and time of change of a file, None if it is missing."""
    try:
        status = os.stat(wav)  # once: 281,241 files may lie on a slow disk
    except OSError:
        return None
    return status.st_size, status.st_mtime
