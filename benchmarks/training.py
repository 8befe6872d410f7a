"""A training step of AISHELL-1/cif.yaml against one of SpeechBrain's Transformer recipe.

    python benchmarks/training.py --out training.md      (a quarter of an hour)
    python benchmarks/training.py --device cuda --seconds 300 --precision bf16

A step is `fit_batch` of either Brain: features, SpecAugment, network, losses, backward
pass, clipping, optimizer. `cif` is the network of the yaml with its cross-entropy, CTC and
quantity losses, `transformer` that of `transformer_recipe.py`. Both take the same batches
of noise, with durations and numbers of characters as AISHELL-1 has them, in turn. On a
CPU, time is that of the processor, so that what else runs on the machine slows both alike.

Peak memory: on a GPU, all that PyTorch had allocated at once, parameters and the state of
the optimizer included; on a CPU, how much a process of its own grew at most from before
the network was made (Linux only). A synchronisation is where the host waits for the
device: counted on a GPU by PyTorch, on a CPU on the simulated device of
tests/sync_counter.py.
"""

import pathlib
import statistics
import sys
import tempfile
import time
import warnings

import torch
from hyperpyyaml import load_hyperpyyaml
from interleaved import ratio, run_benchmark
from processes import measure_apart, memory_status
from speechbrain import Stage
from speechbrain.dataio.batch import PaddedBatch
from transformer_recipe import BOS, make_transformer

from cif_lobes.data.update_batches import UpdateBatches
from cif_lobes.devices.precision import set_tf32
from cif_lobes.runs.cif import make_brain
from cif_lobes.storage.record import hardware

ROOT = pathlib.Path(__file__).parent.parent
YAML = ROOT / "recipes/AISHELL-1/hparams/cif.yaml"
RATE = 16000
# AISHELL-1's training set: 4.5 s and 14.4 characters on average, 14.5 s at most.
CHARACTERS_PER_SECOND = 14.4 / 4.5
SIZES = {
    "seconds": (20.0, "audio of a batch"),
    "batches": (3, "batches of a round"),
    "rounds": (5, "timed rounds"),
    "device": ("cpu", "cpu or cuda"),
    "precision": ("fp32", "fp32 or bf16"),
}


def make_cif(run_opts):
    """The Brain of the yaml, ready for `fit_batch`."""
    folder = tempfile.mkdtemp()
    with open(YAML, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, {"output_folder": folder})
    brain = make_brain(hparams, {**run_opts, "max_grad_norm": hparams["max_grad_norm"]})
    # Every update is one pass with utterances.
    brain.train_sampler = UpdateBatches(Updates([[0]]), [1.0], 1.0)
    brain.interrupted = False
    brain.on_fit_start()
    brain.on_stage_start(Stage.TRAIN, 1)
    brain.progress.shown = False  # it knows one update
    brain.modules.train()
    brain.step = 1
    return brain


class Updates(list):
    """What UpdateBatches deals: the same in every epoch."""

    def set_epoch(self, epoch):
        """Nothing is shuffled."""


WAYS = {"cif": make_cif, "transformer": make_transformer}


def make(way, args):
    """The Brain of a way."""
    return WAYS[way]({"device": args.device, "precision": args.precision})


def make_batches(args):
    """Batches of noise, each of utterances of like duration, from short to long."""
    generator = torch.Generator().manual_seed(0)
    gamma = torch.distributions.Gamma(9.0, 2.0)
    torch.manual_seed(0)
    seconds = sorted(gamma.sample((2000,)).clamp(1.2, 14.5).tolist())
    batches, rows = [], []
    for duration in seconds:
        if rows and (len(rows) + 1) * duration > args.seconds:
            batches.append(rows)
            rows = []
        rows.append(duration)
    # From the middle of as many equal parts of the training set.
    step = len(batches) / args.batches
    chosen = [batches[int((i + 0.5) * step)] for i in range(args.batches)]
    return [make_batch(rows, generator) for rows in chosen]


def make_batch(durations, generator):
    """What both recipes read of a batch: with end of sentence, without, behind a bos."""
    examples = []
    for number, duration in enumerate(durations):
        samples = round(duration * RATE)
        length = (round(duration * CHARACTERS_PER_SECOND),)
        tokens = torch.randint(4, 4000, length, generator=generator)
        examples.append(
            {
                "id": str(number),
                "signal": 0.1 * torch.randn(samples, generator=generator),
                "tokens": torch.cat([tokens, torch.tensor([2])]),
                "tokens_only": tokens,
                "tokens_bos": torch.cat([torch.tensor([BOS]), tokens]),
            }
        )
    return examples


