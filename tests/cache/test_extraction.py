"""extract_teacher.py from manifest to cache: build, inspect, verify, and kills."""

import multiprocessing
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
import time

import h5py
import pytest
import torch
import tqdm.auto
import yaml
from tiny_cache import change_states
from tiny_teacher import make_teacher

from cif_lobes.cache import extraction
from cif_lobes.cache.reader import TeacherCache
from cif_lobes.cache.text_states import TextStates
from cif_lobes.commands import extract
from cif_lobes.data.manifest import Utterance, write_manifest
from cif_lobes.data.text import normalize
from cif_lobes.losses.regression import regression_distillation
from cif_lobes.teachers.text import TextTeacher

ROOT = pathlib.Path(__file__).parents[2]
TEXTS = ["今天天气好", "买房吗", "城市的电视", "买 iPhone 吗", "今天天气好", "ＴＶ"]
YAML = """# Teacher states.
teacher: {folder}/teacher  # folder
layer: -1  # layer, any integer, or a list of them
dtype: float16  # in the file
batch_tokens: {batch_tokens}  # pieces
device: cpu  # cpu or cuda
manifests: [{folder}/train.csv]  # csv files
cache: {folder}/bert.h5  # file
overwrite: False  # replace
language: zh  # zh or en
tokenizer: !new:cif_lobes.data.tokens.CharTokenizer
    path: {folder}/chars.txt
    vocab_size: 60
    language: !ref <language>
"""


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    return make_teacher(tmp_path_factory.mktemp("teacher"))


def write_texts(folder, texts, name="train.csv"):
    (folder / "a.wav").touch()
    rows = [
        Utterance(f"u{i:04d}", 1.0, str(folder / "a.wav"), "s", text)
        for i, text in enumerate(texts)
    ]
    write_manifest(folder / name, rows)


@pytest.fixture
def folder(tmp_path, teacher_folder):
    """A corpus, a teacher and a yaml."""
    (tmp_path / "teacher").symlink_to(teacher_folder)
    write_texts(tmp_path, TEXTS)
    (tmp_path / "extract.yaml").write_text(
        YAML.format(folder=tmp_path, batch_tokens=16), encoding="utf-8"
    )
    return tmp_path


def run(folder, verb="build", **overrides):
    overrides = yaml.safe_dump(overrides) if overrides else ""
    extraction.run(verb, str(folder / "extract.yaml"), None, overrides)


def hidden_states(folder, text, layer=-1):
    teacher = TextTeacher(folder / "teacher")
    inputs = teacher.tokenizer(text, return_tensors="pt")
    outputs = teacher.encoder(**inputs, output_hidden_states=True)
    return outputs.hidden_states[layer][0, 1:]


def test_the_cache_holds_the_teachers_states_of_normalised_text(folder, capsys):
    run(folder)
    assert "6 utterances, 5 distinct texts" in capsys.readouterr().out
    cache = TeacherCache(folder / "bert.h5")
    normalized = [
        "今天天气好",
        "买房吗",
        "城市的电视",
        "买iphone吗",
        "今天天气好",
        "tv",
    ]
    for utt_id, text in zip(cache, normalized, strict=True):
        assert len(cache[utt_id]) == len(text) + 1
    expected = hidden_states(folder, "城市的电视")
    torch.testing.assert_close(cache["u0002"].float(), expected, atol=2e-3, rtol=1e-3)
    made = cache.attributes
    assert made["layer"] == 3 and made["text_normalization"] == "zh"
    assert made["teacher"].endswith("/teacher") and "transformers" in made["versions"]
    assert os.path.exists(folder / "chars.txt")


def test_a_second_build_finds_nothing_to_do(folder, capsys):
    run(folder)
    before = os.stat(folder / "bert.h5")
    write_texts(folder, TEXTS[:4])  # part of what the cache has
    run(folder)
    assert "is up to date" in capsys.readouterr().out
    assert os.stat(folder / "bert.h5").st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"layer": 2}, "layer is 3, expected 2"),
        ({"dtype": "bfloat16"}, "dtype is 'float16', expected 'bfloat16'"),
    ],
)
def test_another_cache_is_replaced_only_on_demand(folder, overrides, message):
    run(folder)
    with pytest.raises(ValueError, match=f"{message}.*--overwrite True"):
        run(folder, **overrides)
    run(folder, overwrite=True, **overrides)
    name, value = next(iter(overrides.items()))
    assert TeacherCache(folder / "bert.h5").attributes[name] == value


def test_a_changed_manifest_tokenizer_or_teacher_is_noticed(folder, tmp_path):
    run(folder)
    write_texts(folder, [*TEXTS, "好"])
    with pytest.raises(ValueError, match=r"6 of 7 utterances \(1 missing, first u0006"):
        run(folder)
    write_texts(folder, ["好", *TEXTS[1:]])
    with pytest.raises(ValueError, match="1 of 6 transcripts differ .*first u0000"):
        run(folder, "verify")
    write_texts(folder, TEXTS)
    (folder / "chars.txt").write_text("今\n", encoding="utf-8")
    with pytest.raises(ValueError, match="tokenizer_fingerprint is"):
        run(folder)
    (folder / "chars.txt").unlink()
    (folder / "teacher").unlink()
    make_teacher(folder / "teacher", seed=1)
    with pytest.raises(ValueError, match="teacher_weights is"):
        run(folder)


