"""A run's recogniser in a folder of its own: as the run itself says, by SpeechBrain."""

import pathlib
import shutil

import pytest
import torch
from conftest import pad
from safetensors.torch import load_file
from speechbrain.inference.ASR import EncoderDecoderASR
from speechbrain.utils.fetching import FetchFrom, FetchSource

from cif_lobes.inference.export import NETWORK, export_run, open_run
from cif_lobes.inference.recognizer import CIFRecognizer


def test_speechbrain_transcribes_as_the_run(
    exported, utterances, signals, found_by_the_run, tmp_path
):
    """Files alone, and a batch; through the links that SpeechBrain makes in savedir."""
    savedir = tmp_path / "saved"
    asr = EncoderDecoderASR.from_hparams(source=str(exported), savedir=str(savedir))
    assert (savedir / "model.ckpt").is_symlink()
    texts, tokens = asr.transcribe_batch(*pad(signals))
    assert tokens == found_by_the_run
    assert texts == [asr.tokenizer.decode(ids) for ids in found_by_the_run]
    assert texts == [asr.transcribe_file(str(file)) for file, _, _ in utterances]
    assert len(set(texts)) > 5  # or nothing has been shown


def test_speechbrain_says_how_to_fetch(exported, signals, monkeypatch):
    """A source with its kind, and one from the folder above."""
    kind = FetchSource(FetchFrom.LOCAL, str(exported))
    monkeypatch.chdir(exported.parent)
    for source in kind, exported.name, f"./{exported.name}":
        asr = EncoderDecoderASR.from_hparams(source=source)
        parameters = load_file(exported / "model.safetensors")
        assert torch.equal(
            asr.mods.decoder.searcher.decoder.state_dict()["norm.weight"],
            parameters["decoder.norm.weight"],
        )


def old_export(exported, folder):
    """As written by the versions before."""
    shutil.copytree(exported, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "model.ckpt")
    (folder / "model.safetensors").unlink()
    yaml = (folder / "hyperparams.yaml").read_text()
    ours = "cif_lobes.inference.export"
    yaml = yaml.replace(f"    model: !name:{ours}.use_parameters\n", "")
    theirs = "speechbrain.utils.parameter_transfer.Pretrainer"
    yaml = yaml.replace(f"{ours}.ExportPretrainer", theirs)
    yaml = yaml.replace("cif_lobes.inference.fire_modules.", f"{ours}.")
    assert "safetensors" not in yaml and theirs in yaml
    (folder / "hyperparams.yaml").write_text(yaml)
    return folder


def test_an_export_of_before_is_read(exported, signals, tmp_path):
    """As tensors only; by SpeechBrain, too."""
    old = old_export(exported, tmp_path / "old")
    wanted = CIFRecognizer.from_export(exported).transcribe(signals)
    assert CIFRecognizer.from_export(old).transcribe(signals) == wanted
    asr = EncoderDecoderASR.from_hparams(source=str(old))
    assert asr.transcribe_batch(*pad(signals))[0] == [t.text for t in wanted]
    torch.save({"a": pathlib.Path("a")}, old / "model.ckpt")
    with pytest.raises(
        ValueError, match="model.ckpt is damaged, or holds more than tensors"
    ):
        CIFRecognizer.from_export(old)


def test_parameters_that_do_not_fit(exported, tmp_path):
    broken = shutil.copytree(exported, tmp_path / "broken")
    path = broken / "model.safetensors"
    data = path.read_bytes()
    for damaged in data[: len(data) // 2], b"", b"\xff" * 100:
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="model.safetensors is damaged"):
            CIFRecognizer.from_export(broken)
    path.write_bytes(data)
    yaml = (broken / "hyperparams.yaml").read_text()
    yaml = yaml.replace("d_ffn: 64", "d_ffn: 32")
    (broken / "hyperparams.yaml").write_text(yaml)
    with pytest.raises(ValueError, match="the parameters of another network"):
        CIFRecognizer.from_export(broken)


def test_padding_is_not_read(exported, signals):
    asr = EncoderDecoderASR.from_hparams(source=str(exported))
    zeros, other = (asr.encode_batch(*pad(signals, value)) for value in (0.0, 0.5))
    assert zeros.lengths.sum() > 20
    torch.testing.assert_close(other, zeros)


