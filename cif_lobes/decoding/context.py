"""A trained ColDec in the search: its distribution is mixed with the recogniser's.

    log p = (1 - weight) log p_recogniser + weight log p_context

at every fire, as in https://arxiv.org/abs/2012.09466, in a beam as well as greedily.
"""

import pathlib

import torch

from cif_lobes.decoding.hotwords import read_hotwords, warn_skipped, write_with
from cif_lobes.settings.safe_yaml import build, inside
from cif_lobes.storage.checkpoints import SafeCheckpointer, load_parameters

BEST_KEY = "loss"
RECOGNIZER = "recognizer.txt"  # in a run folder: hash of the weights it was trained on


class Context:
    """The phrases of a list, ready to be mixed into a search.

    Arguments
    ---------
    coldec : cif_lobes.nets.coldec.ColDec
        In eval mode.
    phrases : list of list of int
        Tokens of each phrase; none is a list, too.
    weight : float, in [0, 1]
        Of the context decoder.
    purify : int
        Phrases that a fire keeps, those with most attention; 0 for all.
    """

    def __init__(self, coldec, phrases, weight=0.5, purify=0):
        self.coldec, self.weight, self.purify = coldec, weight, purify
        with torch.no_grad():
            self.phrases = coldec.encode(phrases)

    def start(self, vectors, lengths, width):
        """Attend, once for a batch.

        Arguments
        ---------
        vectors : torch.Tensor, [B, U, C]
            CIF vectors.
        lengths : torch.Tensor, [B], int64
        width : int
            Hypotheses of each utterance.

        Returns
        -------
        ContextSteps
        """
        joined = self.coldec.join_contexts(
            vectors, lengths, self.phrases, purify=self.purify
        )
        return ContextSteps(self, joined, width)


class ContextSteps:
    """The context decoder as it follows a search; see `Context.start`."""

    def __init__(self, context, joined, width):
        self.decoder, self.weight = context.coldec.decoder, context.weight
        self.joined, self.width = joined, width
        self.before = joined.new_zeros(len(joined) * width, joined.shape[2])
        self.state = None

    def mix(self, log_probs, u, previous, order):
        """Log-probabilities of a step, mixed.

        Arguments
        ---------
        log_probs : torch.Tensor, [N, V], float32
            The recogniser's.
        u : int
            The step, from 0.
        previous : torch.Tensor, [N], int64
            Tokens before it.
        order : torch.Tensor, [N], int64, or None
            Which hypotheses of the step before go on; None at the first.

        Returns
        -------
        torch.Tensor, [N, V], float32
        """
        if self.state is not None and self.width > 1:
            self.state.reorder(order)
        vector = self.joined[:, u].repeat_interleave(self.width, dim=0)
        logits, self.state = self.decoder.step(
            vector, self.before, previous, self.state
        )
        self.before = vector
        context = logits.float().log_softmax(-1)
        return (1 - self.weight) * log_probs + self.weight * context


def load_context(folder, recognizer_hash, hotwords, tokenizer, weight=0.5, purify=0):
    """A run of train_coldec.py with the phrases of a file.

    Arguments
    ---------
    folder : str
        Its output_folder.
    recognizer_hash : str
        Of the recogniser that is to be biased, from
        `cif_lobes.teachers.cif_recognizer.FrozenRecognizer.hash_weights`.
    hotwords : str
        Text file, see `cif_lobes.decoding.hotwords.read_hotwords`; weights behind tabs are
        not read.
    tokenizer : cif_lobes.data.tokens.Tokenizer
        The recogniser's. Phrases that it cannot write are skipped and logged.
    weight, purify
        As of `Context`.

    Returns
    -------
    Context

    Raises
    ------
    FileNotFoundError
        If there is no trained ColDec.
    ValueError
        If it was trained on another recogniser, or the list is empty.
    """
    coldec = load_coldec(folder, recognizer_hash)
    phrases = read_hotwords(hotwords)
    written, skipped = write_with(tokenizer, phrases)
    warn_skipped(hotwords, phrases, skipped, tokenizer)
    return Context(coldec, [tokens for tokens, _ in written], weight, purify)


def load_coldec(folder, recognizer_hash):
    """The checkpoint with the lowest loss on the validation set, in eval mode.

    Arguments
    ---------
    folder, recognizer_hash
        As of `load_context`.

    Returns
    -------
    cif_lobes.nets.coldec.ColDec
    """
    folder = pathlib.Path(folder)
    best, note = None, folder / RECOGNIZER
    if (folder / "save").exists() and note.exists():
        best = SafeCheckpointer(folder / "save").find_checkpoint(min_key=BEST_KEY)
    if best is None:
        raise FileNotFoundError(
            f"{folder} holds no trained ColDec (no checkpoint of a whole epoch in "
            f"{folder / 'save'}): give the output_folder of train_coldec.py"
        )
    trained_on = inside(folder, RECOGNIZER).read_text(encoding="utf-8").split()[0]
    if trained_on != recognizer_hash:
        raise ValueError(
            f"ColDec {folder} was trained on the CIF vectors of another recogniser "
            f"(weights {trained_on}, here {recognizer_hash}), or this one was trained "
            "on since. Train one on this recogniser: train_coldec.py --recognizer RUN"
        )
    coldec = build(folder / "hyperparams.yaml", only=("coldec",))["coldec"]
    model = torch.nn.ModuleDict({"coldec": coldec})
    model.load_state_dict(load_parameters(best.paramfiles["model"]))
    return coldec.requires_grad_(False).eval()
