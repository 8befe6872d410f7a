"""The sweep: one encoding, every setting as if decoded alone, nothing but validation."""

import json
import shutil

import pytest
import torch

from cif_lobes.commands import evaluate
from cif_lobes.data.batches import make_dataset
from cif_lobes.data.manifest import read_manifest
from cif_lobes.decoding import language_model, rescoring
from cif_lobes.inference.export import open_run
from cif_lobes.inference.recognizer import CIFRecognizer
from cif_lobes.runs import sweep
from cif_lobes.runs.cif import load_run
from cif_lobes.runs.stages import manifest_paths


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the tiny run, to write into, whose tokens are too light to all fire."""
    shutil.copytree(trained, tmp_path / "run")
    for path in (tmp_path / "run").glob("save/CKPT*/model.ckpt"):
        parameters = torch.load(path)
        parameters["cif.linear.bias"] -= 1.0
        torch.save(parameters, path)
    return tmp_path / "run"


def call(*arguments):
    """evaluate.py in this process."""
    evaluate.main(evaluate.parse_arguments([*map(str, arguments)]))


def results(run):
    """Figures in run.json."""
    return json.loads((run / "run.json").read_text())["results"]


def test_every_setting_as_if_alone(run, capsys):
    """Thresholds share hypotheses; the rates are those of separate evaluations."""
    thresholds, beams = [0.05, 0.5, 0.999], [1, 3]
    of_ctc = "--ctc_weight_decode", 0
    call(run, "--sweep", "--tail_threshold", *thresholds, "--beam", *beams, *of_ctc)
    assert "CER %" in capsys.readouterr().out
    rows = json.loads((run / sweep.FILE).read_text())["table"]
    assert len(rows) == 6
    assert len({row["errors"] for row in rows}) > 1  # or nothing would be compared
    for row in rows:
        call(
            *(run, "--split", "valid", "--beam", row["beam"]),
            *("--tail_threshold", row["tail_threshold"]),
        )
    found = {
        (r["beam"], r["tail_threshold"]): r["error_rate"]
        for name, r in results(run).items()
        if name.startswith("valid_")
    }
    assert found == {
        (r["beam"], r["tail_threshold"]): pytest.approx(r["error_rate"]) for r in rows
    }


def test_swept_settings_are_used(run):
    """Of the best row, and a setting given by hand wins."""
    call(run, "--sweep", "--tail_threshold", 0.999, 0.5, "--beam", 2)
    record = json.loads((run / sweep.FILE).read_text())
    assert record["chosen"]["tail_threshold"] == 0.5
    assert record["error_rate"] == min(row["error_rate"] for row in record["table"])
    assert record["utterances"] == 12
    call(run, "--swept", "--split", "valid")
    swept = results(run)["valid_swept"]
    assert (swept["beam"], swept["tail_threshold"]) == (2, 0.5)
    assert swept["error_rate"] == pytest.approx(record["error_rate"])
    call(run, "--swept", "--split", "valid", "--tail_threshold", 0.999)
    other = results(run)["valid_swept_tail_threshold=0.999"]
    assert (other["beam"], other["tail_threshold"]) == (2, 0.999)


def test_what_was_swept_is_exported(run, tmp_path, capsys):
    """Its settings are the defaults of the export, and one given by hand wins."""
    with pytest.raises(FileNotFoundError, match="--sweep"):
        evaluate.export([str(run), str(tmp_path / "early"), "--swept"])
    of_ctc = "--ctc_weight_decode", 0
    call(run, "--sweep", "--tail_threshold", 0.999, 0.25, "--beam", 2, *of_ctc)
    one = "--num_checkpoints 1".split()
    evaluate.export([str(run), str(tmp_path / "a"), "--swept", *one])
    recognizer = CIFRecognizer.from_export(tmp_path / "a")
    assert recognizer.searcher.beam_size == 2
    assert recognizer.fire.cif.tail_threshold == 0.25
    files = [u.wav for u in read_manifest(load_run(run)[1]["valid_csv"])]
    by_hand = {"beam_size": 2, "tail_threshold": 0.25}
    from_run = CIFRecognizer(open_run(run, by_hand, num_checkpoints=1))
    assert from_run.transcribe(files) == recognizer.transcribe(files)
    evaluate.export([str(run), str(tmp_path / "b"), "--swept", "--beam", "3"])
    assert CIFRecognizer.from_export(tmp_path / "b").searcher.beam_size == 3
    onnx = [str(run), str(tmp_path / "c"), "--swept", "--format", "onnx"]
    with pytest.raises(ValueError, match="a beam of 2 is not for ONNX.* --beam 1"):
        evaluate.export(onnx)
    assert capsys.readouterr().err.count("language model") == 0
    swept = json.loads((run / sweep.FILE).read_text())
    swept["chosen"]["lm"] = "lms/7"
    (run / sweep.FILE).write_text(json.dumps(swept))
    evaluate.export([str(run), str(tmp_path / "d"), "--swept"])
    assert "an export has no language model" in capsys.readouterr().err


def test_a_sweep_leaves_the_threshold_as_it_was(run):
    brain, hparams = load_run(run)
    dataset = make_dataset(
        manifest_paths(hparams)["valid"], hparams["tokenizer"], hparams["sample_rate"]
    )
    before = hparams["cif"].tail_threshold
    grid = sweep.default_grid(hparams, with_lm=False)
    sweep.sweep(brain, hparams, dataset, grid | {"beam": [1]})
    assert hparams["cif"].tail_threshold == before == 0.4


def test_the_same_average_is_decoded_once(run):
    """Asked for more checkpoints than were kept."""
    call(
        run,
        "--sweep",
        *"--beam 1 --tail_threshold 0.5 --num_checkpoints 1 9 99".split(),
    )
    rows = json.loads((run / sweep.FILE).read_text())["table"]
    assert [row["num_checkpoints"] for row in rows] == [1, 9]


def test_language_model_weights(run):
    """A language model that is the decoder's enemy costs errors, by its weight."""
    brain, hparams = load_run(run)
    dataset = make_dataset(
        manifest_paths(hparams)["valid"], hparams["tokenizer"], hparams["sample_rate"]
    )
    grid = sweep.default_grid(hparams, with_lm=True)
    grid |= {"beam": [1], "tail_threshold": [0.5], "lm_weight": [0.0, 100.0]}
    rows = sweep.sweep(brain, hparams, dataset, grid, TransformerLMScorer())
    assert rows[0]["errors"] < rows[1]["errors"]
    assert sweep.choose(rows)["lm_weight"] == 0.0


