"""Teachers, their cache and the student's losses, with networks of random weights."""

import shutil
from types import SimpleNamespace

import h5py
import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.batch import PaddedBatch
from tiny_asr import EXTRACT_YAML, KD_YAML, list_teachers, make_run, overrides
from torch.testing import assert_close

from cif_lobes.cache import extraction
from cif_lobes.cache import posteriors as ensemble_extraction
from cif_lobes.cache.ensemble import EnsembleCache, open_ensemble_cache, truncate
from cif_lobes.cache.reader import TeacherCache
from cif_lobes.data.batches import make_dataset
from cif_lobes.data.manifest import read_manifest
from cif_lobes.losses.multi_teacher import greedy_labels
from cif_lobes.nets.ctc_attention import CRDNNEncoder
from cif_lobes.teachers.recognizers import ASRTeacher, read_teachers


def extract(corpus, folder, verb="build", **changes):
    """Run extract_teacher.py's inside; return the cache's path."""
    settings = {
        "teachers": folder / "teachers.txt",
        "cache": folder / "ensemble.h5",
        "manifest_folder": folder / "manifests",
        "manifest": corpus[0],
        "vocab_size": 8,
        "batch_seconds": 12,
        **changes,
    }
    text = "".join(f"{k}: {v}\n" for k, v in settings.items())
    extraction.run(verb, EXTRACT_YAML, None, text)
    return settings["cache"]


@pytest.fixture(scope="module")
def ensemble(corpus, tmp_path_factory):
    """Folder with two teachers, their list and their cache."""
    folder = tmp_path_factory.mktemp("ensemble")
    runs = [make_run(corpus, folder, 1), make_run(corpus, folder, 2, rnn_neurons=8)]
    list_teachers(folder, *runs)
    extract(corpus, folder)
    return folder


def batch_of(corpus, folder, indices=range(5)):
    """Items of the training set, and its tokenizer."""
    tokenizer = read_teachers(folder / "teachers.txt")[0].tokenizer
    data = make_dataset(corpus[0], tokenizer, 16000)
    return PaddedBatch([data[i] for i in indices]), tokenizer


# Network


@pytest.mark.parametrize("rnn_type", ["lstm", "gru", "rnn"])
def test_an_utterance_is_encoded_alike_alone_and_in_a_batch(rnn_type):
    torch.manual_seed(0)
    encoder = CRDNNEncoder(12, [3, 4], 2, rnn_type, 2, 5, 2, 6).eval()
    lengths = torch.tensor([31, 40, 9])
    x = torch.randn(3, 40, 12)
    together, frames = encoder(x, lengths)
    assert frames.tolist() == [15, 20, 4]
    for b, (length, count) in enumerate(zip(lengths, frames, strict=True)):
        alone, _ = encoder(x[b : b + 1, :length], lengths[b : b + 1])
        assert_close(together[b, :count], alone[0], atol=1e-5, rtol=1e-4)
    x[0, 31:] = 1e3
    assert_close(encoder(x, lengths)[0][0, :15], together[0, :15])


def test_other_rnns_are_refused():
    with pytest.raises(ValueError, match="rnn_type is 'ligru'"):
        CRDNNEncoder(12, [3], 2, "ligru", 2, 5, 2, 6)


# Teachers


def test_teachers_are_frozen_whatever_a_brain_asks_for(ensemble):
    teacher = read_teachers(ensemble / "teachers.txt")[0].train()
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_checkpoint_is_a_teacher_too(ensemble):
    run = ensemble / "teacher1"
    (checkpoint,) = (run / "save").glob("CKPT*")
    hashes = {ASRTeacher(p).weights_hash for p in (run, checkpoint)}
    assert hashes == {ASRTeacher(checkpoint / "model.ckpt").weights_hash}


def test_a_list_that_names_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="write one run folder a line"):
        read_teachers(tmp_path / "teachers.txt")
    with pytest.raises(FileNotFoundError, match="lost is neither a run folder"):
        read_teachers(list_teachers(tmp_path, tmp_path / "lost"))
    with pytest.raises(ValueError, match="lists no teacher"):
        read_teachers(list_teachers(tmp_path))


def test_teachers_that_cannot_be_paired(corpus, ensemble, tmp_path):
    other = make_run(corpus, tmp_path, 3, time_pooling_size=4)
    list_teachers(tmp_path, ensemble / "teacher1", other)
    with pytest.raises(ValueError, match="teacher3: frames of 10 s 125, expected 250"):
        extract(corpus, tmp_path, manifest_folder=ensemble / "manifests")


