"""Hotwords: what is earned, what is taken back, and where a phrase ends."""

import itertools
import random

import pytest
import torch

from cif_lobes.data.tokens import CharTokenizer, SentencePieceTokenizer, WordTokenizer
from cif_lobes.decoding.fusion import fuse
from cif_lobes.decoding.greedy import GreedyPath
from cif_lobes.decoding.hotwords import HotwordTree, load_hotwords, read_hotwords
from cif_lobes.decoding.searcher import BeamSearcher, GreedySearcher


def total(tree, tokens, eos=2):
    """What a whole sequence earns: with an end of sentence, or with none, it is the same."""
    state, score, ended = tree.start, 0.0, 0.0
    for place, token in enumerate([*tokens, eos]):
        if place == len(tokens) - 1:
            ended = score + float(tree.gains([state], [True])[0, token])
        score += float(tree.gains([state])[0, token])
        state = tree.next(state, token)
    assert ended == pytest.approx(score, abs=1e-4), tokens
    return score


def letters(tmp_path, language="zh", alphabet="abcd"):
    path = tmp_path / f"{language}.txt"
    texts = [alphabet if language == "zh" else " ".join(alphabet)]
    return CharTokenizer(path, 4 + len(alphabet) + 1, language).fit(texts)


def by_hand(phrases, text):
    """Weight of the places of each phrase; None where places overlap."""
    places = [
        (i, i + len(p), len(p) * w)
        for p, w in phrases
        for i in range(len(text))
        if text.startswith(p, i)
    ]
    for (a, b, _), (c, d, _) in itertools.combinations(places, 2):
        if a < d and c < b:
            return None
    return sum(weight for *_, weight in places)


def test_a_phrase_earns_its_tokens_wherever_it_stands(tmp_path):
    """Against a search in the text; prefixes and false starts earn nothing."""
    tokenizer, rng, compared = letters(tmp_path), random.Random(1), 0
    for _ in range(1500):
        size = rng.randint(1, 4)
        spelled = {
            "".join(rng.choices("abcd", k=rng.randint(1, 4))) for _ in range(size)
        }
        phrases = [(p, 1.0) for p in sorted(spelled)]
        tree = HotwordTree(phrases, tokenizer)
        text = "".join(rng.choices("abcd", k=rng.randint(0, 9)))
        expected = by_hand(phrases, text)
        got = total(tree, tokenizer.encode(text))
        if expected is not None:
            compared += 1
            assert got == pytest.approx(expected), (phrases, text)
        # At most every place of every phrase, and no less than one of its phrases alone.
        places = sum(
            len(p) for p, _ in phrases for i in range(9) if text.startswith(p, i)
        )
        assert -1e-5 <= got <= places + 1e-5, (phrases, text)
    assert compared > 500


def test_gains_are_those_of_every_token_by_itself(tmp_path):
    tokenizer = letters(tmp_path)
    tree = HotwordTree([("abc", 1.0), ("bcd", 2.0), ("b", 0.5), ("abca", 1)], tokenizer)
    states = list(range(len(tree)))
    rows = tree.gains(states)
    assert rows.shape == (len(tree), tokenizer.vocab_size)
    for state in states:
        assert (tree.gains([state])[0] == rows[state]).all()


@pytest.mark.parametrize("kind", [CharTokenizer, SentencePieceTokenizer, WordTokenizer])
def test_a_phrase_is_made_of_whole_words(tmp_path, kind):
    texts = ["ann plans the annual planning", "joanna and ann ran", "an old plan"] * 20
    tokenizer = kind(tmp_path / "tokens", 40, "en").fit(texts)
    tree = HotwordTree([("ann", 1.0)], tokenizer)
    one = total(tree, tokenizer.encode("ann"))
    assert one > 0
    for text, places in [
        ("planning", 0),
        ("annual", 0),
        ("joanna and", 0),
        ("plans ann the annual", 1),
        ("ann ann", 2),
        ("the planning ann", 1),
    ]:
        got = total(tree, tokenizer.encode(text))
        assert got == pytest.approx(places * one, abs=1e-5), text


class Fires(torch.nn.Module):
    """A decoder that says what its vectors say."""

    autoregressive = False

    def forward(self, vectors, previous, lengths):
        return vectors, vectors


def test_a_beam_prefers_the_phrase(tmp_path):
    """Where the recogniser hesitates, not where it is sure; in a batch as alone."""
    tokenizer = letters(tmp_path)
    a, b, c, d = tokenizer.encode("abcd")
    vectors = torch.full((2, 4, tokenizer.vocab_size), -9.0)
    for u, (best, second) in enumerate([(a, b), (b, c), (c, d)]):
        vectors[:, u, best], vectors[:, u, second] = 0.0, -0.5
    vectors[:, 3, tokenizer.eos_index] = 0.0
    vectors[1, 1, c] = -9.0
    lengths = torch.tensor([4, 4])
    tree = HotwordTree([("cd", 1.0)], tokenizer)
    assert BeamSearcher(Fires(), 4)(vectors, lengths)[0] == [[a, b, c]] * 2
    searcher = BeamSearcher(Fires(), 4, fuse(hotwords=tree, hotword_weight=1.0))
    assert searcher(vectors, lengths)[0] == [[a, c, d], [a, b, c]]
    for row in range(2):
        alone = searcher(vectors[row : row + 1], lengths[row : row + 1])
        assert alone[0] == [searcher(vectors, lengths)[0][row]]
    assert fuse(hotwords=tree, hotword_weight=0) is None