def test_evaluate_with_a_language_model(run, monkeypatch):
    """Its weight counts, is written down, and is kept by a sweep if it serves."""
    enemy = TransformerLMScorer()
    monkeypatch.setattr(language_model, "load_scorer", lambda path, tokenizer: enemy)
    one = "--beam 1 --tail_threshold 0.5 --lm lms/7".split()
    call(run, "--split", "valid", *one, "--lm_weight", 100)
    figures = results(run)["valid_tail_threshold=0.5_beam=1_lm_weight=100.0_lm=lms-7"]
    assert (figures["lm"], figures["lm_weight"]) == ("lms/7", 100.0)
    call(run, "--sweep", *one, "--lm_weight", 0, 100)
    first, second = json.loads((run / sweep.FILE).read_text())["table"]
    assert second["error_rate"] == pytest.approx(figures["error_rate"])
    assert sweep.read(run)["lm_weight"] == 0 and sweep.read(run)["lm"] is None
    call(run, "--sweep", *one, "--lm_weight", 100)
    assert sweep.read(run)["lm"].endswith("/lms/7")


def test_evaluate_ranks_again(run, monkeypatch):
    """A model that likes what is short costs errors; the sweep gives it no weight."""
    enemy = HuggingFaceLMRescorer()
    monkeypatch.setattr(
        rescoring, "HuggingFaceLMRescorer", lambda source, device: enemy
    )
    one = "--beam 4 --tail_threshold 0.5 --rescore lms/gpt".split()
    call(run, "--split", "valid", *one, "--rescore_weight", 100)
    (name,) = [name for name in results(run) if "rescore" in name]
    assert name.endswith("rescore_weight=100.0_rescore=gpt")
    figures = results(run)[name]
    assert (figures["rescore"], figures["rescore_weight"]) == ("lms/gpt", 100.0)
    of_ctc = "--ctc_weight_decode", 0
    call(run, "--sweep", *one, "--rescore_weight", 0, 100, *of_ctc)
    first, second = json.loads((run / sweep.FILE).read_text())["table"]
    assert first["error_rate"] < second["error_rate"]
    assert second["error_rate"] == pytest.approx(figures["error_rate"])
    assert sweep.read(run)["rescore"] is None


