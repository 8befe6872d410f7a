"""The alignments of a scored set, read back: which unit was taken for which."""

import pathlib

from cif_lobes.decoding.significance import SCORE

EMPTY = "<eps>"


def read_alignments(path):
    """Utterances of an errors_*.txt.

    Arguments
    ---------
    path : str
        Written by `cif_lobes.decoding.scoring.ErrorRate`.

    Returns
    -------
    utterances : list of list of (str or None, str or None)
        Reference unit and hypothesis unit; None for what was inserted or left out.
    split : callable
        From a text to such units: characters if all of them are, else words.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds no alignment.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: python evaluate.py RUN writes errors_*.txt into RUN"
        )
    lines = path.read_text(encoding="utf-8").split("\n")
    utterances = []
    for i, line in enumerate(lines[:-3]):
        if SCORE.match(line):
            sides = [
                [None if unit == EMPTY else unit for unit in map(str.strip, units)]
                for units in (lines[i + 1].split(" ; "), lines[i + 3].split(" ; "))
            ]
            pairs = zip(*sides, strict=True)
            utterances.append([pair for pair in pairs if pair != (None, None)])
    if not utterances:
        raise ValueError(f"{path} holds no alignment of an utterance")
    units = (u for pairs in utterances for pair in pairs for u in pair if u)
    characters = all(len(u) == 1 or u == "<unk>" for u in units)
    return utterances, list if characters else str.split
