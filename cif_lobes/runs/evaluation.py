"""Data sets to figures: the last thing that a run does, and all that evaluate.py does."""

import logging
import pathlib

from speechbrain.utils.distributed import if_main_process, main_process_only

from cif_lobes.data.audio_files import UnusableAudio
from cif_lobes.data.batches import eval_loader_options
from cif_lobes.decoding.scoring import ErrorRate
from cif_lobes.runs.start import exit_to_resume
from cif_lobes.storage.run_files import keep_figures

logger = logging.getLogger(__name__)

# Settings kept beside the figures of a test.
DECODING = ("tail_threshold", "average", "num_checkpoints")


def score(brain, hparams, datasets, key="{}", **settings):
    """Decode data sets with the averaged checkpoints and write down their figures.

    Arguments
    ---------
    brain : CIFBrain
    hparams : dict
        The loaded yaml.
    datasets : dict of str to DynamicItemDataset
        By the name under which the figures are kept.
    key : str
        Name of a set's figures in run.json and of its errors_*.txt, {} being the set's.
    settings
        How it was decoded besides, stored beside the figures.

    Returns
    -------
    dict
        Summary of each set, by name.
    """
    results, failure = {}, None
    for name, dataset in datasets.items():
        options = eval_loader_options(
            dataset, hparams["eval_batch_seconds"], hparams["num_workers"]
        )
        try:
            brain.evaluate(dataset, test_loader_kwargs=options)
        except UnusableAudio as error:
            exit_to_resume(f"{name} is not scored: {error}")
        results[name] = brain.test_figures
        path = pathlib.Path(hparams["output_folder"])
        path /= f"errors_{key.format(name)}.txt"
        if if_main_process():
            print(f"{name}: {ErrorRate.describe(results[name])}; {path}", flush=True)
        searcher, decoding = hparams.get("test_searcher", hparams.get("searcher")), {}
        if searcher is not None:
            # Those of other recognisers may have neither.
            decoding = {
                "searcher": type(searcher).__name__,
                "beam": getattr(searcher, "beam_size", 1),
                "eos_threshold": getattr(searcher, "eos_threshold", None),
            }
        decoding |= {s: hparams[s] for s in DECODING if s in hparams}
        figures = {**results[name], **decoding, **settings}
        failed = main_process_only(keep_figures)(
            brain.error_rate, path, hparams["record"], key.format(name), figures
        )
        failure = failure or failed
    if failure and if_main_process():
        folder = hparams["output_folder"]
        logger.warning(f"the figures above could not be kept in {folder}: {failure}")
    return results
