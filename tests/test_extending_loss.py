"""docs/extending.md, "A loss of your own": its code trains, and is not needed afterwards."""

import json
import os
import re

import pytest
from conftest import ROOT, last_checkpoint, load_module, tiny_arguments, train
from loss_contract import WIDTH, check_contract
from programs import run_python
from tiny_cache import make_cache

YAML = ROOT / "recipes/AISHELL-1/hparams/cif_mini_hieradist.yaml"
PAGE = (ROOT / "docs/extending.md").read_text()
SECTION = PAGE.split("## A loss of your own\n")[1].split("\n## ")[0]


def blocks(language):
    """The section's code in a language."""
    return re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folder with the page's two files."""
    folder = tmp_path_factory.mktemp("own")
    (code,) = blocks("python")
    (folder / "relations.py").write_text(code)
    setting, item = blocks("yaml")
    copy, command = blocks("bash")
    assert copy == f"cp {YAML.relative_to(ROOT)} my.yaml\n" and " my.yaml " in command
    text = YAML.read_text()
    text = text.replace("\ncentre_teacher:", f"\n{setting}centre_teacher:")
    text = re.sub(r"(    - !new:\S+\.LRD .*\n)", rf"\1{item}", text)
    (folder / "my.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def taught(corpus, written):
    """Run folder of a training by that loss alone."""
    arguments = [*own_arguments(corpus, written), "--number_of_epochs", "6"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(written), prepend=os.pathsep)
        train(arguments)
    return written / "run"


def own_arguments(corpus, folder, **changes):
    manifests = folder / "teacher"
    if not manifests.exists():
        manifests.mkdir()
        make_cache(corpus, manifests, 12)
    settings = {
        "teacher_cache": manifests / "teacher.h5",
        "manifest_folder": manifests,
        "acd_weight": 0,
        "lrd_weight": 0,
        **changes,
    }
    words = tiny_arguments(corpus, folder, **settings)
    return [str(folder / "my.yaml"), *words[1:]]


def test_it_is_short_and_keeps_what_all_promise(written):
    (code,) = blocks("python")
    cls = code[code.index("class ") :]
    assert len(cls.splitlines()) <= 30
    relations = load_module(written / "relations.py")
    for shape in ((WIDTH,), (3, WIDTH)):
        check_contract(lambda: relations.Relations(1), shape)


def test_it_falls(taught):
    rows = [json.loads(line) for line in (taught / "epochs.jsonl").open()]
    values = [row["train"]["losses"]["relations"]["value"] for row in rows]
    assert values[-1] < 0.8 * values[0]
    assert set(rows[0]["train"]["losses"]) == {"ce", "quantity", "ctc", "relations"}
    heads = {n for n in last_checkpoint(taught) if n.startswith("distillation")}
    assert {name.split(".")[1] for name in heads} == {"relations"}


def test_nothing_is_built_if_it_weighs_nothing(corpus, written, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(written), prepend=os.pathsep)
    changes = {"output_folder": written / "none", "number_of_epochs": 1}
    changes |= {"relations_weight": 0, "teacher_cache": written / "gone.h5"}
    train(own_arguments(corpus, written, **changes))
    names = last_checkpoint(written / "none")
    assert not [name for name in names if name.startswith("distillation")]


def test_the_run_is_scored_without_it(taught, corpus):
    wav = next(corpus[1].parent.glob("utt2-*.flac"))
    for command in (
        ["evaluate.py", str(taught), "--split", "set2"],
        ["-m", "cif_lobes.inference", str(taught), str(wav)],
    ):
        run_python(command)