def test_a_phrase_that_is_not_complete_at_the_last_fire_earns_nothing(tmp_path):
    """No end of sentence fits behind it; of two utterances, each has its own last fire."""
    tokenizer = letters(tmp_path)
    a, b, c, d = tokenizer.encode("abcd")
    vectors = torch.full((2, 3, tokenizer.vocab_size), -9.0)
    vectors[:, 0, a], vectors[:, 0, b] = 0.0, -0.5
    vectors[:, 1, b], vectors[:, 1, c] = 0.0, -0.5
    vectors[:, 2, a], vectors[:, 2, d] = 0.0, -0.5
    tree = HotwordTree([("cd", 1.0)], tokenizer)
    scorer = fuse(hotwords=tree, hotword_weight=1.0)
    for beam in (1, 4):
        found, scores = BeamSearcher(Fires(), beam, scorer)(
            vectors, torch.tensor([3, 2])
        )
        assert found == [[a, c, d], [a, b]]
        plain = BeamSearcher(Fires(), beam)(vectors[1:], torch.tensor([2]))
        assert scores[1] == pytest.approx(plain[1].item())


def test_one_utterance_fire_by_fire_equals_a_batch(tmp_path):
    """`GreedyPath` and `GreedySearcher`; scores, too; early ends allowed or not."""
    tokenizer = letters(tmp_path)
    tree = HotwordTree([("abc", 1.0), ("bd", 2.0), ("dd", 0.5)], tokenizer)
    generator, moved = torch.Generator().manual_seed(0), 0
    vectors = 3 * torch.randn(60, 8, tokenizer.vocab_size, generator=generator)
    lengths = torch.randint(0, 9, (60,), generator=generator)
    plain, _ = GreedySearcher(Fires())(vectors, lengths)
    for weight, threshold in itertools.product((0.0, 0.7, 3.0), (None, 1.5)):
        scorer = fuse(hotwords=tree, hotword_weight=weight)
        searcher = GreedySearcher(Fires(), scorer=scorer, eos_threshold=threshold)
        found, scores = searcher(vectors, lengths)
        moved += found != plain
        for row, length in enumerate(lengths.tolist()):
            path = GreedyPath(0, 1, 2, threshold, tree, weight)
            choices = []
            for u in range(length):
                choices.append(path.choose(vectors[row, u].numpy(), u == length - 1))
                path.follow(choices[-1].token)
                if path.ended:
                    break
            tokens = [choice.token for choice in choices if choice.token != 2]
            assert tokens == found[row]
            total = sum(choice.score for choice in choices)
            assert total == pytest.approx(scores[row].item(), abs=1e-4)
            alone = searcher(vectors[row : row + 1], lengths[row : row + 1])
            assert alone[0] == [found[row]]
    assert moved == 4  # with a weight; with none it is what it is without a tree


def test_a_list_is_as_good_as_a_file(tmp_path):
    assert read_hotwords(["ab ", ("bc", 2), "ab", ""]) == [("ab", 1.0), ("bc", 2.0)]
    for phrases, message in [
        ([], r"hotwords \(a list\): no phrase in it"),
        ([("ab", None)], r"\(a list\), line 1: weight None is no positive number"),
        (["xyz"], "none of 1 phrases can be written"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_hotwords(phrases, letters(tmp_path))


def test_what_a_file_may_hold(tmp_path, caplog):
    path = tmp_path / "words.txt"
    path.write_text("ab\t2\n\nbc\nab\nb c x\n", encoding="utf-8")
    assert read_hotwords(path) == [("ab", 2.0), ("bc", 1.0), ("b c x", 1.0)]
    tree = load_hotwords(path, letters(tmp_path))
    assert tree.skipped == ["b c x"]
    assert (
        "1 of 3 phrases cannot be written" in caplog.text and "'b c x'" in caplog.text
    )


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "no phrase in it"),
        (b"ab\t-1\n", "line 1: weight '-1' is no positive number"),
        (b"ab\tmuch\n", "line 1: weight 'much' is no positive number"),
        (b"\xc4\xe3\xba\xc3\n", "is not UTF-8"),
        (b"xyz\n", "none of 1 phrases can be written"),
    ],
)
def test_what_it_may_not(tmp_path, content, message):
    path = tmp_path / "words.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_hotwords(path, letters(tmp_path))
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_hotwords(tmp_path / "none.txt", letters(tmp_path))


def test_a_hundred_thousand_phrases_are_taken_and_their_cost_is_said(tmp_path, caplog):
    tokenizer, rng = letters(tmp_path, alphabet="abcdefghijklmnop"), random.Random(1)
    path = tmp_path / "many.txt"
    lines = ("".join(rng.choices("abcdefghijklmnop", k=8)) for _ in range(100_000))
    path.write_text("\n".join(lines))
    tree = load_hotwords(path, tokenizer)
    assert " phrases, of " in caplog.text
    assert total(tree, tokenizer.encode(path.read_text()[:8])) >= 8
