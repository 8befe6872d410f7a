"""MiniSpeech: the sentences, the recordings, and the folder they lie in."""

import doctest
import random
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

RECIPE = Path(__file__).parents[2] / "recipes" / "MiniSpeech"
sys.path.insert(0, str(RECIPE))

import grammar  # noqa: E402
import mini_prepare  # noqa: E402
from mini_prepare import TRAIN, VARIANTS, plan, prepare_mini_speech  # noqa: E402

HOURS = 0.002  # 3 utterances of train, 10 of dev, 10 of test


@pytest.fixture(scope="module")
def sample():
    """Three thousand sentences."""
    return grammar.sentences(3000, seed=0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A tiny corpus, made by two processes at a time. Tests leave it as it is."""
    pytest.importorskip("espeakng_loader")
    folder = tmp_path_factory.mktemp("mini_speech")
    prepare_mini_speech(folder, hours=HOURS, processes=2)
    return folder


def contents(folder):
    """Every file below a folder, by relative path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def transcripts(folder, split):
    """Text of each utterance of a split."""
    lines = []
    for path in sorted((folder / split).rglob("*.trans.txt")):
        lines += path.read_text().splitlines()
    return dict(line.split(" ", 1) for line in lines)


def alignments(folder, split):
    """(start, duration, word) of each word of each utterance of a split, seconds."""
    words = {}
    for line in (folder / f"{split}.ctm").read_text().splitlines():
        utterance, _, start, duration, word = line.split()
        words.setdefault(utterance, []).append((float(start), float(duration), word))
    return words


@pytest.mark.parametrize("module", [grammar, mini_prepare])
def test_examples_in_docstrings(module):
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


def test_sentences_are_distinct_short_and_plain(sample):
    assert len(set(sample)) == len(sample)
    for text in sample:
        assert re.fullmatch(r"[a-z]+( [a-z]+){3,9}", text), text


def test_verbs_agree_with_subjects(sample):
    forms = [verb[0] for verb in grammar._PEOPLE_VERBS + grammar._ANIMAL_VERBS]
    third = "|".join(form["third"] for form in forms)
    base = "|".join(form["base"] for form in forms)
    adverb = "(always|often|usually|sometimes|never)"
    wrong = re.compile(
        rf"\b(he|she) ({adverb} )?({base}|are|am|were|do)\b"
        rf"|\b(we|they) ({adverb} )?({third}|is|am|was|does)\b"
        r"|(?<!and )\bi (is|are|were|does)\b|\b(is|are) i\b|\bthere (is|was) many\b"
    )
    right = re.compile(rf"\b(he|she) {adverb} ({third})\b")
    # Questions and futures rightly put the base form after he and she.
    plain = [t for t in sample if not re.search(r"\b(did|does|will|can|could)\b", t)]
    assert not [text for text in plain if wrong.search(text)]
    assert [text for text in plain if right.search(text)]


def test_tenses_agree_with_times(sample):
    past = re.compile(r"\b(yesterday|ago|last (night|week|summer))\b")
    future = re.compile(r"\b(tomorrow|tonight|next (week|summer))\b")
    assert not [t for t in sample if past.search(t) and " will " in f" {t} "]
    assert not [t for t in sample if future.search(t) and re.search(r"\bdid\b", t)]
    assert not [t for t in sample if past.search(t) and future.search(t)]


def test_no_two_words_sound_alike(sample):
    vocabulary = {word for text in sample for word in text.split()}
    assert 400 < len(vocabulary) < 600
    alike = "for/four to/two to/too sun/son write/right meet/meat buy/by week/weak "
    alike += "sea/see hour/our hear/here new/knew ate/eight road/rode blue/blew "
    alike += "wait/weight know/no flower/flour wear/where one/won not/knot red/read"
    for pair in alike.split():
        assert not vocabulary.issuperset(pair.split("/")), pair


def test_plan_keeps_voices_and_sentences_apart():
    chapters = plan(hours=1.0, seed=0)
    said = [text for _, lines in chapters for _, text in lines]
    assert len(set(said)) == len(said)
    variants = [speaker.voice.split("+")[1] for speaker, _ in chapters]
    assert len(set(variants)) == len(variants) == 65 + 10 + 10
    words = {split: set() for split in VARIANTS}
    for speaker, lines in chapters:
        words[speaker.split].update(word for _, text in lines for word in text.split())
    for split in ("dev-clean-mini", "test-clean-mini"):
        assert len(words[split] - words["train-clean-mini"]) < 0.02 * len(words[split])


def test_plan_follows_the_seed():
    assert plan(hours=0.1, seed=1) == plan(hours=0.1, seed=1)
    assert plan(hours=0.1, seed=1) != plan(hours=0.1, seed=2)


def test_a_share_of_train_has_a_pause_and_says_the_same():
    plain, paused = (plan(hours=0.5, seed=0, pauses=share) for share in (0.0, 0.3))
    commas = {split: [] for split in VARIANTS}
    for (speaker, lines), (_, others) in zip(plain, paused, strict=True):
        for (utterance, text), (other, said) in zip(lines, others, strict=True):
            assert utterance == other and text == said.replace(",", "")
            assert not said.endswith(",")
            commas[speaker.split].append(said.count(","))
    assert not any(commas["dev-clean-mini"] + commas["test-clean-mini"])
    assert {*commas[TRAIN]} == {0, 1} and 0.25 < np.mean(commas[TRAIN]) < 0.35


def test_every_variant_is_in_the_wheel():
    loader = pytest.importorskip("espeakng_loader")
    folder = Path(loader.get_data_path()) / "voices" / "!v"
    there = {path.name for path in folder.iterdir()}
    assert set(" ".join(VARIANTS.values()).split()) <= there


def test_layout_is_librispeech(corpus):
    speakers = (corpus / "SPEAKERS.TXT").read_text().splitlines()[1:]
    described = {line.split(" | ")[0]: line.split(" | ")[1] for line in speakers}
    counts = {}
    for split in VARIANTS:
        texts = transcripts(corpus, split)
        recordings = sorted((corpus / split).rglob("*.flac"))
        assert [path.stem for path in recordings] == sorted(texts)
        for path in recordings:
            speaker, chapter, _ = path.stem.split("-")
            assert path.parent == corpus / split / speaker / chapter
            assert described[speaker] == split
            info = soundfile.info(path)
            assert (info.samplerate, info.channels) == (16000, 1)
            assert 1 < info.duration < 6
        assert all(text == text.upper() for text in texts.values())
        counts[split] = len(recordings)
    assert list(counts.values()) == [3, 10, 10]


def test_alignment_fits_the_audio(corpus):
    def decibels(samples):
        return 10 * np.log10(np.mean(samples**2))

    for split in VARIANTS:
        texts, words = transcripts(corpus, split), alignments(corpus, split)
        assert list(words) == sorted(texts)
        for utterance, text in texts.items():
            assert [word for _, _, word in words[utterance]] == text.split()
            (path,) = corpus.rglob(f"{utterance}.flac")
            signal, rate = soundfile.read(path)
            starts, durations, _ = zip(*words[utterance], strict=True)
            ends = np.add(starts, durations)
            assert min(durations) > 0.02
            assert np.all(starts[1:] - ends[:-1] > -0.002)  # times have three decimals
            first, last = round(starts[0] * rate), round(ends[-1] * rate)
            speech = decibels(signal[first:last])
            # 50 ms later: espeak-ng lets the last sound fade after the word's end.
            for silence in (signal[:first], signal[last + 800 :]):
                assert speech - decibels(silence) > 12, utterance


def test_speakers_pause_between_words(corpus, tmp_path):
    """As long as the alignment says, and dev and test are what they were."""
    prepare_mini_speech(tmp_path, hours=HOURS, pauses=1.0, processes=2)
    for split in ("dev-clean-mini", "test-clean-mini"):
        assert contents(tmp_path / split) == contents(corpus / split)
    assert transcripts(tmp_path, TRAIN) == transcripts(corpus, TRAIN)
    found = []
    for utterance, words in alignments(tmp_path, TRAIN).items():
        (path,) = tmp_path.rglob(f"{utterance}.flac")
        signal, rate = soundfile.read(path)
        assert words[-1][0] + words[-1][1] < len(signal) / rate
        ends = [start + duration for start, duration, _ in words]
        gaps = [w[0] - end for w, end in zip(words[1:], ends, strict=False)]
        (k,) = [k for k, gap in enumerate(gaps) if gap > 0.05]
        begin, end = round(ends[k] * rate), round(words[k + 1][0] * rate)
        # 50 ms later: espeak-ng lets the last sound fade after the word's end.
        pause, speech = signal[begin + 800 : end - 160], signal[:begin]
        assert speech.std() > 4 * pause.std(), utterance
        found.append(gaps[k])
    assert len(found) == 3 and max(found) > 0.3


def test_same_bytes_whatever_the_number_of_processes(corpus, tmp_path):
    prepare_mini_speech(tmp_path, hours=HOURS, processes=1)
    assert contents(tmp_path) == contents(corpus)


def test_complete_corpus_is_left_alone(corpus, monkeypatch, capsys):
    monkeypatch.setattr(mini_prepare, "_record_all", pytest.fail)
    prepare_mini_speech(corpus, hours=HOURS)
    assert "complete" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["no marker", "a recording gone", "other settings"])
