"""Manifests of TIMIT (https://catalog.ldc.upenn.edu/LDC93S1), from the published folders.

    python timit_prepare.py DATA_FOLDER SAVE_FOLDER

reads DATA_FOLDER/{TRAIN,TEST}/DR*/SPEAKER/*.{WAV,PHN}, in upper or lower case and as
NIST sphere or RIFF, and writes train.csv, dev.csv, test.csv. Transcripts are phones.
"""

import collections
import os
import pathlib

from cif_lobes.data.manifest import Utterance
from cif_lobes.data.preparers import check_counts, preparer_options
from cif_lobes.data.validation import Limits, prepare_splits
from cif_lobes.settings.program import run_program

PUBLISHED = {
    "train": {"utterances": 3696, "speakers": 462},
    "dev": {"utterances": 400, "speakers": 50},
    "test": {"utterances": 192, "speakers": 24},
}
# The core test set of the corpus's documentation, and the development set of Halberstadt
# (PhD thesis, MIT 1998), both in TEST. Its other 94 speakers are not used.
SPEAKERS = {
    "dev": """faks0 fdac1 fjem0 mgwt0 mjar0 mmdb1 mmdm2 mpdf0 fcmh0 fkms0 mbdg0 mbwm0
        mcsh0 fadg0 fdms0 fedw0 mgjf0 mglb0 mrtk0 mtaa0 mtdt0 mthc0 mwjg0 fnmr0 frew0
        fsem0 mbns0 mmjr0 mdls0 mdlf0 mdvc0 mers0 fmah0 fdrw0 mrcs0 mrjm4 fcal1 mmwh0
        fjsj0 majc0 mjsw0 mreb0 fgjd0 fjmg0 mroa0 mteb0 mjfc0 mrjr0 fmml0 mrws1""",
    "test": """mdab0 mwbt0 felc0 mtas1 mwew0 fpas0 mjmp0 mlnt0 fpkt0 mlll0 mtls0 fjlm0
        mbpm0 mklt0 fnlp0 mcmj0 mjdh0 fmgd0 mgrt0 mnjm0 fdhc0 mjln0 mpam0 fmld0""",
}
# Of the 61 phones, those that the 39 of Lee and Hon (1989) do not keep as they are; the
# glottal stop q has no successor.
FOLDED = {
    **dict.fromkeys("pcl tcl kcl bcl dcl gcl h# pau epi".split(), "sil"),
    **dict.fromkeys(("ax", "ax-h"), "ah"),
    **{"ao": "aa", "axr": "er", "ix": "ih", "ux": "uw", "hv": "hh", "zh": "sh"},
    **{"el": "l", "em": "m", "en": "n", "nx": "n", "eng": "ng", "q": None},
}
KEPT = """iy ih eh ae ah uw uh aa ey ay oy aw ow er l r w y m n ng v f dh th z s sh jh ch
    b p d dx t g k hh""".split()
PHONES = {phone: phone for phone in KEPT} | FOLDED
# One phone per encoder frame of 20 ms is all that CTC can tell apart.
MAX_PHONES_PER_SECOND = 50


def prepare_timit(data_folder, save_folder, max_rejected=0.01, **limits):
    """Check TIMIT and write its manifests, unless they are up to date.

    Phones are folded to 39, in training and scoring alike as in the authors' recipe;
    q is left out, and silences in a row are one. Ids are SPEAKER_SENTENCE in lower
    case. The sentences SA1 and SA2, which all speakers read, are left out.

    Arguments
    ---------
    data_folder : str
        Holds TRAIN and TEST, or TIMIT/ with them.
    save_folder : str
        Receives train.csv, dev.csv, test.csv, rejected.csv.
    max_rejected, **limits
        See `cif_lobes.data.validation.prepare_splits`.

    Raises
    ------
    FileNotFoundError
        If the folder does not have the published layout.
    ValueError
        If a transcript has an unknown phone, or too much of a split cannot be used.
    """
    root = _find_root(pathlib.Path(os.path.abspath(data_folder)))
    found = {split: _list_half(_child(root, split)) for split in ("train", "test")}
    splits = {"train": found["train"]}
    for split, speakers in SPEAKERS.items():
        chosen = set(speakers.split())
        splits[split] = [u for u in found["test"] if u.spk_id in chosen]
    limits = {"max_tokens_per_second": MAX_PHONES_PER_SECOND, **limits}
    limits = Limits("en", sample_rate=16000, **limits)
    prepared = prepare_splits(splits, save_folder, limits, max_rejected)
    for split, kept in prepared.items():
        speakers = {u.spk_id for u in kept}
        counts = {"utterances": len(kept), "speakers": len(speakers)}
        check_counts(split, counts, PUBLISHED[split])


def read_phones(path):
    """The 39 phones of a .PHN file, whose lines are "first_sample last_sample phone".

    Arguments
    ---------
    path : pathlib.Path

    Returns
    -------
    str
        With single spaces.

    Raises
    ------
    ValueError
        If a phone is none of the 61.
    """
    phones = []
    for line in filter(str.strip, path.read_text(encoding="ascii").splitlines()):
        label = line.split()[-1].lower()
        if label not in PHONES:
            raise ValueError(
                f"{path}: {label!r} is none of TIMIT's 61 phones. Copy the file again"
            )
        phone = PHONES[label]
        silence = phone == "sil" and phones[-1:] == ["sil"]
        if phone and not silence:
            phones.append(phone)
    return " ".join(phones)


def _find_root(data_folder):
    """The folder that holds TRAIN and TEST."""
    candidates = [data_folder, *(p for p in data_folder.glob("*/") if _is_timit(p))]
    for root in candidates:
        if _child(root, "train") and _child(root, "test"):
            return root
    raise FileNotFoundError(
        f"{data_folder} has no TRAIN and TEST. Give the folder that holds them; TIMIT "
        "is sold by the LDC: https://catalog.ldc.upenn.edu/LDC93S1"
    )


def _is_timit(folder):
    return folder.name.lower() == "timit"


def _child(folder, name):
    """The folder of that name in upper or lower case, None without."""
    return next((p for p in folder.glob("*/") if p.name.lower() == name), None)


def _list_half(folder):
    """Utterances of TRAIN or TEST sorted by id, SA sentences left out."""
    files = collections.defaultdict(dict)
    for path in folder.glob("*/*/[!.]*"):
        # Converted corpora hold SX37.WAV.wav beside the original SX37.WAV.
        sentence, *suffixes = path.name.lower().split(".")
        if not sentence.startswith("sa") and suffixes[-1:] in (["wav"], ["phn"]):
            key = f"{path.parent.name.lower()}_{sentence}"
            files[key].setdefault(suffixes[-1], []).append(path)
    if not files:
        raise FileNotFoundError(
            f"{folder} has no DR*/SPEAKER/*.WAV and *.PHN: unpack the corpus again"
        )
    return [_utterance(key, files[key], folder) for key in sorted(files)]


def _utterance(key, files, folder):
    """One utterance; what it lacks is found by the checks that follow."""
    speaker = key.split("_")[0]
    # The longer name is the converted one.
    wav = max(files.get("wav", []), key=lambda p: (len(p.name), p), default=None)
    phn = min(files.get("phn", []), default=None)
    missing = folder / speaker / f"{key}.wav"
    return Utterance(key, None, str(wav or missing), speaker, phn and read_phones(phn))


def main():
    """Command line."""
    parser = preparer_options(__doc__, "holds TRAIN and TEST, or TIMIT/")
    prepare_timit(**vars(parser.parse_args()))


if __name__ == "__main__":
    run_program(main)
