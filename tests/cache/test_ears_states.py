"""States of pretrained ears at several speeds: which recordings, and whose keys."""

import pytest
import torch
from conftest import write_corpus
from tiny_ears import FAMILIES
from tiny_hubert import cache_settings

from cif_lobes.cache.audio_keys import audio_keys
from cif_lobes.cache.build import VERBS
from cif_lobes.cache.ears import EarsStates
from cif_lobes.cache.reader import TeacherCache
from cif_lobes.data.manifest import Utterance


def settings_of(csv, path, **changes):
    ears = {
        "ears": FAMILIES["whisper"],
        "ears_layers": [3],
        "ears_silence_seconds": 0.5,
    }
    return cache_settings(csv, path, speeds=[90, 100, 110], **ears, **changes)


def test_a_broken_recording_is_left_out_at_all_speeds(tmp_path, capsys):
    csv = write_corpus(tmp_path, 6, 3)
    broken = tmp_path / "utt3-004.flac"
    broken.write_bytes(broken.read_bytes()[:2000])
    settings = settings_of(csv, tmp_path / "ears.h5")
    with pytest.raises(ValueError, match="1 of 6 utterances rejected"):
        EarsStates(settings)
    settings["max_rejected"] = 0.2
    VERBS["build"](EarsStates(settings))
    cache = TeacherCache(settings["cache"])
    assert len(cache) == 3 * 5 and not any("utt3-004" in utt_id for utt_id in cache)
    VERBS["verify"](EarsStates(settings))
    assert "15 of 15 utterances" in capsys.readouterr().out


@pytest.mark.parametrize("rate", [16000, 8000, 11025])
def test_as_many_frames_are_planned_as_are_heard(tmp_path, rate):
    """At every speed, of whole files and of stretches whose seconds are rounded."""
    import soundfile

    audio = torch.rand(rate).numpy() - 0.5
    rows = ["ID,duration,wav,spk_id,wrd,offset"]
    for i in range(40):
        samples = rate // 2 + 37 * i
        soundfile.write(tmp_path / f"{i}.wav", audio[:samples], rate)
        rows.append(f"whole{i},,{i}.wav,s,A,")
        rows.append(f"part{i},{samples / rate - 0.1234567:.4f},{i}.wav,s,A,0.0123")
    csv = tmp_path / "clips.csv"
    csv.write_text("\n".join(rows) + "\n")
    states = EarsStates(settings_of(csv, tmp_path / "ears.h5"))
    for utterance in states.utterances.values():
        assert states.count_samples(utterance) == len(states.read(utterance))


def test_a_csv_and_its_checked_copy_have_the_same_keys(tmp_path):
    """Though a user's own says the end of a stretch to the last bit."""
    csv = write_corpus(tmp_path, 1, 3)
    wav = str(tmp_path / "utt3-000.flac")
    rows = [Utterance("a", s, wav, "", "", 0.1) for s in (0.3 - 0.1, 0.2, 0.2000004)]
    assert csv.exists() and rows[0].duration != rows[1].duration
    found = {audio_keys([u], str(tmp_path / "memory.json"))["a"] for u in rows}
    assert len(found) == 1
