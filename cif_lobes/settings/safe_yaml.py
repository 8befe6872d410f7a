"""HyperPyYAML of a folder that someone else may have made: data, and a few classes.

``load_hyperpyyaml`` runs whatever a yaml names: ``!apply:os.system [...]``,
``!new:subprocess.Popen``, even a text in parentheses. That is the point of it where a
training is described, and no way to read a run or an export that was downloaded. Here
a yaml is settings, and objects of the classes below by their exact names. What only
training needs is passed over, anything else is refused before anything is made.
"""

import functools
import importlib
import io
import pathlib

from hyperpyyaml import resolve_references
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError

# None of them opens a file or runs anything when it is made.
CLASSES = frozenset(
    """
    cif_lobes.training.augment.SpecAugment
    cif_lobes.training.augment.SpeedPerturb
    cif_lobes.cif.CIF
    cif_lobes.cif.guided.GuidedCIF
    cif_lobes.nets.bert_decoder.BERTDecoder
    cif_lobes.nets.coldec.ColDec
    cif_lobes.nets.ctc_attention.CRDNNEncoder
    cif_lobes.nets.decoder.CIFDecoder
    cif_lobes.nets.ears.PretrainedEars
    cif_lobes.nets.encoder.ConformerEncoder
    cif_lobes.losses.distillation.ACD
    cif_lobes.losses.distillation.LRD
    cif_lobes.inference.fire_modules.FireDecoder
    cif_lobes.inference.fire_modules.FireEncoder
    cif_lobes.nets.features.LogMel
    cif_lobes.nets.fithubert.FitHuBERT
    cif_lobes.nets.fithubert.HintedStudent
    cif_lobes.nets.frozen_student.FrozenStudent
    cif_lobes.nets.adapters.LinearAdapter
    cif_lobes.nets.adapters.TransformerAdapter
    cif_lobes.training.schedules.RiseAndFall
    cif_lobes.training.schedules.TriStage
    cif_lobes.decoding.ctc_ranking.CTCRanker
    cif_lobes.decoding.searcher.BeamSearcher
    cif_lobes.decoding.searcher.GreedySearcher
    cif_lobes.data.tokens.CharTokenizer
    cif_lobes.data.tokens.SentencePieceTokenizer
    cif_lobes.data.tokens.WordPieceTokenizer
    cif_lobes.data.tokens.WordTokenizer
    cif_lobes.training.wave_augment.InsertSilence
    cif_lobes.training.wave_augment.RandomGain
    speechbrain.decoders.S2SRNNBeamSearcher
    speechbrain.decoders.S2SRNNGreedySearcher
    speechbrain.lobes.models.transformer.TransformerLM.TransformerLM
    speechbrain.nnet.RNN.AttentionalRNNDecoder
    speechbrain.nnet.linear.Linear
    speechbrain.utils.epoch_loop.EpochCounter
    torch.nn.Embedding
    torch.nn.GELU
    torch.nn.Linear
    torch.nn.ModuleDict
    torch.optim.AdamW
    """.split()
)

# In the yamls of runs from before our own augmentation, and of exports from before
# `inference.fire_modules`.
OF_OLDER_RUNS = frozenset(
    """
    cif_lobes.inference.export.FireDecoder
    cif_lobes.inference.export.FireEncoder
    speechbrain.augment.freq_domain.SpectrogramDrop
    speechbrain.augment.time_domain.SpeedPerturb
    speechbrain.utils.parameter_transfer.Pretrainer
    torch.nn.Sequential
    """.split()
)

# Read as null: seeds, and what would make folders or fetch files.
SKIPPED = frozenset(
    """
    cif_lobes.storage.checkpoints.SafeCheckpointer
    cif_lobes.inference.export.ExportPretrainer
    cif_lobes.inference.export.use_parameters
    cif_lobes.inference.export.use_vocabulary
    speechbrain.dataio.preprocess.AudioNormalizer
    speechbrain.utils.seed_everything
    """.split()
)

# Settings that are not even looked at unless a teacher is asked for: recognition needs
# none of them, and a loss may be of a class that only its author has.
OF_TEACHERS = frozenset({"distillation"})
# Those that only training reads.
OF_TRAINING = frozenset({"train_logger"})

