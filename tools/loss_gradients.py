"""How hard each loss pulls: the norm of its gradient on every module, per token.

python tools/loss_gradients.py results/AISHELL-1/cif_hieradist/1986 --untrained
python tools/loss_gradients.py results/AISHELL-1/cif_hieradist/1986 --utterances 100

Look before choosing acd_weight and lrd_weight for data of your own: a teacher whose
gradient on the encoder is many times that of the cross-entropy delays recognition. Losses
are unweighted; a run's own weights stand beside them. Reads the training set and, for
runs with a teacher, its cache, as the run's yaml names them.
"""

import argparse
import pathlib
import random

from cif_lobes.settings.program import run_program


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=pathlib.Path, help="run folder")
    parser.add_argument("--utterances", type=int, default=16, help="[%(default)s]")
    parser.add_argument(
        "--untrained", action="store_true", help="random parameters, as before training"
    )
    return parser.parse_args()


def main(arguments):
    """Print the table of a run."""
    # Here, so that --help and a misspelt option need no torch.
    import torch
    from speechbrain.dataio.batch import PaddedBatch

    from cif_lobes.data.batches import make_dataset
    from cif_lobes.runs.cif import load_run, make_brain
    from cif_lobes.runs.stages import manifest_paths
    from cif_lobes.training.distillation import add_teacher

    torch.manual_seed(0)  # what --untrained and the negatives of ACD are drawn from
    # The heads' first updates are not what is asked for.
    _, hparams = load_run(arguments.run, {"distil_after": 0}, teacher=True)
    manifest = manifest_paths(hparams)["train"]
    cache = add_teacher(hparams, manifest)
    brain = make_brain(hparams, {"device": "cpu"})  # with the losses' heads
    if not arguments.untrained:
        brain.on_evaluate_start()
    data = make_dataset(manifest, hparams["tokenizer"], hparams["sample_rate"], cache)
    count = min(arguments.utterances, len(data))
    chosen = random.Random(0).sample(range(len(data)), count)
    norms, weights = measure(brain, PaddedBatch([data[i] for i in chosen]))
    print(table(norms, weights, count))


def measure(brain, batch):
    """Gradient norms of a batch.

    Arguments
    ---------
    brain : cif_lobes.training.cif.CIFBrain
    batch : speechbrain.dataio.batch.PaddedBatch

    Returns
    -------
    norms : dict of str to dict of str to float
        By loss, then by module; modules without parameters are left out.
    weights : dict of str to float
        Of each loss.
    """
    import torch
    from speechbrain import Stage

    from cif_lobes.training.ledger import Ledger

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
    run_program(lambda: main(parse_arguments()))