# Cache


def test_the_cache_holds_what_each_teacher_says_alone(corpus, ensemble):
    """Whatever batch it was computed in: one utterance, one teacher at a time."""
    cache = TeacherCache(ensemble / "ensemble.h5")
    assert len(cache) == 48 and cache.shape == (2, 8)
    teachers = read_teachers(ensemble / "teachers.txt")
    for index in (0, 17, 47):
        batch, tokenizer = batch_of(corpus, ensemble, [index])
        parts = cache.parts(batch.id[0])
        for k, teacher in enumerate(teachers):
            waves, tokens = batch.signal.data, batch.tokens.data
            lengths, token_lengths = (
                torch.tensor([x.shape[1]]) for x in (waves, tokens)
            )
            ctc, _, seq = teacher(waves, lengths, tokens, token_lengths)
            assert_close(parts["ctc"][:, k].float(), ctc[0], atol=5e-3, rtol=1e-3)
            assert_close(parts["seq"][:, k].float(), seq[0], atol=5e-3, rtol=1e-3)
            written = tokenizer.decode(seq[0].argmax(-1))
            wrong = written != batch.text[0]
            assert (parts["errors"][0, k, 1] > 0) == wrong


def test_targets(corpus, ensemble):
    """Labels are the collapsed best classes; padding is blank."""
    cache = TeacherCache(ensemble / "ensemble.h5")
    utt_id = next(iter(cache))
    seq, labels, errors = EnsembleCache(cache, 0).targets(utt_id)
    assert seq.shape[1:] == (2, 8) and errors.shape == (2, 2)
    for k in range(2):
        expected = greedy_labels(cache.parts(utt_id)["ctc"][:, k], 0)
        assert labels[: len(expected), k].tolist() == expected.tolist()
        assert not labels[len(expected) :, k].any()


def test_truncated(corpus, ensemble, tmp_path):
    """The three best classes and no others, of the same posteriors."""
    list_teachers(tmp_path, ensemble / "teacher1", ensemble / "teacher2")
    folder = ensemble / "manifests"
    path = extract(corpus, tmp_path, top_n=3, manifest_folder=folder)
    full = EnsembleCache(TeacherCache(ensemble / "ensemble.h5"), 0)
    small = EnsembleCache(TeacherCache(path), 0)
    for utt_id in list(small.cache)[:5]:
        a, labels_a, errors_a = full.targets(utt_id)
        b, labels_b, errors_b = small.targets(utt_id)
        assert (b.isfinite().sum(-1) == 3).all()
        assert_close(b[b.isfinite()], a[b.isfinite()])
        assert_close(truncate(b, 3)[..., :3], truncate(a, 3)[..., :3])
        assert labels_a.tolist() == labels_b.tolist()
        assert_close(errors_a, errors_b)


def test_damage_is_found_when_it_is_read(ensemble, tmp_path):
    path = shutil.copy(ensemble / "ensemble.h5", tmp_path)
    with h5py.File(path, "r+") as file:
        file["values"][0] += 1
    cache = EnsembleCache(TeacherCache(path), 0)
    with h5py.File(path) as file:
        first = file["ids"][list(file["text_index"]).index(0)].decode()
    others = set(cache.cache) - {first}
    for utt_id in others:
        list(cache.targets(utt_id))
    with pytest.raises(OSError, match=f"states of {first} are not those that were wr"):
        list(cache.targets(first))


def test_the_size_is_said_before_it_starts(corpus, ensemble, tmp_path, capsys):
    list_teachers(tmp_path, ensemble / "teacher1")
    path = extract(corpus, tmp_path, manifest_folder=ensemble / "manifests")
    size = TeacherCache(path).total_states * 8 * 2
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"{path}: 48 utterances, 1 teachers, {size / 1e6:,.1f} MB"


def test_interrupted_and_continued(corpus, ensemble, monkeypatch, tmp_path):
    """The same bytes as without the interruption."""
    list_teachers(tmp_path, ensemble / "teacher1", ensemble / "teacher2")
    settings = {"manifest_folder": ensemble / "manifests"}
    batches = iter([False, False, True])
    posteriors = ensemble_extraction.posteriors

    def interrupted(*arguments):
        if next(batches):
            raise KeyboardInterrupt
        return posteriors(*arguments)

    monkeypatch.setattr(ensemble_extraction, "posteriors", interrupted)
    with pytest.raises(SystemExit, match="utterances are kept"):
        extract(corpus, tmp_path, **settings)
    monkeypatch.undo()
    continued = TeacherCache(extract(corpus, tmp_path, **settings))
    expected = TeacherCache(ensemble / "ensemble.h5")
    for utt_id in expected:
        assert_close(continued[utt_id], expected[utt_id], atol=2e-3, rtol=1e-3)


