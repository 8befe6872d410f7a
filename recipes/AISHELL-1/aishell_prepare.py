"""Manifests of AISHELL-1 (https://www.openslr.org/33/), from the published folders.

    python aishell_prepare.py DATA_FOLDER SAVE_FOLDER

reads DATA_FOLDER/data_aishell and writes train.csv, dev.csv, test.csv. The speakers'
archives are unpacked first if they still are archives (15 GB, a few minutes).
"""

import gzip
import os
import pathlib
import shutil
import tarfile
import zlib

from tqdm import tqdm

from cif_lobes.data.formats import read_transcripts
from cif_lobes.data.manifest import Utterance
from cif_lobes.data.preparers import check_counts, preparer_options
from cif_lobes.data.validation import Limits, prepare_splits
from cif_lobes.settings.program import run_program

# Counted on the corpus as published; characters after normalisation.
PUBLISHED = {
    "train": {"utterances": 120098, "characters": 1730113},
    "dev": {"utterances": 14326, "characters": 205341},
    "test": {"utterances": 7176, "characters": 104765},
}
DOWNLOAD = (
    "wget https://www.openslr.org/resources/33/data_aishell.tgz && "
    "tar xzf data_aishell.tgz"
)


def prepare_aishell(data_folder, save_folder, max_rejected=0.01, **limits):
    """Check AISHELL-1 and write its manifests, unless they are up to date.

    Ids are the file stems. The corpus as published has some 325 recordings without a
    transcript; they are in rejected.csv.

    Arguments
    ---------
    data_folder : str
        Holds data_aishell, or is it.
    save_folder : str
        Receives train.csv, dev.csv, test.csv, rejected.csv.
    max_rejected, **limits
        See `cif_lobes.data.validation.prepare_splits`.

    Raises
    ------
    FileNotFoundError
        If the folder does not have the published layout.
    ValueError
        If too much of a split cannot be used.
    """
    root = _find_root(pathlib.Path(os.path.abspath(data_folder)))
    extract_speakers(root / "wav")
    texts = read_transcripts(root / "transcript" / "aishell_transcript_v0.8.txt")
    splits = {split: _list_split(root / "wav" / split, texts) for split in PUBLISHED}
    without_audio = set(texts) - {u.id for split in splits.values() for u in split}
    if without_audio:
        print(
            f"{len(without_audio):,} of {len(texts):,} transcripts have no recording, "
            f"first {min(without_audio)}: is this a part of AISHELL-1?"
        )
    limits = Limits("zh", sample_rate=16000, **limits)
    prepared = prepare_splits(splits, save_folder, limits, max_rejected)
    for split, kept in prepared.items():
        found = {"utterances": len(kept), "characters": sum(len(u.wrd) for u in kept)}
        check_counts(split, found, PUBLISHED[split])


def extract_speakers(wav_folder):
    """Unpack S0002.tar.gz and the like into train, dev and test; resumes if stopped.

    A speaker's folder appears complete or not at all, and one that is there is left
    alone. The archives are kept.

    Arguments
    ---------
    wav_folder : str
        data_aishell/wav.

    Raises
    ------
    OSError
        If the disk has no room.
    ValueError
        If an archive is damaged.
    """
    wav_folder = pathlib.Path(wav_folder)
    packed = [
        archive
        for archive in sorted(wav_folder.glob("[!.]*.tar.gz"))
        if not any((wav_folder / s / _speaker(archive)).exists() for s in PUBLISHED)
    ]
    if not packed:
        return
    needed = sum(map(_unpacked_bytes, packed))
    free = shutil.disk_usage(wav_folder).free
    print(
        f"Unpacking {len(packed)} speakers into {wav_folder}: {needed / 1e9:.1f} GB, "
        f"{free / 1e9:.1f} GB are free"
    )
    if needed > free:
        raise OSError(
            f"{wav_folder}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free. "
            "Make room or move data_aishell to another disk, then run this again"
        )
    for archive in tqdm(packed, unit=" speakers", disable=None):
        _extract_one(archive)


def _extract_one(archive):
    """Unpack one speaker beside its place, then move it there in one step."""
    scratch = archive.parent / f".unpacking-{_speaker(archive)}"
    try:
        with gzip.open(archive) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                tar.extractall(scratch, filter="data")
            # The checksum stands behind the end of the tar, where tarfile stops.
            stream.read()
        speaker = next(scratch.glob(f"*/{_speaker(archive)}"), None)
        if speaker is None:
            raise tarfile.TarError(f"no folder SPLIT/{_speaker(archive)} in it")
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{archive} is damaged ({error}), its download may have broken off. Run in "
            f"the folder that holds data_aishell: {DOWNLOAD}"
        ) from error
    target = archive.parent / speaker.relative_to(scratch)
    target.parent.mkdir(exist_ok=True)
    speaker.rename(target)
    shutil.rmtree(scratch)


def _speaker(archive):
    """S0002 of S0002.tar.gz."""
    return archive.name.split(".")[0]


def _unpacked_bytes(archive):
    """Size that a gzip file gives in its last four bytes."""
    with open(archive, "rb") as file:
        file.seek(max(0, os.path.getsize(archive) - 4))
        return int.from_bytes(file.read(), "little")


def _find_root(data_folder):
    """The folder that holds wav/ and transcript/."""
    for root in (data_folder / "data_aishell", data_folder):
        if (root / "wav").is_dir() and (root / "transcript").is_dir():
            return root
    raise FileNotFoundError(
        f"{data_folder} has no data_aishell/wav and data_aishell/transcript. Give the "
        f"folder that holds data_aishell, or run there: {DOWNLOAD}"
    )


def _list_split(folder, texts):
    """Utterances of a split sorted by id, whatever order the disk lists them in."""
    wavs = sorted(folder.glob("*/[!.]*.wav"), key=lambda wav: (wav.stem, wav))
    if not wavs:
        raise FileNotFoundError(
            f"{folder} has no SPEAKER/*.wav: all three splits are needed. Run in the "
            f"folder that holds data_aishell: {DOWNLOAD}"
        )
    return [
        Utterance(wav.stem, None, str(wav), wav.parent.name, texts.get(wav.stem))
        for wav in wavs
    ]


def main():
    """Command line."""
    parser = preparer_options(__doc__, "holds data_aishell, or is it")
    prepare_aishell(**vars(parser.parse_args()))


if __name__ == "__main__":
    run_program(main)
