"""An ONNX export with 8-bit matrices: smaller, and it hears what the other hears."""

import numpy as np
import onnx
import pytest
from huggingface_hub import ModelCard

from cif_lobes.commands.evaluate import export
from cif_lobes.inference.onnx import OnnxRecognizer
from cif_lobes.inference.onnx_int8 import before_logarithms


@pytest.fixture(scope="module")
def folders(trained, exported_onnx, tmp_path_factory):
    """The export as floats, and the one of integers, from the command line."""
    folder = tmp_path_factory.mktemp("int8") / "tones"
    export([str(trained), str(folder), "--format", "onnx", "--int8"])
    return exported_onnx, folder


@pytest.mark.slow
def test_the_same_speech_is_heard(folders, signals):
    floats, integers = (OnnxRecognizer(folder) for folder in folders)
    pairs = [(floats.transcribe(s), integers.transcribe(s)) for s in signals]
    assert len({wanted.text for wanted, _ in pairs}) > 5
    same = [wanted.text == found.text for wanted, found in pairs]
    assert np.mean(same) >= 0.9
    # Not bit for bit: something has been rounded.
    assert any(wanted.score != found.score for wanted, found in pairs)


@pytest.mark.slow
def test_matrices_are_integers_and_features_are_not(folders):
    for name in ("encoder.onnx", "decoder.onnx"):
        floats, integers = (onnx.load(folder / name).graph for folder in folders)
        kinds = [node.op_type for node in integers.node]
        assert kinds.count("MatMulInteger") >= 4
        assert sum(node.op_type == "MatMulInteger" for node in floats.node) == 0
        smaller, larger = ((f / name).stat().st_size for f in folders[::-1])
        assert smaller < larger
    encoder = onnx.load(folders[1] / "encoder.onnx").graph
    features = before_logarithms(encoder)
    of_features = [node for node in encoder.node if node.name in features]
    assert any(node.op_type == "MatMul" for node in of_features)  # mel bands
    assert not any("Integer" in node.op_type for node in of_features)


@pytest.mark.slow
def test_the_card_knows(folders):
    floats, integers = (ModelCard.load(folder / "README.md") for folder in folders)
    assert floats.data.library_name == integers.data.library_name == "onnx"
    assert floats.data.eval_results and integers.data.eval_results is None
    assert "8-bit integers" in integers.text and "8-bit" not in floats.text
    assert "Measured with the 32-bit weights" in integers.text


def test_int8_is_for_onnx(capsys):
    with pytest.raises(SystemExit):
        export(["run", "out", "--int8"])
    assert "--int8 needs --format onnx" in capsys.readouterr().err
