"""Every yaml loads, describes its settings, and differs from its base as it says."""

import io
import itertools
import pathlib
import re
from collections import Counter

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML

from cif_lobes.settings.yaml_settings import yaml_settings
from cif_lobes.storage.checkpoints import SafeCheckpointer

ROOT = pathlib.Path(__file__).parents[2]
YAMLS = sorted(ROOT.glob("recipes/*/hparams/*.yaml"))
TRAINING = [path for path in YAMLS if not path.name.startswith("extract")]
SMALL = {"d_model": 16, "d_ffn": 16, "encoder_layers": 1, "pool_after": [1]}
SMALL |= {"nhead": 4, "decoder_layers": 1, "conv_channels": 2, "vocab_size": 20}


def name(path):
    """Recipe and file, for the test's name."""
    return str(path.relative_to(ROOT / "recipes"))


def settings(path):
    """Top-level entries as plain text, objects included."""
    node = YAML(typ="rt").load(path.read_text())
    dumped = YAML()
    dumped.width = 10**6
    return {key: _text(dumped, value) for key, value in node.items()}


def _text(dumper, value):
    stream = io.StringIO()
    dumper.dump({"value": value}, stream)
    # Behind a list at the end of a section hangs the title of the next.
    return re.sub(r"\s*#.*", "", stream.getvalue()).strip()


@pytest.mark.parametrize("path", TRAINING, ids=name)
def test_it_loads(path, tmp_path):
    """With the placeholders filled in, every object can be made."""
    keys = yaml_settings(path)
    values = {s.key: "x" for s in keys if s.required}
    values |= {s.key: SMALL[s.key] for s in keys if s.key in SMALL}
    with open(path) as file:
        hparams = load_hyperpyyaml(file, {**values, "output_folder": str(tmp_path)})
    assert all(isinstance(m, torch.nn.Module) for m in hparams["modules"].values())
    assert isinstance(hparams["checkpointer"], SafeCheckpointer)


@pytest.mark.parametrize("path", YAMLS, ids=name)
def test_every_setting_is_explained(path):
    silent = [
        s.key for s in yaml_settings(path) if s.value_text is not None and not s.comment
    ]
    assert [key for key in silent if not key.startswith("__")] == []


@pytest.mark.parametrize("path", YAMLS, ids=name)
def test_it_is_in_the_table_of_its_recipe(path):
    page = (path.parents[1] / "README.md").read_text(encoding="utf-8")
    table = page.split("\n## Yamls\n")[1].split("\n## ")[0]
    assert f"[`{path.stem}`](hparams/{path.name})" in table


@pytest.mark.parametrize("path", YAMLS, ids=name)
def test_it_opens_with_its_command(path):
    head = path.read_text().split("\n\n")[0]
    assert f"#   python {'recipes' if path in TRAINING else 'extract_teacher'}" in head
    assert len(path.read_text().splitlines()) <= 200


def variants():
    """(yaml, base, declared differences) of every "Same as" header.

    A base is of the same folder, or named from recipes/ on.
    """
    for path in YAMLS:
        head = path.read_text().split("\n\n")[0].replace("\n#", "")
        declared = re.search(r"Same as (\S+) except: ([\w, ]+)\.", head)
        if declared:
            folder = ROOT / "recipes" if "/" in declared[1] else path.parent
            differing = set(declared[2].split(", "))
            yield pytest.param(path, folder / declared[1], differing, id=name(path))


@pytest.mark.parametrize("path, base, declared", variants())
def test_a_variant_differs_as_it_says(path, base, declared):
    ours, theirs = settings(path), settings(base)
    differing = {k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)}
    order = [*ours, *(key for key in theirs if key not in ours)]
    header = ", ".join(key for key in order if key in differing)
    assert differing == declared, f"Same as {name(base)} except: {header}."


# Corpora are told apart by what stands in their folders.
NAMED_BY_CORPUS = {"data_folder"}


@pytest.mark.parametrize("path, base, declared", variants())
def test_equal_settings_are_explained_alike(path, base, declared):
    ours, theirs = ({s.key: s.comment for s in yaml_settings(p)} for p in (path, base))
    named = NAMED_BY_CORPUS if path.parent != base.parent else set()
    shared = (ours.keys() & theirs.keys()) - declared - named
    assert {k: ours[k] for k in shared} == {k: theirs[k] for k in shared}


def lines_of(path):
    """How often each line occurs below the header."""
    body = path.read_text().split("\n\n", 1)[1]
    return Counter(line.strip() for line in body.splitlines() if line.strip())


def test_yamls_that_are_much_alike_say_so():
    """Of two that share 80 % of their lines, headers lead from one to the other."""
    family = {path: {path} for path in YAMLS}
    for path, base, _ in (variant.values for variant in variants()):
        joined = family[path] | family[base]
        family |= dict.fromkeys(joined, joined)
    lines = {path: lines_of(path) for path in YAMLS}
    unlinked = []
    for a, b in itertools.combinations(YAMLS, 2):
        shared = 2 * (lines[a] & lines[b]).total()
        share = shared / (lines[a] + lines[b]).total()
        if share > 0.8 and b not in family[a]:
            unlinked.append(f"{name(a)} and {name(b)}: {share:.0%}")
    assert not unlinked


def test_no_header_is_overlooked():
    """Written otherwise, one would be no variant, and would not be checked."""
    assert len(list(variants())) == 50
    written = [path for path in YAMLS if "Same as" in path.read_text()]
    assert len(written) == 50
