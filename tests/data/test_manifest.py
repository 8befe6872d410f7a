"""The manifest: its file format, the checks, users' own data."""

import dataclasses
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from conftest import rows_of

from cif_lobes.data import manifest, preparers, validation
from cif_lobes.data.manifest import Utterance
from cif_lobes.data.validation import Limits

EN = Limits("en")


def write_audio(path, seconds=1.0, rate=16000, channels=1, **format):
    samples = np.full((round(seconds * rate), channels), 0.1, dtype="float32")
    soundfile.write(path, samples, rate, **format)
    return str(path)


def write_csv(path, *rows):
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return str(path)


def check_one(u, limits=EN, **kwargs):
    """The reason for which one utterance is rejected, or None."""
    accepted, rejected = validation.check_utterances([u], "train", limits, **kwargs)
    assert len(accepted) + len(rejected) == 1
    return rejected[0].reason if rejected else None


@pytest.fixture
def good(tmp_path):
    return Utterance("a", None, write_audio(tmp_path / "a.wav"), "s1", "Hello  World")


# Reading and writing


def test_write_then_read_is_the_same(tmp_path, good):
    rows = [
        dataclasses.replace(good, duration=1.000063, wrd='a "quoted", text'),
        dataclasses.replace(good, id="b", duration=0.1 + 0.2, spk_id="", wrd="龙"),
    ]
    manifest.write_manifest(tmp_path / "m.csv", rows)
    assert manifest.read_manifest(tmp_path / "m.csv") == rows
    assert list(tmp_path.glob("*.partial")) == []


def test_written_paths_are_absolute(tmp_path, monkeypatch, good):
    monkeypatch.chdir(tmp_path)
    manifest.write_manifest("m.csv", [dataclasses.replace(good, wav="a.wav")])
    assert rows_of("m.csv")[0]["wav"] == str(tmp_path / "a.wav")


def test_failed_write_leaves_the_old_file(tmp_path, good):
    path = tmp_path / "m.csv"
    manifest.write_manifest(path, [good])
    before = path.read_bytes()

    def broken_rows():
        yield dataclasses.replace(good, id="b")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        manifest.write_manifest(path, broken_rows())
    assert path.read_bytes() == before


def test_read_relative_path_missing_duration_and_bom(tmp_path):
    (tmp_path / "wavs").mkdir()
    write_audio(tmp_path / "wavs" / "a.wav", 1.5)
    path = write_csv(
        tmp_path / "m.csv",
        "\ufeffID, duration, wav, wrd",
        "a, , wavs/a.wav, hi",
        "",
        'b, 2.5, wavs/a.wav, "hi, you"',
    )
    wav = str(tmp_path / "wavs" / "a.wav")
    assert manifest.read_manifest(path) == [
        Utterance("a", 1.5, wav, "", "hi"),
        Utterance("b", 2.5, wav, "", "hi, you"),
    ]


def test_a_manifest_is_read_again_only_if_it_has_changed(tmp_path, good, monkeypatch):
    reads, read_rows = [], manifest.read_rows
    monkeypatch.setattr(
        manifest, "read_rows", lambda path: reads.append(path) or read_rows(path)
    )
    path = write_csv(tmp_path / "m.csv", "ID,wav,wrd", f"a,{good.wav},hi")
    first = manifest.read_manifest(path)
    first.append("what a caller does to its list is its own")
    assert [u.wrd for u in manifest.read_manifest(path)] == ["hi"]
    assert len(reads) == 1
    write_csv(tmp_path / "m.csv", "ID,wav,wrd", f"a,{good.wav},hello")
    assert [u.wrd for u in manifest.read_manifest(path)] == ["hello"]
    assert len(reads) == 2


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["ID,wav", "a,a.wav"], "needed are ID, wav, wrd"),
        (["ID,wav,wrd"], "has no utterance, only a header"),
        (
            ["ID,wav,wrd", '"a,a.wav,hi', "b," + "x" * 140000],
            "line 1.*quote never closed",
        ),
        (["ID,wav,wrd", 'a,a.wav,"hi', 'b,b.wav,"ho"'], "line 1.*quote never closed"),
        (["ID,wav,wrd", "a,a.wav,hi", 'b,b.wav,"ho'], "line 2.*quote never closed"),
        (["ID,wav,wrd,start", "a,a.wav,hi,0.5"], "line 2: start 0.5.*count samples"),
        (["ID,wav,wrd,offset", "a,a.wav,hi,-1"], "line 2: offset -1.0"),
        (["ID,wav,wrd,offset", "a,a.wav,hi,1.2"], "a: outside audio .*file has 1 s"),
        ([], r"columns are \[\]"),
        (["ID,wav,wrd", "a,a.wav,well, hi"], "line 2: 4 cells under 3 columns"),
        (["ID,wav,wrd", "a,a.wav"], "line 2: 2 cells under 3 columns"),
        (["ID,wav,wrd", ",a.wav,hi"], "line 2: ID or wav is empty"),
        (["ID,duration,wav,wrd", "a,1 s,a.wav,hi"], "line 2: .*float.*'1 s'"),
        (["ID,wav,wrd", "a,a.wav,hi", "a,a.wav,ho"], "a: duplicate id"),
        (["ID,wav,wrd", "a,lost.wav,hi"], "a: missing audio"),
        (["ID,duration,wav,wrd", "a,1,lost.wav,hi"], "a: missing audio .*moved"),
    ],
)
def test_read_errors_name_file_and_row(tmp_path, good, lines, message):
    path = write_csv(tmp_path / "m.csv", *lines)
    with pytest.raises(ValueError, match=f"m.csv.*{message}"):
        manifest.read_manifest(path)


