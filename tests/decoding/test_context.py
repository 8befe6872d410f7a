"""ColDec in the search: the mixture against teacher forcing, files, and refusals."""

import itertools

import pytest
import torch
from conftest import spoil_padding

from cif_lobes.data.tokens import BOS, EOS, CharTokenizer
from cif_lobes.decoding.context import RECOGNIZER, Context, load_coldec, load_context
from cif_lobes.decoding.fusion import fuse
from cif_lobes.decoding.hotwords import HotwordTree
from cif_lobes.decoding.searcher import BeamSearcher, GreedySearcher
from cif_lobes.nets.coldec import ColDec, pad_phrases
from cif_lobes.nets.decoder import CIFDecoder
from cif_lobes.storage.checkpoints import SafeCheckpointer

V, D = 6, 8
ALL = 200  # hypotheses of at most three tokens out of three: a beam that drops none
LENGTHS = torch.tensor([3, 0, 2])
PHRASES = [[3, 4], [5], [4, 4, 5]]
YAML = """
coldec: !new:cif_lobes.nets.coldec.ColDec
    vocab_size: 8
    vector_size: 8
    d_model: 16
    phrase_layers: 1
    decoder_layers: 1
    nhead: 2
    d_ffn: 32
"""


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    decoder = CIFDecoder(V, D, 1, nhead=2, d_ffn=16).eval()
    decoder.project_out.weight.data.mul_(3)
    return decoder.requires_grad_(False)


def make_coldec(fine=False):
    torch.manual_seed(1)
    coldec = ColDec(V, D, 16, 1, 1, nhead=2, d_ffn=32, fine=fine, fine_phrases=2)
    coldec.decoder.project_out.weight.data.mul_(3)
    return coldec.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def vectors():
    torch.manual_seed(2)
    return spoil_padding(torch.randn(3, 3, D), LENGTHS)


def by_hand(decoder, coldec, vectors, fires, tokens, weight, ends=True):
    """(1 - weight) log p + weight log p_context of a hypothesis, by teacher forcing."""
    targets = [*tokens, EOS] if ends and len(tokens) < fires else [*tokens]
    if not targets:
        return 0.0
    n = len(targets)
    previous = torch.tensor([[BOS, *targets[:-1]]])
    ours = decoder(vectors[None, :n], previous)[0].log_softmax(-1)
    # FineCoS looks at all fires, also at those behind an early end.
    longer = torch.nn.functional.pad(previous, (0, fires - n))
    sees = torch.ones(1, len(PHRASES), dtype=torch.bool)
    context, _ = coldec(
        vectors[None, :fires],
        torch.tensor([fires]),
        longer,
        *pad_phrases(PHRASES),
        sees,
    )
    mixed = (1 - weight) * ours + weight * context[:, :n].log_softmax(-1)
    return float(mixed[0, range(n), targets].sum())


@pytest.mark.parametrize("fine", [False, True], ids=["coldec", "finecos"])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_search_is_exact(decoder, vectors, fine, weight):
    """A beam that drops nothing finds all hypotheses, with the scores by hand."""
    coldec = make_coldec(fine)
    context = Context(coldec, PHRASES, weight)
    found = BeamSearcher(decoder, ALL, context=context, eos_threshold=None).nbest(
        vectors, LENGTHS
    )
    for row, fires, beam in zip(vectors, LENGTHS.tolist(), found, strict=True):
        everything = [
            list(tokens)
            for n in range(fires + 1)
            for tokens in itertools.product((3, 4, 5), repeat=n)
        ]
        assert sorted(tokens for tokens, _ in beam) == sorted(everything)
        for tokens, score in beam:
            expected = by_hand(decoder, coldec, row, fires, tokens, weight)
            assert score == pytest.approx(expected, abs=1e-4)


def test_greedy_is_the_mixture_s_best_token(decoder, vectors):
    coldec = make_coldec()
    context = Context(coldec, PHRASES, 0.5)
    found, _ = GreedySearcher(decoder, context=context)(vectors, LENGTHS)
    for row, fires, tokens in zip(vectors, LENGTHS.tolist(), found, strict=True):
        chosen = [*tokens, EOS][:fires]
        for n, token in enumerate(chosen):
            ways = [
                by_hand(decoder, coldec, row, fires, [*chosen[:n], y], 0.5, ends=False)
                for y in (EOS, 3, 4, 5)
            ]
            assert token == (EOS, 3, 4, 5)[ways.index(max(ways))]


def test_no_weight_is_no_context(decoder, vectors):
    plain = BeamSearcher(decoder, 4)(vectors, LENGTHS)
    mixed = BeamSearcher(decoder, 4, context=Context(make_coldec(), PHRASES, 0.0))
    found = mixed(vectors, LENGTHS)
    assert found[0] == plain[0]
    torch.testing.assert_close(found[1], plain[1])