def seconds_of(brain, examples, device):
    """Time of a step, the copy of the batch to the device included."""
    cuda = device.startswith("cuda")
    batch = PaddedBatch(examples)
    if cuda:
        batch.pin_memory()
        torch.cuda.synchronize()
    clock = time.perf_counter if cuda else time.process_time
    start = clock()
    brain.fit_batch(batch)
    if cuda:
        torch.cuda.synchronize()
    return clock() - start


def measure_times(args):
    """Seconds per round of each way, and parameters; rounds are interleaved."""
    batches = make_batches(args)
    brains = {way: make(way, args) for way in WAYS}
    seconds = {way: [] for way in brains}
    # The first round makes the optimizer's state.
    for round_number in range(args.rounds + 1):
        for way, brain in brains.items():
            # CIF's sets TF32 as its yaml says; SpeechBrain's leaves it on.
            set_tf32(way == "transformer")
            total = sum(seconds_of(brain, batch, args.device) for batch in batches)
            if round_number:
                seconds[way].append(total)
    sizes = {
        way: sum(p.numel() for p in brain.modules.parameters())
        for way, brain in brains.items()
    }
    return {"seconds": seconds, "parameters": sizes}


def measure_peak(args, way):
    """Megabytes; see above."""
    batches = make_batches(args)
    if args.device.startswith("cuda"):
        brain = make(way, args)
        for examples in batches:
            brain.fit_batch(PaddedBatch(examples))
        return torch.cuda.max_memory_allocated() / 1e6
    # Code that PyTorch loads on first use is no memory of the network.
    torch.nn.Linear(8, 8)(torch.rand(8, 8)).sum().backward()
    before = memory_status("VmRSS")
    brain = make(way, args)
    for examples in batches:
        brain.fit_batch(PaddedBatch(examples))
    return memory_status("VmHWM") - before


def measure_waits(args, way):
    """Synchronisations of the second step."""
    examples = make_batches(args)[0]
    if args.device.startswith("cuda"):
        brain = make(way, args)
        brain.fit_batch(PaddedBatch(examples))
        batch = PaddedBatch(examples).pin_memory()
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            brain.fit_batch(batch)
        return sum("synchroniz" in str(w.message) for w in caught)
    sys.path.insert(0, str(ROOT / "tests"))
    from sync_counter import SyncCounter

    brain = make(way, args)
    with SyncCounter() as counter:
        move(brain, "meta")
        brain.fit_batch(PaddedBatch(examples))
        counter.places.clear()
        brain.fit_batch(PaddedBatch(examples))
        print(counter, file=sys.stderr)
        return counter.total


def move(brain, device):
    """A Brain with all that it has made so far."""
    brain.modules.to(device)
    brain.device = device
    brain.optimizer = brain.opt_class(brain.modules.parameters())
    brain.optimizers_dict = {"opt_class": brain.optimizer}
    for name in ("compute_features", "normalize"):
        if hasattr(brain.hparams, name):
            getattr(brain.hparams, name).to(device).device = device


def measure(args, name):
    """times, or peak or waits of a way."""
    if name == "times":
        return measure_times(args)
    kind, way = name.split(" ", 1)
    return {"peak": measure_peak, "waits": measure_waits}[kind](args, way)


def report(args):
    """The table."""

    def apart(name):
        return measure_apart(__file__, args, SIZES, name)

    times = apart("times")
    peaks = {way: apart(f"peak {way}") for way in WAYS}
    waits = {way: apart(f"waits {way}") for way in WAYS}
    lines = [
        f"A round: {args.batches} batches of at most {args.seconds:g} s, padding included; "
        f"{args.precision}, {hardware(args.device)}, PyTorch {torch.__version__}, "
        f"medians of {args.rounds} interleaved rounds. Ratios to `cif`.",
        "",
        "| step | parameters, M | s per round | ratio | peak MB | ratio "
        "| synchronisations |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for way in WAYS:
        seconds = times["seconds"][way]
        lines.append(
            f"| {way} | {times['parameters'][way] / 1e6:.1f} "
            f"| {statistics.median(seconds):.1f} "
            f"| {ratio(times['seconds'], way, 'cif'):.2f} "
            f"| {peaks[way]:.0f} | {peaks[way] / peaks['cif']:.2f} | {waits[way]} |"
        )
    return lines


if __name__ == "__main__":
    run_benchmark(__doc__, SIZES, report, measure)
