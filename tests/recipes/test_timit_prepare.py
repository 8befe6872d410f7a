"""TIMIT's preparation, on a few utterances in the LDC's layout."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile
from conftest import ROOT, load_module
from tiny_timit import write_corpus, write_utterance

from cif_lobes.data.batches import read_audio
from cif_lobes.data.manifest import read_manifest

SCRIPT = ROOT / "recipes/TIMIT/timit_prepare.py"
timit = load_module(SCRIPT)
FOLDED = "sil sh ih hh eh sil jh er sil"


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "TIMIT", upper=True)


def prepared(save):
    return {s: read_manifest(save / f"{s}.csv") for s in timit.PUBLISHED}


@pytest.mark.parametrize("upper, form", [(True, "NIST"), (False, "WAV")])
def test_both_layouts(tmp_path, upper, form, capsys):
    root = write_corpus(tmp_path / "timit", upper, form)
    timit.prepare_timit(root, tmp_path / "save")
    rows = prepared(tmp_path / "save")
    assert [u.id for u in rows["train"]] == [
        "fcjf0_si648",
        "fcjf0_sx37",
        "mdac0_si648",
        "mdac0_sx37",
    ]
    assert {u.spk_id for u in rows["dev"]} == {"faks0"}
    assert {u.spk_id for u in rows["test"]} == {"mdab0"}
    assert {u.wrd for split in rows.values() for u in split} == {FOLDED}
    out = capsys.readouterr().out
    assert "3,696" in out and "462" in out and "50" in out


def test_sphere_is_read(corpus, tmp_path):
    """Header and byte order of the LDC's files: the samples are those written."""
    timit.prepare_timit(corpus.parent, tmp_path / "save")
    utterance = prepared(tmp_path / "save")["train"][0]
    assert open(utterance.wav, "rb").read(7) == b"NIST_1A"
    assert utterance.duration == 1.0
    audio = read_audio(utterance.wav, 16000)
    np.testing.assert_allclose(audio, np.linspace(-0.5, 0.5, 16000), atol=1e-4)


def test_a_converted_copy_is_preferred(corpus, tmp_path):
    """SX37.WAV.wav beside SX37.WAV is one utterance."""
    folder = corpus / "TRAIN/DR1/FCJF0"
    soundfile.write(folder / "SX37.WAV.wav", np.zeros(16000), 16000)
    timit.prepare_timit(corpus, tmp_path / "save")
    train = prepared(tmp_path / "save")["train"]
    assert len(train) == 4 and train[1].wav.endswith("SX37.WAV.wav")


def test_all_61_phones_fold_to_39():
    assert len(timit.PHONES) == 61
    assert len({*timit.PHONES.values()} - {None}) == 39


def test_speakers():
    lists = {split: set(names.split()) for split, names in timit.SPEAKERS.items()}
    assert {s: len(n) for s, n in lists.items()} == {"dev": 50, "test": 24}
    assert not lists["dev"] & lists["test"]


def test_unknown_phone(corpus, tmp_path):
    write_utterance(corpus / "TRAIN/DR1/FCJF0", "SX9", True, phones=["h#", "xx"])
    with pytest.raises(ValueError, match=r"SX9\.PHN: 'xx' is none of"):
        timit.prepare_timit(corpus, tmp_path / "save")


def test_missing_halves_are_rejected(corpus, tmp_path):
    """An utterance without its transcript, one without its audio."""
    (corpus / "TRAIN/DR1/FCJF0/SX37.PHN").unlink()
    (corpus / "TRAIN/DR1/MDAC0/SX37.WAV").unlink()
    with pytest.raises(ValueError, match="2 of 4 .*1 missing"):
        timit.prepare_timit(corpus, tmp_path / "save")
    timit.prepare_timit(corpus, tmp_path / "save", max_rejected=0.5)
    rejected = (tmp_path / "save/rejected.csv").read_text()
    assert "fcjf0_sx37,train" in rejected and "missing transcript" in rejected
    assert "mdac0_sx37,train" in rejected and "missing audio" in rejected


def test_other_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no TRAIN and TEST.*LDC93S1"):
        timit.prepare_timit(tmp_path, tmp_path / "save")


def test_as_a_script(corpus, tmp_path):
    command = [sys.executable, str(SCRIPT), str(corpus), str(tmp_path / "save")]
    subprocess.run(command, check=True, capture_output=True)
    assert len(prepared(tmp_path / "save")["test"]) == 2
