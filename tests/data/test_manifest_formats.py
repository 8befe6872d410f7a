"""Manifests of other toolkits, and stretches of recordings, wherever audio is read."""

import json
import re

import numpy as np
import pytest
import soundfile
from conftest import ROOT

from cif_lobes.data import manifest, validation
from cif_lobes.data.batches import make_dataset, read_utterance
from cif_lobes.data.formats import read_transcripts
from cif_lobes.data.manifest import Utterance
from cif_lobes.data.tokens import CharTokenizer

RATE = 8000


@pytest.fixture
def ramp(tmp_path):
    """A recording of two seconds in which every sample tells its place."""
    soundfile.write(tmp_path / "u1.wav", np.arange(2 * RATE) / 32768, RATE, "FLOAT")
    return str(tmp_path / "u1.wav")


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_further_columns_are_passed_over(tmp_path, ramp, caplog):
    path = write(
        tmp_path / "m.csv", "ID,wav,wrd,wav_format,gender", "u1,u1.wav,hi,wav,f"
    )
    assert manifest.read_rows(path) == [Utterance("u1", None, ramp, "", "hi")]
    assert "m.csv: not used: wav_format, gender" in caplog.text


def test_the_files_of_the_page_are_read(tmp_path):
    """docs/data.md: whole recordings, and stretches of a long one."""
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    whole, cut = re.findall(r"```text\n(ID.*?)```", page, re.DOTALL)
    soundfile.write(tmp_path / "talk.wav", np.zeros(140_000), 16_000)
    (tmp_path / "whole.csv").write_text(whole, encoding="utf-8")
    (tmp_path / "cut.csv").write_text(cut, encoding="utf-8")
    rows = manifest.read_rows(tmp_path / "whole.csv")
    assert [row.wrd for row in rows] == ["good morning, everyone", "shall we begin"]
    rows = manifest.read_rows(tmp_path / "cut.csv")
    assert [(row.offset, row.duration) for row in rows] == [(0.0, 4.5), (4.5, 3.7)]


def test_speechbrain_csv(tmp_path, ramp):
    """AISHELL's name of the text; start and stop count samples, as in VoxCeleb's."""
    path = write(
        tmp_path / "m.csv",
        "ID,duration,wav,start,stop,transcript",
        "0,2.0,u1.wav,,,你 好",
    )
    assert manifest.read_manifest(path) == [Utterance("0", 2.0, ramp, "", "你 好")]
    write(
        path, "ID,duration,wav,start,stop,wrd", "0,2.0,$data_root/u1.wav,4000,12000,hi"
    )
    assert manifest.read_manifest(path) == [Utterance("0", 1.0, ramp, "", "hi", 0.5)]


def test_speechbrain_json(tmp_path, ramp):
    whole = {"wav": "{data_root}/u1.wav", "length": 2.0, "words": "hello"}
    part = {
        "wav": {"file": "u1.wav", "start": 0, "stop": 800},
        "words": "he",
        "spk_id": 7,
    }
    path = write(tmp_path / "m.json", json.dumps({"a": whole, "b": part}))
    expected = [
        Utterance("a", 2.0, ramp, "", "hello"),
        Utterance("b", 0.1, ramp, "7", "he", 0.0),
    ]
    assert manifest.read_manifest(path) == expected
    (tmp_path / "corpus").mkdir()
    (row, _) = manifest.read_rows(path, data_root=tmp_path / "corpus")
    assert row.wav == str(tmp_path / "corpus/u1.wav")


@pytest.mark.parametrize("name", ["m.jsonl", "m.json"])
def test_nemo(tmp_path, ramp, name):
    """Ids are as much of the path as tells files apart, and where stretches begin."""
    rows = [
        {"audio_filepath": "u1.wav", "duration": 1.0, "text": "a", "offset": 0.5},
        {"audio_filepath": "u1.wav", "duration": 0.5, "text": "b", "lang": "en"},
        {"audio_filepath": "x/u1.wav", "duration": None, "text": "c"},
    ]
    found = manifest.read_rows(write(tmp_path / name, *map(json.dumps, rows)))
    assert [u.id for u in found] == ["u1-0.500", "u1", "x-u1"]
    assert [u.offset for u in found] == [0.5, None, None]
    assert [u.wrd for u in found] == ["a", "b", "c"]
    one = manifest.read_rows(write(tmp_path / name, json.dumps(rows[0])))
    assert one == found[:1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "line 1: .*Wanted: SpeechBrain"),
        ('{"audio_filepath": "a.wav"', "line 1: .*Wanted: SpeechBrain"),
        ('{"audio_filepath": "a.wav", "duration": 1}', r"line 1: columns are .*needed"),
        ('{"u1": {"wav": "a.wav"}}', "u1: columns are .*needed are ID, wav, wrd"),
        ("", "only a header"),
    ],
)
def test_bad_json(tmp_path, text, message):
    with pytest.raises(ValueError, match=f"m.json.*{message}"):
        manifest.read_rows(write(tmp_path / "m.json", text))


def test_only_the_stretch_is_read(tmp_path, ramp):
    """By checks, the checked copy, training, and whoever asks for an utterance."""
    rows = [
        {"audio_filepath": ramp, "duration": 1.0, "text": "ab", "offset": 0.25},
        {"audio_filepath": ramp, "duration": 0.5, "text": "ba", "offset": 1.5},
    ]
    path = write(tmp_path / "m.jsonl", *map(json.dumps, rows))
    made = validation.prepare_own_data({"train": path}, tmp_path / "save", "en")
    copy = manifest.read_manifest(made["train"])
    assert [(u.offset, u.duration) for u in copy] == [(0.25, 1.0), (1.5, 0.5)]
    samples = read_utterance(copy[0], RATE) * 32768
    assert samples.tolist() == list(range(2000, 10000))
    tokenizer = CharTokenizer(tmp_path / "chars", 8, "en").fit(["ab"])
    item = make_dataset(made["train"], tokenizer, RATE)[1]
    assert (item["signal"] * 32768).tolist() == list(range(12000, 16000))


def test_a_missing_manifest_says_what_makes_it(tmp_path):
    for read in (manifest.read_manifest, manifest.read_rows):
        with pytest.raises(
            FileNotFoundError, match=r"aishell_prepare.py CORPUS .*folder"
        ):
            read(str(tmp_path / "folder" / "train.csv"))


def test_transcript_files(tmp_path):
    path = write(tmp_path / "text", "\ufeffa1\t你 好", "a2   hi there ", "", "a3")
    assert read_transcripts(path) == {"a1": "你 好", "a2": "hi there", "a3": ""}
    path.write_bytes("a1 hi\na2 你好\n".encode("gbk"))
    with pytest.raises(ValueError, match="text, line 2: this is GBK"):
        read_transcripts(path)
