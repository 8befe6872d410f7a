"""docs/extending.md does what it says: its files are written, its commands run."""

import json
import re
import shlex
import shutil
import subprocess

import pytest
import soundfile
from conftest import ROOT, TINY, docs_files, rows_of, speak
from hyperpyyaml import load_hyperpyyaml
from programs import run_python

from cif_lobes.runs.cif import make_brain

TEXT = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
SECTIONS = dict(part.split("\n", 1) for part in TEXT.split("\n## ")[1:])
ENCODER, CORPUS = SECTIONS["Another encoder"], SECTIONS["Another corpus"]
LOSS = SECTIONS["A loss without a teacher"]


def commands_of(text):
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def run(words, place):
    """A python command, in the copy."""
    assert words[0] == "python"
    return run_python(words[1:], cwd=place, env={"PYTHONPATH": str(place)}).stdout


def train(command, place, **settings):
    settings = {**TINY, "device": "cpu", **settings}
    words = shlex.split(command.replace(" /data", f" {place}/data"))
    words += [part for k, v in settings.items() for part in (f"--{k}", str(v))]
    run(words, place)


@pytest.fixture
def place(tmp_path):
    """A copy of the repository that may be changed."""
    for name in ("cif_lobes", "recipes", "tools", "evaluate.py"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.slow
def test_another_encoder(place, corpus):
    """Trained, scored, exported twice, with times of the words it has learnt."""
    files = docs_files(ENCODER)
    (place / "cif_lobes/nets/branchformer.py").write_text(
        files["cif_lobes/nets/branchformer.py"]
    )
    safe = place / "cif_lobes/settings/safe_yaml.py"
    before, mark, behind = safe.read_text().partition('CLASSES = frozenset(\n    """\n')
    safe.write_text(before + mark + files["cif_lobes/settings/safe_yaml.py"] + behind)
    hparams = place / "recipes/AISHELL-1/hparams"
    yaml, encoder = (hparams / "cif_mini.yaml").read_text(), "cif_branchformer.yaml"
    yaml = yaml.replace("/cif_mini/", "/cif_branchformer/")
    new = files[f"recipes/AISHELL-1/hparams/{encoder}"]
    yaml, count = re.subn(r"\nencoder: .*?\n\n", f"\n{new}\n", yaml, flags=re.DOTALL)
    assert count == 1
    (hparams / encoder).write_text(yaml)

    first, *others = commands_of(ENCODER)
    train_csv, valid_csv = corpus
    csvs = {
        "train_csv": train_csv,
        "valid_csv": valid_csv,
        "test_csv": f"[{valid_csv}]",
    }
    augmentation = {"silence_probability": 0, "freq_masks": 0, "time_masks": 0}
    settings = {"skip_prep": True, "number_of_epochs": 26, **csvs, **augmentation}
    train(first, place, **settings)
    (place / "my").mkdir()
    soundfile.write(place / "my/speech.wav", speak("abcd", seed=5), 16000)
    others = [shlex.split(c.replace("--split test", "--split set2")) for c in others]
    out = "".join(run(words, place) for words in others)

    run_folder = place / "results/AISHELL-1/cif_branchformer/1986"
    record = json.loads((run_folder / "run.json").read_text())
    assert "Branchformer" in (run_folder / "hyperparams.yaml").read_text()
    assert record["results"]["set2"]["error_rate"] < 50, out
    ctm = re.findall(r"^speech 1 (\S+) (\S+) (\w)", out, re.MULTILINE)
    ends = [(word, float(start) + float(seconds)) for start, seconds, word in ctm]
    half = len(ends) // 2
    for (word, end), (other, other_end) in zip(ends[:half], ends[half:], strict=True):
        assert word == other and end == pytest.approx(other_end, abs=0.01), out
    # Tones of 240 ms each, behind silence of 100 ms: a token fires about where it sounds.
    assert half >= 2
    for letter, end in ends:
        assert abs(end - 0.22 - 0.24 * "abcd".index(letter)) < 0.36, out
    assert (place / "fires.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_loss_without_a_teacher(place, corpus):
    """Counted in training and validation; a yaml without its weight trains as before."""
    files = docs_files(LOSS)
    losses = place / "cif_lobes/losses/recognition.py"
    losses.write_text(losses.read_text() + files["cif_lobes/losses/recognition.py"])
    brain = place / "cif_lobes/training/cif.py"
    text, mark = brain.read_text(), "            )\n        return losses\n"
    method = files["cif_lobes/training/cif.py"]
    assert text.count(mark) == 1 and "quantity_loss\n" in text
    text = text.replace(mark, mark.replace("        return", f"{method}        return"))
    brain.write_text(text.replace("quantity_loss\n", "quantity_loss, undecided\n", 1))
    (setting,) = re.findall(r"```yaml\n(.*?)```", LOSS, re.DOTALL)
    yaml = place / "recipes/AISHELL-1/hparams/cif_mini.yaml"
    (place / "my.yaml").write_text(
        yaml.read_text().replace("\nctc_weight:", f"\n{setting}ctc_weight:")
    )
    csvs = {"train_csv": corpus[0], "valid_csv": corpus[1], "test_csv": "[]"}
    settings = {"skip_prep": True, "number_of_epochs": 1, **csvs}
    for name in ("my.yaml", yaml):
        command = f"python recipes/AISHELL-1/train.py {name}"
        train(command, place, output_folder=place / "run" / "own", **settings)
        (row,) = map(json.loads, (place / "run/own/epochs.jsonl").open())
        for stage in ("train", "valid"):
            found = row[stage]["losses"].get("undecided")
            assert (found is None) == (name == yaml)
            assert found is None or found["weight"] == 0.1 and found["value"] > 0
        shutil.rmtree(place / "run")


@pytest.mark.slow
def test_another_corpus(place):
    (path, script), *_ = docs_files(CORPUS).items()
    (place / path).parent.mkdir()
    (place / path).write_text(script)
    for split, count in (("train", 12), ("dev", 3), ("test", 2)):
        (place / "data/mine" / split).mkdir(parents=True)
        for i in range(count):
            wav, text = place / f"data/mine/{split}/{split}{i}.wav", "abcd"[: 2 + i % 3]
            soundfile.write(wav, speak(text, seed=i), 16000)
            wav.with_suffix(".txt").write_text(f"{text}\n")
    *made, last = commands_of(CORPUS)
    for command in made:
        subprocess.run(["bash", "-c", command], cwd=place, check=True)
    train(last, place, number_of_epochs=1)
    folder = place / "results/MyCorpus"
    rows = rows_of(folder / "manifests_mini/train.csv")
    assert [row["wrd"] for row in rows[:3]] == ["ab", "abc", "abc"]
    record = json.loads((folder / "cif_mini/1986/run.json").read_text())
    assert record["results"]["test"]["utterances"] == 2, record


def test_an_encoder_without_a_clock_is_refused_before_it_trains(tmp_path):
    """Not after days, when words are to get their times."""
    yaml = (ROOT / "recipes/AISHELL-1/hparams/cif_mini.yaml").read_text()
    hparams = load_hyperpyyaml(
        yaml,
        {"output_folder": str(tmp_path), **{k: TINY[k] for k in ("d_model", "d_ffn")}},
    )
    del hparams["encoder"].hop
    with pytest.raises(
        ValueError, match="encoder, a ConformerEncoder, has no hop: it wo"
    ):
        make_brain(hparams, {"device": "cpu"})
