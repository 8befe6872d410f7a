"""Score a trained run: which set, which beam, which language model, which checkpoints.

python evaluate.py results/AISHELL-1/cif/1986 --split test --beam 10
python evaluate.py results/AISHELL-1/cif/1986 --lm results/AISHELL-1/lm/1986 --sweep
python evaluate.py results/AISHELL-1/cif/1986 --split test --swept
python evaluate.py export results/AISHELL-1/cif/1986 my_model --swept

Writes the error rate with its substitutions, deletions and insertions into the run's
run.json, and every utterance's alignment into errors_*.txt beside it. --sweep decodes
the validation set with every combination of the values given and keeps the best one in
swept.json, which --swept uses.
"""

import argparse
import os
import pathlib
import sys

from cif_lobes.inference.command import add_hotwords
from cif_lobes.settings.checks import add_option, option_type
from cif_lobes.settings.program import Parser, installed_name, run_program
from cif_lobes.storage.run_files import is_llm_run

# Settings of the yaml that may be changed, and all of which --sweep takes several values.
OF_YAML = ("tail_threshold", "average", "num_checkpoints")
SWEPT = (*OF_YAML, "beam", "ctc_weight_decode", "lm_weight", "rescore_weight")
# What a language model's run has no use for: it has no search over fires.
OF_SEARCH = ("lm", "rescore", "hotwords", "coldec", "purify", "eos_threshold")
OF_SEARCH += ("tail_threshold", "sweep", "swept", "ctc_weight_decode")


