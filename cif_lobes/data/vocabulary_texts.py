"""Which texts a vocabulary was made from: a hash in a file beside it."""

import hashlib
import logging

from cif_lobes.storage.atomic_files import write_atomically

logger = logging.getLogger(__name__)


def texts_file(vocabulary):
    """The file beside a vocabulary, given as path."""
    return vocabulary.with_name(f"{vocabulary.name}.texts")


def note_texts(vocabulary, texts):
    """Write down the normalised texts, a list of str, that a vocabulary was made from."""
    write_atomically(texts_file(vocabulary), f"{hash_texts(texts)}\n")


def compare_texts(vocabulary, texts):
    """Warn if a vocabulary was made from other texts; one of before does not say which.

    Arguments
    ---------
    vocabulary : pathlib.Path
    texts : iterable of str
        Normalised.
    """
    path = texts_file(vocabulary)
    if path.exists() and path.read_text(encoding="utf-8").strip() != hash_texts(texts):
        logger.warning(
            f"vocabulary {vocabulary} was made from other texts than those of this "
            "training set. For a vocabulary of these give another --manifest_folder; "
            "teachers' caches have to be made again with it"
        )


def hash_texts(texts):
    """The same for the same texts in any order, however often each is there."""
    digest = hashlib.sha256()
    for text in sorted(set(texts)):
        digest.update(f"{text}\n".encode())
    return digest.hexdigest()[:16]
