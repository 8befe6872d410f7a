"""What others write manifests in: SpeechBrain's csv and json, NeMo's json lines.

And transcript files of corpora, one utterance a line.
"""

import csv
import json
import os
import pathlib

# Our name of each column, and what it is called elsewhere; the first that is there counts.
NAMES = {
    "ID": ("ID", "id", "utt_id"),
    "duration": ("duration", "length"),
    "wav": ("wav", "audio_filepath"),
    "spk_id": ("spk_id", "speaker"),
    "wrd": ("wrd", "words", "transcript", "text"),
    "offset": ("offset",),  # seconds
    "start": ("start",),  # samples, as SpeechBrain counts
    "stop": ("stop",),
}


def read_records(path):
    """Cells of a manifest under our names.

    Arguments
    ---------
    path : str
        .json or .jsonl: SpeechBrain's {ID: {...}, ...}, or NeMo's {...} a line, of which
        a missing id is made from the path. Any other: csv.

    Returns
    -------
    records : list of (str, dict of str to str)
        Where each stands ("line 2"), and its cells.
    unused : list of str
        Columns that nobody reads.

    Raises
    ------
    ValueError
        If it is not UTF-8, malformed, or has no ID, wav or wrd.
    """
    try:
        if str(path).endswith((".json", ".jsonl")):
            return _read_json(path)
        return _read_csv(path)
    except UnicodeDecodeError:
        raise ValueError(not_utf8(path)) from None


def read_transcripts(path):
    """Text by utterance id, from lines of an id, white space and the text.

    Arguments
    ---------
    path : str
        UTF-8, such as aishell_transcript_v0.8.txt, 1-1.trans.txt, Kaldi's text.

    Returns
    -------
    dict of str to str

    Raises
    ------
    ValueError
        If it is not UTF-8; names the line.
    """
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise ValueError(not_utf8(path)) from None
    # Any white space: AISHELL-2 has tabs where AISHELL-1 has blanks.
    split = (line.split(None, 1) for line in lines if line.strip())
    return {name: "".join(rest).strip() for name, *rest in split}


def not_utf8(path):
    """What a file is written in that is not UTF-8, where, and what to do.

    Arguments
    ---------
    path : str

    Returns
    -------
    str
    """
    data = pathlib.Path(path).read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return f"{path} is UTF-16, not UTF-8: {_convert(path, 'UTF-16')}"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
    try:
        text = data.decode("gb18030")
        # Latin-1 is rarely valid GBK, and then not all Chinese and its punctuation.
        is_gbk = all(
            c.isascii() or "\u3000" <= c <= "\u9fff" or "\uff00" <= c <= "\uffef"
            for c in text
        )
    except UnicodeDecodeError:
        is_gbk = False
    if is_gbk:
        return (
            f"{path}, line {line}: this is GBK (GB18030), as Chinese Windows writes, not "
            f"UTF-8: {_convert(path, 'GB18030')}"
        )
    return f"{path}, line {line}: not UTF-8: {_convert(path, 'ENCODING')} (it may be CP1252)"


def _convert(path, encoding):
    return f"iconv -f {encoding} -t UTF-8 {path} > utf8{pathlib.Path(path).suffix}"


def _columns(found, path):
    """Ours by theirs, of the columns that a file has, and those that nobody reads."""
    ours = {}
    for name, others in NAMES.items():
        theirs = next((other for other in others if other in found), None)
        if theirs is not None:
            ours[theirs] = name
    missing = {"ID", "wav", "wrd"} - set(ours.values())
    if missing:
        raise ValueError(
            f"{path}: columns are {list(found)}; needed are ID, wav, wrd (or transcript, "
            "words, text), possible also duration, spk_id, offset. Correct the names (those "
            "of a csv are its first line, comma-separated)"
        )
    return ours, [name for name in found if name not in ours]


def _read_csv(path):
    records, ours, line = [], None, 0
    with open(path, newline="", encoding="utf-8-sig") as file:
        # Strict: a quote that is never closed would swallow rows without a word.
        reader = csv.reader(file, skipinitialspace=True, strict=True)
        try:
            for row in reader:
                if not row:
                    continue
                if ours is None:
                    head = [name.strip() for name in row]
                    ours, unused = _columns(head, path)
                    names = [ours.get(name, name) for name in head]
                    line = reader.line_num
                    continue
                line = reader.line_num
                if len(row) != len(names):
                    raise ValueError(
                        f"{path}, line {line}: {len(row)} cells under {len(names)} "
                        "columns. Correct or delete the row (text with commas goes in "
                        '"double quotes", an unknown duration is left empty)'
                    )
                cells = dict(zip(names, map(str.strip, row), strict=True))
                records.append((f"line {line}", cells))
        except csv.Error as error:
            raise ValueError(
                f"{path}, after line {line}: {error}: is a double quote never closed? "
                'Quotes that belong to a text are doubled: "say ""yes"" now"'
            ) from None
    if ours is None:
        _columns([], path)
    return records, unused


def _read_json(path):
    text = pathlib.Path(path).read_text(encoding="utf-8-sig")
    where = "line 1"
    try:
        whole = json.loads(text) if text.strip() else {}
        lines = not all(isinstance(value, dict) for value in whole.values())
    except (ValueError, AttributeError):
        lines = True  # several objects, or no object
    try:
        if lines:
            records = []
            for number, line in enumerate(text.split("\n"), start=1):
                where = f"line {number}"
                if line.strip():
                    records.append((where, _flat(json.loads(line))))
            _give_ids([record for _, record in records])
        else:
            records = [(k, {"ID": k, **_flat(v)}) for k, v in whole.items()]
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path}, {where}: {error}. Wanted: SpeechBrain's {{ID: {{wav, length, words}}, "
            "...}, or one object a line, {audio_filepath, duration, text}"
        ) from None
    named, unused = [], {}
    for where, record in records:
        ours, others = _columns(record, f"{path}, {where}")
        named.append((where, {name: record[key] for key, name in ours.items()}))
        unused |= dict.fromkeys(others)
    return named, list(unused)


def _flat(record):
    """Cells as text; SpeechBrain's {"wav": {"file", "start", "stop"}} is undone."""
    if isinstance(record.get("wav"), dict):
        stretch = record["wav"]
        record = {**record, **stretch, "wav": stretch["file"]}
        del record["file"]
    texts = {key: "" if v is None else str(v) for key, v in record.items()}
    return {key: text.strip() for key, text in texts.items()}


def _give_ids(records):
    """NeMo has none: as much of the path's end as tells the files apart, and the offset."""
    nameless = [r for r in records if not any(r.get(name) for name in NAMES["ID"])]
    paths = {r.get("audio_filepath") or r.get("wav", "") for r in nameless}
    parts = {path: pathlib.PurePath(os.path.splitext(path)[0]).parts for path in paths}
    depth = 1
    while len({p[-depth:] for p in parts.values()}) < len(paths):
        depth += 1
    for record in nameless:
        path = record.get("audio_filepath") or record.get("wav", "")
        name = "-".join(part.strip("/") for part in parts[path][-depth:])
        if float(record.get("offset") or 0):
            name += f"-{float(record['offset']):.3f}"
        record["ID"] = name
