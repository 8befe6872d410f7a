"""ColDec's training: what it changes, what it leaves alone, and what it is good for."""

import hashlib
import itertools
import json
import os
import pathlib
import shutil

import pytest
import speechbrain as sb
import torch
from conftest import ROOT, epochs, last_checkpoint
from programs import run_python

from cif_lobes.cache import cif_vectors
from cif_lobes.cache.reader import TeacherCache
from cif_lobes.data.batches import read_utterance
from cif_lobes.data.manifest import read_manifest
from cif_lobes.teachers.cif_recognizer import FrozenRecognizer
from cif_lobes.training.augment import SpecAugment
from cif_lobes.training.coldec import ColDecBrain, VectorSet

TINY = {
    "vocab_size": 8,
    "vector_size": 32,
    "d_model": 32,
    "phrase_layers": 1,
    "decoder_layers": 1,
    "nhead": 2,
    "d_ffn": 64,
    "batch_tokens": 60,
    "device_batch_tokens": 60,
    "device_batch_seconds": 10,
    "number_of_epochs": 2,
    "num_lists": 2,
    "attention_weight": 1.0,
    "over_tokens": True,
    "query_context": 4,
    "masked_copies": 2,
    "respelled": 0.2,
    "freq_mask_width": 10,
    "time_masks": 0,
    "lr": 3e-3,
    "warmup": 0.1,
    "device": "cpu",
}


def train_coldec(run, corpus, folder, check=True, **changes):
    """Run the recipe's train_coldec.py, tiny, on a run of the tone corpus."""
    settings = {
        "recognizer": run,
        "tokenizer_folder": run,
        "train_csv": corpus[0],
        "valid_csv": corpus[1],
        "output_folder": folder / "coldec",
        "cache": folder / "vectors.h5",
        **TINY,
        **changes,
    }
    command = [ROOT / "recipes/AISHELL-1/train_coldec.py"]
    command += [part for k, v in settings.items() for part in (f"--{k}", str(v))]
    return run_python(command, check)


def evaluate(run, *options, check=True):
    return run_python(["evaluate.py", run, *map(str, options)], check)


def digests(folder):
    """Of every file of a run's checkpoints, its settings and vocabulary."""
    files = [*folder.glob("save/CKPT*/*"), folder / "hyperparams.yaml"]
    files += folder.glob("*.txt")
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """A copy of the recogniser's run, so that figures are written into it."""
    folder = tmp_path_factory.mktemp("recogniser") / "run"
    shutil.copytree(trained, folder)
    return folder


@pytest.fixture(scope="module")
def coldec(run, corpus, tmp_path_factory):
    """A folder with a trained ColDec, a cache, and what the recogniser was before."""
    folder = tmp_path_factory.mktemp("coldec")
    before = digests(run)
    train_coldec(run, corpus, folder, number_of_epochs=12)
    assert digests(run) == before
    return folder


def test_the_recogniser_is_in_no_checkpoint(coldec):
    names = {name.split(".")[0] for name in last_checkpoint(coldec / "coldec")}
    assert names == {"coldec"}
    lines = (coldec / "coldec" / "recognizer.txt").read_text().split()
    assert len(lines[0]) == 16


def test_it_learns(coldec):
    rows = epochs(coldec / "coldec")
    assert rows[-1]["valid"]["loss"] < rows[0]["valid"]["loss"]
    assert rows[-1]["valid"]["accuracy"] > 0.8
    terms = [row["valid"]["losses"]["attention"]["value"] for row in rows]
    assert terms[-1] < 0.8 * terms[0]
    # The right one of some eight phrases and no-bias.
    assert rows[-1]["valid"]["found"] > 0.3


