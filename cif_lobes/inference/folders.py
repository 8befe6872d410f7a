"""What a model's folder is: a training run, an export, or an ONNX export."""

import pathlib


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
            Settings of an export's yaml to change: beam_size, tail_threshold.
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

    See `cif_lobes.inference.export.open_run` and `open_export`.
    """
    # Here: an ONNX export is recognised without PyTorch.
    from cif_lobes.inference.export import find_parameters, open_export, open_run

    is_run = find_parameters(folder) is None
    return (open_run if is_run else open_export)(folder, overrides)
