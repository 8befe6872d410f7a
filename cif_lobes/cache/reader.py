"""Teacher states on disk: one HDF5 file, ragged, keyed by utterance id.

    values      [N, H] or [N, L, H]  states of the distinct texts, one after another
    offsets     [texts + 1]          where each text begins in `values`
    text_hash   [texts]              tells an edited transcript from the one it was
    ids         [utterances]         UTF-8
    text_index  [utterances]         which text an utterance has
    mean        [H] or [L, H]        over all N states
    checksums   [texts]              CRC-32 of the states of each text
    committed   [1]                  texts whose states are on disk
    part_rows   [texts, parts]       of an ensemble's cache: states in each named part

and, as attributes, all that decided the states. A text has U + 1 states, one per token
and one for end of sentence. bfloat16, unknown to HDF5, is stored as its 16 bits.

`values` is one contiguous block at a known place in the file, so that states are read
with plain positioned reads, without an HDF5 handle, which must not be shared with forked
workers. Nothing is read that a checksum does not cover, see `checks`.
"""

import hashlib
import math
import os

import h5py
import torch

from cif_lobes.cache.checks import own_dataset, read_seal, read_states

FORMAT_VERSION = 2
BUILD_COMMAND = "python extract_teacher.py build <hparams/extract_*.yaml>"

# Attributes that only say how a cache came about.
NOTES = {"teacher", "ears", "recognizer", "speeds", "versions", "command"}
NOTES |= {"fingerprint", "format_version"}

# By name: in memory and in the file.
DTYPES = {
    "float16": (torch.float16, "<f2"),
    "bfloat16": (torch.bfloat16, "<u2"),
    "float32": (torch.float32, "<f4"),
}


