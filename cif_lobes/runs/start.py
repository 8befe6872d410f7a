"""How a run begins, and how it ends before its time."""

import atexit
import os
import pathlib
import shutil
import sys

import torch
from hyperpyyaml import resolve_references
from ruamel.yaml import YAML
from speechbrain.utils.distributed import if_main_process

from cif_lobes.settings.program import this_command
from cif_lobes.storage.checkpoints import SafeCheckpointer

REJECTED = pathlib.Path("save/rejected.csv")

# Arguments of modules that are free to change while a run goes on, as are dropouts.
NOT_THE_NETWORK = ("tail_threshold",)

ASIDE = ".before"  # in save/

_asides = []
_new = {}  # folders that were not there, and the parents that were not, either


def read_plain(hparams_file, overrides):
    """The settings of a yaml that are about to be used, as text and numbers.

    Arguments
    ---------
    hparams_file : str
        The recipe's yaml. Objects are not made.
    overrides : str or dict

    Returns
    -------
    ruamel.yaml.comments.CommentedMap
    """
    with open(hparams_file, encoding="utf-8") as file:
        return YAML().load(resolve_references(file, overrides).getvalue())


def watch_folder(folder):
    """Take a folder that is not there yet away at exit, unless `has_begun` by then.

    A mistake in the settings or in the data leaves no results that are none; it leaves the
    list of recordings that cannot be used, if that is what was wrong.

    Arguments
    ---------
    folder : str
        Output folder of a run.
    """
    folder = pathlib.Path(folder).absolute()
    there = [path for path in folder.rglob("*") if path.is_file()]
    is_new = not folder.exists() or there == [folder / REJECTED]
    if if_main_process() and is_new:
        atexit.register(_remove, folder)
        _new[folder] = [p for p in folder.parents if not p.exists()]


def watch_manifests(folder):
    """Put the manifests of a run that is there back at exit, unless `has_begun` by then.

    They are written before all is known to be right, and the run is scored on them.

    Arguments
    ---------
    folder : str
        Output folder of a run, which no other process uses: call it by the main one.
    """
    save = pathlib.Path(folder).absolute() / "save"
    aside = save / ASIDE
    _put_back(aside)  # of a start that was killed
    files = [path for path in save.glob("*") if path.is_file()]
    if not files:
        return
    aside.mkdir()
    for path in files:
        if path.name != REJECTED.name:
            # A manifest is replaced, never changed: a link keeps what it was.
            try:
                os.link(path, aside / path.name)
            except OSError:  # a file system without
                shutil.copy2(path, aside / path.name)
    _asides.append(aside)
    atexit.register(leave)


def has_begun():
    """Training begins: what has been made stays."""
    _new.clear()
    while _asides:
        shutil.rmtree(_asides.pop())


def leave():
    """What happens at exit: call it before an end that skips that."""
    while _asides:
        _put_back(_asides.pop())


def check_network(folder, modules, settings):
    """See that a run that goes on has the network of its checkpoints.

    Arguments
    ---------
    folder : str
        Its output folder.
    modules : dict of str to torch.nn.Module
    settings : dict
        From `read_plain`, to be compared with the folder's own.

    Raises
    ------
    ValueError
        With the settings that differ, if it has another network.
    """
    folder = pathlib.Path(folder)
    if not (folder / "save").exists():
        return
    checkpoint = SafeCheckpointer(folder / "save").find_checkpoint()
    if checkpoint is None or "model" not in checkpoint.paramfiles:
        return
    path = checkpoint.paramfiles["model"]
    there = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    here = torch.nn.ModuleDict(modules).state_dict()
    # Heads come and go with the weights of their losses.
    shared = {n.split(".")[0] for n in there} & {n.split(".")[0] for n in here}
    unlike = [
        name
        for name in sorted(there.keys() | here.keys())
        if name.split(".")[0] in shared and _shape(there, name) != _shape(here, name)
    ]
    with open(folder / "hyperparams.yaml", encoding="utf-8") as file:
        before = YAML().load(file)
    changed = {
        _told(path, *values, before, settings)
        for name in modules
        for path, *values in _differences(before.get(name), settings.get(name), name)
    }
    if not unlike and not changed:
        return
    if not changed:
        first = unlike[0]
        shapes = _shape(there, first), _shape(here, first)
        changed = {_told(first, *shapes, before, settings)}
    changed = "; ".join(sorted(changed))
    raise ValueError(
        f"{folder} holds a run of another network: {changed}. Go on with its own settings, "
        "or train into another --output_folder"
    )


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


def exit_to_resume(message):
    """End all processes; one of them says why, and the command to run again."""
    sys.exit(f"{message}:\n  {this_command()}" if if_main_process() else 1)


def _shape(parameters, name):
    return list(parameters[name].shape) if name in parameters else "none"


def _put_back(aside):
    if aside.exists():
        for path in aside.iterdir():
            path.replace(aside.parent / path.name)
            # What has not been replaced is the same file, of which both names stay.
            path.unlink(missing_ok=True)
        aside.rmdir()


def _remove(folder):
    if folder in _new:
        rejected = folder / REJECTED
        listed = rejected.read_bytes() if rejected.exists() else b""
        shutil.rmtree(folder, ignore_errors=True)
        if len(listed.splitlines()) > 1:
            rejected.parent.mkdir(parents=True)
            rejected.write_bytes(listed)
            return
        for parent in _new.pop(folder):
            if any(parent.iterdir()):
                break
            parent.rmdir()