PLAIN = "tag:yaml.org,2002:"
PLAIN_TYPES = {"bool", "float", "int", "map", "merge", "null", "seq", "str"}


def read_settings(path, *needed):
    """The settings of a yaml, tags included and references resolved; nothing is made.

    Arguments
    ---------
    path : str
    *needed : str
        Settings that must be there.

    Returns
    -------
    ruamel.yaml.comments.CommentedMap

    Raises
    ------
    ValueError
        If the yaml names something that it may not, is no yaml, or lacks a setting.
    OSError
        If it cannot be read.
    """
    path = pathlib.Path(path)
    return _with(YAML().load(_resolve(_text(path), path)), path, needed)


def build(source, overrides=None, only=None, teacher=False):
    """What ``load_hyperpyyaml`` returns, but only of known classes; see the module.

    Arguments
    ---------
    source : str or pathlib.Path
        A path, or a yaml's text as str.
    overrides : dict, optional
        Settings to change.
    only : iterable of str, optional
        Settings to read; by default all.
    teacher : bool
        Whether `OF_TEACHERS` are read as well.

    Returns
    -------
    dict
        Without the settings whose names begin with "__".

    Raises
    ------
    ValueError
        If the yaml names something that it may not, is no yaml, or a class does not
        take its settings.
    OSError
        If it cannot be read.

    Example
    -------
    >>> build("size: 4\\nhead: !new:torch.nn.Linear [!ref <size>, 2]", {"size": 3})
    {'size': 3, 'head': Linear(in_features=3, out_features=2, bias=True)}
    >>> build("size: !apply:os.system [ls]")
    Traceback (most recent call last):
    ...
    ValueError: the yaml, line 1: !apply:os.system is refused: ...
    """
    name = source if isinstance(source, pathlib.Path) else "the yaml"
    text = _text(source) if isinstance(source, pathlib.Path) else source
    reader = YAML(typ="safe", pure=True)
    reader.Constructor = _Constructor
    text = _resolve(text, name, overrides, teacher)
    if only:
        settings, wanted = _with(YAML().load(text), name, only), io.StringIO()
        YAML().dump({key: settings[key] for key in only}, wanted)
        text = wanted.getvalue()
    hparams = reader.load(text)
    return {k: v for k, v in hparams.items() if not k.startswith("__")}


def check_tags(text, name, passed_over=()):
    """Refuse a yaml that names anything but plain values and the known classes.

    Arguments
    ---------
    text : str
    name : str
        Its file, for the error.
    passed_over : collection of str
        Settings that are not looked at. Whoever goes on must leave them out.

    Returns
    -------
    set of str
        Those of them that are there.

    Raises
    ------
    ValueError
        With file, line and tag; also if it is no yaml, or no mapping.
    """
    try:
        root = YAML().compose(text)
    except (YAMLError, RecursionError) as error:
        raise ValueError(f"{name} is not valid YAML:\n{error}") from error
    if root is None or root.id != "mapping":
        raise ValueError(f"{name} holds no settings: a mapping is expected")
    found = [k for k, _ in root.value if k.id == "scalar" and k.value in passed_over]
    rest, seen = [root], set()
    while rest:
        node = rest.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        where = f"{name}, line {node.start_mark.line + 1}"
        # HyperPyYAML makes a tuple of it, by a second reader that runs what it names.
        if node.id == "scalar" and node.value[:1] == "(" and node.value[-1] == ")":
            _refuse(f"the tuple {node.value}", where)
        _check_tag(str(node.tag), where)
        if node.id == "mapping":
            rest += [key for key, _ in node.value]
            rest += [v for key, v in node.value if node is not root or key not in found]
        elif node.id == "sequence":
            rest += node.value
    return {key.value for key in found}


def inside(folder, name):
    """A file of a folder, which must not be a link to somewhere else.

    Arguments
    ---------
    folder : str or pathlib.Path
    name : str
        Of the file; folders in it are not read.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    ValueError
        If it leads out of the folder: an export would carry another file along.
    """
    path = pathlib.Path(folder) / pathlib.Path(str(name)).name
    if pathlib.Path(folder).resolve() not in path.resolve().parents:
        raise ValueError(
            f"{path} is a link to {path.resolve()}, outside of the folder, and is not "
            f"read. If that is the file you want, put it in the link's place"
        )
    return path


