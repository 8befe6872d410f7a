"""Language models over a recogniser's own tokens: sentences in, fusion scores out."""

import array
import collections
import gzip
import pathlib

import numpy as np
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.decoders import scorer as sb_scorer

from cif_lobes.data.formats import not_utf8
from cif_lobes.data.manifest import read_rows
from cif_lobes.data.tokens import SPECIALS
from cif_lobes.data.update_batches import UpdateBatches
from cif_lobes.devices.processes import rank_and_processes
from cif_lobes.settings.safe_yaml import build, inside
from cif_lobes.storage.checkpoints import SafeCheckpointer, load_parameters

BEST_KEY = "perplexity"
POSITIONS = 2500  # of SpeechBrain's TransformerLM


def read_sentences(path):
    """Sentences of a text file, one a line, or transcripts of a manifest.

    Arguments
    ---------
    path : str
        UTF-8 text, packed if it ends in .gz; a manifest if in .csv, .json or .jsonl.

    Returns
    -------
    iterator of str

    Raises
    ------
    ValueError
        If it is not UTF-8, or not packed though it ends in .gz.
    """
    if str(path).endswith((".csv", ".json", ".jsonl")):
        yield from (u.wrd for u in read_rows(path) if u.wrd)
        return
    open_text = gzip.open if str(path).endswith(".gz") else open
    try:
        with open_text(path, "rt", encoding="utf-8") as file:
            yield from file
    except UnicodeDecodeError as error:
        packed = str(path).endswith(".gz")
        why = (
            f"{path} is packed text, but no UTF-8 ({error})"
            if packed
            else not_utf8(path)
        )
        raise ValueError(why) from None
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(
            f"{path} is not packed by gzip, or breaks off ({error}): copy it again, or "
            "take the .gz from its name if it is plain text"
        ) from None


class TokenText(torch.utils.data.Dataset):
    """Sentences as `tokens` [U + 1] ending in end of sentence; empty ones left out.

    One flat array: forty million sentences take a few gigabytes.

    Arguments
    ---------
    paths : list of str
        Read by `read_sentences`.
    tokenizer : cif_lobes.data.tokens.Tokenizer
        Fitted.

    Example
    -------
    >>> import tempfile
    >>> from cif_lobes.data.tokens import CharTokenizer
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> tokenizer = CharTokenizer(folder / "chars.txt", 8, "zh").fit(["你好"])
    >>> _ = (folder / "text").write_text("好 你\\n\\n你龙\\n", encoding="utf-8")
    >>> text = TokenText([folder / "text"], tokenizer)
    >>> [item["tokens"].tolist() for item in text], text.oov_rate
    ([[5, 4, 2], [4, 3, 2]], 25.0)
    """

    def __init__(self, paths, tokenizer):
        tokens, ends = array.array("i"), array.array("q", [0])
        self.unknown = collections.Counter()  # spellings of unknown tokens
        for path in paths:
            for sentence in read_sentences(path):
                ids = tokenizer.encode(sentence)
                if not ids:
                    continue
                if tokenizer.unk_index in ids:
                    self.unknown.update(_unknown(sentence, ids, tokenizer))
                tokens.extend([*ids, tokenizer.eos_index])
                ends.append(len(tokens))
        self.tokens = torch.tensor(tokens)
        self.ends = ends
        self.lengths = np.diff(ends)

    @property
    def oov_rate(self):
        """Unknown tokens in % of all, ends of sentences not counted."""
        return 100 * self.unknown.total() / max(1, len(self.tokens) - len(self))

    def __len__(self):
        return len(self.ends) - 1

    def __getitem__(self, i):
        if i >= len(self):
            raise IndexError(i)
        return {"tokens": self.tokens[self.ends[i] : self.ends[i + 1]].long()}


def _unknown(sentence, ids, tokenizer):
    """Spelling of each unknown token."""
    text = tokenizer.normalize(sentence)
    spans = zip(ids, tokenizer.offsets(sentence), strict=True)
    return [text[slice(*span)] for i, span in spans if i == tokenizer.unk_index]


def check_text(text, name, device_batch_tokens, max_oov):
    """See that a text can be learnt from, before anything is trained.

    Arguments
    ---------
    text : TokenText
    name : str
        The setting that names its files.
    device_batch_tokens : int
        Tokens that a device takes at a time.
    max_oov : float
        Unknown tokens that are accepted, in %.

    Raises
    ------
    ValueError
        If it is empty, has too many unknown tokens or too long a sentence.
    """
    if not len(text):
        raise ValueError(
            f"{name} has no sentence: give text files, one sentence a line"
        )
    if text.oov_rate > max_oov:
        often = " ".join(repr(spelling) for spelling, _ in text.unknown.most_common(8))
        raise ValueError(
            f"{name}: {text.oov_rate:.1f} % of the tokens are unknown to the recogniser, "
            f"max_oov is {max_oov} %. Most often: {often}. Write the text as transcripts "
            "are written (no punctuation, numbers in words), or raise --max_oov"
        )
    longest = int(text.lengths.max())
    if longest > device_batch_tokens:
        raise ValueError(
            f"{name}: its longest sentence has {longest:,} tokens, device_batch_tokens "
            f"is {device_batch_tokens:,}: write one sentence a line, or raise "
            "--device_batch_tokens"
        )
    if longest > POSITIONS:
        raise ValueError(
            f"{name}: its longest sentence has {longest:,} tokens, SpeechBrain's "
            f"TransformerLM has {POSITIONS:,} positions: write one sentence a line"
        )