def test_an_empty_list_and_purification_are_taken(decoder, vectors):
    coldec = make_coldec()
    nothing = Context(coldec, [], 0.5)
    BeamSearcher(decoder, 4, context=nothing)(vectors, LENGTHS)
    pure = Context(coldec, PHRASES, 0.5, purify=1).start(vectors, LENGTHS, 1)
    every = Context(coldec, PHRASES, 0.5).start(vectors, LENGTHS, 1)
    assert not torch.allclose(pure.joined[0], every.joined[0])


def test_a_tree_is_added_on_top(decoder, vectors, tmp_path):
    tokenizer = CharTokenizer(tmp_path / "chars", V, "zh").fit(["ab"])
    tree = HotwordTree([("ab", 1.0)], tokenizer)
    coldec = make_coldec()
    context = Context(coldec, PHRASES, 0.3)
    scorer = fuse(hotwords=tree, hotword_weight=2.0)
    beam = BeamSearcher(
        decoder, ALL, scorer, context=context, eos_threshold=None
    ).nbest(vectors, LENGTHS)
    a, b = tokenizer.encode("ab")
    scores = {tuple(tokens): score for tokens, score in beam[0]}
    plain = by_hand(decoder, coldec, vectors[0], 3, [a, b], 0.3)
    assert scores[a, b] == pytest.approx(plain + 4.0, abs=1e-4)


@pytest.fixture
def run(tmp_path):
    """A run folder of an untrained ColDec, and its tokenizer."""
    folder = tmp_path / "coldec"
    (folder / "save").mkdir(parents=True)
    (folder / "hyperparams.yaml").write_text(YAML)
    (folder / RECOGNIZER).write_text("0123 results/cif\n")
    model = torch.nn.ModuleDict({"coldec": ColDec(8, 8, 16, 1, 1, nhead=2, d_ffn=32)})
    SafeCheckpointer(folder / "save", {"model": model}).save_checkpoint({"loss": 1.0})
    tokenizer = CharTokenizer(tmp_path / "chars_8.txt", 8, "zh").fit(["abcd"])
    return folder, tokenizer, model["coldec"]


def test_a_run_is_loaded_as_it_was_saved(run):
    folder, _, saved = run
    loaded = load_coldec(folder, "0123")
    assert not loaded.training
    for name, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_what_cannot_be_written_is_skipped_and_said(run, tmp_path, caplog):
    folder, tokenizer, _ = run
    (tmp_path / "list.txt").write_text("ab\nxyz\t2\ncd\n")
    context = load_context(folder, "0123", tmp_path / "list.txt", tokenizer)
    assert len(context.phrases.vectors) == 2
    assert "1 of 3 phrases cannot be written" in caplog.text and "'xyz'" in caplog.text


@pytest.mark.parametrize(
    "text, message",
    [("\n\n", "no phrase in it"), ("xyz\nq\n", "none of 2 phrases can be written")],
)
def test_a_list_of_nothing_is_refused(run, tmp_path, text, message):
    folder, tokenizer, _ = run
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_context(folder, "0123", tmp_path / "list.txt", tokenizer)


def test_a_coldec_of_another_recogniser_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="another recogniser"):
        load_coldec(run[0], "4567")
    with pytest.raises(FileNotFoundError, match="no trained ColDec"):
        load_coldec(tmp_path, "0123")


# --- an end of sentence before the last fire ---


def test_an_early_end_must_be_the_best_token():
    """A decoder that always gives the end a tenth: five steps cost more than that."""
    decoder = CIFDecoder(V, D, 1, nhead=2, d_ffn=16).eval().requires_grad_(False)
    log_probs = torch.full((V,), 1e-6)
    log_probs[EOS], log_probs[3], log_probs[4] = 0.1, 0.45, 0.43
    log_probs = log_probs.log()
    decoder.step = lambda vector, *_: (log_probs.expand(len(vector), V), _State())
    vectors, lengths = torch.zeros(1, 5, D), torch.tensor([5])
    early, _ = BeamSearcher(decoder, ALL, eos_threshold=None)(vectors, lengths)
    whole, _ = BeamSearcher(decoder, ALL)(vectors, lengths)
    assert early == [[]] and whole == [[3] * 5]
    log_probs[EOS], log_probs[3] = log_probs[3].item(), log_probs[EOS].item()
    ended, _ = BeamSearcher(decoder, ALL)(vectors, lengths)
    assert ended == [[]]


class _State:
    def reorder(self, order):
        pass