def test_read_says_how_to_convert_other_encodings(tmp_path):
    """The line, and the encoding if it can be told."""
    for encoding, message in (
        ("gb18030", "m.csv, line 3: this is GBK .* iconv -f GB18030"),
        ("utf-16", "m.csv is UTF-16, .* iconv -f UTF-16"),
        ("latin-1", "m.csv, line 3: not UTF-8: .*CP1252"),
    ):
        text = "é" if encoding == "latin-1" else "你好"
        data = f"ID,wav,wrd\na,a.wav,hi\nb,b.wav,{text}\n".encode(encoding)
        (tmp_path / "m.csv").write_bytes(data)
        with pytest.raises(ValueError, match=message):
            manifest.read_manifest(tmp_path / "m.csv")


# Checks


def test_accepted_has_folded_text_and_measured_duration(good):
    stated = dataclasses.replace(good, duration=99.0)
    accepted, rejected = validation.check_utterances([stated], "train", EN)
    assert rejected == []
    assert accepted == [dataclasses.replace(good, duration=1.0, wrd="hello world")]


def test_every_reason(tmp_path, good):
    (tmp_path / "zero.wav").touch()
    (tmp_path / "junk.wav").write_bytes(b"junk" * 100)
    changes = {
        "missing transcript": {"wrd": None},
        "empty text": {"wrd": " \u3000"},
        "missing audio": {"wav": str(tmp_path / "lost.wav")},
        "outside audio": {"offset": 0.5, "duration": 0.7},
        "empty audio": {"wav": str(tmp_path / "zero.wav")},
        "broken audio": {"wav": str(tmp_path / "junk.wav")},
        "wrong sample rate": {"wav": write_audio(tmp_path / "8k.wav", rate=8000)},
        "too short": {"wav": write_audio(tmp_path / "short.wav", 0.19)},
        "too long": {"wav": write_audio(tmp_path / "long.wav", 2.01)},
        "too many tokens": {"wrd": "a " * 13},
    }
    limits = Limits("en", sample_rate=16000, max_duration=2.0)
    for reason, change in changes.items():
        assert check_one(dataclasses.replace(good, **change), limits) == reason
    taken = {"a": dataclasses.replace(good, wav="other.wav")}
    assert check_one(good, limits, taken=taken) == "duplicate id"
    assert changes.keys() | {"duplicate id"} == validation.REMEDIES.keys()


def test_header_without_samples_is_empty_audio(tmp_path, good):
    wav = write_audio(tmp_path / "none.wav", 0.0)
    assert check_one(dataclasses.replace(good, wav=wav)) == "empty audio"


def test_any_sample_rate_without_an_expected_one(tmp_path, good):
    wav = write_audio(tmp_path / "odd.wav", rate=11025)
    assert check_one(dataclasses.replace(good, wav=wav)) is None