def loader_options(text, batch_tokens, device_batch_tokens=None, seed=None):
    """DataLoader options: batches of like lengths.

    Arguments
    ---------
    text : TokenText
    batch_tokens : int
        Tokens in a batch, padding included; of training, in an update of all processes.
    device_batch_tokens : int, optional
        Of training: tokens that a device takes at a time, padding included.
    seed : int, optional
        Of the random order of training; without it, longest first.

    Returns
    -------
    dict
    """
    quantiles = np.quantile(text.lengths, np.linspace(0, 1, 11)[1:])
    lengths = text.lengths.tolist()
    sampler = DynamicBatchSampler(
        text,
        batch_tokens,
        lengths_list=lengths,
        bucket_boundaries=sorted(set(quantiles.tolist())),
        shuffle=seed is not None,
        batch_ordering="descending" if seed is None else "random",
        seed=seed or 0,
    )
    if seed is not None:
        device = rank_and_processes()
        sampler = UpdateBatches(
            sampler, lengths, device_batch_tokens, *device, unit="tokens"
        )
    return {"batch_sampler": sampler, "collate_fn": PaddedBatch}


# --- fusion ---


class KenLMScorer(sb_scorer.KenLMScorer):
    """SpeechBrain's, which forgets that a sentence begins with its begin.

    Arguments
    ---------
    lm_path : str
        n-gram over the tokens' spellings, .arpa or KenLM's binary.
    vocab_size : int
        Tokens V.
    token_list : list of str
        Their spellings in the n-gram.
    """

    def score(self, inp_tokens, memory, candidates, attn):
        """Log-probabilities of the candidates; see SpeechBrain's."""
        if memory is None:
            state, rows = self.kenlm.State(), len(inp_tokens)
            self.lm.BeginSentenceWrite(state)
            memory = np.array([state] * rows), np.ones(rows)
        return super().score(inp_tokens, memory, candidates, attn)


def load_scorer(path, tokenizer):
    """The language model of a file or folder, ready to score a recogniser's tokens.

    Arguments
    ---------
    path : str
        Output folder of train_lm.py, or an n-gram file (needs `kenlm`).
    tokenizer : cif_lobes.data.tokens.Tokenizer
        The recogniser's.

    Returns
    -------
    speechbrain.decoders.scorer.BaseScorerInterface

    Raises
    ------
    FileNotFoundError
        If there is no trained language model.
    ValueError
        If it was trained on other tokens.
    """
    path = pathlib.Path(path)
    if path.is_file():
        return _load_ngram(path, tokenizer)
    return sb_scorer.TransformerLMScorer(_load_transformer(path, tokenizer))


def _load_transformer(folder, tokenizer):
    """The checkpoint with the lowest perplexity on the validation text."""
    save, best = folder / "save", None
    if save.exists():
        best = SafeCheckpointer(save).find_checkpoint(min_key=BEST_KEY)
    if best is None:
        raise FileNotFoundError(
            f"{folder} holds no trained language model (no checkpoint of a whole epoch "
            f"in {save}): give the output_folder of train_lm.py, or an n-gram file"
        )
    hparams = build(folder / "hyperparams.yaml", only=("tokenizer", "lm"))
    own = hparams["tokenizer"]
    own.path = inside(folder, own.path)
    if own.fingerprint != tokenizer.fingerprint:
        raise ValueError(
            f"language model {folder} counts in the tokens of {own.path} "
            f"({own.fingerprint}), the recogniser in those of {tokenizer.path} "
            f"({tokenizer.fingerprint}). Train one on the recogniser's tokens: "
            f"train_lm.py --tokenizer_folder {tokenizer.path.parent} --vocab_size "
            f"{tokenizer.vocab_size}"
        )
    model = torch.nn.ModuleDict({"lm": hparams["lm"]})
    model.load_state_dict(load_parameters(best.paramfiles["model"]))
    return model["lm"].eval()


def _load_ngram(path, tokenizer):
    """An n-gram whose words are the tokens' spellings."""
    symbols = tokenizer.symbols[len(SPECIALS) :]
    # The ends of a sentence as n-gram toolkits spell them. Outputs that no token uses
    # are unknown words, as is the blank, which the search never asks for.
    words = ["<unk>", "<s>", "</s>", "<unk>", *symbols]
    words += ["<unk>"] * (tokenizer.vocab_size - len(words))
    try:
        scorer = KenLMScorer(str(path), tokenizer.vocab_size, words)
    except ImportError:
        raise ValueError(
            f"language model {path} is an n-gram, which KenLM reads, and it is not "
            "installed: pip install ufal-kenlm. Or give the output_folder of train_lm.py"
        ) from None
    missing = [symbol for symbol in symbols if symbol not in scorer.lm]
    if len(missing) > len(symbols) / 2:
        raise ValueError(
            f"n-gram {path} does not know {len(missing):,} of the {len(symbols):,} "
            f"tokens of {tokenizer.path}, first {missing[0]!r}: its text must have the "
            "recogniser's tokens as words, for characters: LC_ALL=C.UTF-8 sed 's/./& /g'"
        )
    return scorer
