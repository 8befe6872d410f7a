"""A FitHuBERT student as S3PRL calls it. `s3prl_export` copies this file as expert.py."""

from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from .fithubert import FitHuBERT, HintedStudent


class UpstreamExpert(torch.nn.Module):
    """What the student thinks the layers of its teacher say.

    Arguments
    ---------
    ckpt : str, optional
        student.pt of an exported folder; by default the one beside this file.
    model_config : str, optional
        Not read, the checkpoint holds the configuration.
    **kwargs
        What S3PRL passes to all upstreams, for instance refresh. Not read.
    """

    def __init__(self, ckpt=None, model_config=None, **kwargs):
        super().__init__()
        ckpt = ckpt or Path(__file__).with_name("student.pt")
        saved = torch.load(ckpt, map_location="cpu", weights_only=True)
        settings = saved["settings"]
        student = FitHuBERT(**settings.pop("student"))
        self.model = HintedStudent(student, **settings)
        self.model.load_state_dict(saved["parameters"])

    def get_downsample_rates(self, key):
        """Samples from one frame to the next, the same for every key."""
        return self.model.student.frontend.hop

    def forward(self, wavs):
        """States of the layers that were taught.

        Arguments
        ---------
        wavs : list of torch.Tensor, [samples], float32
            Waveforms at 16 kHz.

        Returns
        -------
        dict
            hidden_states, a tuple of [B, T, H] at frames of 20 ms, the first layer's
            first; last_hidden_state, the last of them.
        """
        lengths = torch.tensor([len(wav) for wav in wavs], device=wavs[0].device)
        states, _ = self.model(pad_sequence(wavs, batch_first=True), lengths)
        hidden_states = tuple(states[layer] for layer in sorted(states))
        return {"hidden_states": hidden_states, "last_hidden_state": hidden_states[-1]}
