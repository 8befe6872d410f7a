"""--dry_run: an estimate near the truth, and nothing on disk but what was decoded."""

import json
import os

import pytest
from conftest import epochs, tiny_arguments, train

from cif_lobes.runs.dry_run import _spread, into_nowhere
from cif_lobes.storage.atomic_files import bring


def seen(folder):
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.slow
def test_it_says_what_a_training_takes_and_writes_nothing(corpus, tmp_path):
    """Seconds of an epoch within a factor of two: the runs share a busy machine."""
    arguments = tiny_arguments(corpus, tmp_path, number_of_epochs=2, batch_seconds=2)
    before = seen(tmp_path)
    done = train([*arguments, "--dry_run"])
    known = tmp_path / "manifests/decoded.txt"
    assert seen(tmp_path) == sorted([*before, str(known.parent), str(known)])
    assert "files of 0.0 h decoded" in done.stdout
    assert "dry run on cpu, from 10 of" in done.stdout
    assert "frames of the encoder" in done.stdout
    words = done.stdout.split("an epoch")[1].split()
    assert "decoded in" not in train(arguments).stdout
    rows = [
        json.loads(x) for x in (tmp_path / "run/epochs.jsonl").read_text().splitlines()
    ]
    took = [row["train"]["seconds"] + row["valid"]["seconds"] for row in rows]
    assert float(words[0]) == pytest.approx(min(took), rel=1.0, abs=2)
    after = seen(tmp_path)
    stamps = {path: os.stat(path).st_mtime_ns for path in after}
    # A run that is there is neither resumed nor touched.
    train([*arguments, "--dry_run"])
    assert {path: os.stat(path).st_mtime_ns for path in seen(tmp_path)} == stamps
    assert len(epochs(tmp_path / "run")) == 2


def test_mistakes_are_found(corpus, tmp_path):
    arguments = tiny_arguments(corpus, tmp_path)
    arguments[arguments.index("--valid_csv") + 1] = str(tmp_path / "none.csv")
    done = train([*arguments, "--dry_run"], check=False)
    assert done.returncode == 1 and "none.csv does not exist" in done.stderr
    assert not seen(tmp_path)


def test_what_was_decoded_is_kept(tmp_path):
    """Of the folder that is removed; a file that says the same is left as it is."""
    found, kept = tmp_path / "decoded.txt", tmp_path / "manifests/decoded.txt"
    bring(found, kept)
    assert not kept.parent.exists()
    found.write_text("a.wav")
    bring(found, kept)
    assert kept.read_text() == "a.wav"
    stamp = os.stat(kept).st_mtime_ns
    bring(found, kept)
    assert os.stat(kept).st_mtime_ns == stamp
    bring(found, found / "no folder" / "decoded.txt")  # nothing can be written there


def test_folders_are_others(tmp_path, monkeypatch):
    (tmp_path / "train.csv").write_text("x")
    settings = {"manifest_folder": str(tmp_path)}
    text = into_nowhere(settings, "output_folder: here\nlr: 1")
    assert "here" not in text and text.startswith("lr: 1\noutput_folder: ")
    given = into_nowhere(settings, {"lr": 1})
    assert (given["lr"], len(given)) == (1, 3)
    with open(f"{given['manifest_folder']}/train.csv") as file:
        assert file.read() == "x"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="run it without torchrun"):
        into_nowhere(settings, "")


def test_updates_are_chosen_all_over_the_epoch():
    assert _spread(3, 10) == [0, 1, 2]
    chosen = _spread(1000, 12)
    assert len({*chosen}) == 12 and chosen[0] < 84 and chosen[-1] > 916
