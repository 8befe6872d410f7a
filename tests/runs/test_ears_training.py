"""Runs with pretrained ears: from a cache or computed, resumed, exported, begun from one."""

import json
import shlex
import shutil
from unittest import mock

import pytest
import torch
from conftest import ROOT, epochs, last_checkpoint, pad, stop_after, train
from programs import run_python
from speechbrain import Stage
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.inference.ASR import EncoderDecoderASR
from speechbrain.utils.fetching import FetchFrom, FetchSource
from tiny_ears import ears_arguments, make_folder

from cif_lobes.cache import cif_vectors
from cif_lobes.cache.reader import TeacherCache
from cif_lobes.data.batches import make_dataset, read_utterance
from cif_lobes.inference.export import export_run, open_run
from cif_lobes.inference.recognizer import CIFRecognizer
from cif_lobes.runs import coldec
from cif_lobes.runs.cif import load_run
from cif_lobes.runs.ears import open_ears_cache
from cif_lobes.teachers.cif_recognizer import FrozenRecognizer
from cif_lobes.training.augment import SpecAugment, SpeedPerturb
from cif_lobes.training.ledger import Ledger

pytestmark = pytest.mark.slow

YAML = ROOT / "recipes/AISHELL-1/hparams/cif_pretrained_small.yaml"
EXTRACT = ROOT / "recipes/AISHELL-1/hparams/extract_ears_small.yaml"


@pytest.fixture(scope="module")
def ears(tmp_path_factory):
    return make_folder("whisper", tmp_path_factory.mktemp("hub") / "whisper")


def arguments(*corpus_folder_ears, **changes):
    """Command line of cif_pretrained_small.yaml, tiny, on the tone corpus."""
    return ears_arguments(YAML, *corpus_folder_ears, **changes)


def extract(verb, corpus, folder, ears, *more):
    """The command that makes or checks the cache of the tone corpus."""
    command = ["extract_teacher.py", verb, str(EXTRACT)]
    command += ["--ears", ears, "--cache", str(folder / "ears.h5")]
    command += ["--manifests", str([str(path) for path in corpus])]
    command += ["--ears_layers", "[2, 3]", "--dtype", "float32", *more]
    return run_python(command)


@pytest.fixture(scope="module")
def computed(corpus, ears, tmp_path_factory):
    """A run that hears in every epoch."""
    folder = tmp_path_factory.mktemp("computed")
    train(arguments(corpus, folder, ears))
    return folder


def test_a_cache_gives_what_is_computed(corpus, ears, computed, tmp_path):
    """A batch's losses are the same, and a run from it alone reads no recording."""
    extract("build", corpus, tmp_path, ears)
    assert "60 of 60 utterances" in extract("verify", corpus, tmp_path, ears).stdout
    shown = extract("inspect", corpus, tmp_path, ears).stdout
    assert "PROBLEM" not in shown and "speeds    100 %" in shown
    brain, hparams = load_run(
        computed / "run", {"ears_cache": str(tmp_path / "ears.h5")}
    )
    brain.on_evaluate_start()
    brain.modules.eval()
    cache = open_ears_cache(hparams, {"valid": corpus[1]})
    losses = []
    for heard in (None, cache):
        dataset = make_dataset(corpus[1], hparams["tokenizer"], 16000, None, heard)
        assert ("signal" in dataset[0]) == (heard is None)
        batch = PaddedBatch([dataset[i] for i in range(6)])
        brain.ledger = Ledger()
        brain.start_scoring()
        with torch.no_grad():
            predictions = brain.compute_forward(batch, Stage.VALID)
            losses.append(brain.compute_objectives(predictions, batch, Stage.VALID))
    torch.testing.assert_close(*losses, rtol=1e-4, atol=0)
    train(arguments(corpus, tmp_path, ears, ears_cache=tmp_path / "ears.h5"))
    ours, theirs = (
        epochs(f / "run")[-1]["valid"]["loss"] for f in (tmp_path, computed)
    )
    assert ours == pytest.approx(theirs, rel=0.1)  # masks are drawn anew
    # Scored and swept from the cache, too, and without it when it is gone.
    sweep = ["evaluate.py", str(tmp_path / "run"), "--sweep", "--beam", "1"]
    assert "tail_threshold" in run_python(sweep).stdout
    command = ["evaluate.py", str(tmp_path / "run"), "--split", "valid"]
    scores = []
    for gone in (False, True):
        if gone:
            (tmp_path / "ears.h5").unlink()
        done = run_python(command)
        assert ("recordings are heard again: " in done.stderr) == gone
        scores.append(done.stdout.split(";")[0])
    assert scores[0].startswith("valid: ") and scores[0] == scores[1]


