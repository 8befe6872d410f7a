"""The command line of the recipes: ``python train.py hparams/x.yaml --key value``.

A thin layer in front of ``speechbrain.parse_arguments``: ``--help`` in the yaml's
order with the yaml's comments, errors that name the option, and overrides that arrive
as typed. SpeechBrain and torch are imported only once all names and values are known
to be there, so help and errors are immediate.
"""

import contextlib
import difflib
import importlib.util
import io
import itertools
import json
import math
import os
import re
import runpy
import shutil
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError

from cif_lobes.settings.checks import find_fault, find_misfit, read_value
from cif_lobes.settings.program import started_by
from cif_lobes.settings.yaml_settings import Setting, compose, header, yaml_settings

# Run options that --help explains; the others are given by name only.
MAIN_RUN_OPTIONS = """dry_run device precision eval_precision nonfinite_patience
max_grad_norm optimizer_step_limit ckpt_interval_minutes
ckpt_interval_steps test_only debug debug_batches debug_epochs noprogressbar"""

# Ours among them, a switch: what the training would cost, from a few of its updates.
DRY_RUN = "Say what is wrong and what it would take, write nothing."

# SpeechBrain's own parser takes whole minutes only, its Brain any number.
MINUTES = re.compile(r"(--ckpt_interval_minutes=)(\d+\.\d*|\.\d+)")

# Ending of the options that take several values: --jit_module_keys encoder decoder.
LIST_OPTIONS = "_module_keys"


def parse(argv, default_yaml, description):
    """Read a recipe's command line; answer ``--help`` and mistakes by exiting.

    Mistakes exit with status 2. Under torchrun only rank 0 prints.

    Arguments
    ---------
    argv : list of str
        Arguments without the program's name: ``sys.argv[1:]``.
    default_yaml : str or Path
        Used when ``argv`` names no yaml; the yamls beside it are offered when the
        named one does not exist.
    description : str
        What the program does, for ``--help``.

    Returns
    -------
    hparams_file : str
        Path of the yaml.
    run_opts : speechbrain.utils.run_opts.RunOptions
        For ``Brain(run_opts=run_opts)``.
    overrides : str
        YAML text for ``load_hyperpyyaml(stream, overrides)``. A run option that is
        also a key of the yaml is in both, so that ``!ref`` values and the saved
        ``hyperparams.yaml`` agree with what runs.

    Example
    -------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "cif.yaml")
    >>> _ = path.write_text("lr: 3.0e-4  # peak learning rate")
    >>> parse([str(path), "--lr=1e-3"], path, "Train CIF.")[2]
    'lr: 1e-3'
    """
    run_options = _run_options()
    positionals, options = _split(argv, run_options)
    if len(positionals) > 1:
        _fail(
            f"one yaml expected, got {' and '.join(map(repr, positionals))}\n"
            "An option takes one value, a switch such as --debug none; "
            "quote lists and spaces: --key '[1, 2]'"
        )
    hparams_file = positionals[0] if positionals else str(default_yaml)
    if not positionals and not Path(default_yaml).is_file():
        _without_recipes("--help" in options, Path(default_yaml).name, description)
    if not Path(hparams_file).is_file():
        _fail_missing_file(hparams_file, Path(default_yaml).parent)
    try:
        settings = {f"--{s.key}": s for s in yaml_settings(hparams_file)}
    except YAMLError as error:
        _fail(f"{_shown(hparams_file)} is not valid YAML:\n{error}")

    if "--help" in options:
        _say(_help_text(hparams_file, settings, run_options, description), sys.stdout)
        sys.exit(0)

    _check_options(options, settings, run_options, hparams_file)
    run_argv, overrides = [hparams_file], []
    dry_run = options.pop("--dry_run", None) is not None
    for flag, values in options.items():
        arity = _arity(flag, run_options)
        if flag in run_options:
            # Joined, because SpeechBrain looks for option names among single words.
            # argparse does not know YAML's infinity.
            words = [{".inf": "inf"}.get(value, value) for value in values]
            joined = [f"{flag}={word}" for word in words]
            run_argv += joined if arity == 1 else [flag, *values]
        if flag in settings:
            if arity == 1:
                text = _as_yaml(flag, values[0], settings[flag])
            else:
                text = "true" if arity == 0 else json.dumps(values)
            overrides.append(f"{flag[2:]}: {text}")
    _check_values("\n".join(overrides), options, settings, run_options, hparams_file)
    run_opts = _speechbrain_run_opts(run_argv)
    if dry_run:
        # A frozen dataclass of SpeechBrain's; its `get` finds this, too.
        object.__setattr__(run_opts, "dry_run", True)
    return hparams_file, run_opts, "\n".join(overrides)


