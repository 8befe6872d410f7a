"""A few utterances in the layouts of the LDC's TIMIT."""

import numpy as np
import soundfile

# Closure and pause make one silence; q vanishes; the others fold.
PHN = ["h#", "sh", "ix", "hv", "eh", "dcl", "pau", "jh", "q", "axr", "h#"]


def write_utterance(folder, sentence, upper, form="NIST", phones=PHN):
    folder.mkdir(parents=True, exist_ok=True)
    wav, phn = ("WAV", "PHN") if upper else ("wav", "phn")
    audio = np.linspace(-0.5, 0.5, 16000)
    soundfile.write(folder / f"{sentence}.{wav}", audio, 16000, "PCM_16", format=form)
    lines = (f"{100 * i} {100 * i + 100} {p}\n" for i, p in enumerate(phones))
    (folder / f"{sentence}.{phn}").write_text("".join(lines))


def write_corpus(root, upper, form="NIST"):
    """Two speakers of train, one of dev, one of test, one that is not used."""
    half = ("TRAIN", "TEST") if upper else ("train", "test")
    speakers = {half[0]: ("fcjf0", "mdac0")}
    speakers[half[1]] = ("faks0", "mdab0", "fjsp0")
    for folder, names in speakers.items():
        for name in names:
            for sentence in ("sa1", "sx37", "si648"):
                if upper:
                    name, sentence = name.upper(), sentence.upper()
                place = root / folder / ("DR1" if upper else "dr1") / name
                write_utterance(place, sentence, upper, form)
    return root