def test_token_limit_counts_end_of_sentence_and_units(good):
    # One second has room for ceil(12.5) = 13 tokens, of which one ends the sentence.
    twelve = dataclasses.replace(good, wrd="x" * 12)
    thirteen = dataclasses.replace(good, wrd="x" * 13)
    zh = Limits("zh")
    assert check_one(twelve, zh) is None
    assert check_one(thirteen, zh) == "too many tokens"
    assert check_one(thirteen, EN) is None  # one word
    assert check_one(twelve, EN, count_tokens=lambda t: 2 * len(t)) == "too many tokens"


def test_first_of_two_equal_ids_is_kept(tmp_path, good):
    second = dataclasses.replace(good, wav=write_audio(tmp_path / "b.wav"), wrd="two")
    accepted, rejected = validation.check_utterances([good, second, good], "train", EN)
    assert [u.wrd for u in accepted] == ["hello world"]
    assert [r.wav for r in rejected] == [second.wav, good.wav]


def test_same_recording_may_be_in_two_splits(tmp_path, good):
    other = dataclasses.replace(good, wav=write_audio(tmp_path / "b.wav"))
    kept = validation.prepare_splits({"train": [good], "test": [good]}, tmp_path, EN)
    assert len(kept["test"]) == 1
    with pytest.raises(ValueError, match="a: duplicate id .*a.wav in another split"):
        validation.prepare_splits({"train": [good], "test": [other]}, tmp_path, EN)


# Preparing splits


def many(good, count, **change):
    """Utterances 0 to count - 1; the last one changed."""
    rows = [dataclasses.replace(good, id=f"u{i}") for i in range(count)]
    return rows[:-1] + [dataclasses.replace(rows[-1], **change)]


def test_rejected_are_listed_and_counted(tmp_path, good, capsys):
    rows = many(good, 4, wrd=None)
    validation.prepare_splits({"train": rows}, tmp_path, EN, max_rejected=0.25)
    assert rows_of(tmp_path / "rejected.csv") == [
        {
            "ID": "u3",
            "split": "train",
            "wav": good.wav,
            "reason": "missing transcript",
            "detail": "not in the transcript file",
        }
    ]
    out = capsys.readouterr().out
    assert "train: 3 utterances; rejected: 1 missing transcript" in out
    kept = [u.id for u in manifest.read_manifest(tmp_path / "train.csv")]
    assert kept == ["u0", "u1", "u2"]


def test_too_many_rejected_raises_with_remedy(tmp_path, good):
    rows = many(good, 4, wrd=None)
    with pytest.raises(ValueError) as error:
        validation.prepare_splits({"train": rows}, tmp_path, EN, max_rejected=0.24)
    for part in (
        "train: 1 of 4 utterances rejected",
        "24.0%",
        f"u3: missing transcript (not in the transcript file): {good.wav}",
        validation.REMEDIES["missing transcript"],
        "--max_rejected 0.25",
    ):
        assert part in str(error.value)
    assert len(rows_of(tmp_path / "rejected.csv")) == 1
    assert not (tmp_path / "train.csv").exists()


@pytest.mark.parametrize("rows", [[], [Utterance("a", None, "lost.wav", "", "hi")]])
def test_nothing_left_raises_whatever_is_allowed(tmp_path, rows):
    with pytest.raises(ValueError) as error:
        validation.prepare_splits({"train": rows}, tmp_path, EN, max_rejected=1.0)
    assert "--max_rejected" not in str(error.value)


def test_up_to_date_until_an_input_changes(tmp_path, good):
    save, rows = tmp_path / "save", {"train": [good]}

    def runs(rows=rows, limits=EN):
        return bool(validation.prepare_splits(rows, save, limits))

    assert runs()
    assert not runs()
    assert runs(limits=Limits("en", max_duration=30.0))
    assert runs()
    assert runs({"train": [dataclasses.replace(good, wrd="Bye")]})
    assert not runs({"train": [dataclasses.replace(good, wrd="bye")]})
    assert runs()
    write_audio(tmp_path / "a.wav", 1.25)
    assert runs()
    assert manifest.read_manifest(save / "train.csv")[0].duration == 1.25
    (save / "train.csv").unlink()
    assert runs()
    os.utime(good.wav, (0, 0))
    assert runs()


def test_failed_preparation_is_not_up_to_date(tmp_path, good):
    os.rename(good.wav, tmp_path / "moved.wav")
    for _ in range(2):
        with pytest.raises(ValueError, match="missing audio"):
            validation.prepare_splits({"train": [good]}, tmp_path / "save", EN)


