"""A cache that is missing, unfinished, damaged or forged is told from a sound one."""

import os
import random

import h5py
import pytest
import torch
from tiny_cache import UTTERANCES, H, Rows, damage, open_writer, states_of, write

from cif_lobes.cache.checks import write_seal
from cif_lobes.cache.reader import TeacherCache


def test_a_missing_an_unfinished_and_a_damaged_file_are_told_apart(tmp_path):
    path = tmp_path / "bert.h5"
    with pytest.raises(FileNotFoundError, match="does not exist. Run: python extract_"):
        TeacherCache(path)
    with open_writer(path):
        pass
    with pytest.raises(FileNotFoundError, match="bert.h5.partial is there"):
        TeacherCache(path)
    os.rename(f"{path}.partial", path)
    with pytest.raises(OSError, match="has no seal: an unfinished build was renamed"):
        TeacherCache(path)
    cache = write(path, overwrite=True)
    os.truncate(path, os.path.getsize(path) - 100)
    with pytest.raises(OSError, match="bert.h5 is damaged .*interrupted copy. Copy it"):
        TeacherCache(path)
    os.truncate(path, 3000)
    with pytest.raises(
        OSError, match="the states of a are not those that were written"
    ):
        cache["a"]
    path.write_bytes(b"no HDF5")
    with pytest.raises(OSError, match="bert.h5 cannot be read .*: it is no HDF5 file"):
        TeacherCache(path)


@pytest.mark.parametrize("version", [None, 1])
def test_another_format_is_refused_with_its_own_command(tmp_path, version):
    path = tmp_path / "bert.h5"
    with h5py.File(path, "w") as file:
        file["feats"] = [1.0]
        if version:
            file.attrs.update(format_version=version, command="python x.py mine.yaml")
    command = "python x.py mine.yaml" if version else "python extract_teacher.py build"
    message = f"format_version {version}, this program reads 2.*Run: {command}"
    with pytest.raises(OSError, match=message):
        TeacherCache(path)


# --- damage ---


def read_all(path):
    """All that a training reads of a cache."""
    cache = TeacherCache(path)
    states = {utt_id: cache[utt_id] for utt_id in cache}
    return states, cache.mean, cache.attributes, cache.problems(UTTERANCES)


def test_any_flipped_bit_is_found(tmp_path):
    path, rng = tmp_path / "bert.h5", random.Random(0)
    write(path)
    sound = path.read_bytes()
    for _ in range(200):
        position = rng.randrange(len(sound))
        damage(path, position, bytes([sound[position] ^ 1 << rng.randrange(8)]))
        with pytest.raises(OSError, match="bert.h5.*Copy it again, or "):
            read_all(path)
        damage(path, position, sound[position : position + 1])
    read_all(path)


def test_a_lost_block_names_the_utterance_and_the_remedy(tmp_path):
    path = tmp_path / "bert.h5"
    shape = (100, H)
    cache = write(path, shape=shape)
    with h5py.File(path) as file:
        address = file["values"].id.get_offset()
    damage(path, address, bytes(4096))
    with pytest.raises(OSError) as error:
        cache["b"]
    for part in (str(path), "states of b", "Copy it again", "--overwrite True"):
        assert part in str(error.value)
    # The others are read on.
    assert torch.equal(cache["a"], states_of("same", shape).half())


def test_a_worker_says_what_is_damaged(tmp_path):
    path = tmp_path / "bert.h5"
    rows = Rows(write(path))
    with h5py.File(path) as file:
        damage(path, file["values"].id.get_offset() + 2 * H, b"\x7f")
    loader = torch.utils.data.DataLoader(rows, num_workers=1)
    with pytest.raises(OSError, match="states of b are not .*--overwrite True"):
        list(loader)


def point_elsewhere(file, name, how, other):
    """Replace a dataset by one whose numbers lie in another file."""
    old = file[name]
    shape, dtype = old.shape, old.dtype
    del file[name]
    if how == "external storage":
        file.create_dataset(name, shape, dtype, external=[(other, 0, 10**6)])
    elif how == "virtual":
        layout = h5py.VirtualLayout(shape, dtype)
        layout[...] = h5py.VirtualSource(other, name, shape)
        file.create_virtual_dataset(name, layout)
    else:
        file[name] = h5py.ExternalLink(other, name)


@pytest.mark.parametrize("how", ["external storage", "virtual", "external link"])
@pytest.mark.parametrize("name", ["values", "mean", "ids", "checksums"])
def test_a_forged_cache_reads_no_other_file(tmp_path, name, how):
    path, other = tmp_path / "bert.h5", tmp_path / "other.h5"
    write(other)
    write(path)
    with h5py.File(path, "r+") as file:
        values = file["values"].id.get_offset(), file["values"].nbytes
        point_elsewhere(file, name, how, str(other))
    with open(path, "r+b") as file:
        write_seal(file.fileno(), *values)
    with pytest.raises(OSError, match=f"'{name}' is no dataset of its own"):
        TeacherCache(path)


# --- writing ---
