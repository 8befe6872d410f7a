"""SpeechBrain's checkpoints, but none that is broken: neither written nor read.

SpeechBrain writes into the folder under its final name, the file that makes it count as
a checkpoint first. A kill or a full disk leaves a folder that is found, chosen as the
newest, and cannot be loaded.
"""

import contextlib
import json
import logging
import pathlib
import shutil
import signal
import threading
import zipfile

import torch
import yaml
from speechbrain.utils.checkpoints import (
    METAFNAME,
    PARAMFILE_EXT,
    Checkpoint,
    Checkpointer,
    ckpt_recency,
)
from speechbrain.utils.distributed import (
    ddp_barrier,
    if_main_process,
    main_process_only,
)

from cif_lobes.storage.atomic_files import DiskFull, atomic_folder, explain_full

logger = logging.getLogger(__name__)

# Bytes of every other file of a checkpoint, written last. Those of older versions have
# none. No checksums: what a kill, a full disk or a copy cut off changes is a size.
SIZES = "sizes.json"

_named = set()  # broken checkpoints that a warning has named


class SafeCheckpointer(Checkpointer):
    """A `Checkpointer` that a kill, a full disk or a signal while it saves cannot harm.

    A checkpoint is written aside, brought to the disk and renamed; one that is deleted
    is renamed first. SIGINT and SIGTERM wait until it is complete. Broken checkpoints,
    of older versions for instance, are passed over with a warning.

    In distributed runs the first process alone saves and the others wait for its
    outcome, so what is saved must not communicate (the savers of sharded parameters do).

    Arguments
    ---------
    checkpoints_dir : str
    recoverables : mapping, optional
        Objects to save, by name.
    **kwargs
        As of SpeechBrain's.

    Example
    -------
    >>> import tempfile
    >>> model = torch.nn.Linear(2, 2)
    >>> checkpointer = SafeCheckpointer(tempfile.mkdtemp(), {"model": model})
    >>> good = checkpointer.save_checkpoint()
    >>> broken = checkpointer.save_checkpoint()
    >>> _ = (broken.path / "model.ckpt").write_bytes(b"PK")
    >>> checkpointer.find_checkpoint().path == good.path
    True
    """

    def save_checkpoint(
        self, meta=None, end_of_epoch=True, name=None, verbosity=logging.INFO
    ):
        """Save a checkpoint, see SpeechBrain's; in all processes or in none.

        Returns
        -------
        Checkpoint

        Raises
        ------
        DiskFull
            If there is no room, in all processes. Nothing of it is left.
        """
        with delayed_signals():
            saved, full = main_process_only(self._save)(
                meta or {}, end_of_epoch, name, verbosity
            )
        if full:
            raise DiskFull(full)
        return saved

    def _save(self, meta, end_of_epoch, name, verbosity):
        """The checkpoint and None, or None and why there is no room for it."""
        path = (
            self._new_checkpoint_dirpath()
            if name is None
            else super()._custom_checkpoint_dirpath(name)
        )
        self._remove_leftovers()
        states = [
            o.state_dict()
            for o in self.recoverables.values()
            if hasattr(o, "state_dict")
        ]
        try:
            with (
                explain_full(self.checkpoints_dir, _count_bytes(states)),
                atomic_folder(path) as partial,
            ):
                saved = super().save_checkpoint(
                    meta, end_of_epoch, partial.name, logging.NOTSET
                )
                sizes = {f.name: f.stat().st_size for f in partial.iterdir()}
                (partial / SIZES).write_text(json.dumps(sizes, indent=1) + "\n")
        except DiskFull as error:
            return None, str(error)
        kind = "end-of-epoch" if end_of_epoch else "intra-epoch"
        logger.log(verbosity, f"Saved an {kind} checkpoint in {path}")
        files = {name: path / file.name for name, file in saved.paramfiles.items()}
        return Checkpoint(path, saved.meta, files), None

    def _custom_checkpoint_dirpath(self, name):
        """As it is, where SpeechBrain puts its prefix: `_save` names a hidden folder."""
        return self.checkpoints_dir / name

    def _remove_leftovers(self):
        """What killed processes began to save or to delete."""
        for path in self.checkpoints_dir.glob(".CKPT*"):
            shutil.rmtree(path, ignore_errors=True)

    def list_checkpoints(self):
        """All checkpoints that are whole; one warning names each that is broken."""
        required = ["model", *self.recoverables]
        required = [
            f"{name}{PARAMFILE_EXT}"
            for name in required
            # Those that SpeechBrain loads a checkpoint without.
            if not (self.optional_recoverables.get(name) or "dataloader" in name)
        ]
        whole = []
        for folder in self._list_checkpoint_dirs():
            fault = find_fault(folder, required)
            if not fault:
                # Unless the training has just deleted it.
                with contextlib.suppress(FileNotFoundError):
                    whole += self._construct_checkpoint_objects([folder])
            elif folder.exists() and folder not in _named:
                _named.add(folder)
                if if_main_process():
                    logger.warning(
                        f"{folder} is a broken checkpoint and is passed over: {fault}. "
                        f"Delete it: rm -r {folder}"
                    )
        return whole

    def delete_checkpoints(
        self,
        *,
        num_to_keep=1,
        min_keys=None,
        max_keys=None,
        importance_keys=(ckpt_recency,),
        ckpt_predicate=None,
        verbosity=logging.INFO,
    ):
        """Delete the least important checkpoints; see SpeechBrain's, which does it in
        place: a kill would leave half a checkpoint under a valid name.
        """
        # save_and_keep_only adds a key to a default that all its calls share.
        keys = [{"importance_key": key} for key in dict.fromkeys(importance_keys)]
        keys += [{"min_key": key} for key in min_keys or []]
        keys += [{"max_key": key} for key in max_keys or []]
        candidates, kept = set(), set()
        for key in keys:
            found = self.find_checkpoints(**key, ckpt_predicate=ckpt_predicate)
            candidates.update(c.path for c in found)
            kept.update(c.path for c in found[:num_to_keep])
        ddp_barrier()  # all have found the same
        for path in sorted(candidates - kept):
            if if_main_process():
                _delete(path)
                logger.log(verbosity, f"Deleted checkpoint in {path}")
        ddp_barrier()  # none looks for one before they are gone


