"""The formats that transcripts are printed and written in."""

import json
import pathlib
import textwrap

from cif_lobes.inference.windows import PAUSE

MAX_WORD = 1.0  # seconds; a span that is longer begins with a pause
MAX_CUE = 5.0  # seconds of speech in a subtitle
MAX_LINE, MAX_LINES = 42, 2  # characters of a subtitle's line, and its lines


def as_row(file, transcript):
    """File and text, a tab between."""
    return f"{file}\t{transcript.text}\n"


def as_txt(file, transcript):
    """The text alone."""
    return f"{transcript.text}\n"


def as_json(file, transcript):
    """One object in one line: the best hypothesis in full, all as text."""
    row = {"file": file, "text": transcript.text, "score": transcript.score}
    row["tokens"] = [token._asdict() for token in transcript.tokens]
    row["words"] = [word._asdict() for word in transcript.words]
    row["nbest"] = [{"text": t.text, "score": t.score} for t in transcript.nbest]
    return json.dumps(row, ensure_ascii=False) + "\n"


def as_ctm(file, transcript):
    """NIST's time marks: recording, channel, start, duration, word, confidence."""
    name = pathlib.Path(file).stem.replace(" ", "_")
    return "".join(
        f"{name} 1 {w.start:.3f} {w.end - w.start:.3f} {w.token} {w.confidence:.4f}\n"
        for w in transcript.words
    )


def as_srt(file, transcript):
    """Subtitles of SubRip, see `cues`."""
    return "".join(
        f"{number}\n{_clock(start)} --> {_clock(end)}\n{_lines(text)}\n\n"
        for number, (start, end, text) in enumerate(cues(transcript), start=1)
    )


def as_vtt(file, transcript):
    """Subtitles of WebVTT, see `cues`."""
    return "WEBVTT\n\n" + "".join(
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n{_escaped(_lines(text))}\n\n"
        for start, end, text in cues(transcript)
    )


def as_tsv(file, transcript):
    """Start and end of each cue in milliseconds, and its text; a line of names first."""
    return "start\tend\ttext\n" + "".join(
        f"{round(1000 * start)}\t{round(1000 * end)}\t{text}\n"
        for start, end, text in cues(transcript)
    )


def cues(transcript):
    """What is shown at a time, as subtitles.

    A new cue begins after each pause, before one gets longer than 5 s, and before its text
    no longer fits into two lines of 42 characters.

    Arguments
    ---------
    transcript : cif_lobes.inference.transcript.Transcript

    Returns
    -------
    list of (float, float, str)
        Start and end in seconds, text.
    """
    found, space = [], " " if " " in transcript.text else ""
    for word in transcript.words:
        start = max(word.start, word.end - MAX_WORD)
        if found:
            first, end, text = found[-1]
            longer = f"{text}{space}{word.token}"
            paused = start - end > PAUSE
            fits = word.end - first <= MAX_CUE and len(_wrapped(longer)) <= MAX_LINES
            if fits and not paused:
                found[-1] = first, word.end, longer
                continue
        found.append((start, word.end, word.token))
    return found


def _wrapped(text):
    return textwrap.wrap(text, MAX_LINE)


def _lines(text):
    """Lines of at most 42 characters."""
    return "\n".join(_wrapped(text))


def _escaped(text):
    """Without what WebVTT reads as marks."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _clock(seconds, point=","):
    """For instance 01:02:03,456."""
    rest, milliseconds = divmod(round(seconds * 1000), 1000)
    rest, seconds = divmod(rest, 60)
    return f"{rest // 60:02d}:{rest % 60:02d}:{seconds:02d}{point}{milliseconds:03d}"


FORMATS = {
    "txt": as_txt,
    "srt": as_srt,
    "vtt": as_vtt,
    "tsv": as_tsv,
    "json": as_json,
    "ctm": as_ctm,
}
