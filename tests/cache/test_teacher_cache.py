"""The cache gives back what was stored, refuses what it was not built for, and
survives being killed at any moment."""

import multiprocessing
import os
import pickle
import random
import signal
import time

import h5py
import pytest
import torch

from cif_lobes.cache.checks import write_seal
from cif_lobes.cache.reader import TeacherCache
from cif_lobes.cache.writer import CacheWriter

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


@pytest.mark.parametrize("shape", [(H,), (3, H), (1, H)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_states_come_back_rounded_once(tmp_path, dtype, shape):
    cache = write(tmp_path / "bert.h5", shape=shape, dtype=dtype)
    for utt_id, text in UTTERANCES.items():
        expected = states_of(text, shape).to(getattr(torch, dtype))
        assert cache[utt_id].dtype == expected.dtype
        assert torch.equal(cache[utt_id], expected)
        assert cache.num_states(utt_id) == TEXTS[text]
    everything = torch.cat([states_of(text, shape) for text in TEXTS])
    torch.testing.assert_close(cache.mean, everything.mean(0), atol=1e-2, rtol=0)
    assert cache.shape == shape


def test_some_layers_in_any_order(tmp_path):
    cache = write(tmp_path / "bert.h5", shape=(3, H), layer=[4, 8, 12])
    all_states, all_means = cache["b"], cache.mean
    cache.use_layers([12, 4])
    for reader in (cache, pickle.loads(pickle.dumps(cache))):
        assert torch.equal(reader["b"], all_states[:, [2, 0]])
        assert torch.equal(reader.mean, all_means[[2, 0]]) and reader.shape == (2, H)
    one = write(tmp_path / "one.h5")
    one.use_layers(12)
    assert one.shape == (H,) and one["a"].shape == (5, H)


@pytest.mark.parametrize("wanted", [[4, 6], 6, []])
def test_a_layer_that_is_not_there(tmp_path, wanted):
    cache = write(tmp_path / "bert.h5", shape=(3, H), layer=[4, 8, 12])
    with pytest.raises(ValueError, match=r"has layer \[4, 8, 12\] of the teacher"):
        cache.use_layers(wanted)


def test_equal_transcripts_are_stored_once(tmp_path):
    cache = write(tmp_path / "bert.h5")
    assert len(cache) == 5 and list(cache) == list(UTTERANCES)
    assert (cache.total_texts, cache.total_states) == (4, 21)
    with h5py.File(cache.path) as file:
        assert file["values"].shape == (21, H)


def test_the_states_belong_to_the_caller(tmp_path):
    cache = write(tmp_path / "bert.h5")
    cache["a"].zero_()
    assert torch.equal(cache["a"], states_of("same").half())


def test_attributes_say_what_made_it(tmp_path):
    cache = write(tmp_path / "bert.h5", layer=[4, 8])
    assert cache.attributes["layer"] == [4, 8]
    assert cache.attributes["teacher_weights"] == "w1"
    assert cache.attributes["dtype"] == "float16"
    assert cache.attributes["command"].startswith("python extract_teacher.py")


# --- refusals ---


def check(cache, texts=UTTERANCES, tokenizer="t1", normalization="zh", **expected):
    cache.check(texts, tokenizer, normalization, **expected)


def test_a_fitting_cache_is_accepted(tmp_path):
    cache = write(tmp_path / "bert.h5")
    check(cache)
    check(cache, {"a": "same"}, layer=12)  # it may hold more


@pytest.mark.parametrize(
    "changes, messages",
    [
        ({"tokenizer": "t2"}, ["tokenizer_fingerprint is 't1', expected 't2'"]),
        ({"normalization": "en"}, ["text_normalization is 'zh', expected 'en'"]),
        ({"layer": 8}, ["layer is 12, expected 8"]),
        ({"teacher_weights": "w2"}, ["teacher_weights is 'w1', expected 'w2'"]),
        (
            {"texts": {**UTTERANCES, "x1": "new", "x2": "newer"}},
            ["5 of 7 utterances (2 missing, first x1)", "another manifest"],
        ),
        (
            {"texts": {**UTTERANCES, "b": "edited"}},
            ["1 of 5 transcripts differ", "first b, now 'edited'"],
        ),
    ],
)
def test_a_stale_or_foreign_cache_is_refused(tmp_path, changes, messages):
    cache = write(tmp_path / "bert.h5")
    with pytest.raises(ValueError) as error:
        check(cache, **changes)
    command = "run: python extract_teacher.py extract_bert.yaml --overwrite True"
    for message in [*messages, "bert.h5", command]:
        assert message in str(error.value)


def test_an_unknown_utterance_is_named(tmp_path):
    cache = write(tmp_path / "bert.h5")
    assert "x" not in cache and "a" in cache
    with pytest.raises(KeyError, match="5 utterances, none with id x: built from"):
        cache["x"]


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


def damage(path, start, new):
    """Write bytes over a file."""
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(new)


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


def test_wrong_states_name_the_utterance(tmp_path):
    with open_writer(tmp_path / "bert.h5") as writer:
        with pytest.raises(ValueError, match="utterance b on, expected \\[15, 8\\]"):
            writer.append(torch.zeros(14, H), num_texts=2)
        too_large = torch.zeros(15, H)
        too_large[9, 3] = 70000.0
        with pytest.raises(ValueError, match="utterance e: .*not finite.*bfloat16"):
            writer.append(too_large, num_texts=2)
        assert writer.committed == 0
        with pytest.raises(ValueError, match="0 of 4 texts written"):
            writer.finish()


def test_a_finished_cache_is_replaced_only_on_demand_and_in_one_step(tmp_path):
    path = tmp_path / "bert.h5"
    before = write(path)
    with pytest.raises(FileExistsError, match="--overwrite True"):
        open_writer(path)
    with open_writer(path, overwrite=True, layer=8) as writer:
        assert torch.equal(TeacherCache(path)["a"], before["a"])
        for text in TEXTS:
            writer.append(states_of(text) + 1, num_texts=1)
        writer.finish()
    # Who reads the old one goes on reading the old one.
    assert torch.equal(before["a"], states_of("same").half())
    assert torch.equal(TeacherCache(path)["a"], (states_of("same") + 1).half())
    assert os.listdir(tmp_path) == ["bert.h5"]


def test_an_interrupted_build_of_something_else_is_not_continued(tmp_path):
    path = tmp_path / "bert.h5"
    with open_writer(path) as writer:
        writer.append(states_of("longest"), num_texts=1)
    with pytest.raises(FileExistsError, match="layer was 12, is 8"):
        open_writer(path, layer=8)
    with pytest.raises(FileExistsError, match="dtype was 'float16', is 'float32'"):
        open_writer(path, dtype="float32")
    with pytest.raises(FileExistsError, match="other utterances or transcripts"):
        open_writer(path, utterances={**UTTERANCES, "f": "same"})
    with open_writer(path) as writer:
        assert writer.committed == 1
    with open_writer(path, layer=8, overwrite=True) as writer:
        assert writer.committed == 0


def test_damage_to_an_unfinished_build_does_not_get_a_seal(tmp_path):
    path, partial = tmp_path / "bert.h5", tmp_path / "bert.h5.partial"
    for name in ("values", "ids", "committed"):
        with open_writer(path, overwrite=True) as writer:
            writer.append(states_of("longest"), num_texts=1)
        with h5py.File(partial) as file:
            start = file[name].id.get_offset()
        damage(partial, start, b"\x7f")
        if name != "values":
            with pytest.raises(OSError, match="partial is damaged .*--overwrite True"):
                open_writer(path)
            continue
        with pytest.raises(OSError, match="states of b are not .*Remove .*partial"):
            write(path)
        partial.unlink()
    write(path, overwrite=True)


def test_two_builds_of_one_cache_do_not_mix(tmp_path):
    path = tmp_path / "bert.h5"
    with open_writer(path):
        with pytest.raises(BlockingIOError, match="another process"):
            open_writer(path)
        with pytest.raises(BlockingIOError, match="another process"):
            open_writer(path, layer=8, overwrite=True)
    write(path)


def test_writes_that_are_cut_short_are_continued(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:7], at))
    cache = write(tmp_path / "bert.h5")
    assert torch.equal(cache["b"], states_of("longest").half())


