"""Cached layers of a speech teacher: what is in them, what is refused, the same loss."""

import json
import pathlib
import shutil
from types import SimpleNamespace

import h5py
import pytest
import soundfile
import torch
from conftest import ROOT, write_corpus
from programs import run_python
from speechbrain import Stage
from speechbrain.dataio.batch import PaddedBatch
from tiny_hubert import TEACHER, cache_settings, distil_arguments, make_student

from cif_lobes.cache import extraction
from cif_lobes.cache.build import VERBS
from cif_lobes.cache.dry_run import estimate
from cif_lobes.cache.reader import TeacherCache
from cif_lobes.cache.speech_states import SpeechStates, open_speech_cache
from cif_lobes.nets.pretrained import load_encoder
from cif_lobes.nets.speech_encoder import WaveformEncoder
from cif_lobes.runs.fithubert import make_audio_dataset
from cif_lobes.training.fithubert import FitHuBERTBrain
from cif_lobes.training.ledger import Ledger


def run(verb, settings):
    VERBS[verb](SpeechStates(settings))


def build(settings):
    run("build", settings)


@pytest.fixture(scope="module")
def settings(corpus, tmp_path_factory):
    """Those of a cache over the validation tones."""
    return cache_settings(
        corpus[1], tmp_path_factory.mktemp("cache") / "hubert.h5", layers=[3, 1]
    )


@pytest.fixture(scope="module")
def cache(settings):
    build(settings)
    return TeacherCache(settings["cache"])


def test_it_holds_what_the_teacher_says(cache, corpus):
    teacher = load_encoder(TEACHER)
    dataset = make_audio_dataset(corpus[1], 16000, cache)
    assert cache.attributes["layers"] == [1, 3]
    for item in dataset:
        signal = item["signal"]
        states, (T,) = teacher(signal[None], torch.tensor([len(signal)]))
        assert item["teacher"].shape == (T, 2, 32)
        for i, layer in enumerate((1, 3)):
            expected = states[layer][0]
            torch.testing.assert_close(
                item["teacher"][:, i], expected, atol=1e-5, rtol=1e-4
            )


def test_the_size_is_said_first(settings, cache, tmp_path, capsys, monkeypatch):
    """Also when nothing comes of it."""
    build(settings)
    assert "is up to date" in capsys.readouterr().out
    with pytest.raises(ValueError, match="is there and is another.*dtype"):
        build({**settings, "dtype": "bfloat16"})
    new = {**settings, "cache": str(tmp_path / "new.h5")}
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match="takes .* GB, free are 0.00 GB"):
        build(new)
    frames = cache.total_states
    assert f"{frames:,} frames, layers [1, 3]: 0.00 GB" in capsys.readouterr().out


def test_inspect_says_what_it_holds(settings, cache, tmp_path, capsys):
    run("inspect", settings)
    out = capsys.readouterr().out
    assert "12 of 12 utterances" in out and "layers    1, 3" in out
    assert f"{cache.total_states:,} frames x 2 x 32 float32" in out
    assert "PROBLEM" not in out
    other = write_corpus(tmp_path, 2, 9)
    run("inspect", {**settings, "manifests": [str(other)]})
    out = capsys.readouterr().out
    assert "0 of 2 utterances" in out and "PROBLEM" in out


