"""Teacher pieces and recognition tokens meet on the characters they share."""

import random

import pytest

from cif_lobes.teachers.alignment import align, token_spans


def characters(text):
    return [(i, i + 1) for i in range(len(text))]


def test_characters_against_characters_are_one_to_one():
    spans = characters("而对楼市")
    assert align(spans, spans) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]


@pytest.mark.parametrize(
    "tokens, pieces, expected",
    [
        # 买 t v 吗 | 买 tv 吗: letters share the piece of their word.
        (characters("买tv吗"), [(0, 1), (1, 3), (3, 4)], [0, 1, 1, 2, 3]),
        # One token, two pieces: both.
        ([(0, 4), (5, 9)], [(0, 2), (2, 4), (5, 9)], [(0, 2), 2, 3]),
        # Borders that cross: ab|cd against a|bc|d.
        ([(0, 2), (2, 4)], [(0, 1), (1, 3), (3, 4)], [(0, 2), (1, 3), 3]),
        # The teacher drops character 0, then 2: the nearest, then the following one.
        (characters("?a?b"), [(1, 2), (3, 4)], [0, 0, 1, 1, 2]),
        # ... at the end there is only the one before.
        (characters("ab??"), [(0, 1), (1, 2)], [0, 1, 1, 1, 2]),
        # ... and a bare space mark goes to the nearer side.
        ([(0, 1), (1, 2), (4, 5)], [(0, 1), (4, 5)], [0, 0, 1, 2]),
        # A token without characters.
        ([(0, 0), (0, 2), (2, 2), (2, 4)], [(0, 2), (2, 4)], [0, 0, 1, 1, 2]),
        # Several pieces of one character: all of them.
        (characters("㎏x"), [(0, 1), (0, 1), (1, 2)], [(0, 2), 2, 3]),
        # Nothing kept: the state for end of sentence.
        (characters("??"), [], [0, 0, 0]),
        # No tokens.
        ([], [], [0]),
        ([], [(0, 2)], [1]),
    ],
)
def test_each_token_gets_the_pieces_over_its_characters(tokens, pieces, expected):
    expected = [(e, e + 1) if isinstance(e, int) else e for e in expected]
    assert align(tokens, pieces) == expected


def test_equal_segmentations_are_one_to_one_even_within_a_character():
    spans = [(0, 1), (0, 1), (1, 3)]
    assert align(spans, spans) == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_any_two_segmentations_give_one_range_per_token():
    rng = random.Random(0)

    def segment(length):
        """Random spans in order, some characters left out."""
        cuts = sorted(rng.choices(range(length + 1), k=rng.randint(0, 8)))
        spans = list(zip(cuts, cuts[1:], strict=False))
        return [s for s in spans if rng.random() < 0.8]

    for _ in range(2000):
        length = rng.randint(0, 12)
        tokens, pieces = segment(length), segment(length)
        ranges = align(tokens, pieces)
        assert len(ranges) == len(tokens) + 1
        assert ranges[-1] == (len(pieces), len(pieces) + 1)
        if tokens == pieces:
            continue
        for (start, end), (first, last) in zip(tokens, ranges, strict=False):
            assert 0 <= first < last <= max(len(pieces), 1)
            overlapping = [
                i for i, (s, e) in enumerate(pieces) if s < end and start < e
            ]
            if overlapping:
                assert list(range(first, last)) == overlapping


class Words:
    """Stands in for a tokenizer whose two methods are given."""

    def __init__(self, ids, spans):
        self.encode, self.offsets = lambda text: ids, lambda text: spans


def test_spans_are_those_of_the_tokenizer():
    assert token_spans(Words([5, 6], [[0, 2], (3, 5)]), "ab cd", "u") == [
        (0, 2),
        (3, 5),
    ]


@pytest.mark.parametrize(
    "ids, spans, message",
    [
        ([5, 6, 7], [(0, 2), (3, 5)], "3 tokens but 2 character spans"),
        ([5, 6], [(3, 5), (0, 2)], "do not run in order"),
        ([5, 6], [(0, 2), (3, 6)], "the 5 characters of 'ab cd'"),
    ],
)
def test_a_tokenizer_that_contradicts_itself_is_refused(ids, spans, message):
    with pytest.raises(ValueError, match=message) as error:
        token_spans(Words(ids, spans), "ab cd", "BAC009S0002W0122")
    assert "BAC009S0002W0122" in str(error.value)
