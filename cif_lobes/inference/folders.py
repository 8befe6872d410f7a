"""What a model's folder is: a training run, of a recogniser or of an adapter into a
language model, an export, or an ONNX export."""

import importlib.util
import json
import pathlib
import shutil

from cif_lobes.inference.windows import MAX_SECONDS
from cif_lobes.settings.safe_yaml import inside
from cif_lobes.storage.run_files import is_llm_run

TEACHER_VOCAB = "vocab.txt"  # in an export whose tokens are WordPieces


def copy_teacher_vocab(tokenizer, folder):
    """Put what a tokenizer of WordPieces splits words with into an export's folder.

    Only who writes text in tokens reads it: hotwords.

    Returns
    -------
    bool
        Whether there is such a file.
    """
    source = getattr(tokenizer, "teacher_vocab", None)
    if source is None or not source.is_file():
        return source is not None
    shutil.copyfile(source, pathlib.Path(folder, TEACHER_VOCAB))
    return True


def use_vocabularies(tokenizer, folder, name):
    """Let a tokenizer read the files of an export's folder, whatever the export says."""
    tokenizer.path = inside(folder, name)
    if hasattr(tokenizer, "teacher_vocab"):
        tokenizer.teacher_vocab = inside(folder, TEACHER_VOCAB)


def is_onnx(folder):
    """Whether this is an ONNX export, for `cif_lobes.inference.onnx.OnnxRecognizer`."""
    return pathlib.Path(folder, "recognizer.json").exists()


class Opened:
    """What is made of the objects of a model's folder, and a device."""

    @classmethod
    def from_folder(cls, folder, overrides=None, device="cpu"):
        """The recogniser of a run or of an export, whichever the folder is.

        Arguments
        ---------
        folder : str
            Output folder of a training run, or of `evaluate.py export`.
        overrides : dict, optional
            Settings of an export's yaml to change: beam_size, tail_threshold; of a run of
            train_llm.py beam_size, llm.
        device : str
            cpu or cuda.
        """
        return cls(open_folder(folder, overrides), device)

    @classmethod
    def from_run(cls, folder, overrides=None, device="cpu"):
        """The recogniser of a run folder; see `cif_lobes.inference.export.open_run`."""
        from cif_lobes.inference.export import open_run

        return cls(open_run(folder, overrides), device)

    @classmethod
    def from_export(cls, folder, overrides=None, device="cpu"):
        """The recogniser of an exported folder; see `export.open_export`."""
        from cif_lobes.inference.export import open_export

        return cls(open_export(folder, overrides), device)


def open_folder(folder, overrides=None):
    """The objects of the recogniser of a run or an export.

    See `cif_lobes.inference.export.open_run` and `open_export`, and
    `cif_lobes.inference.speech_llm.open_llm_run`.
    """
    # Here: an ONNX export is recognised without PyTorch.
    from cif_lobes.inference.export import find_parameters, open_export, open_run

    if is_llm_run(folder):
        from cif_lobes.inference.speech_llm import open_llm_run

        return open_llm_run(folder, overrides)
    is_run = find_parameters(folder) is None
    return (open_run if is_run else open_export)(folder, overrides)


def open_recognizer(folder, device="cpu", beam=None, threads=1):
    """What transcribes recordings by a run, an export or an ONNX export.

    Arguments
    ---------
    folder : str
        Whichever it is.
    device : str
        cpu or cuda, not for an ONNX export.
    beam : int, optional
        Hypotheses kept, by default what the yaml says; not for an ONNX export.
    threads : int
        Of the CPU, for an ONNX export; of others PyTorch decides.

    Returns
    -------
    recognizer : CIFRecognizer or OnnxRecognizer
    hparams : dict or None
        The objects of the folder; None for an ONNX export, which has none.
    """
    if is_onnx(folder):
        check_installed("an ONNX export", "onnxruntime")
        from cif_lobes.inference.onnx import OnnxRecognizer

        return OnnxRecognizer(folder, threads), None
    # Here, since they need PyTorch, and neither --help nor an ONNX export does.
    from cif_lobes.inference.recognizer import CIFRecognizer

    hparams = open_folder(folder, {"beam_size": beam} if beam else None)
    return CIFRecognizer(hparams, device), hparams


def check_installed(what, *packages):
    """Refuse what needs a package that is only in the extra [onnx], and not there."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"{what} needs {', '.join(missing)}, not installed: pip install "
            f"{' '.join(missing)}, or the extra [onnx] of cif-lobes"
        )


def longest_seconds(folder):
    """The longest training utterance of a run, at least 1; 20 at most, or if unknown."""
    path = folder / "run.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return min(max(record.get("longest_seconds", MAX_SECONDS), 1.0), MAX_SECONDS)
