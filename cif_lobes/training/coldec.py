"""Training of ColDec on the cached CIF vectors of a frozen recogniser.

Lists of phrases come from the batch itself, as in https://arxiv.org/abs/2012.09466: one
n-gram of each reference, kept or not. An utterance whose own was not kept has a list of
nothing but distractors.

Where the phrases of a list are said is known, so the attention can be told: a cross-entropy
whose target at each fire is the phrase it lies in, or no-bias. The papers have none.
"""

from typing import NamedTuple

import numpy as np
import speechbrain as sb
import torch
from speechbrain.dataio.dataio import length_to_mask
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cif_lobes.data.manifest import read_manifest
from cif_lobes.devices.lengths import Lengths
from cif_lobes.losses.recognition import label_smoothed_ce
from cif_lobes.nets.coldec import pad_phrases
from cif_lobes.training.brain import TrainingBrain


class Predictions(NamedTuple):
    """What the context decoder says about a batch."""

    logits: Tensor  # [B, U, V]
    scores: Tensor  # [B, U, 1 + P * L] of the attention: no-bias, tokens (L 1: phrases)
    wanted: Tensor  # [B, U] which of them it should be
    width: int  # L
    tokens: Tensor  # [B, U] true tokens, end of sentence included
    token_lengths: Lengths  # [B]


