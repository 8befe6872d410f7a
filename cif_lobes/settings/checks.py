"""Whether a setting of a yaml may have a value: type by its default, range by its comment.

What a comment says and what is checked are one thing:

- ``0 to 1``: a number between them, both included.
- Other numbers are above 0; 0 is allowed if it is the default or the comment names it
  ("0 for none"), any number if it says ``any integer``, infinity if it names ``.inf``.
- ``l2, cosine or l1_cosine``, if the default is one of them: one of these words.
- ``a multiple of nhead``: of that setting's value.
- A default without a point is an integer, but for seconds, minutes and weights.
- The items of a list are held to the same; ``a list`` allows one beside a number.
- A default of null allows everything.
"""

import argparse
import math
import re

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cif_lobes.settings.yaml_settings import Setting

REAL = ("_seconds", "_minutes", "_weight")  # endings of names that need not be integers
WORDS = re.compile(r"[\w-]+(?:, [\w-]+)*,? or [\w-]+")
RANGE = re.compile(r"(?<![\w.])(-?[\d.]+) to ([\d.]+)")
ZERO = re.compile(r"(?<![\w.-])0(?![\w.])")
DEVICE = re.compile(r"cpu|cuda(:\d+)?")


def find_fault(setting, value):
    """What a value of a setting should have been.

    Arguments
    ---------
    setting : cif_lobes.settings.yaml_settings.Setting
    value : any
        As YAML reads it.

    Returns
    -------
    str or None
        What is expected; None if the value may be taken.

    Example
    -------
    >>> from cif_lobes.settings.yaml_settings import Setting
    >>> setting = Setting("dropout", "0.1", "encoder, 0 to 1")
    >>> find_fault(setting, 5), find_fault(setting, 0.5)
    ('a number from 0 to 1', None)
    """
    if setting.key == "device":
        right = isinstance(value, str) and DEVICE.fullmatch(value)
        return None if right else "cpu, cuda or cuda:N"
    default = read_value(setting.value_text)
    if default is None:
        return None
    comment = setting.comment
    if isinstance(default, list):
        if not isinstance(value, list):
            return "a list"
        faults = (_find_fault(setting.key, default[0], comment, v) for v in value)
        fault = next(filter(None, faults), None) if default else None
        return fault and f"a list, each item {fault}"
    if isinstance(value, list) and "a list" in comment:
        faults = (_find_fault(setting.key, default, comment, v) for v in value)
        return next(filter(None, faults), None)
    return _find_fault(setting.key, default, comment, value)


def find_misfit(setting, values):
    """What a setting should have been, given the others; see `find_fault`.

    Arguments
    ---------
    setting : cif_lobes.settings.yaml_settings.Setting
    values : dict of str to any
        Of all settings, by name.

    Returns
    -------
    str or None
    """
    match = re.search(r"a multiple of (\w+)", setting.comment)
    if not match:
        return None
    value, other = values[setting.key], values.get(match[1])
    if not (isinstance(value, int) and isinstance(other, int)) or value % other == 0:
        return None
    return f"a multiple of {match[1]}, which is {other},"


def option_type(default, comment, key="value"):
    """A setting's check for ``argparse``: ``type=option_type(0.4, "0 to 1")``.

    Arguments
    ---------
    default : int, float or str
        Whose type the value has.
    comment : str
        What a yaml says of such a setting.
    key : str
        Its name there, if it is one that is known: device.

    Returns
    -------
    callable
        From the word of the command line to the value.
    """
    setting = Setting(key, str(default), comment)

    def read(word):
        try:
            value = YAML(typ="safe", pure=True).load(word)
        except YAMLError:
            value = None
        fault = find_fault(setting, value)
        if fault:
            raise argparse.ArgumentTypeError(f"{word}: {fault} expected")
        return type(default)(value)

    return read


def add_option(parser, name, default, comment, what):
    """An option of which the default is said once.

    Arguments
    ---------
    parser : argparse.ArgumentParser
    name : str
        With its dashes.
    default : int or float
    comment : str
        What a yaml says of such a setting, see `option_type`.
    what : str
        Its help.
    """
    parser.add_argument(
        name,
        type=option_type(default, comment),
        default=default,
        help=f"{what} (default: {default:g})",
    )


def read_value(text):
    """A value as YAML reads it; None for null, for objects and for references.

    Arguments
    ---------
    text : str or None

    Returns
    -------
    any
    """
    if text is None or "!" in text:
        return None
    return YAML(typ="safe", pure=True).load(text)


def _find_fault(key, default, comment, value):
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, (int, float)):
        return _find_number_fault(key, default, comment, value)
    for match in WORDS.finditer(comment):
        words = re.split(r",? or |, ", match[0])
        if default in words:
            return None if value in words else match[0]
    return None


def _find_number_fault(key, default, comment, value):
    whole = isinstance(default, int) and not key.endswith(REAL)
    kind = "an integer" if whole else "a number"
    low, high, allowed = 0, math.inf, f"{kind} above 0"
    zero, match = default == 0 or ZERO.search(comment), RANGE.search(comment)
    if match:
        low, high = float(match[1]), float(match[2])
        zero, allowed = True, f"{kind} from {match[1]} to {match[2]}"
    elif "any integer" in comment:
        low, allowed = -math.inf, kind
    elif zero:
        allowed = f"{kind}, 0 or more"
    right = isinstance(value, int if whole else (int, float))
    right = right and not isinstance(value, bool) and low <= value <= high
    right = right and (value != 0 or zero)
    right = right and (abs(value) < math.inf or ".inf" in comment)
    return None if right else allowed
