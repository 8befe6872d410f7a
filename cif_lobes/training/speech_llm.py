"""Training of an adapter between a frozen recogniser and a frozen language model."""

from typing import NamedTuple

import speechbrain as sb
from torch import Tensor

from cif_lobes.decoding.scoring import ErrorRate
from cif_lobes.training.recognizer import RecognizerBrain


class Predictions(NamedTuple):
    """What the adapter says about a batch."""

    embeddings: Tensor  # [B, U, H]
    lengths: Tensor  # [B] of each utterance, on the CPU
    loss: Tensor  # [], sum over pieces
    correct: Tensor  # []
    total: int  # pieces


class SpeechLLMBrain(RecognizerBrain):
    """Trains and scores CIF vectors -> adapter -> language model.

    Reads from the yaml, besides `modules` (`adapter`) and what `RecognizerBrain` reads:
    `beam_size` of a test; validation is greedy.

    Arguments
    ---------
    recognizer : cif_lobes.teachers.cif_recognizer.FrozenRecognizer
        Beside `modules`, like the language model, so neither is trained, switched to
        train mode or saved. Of the language model, `lora` is, if it is among `modules`.
    llm : cif_lobes.nets.speech_llm.SpeechLLM
    **kwargs
        Those of `speechbrain.Brain`.
    """

    def __init__(self, recognizer, llm, **kwargs):
        super().__init__(**kwargs)
        self.recognizer = recognizer
        self.llm = llm.to(self.device)

    def fire(self, batch, stage):
        """CIF vectors [B, U, D] and their number [B], from the audio alone.

        In training through masks: of speech that it has learnt from, the recogniser fires
        better vectors than it ever will again.
        """
        signal, lengths = self.listen(batch, stage)
        x, x_lengths = self.recognizer.hear(signal, lengths.on_device)
        augment = self.option("augment") if stage == sb.Stage.TRAIN else None
        if augment is not None:
            x = augment(x, x_lengths)
        fired = self.recognizer.fire(x, x_lengths)
        return fired.embeddings, fired.lengths

    def compute_forward(self, batch, stage):
        """Read the vectors, then the transcript; see `Predictions`."""
        vectors, lengths = self.fire(batch, stage)
        embeddings = self.modules.adapter(vectors, lengths)
        lengths = lengths.cpu()
        read = getattr(self.modules, "lora", self.llm)
        return Predictions(embeddings, lengths, *read(embeddings, lengths, batch.text))

    def compute_objectives(self, predictions, batch, stage):
        """Cross-entropy of the transcript's pieces, summed; keeps the ledger."""
        p = predictions
        self.ledger.add({"ce": (1.0, p.loss)}, p.total)
        if stage != sb.Stage.TRAIN:
            beam = self.hparams.beam_size if stage == sb.Stage.TEST else 1
            texts = self.llm.transcribe(p.embeddings, p.lengths, beam)
            # Written and scored as the recogniser's transcripts are.
            texts = [self.hparams.tokenizer.normalize(text) for text in texts]
            self.error_rate.append(batch.id, texts, batch.text)
            self.ledger.count("accuracy", p.correct, p.total)
        return p.loss

    def count_units(self, predictions):
        """Pieces of a batch, ends of sentences included."""
        return predictions.total

    def describe(self, figures):
        """Error rate and accuracy."""
        return f"{ErrorRate.describe(figures)}  accuracy {figures['accuracy']:.3f}"
