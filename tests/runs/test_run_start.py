"""A start that fails leaves nothing, or a run as it was."""

import json
import shutil

import pytest
from conftest import ROOT, tiny_arguments, train
from programs import run_python

from cif_lobes.data.tokens import CharTokenizer
from cif_lobes.devices.processes import check_device
from cif_lobes.runs.stages import fit_tokenizer

YAML = ROOT / "recipes/AISHELL-1/hparams/cif_mini.yaml"


@pytest.mark.parametrize("device", ["cuda:9", "cuda:99"])
def test_a_device_that_is_not_there(device):
    with pytest.raises(ValueError, match=f"{device}: this machine has cpu"):
        check_device(device)
    check_device("cpu")
    check_device(None)


def test_a_failed_start_leaves_nothing(tmp_path, corpus):
    folder = tmp_path / "new/results"
    arguments = tiny_arguments(corpus, tmp_path, output_folder=folder / "run")
    arguments[arguments.index("--valid_csv") + 1] = str(tmp_path / "none.csv")
    done = train(arguments, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"{tmp_path}/none.csv" in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_folder_that_was_there_stays(tmp_path, corpus):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mine.txt").write_text("mine")
    arguments = tiny_arguments(corpus, tmp_path, train_csv=tmp_path / "none.csv")
    done = train(arguments, check=False)
    assert done.returncode == 1
    assert (tmp_path / "run/mine.txt").read_text() == "mine"


def test_what_cannot_be_used_is_still_listed(tmp_path, corpus):
    """Nothing else is left, and the next start takes the folder for a new one."""
    lines = corpus[0].read_text().splitlines()
    broken = tmp_path / "broken.csv"
    broken.write_text(
        "\n".join([*lines, *(f"lost{i},1.0,no.wav,s,a" for i in range(9))])
    )
    arguments = tiny_arguments(corpus, tmp_path, train_csv=broken)
    for _ in range(2):
        done = train(arguments, check=False)
        assert done.returncode == 1 and "All are in" in done.stderr
        left = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
        assert left == [tmp_path / "run/save/rejected.csv"]
        assert left[0].read_text().count("\nlost") == 9


@pytest.mark.slow
def test_a_refused_start_and_one_with_nothing_left_to_train_change_nothing(
    trained, corpus, tmp_path
):
    """What a run says of itself is what it was trained with."""
    shutil.copytree(trained, tmp_path / "run")
    save = tmp_path / "run/save"
    kept = [tmp_path / "run/hyperparams.yaml", tmp_path / "run/run.json"]
    kept += [path for path in save.iterdir() if path.suffix in (".csv", ".txt")]
    before = [path.read_text() for path in kept]
    # Other texts: the manifests are written before the vocabulary is seen to be another.
    shutil.copytree(corpus[0].parent, tmp_path / "other")
    others = [tmp_path / "other" / path.name for path in corpus]
    for path in others:
        head, *rows = path.read_text().splitlines()
        assert head.endswith(",wrd")
        path.write_text("\n".join([head, *(row + "甲" for row in rows)]) + "\n")
    refused = tiny_arguments(others, tmp_path, lr=0.5, manifest_folder=tmp_path / "new")
    done = train(refused, check=False)
    assert done.returncode == 1 and "is not the vocabulary" in done.stderr
    assert [path.read_text() for path in kept] == before
    assert not (save / ".before").exists()
    # Refused before anything has been written.
    refused = tiny_arguments(corpus, tmp_path, test_csv=f"[{tmp_path}/none.csv]")
    assert "none.csv" in train(refused, check=False).stderr
    assert [path.read_text() for path in kept] == before
    assert not (save / ".before").exists()
    # As a start that was killed leaves it.
    (save / ".before").mkdir()
    for path in kept[2:]:
        path.rename(save / ".before" / path.name)
    done = train(tiny_arguments(corpus, tmp_path, lr=0.5))
    assert "nothing is trained" in done.stdout + done.stderr
    assert [path.read_text() for path in kept[:1] + kept[2:]] == before[:1] + before[2:]
    now, was = json.loads(kept[1].read_text()), json.loads(before[1])
    del now["results"], was["results"]
    assert now == was


def fit_units(folder, texts, run, **settings):
    """Make or take the vocabulary that is in a folder, for a run."""
    rows = [f"u{n},1.0,{__file__},s,{text}\n" for n, text in enumerate(texts)]
    manifest = folder / f"{''.join(texts)}.csv"
    manifest.write_text("".join(["ID,duration,wav,spk_id,wrd\n", *rows]))
    (folder / run).mkdir(exist_ok=True)
    tokenizer = CharTokenizer(folder / "chars_6.txt", 6, "zh")
    paths = {"tokenizer": tokenizer, "output_folder": folder / run}
    fit_tokenizer({**paths, **settings}, manifest)


def test_a_vocabulary_that_was_there_is_said_once(tmp_path, capsys):
    """Made before it was kept from which texts: nobody knows whether it is meant."""
    told = []
    for run in ("first", "second", "second"):
        fit_units(tmp_path, ["甲乙"], run)
        told.append("which is there already" in capsys.readouterr().out)
        (tmp_path / "chars_6.txt.texts").unlink(missing_ok=True)
    assert told == [False, True, False]


@pytest.mark.parametrize("settings", [{}, {"teacher_cache": "bert.h5"}])
def test_a_vocabulary_of_other_texts_is_told(tmp_path, capsys, caplog, settings):
    """With a teacher, too; rows of the same texts, in any order, are not."""
    texts, others = ["甲乙", "乙"], ["甲乙", "乙甲"]
    told = []
    for run, given in enumerate([texts, texts[::-1], others, texts]):
        fit_units(tmp_path, given, str(run), **settings)
        told.append("was made from other texts" in caplog.text)
        caplog.clear()
    assert told == [False, False, True, False]
    assert "already" not in capsys.readouterr().out


def test_nothing_appears_in_the_working_directory(tmp_path, corpus):
    """Whatever the default folders of the yaml are."""
    work, script = tmp_path / "work", ROOT / "recipes/AISHELL-1/train.py"
    work.mkdir()
    yaml = shutil.copy(YAML, tmp_path)
    command = [script, yaml, "--data_folder", "nowhere"]
    done = run_python(command, check=False, cwd=work)
    assert done.returncode == 1, done.stderr
    assert "nowhere" in done.stderr.splitlines()[-1]
    assert not list(work.iterdir())
