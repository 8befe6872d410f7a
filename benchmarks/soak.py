"""Memory and open files of hours of work, in minutes: a growth per minute, of three tasks.

    python benchmarks/soak.py /tmp/soak --minutes 8 --files 2000 --rows 281241 --workers 4

In turn: a training on MiniSpeech, stopped by Ctrl-C; recordings recognised by one command
with what it has learnt, each as often as needed for their number; the batches of a
manifest as long as LibriSpeech's, some times. Each is a command of its own, watched from
outside every few seconds: memory is PSS, in which a page that n processes share counts
1/n for each; open files are those of all its processes. What is freed goes back to the
system at once (MALLOC_*), so that memory is what is held, not what once was needed. Linux
only. The folder is kept.
"""

import argparse
import csv
import os
import pathlib
import signal
import subprocess
import sys
import time
from itertools import cycle

import numpy as np
import soundfile

ROOT = pathlib.Path(__file__).parent.parent
RATE = 16000
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def processes(pid):
    """A process and all that it has started, as ids."""
    found = [pid]
    for parent in found:
        try:
            tasks = list(pathlib.Path(f"/proc/{parent}/task").iterdir())
            for task in tasks:
                found += map(int, (task / "children").read_text().split())
        except OSError:  # it has just ended
            pass
    return found


def look(pid):
    """(MB, MB of the first, open files, processes) of a process and its children."""
    memory, first, files, alive = 0.0, 0.0, 0, 0
    for each in processes(pid):
        try:
            rollup = pathlib.Path(f"/proc/{each}/smaps_rollup").read_text()
            opened = len(list(pathlib.Path(f"/proc/{each}/fd").iterdir()))
        except OSError:
            continue
        pss = next(line for line in rollup.splitlines() if line.startswith("Pss:"))
        memory += int(pss.split()[1]) * 1024 / 1e6
        first = first or memory
        files, alive = files + opened, alive + 1
    return memory, first, files, alive


def watch(command, log, interval, minutes=None):
    """Run a command and look at it until it ends, or is stopped by Ctrl-C.

    Arguments
    ---------
    command : list of str
    log : pathlib.Path
        Gets what it prints.
    interval : float
        Seconds between two looks.
    minutes : float, optional
        When to stop it.

    Returns
    -------
    numpy.ndarray, [looks, 5]
        Minutes since the start, MB, MB of the first process, open files, processes.
    """
    began, looks = time.monotonic(), []
    with log.open("w") as out:
        streams = {"stdout": out, "stderr": subprocess.STDOUT}
        environment = {**os.environ, **GIVE_BACK}
        run = subprocess.Popen(command, cwd=ROOT, env=environment, **streams)
        while run.poll() is None:
            passed = (time.monotonic() - began) / 60
            looks.append((passed, *look(run.pid)))
            if minutes and passed > minutes:
                run.send_signal(signal.SIGINT)
                run.wait()
            time.sleep(interval)
    stopped = minutes and "Go on with" in log.read_text()
    if run.returncode and not stopped:
        raise SystemExit(f"{' '.join(command[:4])}: exit {run.returncode}, see {log}")
    return np.array(looks[:-1])  # in the last one processes are ending


def report(name, looks, shown):
    """Markdown table of a task: some looks, then the slopes of the second half."""
    lines = [
        f"{name}:",
        "",
        "| minute | MB | of the main process | open files | processes |",
        "|---:|---:|---:|---:|---:|",
    ]
    for i in np.unique(np.linspace(0, len(looks) - 1, shown).astype(int)):
        minute, *numbers = looks[i]
        lines.append(
            f"| {minute:.1f} | " + " | ".join(f"{n:.0f}" for n in numbers) + " |"
        )
    half = looks[looks[:, 0] > looks[-1, 0] / 2]
    slopes = [np.polyfit(half[:, 0], half[:, column], 1)[0] for column in (1, 2, 3)]
    lines += [
        "",
        f"In the second half {slopes[0]:+.1f} MB a minute ({slopes[1]:+.1f} of the main "
        f"process) and {slopes[2]:+.2f} open files, by {len(half)} looks.",
    ]
    return "\n".join(lines) + "\n"


