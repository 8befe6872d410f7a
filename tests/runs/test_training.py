"""Training end to end on tones: it learns, resumes exactly, and agrees with torchrun."""

import json
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, epochs, last_checkpoint, tiny_arguments, train, write_corpus
from programs import cold, interrupt, run_python

from cif_lobes.data.batches import make_dataset
from cif_lobes.data.update_batches import UpdateBatches
from cif_lobes.runs.cif import load_run
from cif_lobes.runs.evaluation import score
from cif_lobes.runs.stages import manifest_paths
from cif_lobes.training import recognizer as recognizer_brain

EXACT = {"dropout": 0.0, "cif_dropout": 0.0, "decoder_dropout": 0.0}


def evaluate(run, *arguments):
    """Run evaluate.py; return what it printed."""
    return run_python(["evaluate.py", run, *arguments]).stdout


def stop_in_epoch(number, arguments):
    """Train until this epoch begins, then press Ctrl-C."""
    words = [ROOT / "recipes/AISHELL-1/train.py", *arguments]
    interrupt(words, f"Going into epoch {number}")


def test_it_learns_and_says_what_it_did(trained):
    """24 epochs over 48 utterances of tones are enough for most letters."""
    record = json.loads((trained / "run.json").read_text())
    result = record["results"]["set2"]
    assert result["error_rate"] < 30
    edits = result["substitutions"] + result["deletions"] + result["insertions"]
    assert result["error_rate"] == pytest.approx(
        100 * edits / result["reference_length"]
    )
    for key in ("yaml", "commands", "commit", "seed", "hardware", "parameters"):
        assert record[key], key
    last = epochs(trained)[-1]
    assert last["epoch"] == 24 and last["valid"]["accuracy"] > 0.7
    assert last["valid"]["quantity_error"] < 0.5
    terms = last["train"]["losses"]
    assert set(terms) == {"ce", "quantity", "ctc"}
    assert sum(t["share"] for t in terms.values()) == pytest.approx(1)
    total = sum(t["weight"] * t["value"] for t in terms.values())
    assert last["train"]["loss"] == pytest.approx(total)
    alignments = (trained / "errors_set2.txt").read_text()
    assert "utt2-000" in alignments and "utt2-011" in alignments


def test_scoring_leaves_checkpoints_alone(corpus, trained):
    """--test_only gives the same figures, deletes nothing, and did not train."""
    before = sorted(trained.rglob("CKPT*/*"))
    record = json.loads((trained / "run.json").read_text())
    figures = record["results"]["set2"]
    arguments = tiny_arguments(corpus, trained.parent, number_of_epochs=24)
    train([*arguments, "--test_only"])
    assert sorted(trained.rglob("CKPT*/*")) == before
    after = json.loads((trained / "run.json").read_text())
    again = after.pop("results")["set2"]
    assert after == {k: v for k, v in record.items() if k != "results"}
    assert {k: v for k, v in again.items() if k != "seconds"} == {
        k: v for k, v in figures.items() if k != "seconds"
    }


def test_evaluate_does_not_depend_on_the_batch(trained):
    evaluate(trained, "--split", "set2", "--eval_batch_seconds", "0.1")
    alone = (trained / "errors_set2.txt").read_text()
    evaluate(trained, "--split", "set2", "--eval_batch_seconds", "60")
    assert (trained / "errors_set2.txt").read_text() == alone


def test_evaluate_with_a_beam_and_one_checkpoint(trained):
    printed = evaluate(
        trained, "--split", "set2", "--beam", "4", "--num_checkpoints", "1"
    )
    assert "set2: CER" in printed
    results = json.loads((trained / "run.json").read_text())["results"]
    figures = results["set2_num_checkpoints=1_beam=4"]
    assert figures["beam"] == 4 and figures["error_rate"] < 30


