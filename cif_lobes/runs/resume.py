"""A run that goes on is the run that it was: what is compared before its first update."""

import logging
import pathlib

import torch
from ruamel.yaml import YAML

from cif_lobes.storage.checkpoints import SafeCheckpointer
from cif_lobes.storage.parameters import DISTILLATION, find_unlike, module_names

logger = logging.getLogger(__name__)

# Arguments of modules that are free to change while a run goes on, as are dropouts.
NOT_THE_NETWORK = ("tail_threshold",)

# Settings by which a training set is cut into updates.
UPDATES = """batch_seconds batch_tokens num_buckets data_folder train_csv train_text
    train_splits""".split()
# Of all updates: some recordings may be taken out when they turn out to be broken.
FEW = 0.01


def check_network(folder, modules, settings):
    """See that a run that goes on has the network of its checkpoints, as far as it is made.

    Before its data are read. Heads are added and left out later on, by the weights of
    their losses and the size of a teacher; `check_parameters` sees those, too.

    Arguments
    ---------
    folder : str
        Its output folder.
    modules : dict of str to torch.nn.Module
        Of the loaded yaml.
    settings : dict
        From `cif_lobes.runs.start.read_plain`, to be compared with the folder's own.

    Raises
    ------
    ValueError
        With the settings that differ, if it has another network.
    """
    there = _read_last(folder)
    if there is None:
        return
    here = torch.nn.ModuleDict(modules).state_dict()
    shared = module_names(there) & module_names(here)
    unlike = find_unlike(here, there, shared)
    before = _settings_of(folder)
    changed = {
        _told(path, *values, before, settings)
        for name in modules
        for path, *values in _differences(before.get(name), settings.get(name), name)
    }
    if not unlike and not changed:
        return
    if not changed:
        first, shapes = next(iter(unlike.items()))
        changed = {_told(first, *shapes, before, settings)}
    changed = "; ".join(sorted(changed))
    raise ValueError(
        f"{folder} holds a run of another network: {changed}. Go on with its own settings, "
        "or train into another --output_folder"
    )


def check_parameters(folder, model, settings):
    """See that a whole network, its heads included, is that of a run's last checkpoint.

    Arguments
    ---------
    folder : str
        Output folder of a run; nothing is compared if it has no checkpoint.
    model : torch.nn.ModuleDict
        All that checkpoints hold. Without the heads that know a teacher it is one that
        only recognises.
    settings : dict
        From `cif_lobes.runs.start.read_plain`, to be compared with the folder's own.

    Raises
    ------
    ValueError
        With the parameters that differ, the settings that do, and what to do.
    """
    there, here = _read_last(folder), model.state_dict()
    if there is None:
        return
    compared = module_names(there) | module_names(here)
    if DISTILLATION not in model:
        compared -= {DISTILLATION}
    unlike = find_unlike(here, there, compared)
    if not unlike:
        return
    name, (shape_there, shape_here) = next(iter(unlike.items()))
    changed = changed_settings(folder, settings)
    # A weight of 0 builds no head.
    switched = {n: v for n, v in changed.items() if n.endswith("_weight") and 0 in v}
    raise ValueError(
        f"{folder} holds a run of another network: {len(unlike):,} of its parameters do "
        f"not fit, first {name}, {shape_there} there, {shape_here} here"
        f"{describe_changes(switched or changed)}. {remedy(folder, settings)}"
    )


def check_updates(folder, before, now, settings):
    """See that an epoch has as many updates as before, whatever devices compute them.

    Learning rates, and the place within an epoch, are counted in updates.

    Arguments
    ---------
    folder : str
        Output folder of a run that goes on.
    before, now : int or None, int
        Updates of an epoch; None if the run does not say.
    settings : dict
        From `cif_lobes.runs.start.read_plain`, to be compared with the folder's own.

    Raises
    ------
    ValueError
        With both numbers, the settings that differ, and what to do.
    """
    if before is None or abs(now - before) <= FEW * before:
        return
    changed = describe_changes(changed_settings(folder, settings, UPDATES))
    raise ValueError(
        f"{folder}: an epoch of this run has {before:,} updates, with the settings and the "
        f"training set of now {now:,}. The learning rate would jump, and an epoch that was "
        f"begun end with other utterances{changed or '. The training set is another'}. "
        f"{remedy(folder, settings)}"
    )


