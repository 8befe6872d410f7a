"""Building and reading a teacher cache, against one padded .npy per utterance.

    python benchmarks/teacher_cache.py --out teacher_cache.md   (2 minutes, 1 GB of disk)

`padded` is the way of the authors' code (github.com/MingLunHan/CIF-HieraDist): batches
of 256 sentences in file order, one float32 .npy each, padded to the longest of its
batch. `cache` is extract_teacher.py: sorted by length, float16, everything synced to
disk. Both run the same BERT with random weights. Sentences have AISHELL-1's lengths (5
to 35 characters, 14.4 on average) and random characters, so that no two are equal;
--copies 2 tells what equal transcripts, which `cache` computes once, save. The parts
are interleaved, so that what else runs on the machine slows both alike.
"""

import os
import pathlib
import random
import statistics
import tempfile
import time

import h5py
import numpy as np
import torch
import transformers
from interleaved import run_benchmark

from cif_lobes.cache.reader import TeacherCache
from cif_lobes.cache.writer import CacheWriter
from cif_lobes.teachers.text import TextTeacher, token_batches

CHARACTERS = [chr(0x4E00 + i) for i in range(4230)]
BATCH = 256  # sentences, in the authors' code
READS = 2000
ARGUMENTS = {
    "sentences": (20000, "utterances in all"),
    "copies": (1, "how often each sentence occurs"),
    "parts": (5, "interleaved parts"),
    "layers": (4, "layers of the teacher"),
    "width": (256, "width of the teacher, a multiple of 64"),
    "batch_tokens": (4096, "teacher pieces in a batch of `cache`"),
}


class Characters:
    """The unit of the Mandarin recipes; ids do not matter here."""

    fingerprint = "characters"

    def encode(self, text):
        return [4] * len(text)

    def offsets(self, text):
        return [(i, i + 1) for i in range(len(text))]


def make_sentences(count, copies, rng):
    """Texts by utterance id, in random order."""
    texts = []
    while len(texts) < count // copies:
        length = round(rng.gammavariate(8.6, 14.4 / 8.6))
        if 5 <= length <= 35:
            texts.append("".join(rng.choices(CHARACTERS, k=length)))
    texts *= copies
    rng.shuffle(texts)
    return {f"BAC009S{i:06d}": text for i, text in enumerate(texts)}


