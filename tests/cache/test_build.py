"""Every kind of teacher keeps what `cif_lobes.cache` says of it."""

import json

import pytest
from tiny_asr import list_teachers, make_run
from tiny_cache import change_states
from tiny_hubert import TEACHER
from tiny_teacher import make_teacher
from torch.testing import assert_close

from cif_lobes.cache.build import VERBS
from cif_lobes.cache.extraction import run
from cif_lobes.cache.posteriors import Posteriors
from cif_lobes.cache.reader import TeacherCache
from cif_lobes.cache.speech_states import SpeechStates
from cif_lobes.cache.text_states import TextStates
from cif_lobes.data.tokens import CharTokenizer

KINDS = {"text": TextStates, "speech": SpeechStates, "recognisers": Posteriors}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def settings_of(kind, corpus, folder, seed=1):
    """Those of a small cache in a folder; another seed is another teacher."""
    settings = {"cache": str(folder / "cache.h5"), "overwrite": False, "device": "cpu"}
    settings |= {"dtype": "float16", "sample_rate": 16000, "batch_seconds": 3}
    path = folder / f"teacher{seed}"
    if kind == "text":
        if not path.exists():
            vocabulary = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcd")
            pieces = vocabulary + tuple(f"##{letter}" for letter in "abcd")
            make_teacher(path, vocab=pieces, seed=seed)
        settings |= {"teacher": str(path), "layer": -1, "batch_tokens": 24}
    if kind == "speech":
        settings |= {"teacher": TEACHER | {"intermediate_size": 16 * seed}}
        settings |= {"layers": [1, 2], "teacher_silence_seconds": 1.0}
        settings |= {"max_rejected": 0.01}
    if kind == "recognisers":
        if not path.exists():
            make_run(corpus, folder, seed)
        settings |= {"teachers": list_teachers(folder, path), "manifest": corpus[1]}
        settings |= {"top_n": 3, "error_unit": "char"}
    return settings | {"manifests": [str(corpus[1])]}


def states_of(kind, corpus, folder, **changes):
    """What the kind makes of its settings."""
    settings = settings_of(kind, corpus, folder, changes.pop("seed", 1))
    tokenizer = CharTokenizer(folder / "manifests/chars_8.txt", 8, "en")
    return KINDS[kind](settings | {"tokenizer": tokenizer} | changes)


def interrupt(states, after):
    """Ctrl-C once this many batches have been answered; the keys that were."""
    answers, done = states.answers, []

    def answer(keys):
        for batch in answers(keys):
            if len(done) == after:
                raise KeyboardInterrupt
            done.append(len(batch))
            yield batch

    states.answers = answer
    return done


def test_it_builds_goes_on_and_verifies(kind, corpus, tmp_path, capsys):
    again = str(tmp_path / "again.h5")
    VERBS["build"](states_of(kind, corpus, tmp_path))
    interrupted = states_of(kind, corpus, tmp_path, cache=again)
    done = interrupt(interrupted, after=2)
    with pytest.raises(SystemExit, match="stopped; [1-9].* are kept in"):
        VERBS["build"](interrupted)
    goes_on = states_of(kind, corpus, tmp_path, cache=again)
    rest = interrupt(goes_on, after=-1)
    VERBS["build"](goes_on)
    caches = TeacherCache(tmp_path / "cache.h5"), TeacherCache(again)
    assert sum(done) + sum(rest) == caches[0].total_texts, "no key twice"
    assert caches[0].attributes["fingerprint"] == caches[1].attributes["fingerprint"]
    assert list(caches[0]) == list(caches[1]) and len(caches[0]) == 12
    for utt_id in caches[0]:
        assert_close(caches[0][utt_id], caches[1][utt_id], atol=2e-3, rtol=1e-2)
    VERBS["verify"](states_of(kind, corpus, tmp_path, cache=again))
    assert "12 of 12 utterances; all read; " in capsys.readouterr().out
    VERBS["build"](states_of(kind, corpus, tmp_path))
    assert "is up to date" in capsys.readouterr().out
    VERBS["inspect"](states_of(kind, corpus, tmp_path))
    shown = capsys.readouterr().out
    assert str(tmp_path / "cache.h5") in shown and "PROBLEM" not in shown


def test_a_state_that_is_not_the_teachers_is_found(kind, corpus, tmp_path):
    VERBS["build"](states_of(kind, corpus, tmp_path))

    def change(values):
        values[..., :3] += 1  # of posteriors, not the numbers of their classes
        return values

    change_states(tmp_path / "cache.h5", change)
    with pytest.raises(ValueError, match="differs by .* states are not this teacher's"):
        VERBS["verify"](states_of(kind, corpus, tmp_path))


def test_another_teacher_is_refused(kind, corpus, tmp_path):
    VERBS["build"](states_of(kind, corpus, tmp_path))
    before = (tmp_path / "cache.h5").read_bytes()
    for verb in ("build", "verify"):
        with pytest.raises(ValueError, match="teacher_weights is .*--overwrite True"):
            VERBS[verb](states_of(kind, corpus, tmp_path, seed=2))
    assert (tmp_path / "cache.h5").read_bytes() == before
    VERBS["build"](states_of(kind, corpus, tmp_path, seed=2, overwrite=True))
    VERBS["verify"](states_of(kind, corpus, tmp_path, seed=2))


def test_a_yaml_with_layers_is_of_speech(corpus, tmp_path, capsys):
    yaml = tmp_path / "extract.yaml"
    yaml.write_text(json.dumps(settings_of("speech", corpus, tmp_path)))
    run("build", yaml, None, "")
    assert "layers [1, 2]" in capsys.readouterr().out