def is_done(hparams, settings, updates):
    """Whether a run has no epoch left to train; says so, and what more of them would do.

    Arguments
    ---------
    hparams : dict
        The loaded yaml: checkpointer, epoch_counter, lr_scheduler, output_folder.
    settings : dict
        From `cif_lobes.runs.start.read_plain`.
    updates : int
        Of an epoch.

    Returns
    -------
    bool
    """
    limit, folder = hparams["epoch_counter"].limit, hparams["output_folder"]
    checkpoints = hparams["checkpointer"].list_checkpoints()
    done = max((c.meta.get("epoch", 0) for c in checkpoints), default=0)
    if done < limit:
        return False
    schedule, last = hparams["lr_scheduler"], done * updates
    schedule.start(last)
    ended = schedule.lr_at(last)
    schedule.start(2 * last)
    again = schedule.lr_at(last + 1)
    begin = (
        f"--init_from {folder} and another" if "init_from" in settings else "another"
    )
    logger.warning(
        f"{folder}: {done} of {limit} epochs are done, nothing is trained, and its "
        f"settings stay as they were. --number_of_epochs {2 * done} would go on, but "
        f"stretch its schedule: the last update had a learning rate of {ended:.2g}, the "
        f"next would have {again:.2g}, which may undo what was learnt since. A schedule of "
        f"its own, or other settings: {begin} --output_folder"
    )
    return True


def changed_settings(folder, settings, names=None):
    """Settings that a run was made with and are others now.

    Arguments
    ---------
    folder : str
        Of the run.
    settings : dict
        Those of now, from `cif_lobes.runs.start.read_plain`.
    names : iterable of str, optional
        Which are compared; by default all that are a number, a text or a list.

    Returns
    -------
    dict of str to tuple
        Values there and here, by name.
    """
    before = _settings_of(folder)
    names = settings.keys() & before.keys() & {*(settings if names is None else names)}
    pairs = {name: (before[name], settings[name]) for name in sorted(names)}
    return {n: v for n, v in pairs.items() if v[0] != v[1] and all(map(_is_plain, v))}


def describe_changes(changed):
    """What `changed_settings` has found, in words that follow a sentence."""
    words = [
        f"{n} is {there} there and {here} here" for n, (there, here) in changed.items()
    ]
    return f". Other settings: {'; '.join(words)}" if words else ""


def remedy(folder, settings):
    """What to do about a run that cannot go on so."""
    begun = f", with --init_from {folder} if it is to begin with its parameters"
    return (
        "Go on with what it was begun with, or train into another --output_folder"
        f"{begun if 'init_from' in settings else ''}"
    )


def _read_last(folder):
    """Parameters of a run's last checkpoint, by name; None if there is none."""
    save = pathlib.Path(folder) / "save"
    checkpoint = SafeCheckpointer(save).find_checkpoint() if save.exists() else None
    if checkpoint is None or "model" not in checkpoint.paramfiles:
        return None
    path = checkpoint.paramfiles["model"]
    return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


def _settings_of(folder):
    """Those of a run folder, as text and numbers."""
    with open(pathlib.Path(folder) / "hyperparams.yaml", encoding="utf-8") as file:
        return YAML().load(file)


def _is_plain(value):
    """Whether a setting is a number, a text or a list of such, and no object."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _differences(before, now, path):
    """Arguments of a module of a yaml whose values are not the same.

    What changes nothing of the trained network may differ; what only one of them has is a
    newer version's.

    Yields
    ------
    path : str
    there, here
        Values.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() & now.keys()):
            if "dropout" not in key and key not in NOT_THE_NETWORK:
                yield from _differences(before[key], now[key], f"{path}.{key}")
    elif isinstance(before, (bool, int, float, list)) and before != now:
        yield path, before, now


def _told(path, there, here, before, settings):
    """A difference, by the names of the settings that it comes from if they are found."""
    names = [
        name
        for name, value in settings.items()
        if type(value) is type(here) and value == here and before.get(name) == there
    ]
    return f"{' and '.join(names) or path} is {there} there and {here} here"
