"""Measurements in processes of their own: what one of them allocates hides nothing."""

import json
import os
import subprocess
import sys

# Large blocks stay with the process: otherwise page faults decide the timing.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**40),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**28),
}


def memory_status(key):
    """An entry of this process's memory accounts (VmRSS, VmHWM), in MB; Linux only."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(key))
    return int(line.split()[1]) * 1024 / 1e6


def measure_apart(script, args, sizes, measure, environment=None):
    """Run one measurement of a script in a process of its own.

    Arguments
    ---------
    script : str
        The benchmark; with --measure it prints one measurement as JSON.
    args : argparse.Namespace
    sizes : iterable of str
        Names of the arguments to hand on.
    measure : str
        Which one.
    environment : dict of str to str, optional
        Variables to add.

    Returns
    -------
    object
        What it printed.
    """
    handed = [f"--{key}={getattr(args, key)}" for key in sizes]
    run = subprocess.run(
        [sys.executable, script, *handed, f"--measure={measure}"],
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(run.stdout)