def test_cached_vectors_are_the_recogniser_s(coldec, run, corpus):
    """Of an utterance alone, to the cache's rounding."""
    recognizer = FrozenRecognizer(run)
    assert not any(p.requires_grad for p in recognizer.parameters())
    assert not recognizer.train().training
    cache = TeacherCache(coldec / "vectors.h5")
    assert cache.attributes["recognizer_weights"] == recognizer.weights_hash
    for u in read_manifest(corpus[1])[:4]:
        (expected,) = cif_vectors._encode(recognizer, [u], [read_utterance(u, 16000)])
        plain, *masked = cache[u.id].unbind(1)
        torch.testing.assert_close(plain, expected.half(), rtol=2e-3, atol=2e-3)
        assert len(masked) == 2
        copies = [plain, *masked]
        for a, b in itertools.combinations(copies, 2):
            assert not torch.allclose(a, b, atol=0.02)


def test_a_batch_of_cached_vectors_needs_no_audio(coldec, run, corpus):
    tokenizer = FrozenRecognizer(run).tokenizer
    cache = TeacherCache(coldec / "vectors.h5")
    data = VectorSet(corpus[1], tokenizer, cache)
    for item, length in zip((data[i] for i in range(3)), data.lengths, strict=False):
        assert len(item["vectors"]) == len(item["tokens"]) == length
        assert item["tokens"][-1] == tokenizer.eos_index
        assert torch.equal(item["vectors"], cache[item["id"]].float())


def test_masked_copies_are_drawn_in_training_alone():
    vectors = torch.arange(3.0)[:, None].expand(400, 2, 3, 8)
    brain = ColDecBrain.__new__(ColDecBrain)
    chosen = brain._choose(vectors, sb.Stage.TRAIN)
    assert chosen.shape == (400, 2, 8) and (chosen == chosen[:, :1, :1]).all()
    assert all(80 < (chosen[:, 0, 0] == n).sum() < 190 for n in range(3))
    assert (brain._choose(vectors, sb.Stage.VALID) == 0).all()


class Stops(SpecAugment):
    """Masks that are interrupted once."""

    calls = 0

    def forward(self, x, x_lengths):
        Stops.calls += 1
        if Stops.calls == 2:
            raise KeyboardInterrupt
        return super().forward(x, x_lengths)


def test_masked_copies_are_the_same_after_an_interruption(run, corpus, tmp_path):
    """And of other masks they are another cache."""
    how = (FrozenRecognizer(run), [corpus[1]], "float32", 4, False, 1)
    paths = [str(tmp_path / name) for name in ("a.h5", "b.h5")]
    through = cif_vectors.build(paths[0], *how, SpecAugment(1, 10, 1, 10))
    with pytest.raises(SystemExit, match="are kept in"):
        cif_vectors.build(paths[1], *how, Stops(1, 10, 1, 10))
    resumed = cif_vectors.build(paths[1], *how, Stops(1, 10, 1, 10))
    assert Stops.calls > 3
    assert all(torch.equal(resumed[utt_id], through[utt_id]) for utt_id in through)
    with pytest.raises(ValueError, match="is there and is another: masks is"):
        cif_vectors.build(paths[0], *how, SpecAugment(1, 12, 1, 10))


def test_resume_equals_running_through(run, corpus, tmp_path):
    """A run whose last two epochs are taken away does them again."""
    settings = {"number_of_epochs": 3, "num_checkpoints": 3}
    train_coldec(run, corpus, tmp_path, **settings)
    folder, through = tmp_path / "coldec", tmp_path / "through"
    shutil.copytree(folder, through)
    for path in sorted(folder.glob("save/CKPT*"), key=os.path.getmtime)[1:]:
        shutil.rmtree(path)
    train_coldec(run, corpus, tmp_path, **settings)
    assert epochs(folder)[-3:] == epochs(through)
    theirs = last_checkpoint(through)
    for name, value in last_checkpoint(folder).items():
        assert torch.equal(value, theirs[name]), name