def test_cif_vectors_are_made_without_audio(corpus, ears, computed, tmp_path):
    """Of ColDec: from what the ears have heard, with masks, too; once."""
    extract("build", corpus, tmp_path, ears)
    recognizer = FrozenRecognizer(computed / "run")
    hparams = {
        "recognizer": computed / "run",
        "dtype": "float32",
        "device_batch_seconds": 20,
        "overwrite": False,
        "masked_copies": 2,
        "augment": SpecAugment(1, 4, 1, 2),
    }
    made = []
    for name, cache in (("live.h5", None), ("cached.h5", str(tmp_path / "ears.h5"))):
        asked = {**hparams, "cache": str(tmp_path / name), "ears_cache": cache}
        with mock.patch.object(cif_vectors, "read_utterance") as read:
            read.side_effect = read_utterance
            coldec._build(asked, recognizer, {"train": corpus[1]})
        assert read.called == (cache is None)
        made.append(TeacherCache(tmp_path / name))
    for utt_id in made[0]:
        torch.testing.assert_close(*(m[utt_id] for m in made), rtol=1e-4, atol=1e-5)
    # Where the vectors are, what they were made from is not looked for.
    (tmp_path / "ears.h5").unlink()
    with mock.patch.object(coldec, "open_ears_cache_if_it_serves") as opened:
        coldec._build(asked, recognizer, {"train": corpus[1]})
    assert not opened.called


def test_speeds_from_a_cache_are_those_computed(corpus, ears, computed, tmp_path):
    """The same draw, hence the same losses; what a cache has not heard is asked for."""
    settings = {"ears_cache": str(tmp_path / "ears.h5"), "speeds": [90, 100, 115]}
    brain, hparams = load_run(computed / "run", settings)
    manifests = {"train": corpus[1]}
    extract("build", corpus, tmp_path, ears)
    with pytest.raises(ValueError, match=r"24 of 24 are .*--speeds '\[90,100,115\]'"):
        open_ears_cache(hparams, manifests)
    speeds = ["--speeds", "[90, 100, 115]"]
    extract("build", corpus, tmp_path, ears, *speeds, "--overwrite", "True")
    done = extract("verify", corpus, tmp_path, ears, *speeds)
    shown = extract("inspect", corpus, tmp_path, ears, *speeds).stdout
    assert "speeds    90, 100, 115 %" in shown
    assert "180 of 180 utterances" in done.stdout
    brain.hparams.augment = None
    brain.hparams.speed_perturb = SpeedPerturb(16000, hparams["speeds"])
    brain.modules.eval()
    losses, drawn = [], set()
    for heard in (None, open_ears_cache(hparams, manifests)):
        sets = None, heard, hparams["speeds"]
        dataset = make_dataset(corpus[1], hparams["tokenizer"], 16000, *sets)
        torch.manual_seed(0)
        for _ in range(8):
            batch = PaddedBatch([dataset[i] for i in range(6)])
            brain.ledger = Ledger()
            with torch.no_grad():
                predictions = brain.compute_forward(batch, Stage.TRAIN)
                loss = brain.compute_objectives(predictions, batch, Stage.TRAIN)
            drawn.add(predictions.encoded.shape[1])
            losses.append(float(loss))
    assert len(drawn) == 3
    assert losses[:8] == pytest.approx(losses[8:], rel=1e-3)
    # And a run of them, from the cache alone.
    for path in ("ears_cache", "speeds"):
        settings[path] = str(settings[path])
    train(arguments(corpus, tmp_path, ears, **settings))