def test_interrupted_preparation_is_not_up_to_date(tmp_path, good, monkeypatch):
    save = tmp_path / "save"
    hello, bye = {"train": [good]}, {"train": [dataclasses.replace(good, wrd="bye")]}
    validation.prepare_splits(hello, save, EN)
    write = manifest.write_manifest

    def write_and_stop(*args):
        write(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(validation, "write_manifest", write_and_stop)
        with pytest.raises(KeyboardInterrupt):
            validation.prepare_splits(bye, save, EN)
    validation.prepare_splits(hello, save, EN)
    assert manifest.read_manifest(save / "train.csv")[0].wrd == "hello world"


# Own data


def test_own_data_of_every_format_rate_and_channel_count(tmp_path):
    audio = tmp_path / "audio"
    audio.mkdir()
    write_audio(audio / "a.wav", 1.0, 8000, subtype="PCM_24")
    write_audio(audio / "b.flac", 1.0, 44100, channels=2)
    write_audio(audio / "c.mp3", 1.0, 22050, channels=2)
    write_audio(audio / "d.ogg", 1.0, 11025)
    write_audio(audio / "e.opus", 1.0, 48000, format="OGG", subtype="OPUS")
    names = ["a.wav", "b.flac", "c.mp3", "d.ogg", "e.opus"]
    train = write_csv(
        tmp_path / "mine.csv",
        "ID,wav,wrd",
        *(f"{name[0]},audio/{name},Good day" for name in names),
    )
    test = write_csv(
        tmp_path / "calls.csv",
        "wrd,spk_id,wav,ID,duration",
        f"Bye,kim,{audio / 'a.wav'},z,",
    )
    save = tmp_path / "save"
    made = validation.prepare_own_data(
        {"train": train, "valid": train, "test": [test]}, save, "en"
    )
    assert made == {n: str(save / f"{n}.csv") for n in ("train", "valid", "calls")}
    for name, u in zip(names, manifest.read_manifest(made["train"]), strict=True):
        assert u == Utterance(name[0], 1.0, str(audio / name), "", "good day")
    assert manifest.read_manifest(made["calls"])[0].spk_id == "kim"
    assert list(rows_of(made["calls"])[0]) == ["ID", "duration", "wav", "spk_id", "wrd"]


def test_own_data_passes_limits_on(tmp_path, good):
    train = write_csv(tmp_path / "mine.csv", "ID,wav,wrd", "a,a.wav,hi", "b,a.wav,")
    own = {"train": train}
    with pytest.raises(ValueError, match="empty text"):
        validation.prepare_own_data(own, tmp_path / "s", "en")
    validation.prepare_own_data(own, tmp_path / "s", "en", max_rejected=0.5)
    with pytest.raises(ValueError, match="too long"):
        validation.prepare_own_data(own, tmp_path / "s", "en", 0.5, max_duration=0.5)


@pytest.mark.parametrize("names", [["a/calls.csv", "b/calls.csv"], ["a/train.csv"]])
def test_own_data_refuses_two_csv_of_one_name(tmp_path, good, names):
    for folder in "ab":
        (tmp_path / folder).mkdir()
    for name in ["mine.csv", *names]:
        write_csv(tmp_path / name, "ID,wav,wrd", "a,../a.wav,hi")
    own = {"train": tmp_path / "mine.csv", "test": [tmp_path / name for name in names]}
    with pytest.raises(ValueError, match="rename it"):
        validation.prepare_own_data(own, tmp_path / "save", "en")


def test_own_data_is_never_overwritten(tmp_path, good):
    train = write_csv(tmp_path / "train.csv", "ID,wav,wrd", "a,a.wav,HI")
    with pytest.raises(ValueError, match="out of the save folder"):
        validation.prepare_own_data({"train": train}, tmp_path, "en")


# Counts, imports


@pytest.mark.parametrize("found", [7176, 7175])
def test_counts_warn_only_where_they_differ(caplog, capsys, found):
    with caplog.at_level(logging.WARNING):
        preparers.check_counts("test", {"utterances": found}, {"utterances": 7176})
    assert f"{found:,}" in capsys.readouterr().out
    assert bool(caplog.records) == (found != 7176)


def test_starts_without_torch():
    code = "import sys, cif_lobes.data.manifest; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "False", run.stderr
