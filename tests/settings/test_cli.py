"""The recipes' command line: help, mistakes, and values that arrive as typed."""

import subprocess
import sys
from pathlib import Path

import pytest
import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml

from cif_lobes.settings import cli

YAML_TEXT = """\
# CIF on a test corpus.
#   python train.py hparams/cif.yaml --data_folder /data
# Expected: CER 5.

# --- what you will change first ---
data_folder: !PLACEHOLDER  # folder that holds the corpus
output_folder: !ref results/cif/<seed>  # everything the run writes
seed: 1986  # any integer
__set_seed: !apply:random.seed [!ref <seed>]

# ###### Training ######
lr_peak: 3.0e-4  # peak learning rate,
                 # after the warm-up
# of optimizer updates
warmup_steps: 4000
skip_prep: False
precision: fp32  # fp32 or bf16
betas: [0.9,
  0.98]  # of Adam
note: "a # b"  # free text # with a hash
lm:
splits:  # of the corpus
  - dev
  - test
amp: !ref <precision>

encoder: !new:collections.Counter  # an object
    # its inside
    d_model: !ref <seed>
modules:
    encoder: !ref <encoder>
"""


@pytest.fixture(autouse=True)
def recipe(tmp_path, monkeypatch):
    """A recipe folder as the current one, run by hand (not by torchrun)."""
    (tmp_path / "hparams").mkdir()
    (tmp_path / "hparams" / "cif.yaml").write_text(YAML_TEXT, encoding="utf-8")
    (tmp_path / "hparams" / "cif_acd.yaml").write_text("a: 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def parse(*argv):
    return cli.parse(list(argv), Path("hparams/cif.yaml"), "Train CIF.")


def load(*argv):
    """Hyperparameters after the overrides, as a recipe gets them."""
    hparams_file, _, overrides = parse("--data_folder=/data", *argv)
    with open(hparams_file, encoding="utf-8") as stream:
        return load_hyperpyyaml(stream, overrides)


def mistake(capsys, *argv):
    """What a wrong command line prints."""
    with pytest.raises(SystemExit) as exit_info:
        parse(*argv)
    assert exit_info.value.code == 2
    return capsys.readouterr().err


def help_lines(capsys, *argv):
    with pytest.raises(SystemExit) as exit_info:
        parse(*argv)
    assert exit_info.value.code == 0
    return capsys.readouterr().out.splitlines()


def test_yaml_settings():
    settings = {s.key: s for s in cli.yaml_settings("hparams/cif.yaml")}
    assert list(settings)[:3] == ["data_folder", "output_folder", "seed"]
    first = "what you will change first"
    assert settings["data_folder"] == cli.Setting(
        "data_folder", "!PLACEHOLDER", "folder that holds the corpus", first, True
    )
    assert settings["output_folder"].value_text == "!ref results/cif/<seed>"
    assert settings["lr_peak"].section == "Training"
    comments = {
        "lr_peak": "peak learning rate, after the warm-up",
        "warmup_steps": "of optimizer updates",
        "skip_prep": "",
    }
    assert {key: settings[key].comment for key in comments} == comments
    read = {
        "betas": ("[0.9, 0.98]", "of Adam"),
        "note": ('"a # b"', "free text # with a hash"),
        "lm": ("null", ""),
        "splits": ("[dev, test]", "of the corpus"),
    }
    found = {key: (settings[key].value_text, settings[key].comment) for key in read}
    assert found == read
    objects = [key for key, s in settings.items() if s.value_text is None]
    assert objects == ["__set_seed", "encoder", "modules"]


@pytest.mark.parametrize("argv", [["--help"], ["hparams/cif.yaml", "-h"]])
def test_help_follows_the_yaml(capsys, argv):
    lines = help_lines(capsys, *argv)
    assert lines[0] == "usage: python train.py [HPARAMS.yaml] [--key VALUE ...]"
    assert "  CIF on a test corpus." in lines
    assert "    python train.py hparams/cif.yaml --data_folder /data" in lines
    options = [line.split()[0] for line in lines if line.startswith("  --")]
    keys = "data_folder output_folder seed lr_peak warmup_steps skip_prep precision"
    keys = f"{keys} betas note lm splits amp".split()
    assert options[: len(keys)] == [f"--{key}" for key in keys]
    run_options = options[len(keys) :]
    assert "--device" in run_options and "--nonfinite_patience" in run_options
    assert "--precision" not in run_options  # the yaml's default holds
    assert "Training" in lines and "what you will change first" in lines
    assert lines.index("Training") < lines.index("Run options of SpeechBrain")


def test_help_rows(capsys):
    rows = [" ".join(line.split()) for line in help_lines(capsys, "--help")]
    assert "--data_folder required folder that holds the corpus" in rows
    assert "--output_folder results/cif/<seed>" in rows  # its comment is below
    assert "everything the run writes" in rows
    assert "--amp <precision>" in rows


@pytest.mark.parametrize("columns, width", [("40", 80), ("90", 90), ("300", 100)])
def test_help_fits_the_terminal(capsys, monkeypatch, columns, width):
    monkeypatch.setenv("COLUMNS", columns)
    Path("hparams/cif.yaml").write_text(f"a: 1  # {'word ' * 60}\n")
    lines = help_lines(capsys, "--help")
    assert width - 10 < max(map(len, lines)) <= width
    assert [line for line in lines if line != line.rstrip()] == []


def test_help_imports_no_torch():
    code = (
        "import sys\n"
        "from cif_lobes.settings.cli import parse\n"
        "try:\n"
        "    parse(['--help'], 'hparams/cif.yaml', 'Train CIF.')\n"
        "except SystemExit:\n"
        "    print('loaded', {'torch', 'speechbrain'} & set(sys.modules))\n"
    )
    root = Path(cli.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(root), "PATH": ""},
    )
    assert "--lr_peak" in done.stdout
    assert done.stdout.endswith("loaded set()\n")


