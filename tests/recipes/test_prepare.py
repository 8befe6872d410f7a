"""The corpus preparers, on corpora of a few utterances in the published layouts."""

import gzip
import importlib.util
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import soundfile

from cif_lobes.data.manifest import read_manifest
from cif_lobes.settings.program import run_program

RECIPES = pathlib.Path(__file__).parents[2] / "recipes"
AISHELL_SCRIPT = RECIPES / "AISHELL-1" / "aishell_prepare.py"
LIBRI_SCRIPT = RECIPES / "LibriSpeech" / "librispeech_prepare.py"
SPLITS = {
    "train_splits": ["train-clean-a", "train-clean-b"],
    "valid_splits": ["dev-mini"],
    "test_splits": ["test-mini"],
}


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


aishell, librispeech = load(AISHELL_SCRIPT), load(LIBRI_SCRIPT)


def write_audio(path, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(2 * rate, 0.1), rate)


@pytest.fixture
def aishell_folder(tmp_path):
    root = tmp_path / "data" / "data_aishell"
    lines = []
    for split, speakers in {"train": (2, 3), "dev": (724,), "test": (764,)}.items():
        for speaker in speakers:
            for number in (122, 123, 124):
                stem = f"BAC009S{speaker:04}W0{number}"
                write_audio(root / "wav" / split / f"S{speaker:04}" / f"{stem}.wav")
                lines.append(f"{stem} 而 对 Ａ 股 {number}\n")
    (root / "transcript").mkdir()
    transcript = root / "transcript" / "aishell_transcript_v0.8.txt"
    transcript.write_text("".join(lines), encoding="utf-8")
    return tmp_path / "data"


@pytest.fixture
def libri_folder(tmp_path):
    root = tmp_path / "data" / "LibriSpeech"
    names = [*SPLITS["train_splits"], "dev-mini", "test-mini"]
    for speaker, split in enumerate(names, start=84):
        for chapter in (7, 8):
            folder = root / split / str(speaker) / str(chapter)
            stems = [f"{speaker}-{chapter}-000{i}" for i in range(3)]
            for stem in stems:
                write_audio(folder / f"{stem}.flac")
            lines = "".join(f"{stem} IT’S  {stem}\n" for stem in stems)
            transcript = folder / f"{speaker}-{chapter}.trans.txt"
            transcript.write_text(lines, encoding="utf-8")
    return tmp_path / "data"


def pack(data, speaker="S0002"):
    """Replace a training speaker's folder by its archive, as published."""
    wav = data / "data_aishell" / "wav"
    archive = wav / f"{speaker}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(wav / "train" / speaker, f"train/{speaker}")
    shutil.rmtree(wav / "train" / speaker)
    return archive


def contents(save):
    return {path.name: path.read_bytes() for path in save.glob("*.csv")}


def shuffle_listings(monkeypatch, seed):
    """Let the disk list folders in another order."""
    rng = random.Random(seed)
    scandir, listdir = os.scandir, os.listdir

    class Listing(list):
        __enter__ = list.__iter__

        def __exit__(self, *_):
            pass

    def shuffled(entries):
        entries = Listing(entries)
        rng.shuffle(entries)
        return entries

    monkeypatch.setattr(os, "scandir", lambda *a: shuffled(scandir(*a)))
    monkeypatch.setattr(os, "listdir", lambda *a: shuffled(listdir(*a)))


# AISHELL-1


@pytest.mark.parametrize("inside", ["", "data_aishell"])
def test_aishell(aishell_folder, tmp_path, inside, capsys):
    aishell.prepare_aishell(aishell_folder / inside, tmp_path / "save")
    rows = {s: read_manifest(tmp_path / "save" / f"{s}.csv") for s in aishell.PUBLISHED}
    assert {s: len(r) for s, r in rows.items()} == {"train": 6, "dev": 3, "test": 3}
    assert [u.id for u in rows["train"]] == sorted(u.id for u in rows["train"])
    first = rows["train"][0]
    assert (first.id, first.spk_id) == ("BAC009S0002W0122", "S0002")
    assert (first.wrd, first.duration) == ("而对a股122", 2.0)
    out = capsys.readouterr().out
    assert "120,098" in out and "1,730,113" in out


def test_aishell_same_bytes_in_any_listing_order(aishell_folder, tmp_path, monkeypatch):
    aishell.prepare_aishell(aishell_folder, tmp_path / "save")
    for seed in range(3):
        with monkeypatch.context() as context:
            shuffle_listings(context, seed)
            aishell.prepare_aishell(aishell_folder, tmp_path / f"save{seed}")
        assert contents(tmp_path / f"save{seed}") == contents(tmp_path / "save")


