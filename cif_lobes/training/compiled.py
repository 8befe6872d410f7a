"""Layers of encoder and decoder as `torch.compile` makes them, for training.

What is compiled is a layer, not the network: all layers of a kind share its code, so that
a minute of compiling serves fifteen of them, and batches of all sizes share one graph with
symbols for utterances and frames. Of SpeechBrain's Conformer layer it is the four modules:
the layer as a whole, like the network, gets the number of frames written into it by
TorchInductor (torch 2.11), and would be made again for every batch.

Validation and scoring run without: a figure is the same number with the option and without.
"""

import torch
from speechbrain.lobes.models.transformer.Conformer import ConformerEncoderLayer
from torch import nn

NAMES = ("encoder", "decoder")
CONFORMER_PARTS = ("ffn_module1", "mha_layer", "convolution_module", "ffn_module2")


def check_options(brain):
    """Refuse SpeechBrain's options that these networks cannot take, or that say nothing.

    Raises
    ------
    ValueError
        For TorchScript, which batches of many lengths and optional arguments rule out;
        for what compiles graphs of one size; without --compile; and for a number of
        passes per update.
    """
    for option in ("compile_using_fullgraph", "compile_using_dynamic_shape_tracing"):
        if getattr(brain, option):
            raise ValueError(
                f"--{option}: --compile has its own way with sizes. Leave it out"
            )
    if brain.compile_module_keys and not brain.compile:
        raise ValueError("--compile_module_keys says nothing without --compile")
    if brain.grad_accumulation_factor != 1:
        raise ValueError(
            f"grad_accumulation_factor is {brain.grad_accumulation_factor}: it follows "
            "from batch_seconds, the audio of an update, and device_batch_seconds, "
            "what a device takes at a time. Set these"
        )
    for option in ("jit", "jit_module_keys"):
        if getattr(brain, option):
            raise ValueError(
                f"--{option}: TorchScript does not take these networks. Leave it out, or "
                "use --compile"
            )


def compile_layers(modules, keys=None, mode="default", backend="inductor"):
    """Compile each layer of an encoder and a decoder, in place: parameters keep their names.

    Arguments
    ---------
    modules : dict of str to nn.Module
        A Brain's.
    keys : list of str, optional
        Of these modules; the encoder and the decoder without it.
    mode, backend : str
        Of `torch.compile`.

    Returns
    -------
    int
        Number of modules that were compiled.

    Raises
    ------
    ValueError
        If a module does not exist, or none has a `layers`.
    """
    keys = keys or [name for name in NAMES if name in modules]
    missing = [key for key in keys if key not in modules]
    if missing:
        raise ValueError(
            f"--compile_module_keys: there is no module {missing[0]!r}, only "
            f"{', '.join(sorted(modules))}"
        )
    parts = [part for key in keys for part in _parts(modules[key])]
    if not parts:
        raise ValueError(
            f"--compile: none of {', '.join(keys or modules)} has a list of `layers` to "
            "compile. Leave it out"
        )
    for part in parts:
        part.compile(dynamic=True, mode=mode, backend=backend)
    return len(parts)


def _parts(module):
    """What is compiled of a module: its layers, those of its BERT, or theirs."""
    layers = getattr(getattr(module, "bert", module), "layers", None)
    for layer in layers if isinstance(layers, nn.ModuleList) else ():
        if isinstance(layer, ConformerEncoderLayer):
            yield from (getattr(layer, name) for name in CONFORMER_PARTS)
        else:
            yield layer


def use_compiled(training):
    """Run what was compiled as such, or as it was written."""
    torch.compiler.set_stance("default" if training else "force_eager")
