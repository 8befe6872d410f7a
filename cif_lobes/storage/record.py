"""What a run folder says about itself: run.json and one line per epoch.

run.json holds everything needed to replay a run and to trust its figures: the settings,
the command, the commit, the seed, the hardware, the size of the network, the results.
"""

import json
import logging
import numbers
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version

import torch
from speechbrain.utils.distributed import main_process_only

from cif_lobes.settings.program import this_command
from cif_lobes.storage.atomic_files import write_atomically

logger = logging.getLogger(__name__)

THEN = ", then "  # between what a run began with and what it went on with


def hardware(device="cpu", processes=1):
    """The machine in words.

    Arguments
    ---------
    device : str
        "cpu" or "cuda:0" and the like.
    processes : int
        Each of them has a GPU.

    Returns
    -------
    str
        For instance "2x AMD EPYC" or "1x NVIDIA H200".
    """
    if str(device).startswith("cuda"):
        return f"{processes}x {torch.cuda.get_device_name(device)}"
    name = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return f"{os.cpu_count()}x {name}, {torch.get_num_threads()} threads"


def peak_memory(device="cpu"):
    """Most memory that this process has held at once.

    Arguments
    ---------
    device : str
        "cpu" or "cuda:0" and the like.

    Returns
    -------
    float
        GB (10^9 bytes): PyTorch's tensors on a GPU; on a CPU, all that is resident.
    """
    if str(device).startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def commit():
    """Commit of the code that runs, "+" behind it if files differ from it."""
    here = pathlib.Path(__file__).parent
    try:
        head = _git(here, "rev-parse", "--short=12", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"  # installed without its repository
    return head + ("+" if changed else "")


def _git(folder, *arguments):
    """Output of a git command."""
    return subprocess.run(
        ["git", "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


class RunRecord:
    """run.json and epochs.jsonl of a run folder.

    Arguments
    ---------
    folder : str
        The run's output folder.
    train_logger : speechbrain.utils.train_logger.TrainLogger or callable, optional
        Is given the figures of every epoch as well; or what makes it.

    Raises
    ------
    FileNotFoundError
        By `load`, if the folder holds no run.

    Attributes
    ----------
    longest_seconds : float, optional
        Of the training utterances, by which recognition cuts; set it before `start`.
    train_hours : float, optional
        All training utterances together, which a model card tells; set it before `start`.
    """

    longest_seconds = train_hours = None

    def __init__(self, folder, train_logger=None):
        self.train_logger = train_logger
        self.path = pathlib.Path(folder) / "run.json"
        self.epochs_path = pathlib.Path(folder) / "epochs.jsonl"
        self.device = "cpu"

    @main_process_only
    def start(self, hparams_file, seed, parameters, device):
        """Describe the run; one that goes on adds its command, and what has changed."""
        record = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.device = device
        command = this_command()
        record["yaml"] = os.path.relpath(hparams_file)
        record.setdefault("commands", [])
        if command not in record["commands"]:
            record["commands"].append(command)
        processes = int(os.environ.get("WORLD_SIZE", 1))
        record.update(
            commit=_then(record.get("commit"), commit()),
            seed=seed,
            hardware=_then(record.get("hardware"), hardware(device, processes)),
            processes=_then(record.get("processes"), processes),
            parameters=parameters,
            versions={
                "python": platform.python_version(),
                "torch": torch.__version__,
                "speechbrain": version("speechbrain"),
            },
        )
        if self.longest_seconds is not None:
            record["longest_seconds"] = round(self.longest_seconds, 3)
        if self.train_hours is not None:
            record["train_hours"] = round(self.train_hours, 4)
        record.setdefault("started", time.strftime("%Y-%m-%d %H:%M:%S"))
        record.setdefault("results", {})
        write_atomically(self.path, _json(record))

    @main_process_only
    def result(self, name, summary, **settings):
        """Store the figures of a test set and how they were decoded."""
        record = self.load()
        record["results"][name] = {**summary, **settings, "commit": commit()}
        write_atomically(self.path, _json(record))

    @main_process_only
    def epoch(self, number, of, learning_rate, updates, train, valid, scores):
        """Append an epoch's figures and print them with the time that is left.

        The peak memory of the first process so far goes into run.json.

        Arguments
        ---------
        number, of : int
            This epoch, from 1, and the last.
        learning_rate : float
        updates : int
            Optimizer steps so far.
        train, valid : dict
            `Ledger.summary()` of both stages, their seconds and other figures.
        scores : str
            The figures of the validation besides the losses, in words.
        """
        earlier = [e for e in self.epochs() if e["epoch"] < number]
        row = {
            "epoch": number,
            "updates": updates,
            "learning_rate": learning_rate,
            "seconds": train["seconds"] + valid["seconds"],
            "train": train,
            "valid": valid,
        }
        # An epoch that is trained again, after a resume, replaces its former line.
        rows = [json.dumps(r) for r in [*earlier, row]]
        write_atomically(self.epochs_path, "\n".join(rows) + "\n")
        self._keep_peak_memory()
        if self.train_logger is not None:
            if callable(self.train_logger):  # not made before there is something to log
                self.train_logger = self.train_logger()
            _log_epoch(self.train_logger, row)
        left = (of - number) * row["seconds"]
        print(
            f"epoch {number}/{of}  update {updates}  lr {learning_rate:.2e}  "
            f"{_terms('train', train)}  {_terms('valid', valid)}  "
            f"{scores}  {row['seconds']:.0f} s, {_clock(left)} left",
            flush=True,
        )

    def close(self):
        """Close the train_logger: the last epoch has been told.

        Processes that torchrun has started leave without what Python does at exit, where
        others have their events written and are marked as finished.
        """
        if self.train_logger is None or callable(self.train_logger):
            return  # none, or not made
        # SpeechBrain's have no way themselves, but what they write with does: TensorBoard's
        # `writer`, the `run` of Weights & Biases.
        inner = (getattr(self.train_logger, name, None) for name in ("writer", "run"))
        for owner in (self.train_logger, *inner):
            for name in ("close", "finish"):
                if hasattr(owner, name):
                    getattr(owner, name)()
                    return

    def _keep_peak_memory(self):
        """The highest of all that have trained this run."""
        if self.path.exists():
            record, now = self.load(), round(peak_memory(self.device), 3)
            record["peak_memory_gb"] = max(record.get("peak_memory_gb", 0), now)
            write_atomically(self.path, _json(record))

    def epochs(self):
        """All epochs so far, as a list of dicts."""
        if not self.epochs_path.exists():
            return []
        return [json.loads(line) for line in self.epochs_path.read_text().splitlines()]

    def load(self):
        """The content of run.json."""
        if not self.path.exists():
            raise FileNotFoundError(
                f"{self.path.parent} is not a run folder: no run.json"
            )
        return json.loads(self.path.read_text())


def _terms(stage, summary):
    """Loss of a stage as the sum of its weighted terms."""
    terms = " + ".join(
        f"{term['weight']:g} x {name} {term['value']:.3f} ({term['share']:.0%})"
        for name, term in summary["losses"].items()
    )
    return f"{stage} {summary['loss']:.3f} = {terms}"


def _clock(seconds):
    """Hours and minutes."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _then(former, now):
    """A fact about a run, or what it was before the run went on and what it is now."""
    if former is None:
        return now
    return former if _latest(former) == str(now) else f"{former}{THEN}{now}"


def _latest(fact):
    """What `_then` was told last."""
    return str(fact).split(THEN)[-1]


def _json(record):
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


def _log_epoch(logger, row):
    """Give a line of epochs.jsonl to a logger, its figures under the names they have there.

    What is within another is named after both, for instance losses.ce.value.
    """
    stages = {stage: dict(_flat(row[stage])) for stage in ("train", "valid")}
    meta = {name: value for name, value in row.items() if name not in stages}
    logger.log_stats(meta, stages["train"], stages["valid"])


def _flat(figures, prefix=""):
    """Names and numbers; what is no number is left out."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, numbers.Number):
            yield f"{prefix}{name}", value