class VectorSet(torch.utils.data.Dataset):
    """Utterances of a manifest: `id`, `vectors` [U, C, D], `tokens` [U], `text`.

    Of C copies of an utterance's vectors the first is fired without masks.

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
            "vectors": self.cache[utt_id]
            .float()
            .view(len(tokens), -1, self.cache.shape[-1]),
            "tokens": torch.tensor(tokens),
            "text": text,
        }


def draw_phrases(
    texts, tokenizer, keep, num_lists, generator=None, max_words=4, max_letters=0
):
    """Phrases of a batch, and whose list each is on.

    Of every text, one n-gram of words (characters, where texts have no spaces) is drawn
    and kept with a probability. Texts are dealt into lists.

    A corpus of few words teaches these words, and no other is found among them later: with
    `max_letters`, stretches of letters are drawn instead, wherever words begin and end.

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
    max_words : int
        The longest n-gram.
    max_letters : int
        The longest stretch of letters, 3 the shortest; 0 for n-grams.

    Returns
    -------
    phrases : list of list of int
        Tokens of each of P phrases, all different.
    sees : torch.Tensor, [B, P], bool
        Whether a phrase is on an utterance's list.
    """

    def chance():
        return torch.rand((), generator=generator).item()

    by_words = not max_letters and any(" " in text for text in texts)
    least, most = (3, max_letters) if max_letters else (1, max_words)
    places, pairs = {}, []
    for number, text in enumerate(texts):
        units = text.split() if by_words else list(text)
        longest = min(most, len(units))
        size = min(longest, least + int(chance() * (longest - least + 1)))
        start = int(chance() * (len(units) - size + 1))
        if chance() >= keep:
            continue
        phrase = (" " if by_words else "").join(units[start : start + size])
        tokens = tuple(tokenizer.encode(phrase.strip()))
        if tokens and tokenizer.unk_index not in tokens:
            place = places.setdefault(tokens, len(places))
            pairs.append((number % num_lists, place))
    on_list = torch.zeros(num_lists, len(places), dtype=torch.bool)
    for number, place in pairs:
        on_list[number, place] = True
    mine = torch.arange(len(texts)) % num_lists
    return [list(tokens) for tokens in places], on_list[mine]


def locate_phrases(texts, phrases, sees, tokenizer, whole_words=True):
    """The phrase that each token of a text is in, of those on its list.

    Arguments
    ---------
    texts : list of str
        Normalised references, B of them.
    phrases : list of list of int
        Tokens of P phrases.
    sees : torch.Tensor, [B, P], bool
        Whether a phrase is on an utterance's list.
    tokenizer : cif_lobes.data.tokens.Tokenizer
    whole_words : bool
        Whether phrases are whole words, where texts have spaces.

    Returns
    -------
    places : torch.Tensor, [B, U], int64
        1 + p within phrase p, of several the longest; 0 elsewhere, at the end of sentence
        and in padding.
    offsets : torch.Tensor, [B, U], int64
        Which token of that phrase it is, from 0; 0 elsewhere.
    """
    gap = " " if whole_words and any(" " in text for text in texts) else ""
    spelled = [tokenizer.decode(tokens) for tokens in phrases]
    shortest_first = sorted(range(len(spelled)), key=lambda p: len(spelled[p]))
    rows = []
    for text, seen in zip(texts, sees.tolist(), strict=True):
        spans, within = tokenizer.offsets(text), f"{gap}{text}{gap}"
        row = torch.zeros(len(spans) + 1, 2, dtype=torch.int64)
        for p in shortest_first:
            wanted = f"{gap}{spelled[p]}{gap}"
            start = within.find(wanted) if seen[p] else -1
            while start >= 0:
                end = start + len(spelled[p])
                inside = [
                    u for u, (a, b) in enumerate(spans) if start <= a and b <= end
                ]
                # Pieces of a tokenizer that looks beyond a word may be others.
                if len(inside) == len(phrases[p]):
                    row[inside, 0] = 1 + p
                    row[inside, 1] = torch.arange(len(inside))
                start = within.find(wanted, start + 1)
        rows.append(row)
    return pad_sequence(rows, batch_first=True).unbind(-1)


def respell_phrases(phrases, places, offsets, tokens, share):
    """Other tokens in some places of phrases, and in the texts that say them.

    What is said then differs from what is to be written, and the phrase alone tells: who
    has learnt so spells names that are not written as they sound. (Of real names others
    write the sounds otherwise; here any token of the other phrases will do.)

    Arguments
    ---------
    phrases : list of list of int
        Tokens of P phrases.
    places, offsets : torch.Tensor, [B, U], int64
        As `locate_phrases` gives them.
    tokens : torch.Tensor, [B, U], int64
        True tokens.
    share : float, in [0, 1]
        Probability with which a token is another.

    Returns
    -------
    phrases : list of list of int
        Some of them may be equal now.
    tokens : torch.Tensor, [B, U], int64
    """
    every = torch.tensor([token for phrase in phrases for token in phrase])
    if not len(every):
        return phrases, tokens
    others = every[torch.randint(len(every), every.shape)]
    every = torch.where(torch.rand(every.shape) < share, others, every)
    counts = [len(phrase) for phrase in phrases]
    firsts = torch.tensor([0, 0, *counts[:-1]]).cumsum(0)  # of no phrase, too
    said = every[firsts[places] + offsets]
    respelled = [part.tolist() for part in every.split(counts)]
    return respelled, said.where(places > 0, tokens)


class ColDecBrain(TrainingBrain):
    """Trains the distribution of the context decoder, and where it attends.

    Reads from the yaml, besides `modules` (`coldec`) and what `TrainingBrain` reads:
    `tokenizer`, `coldec`, `label_smoothing`, `keep_phrase`, `num_lists`, `max_words`,
    `max_letters`, `attention_weight`, `respelled`.
    """

    best_key = "loss"

    def start_scoring(self):
        """The same lists in every validation."""
        self.generator = torch.Generator().manual_seed(0)

    def compute_forward(self, batch, stage):
        """Draw phrases; logits of every token, and where it attends. See `Predictions`."""
        token_lengths = Lengths.of(batch.tokens, self.device)
        hp, lengths = self.hparams, token_lengths.on_device
        generator = None if stage == sb.Stage.TRAIN else self.generator
        phrases, sees = draw_phrases(
            batch.text,
            hp.tokenizer,
            hp.keep_phrase,
            hp.num_lists,
            generator,
            hp.max_words,
            hp.max_letters,
        )
        places, offsets = locate_phrases(
            batch.text, phrases, sees, hp.tokenizer, not hp.max_letters
        )
        tokens = batch.tokens.data
        if stage == sb.Stage.TRAIN and hp.respelled:
            phrases, tokens = respell_phrases(
                phrases, places, offsets, tokens, hp.respelled
            )
        batch, tokens = batch.to(self.device, non_blocking=True), tokens.to(self.device)
        vectors = self._choose(batch.vectors.data, stage)
        previous = tokens.roll(1, dims=1)
        previous[:, 0] = hp.tokenizer.bos_index
        padded = pad_phrases(phrases)
        width = padded[0].shape[1] if hp.coldec.over_tokens else 1
        wanted = 1 + (places - 1) * width + (offsets if width > 1 else 0)
        wanted = wanted.where(places > 0, 0).to(self.device)
        padded = [x.to(self.device) for x in padded]
        sees = sees.to(self.device)
        read = self.modules.coldec(vectors, lengths, previous, *padded, sees)
        return Predictions(*read, wanted, width, tokens, token_lengths)

    def _choose(self, vectors, stage):
        """One of the copies [B, U, C, D] of each: in training any, else the first."""
        copies = torch.zeros(len(vectors), dtype=torch.int64)
        if stage == sb.Stage.TRAIN and vectors.shape[2] > 1:
            copies.random_(vectors.shape[2])
        return vectors[torch.arange(len(vectors)), :, copies.to(vectors.device)]

    def compute_objectives(self, predictions, batch, stage):
        """Cross-entropies of tokens and attention, summed over the batch; the ledger."""
        p = predictions
        lengths = p.token_lengths.on_device
        valid_mask = length_to_mask(lengths, p.tokens.shape[1], dtype=torch.bool)
        smoothing, weight = self.hparams.label_smoothing, self.hparams.attention_weight
        losses = {
            "ce": (1.0, label_smoothed_ce(p.logits, p.tokens, valid_mask, smoothing))
        }
        if weight:
            scores, wanted = p.scores.float()[valid_mask], p.wanted[valid_mask]
            ce = torch.nn.functional.cross_entropy(scores, wanted, reduction="sum")
            losses["attention"] = (weight, ce)
        self.ledger.add(losses, self.count_units(p))
        if stage != sb.Stage.TRAIN:
            correct = (p.logits.argmax(-1) == p.tokens) & valid_mask
            self.ledger.count("accuracy", correct.sum(), self.count_units(p))
            in_phrase = p.wanted > 0
            # Any token of the right phrase.
            best, right = ((x - 1) // p.width for x in (p.scores.argmax(-1), p.wanted))
            found = (best == right) & in_phrase
            self.ledger.count("found", found.sum(), in_phrase.sum())
        return sum(weight * loss for weight, loss in losses.values())

    def count_units(self, predictions):
        """Tokens of a batch, ends of sentences included."""
        return predictions.token_lengths.total()

    def describe(self, figures):
        """The accuracies in words; `found` is of the fires within phrases of the list."""
        return f"accuracy {figures['accuracy']:.3f}, found {figures['found']:.3f}"