class TeacherCache:
    """Reads the teacher states of an utterance. Can be pickled, and shared by forking.

    Arguments
    ---------
    path : str
        A finished cache, from extract_teacher.py.

    Attributes
    ----------
    attributes : dict
        What made the cache: teacher, teacher_weights, layer, teacher_tokenizer,
        tokenizer_fingerprint, text_normalization, dtype, versions, command.
    shape : tuple of int
        Of one state: (H,), or (L, H) if a list of L layers was asked for. After
        `use_layers`, L is the number of those.
    dtype : torch.dtype
        Of the states.
    mean : torch.Tensor, [H] or [L, H], float32
        Mean of all states, to centre them: some teachers' differ little from it.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or its build has not finished.
    OSError
        If the file is damaged or of another format.

    Example
    -------
    >>> import tempfile
    >>> from cif_lobes.cache.writer import CacheWriter
    >>> path = tempfile.mkdtemp() + "/bert.h5"
    >>> with CacheWriter(path, {"hi": 3}, {"utt1": "hi"}, (8,), "float16", {}) as new:
    ...     new.append(torch.ones(3, 8), num_texts=1)
    ...     new.finish()
    >>> TeacherCache(path)["utt1"].shape
    torch.Size([3, 8])
    """

    def __init__(self, path):
        self.path = os.fspath(path)
        if not os.path.exists(self.path):
            raise FileNotFoundError(_absent(self.path))
        self._columns = None  # of the axis of layers: all
        self._file = open(self.path, "rb", buffering=0)
        try:
            self._read_index()
        # All that h5py raises, depending on which of HDF5's structures is damaged.
        except (KeyError, RuntimeError, ValueError) as error:
            raise OSError(
                f"cache {self.path} is damaged ({error}), say by a bad disk or "
                "an interrupted copy. Copy it again, or build it again: "
                f"{BUILD_COMMAND} --overwrite True"
            ) from error

    def _read_index(self):
        seal = read_seal(self._file.fileno())
        with open_hdf5(self.path) as file:
            self.attributes = attributes_of(file)
            version = self.attributes.get("format_version")
            if version != FORMAT_VERSION:
                raise OSError(
                    f"cache {self.path} has format_version {version}, this "
                    f"program reads {FORMAT_VERSION}: made by something else, or by "
                    "another version (1 had no checksums, so that damage went "
                    f"unnoticed). Run: {self.build_command} --overwrite True"
                )
            if seal is None:
                raise OSError(
                    f"cache {self.path} has no seal: an unfinished build was "
                    f"renamed, or its beginning is damaged. Copy it again, or run: "
                    f"{self.build_command} --overwrite True"
                )
            values = own_dataset(file, "values")
            self._address = values.id.get_offset()
            if seal != (self._address, values.nbytes):
                raise ValueError("the seal is on other states")
            self.shape = self._stored_shape = values.shape[1:]
            self.dtype = DTYPES[self.attributes["dtype"]][0]
            self.mean = torch.from_numpy(own_dataset(file, "mean")[...])
            self._text_hash = own_dataset(file, "text_hash")[...].tolist()
            self._offsets = own_dataset(file, "offsets")[...].tolist()
            self._checksums = own_dataset(file, "checksums")[...].tolist()
            if "parts" in self.attributes:
                self._part_rows = own_dataset(file, "part_rows")[...].tolist()
            ids = own_dataset(file, "ids")[...].tolist()
            indices = own_dataset(file, "text_index")[...].tolist()
        decoded = (utt_id.decode() for utt_id in ids)
        self._text_index = dict(zip(decoded, indices, strict=True))

    def __getitem__(self, utt_id):
        """States of an utterance: [U + 1, H] or [U + 1, L, H], dtype as stored."""
        start, stop = self._rows(utt_id)
        states = read_states(
            self._file.fileno(),
            self._address + start * math.prod(self._stored_shape) * self.dtype.itemsize,
            (stop - start, *self._stored_shape),
            self.dtype,
            self._checksums[self._text_index[utt_id]],
        )
        if states is None:
            raise OSError(
                f"cache {self.path}: the states of {utt_id} are not those that "
                "were written (their checksum differs), say by a bad disk or an "
                "interrupted copy. Copy it again, or build it again: "
                f"{self.build_command} --overwrite True"
            )
        return states if self._columns is None else states[:, self._columns]

    def use_layers(self, layers):
        """Give only some of the layers from now on, in this order.

        Arguments
        ---------
        layers : list of int, or int
            Numbers of the teacher's layers, of those in `attributes["layer"]`.

        Raises
        ------
        ValueError
            If the cache lacks one.
        """
        stored = self.attributes.get("layer")
        layers = _as_list(layers)
        if not layers or set(layers) - {*_as_list(stored)}:
            raise ValueError(
                f"teacher cache {self.path} has layer {stored} of the teacher, asked for "
                f"is {layers}: choose among its layers, or build one with these: "
                f"{self.build_command} --layer '{sorted(layers)}' --overwrite True"
            )
        if isinstance(stored, list):
            self._take([stored.index(number) for number in layers])

    def _take(self, columns):
        self._columns = columns
        self.shape = (len(columns), *self._stored_shape[1:])
        self.mean = self.mean[columns]

    def parts(self, utt_id):
        """The named parts of an utterance's states, of a cache that has such.

        Arguments
        ---------
        utt_id : str

        Returns
        -------
        dict of str to torch.Tensor
        """
        rows = self._part_rows[self._text_index[utt_id]]
        parts = self[utt_id].split(rows)
        return dict(zip(self.attributes["parts"], parts, strict=True))

    def num_states(self, utt_id):
        """Number of states of an utterance, U + 1."""
        start, stop = self._rows(utt_id)
        return stop - start

    @property
    def identity(self):
        """dict: attributes that decide the states, `layer` of the layers in use."""
        found = {n: v for n, v in self.attributes.items() if n not in NOTES}
        if self._columns is not None:
            found["layer"] = [found["layer"][column] for column in self._columns]
        return found

    @property
    def build_command(self):
        """The command that made this cache."""
        return self.attributes.get("command", BUILD_COMMAND)

    @property
    def total_states(self):
        """Number of states of all distinct texts."""
        return self._offsets[-1]

    @property
    def total_texts(self):
        """Number of distinct texts."""
        return len(self._text_hash)

    def __len__(self):
        return len(self._text_index)

    def __contains__(self, utt_id):
        return utt_id in self._text_index

    def __iter__(self):
        return iter(self._text_index)

    def problems(self, texts, **expected):
        """Why this cache cannot serve these transcripts.

        Arguments
        ---------
        texts : dict of str to str
            Normalised transcript of each utterance id.
        **expected
            Values that attributes must have.

        Returns
        -------
        list of str
            Empty if it can. More utterances in the cache than asked for are no problem.
        """
        return self._unlike_attributes(expected) + self._unlike_texts(texts)

    def has(self, utt_id, text):
        """Whether there are states of this utterance with this text."""
        if utt_id not in self:
            return False
        return self._text_hash[self._text_index[utt_id]] == text_hash(text)

    def check(self, texts, tokenizer_fingerprint, text_normalization, **expected):
        """Refuse to go on with a cache that was built for something else.

        Meant to be called once, with all training transcripts, before training.

        Arguments
        ---------
        texts : dict of str to str
            Normalised transcript of each utterance id.
        tokenizer_fingerprint : str
            Of the recogniser's tokenizer.
        text_normalization : str
            The language whose rules normalised the transcripts.
        **expected
            Further attributes, for instance layer=12.

        Raises
        ------
        ValueError
            With everything that does not fit and the command that mends it.
        """
        expected["tokenizer_fingerprint"] = tokenizer_fingerprint
        expected["text_normalization"] = text_normalization
        problems = self.problems(texts, **expected)
        if problems:
            raise ValueError(
                f"teacher cache {self.path}: {'; '.join(problems)}. With the settings "
                f"and manifests of now, run: {self.build_command} --overwrite True"
            )

    def _unlike_attributes(self, expected):
        return [
            f"{name} is {self.attributes.get(name)!r}, expected {value!r}"
            for name, value in expected.items()
            if self.attributes.get(name) != value
        ]

    def _unlike_texts(self, texts):
        found = []
        missing = [utt_id for utt_id in texts if utt_id not in self]
        if missing:
            found.append(
                f"{len(texts) - len(missing):,} of {len(texts):,} utterances "
                f"({len(missing):,} missing, first {missing[0]}): built from another "
                "manifest"
            )
        changed = [
            utt_id
            for utt_id, text in texts.items()
            if utt_id in self and not self.has(utt_id, text)
        ]
        if changed:
            found.append(
                f"{len(changed):,} of {len(texts):,} transcripts differ from those it "
                f"was built from (first {changed[0]}, now {texts[changed[0]]!r}): the "
                "manifest was edited, or text normalisation changed"
            )
        return found

    def _rows(self, utt_id):
        if utt_id not in self:
            raise KeyError(
                f"teacher cache {self.path} has {len(self):,} utterances, none with id "
                f"{utt_id}: built from another manifest. "
                f"Run: {self.build_command} --overwrite True"
            )
        index = self._text_index[utt_id]
        return self._offsets[index], self._offsets[index + 1]

    def __reduce__(self):
        return _reopen, (self.path, self.attributes["fingerprint"], self._columns)