def test_a_full_disk_is_noticed_before_the_work(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match="takes 0.00 GB, free are"):
        open_writer(tmp_path / "bert.h5")


# --- being killed ---


def in_child(function, *arguments):
    """A forked process: nothing has to be imported again."""
    process = multiprocessing.get_context("fork").Process(
        target=function, args=arguments
    )
    process.start()
    return process


def write_and_die(path, last_call):
    """Die just before, or in the middle of, the last_call-th change to the disk."""
    calls = 0

    def dying(function):
        def wrapper(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == last_call:
                if function is os_pwrite:
                    fd, data, address = arguments
                    function(fd, data[: len(data) // 2], address)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return wrapper

    os_pwrite = os.pwrite
    for name in ("open", "pwrite", "fsync", "replace"):
        setattr(os, name, dying(getattr(os, name)))
    h5py.File.create_dataset = dying(h5py.File.create_dataset)
    write(path)


def test_a_kill_at_any_change_to_the_disk_loses_nothing(tmp_path):
    complete = write(tmp_path / "complete.h5")
    exit_code, last_call, resumed = None, 0, 0
    while exit_code != 0:
        last_call += 1
        path = tmp_path / f"{last_call}.h5"
        child = in_child(write_and_die, path, last_call)
        child.join(60)
        exit_code = child.exitcode
        assert exit_code in (0, -signal.SIGKILL)
        if exit_code and not path.exists():
            with open_writer(path) as writer:
                resumed += writer.committed > 0
            write(path)
        cache = TeacherCache(path)
        assert all(torch.equal(cache[u], complete[u]) for u in UTTERANCES)
        assert torch.equal(cache.mean, complete.mean)
        assert cache.attributes == complete.attributes
    assert last_call > 20 and resumed > 8


def write_slowly(path):
    with open_writer(path) as writer:
        for text in list(TEXTS)[writer.committed :]:
            time.sleep(0.01)
            writer.append(states_of(text), num_texts=1)
        writer.finish()


def test_kills_at_random_moments_lose_nothing(tmp_path):
    path = tmp_path / "bert.h5"
    started = time.monotonic()
    in_child(write_slowly, tmp_path / "measured.h5").join(60)
    duration = time.monotonic() - started
    rng = random.Random(0)
    for moment in [rng.random() * duration for _ in range(10)] + [60]:
        child = in_child(write_slowly, path)
        child.join(moment)
        child.kill()
        child.join(60)
        assert child.exitcode in (0, -signal.SIGKILL)
        if path.exists():
            cache = TeacherCache(path)
            for utt_id, text in UTTERANCES.items():
                assert torch.equal(cache[utt_id], states_of(text).half())
            path.unlink()
    assert child.exitcode == 0


# --- many readers ---


class Rows(torch.utils.data.Dataset):
    def __init__(self, cache):
        self.cache = cache

    def __len__(self):
        return 200

    def __getitem__(self, index):
        utt_id = list(UTTERANCES)[index % 5]
        states = self.cache[utt_id]
        return torch.equal(states, states_of(UTTERANCES[utt_id]).half())


@pytest.mark.parametrize("method, workers", [("fork", 2), ("spawn", 1)])
def test_workers_and_parent_read_one_cache(tmp_path, method, workers):
    rows = Rows(write(tmp_path / "bert.h5"))
    loader = torch.utils.data.DataLoader(
        rows, batch_size=8, num_workers=workers, multiprocessing_context=method
    )
    for batch in loader:
        assert batch.all() and rows[0]


def test_a_pickled_cache_opens_itself_unless_it_was_replaced(tmp_path):
    path = tmp_path / "bert.h5"
    pickled = pickle.dumps(write(path))
    assert len(pickled) < 1000  # not the index
    assert torch.equal(pickle.loads(pickled)["a"], states_of("same").half())
    write(path, layer=8, overwrite=True)
    with pytest.raises(OSError, match="replaced by another"):
        pickle.loads(pickled)


def test_any_id_and_any_text_can_be_stored(tmp_path):
    ids = {"ü/录音 1": "same", "x" * 300: "longest", "d": "", "e": "middle"}
    cache = write(tmp_path / "bert.h5", utterances=ids)
    assert list(cache) == list(ids)
    assert torch.equal(cache["ü/录音 1"], states_of("same").half())