def make_teacher(folder, layers, width):
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS]
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    transformers.BertTokenizer(
        vocab=str(folder / "vocab.txt"), model_max_length=512
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(vocab),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return TextTeacher(folder)


def build_padded(teacher, texts, folder):
    folder.mkdir()
    ids = list(texts)
    for start in range(0, len(ids), BATCH):
        batch = ids[start : start + BATCH]
        inputs = teacher.tokenizer(
            [texts[utt_id] for utt_id in batch], padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            states = teacher.encoder(**inputs).last_hidden_state
        for utt_id, padded in zip(batch, states.numpy(), strict=True):
            np.save(folder / f"{utt_id}.npy", padded)


def build_cache(teacher, texts, path, batch_tokens):
    utterance_of = {text: utt_id for utt_id, text in texts.items()}
    aligned = teacher.align(utterance_of, Characters())
    lengths = {a.text: len(a.ranges) for a in aligned}
    width = teacher.state_shape
    with CacheWriter(path, lengths, texts, width, "float16", {}) as writer:
        for batch in token_batches(aligned, batch_tokens):
            writer.append(teacher(batch), len(batch))
        writer.finish()


def timed(function, *arguments):
    """(seconds of the clock, of the processor)."""
    clock, processor = time.perf_counter(), time.process_time()
    function(*arguments)
    return time.perf_counter() - clock, time.process_time() - processor


def build_all(args, teacher, texts, folder):
    """Seconds of every part: way -> list of (clock, processor)."""
    seconds = {"padded": [], "cache": []}
    ids = list(texts)
    size = -(-len(ids) // args.parts)
    for part in range(args.parts):
        some = {utt_id: texts[utt_id] for utt_id in ids[part * size :][:size]}
        builds = {
            "padded": (build_padded, teacher, some, folder / f"padded{part}"),
            "cache": (
                build_cache,
                teacher,
                some,
                folder / f"{part}.h5",
                args.batch_tokens,
            ),
        }
        for way in sorted(builds, reverse=part % 2 == 0):
            seconds[way].append(timed(*builds[way]))
    return seconds


def read_latencies(folder, texts):
    """Microseconds of single reads in random order, page cache warm: way -> list."""
    cache = TeacherCache(folder / "0.h5")
    rng = random.Random(1)
    wanted = rng.sample(list(cache), min(READS, len(cache)))
    with h5py.File(cache.path, "r") as file:
        values = file["values"]
        index = dict(zip(file["ids"], file["text_index"][...].tolist(), strict=True))
        offsets = file["offsets"][...].tolist()

        def read_h5py(utt_id):
            i = index[utt_id.encode()]
            return torch.from_numpy(values[offsets[i] : offsets[i + 1]])

        ways = {
            "cache": cache.__getitem__,
            "the same file through h5py": read_h5py,
            "padded": lambda u: torch.from_numpy(
                np.load(folder / "padded0" / f"{u}.npy")
            ),
        }
        microseconds = {way: [] for way in ways}
        for _ in range(2):  # the first round fills the page cache
            for way, read in ways.items():
                microseconds[way].clear()
                for utt_id in wanted:
                    start = time.perf_counter()
                    read(utt_id)
                    microseconds[way].append(1e6 * (time.perf_counter() - start))
    return microseconds


def report(args):
    texts = make_sentences(args.sentences, args.copies, random.Random(0))
    tokens = sum(len(text) + 1 for text in texts.values())
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "teacher").mkdir()
        teacher = make_teacher(folder / "teacher", args.layers, args.width)
        seconds = build_all(args, teacher, texts, folder)
        size = {
            "padded": sum(p.stat().st_size for p in folder.glob("padded*/*.npy")),
            "cache": sum(p.stat().st_size for p in folder.glob("*.h5")),
        }
        latencies = read_latencies(folder, texts)
    distinct = len(set(texts.values())) / len(texts)
    lines = [
        f"{len(texts):,} sentences ({distinct:.0%} distinct), {tokens:,} states, "
        f"{args.parts} interleaved parts; BERT of {args.layers} layers, width "
        f"{args.width}, CPU, 1 thread, PyTorch {torch.__version__}.",
        "",
        "| way | states/s | states/s of processor time | kB per utterance |",
        "|---|---|---|---|",
    ]
    for way, pairs in seconds.items():
        clock, processor = (sum(column) for column in zip(*pairs, strict=True))
        lines.append(
            f"| {way} | {tokens / clock:,.0f} | {tokens / processor:,.0f} "
            f"| {size[way] / len(texts) / 1000:.1f} |"
        )
    lines += [ratio_line(seconds, size), "", "| way | read, median us | 99 % |"]
    lines += ["|---|---|---|"]
    for way, values in latencies.items():
        values = sorted(values)
        lines.append(
            f"| {way} | {statistics.median(values):.0f} "
            f"| {values[int(0.99 * len(values))]:.0f} |"
        )
    return lines


def ratio_line(seconds, size):
    """`cache` against `padded`: median and range over the parts."""
    cells = []
    for column in (0, 1):
        ratios = sorted(
            padded[column] / cache[column]
            for padded, cache in zip(seconds["padded"], seconds["cache"], strict=True)
        )
        cells.append(
            f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f}-{ratios[-1]:.2f})"
        )
    return f"| ratio | {' | '.join(cells)} | {size['cache'] / size['padded']:.1%} |"


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    run_benchmark(__doc__, ARGUMENTS, report)
