"""What a training step of a recipe keeps in memory, and how much it multiplies.

    python benchmarks/training_needs.py recipes/AISHELL-1/hparams/cif.yaml
    python benchmarks/training_needs.py recipes/LibriSpeech/hparams/cif.yaml --utterance 12.3 --tokens 43

Counted on a CPU, for a few utterances of the corpus's mean length, and scaled to the
yaml's device_batch_seconds: what autograd keeps between forward and backward grows with
the number of utterances.
The states of the parameters (value, gradient, two moments of AdamW) are added. Not
counted: what cuDNN and the allocator take besides, which is why a recipe that needs 15 GB
here does not fit a GPU of 16. Multiplications are those of convolutions and matrix
products, forward and backward; torch does not count recurrent layers.
"""  # noqa: E501

import argparse
import tempfile

import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain import Stage
from speechbrain.dataio.batch import PaddedBatch
from torch.utils.flop_counter import FlopCounterMode

from cif_lobes.nets.pretrained import load_encoder
from cif_lobes.runs import cif, ctc_attention, fithubert
from cif_lobes.settings.yaml_settings import yaml_settings
from cif_lobes.training.distillation import add_losses
from cif_lobes.training.ledger import Ledger

WIDTH = 768  # of a BERT-base's states


def make_brain(path, precision, folder):
    """The Brain of a yaml, its placeholders filled in; teachers have random weights."""
    values = {s.key: "none" for s in yaml_settings(path) if s.required}
    with open(path, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, {**values, "output_folder": folder})
    options = {"device": "cpu", "precision": precision}
    if "distillation" in hparams:
        add_losses(hparams, (WIDTH,), torch.zeros(WIDTH))
    if "student" in hparams["modules"]:
        teacher = load_encoder({"model_type": "hubert"})
        return fithubert.make_brain(hparams, options, teacher)
    run = cif if "cif" in hparams["modules"] else ctc_attention
    return run.make_brain(hparams, options)


def make_batch(brain, count, seconds, tokens):
    """Utterances of noise, all of one length."""
    hparams = brain.hparams
    items = []
    for i in range(count):
        items.append({"id": str(i)})
        items[i]["signal"] = torch.randn(round(seconds * hparams.sample_rate))
        if hasattr(hparams, "vocab_size"):
            items[i]["tokens"] = torch.randint(4, hparams.vocab_size, (tokens + 1,))
        if hasattr(hparams, "teacher_layers"):
            items[i]["teacher"] = torch.randn(tokens + 1, WIDTH).half()
    return PaddedBatch(items)


def measure(brain, batch):
    """Bytes kept for the backward pass, and multiplications, of one step."""
    parameters = {p.untyped_storage().data_ptr() for p in brain.modules.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        # Alive until the backward pass, so no two of them have one address.
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    brain.ledger, brain.optimizer_step = Ledger(), 10**9
    brain.modules.train()
    with FlopCounterMode(display=False) as counter:
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks, brain.training_ctx:
            predictions = brain.compute_forward(batch, Stage.TRAIN)
            loss = brain.compute_objectives(predictions, batch, Stage.TRAIN)
        loss.backward()
    return sum(kept.values()), counter.get_total_flops() / 2


def main(given):
    """Print the table, a row for each yaml and precision."""
    # Layers that are fused where nothing is learnt would not be counted, and fail in bf16.
    torch.backends.mha.set_fastpath_enabled(False)
    print(
        f"Utterances of {given.utterance:g} s with {given.tokens} tokens, counted on "
        f"{given.count} of them:\n\n"
        "| yaml | precision | parameters | their states, GB | seconds of audio "
        "| kept for backward, GB | GMAC per second of audio |\n"
        "|---|---|---:|---:|---:|---:|---:|"
    )
    audio = given.count * given.utterance
    for path in given.yaml:
        for precision in given.precision:
            with tempfile.TemporaryDirectory() as folder:
                brain = make_brain(path, precision, folder)
            batch = make_batch(brain, given.count, given.utterance, given.tokens)
            kept, macs = measure(brain, batch)
            seconds = brain.hparams.device_batch_seconds
            number = sum(p.numel() for p in brain.modules.parameters())
            print(
                f"| {path} | {precision} | {number:,} | {16 * number / 1e9:.2f} "
                f"| {seconds:g} | {kept * seconds / audio / 1e9:.1f} "
                f"| {macs / audio / 1e9:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("yaml", nargs="+", help="recipe")
    add("--precision", nargs="+", default=["fp32", "bf16"], help="fp32 or bf16")
    add("--utterance", type=float, default=4.5, help="seconds of an utterance")
    add("--tokens", type=int, default=14, help="of an utterance")
    add("--count", type=int, default=4, help="utterances that are computed")
    main(parser.parse_args())
