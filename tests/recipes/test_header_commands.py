"""The commands in the yamls' headers name settings that exist, and all that are needed."""

import pathlib
import re
import shlex

import pytest

from cif_lobes.settings.yaml_settings import yaml_settings

ROOT = pathlib.Path(__file__).parents[2]
COMMANDS = [
    pytest.param(words, id=f"{path.parent.parent.name}/{path.stem}-{number}")
    for path in sorted(ROOT.glob("recipes/*/hparams/*.yaml"))
    for number, line in enumerate(
        re.findall(r"^#   (.*hparams/.*)$", path.read_text(), re.MULTILINE)
    )
    for words in [shlex.split(line)]
]


def test_headers_have_commands():
    assert len(COMMANDS) > 80


@pytest.mark.parametrize("words", COMMANDS)
def test_header_command_is_complete(words):
    program = next(w for w in words if w.endswith(".py"))
    yaml = next(w for w in words if w.endswith(".yaml"))
    assert (ROOT / program).is_file()
    assert (ROOT / yaml).is_file()
    settings = {s.key: s for s in yaml_settings(ROOT / yaml)}
    after = words[words.index(yaml) :]
    typed = {w.removeprefix("--").split("=")[0] for w in after if w.startswith("--")}
    assert typed <= set(settings)
    missing = {key for key, setting in settings.items() if setting.required} - typed
    # Without a corpus there are the csv files, which then are settings to fill in.
    folder = settings.get("data_folder")
    if folder and folder.value_text == "null" and "skip_prep" in settings:
        if settings["skip_prep"].value_text == "False" and "skip_prep" not in typed:
            missing |= {"data_folder"} - typed
    assert missing == set()
