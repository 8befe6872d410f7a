"""How a run begins, and how it ends before its time."""

import atexit
import os
import pathlib
import shutil
import sys

from hyperpyyaml import resolve_references
from ruamel.yaml import YAML
from speechbrain.utils.distributed import if_main_process

from cif_lobes.settings.program import this_command

REJECTED = pathlib.Path("save/rejected.csv")

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


def exit_to_resume(message):
    """End all processes; one of them says why, and the command to run again."""
    sys.exit(f"{message}:\n  {this_command()}" if if_main_process() else 1)


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