def test_the_command_offered_makes_a_cache_that_serves(
    corpus, ears, computed, tmp_path
):
    """Where there is none, and where it has other ears, layers, recordings and speeds."""
    cache = tmp_path / "my ears.h5"
    settings = {"ears_cache": str(cache), "speeds": [90, 100]}
    _, hparams = load_run(computed / "run", settings)
    manifests = {"train": str(corpus[0]), "valid": str(corpus[1])}

    def offered(error, hparams=hparams, manifests=manifests):
        with pytest.raises(error) as told:
            open_ears_cache(hparams, manifests)
        command = str(told.value).split("Run: python ")[1].partition(", or ")[0]
        return shlex.split(
            command.replace("<hparams/extract_ears*.yaml>", str(EXTRACT))
        )

    absent = offered(FileNotFoundError)
    of_llm = {k: v for k, v in hparams.items() if k != "ears"}
    of_llm["recognizer"] = str(computed / "run")
    assert offered(FileNotFoundError, of_llm) == absent
    # Scored: what was trained on stays in the cache.
    assert offered(FileNotFoundError, manifests={"set2": str(corpus[1])}) == absent
    run_python(absent)
    assert len(open_ears_cache(hparams, manifests)) == 120
    other = make_folder("hubert", tmp_path / "other")
    changes = ["--ears", other, "--ears_layers", "[1]", "--ears_silence_seconds", "0"]
    changes += ["--manifests", f"[{corpus[1]}]", "--speeds", "[100]"]
    run_python([*absent, *changes, "--overwrite", "True"])
    again = offered(ValueError)
    names = ("ears", "ears_layers", "ears_silence_seconds", "manifests", "speeds")
    assert all(again.count(f"--{name}") == 3 for name in names)
    run_python(again)
    assert open_ears_cache(hparams, manifests).attributes["layer"] == [2, 3]
    # What is right already is not asked for again.
    run_python([*absent, "--ears_layers", "[1, 2]", "--overwrite", "True"])
    again = offered(ValueError)
    assert again.count("--ears_layers") == 3 and again.count("--ears") == 1


def test_no_checkpoint_holds_the_ears(computed):
    saved = last_checkpoint(computed / "run")
    assert sorted(n for n in saved if n.startswith("features.")) == [
        "features.layer_logits",
        "features.norm.bias",
        "features.norm.weight",
    ]
    note = json.loads((computed / "run/ears.json").read_text())
    assert [p.name for p in (computed / "kept").iterdir()] == [note["hash"]]
    record = json.loads((computed / "run/run.json").read_text())
    whisper = torch.nn.ModuleDict(open_run(computed / "run")["model"])
    learnt = sum(p.numel() for p in whisper.parameters())
    assert record["parameters"] > learnt + 10_000


def test_it_recognises_and_is_exported(computed, tmp_path, signals):
    run = shutil.copytree(computed / "run", tmp_path / "moved")
    (a,) = CIFRecognizer.from_run(run).transcribe(signals[:1])
    export_run(run, tmp_path / "exported")
    assert (tmp_path / "exported/ears/config.json").exists()
    shutil.move(computed / "kept", tmp_path / "away")
    try:
        (b,) = CIFRecognizer.from_export(tmp_path / "exported").transcribe(signals[:1])
        assert a == b
        moved = json.loads((run / "ears.json").read_text())
        moved["source"] = "/nowhere"
        (run / "ears.json").write_text(json.dumps(moved))
        for open_it in (CIFRecognizer.from_run, load_run):
            with pytest.raises(FileNotFoundError, match=r"its ears, .* Put them into"):
                open_it(run)
        shutil.copytree(tmp_path / "away" / moved["hash"], run / "ears")
        (c,) = CIFRecognizer.from_run(run).transcribe(signals[:1])
        assert a == c
    finally:
        shutil.move(tmp_path / "away", computed / "kept")


def as_by_speechbrain(source, signals, **options):
    """Texts of waveforms by SpeechBrain's own interface."""
    asr = EncoderDecoderASR.from_hparams(source=str(source), **options)
    return asr.transcribe_batch(*pad(signals))[0]


