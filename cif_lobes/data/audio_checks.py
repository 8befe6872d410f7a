"""Every file decoded once, in parallel, and remembered while it stays as it is."""

import collections
import contextlib
import csv
import os
import time
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from cif_lobes.data.audio_files import examine
from cif_lobes.storage.atomic_files import atomic_open

# A row of what is remembered; seconds that can be decoded, and what is wrong.
Examined = collections.namedtuple("Examined", "path size modified seconds fault")


class AudioMemory:
    """What decoding has found, by path, size and time of change.

    Arguments
    ---------
    path : str, optional
        csv that keeps it for the next start.
    """

    def __init__(self, path=None):
        self.path, self.rows = path, {}
        if path and os.path.exists(path):
            with open(path, newline="", encoding="utf-8") as file:
                for name, size, modified, seconds, fault in csv.reader(file):
                    row = Examined(
                        name, int(size), int(modified), float(seconds), fault
                    )
                    self.rows[name] = row

    def examine(self, wavs):
        """Decode the files that are not known, or have changed.

        Arguments
        ---------
        wavs : iterable of str
            Audio files.

        Returns
        -------
        dict of str to Examined
            By path, without files that are not there.
        """
        wavs = dict.fromkeys(wavs)
        stamps = {wav: stamp for wav in wavs if (stamp := _stamp(wav))}
        new = [
            wav
            for wav, stamp in stamps.items()
            if wav not in self.rows or self.rows[wav][1:3] != stamp
        ]
        if new:
            try:
                self._decode(new, stamps)
            finally:  # what was done before Ctrl-C need not be done again
                self._save()
        return {wav: self.rows[wav] for wav in stamps}

    def _decode(self, new, stamps):
        began, seconds = time.monotonic(), 0.0
        # Threads are enough: libsndfile decodes without Python's lock.
        with ThreadPoolExecutor() as pool:
            found = pool.map(examine, new)
            bar = tqdm(found, "decoding", len(new), unit=" files", disable=None)
            for wav, (duration, fault) in zip(new, bar, strict=True):
                self.rows[wav] = Examined(wav, *stamps[wav], duration, fault)
                seconds += duration
        spent, hours = time.monotonic() - began, seconds / 3600
        rate = f"{spent / hours:.1f} s per hour of audio, " if hours > 0.01 else ""
        print(
            f"check_audio: {len(new):,} files of {hours:.1f} h decoded in {spent:.0f} s, "
            f"{rate}once as long as they stay as they are"
        )

    def _save(self):
        if not self.path:
            return
        # Where nothing can be written, it is not remembered.
        with contextlib.suppress(PermissionError):
            os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
            with atomic_open(self.path, newline="") as file:
                csv.writer(file).writerows(self.rows.values())


def _stamp(wav):
    """Size in bytes and time of change in ns, None if there is no such file."""
    try:
        status = os.stat(wav)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
