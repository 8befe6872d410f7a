"""The writing side of `teacher_cache`: no broken file, no states lost.

A cache is built as `<path>.partial`. HDF5 writes the index and reserves room for the
states, once; from then on states are added with plain positioned writes, and
`committed` says how far they are on disk. There is no moment at which a kill leaves
HDF5's structures half changed. One atomic rename finishes the cache.
"""

import fcntl
import hashlib
import os
import shutil

import h5py
import torch

from cif_lobes.teacher_cache import (
    DTYPES,
    FORMAT_VERSION,
    as_bytes,
    attributes_of,
    open_hdf5,
    text_hash,
)

MEAN_BLOCK = 16384  # states read at a time


class CacheWriter:
    """Writes a cache, or goes on writing one that was interrupted.

    Use it in a `with` block, append from text number `committed` on, then `finish`.

    Arguments
    ---------
    path : str
        The cache to make.
    texts : dict of str to int or tuple of int
        Number of states, U + 1, of each distinct text, in the order of writing. With
        `parts`, the number in each of them.
    utterances : dict of str to str
        Text of each utterance id.
    shape : tuple of int
        Of one state: (H,) or (L, H).
    dtype : str
        "float16", "bfloat16" or "float32".
    identity : dict
        Attributes that decide the states. A partial cache with others is not continued.
    notes : dict, optional
        Further attributes.
    overwrite : bool
        Replace a finished cache; discard a partial one that does not fit.
    parts : list of str, optional
        Names of the parts, in this order, that the states of a text fall into.

    Attributes
    ----------
    committed : int
        Number of texts whose states are on disk.

    Raises
    ------
    FileExistsError
        If path exists, or a partial cache of something else, without overwrite.
    BlockingIOError
        If another process is building the same cache.
    OSError
        If the disk is too small.
    """

    def __init__(
        self,
        path,
        texts,
        utterances,
        shape,
        dtype,
        identity,
        notes=None,
        overwrite=False,
        parts=None,
    ):
        self.path = os.fspath(path)
        self.partial = f"{self.path}.partial"
        if os.path.exists(self.path) and not overwrite:
            raise FileExistsError(
                f"teacher cache {self.path} exists. Replace it with --overwrite True"
            )
        self._dtype, self._file_dtype = DTYPES[dtype]
        self._shape = tuple(shape)
        self._state_bytes = torch.empty(self._shape, dtype=self._dtype).nbytes
        self._texts = list(texts)
        rows = torch.tensor(list(texts.values())).view(len(texts), -1)
        self._part_rows = rows.tolist() if parts else None
        self._offsets = [0, *rows.sum(1).cumsum(0).tolist()]
        self._utterances = utterances
        identity = {**identity, "dtype": dtype}
        if parts:
            identity["parts"] = parts
        self._attributes = {**(notes or {}), **identity}
        self._attributes["format_version"] = FORMAT_VERSION
        self._attributes["fingerprint"] = self._fingerprint(identity)

        os.makedirs(_folder(self.path), exist_ok=True)
        self._fd = _lock(self.partial)
        try:
            if not self._can_continue(identity, overwrite):
                self._start()
            with open_hdf5(self.partial) as file:
                self.committed = int(file["committed"][0])
                self._values = file["values"].id.get_offset()
                self._mean = file["mean"].id.get_offset()
                self._committed = file["committed"].id.get_offset()
        except BaseException:
            os.close(self._fd)
            raise

    def append(self, states, num_texts):
        """Write the states of the next texts; on return they are safe on disk.

        Arguments
        ---------
        states : torch.Tensor, [N, H] or [N, L, H], float
            States of these texts, one text after another.
        num_texts : int
            Number of texts.

        Raises
        ------
        ValueError
            If the number of states is not that of the texts, or a value does not fit
            in the dtype. Names the utterance.
        """
        first, last = self.committed, self.committed + num_texts
        start, stop = self._offsets[first], self._offsets[last]
        if states.shape != (stop - start, *self._shape):
            raise ValueError(
                f"teacher states {list(states.shape)} for the {num_texts:,} texts from "
                f"utterance {self._utterance_with(first)} on, expected "
                f"{[stop - start, *self._shape]}: the teacher's states do not match "
                "the recognition tokens"
            )
        states = states.to(self._dtype).cpu().contiguous()
        if not states.isfinite().all():
            row = start + int((~states.isfinite()).flatten(1).any(1).nonzero()[0])
            text = next(i for i in range(first, last) if row < self._offsets[i + 1])
            raise ValueError(
                f"utterance {self._utterance_with(text)}: a teacher state is not "
                f"finite in {self._dtype}: beyond its range, or the teacher's weights "
                "are broken. Try --dtype bfloat16 or float32, or another layer"
            )
        _pwrite(self._fd, states, self._values + start * self._state_bytes)
        # In this order, so that `committed` is true after a power cut as well.
        os.fsync(self._fd)
        _pwrite(self._fd, torch.tensor([last]), self._committed)
        self.committed = last

    def finish(self):
        """Store the mean of all states and give the cache its name."""
        if self.committed != len(self._texts):
            raise ValueError(
                f"{self.partial}: {self.committed:,} of {len(self._texts):,} texts "
                "written, so the cache cannot be finished. Append the others first"
            )
        _pwrite(self._fd, self._compute_mean(), self._mean)
        os.fsync(self._fd)
        os.replace(self.partial, self.path)
        _fsync_folder(self.path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._fd)  # and with it the lock

    def _can_continue(self, identity, overwrite):
        """Whether the partial file is a beginning of this very cache."""
        if os.fstat(self._fd).st_size == 0:
            return False
        with open_hdf5(self.partial) as file:
            before = attributes_of(file)
        if before["fingerprint"] == self._attributes["fingerprint"]:
            return True
        if overwrite:
            return False
        changes = [
            f"{name} was {before.get(name)!r}, is {value!r}"
            for name, value in identity.items()
            if before.get(name) != value
        ]
        raise FileExistsError(
            f"{self.partial} is the beginning of another teacher cache: "
            f"{'; '.join(changes) or 'other utterances or transcripts'}. Finish that "
            "one with its settings, or discard it with --overwrite True"
        )

    def _start(self):
        """Make the partial file, complete but for what is written later."""
        needed = self._offsets[-1] * self._state_bytes
        free = shutil.disk_usage(_folder(self.path)).free
        if needed > free:
            raise OSError(
                f"teacher cache {self.path} takes {needed / 1e9:.2f} GB, free are "
                f"{free / 1e9:.2f} GB. Free some, or put it elsewhere with --cache"
            )
        new = f"{self.partial}.new"
        self._write_hdf5(new)
        # Locked before it can be found under the partial file's name.
        fd = _lock(new)
        os.fsync(fd)
        os.replace(new, self.partial)
        _fsync_folder(self.path)
        os.close(self._fd)
        self._fd = fd

    def _write_hdf5(self, path):
        """The index, and room for states, mean and count."""
        index = {text: i for i, text in enumerate(self._texts)}
        ids = [utt_id.encode() for utt_id in self._utterances]
        id_type = h5py.string_dtype("utf-8", max(map(len, ids)))
        values_shape = (self._offsets[-1], *self._shape)
        with h5py.File(path, "w") as file:
            file.attrs.update(self._attributes)
            file.create_dataset("ids", data=ids, dtype=id_type)
            file["text_index"] = [index[text] for text in self._utterances.values()]
            file["text_hash"] = [text_hash(text) for text in self._texts]
            file["offsets"] = self._offsets
            if self._part_rows:
                file["part_rows"] = self._part_rows
            _reserve(file, "values", values_shape, self._file_dtype)
            _reserve(file, "mean", self._shape, "<f4")
            _reserve(file, "committed", (1,), "<i8")
            file["committed"][0] = 0

    def _fingerprint(self, identity):
        lengths = [
            b - a for a, b in zip(self._offsets, self._offsets[1:], strict=False)
        ]
        layout = list(zip(self._texts, lengths, strict=True))
        content = (identity, self._shape, layout, list(self._utterances.items()))
        if self._part_rows:
            content += (self._part_rows,)
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]

    def _compute_mean(self):
        """From the file, so that an interruption does not change it."""
        total = torch.zeros(self._shape, dtype=torch.float64)
        for start in range(0, self._offsets[-1], MEAN_BLOCK):
            count = min(MEAN_BLOCK, self._offsets[-1] - start)
            states = torch.empty((count, *self._shape), dtype=self._dtype)
            address = self._values + start * self._state_bytes
            os.preadv(self._fd, [as_bytes(states)], address)
            total += states.sum(0, dtype=torch.float64)
        return (total / self._offsets[-1]).float()

    def _utterance_with(self, text):
        """Id of the first utterance that has this text."""
        return next(u for u, t in self._utterances.items() if t == self._texts[text])


def _folder(path):
    return os.path.dirname(os.path.abspath(path))


def _lock(path):
    """Open a file, made if needed, as its only writer until it is closed."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The lock is on the file, which its last owner may have renamed since.
        if os.stat(path).st_ino != os.fstat(fd).st_ino:
            raise BlockingIOError
    except (BlockingIOError, FileNotFoundError):
        os.close(fd)
        raise BlockingIOError(
            f"{path} is being written by another process: wait until it has finished"
        ) from None
    return fd


def _reserve(file, name, shape, dtype):
    """A dataset whose bytes have a fixed place in the file from now on."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    file.create_dataset(name, shape, dtype, dcpl=plist)


def _pwrite(fd, tensor, address):
    """Positioned write of a tensor; one call writes 2 GB at most."""
    data = memoryview(as_bytes(tensor)).cast("B")
    while data:
        written = os.pwrite(fd, data, address)
        data, address = data[written:], address + written


def _fsync_folder(path):
    """Make a rename survive a power cut."""
    fd = os.open(_folder(path), os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
