"""Score a trained run: which set, which beam, which checkpoints.

python evaluate.py results/AISHELL-1/cif/1986 --split test --beam 10
python evaluate.py export results/AISHELL-1/cif/1986 my_model

Writes the error rate with its substitutions, deletions and insertions into the run's
run.json, and every utterance's alignment into errors_*.txt beside it.
"""

import argparse
import sys


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="output_folder of a training run")
    parser.add_argument(
        "--split", nargs="+", help="sets to score: valid, or a test set (default: all)"
    )
    parser.add_argument("--csv", help="score this csv instead (ID, wav, wrd)")
    parser.add_argument(
        "--beam", type=int, default=1, help="hypotheses kept; 1: greedy"
    )
    parser.add_argument(
        "--tail_threshold", type=float, help="remainder that fires a last token, 0 to 1"
    )
    parser.add_argument(
        "--average", choices=["last", "best"], help="which checkpoints to average"
    )
    parser.add_argument("--num_checkpoints", type=int, help="how many of them")
    parser.add_argument(
        "--eval_batch_seconds", type=float, help="seconds of audio in a batch"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return parser.parse_args()


def main(arguments):
    """Load the run, decode, write the figures down."""
    # Here, so that --help and a misspelt option need no torch.
    from cif_lobes.dataio import make_dataset
    from cif_lobes.experiment import load_run, manifest_paths, score
    from cif_lobes.searcher import BeamSearcher

    settings = ("tail_threshold", "average", "num_checkpoints", "eval_batch_seconds")
    changed = {s: v for s in settings if (v := getattr(arguments, s)) is not None}
    brain, hparams = load_run(arguments.run, changed, {"device": arguments.device})
    hparams["cif"].tail_threshold = hparams["tail_threshold"]
    if arguments.beam > 1:
        changed["beam"] = arguments.beam
        hparams["searcher"] = BeamSearcher(hparams["decoder"], arguments.beam)
        brain.hparams.searcher = hparams["searcher"]
    manifests = manifest_paths(hparams)
    del manifests["train"]
    if arguments.csv:
        manifests = {"csv": arguments.csv}
    unknown = set(arguments.split or []) - manifests.keys()
    if unknown:
        raise SystemExit(
            f"{arguments.run} has no set {sorted(unknown)[0]!r}; it has "
            f"{', '.join(manifests)}. Score other data with --csv FILE"
        )
    datasets = {
        name: make_dataset(path, hparams["tokenizer"], hparams["sample_rate"])
        for name, path in manifests.items()
        if name in (arguments.split or manifests)
    }
    changed.pop("eval_batch_seconds", None)  # does not change the result
    key = "_".join(["{}", *(f"{name}={value}" for name, value in changed.items())])
    score(brain, hparams, datasets, key=key, beam=arguments.beam)


def export(argv):
    """Write a run's recogniser into a folder that SpeechBrain loads, or as ONNX."""
    parser = argparse.ArgumentParser("evaluate.py export", description=export.__doc__)
    parser.add_argument("run", help="output_folder of a training run")
    parser.add_argument("out", help="new folder for the recogniser")
    parser.add_argument(
        "--average", choices=["last", "best"], help="which checkpoints to average"
    )
    parser.add_argument("--num_checkpoints", type=int, help="how many of them")
    formats = ["speechbrain", "onnx"]
    parser.add_argument(
        "--format", choices=formats, default=formats[0], help="for whom"
    )
    given = parser.parse_args(argv)
    if given.format == "onnx":
        from cif_lobes.onnx_export import export_onnx as write

        usage = f"python -m cif_lobes.onnx_inference {given.out} speech.wav"
    else:
        from cif_lobes.export import export_run as write

        usage = f'EncoderDecoderASR.from_hparams(source="{given.out}")'
    write(given.run, given.out, given.average, given.num_checkpoints)
    print(f"{given.out}: {usage}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["export"]:
        export(sys.argv[2:])
    else:
        main(parse_arguments())
