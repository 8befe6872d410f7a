"""A cache survives being killed at any moment while it is built."""

import multiprocessing
import os
import random
import signal
import time

import h5py
import pytest
import torch
from tiny_cache import TEXTS, UTTERANCES, H, damage, open_writer, states_of, write

from cif_lobes.cache.reader import TeacherCache


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
    with pytest.raises(
        FileExistsError, match="other utterances, transcripts, recordings or speeds"
    ):
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
