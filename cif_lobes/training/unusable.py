"""What training does with a recording that cannot be read: all processes end, saved.

An exception in one process, or in one of the workers that read for it, would leave the
others waiting for gradients that never come. So the recording comes as silence with a
note, and with the next sum over the processes all of them know.
"""

import math

import torch
from speechbrain.dataio.dataset import DynamicItemDataset

from cif_lobes.data.audio_files import UnusableAudio
from cif_lobes.devices.processes import gather_objects


class Noting(torch.utils.data.Dataset):
    """A dataset of which a recording that cannot be read is silence, and noted.

    Items have one key more, `unusable`: what is wrong with the recording, else "".

    Arguments
    ---------
    dataset : speechbrain.dataio.dataset.DynamicItemDataset
        Of items `signal`, and rows with `duration` in seconds.
    sample_rate : int
        Of the signals, Hz.
    """

    def __init__(self, dataset, sample_rate):
        self.dataset, self.sample_rate = dataset, sample_rate

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        try:
            return {**self.dataset[index], "unusable": ""}
        except UnusableAudio as error:
            return {**self._silent(index), "unusable": str(error)}

    def _silent(self, index):
        utt_id = self.dataset.data_ids[index]
        row = self.dataset.data[utt_id]
        pipeline = self.dataset.pipeline
        others = [key for key in pipeline.output_mapping if key != "signal"]
        item = pipeline.compute_specific(others, {"id": utt_id, **row})
        # Rounded up as by resampling, but for the rounding of durations.
        samples = math.ceil(row["duration"] * self.sample_rate - 0.02)
        return {**item, "signal": torch.zeros(samples)}


def note_unusable(dataset, sample_rate):
    """The dataset as `Noting`, if it is one that reads recordings."""
    reads = isinstance(dataset, DynamicItemDataset)
    reads = reads and "signal" in dataset.pipeline.output_mapping
    return Noting(dataset, sample_rate) if reads else dataset


def gather_unusable(notes, learning):
    """An error that names the unusable recordings of all processes.

    Arguments
    ---------
    notes : list of str
        This process's; "" for what can be read.
    learning : bool
        Whether a training ends by it, saved.

    Returns
    -------
    UnusableAudio or None
        None if there are none.
    """
    found = [note for share in gather_objects(notes) for note in share if note]
    if not found:
        return None
    more = f"\n  and {len(found) - 5:,} more" if len(found) > 5 else ""
    saved = "; what was learnt before is saved" if learning else ""
    return UnusableAudio("\n  ".join(found[:5]) + f"{more}{saved}. Then run")