def text_hash(text):
    """64-bit hash of a normalised transcript, as an int that HDF5 can store."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def open_hdf5(path):
    """The HDF5 side of a cache, for reading."""
    try:
        # Network file systems often cannot lock, and nobody writes through HDF5.
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        raise OSError(
            f"cache {path} cannot be read ({error}): it is no HDF5 file, or "
            "was truncated, say by an interrupted copy. Copy it or build it again"
        ) from error


def attributes_of(file):
    """HDF5 attributes as str, int and list."""
    return {
        name: value.tolist() if hasattr(value, "tolist") else value
        for name, value in file.attrs.items()
    }


def _as_list(layers):
    return layers if isinstance(layers, list) else [layers]


def _absent(path):
    if os.path.exists(f"{path}.partial"):
        return (
            f"teacher cache {path} is not finished, {path}.partial is there: its build "
            "was interrupted or still runs. Run its command again, and it goes on "
            "where it stopped"
        )
    return f"teacher cache {path} does not exist. Run: {BUILD_COMMAND}"


def _reopen(path, fingerprint, columns):
    """Unpickle: a spawned worker opens the file itself."""
    cache = TeacherCache(path)
    if cache.attributes["fingerprint"] != fingerprint:
        raise OSError(
            f"teacher cache {path} was replaced by another while in use. Start again"
        )
    if columns is not None:
        cache._take(columns)
    return cache