def test_verify_computes_a_sample_again(settings, cache, tmp_path, capsys):
    run("verify", settings)
    assert "12 of 12 utterances; all read; 12 computed again" in capsys.readouterr().out
    damaged = tmp_path / "damaged.h5"
    shutil.copyfile(settings["cache"], damaged)
    with h5py.File(damaged, "r+") as file:
        values = max((d for d in file.values()), key=lambda d: d.size)
        values[len(values) // 2] = float("nan")
    with pytest.raises(OSError, match="are not those that were written"):
        run("verify", {**settings, "cache": str(damaged)})
    with pytest.raises(ValueError, match="layer 2 is taught as well"):
        run("verify", {**settings, "layers": [1, 2]})


def test_a_broken_recording_is_left_out(settings, tmp_path, capsys):
    """As training leaves it out; before anything is heard, and said."""
    csv = write_corpus(tmp_path, 12, 3)
    broken = tmp_path / "utt3-004.flac"
    broken.write_bytes(broken.read_bytes()[:2000])
    new = settings | {"manifests": [str(csv)], "cache": str(tmp_path / "new.h5")}
    empty = tmp_path / "utt3-005.flac"
    soundfile.write(empty, torch.zeros(0).numpy(), 16000)
    with pytest.raises(ValueError, match="2 of 12 utterances rejected"):
        build(new)
    write_corpus(tmp_path, 12, 3)
    broken.write_bytes(broken.read_bytes()[:2000])
    with pytest.raises(ValueError, match="1 of 12 utterances rejected.*broken audio"):
        build(new)
    assert not [*tmp_path.glob("new.h5.partial*")]
    build(new | {"max_rejected": 0.1})
    shown = capsys.readouterr().out
    assert "11 utterances; rejected: 1 broken audio, see" in shown
    listed = (tmp_path / "new.h5.rejected.csv").read_text().splitlines()
    assert len(listed) == 2 and listed[1].startswith("utt3-004,manifests,")
    assert len(TeacherCache(new["cache"])) == 11
    build(new | {"max_rejected": 0.1})
    assert "is up to date" in capsys.readouterr().out


def test_a_lost_recording_and_a_second_of_one_id_are_left_out(
    settings, tmp_path, capsys
):
    """As training does; a recording of two manifests is no second one."""
    train, valid = (
        write_corpus(tmp_path / "a", 12, 3),
        write_corpus(tmp_path / "b", 2, 3),
    )
    both = tmp_path / "a" / "both.csv"
    both.write_text(train.read_text())
    lost = tmp_path / "a" / "utt3-004.flac"
    kept = lost.read_bytes()
    lost.unlink()
    manifests = [str(train), str(valid), str(both)]
    new = settings | {"manifests": manifests, "cache": str(tmp_path / "new.h5")}
    listing = tmp_path / "new.h5.rejected.csv"
    # utt3-000 and -001 of the second folder are other recordings.
    with pytest.raises(ValueError, match="3 of 14 .*: 2 duplicate id, 1 missing audio"):
        build(new)
    new["manifests"] = [str(train)]
    build(new | {"max_rejected": 0.1})
    assert "11 utterances; rejected: 1 missing audio" in capsys.readouterr().out
    assert listing.exists()
    lost.write_bytes(kept)
    with pytest.raises(ValueError, match=r"11 of 12 utterances \(1 missing"):
        build(new)
    assert not listing.exists(), "all can be heard"


def test_inspecting_leaves_the_list_of_the_rejected(settings, tmp_path, capsys):
    """It is the build's; and what else is asked of a cache is said without one."""
    yaml, csv = tmp_path / "extract.yaml", write_corpus(tmp_path, 12, 3)
    (tmp_path / "utt3-004.flac").unlink()
    new = settings | {"manifests": [str(csv)], "cache": str(tmp_path / "new.h5")}
    yaml.write_text(json.dumps(new | {"max_rejected": 0.1}))
    extraction.run("build", yaml, None, "{}")
    listing = tmp_path / "new.h5.rejected.csv"
    before = listing.read_text()
    other = str(write_corpus(tmp_path / "other", 2, 3))
    for manifests in (f"[{other}]", f"[{csv}, {other}]"):
        overrides = f"{{manifests: {manifests}, max_rejected: 0.5}}"
        extraction.run("inspect", yaml, None, overrides)
        assert listing.read_text() == before
    capsys.readouterr()
    new = {"cache": str(tmp_path / "dry.h5"), "max_rejected": 0.0}
    with pytest.raises(ValueError, match="1 missing audio") as refused:
        extraction.run("build", yaml, {"dry_run": True}, json.dumps(new))
    assert "All are in" not in str(refused.value)


@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_a_cache_that_is_not_there_is_said_first(settings, tmp_path, verb):
    """Nothing is decoded for it, and nothing written."""
    yaml = tmp_path / "extract.yaml"
    new = settings | {"cache": str(tmp_path / "none" / "new.h5")}
    yaml.write_text(json.dumps(new))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        extraction.run(verb, yaml, None, "{}")
    assert [*tmp_path.iterdir()] == [yaml]


def test_a_dry_run_decodes_nothing_again(settings, cache, tmp_path, capsys):
    """What is known of recordings is used; nothing is written."""
    before = {
        path: path.read_bytes() for path in pathlib.Path(cache.path).parent.iterdir()
    }
    capsys.readouterr()
    estimate(SpeechStates, dict(settings))
    shown = capsys.readouterr().out
    assert "12 utterances" in shown and "decoded" not in shown
    after = {
        path: path.read_bytes() for path in pathlib.Path(cache.path).parent.iterdir()
    }
    assert after == before


def test_what_a_dry_run_decodes_is_remembered(settings, tmp_path, capsys):
    new = settings | {"cache": str(tmp_path / "none" / "new.h5")}
    capsys.readouterr()
    estimate(SpeechStates, dict(new))
    assert "files of" in capsys.readouterr().out
    kept = sorted(path.name for path in (tmp_path / "none").iterdir())
    assert kept == ["new.h5.audio.json", "new.h5.decoded.txt"]
    estimate(SpeechStates, dict(new))
    assert "decoded" not in capsys.readouterr().out


def test_an_interrupted_build_goes_on(settings, cache, tmp_path, monkeypatch):
    again = {**settings, "cache": str(tmp_path / "again.h5")}
    forward, calls = WaveformEncoder.forward, []

    def stop_at_the_third(teacher, signal, lengths):
        calls.append(len(lengths))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(teacher, signal, lengths)

    monkeypatch.setattr(WaveformEncoder, "forward", stop_at_the_third)
    with pytest.raises(SystemExit, match="of 12 utterances are kept"):
        build(again)
    build(again)
    assert sum(calls) - calls[2] == 12, "no utterance twice"
    resumed = TeacherCache(again["cache"])
    for utt_id in cache:
        torch.testing.assert_close(resumed[utt_id], cache[utt_id])


def test_what_does_not_fit_is_refused(settings, cache, corpus, tmp_path):
    """With the command that mends it: the one that made it would make it again."""
    path, teacher = settings["cache"], load_encoder(TEACHER)
    open_speech_cache(path, teacher, settings)

    def refused(match, encoder=teacher, **changes):
        with pytest.raises(ValueError, match=match):
            open_speech_cache(path, encoder, settings | changes)

    layers = [1, 2, 3]
    refused(
        r"has layers \[1, 3\], layer 2 is taught as well\. Run: .* --layers '\[1,2,3\]' "
        "--overwrite True",
        layers=layers,
    )
    manifests = [*map(str, corpus)]
    refused("12 of 60 utterances.* --manifests '.*' --overwrite", manifests=manifests)
    changed = {**TEACHER, "intermediate_size": 16}
    refused(
        "teacher_weights is '.*', expected '.*'. Run: .* --teacher '.*16,.*' --overwrite",
        load_encoder(changed),
        teacher=changed,
    )
    # Another recording under the same id, of the same length.
    other = write_corpus(tmp_path, 12, 2)
    audio, rate = soundfile.read(tmp_path / "utt2-003.flac")
    soundfile.write(tmp_path / "utt2-003.flac", -audio, rate)
    refused("first utt2-003", manifests=[str(other)])
    with pytest.raises(ValueError, match="is there and is another: layers is"):
        build({**settings, "layers": [2]})
    with pytest.raises(
        ValueError, match="4 is none of the layers 1 to 3 of the teacher"
    ):
        build({**settings, "layers": [4]})


def test_the_loss_is_that_of_the_teacher_on_the_fly(cache, corpus):
    student = make_student().eval()
    del student.heads["2"]
    losses = []
    for states in (None, cache):
        dataset = make_audio_dataset(corpus[1], 16000, states)
        brain = FitHuBERTBrain(
            load_encoder(TEACHER),
            modules={"student": student},
            hparams={"hint_weight": 0.1, "cached_layers": [1, 3]},
            run_opts={"device": "cpu"},
        )
        if states is not None:
            brain.teacher = None
        brain.ledger = Ledger()
        batch = PaddedBatch([dataset[i] for i in range(5)])
        with torch.no_grad():
            predictions = brain.compute_forward(batch, Stage.TRAIN)
            losses.append(brain.compute_objectives(predictions, batch, Stage.TRAIN))
    torch.testing.assert_close(*losses, rtol=1e-4, atol=0)


@pytest.mark.slow
def test_training_from_a_cache(corpus, tmp_path):
    """With the commands; the teacher is not run."""
    teacher = json.dumps({**TEACHER, "num_hidden_layers": 2})
    yaml = (ROOT / "recipes/LibriSpeech/hparams/extract_hubert.yaml").read_text()
    yaml = yaml.replace("teacher: facebook/hubert-base-ls960", f"teacher: {teacher}")
    (tmp_path / "extract.yaml").write_text(yaml)
    command = ["extract_teacher.py", str(tmp_path / "extract.yaml")]
    command += ["--layers", "[1, 2]", "--cache", str(tmp_path / "hubert.h5")]
    saved = f"{tmp_path}/a/run/save"  # where training keeps the checked copies
    command += ["--manifests", f"[{saved}/train.csv, {saved}/valid.csv]"]
    run_python(distil_arguments(corpus, tmp_path / "a"))
    run_python(command)
    cached = distil_arguments(corpus, tmp_path / "b")
    cached += ["--teacher_cache", str(tmp_path / "hubert.h5")]
    run_python(cached)
    rows = [(tmp_path / f"{run}/run/epochs.jsonl").read_text() for run in "ab"]
    ours, theirs = (json.loads(r.splitlines()[-1])["valid"]["loss"] for r in rows)
    assert ours == pytest.approx(theirs, rel=0.01)


def test_an_mp3_may_be_longer_than_its_header_says(
    settings, corpus, tmp_path, monkeypatch
):
    csv = write_corpus(tmp_path, 3, 5, suffix="mp3")
    info = soundfile.info

    def longer(path):
        told = info(path)
        told.frames += 1152
        return told

    monkeypatch.setattr("cif_lobes.cache.speech_states.soundfile.info", longer)
    path = str(tmp_path / "mp3.h5")
    build({**settings, "cache": path, "manifests": [str(csv)]})
    assert len(TeacherCache(path)) == 3
