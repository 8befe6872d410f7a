"""Decoding settings chosen on the validation set; the test sets are never read.

The encoder is the cost. Each batch is encoded once for an average of checkpoints, and
its CIF vectors are decoded with every setting while they are at hand.
"""

import collections
import itertools
import json
import pathlib

import speechbrain as sb
import torch
from tqdm import tqdm

from cif_lobes.cif.guided import GuidedCIF
from cif_lobes.data.batches import eval_loader_options
from cif_lobes.decoding.ctc_ranking import CTCRanker
from cif_lobes.decoding.fusion import fuse
from cif_lobes.decoding.rescoring import RescoringSearcher
from cif_lobes.decoding.scoring import ErrorRate
from cif_lobes.decoding.searcher import BeamSearcher
from cif_lobes.storage.atomic_files import write_atomically
from cif_lobes.storage.parameters import average_parameters, fill
from cif_lobes.training.unusable import gather_unusable

ERRORS = ("substitutions", "deletions", "insertions")
SETTINGS = ("average", "num_checkpoints", "beam", "ctc_weight_decode", "lm_weight")
SETTINGS += ("rescore_weight", "tail_threshold")
FILE = "swept.json"


def default_grid(hparams, with_lm, with_rescorer=False):
    """The values of each setting that a sweep tries unless told.

    Arguments
    ---------
    hparams : dict
        The loaded yaml of the run.
    with_lm : bool
        Whether there is a language model.
    with_rescorer : bool
        Whether there is one that ranks hypotheses again.

    Returns
    -------
    dict of str to list
    """
    with_ctc = hparams.get("ctc_weight")
    return {
        "average": [hparams["average"]],
        "num_checkpoints": [hparams["num_checkpoints"]],
        "beam": [10] if with_rescorer else [1, 10],
        "ctc_weight_decode": [0.0, 0.2, 0.5] if with_ctc else [0.0],
        "lm_weight": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5] if with_lm else [0.0],
        "rescore_weight": [0.0, 0.1, 0.2, 0.3, 0.5, 0.7] if with_rescorer else [0.0],
        # Which a GuidedCIF does not read.
        "tail_threshold": [hparams["tail_threshold"]]
        if isinstance(hparams["cif"], GuidedCIF)
        else [0.3, 0.4, 0.5, 0.6],
    }


def sweep(brain, hparams, dataset, grid, scorer=None, rescorer=None):
    """Error rate of a set with every combination of settings.

    Arguments
    ---------
    brain : cif_lobes.training.cif.CIFBrain
    hparams : dict
        The loaded yaml of its run.
    dataset : DynamicItemDataset
        The validation set.
    grid : dict of str to list
        Values of each of `SETTINGS`.
    scorer : speechbrain.decoders.scorer.BaseScorerInterface, optional
        Language model, from `cif_lobes.decoding.language_model.load_scorer`.
    rescorer : cif_lobes.decoding.rescoring.HuggingFaceLMRescorer, optional

    Returns
    -------
    list of dict
        Settings, `error_rate` in %, `errors` and their three kinds of each combination,
        in the grid's order, thresholds rising. Averages of the same checkpoints are
        decoded once.
    """
    searchers = {}
    weights = grid["ctc_weight_decode"], grid["lm_weight"], grid["rescore_weight"]
    for key in itertools.product(grid["beam"], *weights):
        beam, of_ctc, of_lm, again = key
        ranker = CTCRanker.of(hparams, of_ctc) if of_ctc else None
        if ranker and beam == 1 and 0 in grid["ctc_weight_decode"]:
            continue  # one hypothesis is not ranked
        searcher = BeamSearcher(
            hparams["decoder"], beam, fuse(scorer, of_lm), ranker=ranker
        )
        if again:
            decode = hparams["tokenizer"].decode
            searcher = RescoringSearcher(searcher, decode, rescorer, again)
        searchers[key] = searcher
    rows, seen = [], set()
    for average in itertools.product(grid["average"], grid["num_checkpoints"]):
        parameters, epochs = average_parameters(
            pathlib.Path(hparams["output_folder"]) / "save", *average
        )
        if tuple(epochs) in seen:
            continue
        seen.add(tuple(epochs))
        fill(hparams["model"], parameters)
        before = hparams["cif"].tail_threshold
        try:
            errors, length = _count_errors(
                brain, hparams, dataset, searchers, sorted(grid["tail_threshold"])
            )
        finally:
            hparams["cif"].tail_threshold = before
        rows += [
            {
                **dict(zip(SETTINGS, (*average, *setting), strict=True)),
                "error_rate": 100 * counts.total() / length,
                "errors": counts.total(),
                **counts,
            }
            for setting, counts in errors.items()
        ]
    return rows


