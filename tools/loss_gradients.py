"""How hard each loss pulls: the norm of its gradient on every module, per token.

python tools/loss_gradients.py recipes/AISHELL-1/hparams/cif_hieradist.yaml
python tools/loss_gradients.py results/AISHELL-1/cif_hieradist/1986 --utterances 100

Look before choosing acd_weight and lrd_weight for data of your own: a teacher whose
gradient on the encoder is many times that of the cross-entropy delays recognition. Losses
are unweighted; the weights stand beside them. A yaml, with settings as train.py takes
them, is looked at as training would begin: random parameters, or those of its
`init_from`; nothing is written. A run is looked at as it is by now. Both read the
training set and, where there is a teacher, its cache, which have to be there.
"""

import argparse
import pathlib
import random
import sys

from cif_lobes.settings.program import run_program


def parse_arguments(words):
    """The command line, and what of it are settings of a yaml."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=pathlib.Path, help="run folder, or a yaml")
    parser.add_argument("--utterances", type=int, default=16, help="[%(default)s]")
    parser.add_argument(
        "--untrained",
        action="store_true",
        help="random parameters, as before the run's training",
    )
    arguments, settings = parser.parse_known_args(words)
    if arguments.source.suffix != ".yaml":
        arguments = parser.parse_args(words)  # refuses settings
    return arguments, settings


def main(arguments, settings=()):
    """Print the table of a run or a yaml."""
    # Here, so that --help and a misspelt option need no torch.
    import torch

    torch.manual_seed(0)  # what --untrained and the negatives of ACD are drawn from
    if arguments.source.suffix == ".yaml":
        brain, data = open_yaml(arguments.source, settings)
    else:
        brain, data = open_run(arguments.source, arguments.untrained)
    norms, weights = measure(brain, data, arguments.utterances)
    print(table(norms, weights, min(arguments.utterances, len(data))))


def open_yaml(path, settings):
    """The Brain that a yaml's training begins with, and its training set.

    Arguments
    ---------
    path : pathlib.Path
    settings : list of str
        As on the command line of train.py.

    Returns
    -------
    brain : cif_lobes.training.cif.CIFBrain
    data : speechbrain.dataio.dataset.DynamicItemDataset
    """
    from cif_lobes.runs.cif import begin
    from cif_lobes.settings.cli import parse
    from cif_lobes.settings.yaml_settings import yaml_settings

    # What is there is read, and the heads' first updates are not what is asked for.
    ours = {"skip_prep": "True", "distil_after": "0", "device": "cpu"}
    keys = {setting.key for setting in yaml_settings(path)} | {"device"}
    words = [f"--{key}={value}" for key, value in ours.items() if key in keys]
    arguments = parse([str(path), *settings, "--dry_run", *words], path, "")
    brain, _, datasets = begin(*arguments, None)
    return brain, datasets["train"]


def open_run(folder, untrained):
    """The Brain of a run, and its training set; see `open_yaml`.

    Arguments
    ---------
    folder : pathlib.Path
    untrained : bool
        With random parameters in place of its own.
    """
    from cif_lobes.data.batches import make_dataset
    from cif_lobes.runs.cif import load_run, make_brain
    from cif_lobes.runs.ears import open_ears_cache
    from cif_lobes.runs.stages import manifest_paths
    from cif_lobes.training.distillation import add_teacher

    # The heads' first updates are not what is asked for.
    _, hparams = load_run(folder, {"distil_after": 0}, teacher=True)
    manifest = manifest_paths(hparams)["train"]
    cache = add_teacher(hparams, manifest)
    brain = make_brain(hparams, {"device": "cpu"})  # with the losses' heads
    if not untrained:
        brain.on_evaluate_start()
    heard = open_ears_cache(hparams, {"measured": manifest})
    tokenizer, rate = hparams["tokenizer"], hparams["sample_rate"]
    return brain, make_dataset(manifest, tokenizer, rate, cache, heard)


def measure(brain, data, utterances):
    """Gradient norms of a batch.

    Arguments
    ---------
    brain : cif_lobes.training.cif.CIFBrain
    data : speechbrain.dataio.dataset.DynamicItemDataset
    utterances : int
        Drawn from it.

    Returns
    -------
    norms : dict of str to dict of str to float
        By loss, then by module; modules without parameters are left out.
    weights : dict of str to float
        Of each loss.
    """
    import torch
    from speechbrain import Stage
    from speechbrain.dataio.batch import PaddedBatch

    from cif_lobes.training.ledger import Ledger

    count = min(utterances, len(data))
    chosen = random.Random(0).sample(range(len(data)), count)
    batch = PaddedBatch([data[i] for i in chosen])
    brain.ledger = Ledger()
    brain.modules.eval()  # without dropout: nothing is drawn but ACD's negatives
    predictions = brain.compute_forward(batch, Stage.VALID)
    losses = brain.losses(predictions, batch, Stage.TRAIN)
    tokens = brain.count_units(predictions)
    norms = {}
    for name, (_, loss) in losses.items():
        norms[name] = {}
        for module, network in named_modules(brain):
            parameters = [p for p in network.parameters() if p.requires_grad]
            if not parameters:
                continue
            gradients = torch.autograd.grad(
                loss / tokens, parameters, retain_graph=True, allow_unused=True
            )
            squares = [g.square().sum() for g in gradients if g is not None]
            norms[name][module] = float(sum(squares)) ** 0.5
    return norms, {name: weight for name, (weight, _) in losses.items()}


def named_modules(brain):
    """Modules of a network, and the head of each distillation loss, by name."""
    for name, module in brain.modules.items():
        if name == "distillation":
            yield from ((f"{loss}_head", m) for loss, m in module.items())
        else:
            yield name, module


def table(norms, weights, count):
    """The norms in markdown."""
    modules = list(next(iter(norms.values())))
    lines = [
        f"Gradient norms per token, {count} utterances, unweighted",
        "",
        f"| loss | weight | {' | '.join(modules)} |",
        "|---|---:|" + "---:|" * len(modules),
    ]
    for name, row in norms.items():
        cells = " | ".join(f"{row[module]:.2f}" for module in modules)
        lines.append(f"| {name} | {weights[name]:g} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(lambda: main(*parse_arguments(sys.argv[1:])))