def test_a_teacher_that_knows_no_word_is_refused(folder):
    write_texts(folder, ["今天", "the dog", "a"])
    message = r"2 of 5 pieces .*40.00%\) .*unknown token, as in 'a' \(utterance u0002\)"
    with pytest.raises(ValueError, match=f"{message}; at most 5% may be. Take a teach"):
        run(folder, language="en")
    assert not (folder / "bert.h5").exists()


def test_a_few_unknown_pieces_are_reported(folder, capsys):
    write_texts(folder, ["今天天气好" * 10, "龘"])
    run(folder)
    assert "1 of 51 pieces of the transcripts (1.96%)" in capsys.readouterr().out
    assert len(TeacherCache(folder / "bert.h5")) == 2


def test_ids_must_be_unique_over_all_manifests(folder):
    write_texts(folder, ["好"], "more.csv")
    manifests = [str(folder / "train.csv"), str(folder / "more.csv")]
    with pytest.raises(ValueError, match="u0000 is '今天天气好' in one .* '好' in"):
        run(folder, manifests=manifests)


@pytest.mark.parametrize("layer", [-1, [1, 3]])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_verify_accepts_what_build_made(folder, capsys, layer, dtype):
    run(folder, layer=layer, dtype=dtype)
    run(folder, "verify", layer=layer, dtype=dtype)
    assert "6 of 6 utterances; all read; 5 computed again" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [1.0, float("nan")])
def test_verify_finds_a_wrong_state(folder, wrong):
    """Not what the teacher says, though the file is sound."""
    run(folder)

    def change(values):
        values[-1] += wrong
        return values

    change_states(folder / "bert.h5", change)
    with pytest.raises(ValueError, match="a state of utterance u0.*at most .*rounding"):
        run(folder, "verify")


def test_verify_reads_what_it_does_not_compute_again(folder, monkeypatch):
    run(folder)
    monkeypatch.setattr(TextStates, "sample", 1)
    with h5py.File(folder / "bert.h5", "a") as file:
        file["values"][...] += 1
    with pytest.raises(OSError, match="are not those that were written"):
        run(folder, "verify")


@pytest.mark.parametrize("layer", [0, [0, 3]])
def test_inspect_shows_what_the_states_are_worth(folder, capsys, layer):
    run(folder, layer=layer)
    capsys.readouterr()
    run(folder, "inspect")
    shown = capsys.readouterr().out
    for piece in (
        f"layer     {layer}\n",
        "6 of 6 utterances of the manifests; 6 utterances in the cache, 5 distinct",
        "x 16 float16",
        "Nearest other tokens",
        "\n  u0002  城市的电视\n    城:  ",
    ):
        assert piece in shown
    assert layer == [0, 3] or "collapsed" not in shown


@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_the_index_is_read_once(folder, monkeypatch, verb):
    run(folder)
    read, times = TeacherCache._read_index, []
    monkeypatch.setattr(
        TeacherCache, "_read_index", lambda cache: times.append(1) or read(cache)
    )
    run(folder, verb)
    assert len(times) == 1


def test_inspect_says_what_regression_costs_without_learning(folder, capsys):
    """The printed variance is the l2 loss of a student that says the mean."""
    run(folder, layer=[0, 3])
    capsys.readouterr()
    run(folder, "inspect")
    printed = re.findall(r"variance +([\d.]+)", capsys.readouterr().out)
    cache = TeacherCache(folder / "bert.h5")
    states = torch.cat([cache[utt_id].float() for utt_id in cache])[None]
    mask = torch.ones(states.shape[:2], dtype=torch.bool)
    mean = cache.mean.expand_as(states)
    for i, shown in enumerate(printed):
        loss = regression_distillation(mean[:, :, i], states[:, :, i], mask, "l2")
        assert float(shown) == pytest.approx(loss.item() / mask.sum().item(), abs=0.06)
    assert len(printed) == 2


def test_inspect_says_when_all_states_look_alike(folder, capsys):
    run(folder, layer=0)
    change_states(folder / "bert.h5", lambda values: values + 20)
    run(folder, "inspect")
    assert "nearly collapsed: centre" in capsys.readouterr().out


def test_inspect_of_a_foreign_cache_says_so(folder, capsys):
    run(folder)
    write_texts(folder, ["好"] * 7)
    run(folder, "inspect")
    shown = capsys.readouterr().out
    assert "PROBLEM   6 of 7 utterances (1 missing" in shown
    assert "PROBLEM   6 of 7 transcripts differ" in shown
    assert "The tokens are not shown" in shown


# --- being killed ---