def test_speechbrain_transcribes_an_export_with_ears(
    computed, tmp_path, signals, monkeypatch
):
    """From a folder and the hub, through links in savedir, and without a list of files."""
    exported = tmp_path / "exported"
    export_run(computed / "run", exported)
    wanted = [t.text for t in CIFRecognizer.from_export(exported).transcribe(signals)]
    assert len({*wanted}) > 1  # or nothing has been shown
    monkeypatch.chdir(tmp_path)
    for source in exported, "exported", FetchSource(FetchFrom.LOCAL, str(exported)):
        asr = EncoderDecoderASR.from_hparams(source=source)
        assert asr.transcribe_batch(*pad(signals))[0] == wanted
    saved = tmp_path / "saved" / "here"
    assert as_by_speechbrain(exported, signals, savedir=str(saved)) == wanted
    assert (saved / "ears/model.safetensors").is_symlink()
    calls = []

    def download(repo_id, filename, **_):
        calls.append(filename)
        return str(exported / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert as_by_speechbrain("them/model", signals) == wanted
    saved = str(tmp_path / "of_the_hub")
    assert as_by_speechbrain("them/model", signals, savedir=saved) == wanted
    assert {"ears.json", "ears/config.json", "ears/model.safetensors"} < {*calls}
    note = json.loads((exported / "ears.json").read_text())
    del note["files"]  # as exports were before
    (exported / "ears.json").write_text(json.dumps(note))
    assert as_by_speechbrain("them/model", signals) == wanted
    note["hash"] = "00"
    (exported / "ears.json").write_text(json.dumps(note))
    with pytest.raises(FileNotFoundError, match="ears has others, with weights"):
        as_by_speechbrain(exported, signals)


def test_evaluating_and_other_ears(corpus, ears, computed, tmp_path):
    run_python(["evaluate.py", computed / "run", "--split", "valid"])
    other = make_folder("wav2vec2", tmp_path / "other")
    done = train(arguments(corpus, computed, other), check=False)
    assert done.returncode and "is a run with the ears" in done.stderr


def test_trained_layers_resume_as_if_uninterrupted(corpus, ears, signals, tmp_path):
    """Two epochs at once equal one and one; before their update they do not move."""
    changes = {"ears_trained": 1, "ears_trained_from": 6, "ears_lr": 1e-3}
    whole, split = tmp_path / "whole", tmp_path / "split"
    train(arguments(corpus, whole, ears, **changes))
    stopped = arguments(corpus, split, ears, **changes)
    stop_after(4, stopped)
    name = "features.top.0.fc1.weight"
    first = last_checkpoint(split / "run")[name]
    train(stopped)
    ours, theirs = last_checkpoint(whole / "run"), last_checkpoint(split / "run")
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert not torch.equal(ours[name], first)
    kept = load_run(whole / "run")[1]["features"]
    assert torch.equal(kept.state_dict()["top.0.fc1.weight"], first), "moved too early"
    # What was trained is in the export, and heard.
    export_run(whole / "run", tmp_path / "exported")
    a = CIFRecognizer.from_run(whole / "run").transcribe(signals)
    assert CIFRecognizer.from_export(tmp_path / "exported").transcribe(signals) == a
    texts = as_by_speechbrain(tmp_path / "exported", signals)
    assert texts == [t.text for t in a]


def test_frozen_ears_begin_a_run_that_trains_them(corpus, ears, computed, tmp_path):
    begun = {"init_from": computed / "run", "number_of_epochs": 1}
    trains = arguments(corpus, tmp_path / "a", ears, ears_trained=1, **begun)
    assert "learn anew" not in train(trains).stderr
    begun["init_from"] = tmp_path / "a/run"
    done = train(arguments(corpus, tmp_path / "b", ears, **begun), check=False)
    assert done.returncode and "layers of its ears were trained" in done.stderr
    other = make_folder("wav2vec2", tmp_path / "other")
    begun["init_from"] = computed / "run"
    done = train(arguments(corpus, tmp_path / "c", other, **begun), check=False)
    assert done.returncode and "Give the same --ears" in done.stderr