def test_the_tests_have_the_beam_of_the_yaml(corpus, trained, tmp_path):
    """train.py and evaluate.py alike; runs made before there was a setting are greedy."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    settings = {"number_of_epochs": 24, "beam_size": 3}
    train([*tiny_arguments(corpus, tmp_path, **settings), "--test_only"])

    def figures(name="set2"):
        record = json.loads((run / "run.json").read_text())["results"][name]
        record.pop("seconds")
        return record

    by_train = figures()
    assert by_train["beam"] == 3 and by_train["searcher"] == "BeamSearcher"
    evaluate(run, "--split", "set2")
    assert figures() == by_train
    evaluate(run, "--split", "set2", "--beam", "1")
    greedy = figures("set2_beam=1")
    assert greedy["beam"] == 1
    yaml = (run / "hyperparams.yaml").read_text()
    yaml = re.sub(r"test_searcher:.*\n( .*\n)*", "", yaml)
    (run / "hyperparams.yaml").write_text(re.sub(r"beam_size:.*\n", "", yaml))
    evaluate(run, "--split", "set2")
    assert figures() == {**greedy, "searcher": "GreedySearcher"}


def test_checkpoints_are_averaged_once_for_all_sets(trained, tmp_path, monkeypatch):
    run, calls = tmp_path / "run", []
    shutil.copytree(trained, run)
    average = recognizer_brain.average_parameters
    monkeypatch.setattr(
        recognizer_brain,
        "average_parameters",
        lambda *given: calls.append(given) or average(*given),
    )
    brain, hparams = load_run(run)
    data = make_dataset(manifest_paths(hparams)["set2"], hparams["tokenizer"], 16000)
    figures = score(brain, hparams, {"a": data, "b": data})
    assert len(calls) == 1
    assert figures["a"]["error_rate"] == figures["b"]["error_rate"] < 30
    # Whoever goes on training scores another network.
    monkeypatch.setattr(signal, "signal", lambda *handler: None)
    brain.train_sampler = UpdateBatches([[0]], [1.0], 1.0)
    brain.on_fit_start()
    brain.on_evaluate_start()
    assert len(calls) == 2


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_are_for_terminals(trained, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    brain, _ = load_run(trained)
    assert brain.noprogressbar != terminal
    brain, _ = load_run(trained, run_opts={"device": "cpu", "noprogressbar": True})
    assert brain.noprogressbar


def test_evaluate_names_the_sets_there_are(trained):
    done = run_python(["evaluate.py", trained, "--split", "tset2"], check=False)
    assert done.returncode and "it has valid, set2" in done.stderr


def test_a_weight_of_zero_builds_no_head(corpus, tmp_path):
    arguments = tiny_arguments(corpus, tmp_path, ctc_weight=0, number_of_epochs=1)
    done = train(arguments)
    assert "\r" not in done.stderr, "bars are for terminals"
    names = last_checkpoint(tmp_path / "run")
    assert not [name for name in names if name.startswith("ctc")]
    assert set(epochs(tmp_path / "run")[0]["train"]["losses"]) == {"ce", "quantity"}


@pytest.mark.slow
def test_resuming_equals_running_through(corpus, tmp_path):
    """Interrupted within an epoch, with dropout, masks and speed perturbation."""
    settings = {"number_of_epochs": 3, "speeds": "[90, 100, 110]"}
    through = tiny_arguments(corpus, tmp_path / "a", **settings)
    # Of processes that are forked, all would have one order of sets of strings.
    cold([str(ROOT / "recipes/AISHELL-1/train.py"), *through])
    resumed = tiny_arguments(corpus, tmp_path / "b", **settings, ckpt_interval_steps=1)
    resumed += ["--ckpt_interval_minutes", "0"]
    stop_in_epoch(2, resumed)
    assert len(epochs(tmp_path / "b/run")) < 3
    train(resumed)
    assert epochs(tmp_path / "a/run") == epochs(tmp_path / "b/run")
    # The average of checkpoints, too: none of them is from within an epoch.
    figures = [
        json.loads((tmp_path / f"{run}/run/run.json").read_text())["results"]["set2"]
        for run in "ab"
    ]
    assert len({(f["loss"], f["error_rate"]) for f in figures}) == 1
    kept = [len(list((tmp_path / f"{run}/run/save").glob("CKPT*"))) for run in "ab"]
    assert kept[0] == kept[1]
    expected, got = (last_checkpoint(tmp_path / f"{run}/run") for run in "ab")
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name


@pytest.mark.slow
def test_torchrun_stops_as_one_and_goes_on(corpus, tmp_path):
    """All processes save after the same step, whichever hears the signal first."""
    settings = {"number_of_epochs": 40, "batch_seconds": 4, "ckpt_interval_minutes": 15}
    words = tiny_arguments(corpus, tmp_path, **settings)
    words += ["--distributed_backend", "gloo"]
    script = str(ROOT / "recipes/AISHELL-1/train.py")
    launcher = "-m torch.distributed.run --standalone --nproc_per_node=2".split()
    process = subprocess.Popen(
        [sys.executable, *launcher, script, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    output = ""
    for line in process.stdout:
        output += line
        if "epoch 2/40" in line:
            process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) != 0
    assert "stopped; saved in" in output, output[-3000:]
    done = epochs(tmp_path / "run")
    assert 2 <= len(done) < 40
    words[words.index("--number_of_epochs") + 1] = str(len(done) + 1)
    train(words, processes=2)
    assert epochs(tmp_path / "run")[: len(done)] == done


# No random numbers: they depend on the number of processes.
SAME = {**EXACT, "freq_masks": 0, "time_masks": 0, "silence_probability": 0}
SAME["number_of_epochs"] = 3


def assert_same_losses(expected, got):
    """To rounding, with as many updates at the same learning rates."""
    for a, b in zip(expected, got, strict=True):
        assert a["updates"] == b["updates"]
        assert a["learning_rate"] == b["learning_rate"]
        for stage in ("train", "valid"):
            assert a[stage]["loss"] == pytest.approx(b[stage]["loss"], rel=1e-4)


@pytest.fixture(scope="module")
def one_process(corpus, tmp_path_factory):
    """Epochs of a run in one process, whose device takes an update at a time."""
    folder = tmp_path_factory.mktemp("one")
    train(tiny_arguments(corpus, folder, **SAME))
    return epochs(folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    "processes, device_seconds", [(1, 3), (2, 10), (2, 3), (3, 10)]
)
def test_the_same_on_any_devices(
    corpus, tmp_path, one_process, processes, device_seconds
):
    """More processes, several passes an update, or both: the same training."""
    settings = {**SAME, "device_batch_seconds": device_seconds}
    arguments = tiny_arguments(corpus, tmp_path, **settings)
    train([*arguments, "--distributed_backend", "gloo"], processes=processes)
    assert_same_losses(one_process, epochs(tmp_path / "run"))


@pytest.mark.slow
def test_it_goes_on_with_another_number_of_processes(corpus, tmp_path, one_process):
    """Stopped within the second epoch of one process, ended by two."""
    arguments = tiny_arguments(corpus, tmp_path, **SAME)
    stop_in_epoch(2, arguments)
    assert len(epochs(tmp_path / "run")) < 3
    train([*arguments, "--distributed_backend", "gloo"], processes=2)
    assert_same_losses(one_process, epochs(tmp_path / "run"))
    commands = json.loads((tmp_path / "run/run.json").read_text())["commands"]
    assert len(commands) == 2 and "torchrun" in commands[1]


@pytest.mark.slow
def test_bf16_trains(corpus, tmp_path):
    arguments = tiny_arguments(corpus, tmp_path, number_of_epochs=4, precision="bf16")
    train(arguments)
    rows = epochs(tmp_path / "run")
    assert rows[-1]["train"]["loss"] < 0.8 * rows[0]["train"]["loss"]


@pytest.mark.slow
def test_processes_share_what_is_scored(corpus, tmp_path):
    """The figures and alignments of one process, with fewer utterances than processes."""
    one, three = (write_corpus(tmp_path, count, 10 + count) for count in (1, 3))
    arguments = tiny_arguments((corpus[0], one), tmp_path, number_of_epochs=8)
    arguments[arguments.index("--test_csv") + 1] = f"[{corpus[1]}, {three}]"
    train([*arguments, "--distributed_backend", "gloo"], processes=2)
    run = tmp_path / "run"
    shared = json.loads((run / "run.json").read_text())["results"]
    alignments = {path: path.read_text() for path in run.glob("errors_*.txt")}
    assert len(epochs(run)) == 8 and epochs(run)[0]["valid"]["utterances"] == 1
    train([*arguments, "--test_only"])
    alone = json.loads((run / "run.json").read_text())["results"]
    assert {n: r["utterances"] for n, r in shared.items()} == {
        "valid": 1,
        "set2": 12,
        "set13": 3,
    }
    for name, figures in alone.items():
        for result in (figures, shared[name]):
            result.pop("seconds")
        for losses in (figures.pop("losses"), shared[name].pop("losses")):
            assert set(losses) == {"ce", "quantity", "ctc"}
        assert shared[name] == pytest.approx(figures), name
    assert alignments == {path: path.read_text() for path in alignments}