def test_a_changed_recogniser_is_refused(coldec, run, corpus, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    for path in other.glob("save/CKPT*/model.ckpt"):
        weights = torch.load(path)
        weights["cif.linear.bias"] += 1
        torch.save(weights, path)
        (path.parent / "sizes.json").unlink()
    for changes, message in (
        ({"cache": coldec / "vectors.h5"}, "is there and is another"),
        ({"output_folder": coldec / "coldec"}, "was begun on another recogniser"),
    ):
        done = train_coldec(other, corpus, tmp_path, check=False, **changes)
        assert done.returncode and message in done.stderr
        assert "Traceback" not in done.stderr
    (tmp_path / "list.txt").write_text("ab\n")
    options = ("--coldec", coldec / "coldec", "--hotwords", tmp_path / "list.txt")
    done = evaluate(other, *options, check=False)
    assert done.returncode and "CIF vectors of another recogniser" in done.stderr


def test_other_vectors_of_the_same_recogniser_are_refused(
    coldec, run, corpus, tmp_path
):
    """A run goes on with the masks, and as many copies, as it was begun with."""
    folder = tmp_path / "coldec"
    shutil.copytree(coldec / "coldec", folder)
    changes = {"masked_copies": 3, "number_of_epochs": 13}
    done = train_coldec(run, corpus, tmp_path, check=False, **changes)
    assert done.returncode and "Traceback" not in done.stderr
    assert "masked_copies 2 there, 3 here" in done.stderr
    assert f"was begun with states of {run}" in done.stderr
    assert len(epochs(folder)) == 12


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vector_size": 16}, "--vector_size 32"),
        ({"max_letters": 2}, "max_letters is 2: it is 3 at least"),
        ({"recognizer": "nowhere"}, "neither a run folder nor a checkpoint"),
        ({"start_from_decoder": True, "d_ffn": 32}, "--start_from_decoder False"),
        ({"start_from_ctc": True, "d_model": 16}, "--start_from_ctc False"),
    ],
)
def test_what_does_not_fit_is_said(run, corpus, tmp_path, changes, message):
    done = train_coldec(run, corpus, tmp_path, check=False, **changes)
    assert done.returncode and message in done.stderr
    assert not (tmp_path / "coldec").exists()


def test_it_is_mixed_in_and_helps_in_noise(coldec, run, corpus, tmp_path):
    """Each utterance's own text on the list. That it is the phrases that help is not told
    by this: the context decoder is a second opinion in any case."""
    texts = sorted({u.wrd for u in read_manifest(corpus[1])})
    (tmp_path / "list.txt").write_text("".join(f"{text}\n" for text in texts))
    noisy = make_noisy(corpus[1], tmp_path)
    plain = ["--csv", noisy, "--beam", 4]
    biased = [
        *plain,
        "--hotwords",
        tmp_path / "list.txt",
        "--coldec",
        coldec / "coldec",
    ]
    evaluate(run, *plain)
    evaluate(run, *biased, "--coldec_weight", 0.6)
    evaluate(run, *biased, "--purify", 3, "--hotword_weight", 0.5)
    results = json.loads((run / "run.json").read_text())["results"]
    names = [name for name in results if name.startswith("csv")]
    assert len(names) == 3
    rates = {name: results[name]["error_rate"] for name in names}
    (without,) = [rate for name, rate in rates.items() if "coldec" not in name]
    assert without > 5, "too easy to tell"
    assert all(rate < without for name, rate in rates.items() if "coldec" in name), (
        rates
    )


def make_noisy(manifest, folder):
    """The same recordings in white noise; the new csv."""
    import csv

    import soundfile

    rows = []
    generator = torch.Generator().manual_seed(3)
    for u in read_manifest(manifest):
        audio, rate = soundfile.read(u.wav, dtype="float32")
        audio = audio + 0.25 * torch.randn(len(audio), generator=generator).numpy()
        path = folder / pathlib.Path(u.wav).name
        soundfile.write(path, audio, rate)
        rows.append([u.id, u.duration, path, u.spk_id, u.wrd])
    with open(folder / "noisy.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ID", "duration", "wav", "spk_id", "wrd"])
        writer.writerows(rows)
    return folder / "noisy.csv"
