"""Joint CTC-attention recognition, alone or taught by several others: Brain and run.

encoder -> CTC head, and encoder -> attentional decoder -> tokens, as in SpeechBrain's
TIMIT recipes. With a teacher cache the losses are those of Gao et al.
(https://arxiv.org/abs/2005.09310): for x in CTC and attention

    L_x = T^2 kd_weight L_x_kd + (1 - kd_weight) L_x
    L = ctc_weight L_ctc + (1 - ctc_weight) L_attention
"""

import speechbrain as sb

from cif_lobes.decoding.scoring import ErrorRate
from cif_lobes.devices.lengths import Lengths
from cif_lobes.losses.multi_teacher import (
    attention_distillation,
    ctc_distillation,
    teacher_weights,
)
from cif_lobes.losses.recognition import ctc_loss, label_smoothed_ce
from cif_lobes.nets.ctc_attention import predict
from cif_lobes.training.recognizer import RecognizerBrain


class CTCAttentionBrain(RecognizerBrain):
    """Trains and scores features -> encoder -> CTC and attentional decoder.

    Reads from the yaml, besides `modules` and what `RecognizerBrain` reads:
    `ctc_weight`, `label_smoothing`, `searcher` for validation, `test_searcher`; to learn
    from teachers `kd_weight`, `strategy`, `ctc_strategy`, `temperature`,
    `temper_student`.
    """

    def compute_forward(self, batch, stage):
        """Encode, and decode with the true tokens; see `Predictions`."""
        token_lengths = Lengths.of(batch.tokens, self.device)
        encoded, x_lengths = self.encode(batch, stage)
        return predict(
            self.modules,
            encoded,
            x_lengths,
            batch.tokens.data,
            token_lengths,
            self.hparams.tokenizer.bos_index,
        )

    def compute_objectives(self, predictions, batch, stage):
        """Weighted sum of the losses over the batch; keeps the ledger."""
        # Teachers teach the training set only: figures of validation are comparable.
        taught = stage == sb.Stage.TRAIN and hasattr(batch, "teacher_seq")
        kd_weight = self.hparams.kd_weight if taught else 0
        losses = {}
        if kd_weight < 1:
            losses |= self.losses(predictions, 1 - kd_weight)
        if kd_weight:
            losses |= self.distillation_losses(predictions, batch, kd_weight)
        self.ledger.add(losses, self.count_units(predictions))
        if stage != sb.Stage.TRAIN:
            self._score(predictions, batch, stage)
        return sum(weight * loss for weight, loss in losses.values())

    def losses(self, p, share):
        """Each supervised term as (weight, sum over the batch), by name."""
        hp = self.hparams
        seq = label_smoothed_ce(p.logits, p.tokens, p.valid_mask, hp.label_smoothing)
        losses = {"seq": (share * (1 - hp.ctc_weight), seq)}
        if hp.ctc_weight:
            ctc = ctc_loss(
                p.ctc_logits.float().log_softmax(-1),
                p.tokens,
                p.x_lengths.on_host,
                p.token_lengths.on_host - 1,  # no end of sentence
                hp.tokenizer.blank_index,
            )
            losses["ctc"] = share * hp.ctc_weight, ctc
        return losses

    def distillation_losses(self, p, batch, share):
        """Each term that a teacher has a part in as (weight, sum over the batch)."""
        hp = self.hparams
        share *= hp.temperature**2
        errors = batch.teacher_errors.data  # [B, 2, K]
        seq = attention_distillation(
            p.logits,
            batch.teacher_seq.data,
            teacher_weights(errors[:, 1], hp.strategy),
            p.valid_mask,
            hp.temperature,
            hp.temper_student,
        )
        losses = {"seq_kd": (share * (1 - hp.ctc_weight), seq)}
        if hp.ctc_weight:
            labels = batch.teacher_labels.data  # [B, L, K], padded with blanks
            ctc = ctc_distillation(
                p.ctc_logits,
                p.x_lengths.on_device,
                labels,
                (labels != hp.tokenizer.blank_index).sum(1),
                teacher_weights(errors[:, 0], hp.ctc_strategy),
                hp.tokenizer.blank_index,
                hp.temperature,
                hp.temper_student,
            )
            losses["ctc_kd"] = share * hp.ctc_weight, ctc
        return losses

    def _score(self, p, batch, stage):
        """Error rate and teacher-forced accuracy of a batch."""
        hp = self.hparams
        searcher = hp.test_searcher if stage == sb.Stage.TEST else hp.searcher
        relative = p.x_lengths.on_device / p.encoded.shape[1]
        hypotheses, *_ = searcher(p.encoded, relative)
        # Without an end of sentence a search goes on as long as the batch's longest.
        lengths = p.x_lengths.on_host.tolist()
        self.append_scores(
            batch, [h[:n] for h, n in zip(hypotheses, lengths, strict=True)]
        )
        correct = (p.logits.argmax(-1) == p.tokens) & p.valid_mask
        self.ledger.count("accuracy", correct.sum(), self.count_units(p))

    def describe(self, figures):
        """Error rate and accuracy."""
        return f"{ErrorRate.describe(figures)}  accuracy {figures['accuracy']:.3f}"
