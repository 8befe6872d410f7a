"""What is the same recording: by path and stretch, in one manifest or in several."""

import numpy as np
import pytest
import soundfile
from conftest import rows_of

from cif_lobes.data import validation
from cif_lobes.data.manifest import Utterance
from cif_lobes.data.validation import Limits


@pytest.fixture
def good(tmp_path):
    """A recording of a second."""
    soundfile.write(tmp_path / "a.wav", np.full(16000, 0.1), 16000)
    return Utterance("a", None, str(tmp_path / "a.wav"), "s1", "HI")


def test_usable_recordings_are_taken_once(tmp_path, good):
    """Of several manifests, wherever they lie; another recording of an id is none."""
    sub = tmp_path / "sub"
    sub.mkdir()
    rows = [
        Utterance("a", None, good.wav, "", ""),
        Utterance("a", 1.0, f"{sub}/../a.wav", "", ""),
        Utterance("lost", None, str(tmp_path / "lost.wav"), "", ""),
        Utterance("lost", 2.0, str(tmp_path / "lost.wav"), "", ""),
        Utterance("a", 0.1, good.wav, "", "", offset=0.05),
        Utterance("b", 0.1, good.wav, "", "", offset=0.05),
    ]
    listing = tmp_path / "rejected.csv"
    kept = validation.take_usable(rows, "both", listing, 0.5, None)
    assert [(u.id, u.offset) for u in kept] == [("a", None), ("b", 0.05)]
    told = [(row["ID"], row["reason"], row["detail"]) for row in rows_of(listing)]
    assert told == [
        ("lost", "missing audio", "No such file or directory"),
        ("a", "duplicate id", f"also of {good.wav}"),
    ]
    with pytest.raises(ValueError, match="2 of 4 .*1 missing audio, 1 duplicate id"):
        validation.take_usable(rows, "both", None, 0.1, None)


def test_one_id_for_two_stretches_in_two_splits(good):
    stretches = [Utterance("a", 0.1, good.wav, "", "HI", 0.05 * n) for n in (1, 2)]
    taken = {}
    for u, reason in zip(stretches, (None, "duplicate id"), strict=True):
        limits = Limits("en", min_duration=0, max_tokens_per_second=100)
        _, lost = validation.check_utterances([u], "split", limits, taken=taken)
        assert [row.reason for row in lost] == ([reason] if reason else [])
