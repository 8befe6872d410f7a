"""Which texts a vocabulary was made from: a hash in a file beside it.

A trial on 100 hours leaves a vocabulary that 960 hours would take in silence.
"""

import hashlib
import logging

from cif_lobes.storage.atomic_files import write_atomically

logger = logging.getLogger(__name__)


def origin_file(vocabulary):
    """Beside a vocabulary (pathlib.Path); those made before there were such have none."""
    return vocabulary.with_name(f"{vocabulary.name}.texts")


def keep_origin(vocabulary, texts):
    """Write the hash of the texts that a vocabulary has been made from.

    Arguments
    ---------
    vocabulary : pathlib.Path
    texts : iterable of str
        Normalised.
    """
    write_atomically(origin_file(vocabulary), f"{_hash(texts)}\n")


def compare_origin(vocabulary, texts):
    """Warn if a vocabulary was made from other texts, where that is known.

    Arguments
    ---------
    vocabulary : pathlib.Path
    texts : iterable of str
        Normalised.
    """
    kept = origin_file(vocabulary)
    if kept.exists() and kept.read_text(encoding="utf-8").strip() != _hash(texts):
        logger.warning(
            f"vocabulary {vocabulary} was made from other texts than those of this "
            "training set. For one of these transcripts give another "
            "--manifest_folder; caches of teachers are made again with it"
        )


def _hash(texts):
    """The same for the same texts in any order, however often each is there."""
    digest = hashlib.sha256()
    for text in sorted(set(texts)):
        digest.update(f"{text}\n".encode())
    return digest.hexdigest()[:16]
