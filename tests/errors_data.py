"""Bad data, for docs/errors.md."""

import types

import numpy as np
import soundfile
import torch
from conftest import ROOT, load_module

from cif_lobes.data.batches import (
    check_tokens,
    make_dataset,
    read_utterance,
    train_loader_options,
)
from cif_lobes.data.formats import read_transcripts
from cif_lobes.data.manifest import Utterance, read_manifest
from cif_lobes.data.tokens import (
    CharTokenizer,
    SentencePieceTokenizer,
    WordPieceTokenizer,
)
from cif_lobes.data.update_batches import UpdateBatches
from cif_lobes.data.validation import Limits, prepare_own_data
from cif_lobes.training.memory import explain_memory


def _csv(folder, *lines, encoding="utf-8"):
    """A csv beside one good recording, a.wav, of a second."""
    soundfile.write(folder / "a.wav", np.full(16000, 0.1), 16000)
    path = folder / "train.csv"
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def _case(*lines, **kwargs):
    return lambda folder: read_manifest(_csv(folder, *lines, **kwargs))


def _own(folder, row, language="en", **limits):
    """Half of the rows of one's own data cannot be used."""
    path = _csv(folder, "ID,wav,wrd", "u1,a.wav,hello", row)
    (folder / "broken.wav").write_bytes(b"RIFF, but no more")
    (folder / "empty.wav").touch()
    whole = (folder / "a.wav").read_bytes()
    (folder / "half.wav").write_bytes(whole[: len(whole) // 2])
    samples = np.full(16000, 0.1, "float32")
    soundfile.write(folder / "slow.wav", samples, 8000)
    soundfile.write(folder / "short.wav", samples[:800], 16000)
    soundfile.write(folder / "long.wav", np.full(41000, 0.1), 1000)
    soundfile.write(folder / "half.flac", samples * np.linspace(-1, 1, 16000), 16000)
    whole = (folder / "half.flac").read_bytes()
    (folder / "half.flac").write_bytes(whole[: len(whole) // 2])
    samples[8000] = np.nan
    soundfile.write(folder / "nan.wav", samples, 16000, "FLOAT")
    prepare_own_data({"train": path}, folder / "save", language, **limits)


def _read_nan(folder):
    samples = np.full(16000, np.inf, "float32")
    soundfile.write(folder / "nan.wav", samples, 16000, "FLOAT")
    read_utterance(Utterance("u2", 1.0, str(folder / "nan.wav"), "", "hello"), 16000)


def _transcripts(folder):
    path = folder / "transcript.txt"
    path.write_text("u1 hello\nu2 你好\n", encoding="gbk")
    read_transcripts(path)


def _json(folder):
    (folder / "m.json").write_text('{"u1": {"wav": "a.wav", "length": 1.0}}')
    read_manifest(folder / "m.json")


def _reject(row, **limits):
    """The lines about the row, of a message whose frame is that of a lost recording."""

    def cause(folder):
        try:
            _own(folder, row, **limits)
        except ValueError as error:
            frame, said, _, remedy, other = str(error).split("\n  ")
            assert frame.startswith("train: 1 of 2 utterances rejected")
            assert other == "or go on with the other 1: --max_rejected 0.5"
            raise SystemExit(f"{said}\n{remedy}") from error

    return cause


def _header_only(folder):
    path = _csv(folder, "ID,duration,wav,spk_id,wrd")
    prepare_own_data({"train": path}, folder / "save", "en")


def _cut_json(folder):
    (folder / "m.json").write_text('{"u1": {"wav": "a.wav", "length": 1.0')
    read_manifest(folder / "m.json")


def _twice(folder):
    """Two test sets of one name."""
    path = _csv(folder, "ID,wav,wrd", "u1,a.wav,hello")
    prepare_own_data({"train": path, "test": [path]}, folder / "save", "en")


def _no_transcripts(folder):
    path = _csv(folder, "ID,duration,wav,wrd", "u1,1.0,a.wav,")
    make_dataset(path, None, 16000)


def _loader(folder):
    path = _csv(folder, "ID,duration,wav,wrd", "u1,1.0,a.wav,hi")
    dataset = make_dataset(path, CharTokenizer(folder / "c", 8, "en"), 16000)
    train_loader_options(dataset, 0.5, 0.5, 1, "random", 0, 0)


def _no_memory(folder):
    settings = types.SimpleNamespace(device_batch_seconds=300.0)
    brain = types.SimpleNamespace(epoch=2, step=1, rounds_left=0, hparams=settings)
    brain.train_sampler = UpdateBatches([[*range(20)]], [15.0] * 20, 300.0)
    with explain_memory(brain):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def _other_vocabulary(folder):
    path = _csv(folder, "ID,duration,wav,wrd", "u1,1.0,a.wav,hello")
    tokenizer = CharTokenizer(folder / "chars.txt", 8, "en").fit(["你好"])
    dataset = make_dataset(path, tokenizer, 16000)
    check_tokens(dataset, tokenizer, lambda seconds: [25], "train")


def _vocabulary(
    tokenizer_class, size, content=None, texts=("hello world",), **settings
):
    """Units of a training text, or of a file that is there."""

    def cause(folder):
        if content is not None:
            (folder / "units").write_bytes(content)
        tokenizer_class(folder / "units", size, "en", **settings).fit(texts)

    return cause


def _wordpieces(folder):
    vocab = {"teacher_vocab": folder / "bert/vocab.txt"}
    _vocabulary(WordPieceTokenizer, 8, **vocab)(folder)


def _corpus(script, name):
    """A folder that does not hold what a recipe prepares."""

    def cause(folder):
        module = load_module(ROOT / "recipes" / script)
        getattr(module, name)(folder / "corpus", folder / "manifests")

    return cause


SECTIONS = {
    "Manifests": {
        "no `manifests/train.csv`": lambda f: read_manifest(f / "manifests/train.csv"),
        "a csv of a header only": _header_only,
        "an empty csv": _case(),
        "a csv without the column `wrd`": _case("ID,wav", "u1,a.wav"),
        "a text with a comma and no quotes": _case("ID,wav,wrd", "u1,a.wav,well, no"),
        "a quote that is never closed": _case("ID,wav,wrd", 'u1,a.wav,"well'),
        "a row without an id": _case("ID,wav,wrd", ",a.wav,hello"),
        "a duration that is no number": _case(
            "ID,duration,wav,wrd", "u1,1s,a.wav,hello"
        ),
        "an offset before the begin": _case("ID,wav,wrd,offset", "u1,a.wav,hi,-1"),
        "a csv in GBK": _case("ID,wav,wrd", "u1,a.wav,你好", encoding="gbk"),
        "a csv in UTF-16, as Excel may write": _case(
            "ID,wav,wrd", "u1,a.wav,hello", encoding="utf-16"
        ),
        "transcripts of a corpus in GBK": _transcripts,
        "a json without texts": _json,
        "a json that breaks off": _cut_json,
        "start and stop in seconds": _case(
            "ID,wav,wrd,start,stop", "u1,a.wav,hi,0.5,1.0"
        ),
        "a stretch beyond the end": _case("ID,wav,wrd,offset", "u1,a.wav,hi,7.5"),
        "two rows of one id": _case("ID,wav,wrd", "u1,a.wav,yes", "u1,a.wav,no"),
        "a test csv that is the training csv": _twice,
        "no text to score by": _no_transcripts,
    },
    "Recordings and texts: the lines about the row": {
        "a recording that is not there": _reject("u2,lost.wav,hello"),
        "a recording of 0 bytes": _reject("u2,empty.wav,hello"),
        "a file that is no audio": _reject("u2,broken.wav,hello"),
        "a wav that breaks off": _reject("u2,half.wav,hello"),
        "a flac that breaks off": _reject("u2,half.flac,hello"),
        "a recording with a NaN": _reject("u2,nan.wav,hello"),
        "a recording of another rate, if one is demanded": _reject(
            "u2,slow.wav,hello", sample_rate=16000
        ),
        "a recording of 0.05 s": _reject("u2,short.wav,hello"),
        "a recording of 41 s": _reject("u2,long.wav,hello"),
        "a row without text": _reject("u2,a.wav,"),
        "more words than can be spoken": _reject(f"u2,a.wav,{'a ' * 20}"),
    },
    "Corpora and training data": {
        "half of the recordings are lost": lambda f: _own(f, "u2,lost.wav,hello"),
        "a NaN that is met while training": _read_nan,
        "an utterance that no device holds": _loader,
        "a pass that the GPU does not hold": _no_memory,
        "`--data_folder` without AISHELL-1": _corpus(
            "AISHELL-1/aishell_prepare.py", "prepare_aishell"
        ),
        "`--data_folder` without LibriSpeech": _corpus(
            "LibriSpeech/librispeech_prepare.py", "prepare_librispeech"
        ),
        "`--data_folder` without TIMIT": _corpus(
            "TIMIT/timit_prepare.py", "prepare_timit"
        ),
        "`check_audio: some`": lambda folder: Limits("en", check_audio="some"),
        "`language: fr`": lambda folder: _own(folder, "u2,a.wav,oui", language="fr"),
    },
    "Units": {
        "a vocabulary of another text": _other_vocabulary,
        "a vocabulary that is larger than `vocab_size`": _vocabulary(
            CharTokenizer, 6, b"h\ne\nl\no\n"
        ),
        "a vocabulary in GBK": _vocabulary(CharTokenizer, 8, "你\n好\n".encode("gbk")),
        "fewer SentencePiece units than letters": _vocabulary(
            SentencePieceTokenizer, 8
        ),
        "SentencePiece units of no text": _vocabulary(
            SentencePieceTokenizer, 8, texts=[""]
        ),
        "a damaged SentencePiece model": _vocabulary(
            SentencePieceTokenizer, 8, b"version https://git-lfs"
        ),
        "`teacher_vocab` names no file": _wordpieces,
    },
}