def parse_arguments(argv):
    """The command line."""
    parser = Parser(
        installed_name("evaluate.py"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="output_folder of a training run")
    parser.add_argument(
        "--split", nargs="+", help="sets to score: valid, or a test set (default: all)"
    )
    parser.add_argument("--csv", help="score this csv instead (ID, wav, wrd)")
    add, count = parser.add_argument, option_type(1, "how many")
    add(
        "--beam",
        type=count,
        nargs="+",
        help="hypotheses kept; 1: greedy (default: beam_size of the run's yaml, or 1; 10 if "
        "that is 1 and hypotheses are ranked again)",
    )
    weight = option_type(0.2, "0 for none")
    add(
        "--ctc_weight_decode",
        type=weight,
        nargs="+",
        help="of the CTC head's log p, by which a beam is ranked again (default: 0)",
    )
    add("--lm", help="language model: output_folder of train_lm.py, or an n-gram file")
    add("--lm_weight", type=weight, nargs="+", help="its weight (default: 0.2)")
    add(
        "--rescore",
        help="causal language model that ranks a beam again: folder or name",
    )
    add("--rescore_weight", type=weight, nargs="+", help="its weight (default: 0.2)")
    add_hotwords(parser, None, "1; with --coldec 0")
    add("--coldec", help="network that knows --hotwords: folder of train_coldec.py")
    share = "share of its distribution at every fire"
    add_option(parser, "--coldec_weight", 0.5, "0 to 1", share)
    add("--purify", type=count, help="phrases that a fire keeps (default: all)")
    add(
        "--eos_threshold",
        type=option_type(1.5, ".inf: anywhere"),
        help="end before the last fire only where log p(end) is at least this times that "
        "of the best token (default: 1.5; .inf: anywhere)",
    )
    add(
        "--tail_threshold",
        type=option_type(0.4, "0 to 1"),
        nargs="+",
        help="remainder that fires a last token, 0 to 1",
    )
    add(
        "--average",
        choices=["last", "best"],
        nargs="+",
        help="which checkpoints to average",
    )
    add("--num_checkpoints", type=count, nargs="+", help="how many of them")
    add("--sweep", action="store_true", help="choose settings on the validation set")
    add("--swept", action="store_true", help="use them, unless given here")
    seconds = option_type(300.0, "seconds")
    add("--eval_batch_seconds", type=seconds, help="seconds of audio in a batch")
    add("--error_unit", choices=["char", "word", "phone"], help="CER, WER or PER")
    device = option_type("cpu", "", "device")
    add("--device", type=device, default="cpu", help="cpu, cuda or cuda:N")
    given = parser.parse_args(argv)
    if given.lm_weight and not (given.lm or given.swept):
        parser.error("--lm_weight needs --lm")
    if given.rescore_weight and not (given.rescore or given.swept):
        parser.error("--rescore_weight needs --rescore")
    if given.hotwords and given.sweep:
        parser.error("--sweep knows no --hotwords: give them with --swept")
    if given.coldec and not given.hotwords:
        parser.error("--coldec needs --hotwords")
    if given.hotword_weight is None:
        given.hotword_weight = 0.0 if given.coldec else 1.0
    if given.sweep:
        if given.split or given.csv or given.swept:
            parser.error("--sweep reads the validation set only: no --split, --csv")
        return given
    for name in SWEPT:
        values = getattr(given, name) or [None]
        if len(values) > 1:
            parser.error(f"--{name} takes several values only with --sweep")
        setattr(given, name, values[0])
    return given


def read_sets(given, hparams):
    """The data sets to score, by name."""
    from cif_lobes.runs.stages import manifest_paths

    manifests = manifest_paths(hparams)
    del manifests["train"]
    if given.csv:
        manifests = {f"csv_{pathlib.Path(given.csv).stem}": given.csv}
    splits = ["valid"] if given.sweep else given.split or list(manifests)
    unknown = set(splits) - manifests.keys()
    if unknown:
        raise SystemExit(
            f"{given.run} has no set {sorted(unknown)[0]!r}; it has "
            f"{', '.join(manifests)}. Score other data with --csv FILE"
        )
    return {name: path for name, path in manifests.items() if name in splits}


def main_llm(given):
    """As `main`, of a run of train_llm.py."""
    from cif_lobes.runs.ears import open_ears_cache_if_it_serves
    from cif_lobes.runs.evaluation import score
    from cif_lobes.runs.speech_llm import how, load_run, make_datasets

    for name in OF_SEARCH:
        if getattr(given, name):
            raise SystemExit(
                f"--{name} is for a recogniser, and {given.run} has a language model that "
                "writes: leave it out, or score the recogniser that it was trained on"
            )
    changed = {n: v for n in (*OF_YAML, "beam") if (v := getattr(given, n)) is not None}
    changed |= {"error_unit": given.error_unit} if given.error_unit else {}
    names = {"beam": "beam_size"}
    overrides = {names.get(name, name): value for name, value in changed.items()}
    if given.eval_batch_seconds:
        overrides["eval_batch_seconds"] = given.eval_batch_seconds
    brain, hparams = load_run(given.run, overrides, {"device": given.device})
    manifests = read_sets(given, hparams)
    datasets = make_datasets(hparams, manifests, open_ears_cache_if_it_serves)
    key = "_".join(["{}", *(f"{name}={value}" for name, value in changed.items())])
    score(brain, hparams, datasets, key=key, **how(hparams))


def main(given):
    """Load the run, decode, write the figures down."""
    if is_llm_run(given.run):
        return main_llm(given)
    # Here, so that --help and a misspelt option need no torch.
    from cif_lobes.cif.guided import GuidedCIF
    from cif_lobes.data.batches import make_dataset
    from cif_lobes.decoding.context import load_context
    from cif_lobes.decoding.ctc_ranking import CTCRanker
    from cif_lobes.decoding.fusion import fuse
    from cif_lobes.decoding.hotwords import load_hotwords
    from cif_lobes.decoding.language_model import load_scorer
    from cif_lobes.decoding.rescoring import HuggingFaceLMRescorer, RescoringSearcher
    from cif_lobes.decoding.searcher import BeamSearcher
    from cif_lobes.runs import sweep
    from cif_lobes.runs.cif import load_run
    from cif_lobes.runs.ears import open_ears_cache_if_it_serves
    from cif_lobes.runs.evaluation import score
    from cif_lobes.storage.parameters import read_parameters
    from cif_lobes.teachers.cif_recognizer import FrozenRecognizer

    models = ("lm", "rescore")
    changed = {n: v for n in (*SWEPT, *models) if (v := getattr(given, n)) is not None}
    chosen = {**(sweep.read(given.run) if given.swept else {}), **changed}
    lm, rescore = (chosen.pop(name, None) for name in models)
    if given.lm_weight and not lm:
        raise SystemExit("--lm_weight: the sweep chose no language model, give --lm")
    if given.rescore_weight and not rescore:
        raise SystemExit("--rescore_weight: the sweep chose no model, give --rescore")
    overrides = {n: chosen[n] for n in OF_YAML if n in chosen and not given.sweep}
    if given.eval_batch_seconds:
        overrides["eval_batch_seconds"] = given.eval_batch_seconds
    if given.error_unit:
        overrides["error_unit"] = changed["error_unit"] = given.error_unit
    brain, hparams = load_run(given.run, overrides, {"device": given.device})
    if given.tail_threshold and isinstance(hparams["cif"], GuidedCIF):
        raise SystemExit(
            f"--tail_threshold: {given.run} has a GuidedCIF, which counts the spikes of CTC "
            "and has no remainder: leave it out"
        )
    scorer = lm and load_scorer(lm, hparams["tokenizer"])
    rescorer = rescore and HuggingFaceLMRescorer(rescore, given.device)
    manifests = read_sets(given, hparams)
    heard = open_ears_cache_if_it_serves(hparams, manifests)
    tokenizer, rate = hparams["tokenizer"], hparams["sample_rate"]
    datasets = {
        name: make_dataset(path, tokenizer, rate, ears_cache=heard)
        for name, path in manifests.items()
    }
    if given.sweep:
        default = sweep.default_grid(hparams, bool(lm), bool(rescore))
        grid = {**default, **chosen}
        rows = sweep.sweep(brain, hparams, datasets["valid"], grid, scorer, rescorer)
        print(sweep.table(rows, hparams["error_unit"]))
        try:
            paths = lm and os.path.abspath(lm), datasets["valid"], rescore
            sweep.write(given.run, rows, *paths)
        except OSError as error:
            print(
                f"the table could not be kept in {given.run}: {error}", file=sys.stderr
            )
        else:
            print(f"to use the first: python evaluate.py {given.run} --swept")
        return
    hparams["cif"].tail_threshold = hparams["tail_threshold"]
    decoding = {}
    if lm:
        decoding = {"lm": lm, "lm_weight": chosen.get("lm_weight", 0.2)}
    if given.rescore:
        changed["rescore"] = os.path.basename(os.path.abspath(rescore))
    if given.lm:
        # Two folders of its path tell its row and seed.
        changed["lm"] = "-".join(os.path.abspath(lm).split(os.sep)[-2:])
    tree = context = None
    if given.hotwords:
        if given.hotword_weight:
            tree = load_hotwords(given.hotwords, hparams["tokenizer"])
        name = os.path.splitext(os.path.basename(given.hotwords))[0]
        changed |= {"hotwords": name, "hotword_weight": given.hotword_weight}
        decoding |= {"hotwords": given.hotwords, "hotword_weight": given.hotword_weight}
    if given.coldec:
        settings = {"coldec_weight": given.coldec_weight, "purify": given.purify or 0}
        context = load_context(
            given.coldec,
            FrozenRecognizer.hash_weights(read_parameters(given.run)),
            given.hotwords,
            hparams["tokenizer"],
            *settings.values(),
        )
        name = "-".join(os.path.abspath(given.coldec).split(os.sep)[-2:])
        changed |= {"coldec": name, **settings}
        decoding |= {"coldec": given.coldec, **settings}
    ends = {}
    if given.eos_threshold is not None:
        changed["eos_threshold"] = given.eos_threshold
        anywhere = given.eos_threshold == float("inf")
        ends["eos_threshold"] = None if anywhere else given.eos_threshold
    weight = decoding.get("lm_weight", 0)
    scorer = fuse(scorer, weight, tree, given.hotword_weight)
    ranker = None
    if chosen.get("ctc_weight_decode"):
        decoding["ctc_weight_decode"] = chosen["ctc_weight_decode"]
        ranker = CTCRanker.of(hparams, chosen["ctc_weight_decode"])
    if scorer or rescorer or context or ranker or ends or "beam" in chosen:
        beam = chosen.get("beam", hparams.get("beam_size", 1))
        if "beam" not in chosen and beam == 1 and (rescorer or ranker):
            beam = 10  # one hypothesis is not ranked
        searcher = BeamSearcher(
            hparams["decoder"], beam, scorer, context=context, ranker=ranker, **ends
        )
        if rescorer:
            weight = chosen.get("rescore_weight", 0.2)
            decoding |= {"rescore": rescore, "rescore_weight": weight}
            decode = hparams["tokenizer"].decode
            searcher = RescoringSearcher(searcher, decode, rescorer, weight)
        hparams["test_searcher"] = brain.hparams.test_searcher = searcher
    key = ["{}", *(["swept"] if given.swept else [])]
    key += [f"{name}={value}" for name, value in changed.items()]
    score(brain, hparams, datasets, key="_".join(key), **decoding)


def export(argv):
    """Write a run's recogniser into a folder that SpeechBrain loads, or as ONNX."""
    parser = Parser(
        f"{installed_name('evaluate.py')} export", description=export.__doc__
    )
    parser.add_argument("run", help="output_folder of a training run")
    parser.add_argument("out", help="new folder for the recogniser")
    parser.add_argument(
        "--average", choices=["last", "best"], help="which checkpoints to average"
    )
    count = option_type(1, "how many")
    parser.add_argument("--num_checkpoints", type=count, help="how many of them")
    parser.add_argument(
        "--beam",
        type=count,
        help="hypotheses kept (default: beam_size of the run's yaml)",
    )
    parser.add_argument(
        "--tail_threshold",
        type=option_type(0.4, "0 to 1"),
        help="remainder that fires a last token (default: that of the run's yaml)",
    )
    parser.add_argument(
        "--ctc_weight_decode",
        type=option_type(0.2, "0 for none"),
        help="of the CTC head's log p, by which a beam is ranked again (default: 0)",
    )
    parser.add_argument(
        "--swept", action="store_true", help="what --sweep chose, unless given here"
    )
    formats = ["speechbrain", "onnx"]
    parser.add_argument(
        "--format", choices=formats, default=formats[0], help="for whom"
    )
    parser.add_argument(
        "--license", help="of the model, for its card: apache-2.0 (default: not stated)"
    )
    parser.add_argument(
        "--int8", action="store_true", help="matrices of 8-bit integers, for onnx"
    )
    given = parser.parse_args(argv)
    of_llm = is_llm_run(given.run)
    if given.ctc_weight_decode and (of_llm or given.format == "onnx"):
        parser.error(
            "--ctc_weight_decode ranks a beam of a recogniser, which neither ONNX has here "
            "nor a language model that writes: leave it out"
        )
    if given.int8 and given.format != "onnx":
        parser.error("--int8 needs --format onnx")
    chosen = {}
    if given.swept:
        from cif_lobes.runs import sweep

        chosen = sweep.read(given.run)
    changed = {n: getattr(given, n) for n in (*OF_YAML, "beam", "ctc_weight_decode")}
    chosen |= {name: value for name, value in changed.items() if value is not None}
    for model in filter(None, (chosen.get("lm"), chosen.get("rescore"))):
        print(
            f"an export has no language model: beam and threshold were chosen with "
            f"{model}, sweep without it to choose them for the export",
            file=sys.stderr,
        )
    names = {"beam_size": "beam", "tail_threshold": "tail_threshold"}
    if given.format != "onnx":  # of what a sweep chose, it has one hypothesis only
        names["ctc_weight_decode"] = "ctc_weight_decode"
    if given.ctc_weight_decode:
        chosen.setdefault("beam", 10)
    decoding = {name: chosen[n] for name, n in names.items() if n in chosen}
    if of_llm and given.format == "onnx":
        parser.error(
            f"{given.run} has a language model that writes, which ONNX is not for here: "
            "export the recogniser that it was trained on, or with --format speechbrain"
        )
    if of_llm:
        from cif_lobes.inference.speech_llm import export_llm_run as write

        usage = f"cif-transcribe {given.out} speech.wav"
    elif given.format == "onnx":
        from cif_lobes.inference.folders import check_installed

        check_installed("--format onnx", "onnx", "onnxscript", "onnxruntime")
        from cif_lobes.inference.onnx_export import export_onnx as write

        usage = f"cif-transcribe {given.out} speech.wav"
    else:
        from cif_lobes.inference.export import export_run as write

        usage = f'EncoderDecoderASR.from_hparams(source="{given.out}")'
    averaged = chosen.get("average"), chosen.get("num_checkpoints")
    options = {"int8": True} if given.int8 else {}
    write(given.run, given.out, *averaged, decoding, given.license, **options)
    print(f"{given.out}: {usage}")


def command():
    """Score, or export."""
    if sys.argv[1:2] == ["export"]:
        export(sys.argv[2:])
    else:
        main(parse_arguments(sys.argv[1:]))


def program():
    """evaluate.py, and cif-evaluate of the installed package."""
    run_program(command)
