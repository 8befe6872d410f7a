"""Small teacher caches, with states of a test's choice."""

import h5py
import torch

from cif_lobes.cache.checks import checksum, write_seal
from cif_lobes.cache.reader import TeacherCache
from cif_lobes.cache.writer import CacheWriter
from cif_lobes.data.manifest import read_manifest
from cif_lobes.data.tokens import CharTokenizer

WIDTH = 12  # of the states
H = 8
TEXTS = {"longest": 8, "middle": 7, "same": 5, "": 1}
UTTERANCES = {"a": "same", "b": "longest", "c": "same", "d": "", "e": "middle"}
IDENTITY = {
    "layer": 12,
    "teacher_weights": "w1",
    "tokenizer_fingerprint": "t1",
    "text_normalization": "zh",
}


def states_of(text, shape=(H,)):
    generator = torch.Generator().manual_seed(sum(text.encode()))
    return torch.randn(TEXTS[text], *shape, generator=generator)


def open_writer(path, texts=TEXTS, shape=(H,), dtype="float16", **changes):
    overwrite = changes.pop("overwrite", False)
    utterances = changes.pop("utterances", UTTERANCES)
    identity = {**IDENTITY, **changes}
    notes = {"command": "python extract_teacher.py extract_bert.yaml"}
    return CacheWriter(
        path, texts, utterances, shape, dtype, identity, notes, overwrite=overwrite
    )


def write(path, texts=TEXTS, shape=(H,), **options):
    with open_writer(path, texts, shape, **options) as writer:
        for text in list(texts)[writer.committed :]:
            writer.append(states_of(text, shape), num_texts=1)
        writer.finish()
    return TeacherCache(path)


def change_states(path, change):
    """Give a float16 cache other states, as if a teacher had said them.

    Arguments
    ---------
    path : str
        The cache, changed in place.
    change : callable
        From `values` as an array [N, ...] to their like.
    """
    with h5py.File(path, "r+") as file:
        file["values"][...] = change(file["values"][...])
        offsets = file["offsets"][...].tolist()
        states = torch.from_numpy(file["values"][...])
        for text, start in enumerate(offsets[:-1]):
            file["checksums"][text] = checksum(states[start : offsets[text + 1]])
        values = file["values"].id.get_offset(), file["values"].nbytes
    with open(path, "r+b") as file:
        write_seal(file.fileno(), *values)


def make_cache(corpus, folder, layer, **attributes):
    """A cache of random states, one vector per letter: its path and manifest folder.

    Arguments
    ---------
    corpus : tuple of str
        Its first csv is taught.
    folder : pathlib.Path
    layer : int or list of int
        As a text teacher's.
    **attributes
        That decide the states as well.
    """
    texts = {u.id: u.wrd for u in read_manifest(corpus[0])}
    tokenizer = CharTokenizer(folder / "chars_8.txt", 8, "zh").fit(texts.values())
    shape = (len(layer), WIDTH) if isinstance(layer, list) else (WIDTH,)
    vectors = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))
    distinct = sorted(set(texts.values()), key=len)
    identity = {
        "layer": layer,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "text_normalization": "zh",
        **attributes,
    }
    path = folder / "teacher.h5"
    lengths = {text: len(text) + 1 for text in distinct}
    with CacheWriter(path, lengths, texts, shape, "float16", identity) as writer:
        for text in distinct:
            writer.append(vectors[tokenizer.encode(text) + [2]], num_texts=1)
        writer.finish()
    return path, folder


def damage(path, start, new):
    """Write bytes over a file."""
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(new)


class Rows(torch.utils.data.Dataset):
    def __init__(self, cache):
        self.cache = cache

    def __len__(self):
        return 200

    def __getitem__(self, index):
        utt_id = list(UTTERANCES)[index % 5]
        states = self.cache[utt_id]
        return torch.equal(states, states_of(UTTERANCES[utt_id]).half())
