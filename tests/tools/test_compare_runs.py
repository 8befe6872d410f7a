"""The paired bootstrap between two rows."""

import argparse
import json

import numpy as np
import pytest
from conftest import ROOT, load_module

from cif_lobes.decoding import significance
from cif_lobes.decoding.scoring import ErrorRate

tool = load_module(ROOT / "tools/compare_runs.py")
REFERENCES = ["abcd", "abcde", "a", ""]


def write(folder, hypotheses, references=REFERENCES):
    """A run folder whose test set was scored."""
    folder.mkdir()
    scores = ErrorRate("char")
    ids = [f"utt-{i}" for i in range(len(references))]
    scores.append(ids, hypotheses, references)
    scores.write(folder / "errors_test.txt")
    return folder


def test_it_reads_what_scoring_writes(tmp_path):
    run = write(tmp_path / "run", ["abxd", "abcde", "", "xy"])
    assert significance.read_errors(run, "test") == {
        "utt-0": (1, 4),
        "utt-1": (0, 5),
        "utt-2": (1, 1),
        "utt-3": (2, 0),
    }


def test_an_unknown_token_is_one_character():
    rate = ErrorRate("char")
    rate.append(["a"], ["我<unk> 好"], ["我龙好"])
    assert rate.summary()["error_rate"] == pytest.approx(100 / 3)
    assert rate.summary()["substitutions"] == 1


def test_errors_by_frequency(tmp_path, capsys):
    """a and b are frequent, x once, y never seen; an insertion has no unit."""
    train = tmp_path / "train.csv"
    rows = "".join(f"u{i},1.0,u.wav,s,ab\n" for i in range(400))
    train.write_text(f"ID,duration,wav,spk_id,wrd\n{rows}v,1.0,v.wav,s,x\n")
    frequency = load_module(ROOT / "tools/errors_by_frequency.py")
    runs = {"one": ["abx", "c"], "two": ["ab", "aby"]}
    for name, hypotheses in runs.items():
        run = write(tmp_path / name, hypotheses, ["abx", "by"])
        results = {"results": {"test": {"unit": "char"}}}
        (run / "run.json").write_text(json.dumps(results))
    one, two = (str(tmp_path / name) for name in runs)
    frequency.main(
        argparse.Namespace(
            speakers=None, runs=[one, f"{one},{two}"], train=train, split="test"
        )
    )
    rows = [line.split(" | ")[1:] for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [
        ["1", "100.0 %", "50.0 % |"],
        ["1", "0.0 %", "50.0 % |"],
        ["3", "33.3 %", "16.7 % |"],
    ]


def test_seeds_are_averaged_by_utterance(tmp_path):
    runs = [
        significance.read_errors(write(tmp_path / name, hypotheses), "test")
        for name, hypotheses in {
            "a": ["abxd", "abcde", "a", ""],
            "b": ["abxx", "abcde", "", ""],
        }.items()
    ]
    edits, lengths = significance.mean_errors(runs, [f"utt-{i}" for i in range(4)])
    assert edits.tolist() == [1.5, 0, 0.5, 0] and lengths.tolist() == [4, 5, 1, 0]


def test_rates_and_interval_by_hand():
    """One error fewer in every utterance of ten: no resample can say otherwise."""
    lengths = np.full(50, 10)
    result = significance.compare(
        (np.full(50, 2.0), lengths), (np.full(50, 3.0), lengths), 500
    )
    assert result["ours"] == 20 and result["baseline"] == 30
    assert result["difference"] == result["low"] == result["high"] == -10
    assert result["relative"] == pytest.approx(-1 / 3) and result["better"] == 1


def test_the_interval_is_that_of_a_mean():
    """Utterances of equal length: the normal approximation of the mean difference."""
    generator = np.random.default_rng(1)
    lengths = np.full(400, 10)
    ours, baseline = generator.poisson(2, 400), generator.poisson(2.2, 400)
    result = significance.compare((ours, lengths), (baseline, lengths), 4000)
    difference = 10.0 * (ours - baseline)
    error = difference.std() / 20
    assert result["difference"] == pytest.approx(difference.mean())
    assert result["low"] == pytest.approx(difference.mean() - 1.96 * error, abs=0.3)
    assert result["high"] == pytest.approx(difference.mean() + 1.96 * error, abs=0.3)
    again = significance.compare((ours, lengths), (baseline, lengths), 4000)
    assert again == result


def test_runs_scored_on_other_utterances_are_refused(tmp_path):
    a = write(tmp_path / "a", ["abcd", "abcde", "a", ""])
    b = write(tmp_path / "b", ["abcd", "abcde", "a"], REFERENCES[:3])
    arguments = argparse.Namespace(speakers=None, split="test", ours=[a], baseline=[b])
    with pytest.raises(ValueError, match="other utterances"):
        tool.main(arguments)
    arguments.split = "dev"
    with pytest.raises((ValueError, FileNotFoundError), match="evaluate.py"):
        tool.main(arguments)


def test_references_of_other_length_are_refused(tmp_path):
    a = write(tmp_path / "a", ["abcd", "abcde", "a", ""])
    b = write(tmp_path / "b", ["abcd", "abcde", "a", ""], ["abcd", "abcdef", "a", ""])
    with pytest.raises(ValueError, match="utt-1 has 6 reference units .* 5 in .*words"):
        significance.compare_runs([a], [b], "test")


def test_speakers_are_drawn_with_all_they_say(tmp_path):
    """One of four speakers has all the difference: utterances seem surer than they are."""
    references = ["abcd"] * 40
    ours = write(tmp_path / "ours", ["abcd"] * 10 + ["abcx"] * 30, references)
    baseline = write(tmp_path / "baseline", ["abxx"] * 10 + ["abcx"] * 30, references)
    speakers = {f"utt-{i}": f"s{i // 10}" for i in range(40)}
    runs = [ours], [baseline], "test"
    by_utterance = significance.compare_runs(*runs)
    by_speaker = significance.compare_runs(*runs, speakers=speakers)
    assert by_speaker["difference"] == by_utterance["difference"] == -12.5
    assert by_utterance["high"] < 0 == by_speaker["high"]
    assert (by_speaker["speakers"], by_speaker["utterances"]) == (4, 40)
    # A speaker for each utterance: the same thing.
    each = {uid: uid for uid in speakers}
    same = significance.compare_runs(*runs, speakers=each)
    assert same["low"] == pytest.approx(by_utterance["low"], abs=1)
    with pytest.raises(
        ValueError, match="1 of 40 utterances have no speaker, first utt-7"
    ):
        significance.compare_runs(*runs, speakers={**speakers, "utt-7": ""})
    with pytest.raises(ValueError, match="all utterances are of s0: nobody else"):
        significance.compare_runs(*runs, speakers=dict.fromkeys(speakers, "s0"))


def test_a_baseline_without_an_error(tmp_path):
    baseline = write(tmp_path / "baseline", ["abcd", "abcde", "a", ""])
    ours = write(tmp_path / "ours", ["abxd", "abcde", "a", ""])
    result = significance.compare_runs([ours], [baseline], "test")
    assert result["difference"] == 10 and np.isnan(result["relative"])
