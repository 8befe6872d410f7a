"""--compile: layers of all sizes share a graph, and a figure is what it was without."""

import shutil

import pytest
import speechbrain as sb
import torch
from test_sync import make_batch, make_brain, step
from torch._dynamo.utils import counters

from cif_lobes.nets.decoder import CIFDecoder, DecoderLayer
from cif_lobes.nets.encoder import ConformerEncoder
from cif_lobes.training import brain as brain_module
from cif_lobes.training.cif import CIFBrain
from cif_lobes.training.compiled import compile_layers, use_compiled

SIZES = [(3, 61), (4, 75), (1, 50), (2, 40), (5, 133), (1, 120)]


@pytest.fixture(autouse=True)
def fresh():
    """Neither graphs nor stance of another test."""
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.set_stance("default")
    torch.compiler.reset()


def make_encoder():
    torch.manual_seed(0)
    return ConformerEncoder(
        20, 16, num_layers=2, nhead=2, d_ffn=32, kernel_size=5, pool_after=[1],
        conv_channels=2, dropout=0.0,
    )  # fmt: skip


def make_decoder():
    torch.manual_seed(0)
    return CIFDecoder(9, 16, 2, 2, 32, dropout=0.0, layer_dropout=0.0)


def batch(utterances, frames):
    lengths = torch.tensor([frames, *range(frames - 1, frames - utterances, -1)])
    return torch.randn(utterances, frames, 20), lengths


def gradients(module, x):
    module.zero_grad()
    x.square().sum().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def test_an_encoder_is_equal_and_its_graphs_are_few():
    """Four parts in two layers, two frame rates, six sizes: 48 if each had its own."""
    plain, compiled = make_encoder(), make_encoder()
    assert compile_layers({"encoder": compiled}, backend="aot_eager") == 8
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for size in SIZES:
        x, x_lengths = batch(*size)
        wanted, got = plain(x, x_lengths)[0], compiled(x, x_lengths)[0]
        torch.testing.assert_close(got, wanted)
        torch.testing.assert_close(gradients(compiled, got), gradients(plain, wanted))
    # Feed-forward, attention and convolution, each with one utterance apart.
    assert counters["stats"]["unique_graphs"] <= 8


def test_a_decoder_is_equal_and_searches_as_it_was_written():
    plain, compiled = make_decoder(), make_decoder()
    compile_layers({"decoder": compiled}, backend="aot_eager")
    for utterances, tokens in [(3, 5), (2, 8), (4, 11), (1, 6), (2, 1)]:
        vectors = torch.randn(utterances, tokens, 16)
        previous = torch.randint(9, (utterances, tokens))
        wanted, got = plain(vectors, previous)[0], compiled(vectors, previous)[0]
        torch.testing.assert_close(got, wanted)
        torch.testing.assert_close(gradients(compiled, got), gradients(plain, wanted))
    graphs = counters["stats"]["unique_graphs"]
    assert 1 <= graphs <= 5  # one utterance and one token apart
    use_compiled(False)
    with torch.no_grad():
        torch.testing.assert_close(
            compiled.eval()(vectors, previous)[0], plain.eval()(vectors, previous)[0]
        )
    assert counters["stats"]["unique_graphs"] == graphs


def test_a_brain_compiles_for_training_and_scores_without(tmp_path, monkeypatch):
    def with_backend(*arguments):
        return compile_layers(*arguments, backend="eager")

    monkeypatch.setattr(brain_module, "compile_layers", with_backend)
    plain = make_brain(tmp_path)
    hparams = vars(plain.hparams)
    compiled = CIFBrain(
        dict(plain.modules),
        torch.optim.SGD,
        hparams,
        {"device": "cpu", "compile": True},
    )
    compiled.ledger, compiled.optimizer_step = plain.ledger, 0
    torch.manual_seed(1)
    wanted = step(plain)
    compiled._compile()
    torch.manual_seed(1)
    torch.testing.assert_close(step(compiled), wanted)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    torch.compiler.reset()  # or what is there would be used
    counters.clear()
    compiled.on_stage_start(sb.Stage.VALID)
    with torch.no_grad():
        compiled.modules.eval()
        compiled.compute_forward(make_batch(), sb.Stage.VALID)
    assert not counters["stats"]["unique_graphs"]


def test_what_cannot_be_compiled_is_said():
    with pytest.raises(ValueError, match="no module 'ctc', only encoder"):
        compile_layers({"encoder": make_encoder()}, ["ctc"])
    with pytest.raises(ValueError, match="none of encoder has a list of `layers`"):
        compile_layers({"encoder": torch.nn.Linear(1, 1)})


@pytest.mark.parametrize(
    "options",
    [
        {"jit": True},
        {"compile_module_keys": ["encoder"]},
        {"compile": True, "compile_using_fullgraph": True},
        {"compile": True, "compile_using_dynamic_shape_tracing": True},
    ],
)
def test_options_that_say_nothing_are_refused(tmp_path, options):
    brain = make_brain(tmp_path)
    arguments = dict(brain.modules), torch.optim.SGD, vars(brain.hparams)
    with pytest.raises(ValueError, match=f"--{list(options)[-1]}"):
        CIFBrain(*arguments, {"device": "cpu", **options})


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="TorchInductor wants a compiler")
def test_inductor_has_symbols_for_the_sizes():
    """Which is what it lacks for the network as a whole."""
    torch.manual_seed(0)
    plain = DecoderLayer(16, 2, 32, dropout=0.0)
    compiled = DecoderLayer(16, 2, 32, dropout=0.0)
    compiled.load_state_dict(plain.state_dict())
    compiled.compile(dynamic=True)
    sizes = [(utterances, tokens) for utterances, tokens in SIZES if utterances > 1]
    for size in sizes:
        x = torch.randn(*size, 16)
        torch.testing.assert_close(compiled(x), plain(x), rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] <= 2 < len(sizes)