def test_export_can_be_moved_and_overridden(exported, signals, tmp_path):
    moved = shutil.copytree(exported, tmp_path / "elsewhere" / "model")
    overrides = {"beam_size": 4, "tail_threshold": 0.9}
    asr = EncoderDecoderASR.from_hparams(source=str(moved), overrides=overrides)
    assert asr.tokenizer.path.parent == moved
    assert asr.mods.encoder.cif.tail_threshold == 0.9
    recognizer = CIFRecognizer.from_export(moved, overrides)
    texts, _ = asr.transcribe_batch(*pad(signals))
    assert texts == [t.text for t in recognizer.transcribe(signals)]
    assert len(recognizer.transcribe(signals[:1])[0].nbest) == 4


def test_export_holds_the_recogniser_only(trained, exported):
    names = {"hyperparams.yaml", "model.safetensors", "tokenizer.ckpt", "README.md"}
    assert {path.name for path in exported.iterdir()} == names
    parameters = load_file(exported / "model.safetensors")
    assert {name.split(".")[0] for name in parameters} <= set(NETWORK)
    settings = (exported / "hyperparams.yaml").read_text()
    for word in (
        str(trained),
        "ctc_head",
        "checkpointer",
        "optimizer",
        "augment",
        "seed",
    ):
        assert word not in settings


def test_export_averages_the_checkpoints_asked_for(trained, exported, tmp_path):
    name = "decoder.project_out.weight"
    folders = sorted(
        (f for f in trained.glob("save/CKPT*") if "error_rate" in _meta(f)),
        key=lambda f: int(_meta(f).split("epoch: ")[1].split()[0]),
    )
    last, before = (torch.load(f / "model.ckpt")[name] for f in folders[:-3:-1])
    assert not torch.equal(last, before)
    average = load_file(exported / "model.safetensors")[name]
    torch.testing.assert_close(average, (last + before) / 2)
    export_run(trained, tmp_path / "last", num_checkpoints=1)
    assert torch.equal(load_file(tmp_path / "last/model.safetensors")[name], last)


def _meta(folder):
    return (folder / "CKPT.yaml").read_text().replace("end-of-epoch: ", "")


def test_loading_a_run_does_not_seed(trained):
    """The whole yaml would: what is drawn afterwards would always be the same."""

    def draw(seed):
        torch.manual_seed(seed)
        open_run(trained)
        return torch.rand(1)

    assert draw(1) != draw(2)


def test_export_refuses(trained, exported, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="not a run folder: no hyperparams.yaml"
    ):
        export_run(tmp_path, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="not a run folder: no save"):
        export_run(exported, tmp_path / "out")
    with pytest.raises(FileExistsError, match="not empty"):
        export_run(trained, exported)
    with pytest.raises(FileNotFoundError, match="evaluate.py export RUN"):
        CIFRecognizer.from_export(trained)
    run = shutil.copytree(trained, tmp_path / "run")
    for checkpoint in run.glob("save/CKPT*"):
        shutil.rmtree(checkpoint)
    with pytest.raises(FileNotFoundError, match="no checkpoint of a whole epoch"):
        open_run(run)
    yaml = (run / "hyperparams.yaml").read_text()
    yaml = yaml.replace("GreedySearcher\n", "BeamSearcher\n  scorer: [1]\n")
    (run / "hyperparams.yaml").write_text(yaml)
    with pytest.raises(ValueError, match="has a scorer"):
        open_run(run)


def test_wordpieces_are_split_by_a_file_of_the_export(tmp_path):
    """And by no other, whatever the export's yaml says."""
    from cif_lobes.data.tokens import WordPieceTokenizer
    from cif_lobes.inference.folders import copy_teacher_vocab, use_vocabularies

    vocab = tmp_path / "teacher.txt"
    vocab.write_text("[UNK]\n[CLS]\n[SEP]\nsee\n##s\n")
    made = WordPieceTokenizer(tmp_path / "words.txt", 8, "en", vocab).fit(["sees"])
    export = tmp_path / "export"
    export.mkdir()
    shutil.copy(made.path, export / "tokenizer.ckpt")
    assert copy_teacher_vocab(made, export)
    vocab.unlink()
    read = WordPieceTokenizer("none", 8, "en", "/etc/passwd")
    use_vocabularies(read, export, "tokenizer.ckpt")
    assert read.encode("sees") == made.encode("sees") == [5, 4]
    (export / "vocab.txt").unlink()
    (export / "vocab.txt").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="vocab.txt"):
        use_vocabularies(read, export, "tokenizer.ckpt")