def test_a_stale_cache_is_refused(corpus, ensemble, tmp_path, capsys):
    """Other teachers, other transcripts; the same again is up to date."""
    extract(corpus, ensemble)
    extract(corpus, ensemble, "verify")
    extract(corpus, ensemble, "inspect")
    out = capsys.readouterr().out
    assert "up to date" in out and "20 computed again" in out and "attention" in out
    teachers = list_teachers(tmp_path, ensemble / "teacher2", ensemble / "teacher1")
    for verb in ("build", "verify"):
        with pytest.raises(ValueError, match="teacher_weights is"):
            extract(corpus, ensemble, verb, teachers=teachers)
    edited = tmp_path / "edited.csv"
    edited.write_text(corpus[0].read_text().replace("utt1-005,", "utt1-005,9"))
    hparams = {
        "teacher_cache": ensemble / "ensemble.h5",
        "tokenizer": read_teachers(ensemble / "teachers.txt")[0].tokenizer,
        "vocab_size": 8,
        "error_unit": "char",
    }
    assert len(open_ensemble_cache(hparams, corpus[0]).cache) == 48
    rows = edited.read_text().replace(",utt1", f",{corpus[0].parent}/utt1")
    edited.write_text(rows)
    with pytest.raises(ValueError, match="1 of 48 transcripts differ.*utt1-005"):
        open_ensemble_cache(hparams, edited)
    with pytest.raises(ValueError, match="vocab_size is 8, expected 9"):
        open_ensemble_cache({**hparams, "vocab_size": 9}, corpus[0])


@pytest.mark.parametrize("dtype, exact", [("float16", 2049), ("bfloat16", 257)])
def test_truncation_that_would_round_class_numbers_is_refused(dtype, exact):
    hparams = {"top_n": 4, "dtype": dtype, "tokenizer": SimpleNamespace()}
    hparams["tokenizer"].vocab_size = exact
    ensemble_extraction._check_top_n(hparams)
    number = torch.tensor(exact - 1)
    assert number.to(getattr(torch, dtype)).long() == number
    hparams["tokenizer"].vocab_size = exact + 1
    assert (number + 1).to(getattr(torch, dtype)).long() != number + 1
    with pytest.raises(ValueError, match=f"{exact + 1:,} classes: {dtype} rounds"):
        ensemble_extraction._check_top_n(hparams)
    ensemble_extraction._check_top_n({**hparams, "top_n": 0})


# Student


def load_student(corpus, folder, **changes):
    _, text = overrides(corpus, folder, **changes)
    with open(KD_YAML) as file:
        return load_hyperpyyaml(file, text)


def test_greedy_hypotheses_do_not_depend_on_the_batch(corpus, ensemble):
    """But for what follows an utterance's last frame, which the Brain cuts off."""
    hparams = load_student(corpus, ensemble)
    torch.nn.ModuleDict(hparams["modules"]).eval()
    torch.manual_seed(0)
    encoded, lengths = torch.randn(2, 12, 32), torch.tensor([12, 5])
    together = hparams["searcher"](encoded, lengths / 12)[0]
    alone = hparams["searcher"](encoded[1:, :5], torch.ones(1))[0]
    assert together[1][:5] == alone[0][:5]


def test_manifest_ids_are_the_keys(corpus, ensemble):
    """In another order, and fewer: the same targets."""
    cache = TeacherCache(ensemble / "ensemble.h5")
    assert set(cache) == {u.id for u in read_manifest(corpus[0])}
    reader = EnsembleCache(cache, 0)
    batch, tokenizer = batch_of(corpus, ensemble, [3])
    data = make_dataset(corpus[0], tokenizer, 16000)
    reader.teach(data)
    item = data[3]
    assert item["id"] == batch.id[0]
    assert_close(item["teacher_seq"], next(reader.targets(batch.id[0])))
    together = PaddedBatch([data[i] for i in (9, 3, 30)])
    length = len(item["teacher_seq"])
    assert_close(together.teacher_seq.data[1, :length], item["teacher_seq"])
