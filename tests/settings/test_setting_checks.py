"""Values are checked by what the yaml says about them, before anything is done."""

import subprocess
import sys

import pytest
from conftest import ROOT

from cif_lobes.commands import evaluate
from cif_lobes.settings.checks import find_fault, find_misfit, read_value
from cif_lobes.settings.cli import parse
from cif_lobes.settings.yaml_settings import Setting, yaml_settings

YAMLS = sorted(ROOT.glob("recipes/*/hparams/*.yaml"))
CIF = ROOT / "recipes/AISHELL-1/hparams/cif_hieradist.yaml"


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: f"{p.parts[-3]}/{p.name}")
def test_every_default_may_be_what_it_is(path):
    settings = yaml_settings(path)
    values = {s.key: read_value(s.value_text) for s in settings}
    for setting in settings:
        value = values[setting.key]
        if value is not None:
            assert find_fault(setting, value) is None, setting
        assert find_misfit(setting, values) is None, setting


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: f"{p.parts[-3]}/{p.name}")
def test_every_number_and_choice_has_a_limit(path):
    """Of each kind, something is refused."""
    for setting in yaml_settings(path):
        default = read_value(setting.value_text)
        if isinstance(default, (int, float)):
            assert find_fault(setting, "abc"), setting
        if isinstance(default, str) and " or " in setting.comment:
            words = setting.key in (
                "teacher",
                "teachers",
                "skip_prep",
                "tokenizer_folder",
                "ears",
                "bert",
                "llm",
            )
            assert words or find_fault(setting, "nonsense"), setting


BAD = [
    ("--lr abc", "--lr abc: a number above 0 expected"),
    ("--lr 0", "--lr 0: a number above 0 expected"),
    ("--lr .inf", "--lr .inf: a number above 0 expected"),
    ("--lr .nan", "--lr .nan: a number above 0 expected"),
    ("--lr null", "--lr null: a number above 0 expected"),
    ("--d_model 255", "--d_model 255: a multiple of nhead, which is 4, expected"),
    ("--nhead 3", "d_model: 256 in recipes/AISHELL-1/hparams/cif_hieradist.yaml: "),
    ("--num_workers -1", "--num_workers -1: an integer, 0 or more expected"),
    ("--num_workers 1.5", "--num_workers 1.5: an integer, 0 or more expected"),
    ("--device gpu", "--device gpu: cpu, cuda or cuda:N expected"),
    ("--number_of_epochs 0", "--number_of_epochs 0: an integer above 0 expected"),
    ("--number_of_epochs ten", "--number_of_epochs ten: an integer above 0 expected"),
    ("--acd_weight -1", "--acd_weight -1: a number, 0 or more expected"),
    ("--tail_threshold 5", "--tail_threshold 5: a number from 0 to 1 expected"),
    ("--tail_threshold true", "--tail_threshold true: a number from 0 to 1 expected"),
    ("--num_checkpoints 0", "--num_checkpoints 0: an integer above 0 expected"),
    ("--lrd_kind l3", "--lrd_kind l3: l2, cosine or l1_cosine expected"),
    ("--average mean", "--average mean: last or best expected"),
    ("--pool_after [0]", "[0]: a list, each item an integer above 0 expected"),
    ("--speeds [90,x]", "[90,x]: a list, each item an integer above 0 expected"),
    ("--seed -1", "--seed -1: an integer from 0 to 4294967295 expected"),
]


@pytest.mark.parametrize("words, message", BAD)
def test_a_bad_value_is_one_message(words, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as caught:
        parse(words.split(), CIF, "Train CIF.")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 2  # and what the yaml says of it


GOOD = """--lr 1e-3|--lr 1|--max_grad_norm .inf|--acd_weight 0|--acd_weight 0.3|--nhead 8
--num_workers 0|--device cuda:1|--speeds [90,100,110]|--pool_after []|--init_from x
--batch_seconds 0.5|--tail_threshold 1|--train_csv !ref <manifest_folder>/x.csv
--teacher_layers [1]|--d_model 128|--data_folder x|--lr !ref <warmup>"""


@pytest.mark.parametrize("words", GOOD.replace("\n", "|").split("|"))
def test_good_values_pass(words):
    flag, _, value = words.partition(" ")
    overrides = parse([flag, value], CIF, "Train CIF.")[2]
    assert words == "--device cuda:1" or value in overrides


def test_a_value_edited_in_the_yaml_is_checked(tmp_path, capsys):
    path = tmp_path / "x.yaml"
    path.write_text("dropout: 1.5  # encoder, 0 to 1\n")
    with pytest.raises(SystemExit):
        parse([str(path)], path, "Train.")
    expected = f"dropout: 1.5 in {path}: a number from 0 to 1 expected"
    assert expected in capsys.readouterr().err


def test_one_or_a_list():
    setting = Setting("layer", "-1", "any integer: -1 the last; a list keeps several")
    assert find_fault(setting, [4, -2]) is None
    assert find_fault(setting, [4, "x"]) == "an integer"


def test_nothing_is_imported_or_written(tmp_path):
    script = ROOT / "recipes/AISHELL-1/train.py"
    code = (
        f"import runpy, sys; sys.argv = [{str(script)!r}, '--lr', 'abc']\n"
        f"try: runpy.run_path({str(script)!r}, run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 2\n"
        "assert not {'torch', 'speechbrain'} & {*sys.modules}"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


EVALUATE = [
    ("--beam 0", "argument --beam: 0: an integer above 0 expected"),
    ("--beam x", "argument --beam: x: an integer above 0 expected"),
    ("--tail_threshold 5", "--tail_threshold: 5: a number from 0 to 1 expected"),
    ("--num_checkpoints 0", "--num_checkpoints: 0: an integer above 0 expected"),
    ("--eval_batch_seconds 0", "--eval_batch_seconds: 0: a number above 0 expected"),
    ("--lm x --lm_weight -1", "--lm_weight: -1: a number, 0 or more expected"),
    ("--device gpu", "argument --device: gpu: cpu, cuda or cuda:N expected"),
]


@pytest.mark.parametrize("words, message", EVALUATE)
def test_options_of_evaluate_are_checked(words, message, capsys):
    with pytest.raises(SystemExit):
        evaluate.parse_arguments(["run", *words.split()])
    assert message in capsys.readouterr().err


def test_options_have_the_type_of_their_default():
    given = evaluate.parse_arguments(["run", "--tail_threshold", "1", "--beam", "4"])
    assert isinstance(given.tail_threshold, float)
    assert (given.tail_threshold, given.beam, given.device) == (1.0, 4, "cpu")