def test_aishell_without_transcript_or_recording(aishell_folder, tmp_path, capsys):
    wav = aishell_folder / "data_aishell" / "wav" / "train" / "S0002"
    write_audio(wav / "BAC009S0002W0999.wav")
    (wav / "BAC009S0002W0122.wav").unlink()
    with pytest.raises(ValueError, match="BAC009S0002W0999: missing transcript"):
        aishell.prepare_aishell(aishell_folder, tmp_path / "save")
    aishell.prepare_aishell(aishell_folder, tmp_path / "save", max_rejected=0.2)
    assert "1 of 12 transcripts have no recording, first BAC009S0002W0122" in (
        capsys.readouterr().out
    )
    assert len(read_manifest(tmp_path / "save" / "train.csv")) == 5


def test_aishell_2_writes_tabs(aishell_folder, tmp_path):
    transcript = aishell_folder / "data_aishell/transcript/aishell_transcript_v0.8.txt"
    lines = transcript.read_text(encoding="utf-8").splitlines()
    tabs = "".join(line.replace(" ", "\t", 1) + "\n" for line in lines)
    transcript.write_text(tabs, encoding="utf-8")
    aishell.prepare_aishell(aishell_folder, tmp_path / "save")
    first = read_manifest(tmp_path / "save" / "train.csv")[0]
    assert first.wrd == "而对a股122"


def test_aishell_in_another_encoding(aishell_folder, tmp_path):
    transcript = aishell_folder / "data_aishell/transcript/aishell_transcript_v0.8.txt"
    transcript.write_bytes(transcript.read_text(encoding="utf-8").encode("gbk"))
    with pytest.raises(ValueError, match="transcript_v0.8.txt, line 1: this is GBK"):
        aishell.prepare_aishell(aishell_folder, tmp_path / "save")


def test_aishell_expects_16_khz(aishell_folder, tmp_path):
    wav = aishell_folder / "data_aishell/wav/dev/S0724/BAC009S0724W0122.wav"
    write_audio(wav, rate=8000)
    with pytest.raises(ValueError, match="wrong sample rate .8000 Hz"):
        aishell.prepare_aishell(aishell_folder, tmp_path / "save")


def test_aishell_second_run_reads_no_audio(aishell_folder, tmp_path, monkeypatch):
    aishell.prepare_aishell(aishell_folder, tmp_path / "save")
    before = contents(tmp_path / "save")

    def fail(path):
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr(soundfile, "info", fail)
    aishell.prepare_aishell(aishell_folder, tmp_path / "save")
    assert contents(tmp_path / "save") == before


def test_aishell_archives(aishell_folder, tmp_path, monkeypatch, capsys):
    aishell.prepare_aishell(aishell_folder, tmp_path / "unpacked")
    capsys.readouterr()
    pack(aishell_folder, "S0002")
    aishell.prepare_aishell(aishell_folder, tmp_path / "packed")
    assert contents(tmp_path / "packed") == contents(tmp_path / "unpacked")
    out = capsys.readouterr().out
    assert "Unpacking 1 speakers" in out and " 0.0 GB" in out

    # A second run leaves the unpacked speaker alone.
    monkeypatch.setattr(tarfile, "open", None)
    aishell.prepare_aishell(aishell_folder, tmp_path / "packed")
    assert "Unpacking" not in capsys.readouterr().out


def test_aishell_unpacking_resumes(aishell_folder, monkeypatch):
    wav = aishell_folder / "data_aishell" / "wav"
    before = sorted(wav.glob("train/*/*.wav"))
    for speaker in ("S0002", "S0003"):
        pack(aishell_folder, speaker)
    extractall = tarfile.TarFile.extractall

    def interrupted(tar, path, **kwargs):
        """The second speaker stops halfway."""
        if "S0003" in str(path):
            tar.next()  # its folder
            tar.extract(tar.next(), path, filter="data")
            raise KeyboardInterrupt
        extractall(tar, path, **kwargs)

    with monkeypatch.context() as context:
        context.setattr(tarfile.TarFile, "extractall", interrupted)
        with pytest.raises(KeyboardInterrupt):
            aishell.extract_speakers(wav)
    assert [path.name for path in (wav / "train").iterdir()] == ["S0002"]
    aishell.extract_speakers(wav)
    assert sorted(wav.glob("train/*/*.wav")) == before
    assert list(wav.glob(".*")) == []


def cut(archive):
    archive.write_bytes(archive.read_bytes()[:-200])


def flip(archive):
    """Another checksum, four bytes before the length."""
    data = bytearray(archive.read_bytes())
    data[-8] ^= 1
    archive.write_bytes(data)


def empty(archive):
    archive.write_bytes(b"")


def without_speaker(archive):
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(RECIPES, "other", recursive=False)


def no_tar(archive):
    archive.write_bytes(gzip.compress(b"junk" * 300))


