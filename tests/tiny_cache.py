"""Teacher caches with states of a test's choice."""

import h5py
import torch

from cif_lobes.cache.checks import checksum, write_seal
from cif_lobes.cache.writer import CacheWriter
from cif_lobes.data.manifest import read_manifest
from cif_lobes.data.tokens import CharTokenizer

WIDTH = 12  # of the states


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


def make_cache(corpus, folder, layer):
    """A cache of random states, one vector per letter: its path and manifest folder.

    Arguments
    ---------
    corpus : tuple of str
        Its first csv is taught.
    folder : pathlib.Path
    layer : int or list of int
        As a text teacher's.
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
    }
    path = folder / "teacher.h5"
    lengths = {text: len(text) + 1 for text in distinct}
    with CacheWriter(path, lengths, texts, shape, "float16", identity) as writer:
        for text in distinct:
            writer.append(vectors[tokenizer.encode(text) + [2]], num_texts=1)
        writer.finish()
    return path, folder
