"""Language models: their text, their training, and the sum that fusion is."""

import gzip
import json
import math

import pytest
import torch
from conftest import ROOT
from programs import run_python

from cif_lobes.data.tokens import BLANK, BOS, EOS, CharTokenizer
from cif_lobes.decoding.fusion import fuse
from cif_lobes.decoding.language_model import TokenText, check_text, load_scorer
from cif_lobes.decoding.searcher import BeamSearcher
from cif_lobes.nets.decoder import CIFDecoder
from cif_lobes.storage.run_files import keep_tokenizer

TINY_LM = {
    "vocab_size": 8,
    "d_model": 16,
    "num_layers": 1,
    "nhead": 2,
    "d_ffn": 32,
    "dropout": 0.0,
    "batch_tokens": 100,
    "device_batch_tokens": 100,
    "number_of_epochs": 12,
    "lr": 1e-2,
    "device": "cpu",
}


def train_lm(folder):
    """Run the recipe's train_lm.py, tiny, in a folder with text and tokens."""
    settings = {
        "manifest_folder": folder,
        "train_text": f"[{folder / 'train.txt.gz'}]",
        "valid_text": folder / "valid.txt",
        "output_folder": folder / "lm",
        **TINY_LM,
    }
    command = [ROOT / "recipes/AISHELL-1/train_lm.py"]
    run_python(
        [*command, *(p for k, v in settings.items() for p in (f"--{k}", str(v)))]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A language model that knows one sentence pattern: ab, abab or ababab."""
    folder = tmp_path_factory.mktemp("lm")
    CharTokenizer(folder / "chars_8.txt", 8, "zh").fit(["abcd"])
    with gzip.open(folder / "train.txt.gz", "wt") as file:
        file.write("ab\na b a b\n\nABABAB\n" * 60)
    (folder / "valid.txt").write_text("ab\nabab\nababab\n" * 4)
    train_lm(folder)
    return folder


@pytest.fixture
def tokenizer(folder):
    """That of the recogniser."""
    return CharTokenizer(folder / "chars_8.txt", 8, "zh")


def test_it_learns_and_says_so(folder):
    """The pattern leaves two even choices: go on or end after two or four letters."""
    record = json.loads((folder / "lm/run.json").read_text())
    figures = record["results"]["valid"]
    # Of (3 + 5 + 7) tokens, end of sentence included: ln 3 nats, twice, and ln 2.
    entropy = (math.log(3) + 2 * math.log(1.5) + math.log(2) * 2) / 15
    assert math.exp(entropy) < figures["perplexity"] < 1.4
    assert figures["tokens"] == 60 and figures["sentences"] == 12
    assert figures["oov_rate"] == 0
    lines = (folder / "lm/epochs.jsonl").read_text().splitlines()
    assert len(lines) == 12
    best = min(json.loads(line)["valid"]["perplexity"] for line in lines)
    assert best == pytest.approx(figures["perplexity"])


def test_perplexity_by_hand(folder, tokenizer):
    """Sentence by sentence, without batches or padding."""
    lm = load_scorer(folder / "lm", tokenizer).lm
    text = TokenText([folder / "valid.txt"], tokenizer)
    total = sum(lm_score(lm, item["tokens"].tolist()) for item in text)
    record = json.loads((folder / "lm/run.json").read_text())
    found = record["results"]["valid"]["perplexity"]
    assert found == pytest.approx(math.exp(-total / len(text.tokens)), rel=1e-4)


@torch.no_grad()
def lm_score(lm, tokens):
    """Log-probability of tokens [U], end of sentence included where it is given."""
    log_probs = lm(torch.tensor([[BOS, *tokens[:-1]]]))[0].log_softmax(-1)
    return log_probs[range(len(tokens)), tokens].sum().item()


@torch.no_grad()
def decoder_score(decoder, vectors, tokens):
    """Log-probability of tokens [U] by the recogniser, teacher-forced."""
    previous = torch.tensor([[BOS, *tokens[:-1]]])
    logits, _ = decoder(vectors[None, : len(tokens)], previous)
    return logits[0].log_softmax(-1)[range(len(tokens)), tokens].sum().item()


def emitted(tokens, fires):
    """What a search chose to give these tokens: an early end is chosen too."""
    return [*tokens, EOS] if len(tokens) < fires else [*tokens]


@pytest.fixture(scope="module")
def recogniser():
    """A decoder, vectors of three utterances, and their fires."""
    torch.manual_seed(0)
    decoder = CIFDecoder(8, 16, num_layers=1, nhead=2, d_ffn=32).eval()
    return decoder, torch.randn(3, 6, 16), torch.tensor([6, 4, 5])


@pytest.mark.parametrize("weight", [0.3, 2.0])
def test_fusion_is_a_sum(folder, tokenizer, recogniser, weight):
    """Both models by hand, each token and each end of sentence scored by both."""
    decoder, vectors, lengths = recogniser
    scorer = load_scorer(folder / "lm", tokenizer)
    found = BeamSearcher(decoder, 6, fuse(scorer, weight)).nbest(vectors, lengths)
    ended = 0
    for row, fires, hypotheses in zip(vectors, lengths.tolist(), found, strict=True):
        for hypothesis, score in hypotheses:
            assert not {BLANK, BOS} & set(hypothesis)
            tokens = emitted(hypothesis, fires)
            ended += tokens[-1] == EOS
            by_hand = decoder_score(decoder, row, tokens)
            by_hand += weight * lm_score(scorer.lm, tokens)
            assert score == pytest.approx(by_hand, abs=1e-3)
    assert ended  # the end of a sentence was among what was scored


def test_a_strong_language_model_decides(folder, tokenizer, recogniser):
    decoder, vectors, lengths = recogniser
    scorer = fuse(load_scorer(folder / "lm", tokenizer), 50.0)
    hypotheses, _ = BeamSearcher(decoder, 8, scorer)(vectors, lengths)
    assert {tokenizer.decode(h) for h in hypotheses} <= {"ab", "abab", "ababab"}


def test_no_weight_no_scorer(folder, tokenizer):
    assert fuse(load_scorer(folder / "lm", tokenizer), 0.0) is None
    assert fuse(None, 0.5) is None


def test_other_tokens_are_refused(folder, tmp_path):
    other = CharTokenizer(tmp_path / "chars_8.txt", 8, "zh").fit(["dddcccbba"])
    with pytest.raises(ValueError, match="train_lm.py --tokenizer_folder"):
        load_scorer(folder / "lm", other)


def test_no_language_model_there(tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError, match="no trained language model"):
        load_scorer(tmp_path / "nothing", tokenizer)
    assert not (tmp_path / "nothing").exists()


def test_a_run_keeps_its_tokens(folder, tokenizer, tmp_path):
    """Resumed after the vocabulary has been made again."""
    hparams = {"tokenizer": tokenizer, "output_folder": str(folder / "lm")}
    keep_tokenizer(hparams)
    other = CharTokenizer(tmp_path / "chars_8.txt", 8, "zh").fit(["dddcccbba"])
    with pytest.raises(ValueError, match="is not the vocabulary that"):
        keep_tokenizer({**hparams, "tokenizer": other})


@pytest.mark.parametrize(
    "sentences, message",
    [
        ("\n \n", "no sentence"),
        ("abab\n" * 9 + "ab，x\n", "5.0 % of the tokens.*Most often: '，' 'x'"),
        ("ab" * 60, "longest sentence has 121 tokens"),
    ],
)
def test_bad_text_fails_first(tmp_path, tokenizer, sentences, message):
    (tmp_path / "text").write_text(sentences, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        check_text(TokenText([tmp_path / "text"], tokenizer), "train_text", 100, 1.0)


def test_a_sentence_beyond_the_positions_is_refused(tmp_path, tokenizer):
    """However large a batch may be."""
    (tmp_path / "text").write_text("ab" * 1249 + "a\n")
    check_text(TokenText([tmp_path / "text"], tokenizer), "train_text", 9999, 1.0)
    (tmp_path / "text").write_text("ab" * 1250 + "\n")
    with pytest.raises(ValueError, match="2,501 tokens.*2,500 positions"):
        check_text(TokenText([tmp_path / "text"], tokenizer), "train_text", 9999, 1.0)


def test_manifests_are_text_too(tmp_path, tokenizer):
    """Their audio need not be there."""
    rows = ["ID,wav,wrd", "u1,a.wav,ab", "u2,b.wav,"]
    (tmp_path / "train.csv").write_text("\n".join(rows))
    assert TokenText([tmp_path / "train.csv"], tokenizer).lengths.tolist() == [3]


ARPA = """
\\data\\
ngram 1=7
ngram 2=4

\\1-grams:
-1.0\t<unk>
0\t<s>\t-0.3
-0.5\t</s>
-0.6\ta\t-0.2
-0.7\tb\t-0.4
-1.2\tc
-1.3\td

\\2-grams:
-0.1\t<s> a
-0.2\ta b
-0.3\tb a
-0.4\tb </s>

\\end\\
"""
LOG10 = {  # by hand: bigram, or unigram and back-off
    "<s> a": -0.1, "<s> b": -0.3 - 0.7, "a a": -0.2 - 0.6, "a b": -0.2,
    "b a": -0.3, "b b": -0.4 - 0.7, "b </s>": -0.4, "a </s>": -0.2 - 0.5,
    "<s> </s>": -0.3 - 0.5,
}  # fmt: skip


def test_ngram_fusion_is_a_sum(tmp_path, tokenizer, recogniser):
    """An n-gram starts from the begin of the sentence and scores its end."""
    pytest.importorskip("kenlm", reason="optional: pip install ufal-kenlm")
    (tmp_path / "lm.arpa").write_text(ARPA)
    decoder, vectors, lengths = recogniser
    scorer = fuse(load_scorer(tmp_path / "lm.arpa", tokenizer), 5.0)
    found = BeamSearcher(decoder, 8, scorer).nbest(vectors, lengths)
    checked = 0
    for row, fires, hypotheses in zip(vectors, lengths.tolist(), found, strict=True):
        for hypothesis, score in hypotheses:
            tokens = emitted(hypothesis, fires)
            words = [tokenizer.symbols[t] for t in hypothesis]
            words = ["<s>", *words, *(["</s>"] if tokens[-1] == EOS else [])]
            pairs = [" ".join(pair) for pair in zip(words, words[1:], strict=False)]
            if not set(pairs) <= LOG10.keys():
                continue
            by_hand = 5.0 * math.log(10) * sum(LOG10[pair] for pair in pairs)
            by_hand += decoder_score(decoder, row, tokens)
            assert score == pytest.approx(by_hand, abs=1e-3)
            checked += 1
    assert checked >= 5


def test_an_ngram_of_other_words_is_refused(tmp_path):
    pytest.importorskip("kenlm", reason="optional: pip install ufal-kenlm")
    (tmp_path / "lm.arpa").write_text(ARPA)
    tokenizer = CharTokenizer(tmp_path / "chars_8.txt", 8, "zh").fit(["wxyz"])
    with pytest.raises(ValueError, match="does not know 4 of the 4"):
        load_scorer(tmp_path / "lm.arpa", tokenizer)