def test_evaluate_with_hotwords(run, tmp_path):
    """What is preferred without end is heard everywhere."""
    path = tmp_path / "words.txt"
    path.write_text("aaaaa\n")
    one = ["--split", "valid", "--tail_threshold", 0.5, "--hotwords", path]
    call(run, *one)
    call(run, *one, "--hotword_weight", 100)
    few, many = (
        results(run)[f"valid_tail_threshold=0.5_hotwords=words_hotword_weight={weight}"]
        for weight in ("1.0", "100.0")
    )
    assert few["error_rate"] < many["error_rate"] and many["hotwords"] == str(path)


class HuggingFaceLMRescorer:
    """Wants short texts; named as RescorerBuilder looks for weights."""

    def rescore_hyps(self, topk_hyps):
        return torch.tensor([-1.0 * len(text) for beam in topk_hyps for text in beam])


class TransformerLMScorer:
    """Wants "a" again and again; named as ScorerBuilder looks for weights."""

    def reset_mem(self, x, enc_lens):
        pass

    def permute_mem(self, memory, index):
        return memory

    def score(self, inp_tokens, memory, candidates, attn):
        scores = inp_tokens.new_full((len(inp_tokens), 8), -1.0).float()
        scores[:, 4] = 0.0
        return scores, memory


def test_ties_go_to_the_first():
    rows = [
        {"errors": 3, "beam": 1},
        {"errors": 2, "beam": 1},
        {"errors": 2, "beam": 9},
    ]
    assert sweep.choose(rows)["beam"] == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--sweep", "--split", "test"], "validation set only"),
        (["--sweep", "--csv", "test.csv"], "validation set only"),
        (["--beam", "1", "5"], "only with --sweep"),
        (["--lm_weight", "0.2"], "needs --lm"),
    ],
)
def test_wrong_combinations(arguments, message, capsys):
    with pytest.raises(SystemExit):
        evaluate.parse_arguments(["run", *arguments])
    assert message in capsys.readouterr().err


def test_a_weight_without_a_language_model_is_refused(run, monkeypatch):
    """Also when it is the sweep that chose none."""
    monkeypatch.setattr(sweep, "read", lambda run: {"beam": 2, "lm": None})
    with pytest.raises(SystemExit, match="chose no language model"):
        call(run, "--swept", "--lm_weight", "0.3")


def test_another_unit_has_a_key_of_its_own(run):
    """The tones are letters without spaces: each utterance is a word."""
    call(run, "--split", "valid", "--error_unit", "word")
    found = results(run)["valid_error_unit=word"]
    assert found["unit"] == "word" and found["reference_length"] == 12
    assert results(run)["valid"]["unit"] == "char"


def test_nothing_was_swept(run):
    with pytest.raises(FileNotFoundError, match="--sweep"):
        call(run, "--swept")
