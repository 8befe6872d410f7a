"""Bad teachers and teacher caches, for docs/errors.md."""

import json
import os
import struct
from unittest import mock

import numpy as np
import soundfile
import torch
from tiny_teacher import VOCAB, characters, make_teacher

from cif_lobes.cache.build import is_up_to_date
from cif_lobes.cache.reader import TeacherCache
from cif_lobes.cache.text_states import check_known, read_texts
from cif_lobes.cache.writer import CacheWriter
from cif_lobes.runs.teacher import keep_teacher, meet_cached_teacher
from cif_lobes.storage.checkpoints import SafeCheckpointer
from cif_lobes.teachers.recognizers import read_teachers
from cif_lobes.teachers.text import TextTeacher

UTTERANCES = {"u1": "你好", "u2": "天气"}
MADE_BY = {
    "tokenizer_fingerprint": "units",
    "text_normalization": "zh",
    "layer": [10, 12],
    "command": "python extract_teacher.py build extract_bert.yaml",
}


def _cache(folder, fill=True, utterances=UTTERANCES, **attributes):
    """A cache of two texts, or its beginning."""
    path = str(folder / "bert.h5")
    texts = {text: len(text) + 1 for text in utterances.values()}
    made_by = {**MADE_BY, **attributes}
    with CacheWriter(path, texts, utterances, (2, 4), "float16", made_by) as writer:
        if fill:
            torch.manual_seed(0)
            writer.append(torch.randn(sum(texts.values()), 2, 4), num_texts=len(texts))
            writer.finish()
    return path


def _damaged(change):
    """A cache whose bytes are changed; then all of it is read."""

    def cause(folder):
        path = _cache(folder)
        with open(path, "r+b") as file:
            change(file)
        cache = TeacherCache(path)
        for utterance in cache:
            cache[utterance]

    return cause


def _cut(file):
    file.truncate(os.fstat(file.fileno()).st_size // 2)


def _flip(where):
    """Change one byte, by its place in the file."""

    def change(file):
        file.seek(where, os.SEEK_SET if where >= 0 else os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))

    return change


def _state(file):
    """Change a byte of a state."""
    _, address = struct.unpack("<8sQ", file.read(16))
    _flip(address)(file)


def _no_hdf5(folder):
    (folder / "bert.h5").write_text("version https://git-lfs.github.com/spec/v1\n")
    TeacherCache(folder / "bert.h5")


def _unfinished(folder):
    _cache(folder, fill=False)
    TeacherCache(folder / "bert.h5")


def _renamed(folder):
    _cache(folder, fill=False)
    (folder / "bert.h5.partial").rename(folder / "bert.h5")
    TeacherCache(folder / "bert.h5")


def _checked(texts, **changes):
    """A sound cache that is asked for something else."""

    def cause(folder):
        cache = TeacherCache(_cache(folder))
        expected = {"tokenizer_fingerprint": "units", "text_normalization": "zh"}
        cache.check(texts, **{**expected, **changes})

    return cause


def _two_builds(folder):
    texts = {text: len(text) + 1 for text in UTTERANCES.values()}
    path = str(folder / "bert.h5")
    with CacheWriter(path, texts, UTTERANCES, (2, 4), "float16", MADE_BY):
        _cache(folder)


def _other_beginning(folder):
    _cache(folder, fill=False)
    _cache(folder, utterances={"u1": "你好", "u3": "房子"})


def _other_is_there(folder):
    is_up_to_date(_cache(folder), UTTERANCES, {"layer": [12]}, overwrite=False)


def _not_finite(folder):
    path, texts = str(folder / "bert.h5"), {"你好": 3}
    with CacheWriter(path, texts, {"u1": "你好"}, (4,), "float16", {}) as writer:
        writer.append(torch.full((3, 4), 1e5), num_texts=1)


def _disk(folder):
    usage = mock.Mock(free=2 * 10**9)
    with mock.patch("shutil.disk_usage", return_value=usage):
        CacheWriter(
            folder / "bert.h5", {"你好": 10**9}, {"u1": "你好"}, (4,), "float16", {}
        )