def _run_options():
    """Map from flag to Setting of SpeechBrain's command-line options."""
    # The file is run by its path because "import speechbrain" loads torch.
    folder = importlib.util.find_spec("speechbrain").submodule_search_locations[0]
    module = runpy.run_path(os.path.join(folder, "utils", "run_opts.py"))
    options, texts = {}, module["HELP_TEXTS"]
    for name, default in module["RunOptions"]().as_dict().items():
        if name in texts or name.endswith(LIST_OPTIONS):
            value = "switch" if default is False else json.dumps(default).strip('"')
            options[f"--{name}"] = Setting(name, value, texts.get(name, ""))
    options["--dry_run"] = Setting("dry_run", "switch", DRY_RUN)
    return options


def _arity(flag, run_options):
    """How many values an option takes."""
    if flag in run_options and run_options[flag].value_text == "switch":
        return 0
    return math.inf if flag.endswith(LIST_OPTIONS) else 1


def _split(argv, run_options):
    """Split ``argv`` into positionals and a map from flag to its list of values."""
    positionals, options, flag, room = [], {}, None, 0
    for word in argv:
        if word in ("-h", "--help"):
            options["--help"] = []
        elif word.startswith("--") or (word.startswith("-") and not room):
            flag, equals, value = word.partition("=")
            options[flag] = [value] if equals else []
            room = _arity(flag, run_options) - len(options[flag])
        elif room > 0:
            options[flag].append(word)
            room -= 1
        else:
            positionals.append(word)
    return positionals, options


def _check_options(options, settings, run_options, hparams_file):
    """Unknown options, then missing values, then ``!PLACEHOLDER`` left open."""
    known = {**run_options, **settings}
    command = f"{started_by()} {_shown(hparams_file)}"
    names = [s.key for s in known.values() if s.value_text is not None]
    unknown = ""
    for flag in (flag for flag in options if flag not in known):
        name = flag.lstrip("-").replace("-", "_")
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        guess = f"did you mean --{close[0]}?" if close else "nothing is similar"
        unknown += f"unknown option {flag}: {guess}\n"
    if unknown:
        _fail(f"{unknown}List all: {command} --help")

    for flag, values in options.items():
        arity = _arity(flag, run_options)
        if arity == 0 and values:
            _fail(f"{flag} is a switch: write it without '={values[0]}'")
        if arity == 1 and not any(values):
            got = "an empty one (unset shell variable?)" if values else "none"
            _fail(
                f"{flag} needs a value and got {got}\n"
                f"  {flag}  {known[flag].comment}  [{_shown(hparams_file)}]\n"
                f"An empty string is written {flag} \"''\""
            )

    missing = [f for f, s in settings.items() if s.required and f not in options]
    if missing:
        rows = "".join(f"  {flag}  {settings[flag].comment}\n" for flag in missing)
        values = " ".join(f"{flag} VALUE" for flag in missing)
        file = _shown(hparams_file)
        _fail(f"{file} leaves open (!PLACEHOLDER)\n{rows}Add {values}")


def _check_values(overrides, options, settings, run_options, hparams_file):
    """Type and range of each value, of the command line or of the yaml."""
    changed = YAML(typ="safe", pure=True)
    # !ref and other tags are for HyperPyYAML.
    changed.Constructor = _Untagged
    changed = changed.load(overrides) or {}
    values = {s.key: read_value(s.value_text) for s in settings.values()} | changed
    for flag, setting in {**run_options, **settings}.items():
        key, fault = setting.key, None
        if flag in settings and (key in changed or values[key] is not None):
            if not isinstance(values[key], _Tagged):
                fault = find_fault(setting, values[key]) or find_misfit(setting, values)
        elif key == "device" and flag in options:
            fault = find_fault(setting, options[flag][0])
        if fault:
            given = " ".join([flag, *options[flag]]) if flag in options else None
            written = f"{key}: {setting.value_text} in {_shown(hparams_file)}"
            source = _shown(hparams_file) if flag in settings else "SpeechBrain"
            _fail(
                f"{given or written}: {fault} expected\n"
                f"  {flag}  {setting.comment}  [{source}]"
            )


class _Tagged:
    """The value of something like !ref, which is not known here."""


class _Untagged(SafeConstructor):
    """Plain values; anything with a tag of its own is a `_Tagged`."""


_Untagged.add_multi_constructor("!", lambda constructor, suffix, node: _Tagged())


def _as_yaml(flag, word, setting):
    """A word of the command line as YAML, quoted where YAML would read it otherwise."""
    word = word.strip()
    starts_yaml = word.startswith(("[", "{", "!", "'", '"'))
    try:
        node = compose(word)
    except YAMLError as error:
        if word[0] in "[{":
            _fail(
                f"{flag} {word}: not valid YAML ({error.problem}).\n"
                f"Quote lists and spaces for the shell: {flag} '[1, 2]'"
            )
        node = None
    # "no" and "off" are strings in YAML 1.2, and a string counts as true.
    is_bool = node is not None and node.tag == "tag:yaml.org,2002:bool"
    # A path alone would be read letter by letter.
    if f"{setting.value_text}"[0] == "[" and not starts_yaml and word != "null":
        _fail(f"{flag} {word}: a list expected, write {flag} '[{word}]'")
    wants_bool = str(setting.value_text).lower() in ("true", "false")
    if wants_bool and not is_bool and not starts_yaml:
        _fail(f"{flag} {word}: true or false expected, as {setting.value_text}")
    if node is not None and (starts_yaml or node.value == word):
        return word
    # "a: b", "a #b", "- a", "*.wav": plain words here, something else in YAML.
    return json.dumps(word, ensure_ascii=False)


