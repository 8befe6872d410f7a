"""A folder from someone else runs no code, whoever of us reads it."""

import io
import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TINY, load_module
from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml import YAML

from cif_lobes.commands import evaluate as scoring
from cif_lobes.decoding.language_model import load_scorer
from cif_lobes.inference import command as inference
from cif_lobes.inference import stream as streaming
from cif_lobes.inference.export import export_run, open_export, open_run
from cif_lobes.inference.onnx_export import export_onnx
from cif_lobes.inference.s3prl_export import export_s3prl
from cif_lobes.nets.frozen_student import read_student
from cif_lobes.runs.cif import load_run
from cif_lobes.runs.init_from import start_from
from cif_lobes.settings.safe_yaml import (
    CLASSES,
    SKIPPED,
    build,
    check_tags,
    read_settings,
)
from cif_lobes.storage.checkpoints import SafeCheckpointer
from cif_lobes.storage.parameters import read_parameters
from cif_lobes.teachers.recognizers import ASRTeacher

YAMLS = sorted(ROOT.glob("recipes/*/hparams/*.yaml"))
PAYLOADS = [
    "!apply:os.system [touch RAN]",
    "!applyref:os.system [touch RAN]",
    "!new:subprocess.Popen [[touch, RAN]]",
    "!name:os.system",
    "!module:os",
    "!include:other.yaml",
    "!copy <lr>",
    "!tuple (1, 2)",
    "!!python/object/apply:os.system [touch RAN]",
    "!<tag:yaml.org,2002:python/object/apply:os.system> [touch RAN]",
    # HyperPyYAML reads what stands in parentheses with PyYAML's unsafe loader.
    "(!!python/object/apply:os.system [touch RAN])",
    "'(!!python/object/apply:os.system [touch RAN])'",
    "{deep: [1, {er: !apply:os.system [touch RAN]}]}",
    "!new:torch.nn.Sequential [!apply:os.system [touch RAN]]",
    "!new:torch.hub.load [x]",
    "(1, 2)",
    "!ref <lr.real>",
]


