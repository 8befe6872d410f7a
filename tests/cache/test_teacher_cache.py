"""The cache gives back what was stored, and refuses what it was not built for."""

import pickle

import h5py
import pytest
import torch
from tiny_cache import TEXTS, UTTERANCES, H, Rows, states_of, write


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
    assert cache.identity["layer"] == [12, 4]
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
