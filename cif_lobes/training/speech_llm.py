"""Training of an adapter between a frozen recogniser and a frozen language model."""

import logging
import random
from typing import NamedTuple

import speechbrain as sb
from speechbrain.dataio.dataset import FilteredSortedDynamicItemDataset
from torch import Tensor

from cif_lobes.data.batches import eval_loader_options
from cif_lobes.decoding.scoring import ErrorRate
from cif_lobes.training import adapter_start
from cif_lobes.training.recognizer import RecognizerBrain

logger = logging.getLogger(__name__)


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
    `beam_size` of a test, validation is greedy; `start_passes`, `start_utterances`.

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

    def fire(self, batch, target_lengths=None):
        """CIF vectors [B, U, D] and their number [B].

        From the audio alone, unless `target_lengths` [B] says how many there should be.
        """
        batch = batch.to(self.device, non_blocking=True)
        # What pretrained ears have heard before, or what they are to hear.
        x, relative = batch.heard if hasattr(batch, "heard") else batch.signal
        lengths = (relative * x.shape[1]).round().long()
        fired = self.recognizer(x, lengths, target_lengths)
        return fired.embeddings, fired.lengths

    def start_adapter(self, dataset):
        """Let the adapter begin where words are written, see `adapter_start`.

        On `start_utterances` of the training set, for `start_passes`; not in a run that
        goes on.

        Arguments
        ---------
        dataset : speechbrain.dataio.dataset.DynamicItemDataset
            Of training.
        """
        hp = self.hparams
        if not hp.start_passes or self.checkpointer.find_checkpoint() is not None:
            return
        ids = random.Random(hp.seed).sample(dataset.data_ids, len(dataset))
        some = FilteredSortedDynamicItemDataset(dataset, ids[: hp.start_utterances])
        options = eval_loader_options(some, hp.eval_batch_seconds, hp.num_workers)
        batches = self.make_dataloader(some, sb.Stage.TEST, **options)
        pairs = adapter_start.collect(self.fire, self.llm, hp.tokenizer, batches)
        adapter = self.modules.adapter
        share = adapter_start.fit(adapter, pairs, hp.start_passes, hp.seed, self.device)
        logger.info(
            f"the adapter begins with {share:.0%} of the variance of embeddings of what is "
            f"said in {len(some):,} utterances"
        )

    def compute_forward(self, batch, stage):
        """Read the vectors, then the transcript; see `Predictions`."""
        vectors, lengths = self.fire(batch)
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
