"""ONNX graphs whose matrices are 8-bit integers: a fourth of the size, and less accurate."""

import os

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

# With convolutions, too, MiniSpeech's export is an eighth smaller again and no faster.
MATRICES = ["MatMul", "Gemm"]


def quantize(path):
    """Make the weights of a graph's matrices integers, one scale per output.

    What enters a matrix is turned into integers while the graph runs, by its own range
    (`onnxruntime.quantization.quantize_dynamic`). Features stay floats: before their
    logarithm the loudest frequency would leave nothing of the others.

    Arguments
    ---------
    path : pathlib.Path
        Of a graph; written again.
    """
    graph = onnx.load(path).graph
    smaller = path.with_suffix(".int8")
    quantize_dynamic(
        path,
        smaller,
        op_types_to_quantize=MATRICES,
        per_channel=True,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=before_logarithms(graph),
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )
    os.replace(smaller, path)


def before_logarithms(graph):
    """Names of the nodes from which a logarithm is computed.

    Arguments
    ---------
    graph : onnx.GraphProto

    Returns
    -------
    list of str
    """
    made_by = {output: node for node in graph.node for output in node.output}
    waiting = [node for node in graph.node if node.op_type == "Log"]
    found = {}
    while waiting:
        node = waiting.pop()
        for name in node.input:
            before = made_by.get(name)
            if before is not None and before.name not in found:
                found[before.name] = before
                waiting.append(before)
    return list(found)