def test_other_corpus_is_made_again(corpus, tmp_path, monkeypatch, damage):
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    (folder / ".partial").mkdir()  # what a killed run leaves behind
    if damage == "no marker":
        (folder / mini_prepare.MARKER).unlink()
    elif damage == "a recording gone":
        random.Random(0).choice(sorted(folder.rglob("*.flac"))).unlink()
    calls = []

    def record_all(chapters, seed, partial, num_processes):
        calls.append(seed)
        for split in VARIANTS:
            shutil.copytree(corpus / split, partial / split)
        for speaker, _ in chapters:
            (partial / f"{speaker.number}-1.ctm").touch()

    monkeypatch.setattr(mini_prepare, "_record_all", record_all)
    seed = 1 if damage == "other settings" else 0
    prepare_mini_speech(folder, hours=HOURS, seed=seed)
    assert calls == [seed]
    assert not (folder / ".partial").exists()
    assert contents(folder / "dev-clean-mini") == contents(corpus / "dev-clean-mini")
    prepare_mini_speech(folder, hours=HOURS, seed=seed)
    assert calls == [seed]


def test_interrupted_run_is_not_trusted(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(mini_prepare, "_record_all", lambda *_: None)
    monkeypatch.setattr(mini_prepare, "_write_tables", interrupt)
    monkeypatch.setattr(mini_prepare, "load_espeak", lambda: None)
    with pytest.raises(KeyboardInterrupt):
        prepare_mini_speech(tmp_path, hours=HOURS)
    assert [path.name for path in tmp_path.iterdir()] == [".partial"]


def test_another_corpus_is_not_overwritten(tmp_path):
    (tmp_path / "SPEAKERS.TXT").write_text("; LibriSpeech\n")
    with pytest.raises(FileExistsError, match="another corpus"):
        prepare_mini_speech(tmp_path, hours=HOURS)
    assert contents(tmp_path) == {"SPEAKERS.TXT": b"; LibriSpeech\n"}


def test_missing_synthesiser_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ModuleNotFoundError, match="pip install espeakng-loader"):
        prepare_mini_speech(tmp_path, hours=HOURS)
    assert not list(tmp_path.iterdir())
