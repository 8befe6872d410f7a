"""`--compile`: encoder and decoder as graphs, in training only.

A graph is made once for all lengths and numbers of utterances (and once more for batches
of one). Modules are compiled where they are, so that checkpoints are those of any run.
SpeechBrain's own way puts wrappers in their place, makes a graph for each length, and
compiles what decides in the forward pass how many vectors there are, which is no graph.
"""

import speechbrain as sb
import torch


def modules_to_compile(run_opts, compilable):
    """What the command line asks for.

    Arguments
    ---------
    run_opts : speechbrain.core.Brain
        With `compile`, `jit` and their `*_module_keys` of SpeechBrain's run options.
    compilable : tuple of str
        Modules of which it is known to work.

    Returns
    -------
    tuple of str
        Names of modules.

    Raises
    ------
    ValueError
        If they are others, or are to be compiled by TorchScript, which reads none of them.
    """
    if run_opts.jit or run_opts.jit_module_keys:
        raise ValueError("--jit: TorchScript cannot read these networks. Try --compile")
    wanted = run_opts.compile_module_keys
    if wanted is None:
        wanted = compilable if run_opts.compile else ()
    unknown = [name for name in wanted if name not in compilable]
    if unknown or (run_opts.compile and not wanted):
        option = f"--compile_module_keys {unknown[0]}" if unknown else "--compile"
        raise ValueError(
            f"{option}: of this network, {' and '.join(compilable) or 'nothing'} can be "
            "compiled. Leave the option out"
        )
    return tuple(wanted)


def compile_in_place(modules, names, **options):
    """Compile modules at their first forward pass.

    Arguments
    ---------
    modules : torch.nn.ModuleDict
    names : tuple of str
        Of those to compile.
    **options
        Of `torch.compile`, for instance its mode.
    """
    for name in names:
        modules[name].compile(dynamic=True, **options)


def compile_only_in(stage):
    """Validation and tests are not compiled: their lengths are others, and they few."""
    training = stage == sb.Stage.TRAIN
    torch.compiler.set_stance("default" if training else "force_eager")
