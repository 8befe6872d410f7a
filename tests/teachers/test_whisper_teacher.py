"""Whisper, and the others that are no HuBERT, as teachers of a FitHuBERT."""

import json

import pytest
import torch
from programs import run_python
from speechbrain import Stage
from speechbrain.dataio.batch import PaddedBatch
from tiny_ears import FAMILIES
from tiny_hubert import (
    cache_settings,
    distil_arguments,
    in_batch,
    make_signals,
    make_student,
)

from cif_lobes.cache.build import VERBS
from cif_lobes.cache.speech_states import SpeechStates, open_speech_cache
from cif_lobes.nets.pretrained import load_encoder
from cif_lobes.runs.fithubert import make_audio_dataset
from cif_lobes.training.fithubert import FitHuBERTBrain
from cif_lobes.training.ledger import Ledger

WHISPER = FAMILIES["whisper"]


def student_of(teacher):
    """As deep and wide as it must be, without dropout."""
    return make_student(teacher.num_layers, teacher.width).eval()


def loss_of(teacher, student, dataset, cached_layers=None):
    """Of the first utterances, and what was paired."""
    hparams = {"hint_weight": 0.1, "cached_layers": cached_layers}
    modules = {"student": student}
    brain = FitHuBERTBrain(
        teacher, modules=modules, hparams=hparams, run_opts={"device": "cpu"}
    )
    if cached_layers is not None:
        brain.teacher = None
    brain.ledger = Ledger()
    batch = PaddedBatch([dataset[i] for i in range(5)])
    with torch.no_grad():
        predictions = brain.compute_forward(batch, Stage.TRAIN)
        return brain.compute_objectives(predictions, batch, Stage.TRAIN), predictions


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_teaches(family, corpus):
    """Frame t of the student is beside frame t of the teacher, in all layers."""
    teacher = load_encoder(FAMILIES[family], name="teacher")
    dataset = make_audio_dataset(corpus[1], 16000)
    loss, (student, taught, _) = loss_of(teacher, student_of(teacher), dataset)
    assert loss > 0
    assert all(student[n].shape == taught[n].shape for n in student)


def test_no_frame_of_the_student_is_without_a_teacher():
    """Whisper has as many, or one more; also of less than a frame."""
    teacher = load_encoder(WHISPER)
    lengths = torch.arange(1, 5000)
    more = teacher.output_lengths(lengths) - student_of(
        teacher
    ).student.frontend.output_lengths(lengths)
    assert set(more.tolist()) == {0, 1}


def test_the_level_is_nothing_to_the_student_of_a_teacher_that_standardizes():
    """It hears waveforms as they are: its first normalisation takes level and offset."""
    teacher = load_encoder(FAMILIES["wav2vec2-large"])
    student = student_of(teacher)
    batch, lengths = in_batch(make_signals())
    audible = torch.arange(batch.shape[1]) < lengths[:, None]
    louder = (5 * batch + 0.3) * audible
    for encoder in (teacher, student):
        states, x_lengths = encoder(batch, lengths)
        other, _ = encoder(louder, lengths)
        last = teacher.num_layers
        for b, T in enumerate(x_lengths.tolist()):
            expected = states[last][b, :T]
            torch.testing.assert_close(
                other[last][b, :T], expected, atol=2e-3, rtol=1e-2
            )


@pytest.fixture(scope="module")
def settings(corpus, tmp_path_factory):
    """Of a cache of a Whisper over the validation tones."""
    path = tmp_path_factory.mktemp("cache") / "whisper.h5"
    changes = {"teacher": WHISPER, "teacher_silence_seconds": 0.5}
    return cache_settings(corpus[1], path, **changes)


def test_its_cache_gives_the_same_loss(settings, corpus):
    VERBS["build"](SpeechStates(settings))
    teacher = load_encoder(WHISPER, 0.5)
    student = student_of(teacher)
    cache = open_speech_cache(settings["cache"], teacher, settings)
    live, _ = loss_of(teacher, student, make_audio_dataset(corpus[1], 16000))
    cached, _ = loss_of(
        teacher, student, make_audio_dataset(corpus[1], 16000, cache), [1, 2, 3]
    )
    torch.testing.assert_close(cached, live, rtol=1e-4, atol=0)
    for seconds in (0.0, 1.0):
        other = load_encoder(WHISPER, seconds)
        asked = settings | {"teacher_silence_seconds": seconds}
        remedy = f"--teacher_silence_seconds {seconds} --overwrite True"
        with pytest.raises(ValueError, match=f"silence_samples is 8000.*{remedy}"):
            open_speech_cache(settings["cache"], other, asked)


def test_what_is_too_long_is_found_before_anything_is_heard(settings, tmp_path):
    """Measured in the audio: a csv of others may say anything."""
    import soundfile

    soundfile.write(tmp_path / "long.flac", torch.zeros(31 * 16000).numpy(), 16000)
    csv = tmp_path / "long.csv"
    csv.write_text(f"ID,duration,wav,spk_id,wrd\nu1,3.0,{tmp_path}/long.flac,s,A\n")
    changed = {"manifests": [str(csv)], "cache": str(tmp_path / "long.h5")}
    with pytest.raises(
        ValueError, match="u1 of 31.0 s is too long for the teacher: 29.5"
    ):
        VERBS["build"](SpeechStates({**settings, **changed}))
    assert not [*tmp_path.glob("long.h5*partial")]


@pytest.mark.slow
def test_the_command_refuses_what_is_too_long(corpus, tmp_path):
    arguments = distil_arguments(corpus, tmp_path)
    arguments += ["--teacher", json.dumps(WHISPER), "--teacher_silence_seconds", "29"]
    result = run_python(arguments, check=False)
    assert result.returncode != 0
    assert "is too long for the teacher: 1.0 s at most" in result.stderr