@pytest.fixture(autouse=True)
def nothing_ran(tmp_path, monkeypatch):
    """The payloads write into the working directory."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "RAN").exists()


def write_settings(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "hyperparams.yaml").write_text(text)


@pytest.fixture
def run(tmp_path):
    """A CIF run of random weights."""
    folder = tmp_path / "run"
    changes = {**TINY, "pool_after": [1], "output_folder": str(folder)}
    with open(ROOT / "recipes/AISHELL-1/hparams/cif_mini.yaml") as file:
        resolved = resolve_references(file, changes).getvalue()
    write_settings(folder, resolved)
    hparams = load_hyperpyyaml(resolved)
    (folder / "chars_8.txt").write_text("a\nb\n")
    model = torch.nn.ModuleDict(hparams["modules"])
    hparams["checkpointer"].add_recoverable("model", model)
    hparams["checkpointer"].save_checkpoint(
        {"error_rate": 50.0, "loss": 1.0, "perplexity": 9.0, "epoch": 1}
    )
    (folder / "model.ckpt").write_bytes(b"")  # what makes it look like an export
    return folder


def evaluate(*arguments):
    scoring.main(scoring.parse_arguments([*map(str, arguments)]))


def plot(folder, monkeypatch):
    tool = load_module(ROOT / "tools/plot_alignment.py")
    monkeypatch.setattr("sys.argv", ["plot_alignment.py", str(folder)])
    tool.main(tool.parse_arguments())


READERS = {
    "load_run": load_run,
    "open_run": open_run,
    "open_export": open_export,
    "export": lambda run: export_run(run, "out"),
    "onnx": lambda run: export_onnx(run, "out"),
    "s3prl": lambda run: export_s3prl(run, "out"),
    "student": read_student,
    "teacher": ASRTeacher,
    "lm": lambda run: load_scorer(run, None),
    "init_from": lambda run: start_from(None, run, None),
    "parameters": read_parameters,
    "evaluate": evaluate,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("payload", [PAYLOADS[0], PAYLOADS[10]])
def test_no_reader_runs_it(reader, payload, run):
    path = run / "hyperparams.yaml"
    path.write_text(f"zz: {payload}\n{path.read_text()}")
    with pytest.raises(ValueError, match="refused") as caught:
        READERS[reader](run)
    assert f"{path}, line 1: " in str(caught.value)
    assert "os.system" in str(caught.value)
    assert not (run.parent / "out").exists()


@pytest.mark.parametrize("main", [inference.main, streaming.main])
@pytest.mark.parametrize("is_export", [True, False])
def test_no_command_runs_it(main, is_export, run):
    if not is_export:
        (run / "model.ckpt").unlink()
    path = run / "hyperparams.yaml"
    path.write_text(f"{path.read_text()}\nzz: {PAYLOADS[0]}\n")
    files = ["--csv", "x.csv"] if main is streaming.main else ["x.wav"]
    with pytest.raises(ValueError, match="!apply:os.system is refused"):
        main([str(run), *files])


def test_the_program_says_it_in_a_line(run):
    path = run / "hyperparams.yaml"
    path.write_text(f"{path.read_text()}\nzz: {PAYLOADS[0]}\n")
    command = [sys.executable, str(ROOT / "evaluate.py"), str(run)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"evaluate.py: {path}, line ")
    assert len(done.stderr.splitlines()) == 1


def test_no_picture_runs_it(run, monkeypatch):
    path = run / "hyperparams.yaml"
    path.write_text(f"{path.read_text()}\nzz: {PAYLOADS[0]}\n")
    with pytest.raises(ValueError, match="refused"):
        plot(run, monkeypatch)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_each_payload_is_refused_with_its_line(payload):
    text = f"lr: 1\n\nx: {payload}\n"
    for read in (build, lambda text: check_tags(text, "f")):
        if payload == "!ref <lr.real>" and read is not build:
            continue  # becomes a call of getattr once it is resolved
        with pytest.raises(ValueError, match=r"line \d: .* is refused"):
            read(text)


def test_a_payload_in_parts_is_refused():
    parts = "a: '!!python/object/apply:os.system [touch RAN]'\nx: !ref (<a>)\n"
    with pytest.raises(ValueError, match="refused"):
        build(parts)
    with pytest.raises(ValueError, match="refused"):
        build("x: 1", {"x": "(!!python/object/apply:os.system [touch RAN])"})


def test_a_tag_by_another_handle_is_refused():
    text = "%TAG ! tag:yaml.org,2002:python/\n---\nx: !object/apply:os.system [touch RAN]\n"
    with pytest.raises(ValueError, match="refused"):
        build(text)


@pytest.mark.parametrize(
    "text", ["- 1", "", "a: [", "a: !ref <b>", "a: !new:torch.nn.Linear {b: 1}"]
)
def test_what_is_no_settings_is_one_message(text):
    with pytest.raises(ValueError):
        build(text)


@pytest.mark.parametrize("setting", ["tail_threshold", "sample_rate", "beam_size"])
def test_a_text_among_the_settings_stays_one_in_the_export(setting, run):
    payload = f"0.4\nzz: {PAYLOADS[0]}\nzy: 0"
    settings = YAML().load((run / "hyperparams.yaml").read_text())
    target = settings["searcher"] if setting == "beam_size" else settings
    target[setting] = payload
    with open(run / "hyperparams.yaml", "w") as file:
        YAML().dump(settings, file)
    (run / "model.ckpt").unlink()
    export_run(run, "out")
    exported = read_settings(run.parent / "out/hyperparams.yaml")
    assert exported[setting] == payload
    assert "zz" not in exported


def test_an_epoch_that_is_text_is_not_pasted_into_the_export(run):
    meta = next(run.glob("save/CKPT*/CKPT.yaml"))
    text = re.sub("epoch: 1", f'epoch: "1\\\\nzz: {PAYLOADS[0]}"', meta.read_text())
    meta.write_text(text)
    (meta.parent / "sizes.json").unlink()
    with pytest.raises(ValueError, match="zz"):
        export_run(run, "out")


def test_an_export_is_what_speechbrain_and_we_read(run):
    (run / "model.ckpt").unlink()
    export_run(run, "out")
    text = (run.parent / "out/hyperparams.yaml").read_text()
    ours, theirs = build(text), load_hyperpyyaml(text)
    assert ours["tail_threshold"] == theirs["tail_threshold"] == 0.4
    assert str(ours["model"]) == str(theirs["model"])
    assert theirs["pretrainer"].loadables.keys() == {"model", "tokenizer"}
    assert ours["pretrainer"] is None


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: f"{p.parts[-3]}/{p.name}")
def test_our_own_yamls_are_read(path):
    check_tags(path.read_text(), path)


def test_every_name_on_the_list_is_needed(run):
    (run / "model.ckpt").unlink()
    export_run(run, "out", decoding={"beam_size": 2, "ctc_weight_decode": 0.5})
    texts = [p.read_text() for p in YAMLS]
    texts.append((run.parent / "out/hyperparams.yaml").read_text())
    used = set(re.findall(r"!(?:new|name|apply):([\w.]+)", "\n".join(texts)))
    assert used == CLASSES | SKIPPED


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: f"{p.parts[-3]}/{p.name}")
def test_values_are_those_of_hyperpyyaml(path, tmp_path):
    """Of all that is no object; what needs a teacher or another run is filled in."""
    text = path.read_text().replace("!PLACEHOLDER", "x")
    plain = io.StringIO()
    settings = YAML().load(resolve_references(text).getvalue())
    kept = {k: v for k, v in settings.items() if "!" not in dumped(v)}
    YAML().dump(kept, plain)
    assert build(text, only=kept) == load_hyperpyyaml(plain.getvalue())


def dumped(value):
    stream = io.StringIO()
    YAML().dump({"value": value}, stream)
    return stream.getvalue()


def test_a_vocabulary_that_leads_elsewhere_is_not_exported(run, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("a\nb\n")
    (run / "chars_8.txt").unlink()
    (run / "chars_8.txt").symlink_to(secret)
    (run / "model.ckpt").unlink()
    with pytest.raises(ValueError, match="outside of the folder"):
        export_run(run, "out")
    with pytest.raises(ValueError, match="outside of the folder"):
        load_run(run)
    shutil.copy(secret, run / "copy")
    (run / "chars_8.txt").unlink()
    (run / "chars_8.txt").symlink_to(run / "copy")
    export_run(run, "out")


def test_scoring_makes_no_folder_where_the_run_was_trained(run, tmp_path):
    (run / "model.ckpt").unlink()
    moved = tmp_path / "elsewhere"
    shutil.move(run, moved)
    load_run(moved)
    assert not run.exists()
    assert SafeCheckpointer(moved / "save").list_checkpoints()


@pytest.mark.parametrize("payload", ["!new:their.own.Loss {weight: 1}", *PAYLOADS])
@pytest.mark.parametrize("key", ["distillation", '"distil\\x6Cation"'])
def test_losses_against_a_teacher_are_not_even_looked_at(payload, key):
    """Recognition needs none; a tool that does may be shown ours."""
    text = f"lr: 1\n{key}:\n- {payload}\nx: !ref <lr>\n"
    assert build(text) == {"lr": 1, "x": 1}
    with pytest.raises(ValueError, match="refused"):
        build(text, teacher=True)


@pytest.mark.parametrize(
    "text, message",
    [
        ("distillation: &a [!new:their.Loss {}]\nx: *a", "line 1: !new:their.Loss is"),
        ("distillation: []\ndistillation: [!new:their.Loss {}]", "is not valid YAML"),
        ("distillation: []\nx: !ref <distillation>", '"distillation" is not valid'),
        ("{distillation: [], x: {distillation: !new:their.Loss {}}}", "is refused"),
        ("!new:their.Loss\ndistillation: []", "is refused"),
        ("!new:their.Loss distillation: []", "is refused"),
        ("? [distillation]\n: !new:their.Loss {}", "is refused"),
    ],
)
def test_nothing_comes_in_by_way_of_them(text, message):
    with pytest.raises(ValueError, match=message):
        build(text)
