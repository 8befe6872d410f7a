"""Audio of any kind, batches of like durations, and checks before training."""

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from conftest import write_corpus

from cif_lobes.data.batches import (
    check_tokens,
    eval_loader_options,
    make_dataset,
    read_audio,
    resample,
    train_loader_options,
)
from cif_lobes.data.tokens import CharTokenizer


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """A dataset of 40 utterances and its tokenizer."""
    folder = tmp_path_factory.mktemp("dataio")
    csv = write_corpus(folder, 40, 5)
    tokenizer = CharTokenizer(folder / "chars", 8, "en").fit(["abcd"])
    return make_dataset(csv, tokenizer, 16000), tokenizer


def test_what_has_no_transcript_is_refused(tmp_path):
    csv = write_corpus(tmp_path, 3, 6)
    tokenizer = CharTokenizer(tmp_path / "chars", 8, "en").fit(["abcd"])
    head, *rows = csv.read_text().splitlines()
    rows[1] = rows[1].rsplit(",", 1)[0] + ","
    csv.write_text("\n".join([head, *rows]) + "\n")
    with pytest.raises(ValueError, match=r"utt6-001 has no transcript \(1 of 3"):
        make_dataset(csv, tokenizer, 16000)
    csv.write_text(f"{head}\n")
    with pytest.raises(ValueError, match="has no utterance, only a header"):
        make_dataset(csv, tokenizer, 16000)


@pytest.mark.parametrize("rate", [8000, 11025, 22254, 44100, 48000])
def test_resampling_has_torchaudio_s_bits(rate):
    """Whether the filters are kept from clip to clip, or take too much memory for that."""
    for samples in (1, 999, rate // 2):
        audio = torch.randn(samples)
        expected = torchaudio.functional.resample(audio, rate, 16000)
        for _ in range(2):
            assert torch.equal(resample(audio, rate, 16000), expected)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
@pytest.mark.parametrize("rate, channels", [(16000, 1), (11025, 2), (44100, 1)])
def test_any_format_rate_and_channels(tmp_path, suffix, rate, channels):
    """A 440 Hz tone of half a second is that after reading, whatever it was stored as."""
    time = np.arange(rate // 2) / rate
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, np.stack([tone] * channels, axis=1), rate)
    audio = read_audio(path, 16000)
    assert audio.dtype == torch.float32 and audio.dim() == 1
    # MP3 pads to its own frames.
    assert len(audio) == pytest.approx(8000, rel=0.15)
    spectrum = torch.fft.rfft(audio[:8000]).abs()
    assert spectrum.argmax() * 16000 / 8000 == pytest.approx(440, abs=4)
    assert audio.abs().max() == pytest.approx(0.5, abs=0.08)


def test_stereo_is_mixed_down(tmp_path):
    left, right = np.ones(800), -np.ones(800)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1) * 0.5, 16000)
    assert read_audio(tmp_path / "a.wav", 16000).abs().max() < 1e-3


def test_items(tones):
    dataset, tokenizer = tones
    item = dataset[0]
    assert set(item) == {"id", "signal", "tokens", "text"}
    assert item["tokens"].tolist() == [*tokenizer.encode(item["text"]), 2]
    assert "teacher" not in item


def test_training_batches_hold_every_utterance_once(tones):
    dataset, _ = tones
    options = train_loader_options(dataset, 4.0, 4.0, 5, "random", 1, 0)
    sampler = options["batch_sampler"]
    orders = []
    for epoch in (1, 2, 1):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert sorted(i for b in batches for i in b) == list(range(len(dataset)))
        orders.append(batches)
    assert orders[0] == orders[2] != orders[1]


def test_batches_stay_below_the_limit(tones):
    dataset, _ = tones
    sampler = train_loader_options(dataset, 4.0, 4.0, 5, "random", 1, 0)[
        "batch_sampler"
    ]
    durations = [dataset.data[i]["duration"] for i in dataset.data_ids]
    for batch in sampler:
        assert len(batch) * max(durations[i] for i in batch) <= 4.0 + 1e-6


def test_a_limit_below_the_longest_utterance(tones):
    with pytest.raises(
        ValueError,
        match=r"device_batch_seconds 0.5 is less than the longest training utterance, utt",
    ):
        train_loader_options(tones[0], 4.0, 0.5, 5, "random", 1, 0)


def test_utterances_longer_than_an_update_are_told(tones, caplog):
    """They are updates of their own, as they were."""
    dataset, _ = tones
    durations = [row["duration"] for row in dataset.data.values()]
    for limit in (max(durations), sorted(durations)[-6]):
        caplog.clear()
        options = train_loader_options(dataset, limit, 4.0, 5, "random", 1, 0)
        longer = [i for i, seconds in enumerate(durations) if seconds > limit]
        told = f"less than {len(longer)} of 40 training utterances" in caplog.text
        assert told == bool(longer)
        assert {(i,) for i in longer} <= {tuple(b) for b in options["batch_sampler"]}
    assert longer


def test_evaluation_batches_hold_every_utterance_once(tones):
    sampler = eval_loader_options(tones[0], 0.5, 0)["batch_sampler"]
    assert sorted(i for b in sampler for i in b) == list(range(40))


def room(frames):
    """An encoder that gives every utterance so many."""
    return lambda seconds: [frames] * len(seconds)


def test_frames_of_all_utterances_are_counted_at_once(tones):
    dataset, tokenizer = tones
    rows, asked = dataset.data, []
    durations = [row["duration"] for row in rows.values()]

    def count(seconds):
        asked.append(seconds)
        return [10 * s for s in seconds]

    crowded = check_tokens(dataset, tokenizer, count, "train")
    assert asked == [durations]
    few = [i for i, row in rows.items() if len(row["wrd"]) + 1 > 10 * row["duration"]]
    assert crowded == few


def test_more_tokens_than_frames_are_reported(tones, caplog):
    dataset, tokenizer = tones
    assert check_tokens(dataset, tokenizer, room(100), "train") == []
    crowded = check_tokens(dataset, tokenizer, room(4), "train")
    expected = [i for i, row in dataset.data.items() if len(row["wrd"]) + 1 > 4]
    assert crowded == expected and crowded
    assert f"first {crowded[0]}" in caplog.text


@pytest.mark.parametrize("name", ["train", "valid"])
def test_a_tokenizer_of_another_text_is_refused(tones, tmp_path, name):
    other = CharTokenizer(tmp_path / "chars", 8, "en").fit(["xyz"])
    with pytest.raises(
        ValueError, match="tokens are unknown to .*made from other text"
    ):
        check_tokens(tones[0], other, room(100), name)


def test_validation_may_have_words_that_training_has_not(tones, tmp_path, caplog):
    """Word pieces of a small corpus never cover all of another text."""
    dataset, _ = tones
    texts = [row["wrd"] for row in dataset.data.values()]
    seen = sorted(set("".join(texts)))
    fewer = CharTokenizer(tmp_path / "chars", 16, "en").fit(["".join(seen[:-1])])
    text = "".join(texts).lower()
    share = sum(fewer.encode(t).count(fewer.unk_index) for t in texts) / len(text)
    assert 0.05 < share < 0.5
    check_tokens(dataset, fewer, room(100), "valid")
    assert "the training text does not have them" in caplog.text
    with pytest.raises(ValueError, match="made from other text"):
        check_tokens(dataset, fewer, room(100), "train")
