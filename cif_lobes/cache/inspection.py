"""What a teacher cache holds, for people: are its states worth learning from?"""

import os
import random
from collections import Counter

import torch
import torch.nn.functional as F

END = "</s>"
SENTENCES = 5  # whose nearest tokens are shown
TOKENS = 6  # of each of them
NEIGHBOURS = 4  # of each of these
POOL = 500  # utterances among which neighbours are looked for
COLLAPSED = 0.8  # mean cosine from which states are said to look alike


def describe(cache, texts, tokenizer, seed=0):
    """Lines of a report on a cache.

    Arguments
    ---------
    cache : cif_lobes.cache.reader.TeacherCache
        Finished.
    texts : dict of str to str
        Normalised transcript of each utterance id of the manifests.
    tokenizer : object
        The recogniser's, with `offsets`, `fingerprint` and `language`.
    seed : int
        Of the choice of utterances.

    Returns
    -------
    list of str
    """
    problems = cache.problems(
        texts,
        tokenizer_fingerprint=tokenizer.fingerprint,
        text_normalization=tokenizer.language,
    )
    lines = [*_summary(cache, texts), *(f"  PROBLEM   {p}" for p in problems)]
    lines += [
        "",
        "States of an utterance, end of sentence included",
        *_histogram(cache),
    ]
    known = [utt_id for utt_id in texts if utt_id in cache]
    if problems or not known:
        return [
            *lines,
            "",
            "The tokens are not shown: they do not belong to the states",
        ]
    chosen = random.Random(seed).sample(known, min(POOL, len(known)))
    lines += ["", *_similarity(cache, chosen)]
    return [*lines, "", *_neighbours(cache, chosen, texts, tokenizer)]


def _summary(cache, texts):
    made = cache.attributes
    covered = sum(utt_id in cache for utt_id in texts)
    size = os.path.getsize(cache.path)
    return [
        cache.path,
        f"  teacher   {made['teacher']}, weights {made['teacher_weights']}, "
        f"tokenizer {made['teacher_tokenizer']}",
        f"  layer     {made['layer']}",
        f"  states    {cache.total_states:,} x {' x '.join(map(str, cache.shape))} "
        f"{made['dtype']}",
        f"  coverage  {covered:,} of {len(texts):,} utterances of the manifests; "
        f"{len(cache):,} utterances in the cache, {cache.total_texts:,} distinct texts",
        f"  size      {size:,} bytes, {size / len(cache) / 1000:.1f} kB per utterance",
        f"  tokens    tokenizer {made['tokenizer_fingerprint']}, text normalisation "
        f"{made['text_normalization']}",
        f"  made by   {made['command']}",
        f"            {made['versions']}",
    ]


def _histogram(cache, num_bins=10, width=40):
    """Bars of the numbers of states."""
    counts = Counter(cache.num_states(utt_id) for utt_id in cache)
    low, high = min(counts), max(counts)
    step = (high - low) // num_bins + 1
    bins = [
        (start, sum(counts[n] for n in range(start, start + step)))
        for start in range(low, high + 1, step)
    ]
    most = max(total for _, total in bins)
    return [
        f"  {start:>5}-{start + step - 1:<5}{total:>9,}  "
        + "#" * (width * total // most)
        for start, total in bins
    ]


def _similarity(cache, utterances):
    """Mean cosine between two tokens of a sentence and variance, for each layer.

    A teacher whose states all point the same way gives a contrastive loss little to
    tell apart, and a regression loss little but the mean to learn. The variance is the
    l2 loss of a student that knows the mean alone.
    """
    raw, centred, squares = [], [], []
    for utt_id in utterances:
        states = cache[utt_id].float()
        states = states.view(len(states), -1, states.shape[-1])
        differences = states - cache.mean
        squares.append(differences.square().sum(-1))
        if len(states) > 1:
            raw.append(_mean_cosine(states))
            centred.append(_mean_cosine(differences))
    if not raw:
        return ["Cosine between the tokens of a sentence: no sentence has two"]
    columns = [torch.stack(c).mean(0).tolist() for c in (raw, centred)]
    columns.append(torch.cat(squares).mean(0).tolist())
    layers = cache.attributes["layer"]
    layers = [layers] if isinstance(layers, int) else layers
    lines = [
        "Cosine between the tokens of a sentence, and variance, mean of "
        f"{len(utterances):,} sentences"
    ]
    for layer, cosine, less_mean, variance in zip(layers, *columns, strict=True):
        warning = "  nearly collapsed: centre, or take a lower layer"
        lines.append(
            f"  layer {layer:>2}  {cosine:5.2f}   less the mean of all states "
            f"{less_mean:5.2f}   variance {variance:6.1f}"
            + (warning if cosine > COLLAPSED else "")
        )
    lines.append(
        "An lrd of kind l2 that stays at the variance has learnt the mean alone."
    )
    return lines


def _mean_cosine(states):
    """Mean cosine of two different tokens, of [N, L, H] in each of L layers: [L]."""
    num_tokens = len(states)
    states = F.normalize(states, dim=-1)
    # The sum of all cosines is the squared length of the sum; N of them are 1.
    return (states.sum(0).square().sum(-1) - num_tokens) / (num_tokens**2 - num_tokens)


def _neighbours(cache, utterances, texts, tokenizer):
    """The other tokens whose centred states are nearest, for the first sentences."""
    tokens, owners, states = [], [], []
    for utt_id in utterances:
        text = texts[utt_id]
        spelt = [text[start:end] for start, end in tokenizer.offsets(text)] + [END]
        tokens += spelt
        owners += [utt_id] * len(spelt)
        states.append((cache[utt_id].float() - cache.mean).flatten(1))
    states = F.normalize(torch.cat(states), dim=-1)
    lines = [
        f"Nearest other tokens, cosine of centred states, of {len(tokens):,} tokens"
    ]
    for utt_id in utterances[:SENTENCES]:
        lines.append(f"  {utt_id}  {texts[utt_id][:60]}")
        first = owners.index(utt_id)
        for i in range(first, min(first + TOKENS, first + cache.num_states(utt_id))):
            similarity = states @ states[i]
            nearest = {}
            for j in similarity.argsort(descending=True).tolist():
                if owners[j] != utt_id and tokens[j] != tokens[i]:
                    nearest.setdefault(tokens[j], similarity[j].item())
                if len(nearest) == NEIGHBOURS:
                    break
            shown = "  ".join(
                f"{token} {cosine:.2f}" for token, cosine in nearest.items()
            )
            lines.append(f"    {tokens[i]}:  {shown}")
    return lines
