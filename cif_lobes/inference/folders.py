"""What a model's folder is: a training run, an export, or an ONNX export."""

import pathlib


def is_onnx(folder):
    """Whether this is an ONNX export, for `cif_lobes.inference.onnx.OnnxRecognizer`."""
    return pathlib.Path(folder, "recognizer.json").exists()


def open_folder(folder, overrides=None):
    """The objects of the recogniser of a run or an export.

    See `cif_lobes.inference.export.open_run` and `open_export`.
    """
    # Here: an ONNX export is recognised without PyTorch.
    from cif_lobes.inference.export import find_parameters, open_export, open_run

    is_run = find_parameters(folder) is None
    return (open_run if is_run else open_export)(folder, overrides)