def _speechbrain_run_opts(run_argv):
    """What ``speechbrain.parse_arguments`` makes of the run options."""
    import speechbrain as sb

    stderr = io.StringIO()
    minutes = [float(m[2]) for word in run_argv if (m := MINUTES.fullmatch(word))]
    run_argv = [MINUTES.sub(r"\g<1>1", word) for word in run_argv]
    try:
        with contextlib.redirect_stderr(stderr):
            _, run_opts, _ = sb.parse_arguments(run_argv)
    except SystemExit:
        _fail(stderr.getvalue().rpartition("error: ")[2].strip())
    # SpeechBrain 1.1 leaves this one a string, then compares it with an integer.
    limit = run_opts.optimizer_step_limit
    changed = {"optimizer_step_limit": limit and int(limit)}
    if minutes:
        changed["ckpt_interval_minutes"] = minutes[-1]
    return replace(run_opts, **changed)


def _help_text(hparams_file, settings, run_options, description):
    """Usage, the yaml's header, its settings by section, SpeechBrain's run options."""
    width = min(max(shutil.get_terminal_size().columns, 80), 100)
    sections = {}
    for flag, setting in settings.items():
        if setting.value_text is not None and not flag.startswith("--__"):
            sections.setdefault(setting.section, []).append(setting)
    only_run = [option for flag, option in run_options.items() if flag not in settings]
    main = [option for option in only_run if option.key in MAIN_RUN_OPTIONS.split()]
    others = ", ".join(f"--{option.key}" for option in only_run if option not in main)
    parts = [
        f"usage: {started_by()} [HPARAMS.yaml] [--key VALUE ...]",
        textwrap.dedent(description).strip(),
        f"{_shown(hparams_file)}:",
        textwrap.indent(header(hparams_file), "  "),
        "Values are YAML: 1e-3, true, null, '[1, 2]'. <name> stands for that setting.",
        *_tables(sections, width),
        *_tables({"Run options of SpeechBrain": main}, width),
        textwrap.fill(f"Also of SpeechBrain: {others}", width),
    ]
    return "\n\n".join(filter(None, parts))


def _tables(sections, width):
    """A heading and a row per setting for each section, aligned throughout."""
    rows = {}
    for setting in itertools.chain(*sections.values()):
        value = re.sub(r"!(ref|copy) ", "", setting.value_text)
        rows[setting] = f"  --{setting.key}", "required" if setting.required else value
    flag_width = min(max([0, *(len(flag) for flag, _ in rows.values())]), 28)
    # A longer value, a path mostly, has its comment on the next line.
    value_width = max([0, *(len(v) for _, v in rows.values() if len(v) <= 14)])
    column = flag_width + value_width + 4
    indent = " " * (flag_width + 2)
    wrapper = textwrap.TextWrapper(
        width, indent, indent, break_long_words=False, break_on_hyphens=False
    )
    for heading, settings in sections.items():
        lines = textwrap.wrap(heading, width)
        for setting in settings:
            flag, value = rows[setting]
            left = f"{flag:<{flag_width}}  {wrapper.fill(value).strip()}"
            comment = textwrap.wrap(setting.comment, width - column)
            if len(left) + 2 <= column and comment:
                left = left.ljust(column) + comment.pop(0)
            lines += [left, *(" " * column + line for line in comment)]
        yield "\n".join(lines)


def _without_recipes(wants_help, name, description):
    """What an installed package says if it is given no yaml: it has none itself."""
    command = f"{started_by()} HPARAMS.yaml"
    if wants_help:
        usage = f"usage: {command} [--key VALUE ...]"
        settings = f"The settings of a yaml: {command} --help"
        _say("\n\n".join([usage, description.strip(), settings]), sys.stdout)
        sys.exit(0)
    _fail(f"which yaml? Give one, for instance {name} of a checkout's recipes/")


def _fail_missing_file(hparams_file, folder):
    yamls = sorted(folder.glob("*.yaml"))
    names = [path.name for path in yamls]
    close = difflib.get_close_matches(Path(hparams_file).name, names, n=1)
    guess = f": did you mean {_shown(folder / close[0])}?" if close else ""
    listing = "\n".join(f"  {_shown(path)}" for path in yamls)
    _fail(f"no such file {hparams_file}{guess}\nThere are\n{listing}")


def _shown(path):
    """A path as a user would type it here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _say(message, file):
    """Print, under torchrun on rank 0 only."""
    if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":
        print(message, file=file)


def _fail(message):
    _say(f"{Path(sys.argv[0]).name}: {message}", sys.stderr)
    sys.exit(2)
