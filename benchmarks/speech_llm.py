"""What X-LLM's ways to read and write with a language model save.

    python benchmarks/speech_llm.py --out speech_llm.md      (5 minutes)

A model of SmolLM2-135M's sizes and random weights behind the vectors of a batch. A step:
loss and gradient at the vectors, with what all prompts begin with read once for the batch,
against reading it in every row; then, with precision bf16, with frozen weights in bfloat16
against weights in float32, which autocast casts in every layer and step. Writing: greedy,
all texts of the batch together, against one after the other. Weights are random, so texts do
not end before their limit. Rounds are interleaved and time is that of the CPU.
"""

import statistics
import string
import tempfile

import torch
import transformers
from interleaved import in_turn, ratio, run_benchmark
from tokenizers import Tokenizer, models

from cif_lobes.nets.speech_llm import SpeechLLM

SIZES = {
    "batch": (6, "utterances"),
    "vectors": (
        15,
        "of each; a text has as many pieces, and limit is 4 times it and 8",
    ),
    "before": (
        44,
        "pieces that prompts begin with: SmolLM2's template with a sentence",
    ),
    "after": (6, "pieces behind the vectors"),
    "rounds": (5, "timed rounds"),
}
STEPS = ("in every row", "once")
DTYPES = ("float32", "bfloat16")
WRITING = ("one by one", "together")


def make_llms(args, folder):
    """The language model, whose pieces are letters, by the dtype of its weights."""
    pieces = {
        piece: i for i, piece in enumerate(["<s>", "</s>", *string.ascii_letters])
    }
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(pieces, [])),
        bos_token="<s>",
        eos_token="</s>",
    ).save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    prompt = "a" * (args.before - 1) + "{speech}" + "b" * args.after
    return {dtype: SpeechLLM(folder, prompt, dtype=dtype) for dtype in DTYPES}


def measure(args):
    """Seconds of each way, a list over interleaved rounds."""
    with tempfile.TemporaryDirectory() as folder:
        llms = make_llms(args, folder)
    llm = llms["float32"]
    speech = torch.randn(args.batch, args.vectors, llm.width, requires_grad=True)
    lengths = torch.full((args.batch,), args.vectors)
    texts = ["c" * args.vectors] * args.batch
    read_once = llm._read_before

    def step(read_before):
        llm._read_before = read_before
        llm(speech, lengths, texts)[0].backward()

    def mixed(dtype):
        with torch.autocast("cpu", torch.bfloat16):
            loss, *_ = llms[dtype](speech, lengths, texts)
        loss.backward()

    def one_by_one():
        for i in range(args.batch):
            llm.transcribe(speech[i : i + 1].detach(), lengths[i : i + 1])

    return in_turn(
        {
            "in every row": lambda: step(lambda batch, device: ({}, 0)),
            "once": lambda: step(read_once),
            **{dtype: lambda dtype=dtype: mixed(dtype) for dtype in DTYPES},
            "one by one": one_by_one,
            "together": lambda: llm.transcribe(speech.detach(), lengths),
        },
        args.rounds,
    )


def report(args):
    times = measure(args)
    lines = [
        f"{args.batch} utterances of {args.vectors} vectors, {args.before} pieces before "
        f"and {args.after} behind them, SmolLM2-135M's sizes. CPU, 1 thread, "
        f"PyTorch {torch.__version__}, medians of {args.rounds} interleaved rounds.",
        "",
        "| what | way | s | ratio |",
        "|---|---|---:|---:|",
    ]
    for what, ways in [
        ("a step, prompt read", STEPS),
        ("a step in bf16, weights in", DTYPES),
        ("writing", WRITING),
    ]:
        lines += [
            f"| {what} | {way} | {statistics.median(times[way]):.2f} | "
            f"{ratio(times, way, ways[0]):.2f} |"
            for way in ways
        ]
    return lines


if __name__ == "__main__":
    run_benchmark(__doc__, SIZES, report)