def _resolve(text, name, overrides=None, teacher=False):
    """The text without references, checked before and after: they can compose tags."""
    left_out = OF_TRAINING if teacher else OF_TRAINING | OF_TEACHERS
    found = check_tags(text, name, left_out)
    if found:
        text = _leave_out(text, name, found)
        check_tags(text, name)  # all that is resolved has been looked at
    try:
        stream = resolve_references(text, overrides, overrides_must_match=True)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{name}: a !ref cannot be resolved: {error}") from error
    except ValueError as error:
        raise ValueError(
            f"{name}: {error}. Correct it, or take the yaml from the run again"
        ) from error
    resolved = stream.getvalue()
    check_tags(resolved, name)
    return resolved


def _leave_out(text, name, keys):
    """The text without some of its settings, of which nothing is made."""
    try:
        settings, rest = YAML().load(text), io.StringIO()
    except YAMLError as error:  # a key that is there twice
        raise ValueError(f"{name} is not valid YAML:\n{error}") from error
    for key in keys:
        del settings[key]
    YAML().dump(settings, rest)
    return rest.getvalue()


def _with(settings, name, needed):
    """The settings, if all that is needed is there."""
    missing = [key for key in needed if key not in settings]
    if missing:
        raise ValueError(
            f"{name} has no setting {missing[0]}: it is not the yaml of such a run, or "
            "has been changed. Take it from the run again"
        )
    return settings


def _text(path):
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: {error}") from error


def _check_tag(tag, where):
    kind, _, target = tag.partition(":")
    if kind in ("!new", "!name") and target in CLASSES | OF_OLDER_RUNS | SKIPPED:
        return
    if tag in ("!ref", "!PLACEHOLDER") or (kind == "!apply" and target in SKIPPED):
        return
    # A tag that is not written out is None, or that of a plain value.
    if tag == "None" or tag.removeprefix(PLAIN) in PLAIN_TYPES:
        return
    _refuse(tag, where)


def _refuse(tag, where):
    raise ValueError(
        f"{where}: {tag} is refused: a yaml that is read as data may name the classes in "
        "cif_lobes/settings/safe_yaml.py only, anything else could run any code. Do not use "
        "this folder if it is not yours; if the class is your own, add it to CLASSES"
    )


class _Constructor(SafeConstructor):
    """Values, and objects of `CLASSES`; a tag that is not registered is an error."""

    def construct_object(self, node, deep=True):
        # As HyperPyYAML: otherwise what an alias names would reach a class half filled.
        return super().construct_object(node, deep=True)


def _make(constructor, target, node):
    """Of `!new`."""
    if target in SKIPPED:
        return None
    cls = _find(target, node)
    args, kwargs = [], {}
    if node.id == "mapping":
        kwargs = constructor.construct_mapping(node, deep=True)
    elif node.id == "sequence":
        args = constructor.construct_sequence(node, deep=True)
    try:
        return cls(*args, **kwargs)
    # The settings may be of any type, so anything may go wrong in there.
    except Exception as error:
        raise ValueError(
            f"{target} cannot be made of its settings in the yaml: {error}"
        ) from error


def _name(constructor, target, node):
    """Of `!name`."""
    if target in SKIPPED:
        return None
    cls = _find(target, node)
    if node.id == "mapping" and node.value:
        kwargs = constructor.construct_mapping(node, deep=True)
        return functools.partial(cls, **kwargs)
    return cls


def _skip(constructor, target, node):
    """Of `!apply`."""
    if target not in SKIPPED:
        _check_tag(f"!apply:{target}", f"the yaml, line {node.start_mark.line + 1}")


def _find(target, node):
    """The class of a name in `CLASSES`."""
    _check_tag(f"!new:{target}", f"the yaml, line {node.start_mark.line + 1}")
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


_Constructor.add_multi_constructor("!new:", _make)
_Constructor.add_multi_constructor("!name:", _name)
_Constructor.add_multi_constructor("!apply:", _skip)
