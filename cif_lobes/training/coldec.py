"""Training of ColDec on the cached CIF vectors of a frozen recogniser.

Lists of phrases come from the batch itself, as in https://arxiv.org/abs/2012.09466: one
n-gram of each reference, kept or not. An utterance whose own was not kept has a list of
nothing but distractors.
"""

from typing import NamedTuple

import numpy as np
import speechbrain as sb
import torch
from speechbrain.dataio.dataio import length_to_mask
from torch import Tensor

from cif_lobes.data.manifest import read_manifest
from cif_lobes.devices.lengths import Lengths
from cif_lobes.losses.recognition import label_smoothed_ce
from cif_lobes.nets.coldec import pad_phrases
from cif_lobes.training.brain import TrainingBrain

MAX_NGRAM = 4  # words of a phrase, or characters where there are no words


class Predictions(NamedTuple):
    """What the context decoder says about a batch."""

    logits: Tensor  # [B, U, V]
    tokens: Tensor  # [B, U] true tokens, end of sentence included
    token_lengths: Lengths  # [B]


class VectorSet(torch.utils.data.Dataset):
    """Utterances of a manifest: `id`, `vectors` [U, D], `tokens` [U], `text`.

    Arguments
    ---------
    manifest : str
        csv.
    tokenizer : cif_lobes.data.tokens.Tokenizer
    cache : cif_lobes.cache.reader.TeacherCache
        From `cif_lobes.cache.cif_vectors.build`.

    Attributes
    ----------
    lengths : numpy.ndarray, [N], int64
        Tokens of each, end of sentence included.
    """

    def __init__(self, manifest, tokenizer, cache):
        self.tokenizer, self.cache = tokenizer, cache
        self.texts = {u.id: tokenizer.normalize(u.wrd) for u in read_manifest(manifest)}
        self.ids = list(self.texts)
        self.lengths = np.array([cache.num_states(i) for i in self.ids])

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        utt_id = self.ids[index]
        text = self.texts[utt_id]
        tokens = [*self.tokenizer.encode(text), self.tokenizer.eos_index]
        return {
            "id": utt_id,
            "vectors": self.cache[utt_id].float(),
            "tokens": torch.tensor(tokens),
            "text": text,
        }


def draw_phrases(texts, tokenizer, keep, num_lists, generator=None):
    """Phrases of a batch, and whose list each is on.

    Of every text, one n-gram of up to `MAX_NGRAM` words (characters, where texts have no
    spaces) is drawn and kept with a probability. Texts are dealt into lists.

    Arguments
    ---------
    texts : list of str
        Normalised references, B of them.
    tokenizer : cif_lobes.data.tokens.Tokenizer
    keep : float, in [0, 1]
        Probability with which an utterance's phrase is kept.
    num_lists : int
        Lists into which the texts are dealt, in turn.
    generator : torch.Generator, optional

    Returns
    -------
    phrases : list of list of int
        Tokens of each of P phrases, all different.
    sees : torch.Tensor, [B, P], bool
        Whether a phrase is on an utterance's list.
    """

    def chance():
        return torch.rand((), generator=generator).item()

    by_words = any(" " in text for text in texts)
    places, pairs = {}, []
    for number, text in enumerate(texts):
        units = text.split() if by_words else list(text)
        size = 1 + int(chance() * min(MAX_NGRAM, len(units)))
        start = int(chance() * (len(units) - size + 1))
        if chance() >= keep:
            continue
        phrase = (" " if by_words else "").join(units[start : start + size])
        tokens = tuple(tokenizer.encode(phrase))
        if tokens and tokenizer.unk_index not in tokens:
            place = places.setdefault(tokens, len(places))
            pairs.append((number % num_lists, place))
    on_list = torch.zeros(num_lists, len(places), dtype=torch.bool)
    for number, place in pairs:
        on_list[number, place] = True
    mine = torch.arange(len(texts)) % num_lists
    return [list(tokens) for tokens in places], on_list[mine]


class ColDecBrain(TrainingBrain):
    """Trains the distribution of the context decoder alone.

    Reads from the yaml, besides `modules` (`coldec`) and what `TrainingBrain` reads:
    `tokenizer`, `label_smoothing`, `keep_phrase`, `num_lists`.
    """

    best_key = "loss"

    def start_scoring(self):
        """The same lists in every validation."""
        self.generator = torch.Generator().manual_seed(0)

    def compute_forward(self, batch, stage):
        """Draw phrases; logits of every token. See `Predictions`."""
        token_lengths = Lengths.of(batch.tokens, self.device)
        hp, lengths = self.hparams, token_lengths.on_device
        generator = None if stage == sb.Stage.TRAIN else self.generator
        phrases, sees = draw_phrases(
            batch.text, hp.tokenizer, hp.keep_phrase, hp.num_lists, generator
        )
        batch = batch.to(self.device, non_blocking=True)
        tokens, vectors = batch.tokens.data, batch.vectors.data
        previous = tokens.roll(1, dims=1)
        previous[:, 0] = hp.tokenizer.bos_index
        padded = [x.to(self.device) for x in pad_phrases(phrases)]
        sees = sees.to(self.device)
        logits = self.modules.coldec(vectors, lengths, previous, *padded, sees)
        return Predictions(logits, tokens, token_lengths)

    def compute_objectives(self, predictions, batch, stage):
        """Label-smoothed cross-entropy, summed over the batch; keeps the ledger."""
        p = predictions
        lengths = p.token_lengths.on_device
        valid_mask = length_to_mask(lengths, p.tokens.shape[1], dtype=torch.bool)
        smoothing = self.hparams.label_smoothing
        loss = label_smoothed_ce(p.logits, p.tokens, valid_mask, smoothing)
        self.ledger.add({"ce": (1.0, loss)}, self.count_units(p))
        if stage != sb.Stage.TRAIN:
            correct = (p.logits.argmax(-1) == p.tokens) & valid_mask
            self.ledger.count("accuracy", correct.sum(), self.count_units(p))
        return loss

    def count_units(self, predictions):
        """Tokens of a batch, ends of sentences included."""
        return predictions.token_lengths.total()

    def describe(self, figures):
        """The accuracy in words."""
        return f"accuracy {figures['accuracy']:.3f}"
