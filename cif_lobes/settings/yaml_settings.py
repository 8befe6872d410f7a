"""The settings of a HyperPyYAML file with their comments; nothing in it is built."""

import re
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

# Around the text of "# --- section ---" or "# #### section ####".
DECORATION = re.compile(r"^[\s#=*-]+|[\s#=*-]+$")

# Tags of values that are written out in the yaml; any other "!" tag builds an object.
VALUE_TAGS = ("!ref", "!copy", "!tuple", "!PLACEHOLDER")


@dataclass(frozen=True)
class Setting:
    """One top-level entry of a HyperPyYAML file."""

    key: str
    value_text: str | None  # as written, on one line; None for objects and mappings
    comment: str  # behind the value, or right above the key
    section: str = ""  # the comment that opens its section, without decoration
    required: bool = False  # the value is !PLACEHOLDER


def yaml_settings(path):
    """Top-level settings of a HyperPyYAML file, in its order, with their comments.

    A comment block after a blank line opens a section; comment lines right under
    another setting belong to the setting below them.

    Arguments
    ---------
    path : str or Path
        The yaml. Nothing in it is built, so its objects need not be importable.

    Returns
    -------
    settings : list of Setting

    Raises
    ------
    ruamel.yaml.error.YAMLError
        If the file is not valid YAML.

    Example
    -------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "cif.yaml")
    >>> _ = path.write_text("lr: 3.0e-4  # peak learning rate")
    >>> [(s.key, s.value_text, s.comment) for s in yaml_settings(path)]
    [('lr', '3.0e-4', 'peak learning rate')]
    """
    text = Path(path).read_text(encoding="utf-8")
    lines = text.split("\n")
    settings, section = [], ""
    for key, value in compose(text).value:
        line = key.start_mark.line
        start = _comment_start(lines, line)
        above = " ".join(DECORATION.sub("", x) for x in lines[start:line]).strip()
        if start == 0:  # the header of the file
            above = ""
        elif above and not lines[start - 1].strip():
            section, above = above, ""
        comment = f"{above} {_comment_behind(text, key, value)}".strip()
        required = value.tag == "!PLACEHOLDER"
        value_text = _value_text(text, value)
        settings.append(Setting(key.value, value_text, comment, section, required))
    return settings


def compose(text):
    """Nodes of a YAML 1.2 text, the version in which HyperPyYAML reads overrides.

    Arguments
    ---------
    text : str

    Returns
    -------
    ruamel.yaml.nodes.Node
    """
    return YAML(typ="safe", pure=True).compose(text)


def _comment_start(lines, end):
    """First of the comment lines that end right above line ``end``."""
    while end > 0 and lines[end - 1].startswith("#"):
        end -= 1
    return end


def _source(text, node):
    return text[node.start_mark.index : node.end_mark.index]


def _value_text(text, node):
    """A value as written, on one line; None for mappings and objects."""
    if node.id == "mapping" or node.tag[0] == "!" and node.tag not in VALUE_TAGS:
        return None
    if node.id == "sequence":
        items = [_value_text(text, item) for item in node.value]
        return None if None in items else f"[{', '.join(items)}]"
    return " ".join(_source(text, node).split()) or "null"


def _comment_behind(text, key, value):
    """Comment on the line of a setting and on the indented comment lines below it."""
    # An empty value and a block end further down; their comment is behind the key.
    inline = _source(text, value) and getattr(value, "flow_style", True)
    end = (value if inline else key).end_mark.index
    match = re.compile(r"[^#\n]*#(.*(?:\n[ \t]+#.*)*)").match(text, end)
    return " ".join(re.sub(r"\n\s*#", " ", match[1]).split()) if match else ""


def header(path):
    """The comment that opens a yaml, without its ``#``."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    key = next(i for i, line in enumerate(lines) if line.strip() and line[0] != "#")
    # The block right above the first key is a section's, unless it is the only one.
    header = "\n".join(lines[: _comment_start(lines, key) or key]).strip()
    return re.sub(r"^# ?", "", header, flags=re.MULTILINE)
