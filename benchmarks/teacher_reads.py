"""What a teacher cache adds to the making of a training batch, and to a training step.

    python benchmarks/teacher_reads.py --out teacher_reads.md   (a minute, 50 MB of disk)

Both ways load the same utterances through the recipes' dataset, `with` and `without` the
cache's states, in this process. The step is that of cif_mini.yaml, the smallest network
of the Mandarin recipe, forward and backward on one thread: what a larger network or a
worker process that reads ahead spends on reading is a smaller share still.
"""

import pathlib
import statistics
import tempfile
import time

import numpy as np
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml
from interleaved import run_benchmark
from speechbrain.dataio.dataloader import make_dataloader

from cif_lobes.cache.reader import TeacherCache
from cif_lobes.cache.writer import CacheWriter
from cif_lobes.data.batches import make_dataset, train_loader_options
from cif_lobes.data.manifest import Utterance, write_manifest
from cif_lobes.data.tokens import CharTokenizer

YAML = pathlib.Path(__file__).parent.parent / "recipes/AISHELL-1/hparams/cif_mini.yaml"
RATE = 16000
WIDTH = 768  # of bert-base-chinese


def make_corpus(folder, count):
    """Noise of AISHELL-1's lengths, its manifest, tokenizer and a cache of noise."""
    rng = np.random.default_rng(0)
    characters = [chr(0x4E00 + i) for i in range(2000)]
    utterances = []
    for i in range(count):
        text = "".join(rng.choice(characters, size=rng.integers(5, 25)))
        noise = rng.normal(scale=0.1, size=round(RATE * 0.3 * len(text)))
        path = folder / f"{i}.wav"
        soundfile.write(path, noise, RATE)
        utterances.append(Utterance(f"{i}", len(noise) / RATE, str(path), "s", text))
    write_manifest(folder / "train.csv", utterances)
    tokenizer = CharTokenizer(folder / "chars.txt", 2004, "zh")
    tokenizer.fit(u.wrd for u in utterances)
    texts = {u.id: u.wrd for u in utterances}
    lengths = {text: len(text) + 1 for text in texts.values()}
    with CacheWriter(
        folder / "teacher.h5", lengths, texts, (WIDTH,), "float16", {}
    ) as writer:
        for length in lengths.values():
            writer.append(torch.randn(length, WIDTH), 1)
        writer.finish()
    return tokenizer, TeacherCache(folder / "teacher.h5")


def seconds_of_batches(loader):
    """Time of making each batch."""
    seconds, batches = [], iter(loader)
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return seconds
        seconds.append(time.perf_counter() - start)


def seconds_of_steps(hparams, loader):
    """Time of forward and backward of each batch."""
    modules, seconds = hparams["modules"], []
    for batch in loader:
        waves, relative = batch.signal
        lengths = (relative * waves.shape[1]).round().long()
        start = time.perf_counter()
        x, x_lengths = modules["encoder"](*modules["features"](waves, lengths))
        tokens, relative = batch.tokens
        token_lengths = (relative * tokens.shape[1]).round().long()
        fired = modules["cif"](x, x_lengths, token_lengths)
        logits, _ = modules["decoder"](fired.embeddings, tokens)
        (logits.log_softmax(-1).mean() + fired.quantity.mean()).backward()
        seconds.append(time.perf_counter() - start)
    return seconds


def report(args):
    """The table."""
    count, rounds = args.utterances, args.rounds
    with tempfile.TemporaryDirectory() as folder:
        tokenizer, cache = make_corpus(pathlib.Path(folder), count)
        manifest = pathlib.Path(folder) / "train.csv"
        loaders = {}
        for way, states in (("without", None), ("with", cache)):
            dataset = make_dataset(manifest, tokenizer, RATE, states)
            options = train_loader_options(dataset, 40, 40, 20, "ascending", 0, 0)
            loaders[way] = make_dataloader(dataset, **options)
        with open(YAML, encoding="utf-8") as file:
            hparams = load_hyperpyyaml(file, {"output_folder": folder})
        seconds = {way: [] for way in loaders}
        for _ in range(rounds + 1):
            for way, loader in loaders.items():
                seconds[way].append(sum(seconds_of_batches(loader)))
        batches = len(seconds_of_batches(loaders["with"]))
        step = 1e3 * statistics.median(seconds_of_steps(hparams, loaders["with"]))
    # The first round fills the page cache.
    loads = {
        way: 1e3 * statistics.median(s[1:]) / batches for way, s in seconds.items()
    }
    added = loads["with"] - loads["without"]
    return [
        f"Batches of 40 s, {count / batches:.0f} utterances, states of {WIDTH} float16 "
        f"numbers; {rounds} rounds, one thread.",
        "",
        "| per batch | ms |",
        "|---|---:|",
        f"| made without states | {loads['without']:.2f} |",
        f"| made with states | {loads['with']:.2f} |",
        f"| forward and backward | {step:.0f} |",
        f"| **the states' share of a step** | **{added / (step + added):.2%}** |",
    ]


SIZES = {
    "utterances": (240, "of 4.4 s on average"),
    "rounds": (10, "times all batches are made"),
}

if __name__ == "__main__":
    run_benchmark(__doc__, SIZES, report)