def many_texts(count):
    """Distinct texts of 1 to 30 characters."""
    rng = random.Random(0)
    texts = set()
    while len(texts) < count:
        texts.add(
            "".join(rng.choices("今天气好买房吗城市的电视一二三", k=rng.randint(1, 30)))
        )
    return sorted(texts)


def build_quietly(folder):
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    # Killed while it draws a bar, it would take the lock of all that forked with it along.
    for bar in (tqdm.std.tqdm, tqdm.auto.tqdm):
        bar.set_lock(threading.RLock())
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    run(folder)


def assert_equal_caches(first, second):
    assert list(first) == list(second)
    for utt_id in first:
        torch.testing.assert_close(first[utt_id], second[utt_id], atol=1e-3, rtol=1e-3)


def test_a_build_killed_again_and_again_becomes_the_same_cache(folder):
    write_texts(folder, many_texts(80))
    started = time.monotonic()
    run(folder, cache=str(folder / "complete.h5"))
    duration = time.monotonic() - started
    rng = random.Random(0)
    fork = multiprocessing.get_context("fork")
    for moment in [duration * rng.uniform(0.1, 0.6) for _ in range(6)] + [60]:
        child = fork.Process(target=build_quietly, args=[folder])
        child.start()
        child.join(moment)
        child.kill()
        child.join(60)
        assert child.exitcode in (0, -signal.SIGKILL)
    assert child.exitcode == 0
    complete = TeacherCache(folder / "complete.h5")
    assert_equal_caches(TeacherCache(folder / "bert.h5"), complete)


def test_ctrl_c_says_how_to_go_on(folder, monkeypatch):
    forward = TextTeacher.forward

    def interrupt(teacher, texts):
        if any(a.text == "买房吗" for a in texts):
            raise KeyboardInterrupt
        return forward(teacher, texts)

    monkeypatch.setattr(TextTeacher, "forward", interrupt)
    monkeypatch.setattr(sys, "argv", ["extract_teacher.py", "extract.yaml"])
    with pytest.raises(SystemExit, match=r"2 of 5 texts are kept.*\n.*extract.yaml"):
        run(folder)
    monkeypatch.setattr(TextTeacher, "forward", forward)
    header, *rows = (folder / "train.csv").read_text(encoding="utf-8").splitlines()
    lines = "\n".join([header, *reversed(rows)])  # the order of rows does not matter
    (folder / "train.csv").write_text(lines, encoding="utf-8")
    run(folder)
    assert len(TeacherCache(folder / "bert.h5")) == 6


@pytest.mark.parametrize("verb", ["build", "inspect", "verify"])
def test_the_verb_comes_first_and_may_be_left_out(folder, monkeypatch, verb):
    calls = []
    monkeypatch.setattr(extraction, "run", lambda *arguments: calls.append(arguments))
    arguments = [str(folder / "extract.yaml"), "--layer", "[4, 8]"]
    extract.main([verb, *arguments])
    assert calls[0][:2] == (verb, arguments[0]) and "layer: [4, 8]" in calls[0][3]
    if verb == "build":
        extract.main(arguments)
        assert calls[1] == calls[0]


@pytest.mark.slow
def test_the_script_killed_and_started_again(folder):
    write_texts(folder, many_texts(2000))
    command = [sys.executable, "extract_teacher.py", str(folder / "extract.yaml")]
    command += ["--batch_tokens", "200"]
    options = {"cwd": ROOT, "stderr": subprocess.DEVNULL}
    partial = folder / "bert.h5.partial"
    for wait in (0.1, 0.5):
        process = subprocess.Popen(command, **options)
        while not partial.exists() and process.poll() is None:
            time.sleep(0.02)
        time.sleep(wait)
        process.kill()
        process.wait()
    assert subprocess.run(command, **options).returncode == 0
    assert len(TeacherCache(folder / "bert.h5")) == 2000
    run(folder, "verify")


def test_a_dry_run_counts_and_writes_nothing(folder, capsys):
    texts = [f"{text}{TEXTS[i % 6]}"[: 1 + i % 9] for i in range(60) for text in TEXTS]
    write_texts(folder, texts)
    before = sorted(folder.rglob("*"))
    dry = {"dry_run": True}
    extraction.run("build", str(folder / "extract.yaml"), dry, "")
    assert sorted(folder.rglob("*")) == before
    said = capsys.readouterr().out
    assert "no cache was written" in said and "to compute   0:00:" in said
    counts = re.search(r"bert.h5   (\d+) texts, ([\d,]+) tokens", said)
    run(folder)
    assert f"{counts[1]} distinct texts" in capsys.readouterr().out
    cache = TeacherCache(folder / "bert.h5")
    lengths = {
        normalize(text, "zh"): len(cache[f"u{i:04d}"]) for i, text in enumerate(texts)
    }
    assert int(counts[1]) == len(lengths)
    assert int(counts[2].replace(",", "")) == sum(lengths.values())
    with pytest.raises(ValueError, match="verify writes nothing anyway"):
        extraction.run("verify", str(folder / "extract.yaml"), dry, "")
