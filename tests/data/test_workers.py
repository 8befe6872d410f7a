"""Workers that are not forked, as on macOS and from Python 3.14 on, read the same."""

import pickle

import torch
from conftest import write_corpus
from speechbrain.dataio.dataloader import SaveableDataLoader

from cif_lobes.data.batches import eval_loader_options, make_dataset
from cif_lobes.data.tokens import CharTokenizer, SentencePieceTokenizer
from cif_lobes.runs.fithubert import make_audio_dataset
from cif_lobes.training.unusable import note_unusable


def datasets(folder):
    """A recogniser's datasets of characters and of pieces, and an encoder's."""
    csv = write_corpus(folder, 12, 5)
    (folder / "utt5-003.flac").write_bytes(b"fLaC of which nothing is left")
    chars = CharTokenizer(folder / "chars", 8, "en").fit(["abcd"])
    pieces = SentencePieceTokenizer(folder / "pieces.model", 12, "en")
    pieces.fit(["abcd abdc", "dcab bacd"] * 20)
    for tokenizer in (chars, pieces):
        yield make_dataset(csv, tokenizer, 16000)
    yield make_audio_dataset(csv, 16000)


def read(dataset, workers=0, method=None):
    options = eval_loader_options(dataset.dataset, 2.0, workers)
    return list(SaveableDataLoader(dataset, multiprocessing_context=method, **options))


def same(ours, theirs):
    assert [batch.id for batch in theirs] == [batch.id for batch in ours]
    for here, there in zip(ours, theirs, strict=True):
        assert torch.equal(here.signal.data, there.signal.data)
    (noted,) = filter(None, (note for batch in theirs for note in batch.unusable))
    assert "utterance utt5-003 cannot be read" in noted


def test_they_read_what_one_process_reads(tmp_path):
    for dataset in datasets(tmp_path):
        dataset = note_unusable(dataset, 16000)
        same(read(dataset), read(pickle.loads(pickle.dumps(dataset))))
    same(read(dataset), read(dataset, 1, "spawn"))