def test_run_options_are_those_of_speechbrain():
    """Every flag of SpeechBrain's parser is known, with its number of values."""
    from speechbrain.utils.run_opts import RunOptions

    arities = {0: 0, None: 1, "*": float("inf")}
    theirs = {
        action.option_strings[0]: arities[action.nargs]
        for action in RunOptions._create_parser()._actions
        if action.option_strings and action.dest != "help"
    }
    theirs["--dry_run"] = 0  # ours
    options = cli._run_options()
    assert {flag: cli._arity(flag, options) for flag in options} == theirs
    assert {f"--{name}" for name in cli.MAIN_RUN_OPTIONS.split()} <= theirs.keys()


def test_result_equals_speechbrains():
    argv = ["hparams/cif.yaml", "--data_folder", "/data", "--lr_peak", "1e-3"]
    argv += ["--device", "cpu", "--debug", "--max_grad_norm=-1", "--jit_module_keys"]
    argv += ["encoder", "decoder"]
    assert parse(*argv) == sb.parse_arguments(argv)


def test_the_yaml_may_stand_anywhere_or_be_left_out():
    expected = parse("hparams/cif.yaml", "--data_folder", "x", "--debug")
    assert parse("--data_folder", "x", "--debug", "hparams/cif.yaml") == expected
    assert parse("--data_folder=x", "--debug") == expected


@pytest.mark.parametrize(
    "word, value",
    [
        ("a=b", "a=b"),
        ("--x=1", "--x=1"),
        ("1e-3", 1e-3),
        ("-0.5", -0.5),
        ("-3", -3),
        ("true", True),
        ("null", None),
        ("''", ""),
        ("'two\nlines'", "two lines"),
        ("'12'", "12"),
        ("[1, a=b, -2.5]", [1, "a=b", -2.5]),
        ("[1,\n2]", [1, 2]),
        ("two words", "two words"),
        ("it's", "it's"),
        ('the "best" one', 'the "best" one'),
        ("key: value", "key: value"),
        ("a #1", "a #1"),
        ("#1", "#1"),
        ("*.wav", "*.wav"),
        ("- a", "- a"),
        ("two\nlines", "two\nlines"),
        ("你好", "你好"),
        ("!ref <seed>/x", "1986/x"),
    ],
)
def test_values_arrive_as_typed(word, value):
    note = load(f"--note={word}")["note"]
    assert note == value and type(note) is type(value)
    if not word.startswith("--"):
        assert load("--note", word)["note"] == value


def test_last_of_a_repeated_option_counts():
    assert load("--seed", "1", "--seed", "2")["seed"] == 2


def test_overrides_reach_derived_values():
    hparams = load("--seed=7")
    assert hparams["output_folder"] == "results/cif/7"
    assert hparams["encoder"]["d_model"] == 7


def test_run_option_that_is_a_yaml_key_reaches_both():
    argv = ["--precision", "bf16", "--data_folder=x"]
    assert parse(*argv)[1]["precision"] == "bf16"
    assert load(*argv)["amp"] == "bf16"
    Path("hparams/cif.yaml").write_text("debug: False\njit_module_keys: null\n")
    _, run_opts, overrides = parse("--debug", "--jit_module_keys", "a", "b")
    assert run_opts["debug"] and run_opts["jit_module_keys"] == ["a", "b"]
    assert overrides == 'debug: true\njit_module_keys: ["a", "b"]'