def find_fault(folder, required=()):
    """What is wrong with a checkpoint.

    Arguments
    ---------
    folder : pathlib.Path
    required : iterable of str
        Files that one of an older version, which does not say what it holds, must have.

    Returns
    -------
    str or None
        None if it is whole.
    """
    folder = pathlib.Path(folder)
    try:
        meta = yaml.safe_load((folder / METAFNAME).read_text(encoding="utf-8"))
        if not isinstance(meta, dict) or not {"unixtime", "end-of-epoch"} <= {*meta}:
            return f"{METAFNAME} breaks off"
        if (folder / SIZES).exists():
            return _find_wrong_size(folder, json.loads((folder / SIZES).read_text()))
        missing = [name for name in required if not (folder / name).exists()]
        if missing:
            return f"{', '.join(missing)} is missing"
        return next(filter(None, map(_find_end, folder.glob("*.ckpt"))), None)
    except (OSError, ValueError, yaml.YAMLError) as error:
        return f"it cannot be read ({error})"


def _find_wrong_size(folder, sizes):
    for name, size in sizes.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} of {size:,} bytes"
    return None


def _find_end(path):
    """A file of torch.save is a zip, whose index stands at its end."""
    with open(path, "rb") as file:
        start = file.read(2)
        if not start:
            return f"{path.name} is empty"
        if start == b"PK":
            try:
                zipfile.ZipFile(file).close()
            except zipfile.BadZipFile:
                return f"{path.name} breaks off"
    return None


def load_parameters(path, map_location="cpu"):
    """Parameters of a module from a checkpoint's file, which holds tensors only.

    Arguments
    ---------
    path : str
    map_location : str
        As of `torch.load`.

    Returns
    -------
    dict of str to torch.Tensor
    """
    return torch.load(path, map_location=map_location, weights_only=True)


@contextlib.contextmanager
def delayed_signals(numbers=(signal.SIGINT, signal.SIGTERM)):
    """Let signals wait until the block is left; several of a kind arrive as one.

    Blocking them (pthread_sigmask) would not do: libraries have threads that take them.
    """
    handlers, arrived = {}, []
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in numbers}
    handlers = {n: handler for n, handler in handlers.items() if handler is not None}
    for number in handlers:
        signal.signal(number, lambda number, frame: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(arrived):
            signal.raise_signal(number)


def _delete(path):
    hidden = path.with_name(f".{path.name}.deleted")
    path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _count_bytes(value):
    """Size of all tensors in nested containers."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return 0
    return sum(map(_count_bytes, value))
