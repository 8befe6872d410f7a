"""A training step of SpeechBrain's Transformer recipe for AISHELL-1, to compare with.

recipes/AISHELL-1/ASR/transformer of speechbrain/speechbrain, train.py and
hparams/train_ASR_transformer.yaml: its features, SpecAugment, network, losses, optimizer
and learning rate, in SpeechBrain's own Brain. Two things are left out, which would make
it slower: the copy of every utterance with noise (env_corrupt), and the four batches of
an update (a step here is one batch in either recipe).
"""

import speechbrain as sb
import torch
from speechbrain.augment.freq_domain import SpectrogramDrop, Warping
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.losses import ctc_loss, kldiv_loss
from speechbrain.nnet.schedulers import NoamScheduler
from speechbrain.processing.features import InputNormalization

VOCAB, D, CTC_WEIGHT, LABEL_SMOOTHING = 5000, 256, 0.3, 0.1
PAD, BOS, EOS = 0, 1, 2


class TransformerBrain(sb.Brain):
    """compute_forward and compute_objectives of the recipe's train.py, for training."""

    def compute_forward(self, batch, stage):
        batch = batch.to(self.device)
        signal, lens = batch.signal
        x = self.hparams.compute_features(signal)
        x = self.hparams.normalize(x, lens, epoch=1)
        x = self.hparams.augment(x)
        encoded, decoded = self.modules.Transformer(
            self.modules.CNN(x), batch.tokens_bos[0], lens, pad_idx=PAD
        )
        ctc = self.modules.ctc_lin(encoded).log_softmax(-1)
        return ctc, self.modules.seq_lin(decoded).log_softmax(-1), lens

    def compute_objectives(self, predictions, batch, stage):
        ctc, seq, lens = predictions
        tokens, token_lens = batch.tokens_only
        with_eos, with_eos_lens = batch.tokens
        loss_seq = kldiv_loss(
            seq,
            with_eos,
            length=with_eos_lens,
            label_smoothing=LABEL_SMOOTHING,
            reduction="batchmean",
        )
        loss_ctc = ctc_loss(ctc, tokens, lens, token_lens, PAD, reduction="batchmean")
        return CTC_WEIGHT * loss_ctc + (1 - CTC_WEIGHT) * loss_seq

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        self.hparams.noam_annealing(self.optimizer)


def make_transformer(run_opts):
    """The Brain, ready for `fit_batch`."""
    modules = {
        "CNN": ConvolutionFrontEnd(
            (8, 10, 80),
            num_blocks=2,
            num_layers_per_block=1,
            out_channels=(256, 256),
            kernel_sizes=(3, 3),
            strides=(2, 2),
            residuals=(False, False),
        ),
        "Transformer": TransformerASR(
            VOCAB,
            input_size=5120,
            d_model=D,
            nhead=4,
            num_encoder_layers=12,
            num_decoder_layers=6,
            d_ffn=2048,
            dropout=0.1,
            activation=torch.nn.GELU,
            normalize_before=True,
            causal=False,
        ),
        "ctc_lin": Linear(input_size=D, n_neurons=VOCAB),
        "seq_lin": Linear(input_size=D, n_neurons=VOCAB),
    }
    # SpecAugment as the recipe sets it: two masks of each kind, and time warping.
    augment = torch.nn.Sequential(
        Warping(warp_window=5, warp_mode="bicubic"),
        SpectrogramDrop(0, 30, 2, 2, replace="mean", dim=2),
        SpectrogramDrop(0, 40, 2, 2, replace="mean", dim=1),
    )
    features = Fbank(sample_rate=16000, n_fft=400, n_mels=80)
    hparams = {
        "compute_features": features.to(run_opts["device"]),
        "normalize": InputNormalization(
            norm_type="global", update_until_epoch=4, device=run_opts["device"]
        ),
        "augment": augment,
        "noam_annealing": NoamScheduler(1.0, 25000, D),
    }
    brain = TransformerBrain(
        modules,
        lambda parameters: torch.optim.Adam(parameters, 0, (0.9, 0.98), 1e-9),
        hparams,
        run_opts,
    )
    brain.on_fit_start()
    brain.modules.train()
    brain.step = 1
    return brain