@torch.no_grad()
def _count_errors(brain, hparams, dataset, searchers, thresholds):
    """`ERRORS` by the last five of `SETTINGS`, and the references' length."""
    options = eval_loader_options(
        dataset, hparams["eval_batch_seconds"], hparams["num_workers"]
    )
    settings = [(*key, threshold) for key in searchers for threshold in thresholds]
    errors, length = {setting: collections.Counter() for setting in settings}, 0
    brain.modules.eval()
    batches = brain.make_dataloader(dataset, sb.Stage.TEST, **options)
    for batch in tqdm(batches, disable=None):
        error = gather_unusable(getattr(batch, "unusable", []), learning=False)
        if error:
            raise error
        encoded, (_, x_lengths) = brain.encode(batch, sb.Stage.TEST)
        hypotheses = {key: [None] * len(batch.id) for key in searchers}
        lengths = x_lengths.new_full(x_lengths.shape, -1)
        for threshold in thresholds:
            hparams["cif"].tail_threshold = threshold
            fired = hparams["cif"](encoded, x_lengths)
            # Few utterances have a remainder between two thresholds: the others have
            # the same vectors, hence the same hypothesis, as before.
            changed = fired.lengths != lengths
            lengths = fired.lengths
            for key, searcher in searchers.items():
                if changed.any():
                    found, _ = searcher(
                        fired.embeddings[changed],
                        lengths[changed],
                        encoded[changed],
                        x_lengths[changed],
                    )
                    for i, ids in zip(changed.nonzero().flatten(), found, strict=True):
                        hypotheses[key][i] = hparams["tokenizer"].decode(ids)
                rate = ErrorRate(hparams["error_unit"])
                rate.append(batch.id, hypotheses[key], batch.text)
                counts = rate.summary()
                errors[(*key, threshold)].update({k: counts[k] for k in ERRORS})
        length += counts["reference_length"]
    return errors, length


def choose(rows):
    """The row with the fewest errors; the first of several, so put cheap values first."""
    return min(rows, key=lambda row: row["errors"])


def write(folder, rows, lm, dataset, rescore=None):
    """Keep a sweep and what it chose in a run folder, for `read`.

    Arguments
    ---------
    folder : str
        The run folder.
    rows : list of dict
        From `sweep`.
    lm : str or None
        Path of the language model.
    dataset : DynamicItemDataset
        That was decoded.
    rescore : str, optional
        Source of the language model that ranks again.
    """
    best = choose(rows)
    chosen = {name: best[name] for name in SETTINGS}
    chosen["lm"] = lm if best["lm_weight"] else None
    chosen["rescore"] = rescore if best["rescore_weight"] else None
    record = {
        "chosen": chosen,
        "error_rate": best["error_rate"],
        "utterances": len(dataset),
        "table": rows,
    }
    write_atomically(pathlib.Path(folder) / FILE, json.dumps(record, indent=1) + "\n")


def read(folder):
    """The settings that a run folder's sweep chose.

    Arguments
    ---------
    folder : str
        The run folder.

    Returns
    -------
    dict
        Values of `SETTINGS`, `lm` and `rescore`.

    Raises
    ------
    FileNotFoundError
        If there was no sweep.
    """
    path = pathlib.Path(folder) / FILE
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist: choose settings on the validation set first, with "
            f"python evaluate.py {folder} --sweep"
        )
    return json.loads(path.read_text())["chosen"]


def table(rows, unit):
    """The combinations as text, best first.

    Arguments
    ---------
    rows : list of dict
        From `sweep`.
    unit : str
        "char" or "word".

    Returns
    -------
    str
    """
    names = [*SETTINGS, "WER %" if unit == "word" else "CER %", *"SDI"]
    lines = [names] + [
        [
            *(str(row[name]) for name in SETTINGS),
            f"{row['error_rate']:.2f}",
            *(str(row[kind]) for kind in ERRORS),
        ]
        for row in sorted(rows, key=lambda row: row["errors"])
    ]
    return "\n".join(
        "  ".join(
            cell.rjust(max(5, len(name)))
            for cell, name in zip(line, names, strict=True)
        )
        for line in lines
    )
