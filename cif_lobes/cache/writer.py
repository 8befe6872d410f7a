"""The writing side of a teacher cache: no broken file, no states lost.

A cache is built as `<path>.partial`. HDF5 writes the index and reserves room for the
states, once; from then on states and their checksums are added with plain positioned
writes, and `committed` says how far they are on disk. There is no moment at which a kill
leaves HDF5's structures half changed. The seal and one atomic rename finish the cache.
"""

import fcntl
import hashlib
import os
import shutil
from itertools import pairwise

import h5py
import torch

from cif_lobes.cache.checks import (
    SEAL_BYTES,
    as_bytes,
    checksum,
    own_dataset,
    read_states,
    write_all,
    write_seal,
)
from cif_lobes.cache.reader import (
    DTYPES,
    FORMAT_VERSION,
    attributes_of,
    open_hdf5,
    text_hash,
)
from cif_lobes.storage.atomic_files import fsync


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
        identity = {**identity, "dtype": dtype, "format_version": FORMAT_VERSION}
        if parts:
            identity["parts"] = parts
        self._attributes = {**(notes or {}), **identity}
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
                self._checksums = file["checksums"].id.get_offset()
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
        write_all(self._fd, as_bytes(states), self._values + start * self._state_bytes)
        counts = [b - a for a, b in pairwise(self._offsets[first : last + 1])]
        checksums = [checksum(text) for text in states.split(counts)]
        write_all(
            self._fd, as_bytes(torch.tensor(checksums)), self._checksums + 8 * first
        )
        # In this order, so that `committed` is true after a power cut as well.
        os.fsync(self._fd)
        write_all(self._fd, as_bytes(torch.tensor([last])), self._committed)
        self.committed = last

    def finish(self):
        """Store the mean of all states, seal the cache and give it its name.

        Raises
        ------
        ValueError
            If texts are missing.
        OSError
            If the file does not give back what was written.
        """
        if self.committed != len(self._texts):
            raise ValueError(
                f"{self.partial}: {self.committed:,} of {len(self._texts):,} texts "
                "written, so the cache cannot be finished. Append the others first"
            )
        write_all(self._fd, as_bytes(self._compute_mean()), self._mean)
        write_seal(self._fd, self._values, self._offsets[-1] * self._state_bytes)
        os.fsync(self._fd)
        os.replace(self.partial, self.path)
        fsync(_folder(self.path))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._fd)  # and with it the lock

    def _can_continue(self, identity, overwrite):
        """Whether the partial file is a beginning of this very cache."""
        if os.fstat(self._fd).st_size == 0:
            return False
        try:
            with open_hdf5(self.partial) as file:
                before = attributes_of(file)
                same = all(
                    before.get(name) == self._attributes[name]
                    for name in ("fingerprint", *identity)
                )
                # The seal comes last, so an index that was damaged since would get one.
                if same and not self._has_index(file):
                    raise ValueError("its index is not the one that was written")
        # All that h5py raises, depending on which of HDF5's structures is damaged.
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            if overwrite:
                return False
            raise OSError(
                f"{self.partial} is damaged ({error}) and cannot be continued. Discard "
                "it with --overwrite True"
            ) from error
        if same:
            return True
        if overwrite:
            return False
        changes = "; ".join(
            f"{name} was {before.get(name)!r}, is {value!r}"
            for name, value in identity.items()
            if before.get(name) != value
        )
        raise FileExistsError(
            f"{self.partial} is the beginning of another teacher cache: "
            f"{changes or 'other utterances, transcripts, recordings or speeds'}. Finish "
            "that one with its settings, or discard it with --overwrite True"
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
        fsync(_folder(self.path))
        os.close(self._fd)
        self._fd = fd

    def _index(self):
        """What is known of a cache before its states: dataset by name, as lists."""
        number = {text: i for i, text in enumerate(self._texts)}
        index = {
            "ids": [utt_id.encode() for utt_id in self._utterances],
            "text_index": [number[text] for text in self._utterances.values()],
            "text_hash": [text_hash(text) for text in self._texts],
            "offsets": self._offsets,
        }
        return {**index, "part_rows": self._part_rows} if self._part_rows else index

    def _has_index(self, file):
        """Whether an HDF5 file holds it, and a count that may be."""
        committed = int(own_dataset(file, "committed")[0])
        return 0 <= committed <= len(self._texts) and all(
            own_dataset(file, name)[...].tolist() == data
            for name, data in self._index().items()
        )

    def _write_hdf5(self, path):
        """The index, and room for states, mean, checksums and count."""
        values_shape = (self._offsets[-1], *self._shape)
        with h5py.File(path, "w", userblock_size=SEAL_BYTES) as file:
            file.attrs.update(self._attributes)
            for name, data in self._index().items():
                dtype = None
                if name == "ids":
                    dtype = h5py.string_dtype("utf-8", max(map(len, data)))
                file.create_dataset(name, data=data, dtype=dtype)
            _reserve(file, "values", values_shape, self._file_dtype)
            _reserve(file, "mean", self._shape, "<f4")
            _reserve(file, "checksums", (len(self._texts),), "<i8")
            _reserve(file, "committed", (1,), "<i8")
            file["committed"][0] = 0

    def _fingerprint(self, identity):
        lengths = [b - a for a, b in pairwise(self._offsets)]
        layout = list(zip(self._texts, lengths, strict=True))
        content = (identity, self._shape, layout, list(self._utterances.items()))
        if self._part_rows:
            content += (self._part_rows,)
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]

    def _compute_mean(self):
        """From the file, so that an interruption does not change it."""
        total = torch.zeros(self._shape, dtype=torch.float64)
        with open_hdf5(self.partial) as file:
            checksums = file["checksums"][...].tolist()
        for text, (start, stop) in enumerate(pairwise(self._offsets)):
            address = self._values + start * self._state_bytes
            shape = (stop - start, *self._shape)
            states = read_states(self._fd, address, shape, self._dtype, checksums[text])
            if states is None:
                raise OSError(
                    f"{self.partial}: the states of {self._utterance_with(text)} are "
                    f"not those that were written: a bad disk? Remove {self.partial} "
                    "and build again, on another disk with --cache"
                )
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
