"""check_audio: every file decoded once, and remembered while it stays as it is."""

import dataclasses
import os

import numpy as np
import pytest
import soundfile
from conftest import rows_of

from cif_lobes.data import audio_checks, manifest, validation
from cif_lobes.data.audio_checks import AudioMemory
from cif_lobes.data.manifest import Utterance
from cif_lobes.data.validation import Limits


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that are decoded from now on."""
    names, examine = [], audio_checks.examine
    monkeypatch.setattr(
        audio_checks,
        "examine",
        lambda path: names.append(os.path.basename(path)) or examine(path),
    )
    return names


@pytest.fixture
def files(tmp_path):
    """A good recording, one with a NaN, one that breaks off, and one that is not there."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(32000)
    for name in ("good", "cut"):
        soundfile.write(tmp_path / f"{name}.flac", noise, 16000)
    data = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(data[: len(data) // 2])
    noise[16000] = np.nan
    soundfile.write(tmp_path / "nan.wav", noise, 16000, "FLOAT")
    return [str(tmp_path / n) for n in ("good.flac", "nan.wav", "cut.flac", "lost.wav")]


def test_what_is_known_is_not_decoded(tmp_path, files, decoded, capsys):
    memory = tmp_path / "not there yet" / "decoded.txt"
    found = AudioMemory(memory).examine([*files, files[0]])
    assert [row.fault.split("(")[0] for row in found.values()] == [
        "",
        "sample 16,000 ",
        "it cannot be decoded ",
    ]
    assert found[files[0]].seconds == 2.0
    assert sorted(decoded) == ["cut.flac", "good.flac", "nan.wav"]
    assert "3 files of 0.0 h decoded in 0 s" in capsys.readouterr().out
    decoded.clear()
    assert AudioMemory(memory).examine(files) == found
    assert decoded == [] and capsys.readouterr().out == ""
    os.utime(files[0], (1, 1))
    soundfile.write(files[1], np.zeros(100), 16000)
    again = AudioMemory(memory).examine(files)
    assert sorted(decoded) == ["good.flac", "nan.wav"] and again[files[1]].fault == ""


def test_what_was_decoded_before_ctrl_c_is_known(tmp_path, files, monkeypatch):
    examine = audio_checks.examine

    def stop(path):
        if path == files[2]:
            raise KeyboardInterrupt
        return examine(path)

    monkeypatch.setattr(audio_checks, "examine", stop)
    with pytest.raises(KeyboardInterrupt):
        AudioMemory(tmp_path / "decoded.txt").examine(files)
    assert files[0] in AudioMemory(tmp_path / "decoded.txt").rows


def prepare(folder, files, **limits):
    """Check the files as a corpus of which all may be rejected but one."""
    rows = [Utterance(f"u{i}", None, wav, "", "hi") for i, wav in enumerate(files)]
    kept = validation.prepare_splits(
        {"train": rows}, folder, Limits("en", **limits), max_rejected=1.0
    )
    rejected = {r["ID"]: r["detail"] for r in rows_of(folder / "rejected.csv")}
    return [u.id for u in kept.get("train", [])], rejected


def test_full_and_header(tmp_path, files, decoded):
    kept, rejected = prepare(tmp_path / "full", files)
    assert kept == ["u0"] and rejected.keys() == {"u1", "u2", "u3"}
    assert "sample 16,000 (1.00 s) is NaN" in rejected["u1"]
    assert "cannot be decoded" in rejected["u2"]
    decoded.clear()
    assert prepare(tmp_path / "full", files)[0] == [] and decoded == []
    kept, rejected = prepare(tmp_path / "header", files, check_audio="header")
    assert kept == ["u0", "u1", "u2"] and rejected.keys() == {"u3"} and decoded == []


def test_another_setting_is_refused():
    with pytest.raises(ValueError, match="check_audio is 'some': full .* or header"):
        Limits("en", check_audio="some")


def test_an_mp3_without_its_length_gets_that_of_its_samples(tmp_path):
    rng = np.random.default_rng(0)
    samples = np.append(np.zeros(32000), 0.1 * rng.standard_normal(32000))
    path = tmp_path / "a.mp3"
    soundfile.write(
        path, samples, 16000, bitrate_mode="VARIABLE", compression_level=0.5
    )
    data = path.read_bytes()
    path.write_bytes(data[data.index(b"\xff\xf3", 4) :])
    row = Utterance("a", None, str(path), "", "hi")
    assert manifest.measure(row)[0].duration > 6
    kept = validation.prepare_splits({"train": [row]}, tmp_path / "save", Limits("en"))
    assert kept["train"][0].duration == pytest.approx(4, abs=0.2)


def test_a_file_of_many_stretches_is_decoded_once(tmp_path, files, decoded):
    row = Utterance("a", 0.5, files[0], "", "hi", 0.25)
    rows = [row, dataclasses.replace(row, id="b", offset=1.0)]
    kept = validation.prepare_splits({"train": rows}, tmp_path / "save", Limits("en"))
    assert [u.duration for u in kept["train"]] == [0.5, 0.5]
    assert decoded == ["good.flac"]


def test_a_start_looks_at_each_file_once(tmp_path, files, monkeypatch):
    """Where nothing has changed: a large corpus may lie on a slow disk."""
    rows = {"train": [Utterance(wav, None, wav, "", "hi") for wav in files]}
    stat, looked = os.stat, []

    def count(path, **kwargs):
        looked.append(path)
        return stat(path, **kwargs)

    limits, folder = Limits("en", check_audio="header"), tmp_path / "save"
    assert validation.prepare_splits(rows, folder, limits, 0.9)
    monkeypatch.setattr(os, "stat", count)
    assert validation.prepare_splits(rows, folder, limits, 0.9) == {}
    assert sorted(path for path in looked if path in files) == sorted(files)