def _teacher(change=None, **settings):
    """A small BERT, changed before it is loaded."""

    def cause(folder):
        source = make_teacher(folder / "bert")
        if change:
            change(folder / "bert")
        return TextTeacher(source, **settings)

    return cause


def _without_tokenizer(folder):
    for path in [*folder.glob("tokenizer*"), folder / "vocab.txt"]:
        path.unlink()


def _wider(folder):
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] += 1
    (folder / "config.json").write_text(json.dumps(config))


def _align(text):
    def cause(folder):
        teacher = TextTeacher(make_teacher(folder / "bert", positions=16))
        teacher.align({text: "u1"}, characters)

    return cause


def _unknown(folder):
    teacher = TextTeacher(make_teacher(folder / "bert", vocab=VOCAB))
    check_known(teacher, teacher.align({"ありがとう": "u1"}, characters))


def _two_manifests(folder):
    soundfile.write(folder / "a.wav", np.zeros(16000), 16000)
    paths = []
    for name, text in (("train", "yes"), ("dev", "no")):
        paths.append(folder / f"{name}.csv")
        paths[-1].write_text(f"ID,duration,wav,wrd\nu1,1.0,a.wav,{text}\n")
    read_texts(paths, str)


def _another(folder):
    """A run goes on with a cache that was built again, of another teacher."""
    checkpointer = SafeCheckpointer(folder / "save", {"model": torch.nn.Linear(1, 1)})
    checkpointer.save_checkpoint()
    run = {"output_folder": folder, "checkpointer": checkpointer, "init_from": None}
    for name, weights in [("bert-base-chinese", "0a"), ("macbert", "1b")]:
        path = _cache(folder, teacher=name, teacher_weights=weights)
        meet_cached_teacher(run, TeacherCache(path))
        keep_teacher(run)
        os.remove(path)


def _list_of_teachers(text):
    def cause(folder):
        (folder / "teachers.txt").write_text(text.format(folder=folder))
        read_teachers(folder / "teachers.txt", "cpu")

    return cause


SECTIONS = {
    "Teachers": {
        "`--teacher` names no folder": lambda f: TextTeacher(f / "bert"),
        "a teacher's folder without tokenizer": _teacher(_without_tokenizer),
        "a `config.json` of another model": _teacher(_wider),
        "`--layer 13` of a teacher of 3 layers": _teacher(layer=13),
        "`--pooling max`": _teacher(pooling="max"),
        "a transcript that is longer than the teacher reads": _align("天" * 20),
        "a teacher of another language": _unknown,
        "one id, two transcripts": _two_manifests,
        "no list of teachers": lambda f: read_teachers(f / "teachers.txt", "cpu"),
        "a list of no teacher": _list_of_teachers("# none yet\n"),
        "a list with a folder that is no run": _list_of_teachers("{folder}/lost\n"),
    },
    "Teacher caches": {
        "no cache": lambda folder: TeacherCache(folder / "bert.h5"),
        "a build that was interrupted": _unfinished,
        "the same, renamed": _renamed,
        "a pointer of Git LFS instead of a cache": _no_hdf5,
        "a cache that was copied half": _damaged(_cut),
        "a damaged index": _damaged(_flip(-20)),
        "a damaged state": _damaged(_state),
        "an utterance more than it was built for": _checked({**UTTERANCES, "u3": "房"}),
        "a transcript that was edited since": _checked({"u1": "你们", "u2": "天气"}),
        "other units": _checked(UTTERANCES, tokenizer_fingerprint="other"),
        "`--teacher_layers '[6]'` of a cache of 10 and 12": lambda folder: TeacherCache(
            _cache(folder)
        ).use_layers([6]),
        "a run goes on with a cache of another teacher": _another,
        "two builds of one cache at once": _two_builds,
        "the beginning of another cache": _other_beginning,
        "another cache of that name": _other_is_there,
        "a state beyond float16": _not_finite,
        "no room on the disk": _disk,
    },
}
