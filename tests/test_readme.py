"""Every command of README and docs runs, on a tiny corpus where it names a large one."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import soundfile
from conftest import PITCH, ROOT, TINY, speak, write_corpus
from programs import run_python
from tiny_ears import make_folder
from tiny_hubert import make_hubert
from tiny_llm import make_llm
from tiny_teacher import make_teacher

# In the order in which a reader types them: what a page needs, those before it have made.
PAGES = ["README.md", "docs/train.md", "docs/own_recordings.md", "docs/recognise.md"]
PAGES += ["docs/report.md", "docs/context.md", "docs/language_models.md"]
# Run by tests of their own: test_extending*.py, test_serve_api.py.
ELSEWHERE = {"docs/extending.md", "docs/serve.md"}
EVERY_PAGE = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "docs/*/*.md", "recipes/*/*.md")
    for path in ROOT.glob(pattern)
)


def commands(page):
    """The lines of a page's bash blocks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def anchors(page):
    """What a link to a page may have behind its #."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]


def test_the_readme_is_read_in_minutes():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200


def test_no_page_of_docs_with_commands_is_left_out():
    pages = [p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/*.md")]
    assert {page for page in pages if commands(page)} <= {*PAGES, *ELSEWHERE}


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = [c.split()[1] for c in commands("README.md") if c.startswith("make ")]
    assert "quickstart" in targets
    for target in [*targets, "test", "lint", "setup"]:
        assert f"\n{target}:" in makefile


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def aishell(folder):
    """AISHELL-1's layout with tones for characters."""
    transcript = folder / "data_aishell/transcript/aishell_transcript_v0.8.txt"
    transcript.parent.mkdir(parents=True)
    lines = []
    for number, split in enumerate(("train", "dev", "test")):
        speaker = f"S{number:04d}"
        wavs = folder / "data_aishell/wav" / split / speaker
        wavs.mkdir(parents=True)
        for i in range(8):
            name, text = f"BAC009{speaker}W{i:04d}", "abcd"[i % 4] * (2 + i % 3)
            soundfile.write(wavs / f"{name}.wav", speak(text), 16000)
            lines.append(f"{name} {' '.join(text)}\n")
    transcript.write_text("".join(lines))


def librispeech(folder):
    """LibriSpeech's layout with tones for letters."""
    splits = "train-clean-100 train-clean-360 train-other-500 dev-clean dev-other"
    for number, split in enumerate([*splits.split(), "test-clean", "test-other"]):
        chapter = folder / split / f"{number}" / "1"
        chapter.mkdir(parents=True)
        lines = []
        for i in range(6):
            name, text = f"{number}-1-{i:04d}", list(PITCH)[i % 4] * (2 + i % 3)
            soundfile.write(chapter / f"{name}.flac", speak(text), 16000)
            lines.append(f"{name} {text.upper()}\n")
        (chapter / f"{number}-1.trans.txt").write_text("".join(lines))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder in which the pages' paths mean something small."""
    place = tmp_path_factory.mktemp("readme")
    aishell(place / "data/aishell")
    librispeech(place / "data/LibriSpeech")
    pieces = [f"{mark}{letter}" for mark in ("", "##") for letter in PITCH]
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    for name in ("bert-base-chinese", "bert-base-uncased", "my-bert"):
        make_teacher(place / "models" / name, width=16, vocab=[*specials, *pieces])
    make_hubert(place / "models/hubert-base-ls960")
    make_llm(place / "models/qwen", "llama")
    make_folder("whisper", place / "models/whisper-base")
    for name, seed in (("train", 1), ("dev", 2), ("test", 3)):
        shutil.move(write_corpus(place / "my", 8, seed), place / f"my/{name}.csv")
    soundfile.write(place / "my/speech.wav", speak("abcd"), 16000)
    (place / "my/names.txt").write_text("abc\ndd\n")
    return place


def ears_of(place):
    """Settings of tiny pretrained ears in the place of Whisper-base."""
    return {"ears": place / "models/whisper-base", "ears_layers": "[3]"}


def in_place(command, place):
    """The command as typed, with large things replaced by small ones."""
    for folder in ("/data/", "/models/"):
        command = command.replace(f" {folder}", f" {place}{folder}")
    words = shlex.split(command)
    words = [str(ROOT / w) if (ROOT / w).is_file() else w for w in words]
    if words[0] == "python":
        words[0] = sys.executable
    elif words[0] == "cif-transcribe":
        words[:1] = [sys.executable, "-m", "cif_lobes.inference"]
    elif words[0] == "torchrun":
        words[:1] = [sys.executable, "-m", "torch.distributed.run"]
        words += ["--distributed_backend", "gloo"]
    if any(w.endswith("train.py") for w in words) and "--help" not in words:
        settings = {**TINY, "number_of_epochs": 1, "device": "cpu", "vocab_size": 12}
        if "cif_fithubert" in command:
            del settings["n_mels"], settings["conv_channels"]
        if "ears_cache" in command:
            for name in ("n_mels", "conv_channels", "pool_after"):
                del settings[name]
            settings |= {
                **ears_of(place),
                "ears_width": 32,
                "ears_folder": place / "ears",
            }
        words += [p for k, v in settings.items() for p in (f"--{k}", str(v))]
    if any(w.endswith("train_lm.py") for w in words):
        words += "--vocab_size 12 --d_model 16 --num_layers 1 --d_ffn 16".split()
        words += "--number_of_epochs 1 --device cpu".split()
    if any(w.endswith("train_coldec.py") for w in words):
        words += "--vocab_size 12 --vector_size 32 --d_model 32 --nhead 2".split()
        words += "--d_ffn 64 --number_of_epochs 1 --device cpu".split()
    if any(w.endswith("train_llm.py") for w in words):
        words += "--llm_width 32 --cif_width 32 --d_ffn 32 --device cpu".split()
        words += ["--number_of_epochs", "1", "--prompt", "S:{speech}T:"]
    if "extract_ears" in command:
        words += [
            part for k, v in ears_of(place).items() for part in (f"--{k}", str(v))
        ]
    elif "extract_teacher.py" in command:
        words += ["--vocab_size", "12"]
    if "train_fithubert.py" in command:
        words += ["--teacher_width", "16", "--number_of_epochs", "1"]
    return words


@pytest.mark.slow
def test_commands_run_in_order(place):
    """As a user starts them: each program cold, and warm where it is asked again."""
    environment, started = {"PYTHONPATH": str(ROOT)}, set()
    # What a later page repeats is typed once.
    typed = dict.fromkeys(command for page in PAGES for command in commands(page))
    scripts = [c for c in typed if not c.startswith(("make ", "source "))]
    assert len(scripts) >= 30
    for command in scripts:
        words = in_place(command, place)
        program = tuple(words[: 3 if words[1] == "-m" else 2])
        if program in started and words[0] == sys.executable:
            done = run_python(words[1:], check=False, cwd=place, env=environment)
        else:
            done = subprocess.run(
                words,
                cwd=place,
                env={**os.environ, **environment},
                capture_output=True,
                text=True,
            )
        started.add(program)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (place / "fires.png").stat().st_size > 10_000
    assert (place / "my_fires.png").stat().st_size > 10_000
