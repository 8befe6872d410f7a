"""Manifests of LibriSpeech (https://www.openslr.org/12/), or of any corpus laid out so.

    python librispeech_prepare.py DATA_FOLDER SAVE_FOLDER

reads DATA_FOLDER/{split}/{speaker}/{chapter}/*.flac with their *.trans.txt, merges the
training splits into train.csv, and writes every other split into a csv of its own.
"""

import collections
import os
import pathlib

from cif_lobes.data.formats import read_transcripts
from cif_lobes.data.manifest import Utterance
from cif_lobes.data.preparers import check_counts, preparer_options
from cif_lobes.data.validation import Limits, prepare_splits
from cif_lobes.settings.program import run_program

PUBLISHED = {
    "train-clean-100": 28539,
    "train-clean-360": 104014,
    "train-other-500": 148688,
    "dev-clean": 2703,
    "dev-other": 2864,
    "test-clean": 2620,
    "test-other": 2939,
}
TRAIN = ("train-clean-100", "train-clean-360", "train-other-500")
VALID = ("dev-clean", "dev-other")
TEST = ("test-clean", "test-other")
AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")


def prepare_librispeech(
    data_folder,
    save_folder,
    train_splits=TRAIN,
    valid_splits=VALID,
    test_splits=TEST,
    max_rejected=0.01,
    **limits,
):
    """Check LibriSpeech and write its manifests, unless they are up to date.

    Ids are the file stems.

    Arguments
    ---------
    data_folder : str
        Holds the splits, or LibriSpeech/ with the splits.
    save_folder : str
        Receives train.csv, one csv per other split, and rejected.csv.
    train_splits, valid_splits, test_splits : list of str
        Folder names.
    max_rejected, **limits
        See `cif_lobes.data.validation.prepare_splits`.

    Raises
    ------
    FileNotFoundError
        If a split is not there.
    ValueError
        If too much of a manifest cannot be used.
    """
    data_folder = pathlib.Path(os.path.abspath(data_folder))
    manifests = {"train": train_splits} if train_splits else {}
    manifests |= {split: [split] for split in [*valid_splits, *test_splits]}
    utterances = {
        name: sorted(
            (u for split in splits for u in _list_split(data_folder, split)),
            key=lambda u: (u.id, u.wav),
        )
        for name, splits in manifests.items()
    }
    limits = Limits("en", sample_rate=16000, **limits)
    prepared = prepare_splits(utterances, save_folder, limits, max_rejected)
    for kept in prepared.values():
        # SPLIT/SPEAKER/CHAPTER/FILE: train.csv merges several splits.
        found = collections.Counter(pathlib.Path(u.wav).parts[-4] for u in kept)
        for split in sorted(found.keys() & PUBLISHED.keys()):
            check_counts(
                split,
                {"utterances": found[split]},
                {"utterances": PUBLISHED[split]},
            )


def _list_split(data_folder, split):
    """Utterances of a split: each recording, and each transcript without one."""
    utterances = []
    for root in (data_folder, data_folder / "LibriSpeech"):
        for chapter in (root / split).glob("*/*/"):
            utterances += _list_chapter(chapter)
    if not utterances:
        folders = sorted(path.name for path in data_folder.glob("*/"))
        raise FileNotFoundError(
            f"{data_folder} has no {split}/SPEAKER/CHAPTER/*.flac; its folders are "
            f"{folders}. Correct data_folder or the names of the splits, or run there: "
            f"wget https://www.openslr.org/resources/12/{split}.tar.gz && "
            f"tar xzf {split}.tar.gz"
        )
    return utterances


def _list_chapter(chapter):
    """Utterances of one SPEAKER/CHAPTER folder."""
    texts = {}
    for path in sorted(chapter.glob("[!.]*.trans.txt")):
        texts |= read_transcripts(path)
    audio = [p for p in chapter.glob("[!.]*") if p.suffix.lower() in AUDIO_SUFFIXES]
    lost = texts.keys() - {path.stem for path in audio}
    audio += [chapter / f"{utterance_id}.flac" for utterance_id in lost]
    return [
        Utterance(p.stem, None, str(p), chapter.parent.name, texts.get(p.stem))
        for p in audio
    ]


def main():
    """Command line."""
    parser = preparer_options(__doc__, "holds the splits, or LibriSpeech/")
    parser.add_argument("--train_splits", nargs="*", default=TRAIN, metavar="SPLIT")
    parser.add_argument("--valid_splits", nargs="*", default=VALID, metavar="SPLIT")
    parser.add_argument("--test_splits", nargs="*", default=TEST, metavar="SPLIT")
    prepare_librispeech(**vars(parser.parse_args()))


if __name__ == "__main__":
    run_program(main)
