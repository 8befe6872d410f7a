"""Bad inputs of scoring, language models and comparisons, for docs/errors.md."""

import json
from argparse import Namespace
from unittest import mock

import numpy as np
import soundfile
from conftest import ROOT, TINY, load_module
from hyperpyyaml import load_hyperpyyaml, resolve_references
from typed import refused

from cif_lobes.commands import evaluate
from cif_lobes.data.tokens import CharTokenizer
from cif_lobes.decoding.alignments import read_alignments
from cif_lobes.decoding.ctc_ranking import check_head
from cif_lobes.decoding.hotwords import load_hotwords
from cif_lobes.decoding.language_model import TokenText, check_text, load_scorer
from cif_lobes.decoding.rescoring import HuggingFaceLMRescorer
from cif_lobes.decoding.significance import compare_runs
from cif_lobes.runs import sweep
from cif_lobes.runs.init_from import start_from

keep = load_module(ROOT / "tools/keep_run.py")
results = load_module(ROOT / "tools/results.py")
YAML = ROOT / "recipes/AISHELL-1/hparams/cif_mini.yaml"


def _run(folder, words):
    """What evaluate.py says of a run that has not been trained yet."""
    settings = {**TINY, "pool_after": [1], "output_folder": str(folder)}
    settings |= {"manifest_folder": str(folder), "test_csv": ["test.csv"]}
    with open(YAML) as file:
        resolved = resolve_references(file, settings).getvalue()
    (folder / "hyperparams.yaml").write_text(resolved)
    load_hyperpyyaml(resolved)["tokenizer"].fit(["hello"])
    return folder, words.split()


def _score(words):
    def cause(folder):
        soundfile.write(folder / "a.wav", np.zeros(16000), 16000)
        (folder / "my.csv").write_text("ID,duration,wav,wrd\nu1,1.0,a.wav,hello\n")
        run, options = _run(folder, words.format(folder=folder))
        evaluate.main(evaluate.parse_arguments([str(run), *options]))

    return cause


def _tokenizer(folder, texts=("hello world",)):
    return CharTokenizer(folder / "chars.txt", 32, "en").fit(texts)


def _hotwords(text, encoding="utf-8"):
    def cause(folder):
        (folder / "names.txt").write_text(text, encoding=encoding)
        load_hotwords(folder / "names.txt", _tokenizer(folder))

    return cause


def _lm_text(text, name="text.txt", encoding="utf-8"):
    """A text to train a language model on."""

    def cause(folder):
        (folder / name).write_text(text, encoding=encoding)
        read = TokenText([folder / name], _tokenizer(folder))
        check_text(read, "train_text", device_batch_tokens=100, max_oov=5.0)

    return cause


def _ngram(folder):
    (folder / "characters.arpa").touch()
    with mock.patch.dict("sys.modules", kenlm=None):
        load_scorer(folder / "characters.arpa", _tokenizer(folder))


def _compare(ours, baseline):
    """Two runs by what their errors_test.txt say of each utterance."""

    def cause(folder):
        for name, rows in (("ours", ours), ("baseline", baseline)):
            (folder / name).mkdir()
            lines = [
                f"{u}, %WER 0.00 [ 0 / {n}, 0 ins, 0 del, 0 sub ]\n" for u, n in rows
            ]
            (folder / name / "errors_test.txt").write_text("".join(lines))
        compare_runs([folder / "ours"], [folder / "baseline"], "test")

    return cause


def _not_scored(folder):
    compare_runs([folder / "cif_1"], [folder / "cif_2"], "test")


def _keep(**others):
    def call(folder):
        record = {"commands": ["python train.py a.yaml --data_folder /scratch/aishell"]}
        record["results"] = {"valid": {}, "test": {}}
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "epochs.jsonl").touch()
        given = {"data": "AISHELL-1", "dev": None, "rename": [], **others}
        keep.main(Namespace(run=folder, kept=folder / "kept", **given))

    return call


def _no_runs(folder):
    results.main(Namespace(runs=folder, out=folder / "RESULTS.md"))


SECTIONS = {
    "Scoring": {
        "a set that the run does not have": _score("--split dev"),
        "a run that has no checkpoint yet": _score("--csv {folder}/my.csv"),
        "`--swept` before `--sweep`": lambda folder: sweep.read(folder),
        "`--beam 0`": refused(evaluate.parse_arguments, "RUN", "--beam", "0"),
        "`--beam 1 10` without `--sweep`": refused(
            evaluate.parse_arguments, "RUN", "--beam", "1", "10"
        ),
        "`--sweep --split test`": refused(
            evaluate.parse_arguments, "RUN", "--sweep", "--split", "test"
        ),
        "`--lm_weight` without `--lm`": refused(
            evaluate.parse_arguments, "RUN", "--lm_weight", "0.2"
        ),
        "`--ctc_weight_decode` of a run without CTC": lambda f: check_head({}, "run"),
        "`--init_from` names no run": lambda f: start_from(None, f / "lost", None),
    },
    "Language models and hotwords": {
        "`--lm` names no language model": lambda f: load_scorer(
            f / "lost", _tokenizer(f)
        ),
        "`--rescore` names no model": lambda f: HuggingFaceLMRescorer(f / "lost"),
        "a text without a sentence": _lm_text("\n\n"),
        "a text of another language": _lm_text("привет мир\n"),
        "a text without line breaks": _lm_text("hello world " * 20),
        "a text in GBK": _lm_text("你好\n", encoding="gbk"),
        "a text that is called `.gz`": _lm_text("hello\n", name="text.gz"),
        "an n-gram without KenLM": _ngram,
        "no file of hotwords": lambda f: load_hotwords(f / "names.txt", _tokenizer(f)),
        "hotwords in GBK": _hotwords("hello\n你好\n", encoding="gbk"),
        "a weight that is no number": _hotwords("hello\thigh\n"),
        "hotwords of other letters": _hotwords("привет\n"),
    },
    "Comparing and keeping runs": {
        "a set that was not scored": _not_scored,
        "runs scored on different utterances": _compare([("u1", 3)], [("u2", 3)]),
        "words in one run, characters in the other": _compare([("u1", 3)], [("u1", 9)]),
        "no alignments": lambda folder: read_alignments(folder / "errors_test.txt"),
        "a kept command with a path of the machine": _keep(),
        "a kept run whose `--dev` was not scored": _keep(dev="dev"),
        "a folder without runs": _no_runs,
    },
}