def write_rows(folder, count):
    """A manifest of `count` utterances over 40 recordings of 0.5 to 2.5 s."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, paths = np.random.default_rng(0), []
    for number, seconds in enumerate(rng.uniform(0.5, 2.5, 40)):
        noise = 0.1 * rng.standard_normal(int(seconds * RATE))
        paths.append((f"{number}.wav", len(noise) / RATE))
        soundfile.write(folder / paths[-1][0], noise, RATE)
    with open(folder / "rows.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ID", "duration", "wav", "spk_id", "wrd"])
        for row in range(count):
            path, seconds = paths[row % len(paths)]
            writer.writerow([f"u{row:06d}", seconds, path, "s", f"utterance {row}"])
    return folder / "rows.csv"


def read_rows(manifest, workers, passes):
    """Passes over the batches of a manifest, as a training reads them."""
    from speechbrain.dataio.dataloader import make_dataloader

    from cif_lobes.data.batches import make_dataset, train_loader_options
    from cif_lobes.data.tokens import CharTokenizer

    tokenizer = CharTokenizer(f"{manifest}.chars.txt", 64, "en")
    tokenizer.fit(["utterance 0123456789"])
    dataset = make_dataset(manifest, tokenizer, RATE)
    options = train_loader_options(dataset, 200, 200, 30, "random", 0, workers)
    loader = make_dataloader(dataset, **options)
    for epoch in range(passes):
        loader.batch_sampler.set_epoch(epoch)
        read = sum(len(batch.id) for batch in loader)
        print(f"{time.ctime()}: {read} utterances of {len(dataset)}", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=pathlib.Path, help="corpus, run and logs")
    parser.add_argument("--minutes", type=float, default=30, help="of training")
    parser.add_argument("--hours", type=float, default=0.2, help="of training speech")
    parser.add_argument("--files", type=int, default=2000, help="that are recognised")
    parser.add_argument("--rows", type=int, default=281241, help="of the manifest")
    parser.add_argument("--workers", type=int, default=4, help="that read the rows")
    parser.add_argument("--passes", type=int, default=2, help="over the rows")
    parser.add_argument("--interval", type=float, default=2, help="seconds")
    parser.add_argument("--shown", type=int, default=8, help="looks in a table")
    parser.add_argument("--out", type=pathlib.Path, help="also write the tables here")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read:
        read_rows(given.read, given.workers, given.passes)
        return
    folder, python = given.folder.resolve(), [sys.executable]
    folder.mkdir(parents=True, exist_ok=True)
    prepare = [*python, "recipes/MiniSpeech/mini_prepare.py", f"{folder}/MiniSpeech"]
    subprocess.run([*prepare, "--hours", str(given.hours)], cwd=ROOT, check=True)
    train = [*python, "recipes/LibriSpeech/train.py"]
    train += ["recipes/MiniSpeech/hparams/cif.yaml", "--number_of_epochs", "10000"]
    train += [
        "--data_folder",
        f"{folder}/MiniSpeech",
        "--output_folder",
        f"{folder}/run",
    ]
    train += ["--manifest_folder", f"{folder}/manifests", "--device", "cpu"]
    train += ["--noprogressbar"]
    speech = sorted((folder / "MiniSpeech/train-clean-mini").glob("*/*/*.flac"))
    names = [str(path) for _, path in zip(range(given.files), cycle(speech))]
    recognise = [*python, "-m", "cif_lobes.inference", f"{folder}/run", *names]
    tables = []
    for name, command, minutes in (
        (f"Training, {given.minutes:g} minutes", train, given.minutes),
        (f"{given.files:,} recordings recognised", recognise, None),
        (
            f"{given.rows:,} rows read by {given.workers} workers, {given.passes} times",
            [
                *python,
                "benchmarks/soak.py",
                str(folder),
                "--workers",
                f"{given.workers}",
            ]
            + ["--read", str(write_rows(folder / "rows", given.rows))],
            None,
        ),
    ):
        log = folder / f"{len(tables)}.log"
        looks = watch(command, log, given.interval, minutes)
        np.savetxt(log.with_suffix(".txt"), looks, fmt="%.3f")
        tables.append(report(name, looks, given.shown))
        print(tables[-1], flush=True)
        if given.out:
            given.out.write_text("\n".join(tables), encoding="utf-8")


if __name__ == "__main__":
    main()