def test_yaml_key_that_begins_a_run_option():
    """Argparse alone would call it an ambiguous --ckpt_interval_steps or _minutes."""
    Path("hparams/cif.yaml").write_text("ckpt_interval: 1\n")
    _, run_opts, overrides = parse("--ckpt_interval", "5")
    assert overrides == "ckpt_interval: 5"
    assert run_opts.overridden_args == set()


def test_run_option_value_that_is_an_option_name():
    _, run_opts, _ = parse("--data_folder=x", "--log_config=--debug")
    assert run_opts.overridden_args == {"log_config"}


def test_optimizer_step_limit_is_an_integer():
    _, run_opts, _ = parse("--data_folder=x", "--optimizer_step_limit", "10")
    assert run_opts["optimizer_step_limit"] == 10


@pytest.mark.parametrize("minutes", ["0.5", ".5", "2.", "3"])
def test_minutes_need_not_be_whole(minutes, capsys):
    Path("hparams/cif.yaml").write_text("ckpt_interval_minutes: 15  # 0 for none\n")
    _, run_opts, overrides = parse("--ckpt_interval_minutes", minutes)
    assert run_opts["ckpt_interval_minutes"] == float(minutes)
    assert run_opts.overridden_args == {"ckpt_interval_minutes"}
    assert overrides == f"ckpt_interval_minutes: {minutes}"
    assert "a number, 0 or more" in mistake(capsys, "--ckpt_interval_minutes", "-0.5")


def test_unknown_option(capsys):
    message = mistake(capsys, "--lr_pek", "1", "--warmup-steps=3", "--zzzz", "1")
    assert message.splitlines() == [
        "train.py: unknown option --lr_pek: did you mean --lr_peak?",
        "unknown option --warmup-steps: did you mean --warmup_steps?",
        "unknown option --zzzz: nothing is similar",
        "List all: python train.py hparams/cif.yaml --help",
    ]


def test_single_dash_is_no_option(capsys):
    assert "unknown option -seed: did you mean --seed?" in mistake(capsys, "-seed", "1")


@pytest.mark.parametrize(
    "argv, got",
    [
        (["--lr_peak"], "got none"),
        (["--lr_peak", "--seed", "1"], "got none"),
        (["--lr_peak="], "got an empty one (unset shell variable?)"),
        (["--lr_peak", ""], "got an empty one (unset shell variable?)"),
    ],
)
def test_missing_value(capsys, argv, got):
    message = mistake(capsys, *argv)
    assert f"--lr_peak needs a value and {got}" in message
    assert "peak learning rate, after the warm-up" in message
    assert "hparams/cif.yaml" in message


def test_placeholder_left_open(capsys):
    assert mistake(capsys, "--seed", "1").splitlines() == [
        "train.py: hparams/cif.yaml leaves open (!PLACEHOLDER)",
        "  --data_folder  folder that holds the corpus",
        "Add --data_folder VALUE",
    ]


def test_file_not_found(capsys):
    message = mistake(capsys, "hparams/cif_adc.yaml")
    assert message.splitlines() == [
        "train.py: no such file hparams/cif_adc.yaml: "
        "did you mean hparams/cif_acd.yaml?",
        "There are",
        "  hparams/cif.yaml",
        "  hparams/cif_acd.yaml",
    ]


def test_broken_yaml_names_its_line(capsys):
    Path("hparams/cif.yaml").write_text("a: 1\nb: [1, 2\nc: 3\n")
    message = mistake(capsys)
    assert "hparams/cif.yaml is not valid YAML" in message
    assert "line 3" in message


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["hparams/cif.yaml", "--betas", "[0.9,", "0.98]"], "one yaml expected"),
        (["--betas", "[0.9"], "--betas [0.9: not valid YAML"),
        (["--betas", "0.9"], "--betas 0.9: a list expected, write --betas '[0.9]'"),
        (["--skip_prep", "no"], "--skip_prep no: true or false expected"),
        (["--debug=True"], "--debug is a switch: write it without '=True'"),
        (["--precision", "fp17"], "--precision fp17: fp32 or bf16 expected"),
    ],
)
def test_other_mistakes(capsys, argv, expected):
    assert expected in mistake(capsys, "--data_folder=x", *argv)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_under_torchrun_only_rank_0_prints(capsys, monkeypatch, rank):
    # LOCAL_RANK 0 with RANK 1 is the first process of a second machine.
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", "0")
    for argv in (["--lr_pek=1"], ["--data_folder=x", "--precision=fp17"]):
        assert bool(mistake(capsys, *argv)) == (rank == "0")
    assert bool(help_lines(capsys, "--help")) == (rank == "0")
