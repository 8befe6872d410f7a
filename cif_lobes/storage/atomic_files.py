"""Files and folders that are there whole or not at all, whatever cuts the writing off.

They are written under another name beside their own, brought to the disk (fsync), and
renamed: a reader sees the old content or the new one, after a kill and after a power cut
as well. A write that fails leaves nothing.
"""

import contextlib
import errno
import os
import pathlib
import shutil

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What torch.save's writer says of a disk without room; it passes no errno on.
TORCH_FULL = ("PytorchStreamWriter failed", "inline_container.cc", "iostream error")


class DiskFull(OSError):
    """There was no room for what was to be written."""


@contextlib.contextmanager
def explain_full(folder, bytes_needed=None):
    """Say of a full disk where, how full, and what to do.

    Arguments
    ---------
    folder : pathlib.Path
        In which the block writes.
    bytes_needed : int, optional
        Size of what it writes, if known.

    Raises
    ------
    DiskFull
        If there is no room.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        torch_full = any(words in str(error) for words in TORCH_FULL)
        if isinstance(error, DiskFull) or not (
            torch_full or getattr(error, "errno", None) in FULL
        ):
            raise
        free = shutil.disk_usage(folder).free
        needed = (
            ""
            if bytes_needed is None
            else f", needed about {bytes_needed / 1e9:.3f} GB"
        )
        raise DiskFull(
            f"no room to write in {folder}: free are {free / 1e9:.3f} GB{needed}. What "
            "was begun has been removed, what was there before is unchanged. Free some "
            "space (is there a quota, or a limit on the size of files?), or move the "
            "folder to another disk, then run the same command again"
        ) from error


@contextlib.contextmanager
def atomic_open(path, mode="w", newline=None):
    """Open a file for writing that takes its name once the block is left.

    Arguments
    ---------
    path : str
    mode : str
        "w" (UTF-8) or "wb".
    newline : str, optional
        As of `open`.

    Raises
    ------
    DiskFull
        If there is no room.

    Example
    -------
    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "figures.txt")
    >>> with atomic_open(path) as file:
    ...     _ = file.write("1")
    ...     path.exists()
    False
    >>> path.read_text(), len(list(path.parent.iterdir()))
    ('1', 1)
    """
    path = pathlib.Path(path)
    # Another process may be writing the same file.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    encoding = None if "b" in mode else "utf-8"
    try:
        with (
            explain_full(path.parent),
            open(partial, mode, encoding=encoding, newline=newline) as file,
        ):
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        fsync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def write_atomically(path, text):
    """Write a text file; see `atomic_open`."""
    with atomic_open(path) as file:
        file.write(text)


def bring(found, kept):
    """Bring what was written elsewhere to its place, if it is there and new.

    Where nothing can be written, it is forgotten: of use for what can be found again.

    Arguments
    ---------
    found, kept : str
        Files.
    """
    found, kept = pathlib.Path(found), pathlib.Path(kept)
    if not found.exists():
        return
    data = found.read_bytes()
    with contextlib.suppress(OSError):
        if not kept.exists() or kept.read_bytes() != data:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with atomic_open(kept, "wb") as file:
                file.write(data)


@contextlib.contextmanager
def atomic_folder(path):
    """A folder to fill that takes its name once the block is left.

    Arguments
    ---------
    path : pathlib.Path
        Must not exist, or be empty. What a killed process left of it is removed.

    Yields
    ------
    pathlib.Path
        To write into. Its name begins with a dot.
    """
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        for file in [*partial.rglob("*"), partial]:
            fsync(file)
        os.rename(partial, path)
        fsync(path.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextlib.contextmanager
def new_folder(path):
    """The folder of an export, which is not there before it is complete.

    Arguments
    ---------
    path : str
        Made; must be empty if it exists.

    Yields
    ------
    pathlib.Path
        To write into; see `atomic_folder`.

    Raises
    ------
    FileExistsError
        If there is something in it, or if it cannot be renamed.
    DiskFull
        If there is no room.
    """
    path = pathlib.Path(path).resolve()
    if path.exists() and any(path.iterdir()):
        raise FileExistsError(
            f"{path} is not empty: give a new folder, or delete this one first"
        )
    if path.is_mount():
        raise FileExistsError(
            f"{path} is a mount point, and no folder can take its name: give a new "
            f"folder in it, for instance {path / 'export'}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with explain_full(path.parent), atomic_folder(path) as partial:
        yield partial


def fsync(path):
    """Make the content of a file, or the names in a folder, survive a power cut.

    Arguments
    ---------
    path : str
        Of the file or folder.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