@pytest.mark.parametrize("damage", [cut, flip, empty, without_speaker, no_tar])
def test_aishell_damaged_archive(aishell_folder, damage, monkeypatch, capsys):
    archive = pack(aishell_folder)
    damage(archive)
    # A cut archive ends in bytes that say any size.
    plenty = shutil._ntuple_diskusage(1e12, 0, 1e12)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: plenty)
    with pytest.raises(ValueError, match="S0002.tar.gz is damaged"):
        aishell.extract_speakers(archive.parent)
    assert not (archive.parent / "train" / "S0002").exists()
    monkeypatch.setattr(sys, "argv", [aishell.__file__, "DATA", "SAVE"])
    with pytest.raises(SystemExit) as caught:
        run_program(lambda: aishell.extract_speakers(archive.parent))
    assert caught.value.code == 1 and "wget https" in capsys.readouterr().err


def test_aishell_archives_without_room(aishell_folder, monkeypatch):
    archive = pack(aishell_folder)
    full = shutil._ntuple_diskusage(1000, 900, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(OSError, match="Make room"):
        aishell.extract_speakers(archive.parent)


def test_aishell_other_layouts(aishell_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="wget .*data_aishell.tgz"):
        aishell.prepare_aishell(tmp_path / "nothing", tmp_path / "save")
    shutil.rmtree(aishell_folder / "data_aishell" / "wav" / "dev")
    with pytest.raises(FileNotFoundError, match="wav/dev has no SPEAKER"):
        aishell.prepare_aishell(aishell_folder, tmp_path / "save")


# LibriSpeech


@pytest.mark.parametrize("inside", ["", "LibriSpeech"])
def test_librispeech(libri_folder, tmp_path, inside):
    save = tmp_path / "save"
    librispeech.prepare_librispeech(libri_folder / inside, save, **SPLITS)
    assert {*contents(save)} == {
        "train.csv",
        "dev-mini.csv",
        "test-mini.csv",
        "rejected.csv",
    }
    train = read_manifest(save / "train.csv")
    assert [u.id for u in train] == sorted(u.id for u in train)
    assert {u.spk_id for u in train} == {"84", "85"}
    assert (len(train), train[0].wrd) == (12, "it's 84-7-0000")


def test_librispeech_same_bytes_in_any_listing_order(
    libri_folder, tmp_path, monkeypatch
):
    # A transcript without recording, and a stem in two formats, are reported too.
    chapter = libri_folder / "LibriSpeech" / "dev-mini" / "86" / "7"
    (chapter / "86-7-0000.flac").unlink()
    write_audio(chapter / "86-7-0001.wav")
    options = SPLITS | {"max_rejected": 0.5}
    librispeech.prepare_librispeech(libri_folder, tmp_path / "save", **options)
    expected = contents(tmp_path / "save")
    rejected = expected["rejected.csv"].decode()
    assert "86-7-0000,dev-mini" in rejected and "missing audio" in rejected
    assert "86-7-0001,dev-mini" in rejected and "duplicate id" in rejected
    for seed in range(3):
        with monkeypatch.context() as context:
            shuffle_listings(context, seed)
            save = tmp_path / f"save{seed}"
            librispeech.prepare_librispeech(libri_folder, save, **options)
        assert contents(save) == expected


def test_librispeech_wav_is_accepted(libri_folder, tmp_path):
    for flac in libri_folder.rglob("*.flac"):
        write_audio(flac.with_suffix(".wav"))
        flac.unlink()
    librispeech.prepare_librispeech(libri_folder, tmp_path / "save", **SPLITS)
    assert len(read_manifest(tmp_path / "save" / "train.csv")) == 12


def test_librispeech_counts_each_published_split(libri_folder, tmp_path, capsys):
    root = libri_folder / "LibriSpeech"
    (root / "train-clean-a").rename(root / "train-clean-100")
    options = SPLITS | {"train_splits": ["train-clean-100", "train-clean-b"]}
    librispeech.prepare_librispeech(libri_folder, tmp_path / "save", **options)
    counts = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["utterances", "6", "28,539"] in counts
    assert ["train-clean-b", "found", "published"] not in counts


def test_librispeech_missing_split_names_those_there(libri_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no test-clean/.*'LibriSpeech'"):
        librispeech.prepare_librispeech(
            libri_folder, tmp_path / "save", ["train-clean-a"], [], ["test-clean"]
        )


# As scripts


@pytest.mark.parametrize("script", [AISHELL_SCRIPT, LIBRI_SCRIPT])
def test_script(script, request, tmp_path):
    command = [sys.executable, "-X", "importtime", script]
    if script == AISHELL_SCRIPT:
        command += [request.getfixturevalue("aishell_folder"), tmp_path / "save"]
    else:
        command += [request.getfixturevalue("libri_folder"), tmp_path / "save"]
        for option, names in SPLITS.items():
            command += [f"--{option}", *names]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (tmp_path / "save" / "train.csv").exists()
    assert " torch" not in run.stderr and " speechbrain" not in run.stderr
