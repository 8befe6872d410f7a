"""--compile: what is computed, how many graphs it takes, what it leaves behind."""

import pytest
import torch
from conftest import last_checkpoint, tiny_arguments, train
from speechbrain import Stage
from test_sync import make_brain
from torch._dynamo.utils import counters

from cif_lobes.nets.decoder import CIFDecoder
from cif_lobes.nets.encoder import ConformerEncoder
from cif_lobes.training.cif import CIFBrain
from cif_lobes.training.compilation import compile_in_place, compile_only_in

# Utterances, feature frames, tokens: 20 batches of other sizes, two of one utterance.
SIZES = [(1 + i % 6, 60 + 17 * i % 240, 2 + 7 * i % 23) for i in range(1, 19)]
SIZES += [(1, 77, 5), (1, 203, 9)]


@pytest.fixture
def network():
    """Three layers at two frame rates, no dropout."""
    torch.manual_seed(0)
    encoder = ConformerEncoder(20, 16, 3, 2, 32, 5, (2,), 4, (2, 2), dropout=0.0)
    decoder = CIFDecoder(11, 16, 2, 2, 32, dropout=0.0, layer_dropout=0.0)
    yield torch.nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    torch.compiler.set_stance("default")
    torch._dynamo.reset()


def step(network, size):
    """Outputs and gradients of a batch of noise."""
    utterances, frames, tokens = size
    generator = torch.Generator().manual_seed(frames)
    x = torch.randn(utterances, frames, 20, generator=generator)
    x_lengths = torch.linspace(frames, 1, utterances).long()
    vectors = torch.randn(utterances, tokens, 16, generator=generator)
    previous = torch.randint(11, (utterances, tokens), generator=generator)
    encoded, _ = network["encoder"](x, x_lengths)
    logits, states = network["decoder"](vectors, previous)
    network.zero_grad()
    (encoded.square().mean() + logits.square().mean() + states.mean()).backward()
    gradients = {n: p.grad.clone() for n, p in network.named_parameters()}
    return encoded.detach(), logits.detach(), gradients


@pytest.mark.slow
def test_compiled_equals_eager_and_graphs_are_few(network):
    """One of the layers and one of the decoder, for all sizes; one more for batches of 1."""
    expected = [step(network, size) for size in SIZES]
    names = [*network.state_dict()]
    compile_in_place(network, ("encoder", "decoder"), backend="aot_eager")
    counters.clear()
    for size, wanted in zip(SIZES, expected, strict=True):
        torch.testing.assert_close(step(network, size), wanted, atol=1e-5, rtol=1e-4)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] <= 6
    assert [*network.state_dict()] == names


def test_only_training_is_compiled(network):
    calls = []

    def backend(graph, example):
        calls.append(graph)
        return graph

    compile_in_place(network, ("decoder",), backend=backend)
    inputs = torch.rand(2, 3, 16), torch.randint(11, (2, 3))
    compile_only_in(Stage.VALID)
    network["decoder"](*inputs)
    assert not calls
    compile_only_in(Stage.TRAIN)
    network["decoder"](*inputs)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"compile_module_keys": ["cif"]},
            "--compile_module_keys cif: of this network",
        ),
        ({"jit": True}, "--jit: TorchScript cannot"),
    ],
)
def test_what_cannot_be_compiled_is_refused_before_anything_runs(
    tmp_path, options, message
):
    brain = make_brain(tmp_path)
    options = {"device": "cpu", **options}
    with pytest.raises(ValueError, match=message):
        CIFBrain(dict(brain.modules), torch.optim.SGD, vars(brain.hparams), options)


def test_a_network_without_anything_to_compile_is_refused(tmp_path, monkeypatch):
    brain = make_brain(tmp_path)
    monkeypatch.setattr(CIFBrain, "compilable", ())
    options = {"device": "cpu", "compile": True}
    with pytest.raises(ValueError, match="--compile: of this network, nothing can be"):
        CIFBrain(dict(brain.modules), torch.optim.SGD, vars(brain.hparams), options)


@pytest.mark.slow
def test_a_compiled_run_goes_on_without(corpus, tmp_path):
    """With inductor: its checkpoint holds the same names, and is an eager run's as well."""
    settings = {"encoder_layers": 1, "pool_after": "[]", "conv_strides": "[2, 2, 2]"}
    settings["number_of_epochs"] = 1
    done = train([*tiny_arguments(corpus, tmp_path, **settings), "--compile"])
    assert "recompile_limit" not in done.stderr
    names = [*last_checkpoint(tmp_path / "run")]
    settings["number_of_epochs"] = 2
    train(tiny_arguments(corpus, tmp_path, **settings))
    assert [*last_checkpoint(tmp_path / "run")] == names
