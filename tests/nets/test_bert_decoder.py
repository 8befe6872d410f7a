"""The decoder that is a BERT: what it computes, shows, learns and refuses."""

import math

import pytest
import torch
import transformers
from tiny_bert import LETTERS, SPECIALS, make_bert, make_decoder

from cif_lobes.decoding.searcher import BeamSearcher, GreedySearcher
from cif_lobes.nets.bert_decoder import BERTDecoder
from cif_lobes.nets.bert_weights import find_pieces, load_bert

SYMBOLS = [*SPECIALS, *"今天气好买房吗", "cat", "##s", "##'", *LETTERS]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_bert(tmp_path_factory.mktemp("berts") / "bert")


@pytest.fixture
def decoder(source):
    """One with the weights of a BERT."""
    decoder = make_decoder(source, len(SYMBOLS))
    load_bert(decoder, SYMBOLS)
    return decoder.eval()


def previous(tokens, bos=1):
    tokens = tokens.roll(1, dims=1)
    tokens[:, 0] = bos
    return tokens


def test_it_computes_what_the_bert_computes(source, decoder):
    """Shown every token, states and logits are those of transformers."""
    model = transformers.BertForMaskedLM.from_pretrained(source).eval()
    vocabulary = transformers.AutoTokenizer.from_pretrained(source).get_vocab()
    pieces = torch.tensor(find_pieces(SYMBOLS, vocabulary))
    tokens = torch.tensor([[4, 5, 6, 11, 12, 2], [7, 8, 2, 0, 0, 0]])
    lengths = torch.tensor([6, 3])
    # True tokens are shown in train mode, here without its dropout.
    decoder.training, decoder.true_share = True, (1.0, 1.0)
    decoder.language_share = 1.0
    logits, states = decoder(torch.randn(2, 6, 8), previous(tokens), lengths)
    for row, length in enumerate(lengths):
        ids = torch.cat([pieces[1:2], pieces[tokens[row, :length]]])
        read = model(input_ids=ids[None], output_hidden_states=True)
        torch.testing.assert_close(
            states[row, :length], read.hidden_states[-1][0, 1:], atol=1e-5, rtol=1e-5
        )
        theirs = read.logits[0, 1:][:, pieces]
        torch.testing.assert_close(logits[row, :length], theirs, atol=1e-4, rtol=1e-4)


def test_the_acoustic_head_begins_as_the_language_s(decoder):
    x = torch.randn(5, 16)
    ours = decoder.acoustic_out(decoder.acoustic(x))
    words = decoder.bert.embeddings.words.weight
    theirs = decoder.bert.head(x) @ words.T + decoder.bert.bias
    torch.testing.assert_close(ours, theirs)


def test_alone_equals_in_a_batch(decoder):
    """Whatever stands behind the ends, 0 and 1 steps included."""
    lengths = torch.tensor([7, 4, 1, 0])
    vectors = torch.randn(4, 7, 8)
    for row, length in zip(vectors, lengths, strict=True):
        row[length:] = math.nan
    logits, states = decoder(vectors, None, lengths)
    assert logits.shape == (4, 7, len(SYMBOLS)) and states.shape == (4, 7, 16)
    assert logits.isfinite().all()
    for b, length in enumerate(lengths):
        alone, _ = decoder(vectors[b : b + 1, :length], None)
        torch.testing.assert_close(logits[b, :length], alone[0], atol=1e-5, rtol=1e-5)


def test_every_step_sees_every_other(decoder):
    decoder.confidence = 1.0
    vectors = torch.randn(1, 4, 8)
    before = decoder(vectors, None)[1]
    vectors[0, 3] += 1.0
    assert ((decoder(vectors, None)[1] - before).abs().amax(2) > 1e-4).all()


def test_the_share_of_true_tokens_falls():
    decoder = make_decoder(true_share=(0.9, 0.1), falls=(0.25, 0.75))
    shares = []
    for decoder.progress in (0.0, 0.25, 0.5, 0.75, 1.0, 1.1):
        shares.append(round(decoder.share_now(), 6))
    assert shares == [0.9, 0.9, 0.5, 0.1, 0.1, 0.1]
    acoustic = torch.zeros(50, 40, 20)
    tokens = torch.randint(4, 20, (50, 40))
    decoder.progress = 0.5
    shown, true = decoder._shown(acoustic, previous(tokens))
    assert 0.45 < shown.float().mean() < 0.55
    assert torch.equal(true[:, :-1], tokens[:, :-1]) and (true[:, -1] == 2).all()


def test_true_tokens_are_shown_in_training_only(decoder):
    decoder.true_share, decoder.confidence = (1.0, 1.0), 1.0
    vectors = torch.randn(1, 5, 8)
    one, other = torch.tensor([[1, 4, 5, 6, 7]]), torch.tensor([[1, 8, 9, 10, 4]])
    assert torch.equal(decoder(vectors, one)[0], decoder(vectors, other)[0])
    assert torch.equal(decoder(vectors, one)[0], decoder(vectors, None)[0])
    decoder.training = True  # without dropout
    assert not torch.equal(decoder(vectors, one)[1], decoder(vectors, other)[1])
    decoder.true_share = (0.0, 0.0)
    assert torch.equal(decoder(vectors, one)[1], decoder(vectors, other)[1])


def test_a_confident_step_shows_its_token(decoder):
    vectors = torch.randn(1, 6, 8)
    acoustic = decoder.acoustic_out(decoder.acoustic(decoder.project(vectors)))
    probable, tokens = acoustic.softmax(-1).max(-1)
    decoder.confidence = probable.median().item()
    shown, said = decoder._shown(acoustic, None)
    assert 0 < shown.sum() < 6 and torch.equal(said, tokens)
    # One that is sure of nothing reads vectors, one of everything reads tokens alone.
    states = []
    for decoder.confidence in (1.0, 0.0, 0.0):
        states.append(decoder(vectors, None)[1])
        vectors = vectors + 1e-5  # the best tokens are still the same
    assert not torch.allclose(states[0], states[1], atol=1e-3)
    assert torch.equal(states[1], states[2])


def gradients(decoder, vectors, tokens):
    """Those of all parameters and of the vectors, by name; None where there is none."""
    decoder.zero_grad()
    vectors = vectors.clone().requires_grad_()
    decoder(vectors, previous(tokens))[0].square().sum().backward()
    found = {name: p.grad for name, p in decoder.named_parameters()}
    return {**found, "vectors": vectors.grad}


def test_gradients(source, decoder):
    """Numerically right; none into embeddings of a pretrained BERT or a BERT that waits."""
    double = make_decoder(None, 6, num_layers=1, trained=True).double().eval()
    double.confidence = 1.0
    vectors = torch.randn(2, 3, 8, dtype=torch.double, requires_grad=True)
    weight = double.bert.layers[0].linear1.weight
    lengths = torch.tensor([3, 1])

    def logits(vectors, weight):
        return double(vectors, None, lengths)[0][:, :1]

    assert torch.autograd.gradcheck(logits, (vectors, weight))

    vectors, tokens = torch.randn(2, 4, 8), torch.randint(4, 12, (2, 4))
    decoder.training, decoder.true_share = True, (0.0, 0.0)
    found = gradients(decoder, vectors, tokens)
    frozen = {name for name, g in found.items() if g is None}
    assert len(frozen) == 4 and all(n.startswith("bert.embeddings.") for n in frozen)
    assert found["bert.layers.0.linear1.weight"].abs().sum() > 0

    decoder.learning = False
    waiting = gradients(decoder, vectors, tokens)
    assert {name for name, g in waiting.items() if g is None} == frozen
    learns = [n for n in waiting if n.startswith("bert.") and n not in frozen]
    assert not any(waiting[name].any() for name in learns)
    # What the vectors hear then is of the acoustic head alone.
    assert waiting["acoustic_out.weight"].any() and waiting["vectors"].any()
    assert not torch.allclose(waiting["vectors"], found["vectors"])


def test_a_frozen_bert_still_teaches_what_is_below(source):
    decoder = make_decoder(source, len(SYMBOLS), trained=False, language_share=1.0)
    load_bert(decoder, SYMBOLS)
    assert decoder.bert_parameters() == []
    decoder.true_share = (0.0, 0.0)
    tokens = torch.randint(4, 12, (2, 4))
    found = gradients(decoder, torch.randn(2, 4, 8), tokens)
    assert found["project.weight"].any() and found["vectors"].any()
    assert not any(p.requires_grad for p in decoder.bert.parameters())


def test_what_learns_at_its_own_rate(source):
    pretrained = make_decoder(source)
    names = {id(p): name for name, p in pretrained.named_parameters()}
    apart = {names[id(p)] for p in pretrained.bert_parameters()}
    assert all(n.startswith(("bert.layers.", "bert.head.", "bert.bias")) for n in apart)
    random = make_decoder(None)
    assert len(random.bert_parameters()) == len(list(random.bert.parameters()))


def test_without_bert_a_head_is_left():
    decoder = make_decoder(language_share=0.0, has_head=False).eval()
    assert decoder.bert is None and decoder.bert_parameters() == []
    vectors = torch.randn(1, 3, 8)
    logits, _ = decoder(vectors, None)
    torch.testing.assert_close(logits, decoder.acoustic_out(decoder.project(vectors)))
    names = {name.split(".")[0] for name, _ in decoder.named_parameters()}
    assert names == {"project", "acoustic_out"}


def test_searches(decoder):
    """Greedy is the best token of every step; a beam has alternatives."""
    vectors, lengths = torch.randn(3, 5, 8), torch.tensor([5, 2, 0])
    hypotheses, scores = GreedySearcher(decoder)(vectors, lengths)
    logits = decoder(vectors, None, lengths)[0]
    logits[..., :2] = -math.inf
    for row, length, hypothesis in zip(logits, lengths, hypotheses, strict=True):
        said = row[:length].argmax(-1).tolist()
        assert hypothesis == (said[: said.index(2)] if 2 in said else said)
    assert hypotheses[2] == [] and scores[2] == 0
    assert len(BeamSearcher(decoder, 4).nbest(vectors, lengths)[0]) == 4


def test_the_first_layers_of_a_bert(source, decoder):
    small = make_decoder(source, len(SYMBOLS), num_layers=1).eval()
    load_bert(small, SYMBOLS)
    weight = small.bert.layers[0].linear2.weight
    assert torch.equal(weight, decoder.bert.layers[0].linear2.weight)


def test_a_bert_without_head(tmp_path):
    """Its hash does not depend on what transformers fills in."""
    headless = make_bert(tmp_path / "bert", head=False)
    with pytest.raises(
        ValueError, match="without its masked-LM head. --bert_head False"
    ):
        load_bert(make_decoder(headless, len(SYMBOLS)), SYMBOLS)
    hashes = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        decoder = make_decoder(headless, len(SYMBOLS), has_head=False)
        hashes.add(load_bert(decoder, SYMBOLS)[0])
    assert len(hashes) == 1
    words = decoder.bert.embeddings.words.weight
    assert torch.equal(decoder.acoustic_out.weight, words)


def test_tokens_that_it_cannot_write(source):
    """A few keep their random embeddings; many are refused."""
    symbols = [*SYMBOLS[:-1], "龘"]
    decoder = make_decoder(source, len(symbols))
    random = decoder.bert.embeddings.words.weight.clone()
    _, missing = load_bert(decoder, symbols)
    assert missing == ["龘"]
    same = (decoder.bert.embeddings.words.weight == random).all(1)
    assert same.nonzero().tolist() == [[len(symbols) - 1]]
    symbols = [*SYMBOLS, *"甲乙丙"]
    with pytest.raises(ValueError, match=r"cannot write 3 of 21 tokens: 甲 乙 丙"):
        load_bert(make_decoder(source, 21), symbols)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_layers": 4}, "has 3 layers, bert_layers is 4"),
        ({"nhead": 4}, "bert_heads is 4, that of the model is 2"),
        ({"d_ffn": 8}, "bert_ffn is 8, that of the model is 32"),
        ({"width": 32}, "bert_width is 32, that of the model is 16"),
    ],
)
def test_other_sizes_are_refused(source, options, message):
    sizes = {"width": 16, "num_layers": 3, "nhead": 2, "d_ffn": 32, **options}
    decoder = BERTDecoder(len(SYMBOLS), 8, source, **sizes)
    with pytest.raises(ValueError, match=message):
        load_bert(decoder, SYMBOLS)


def test_what_is_no_such_bert_is_refused(tmp_path):
    relu = make_bert(tmp_path / "relu", hidden_act="relu")
    with pytest.raises(ValueError, match="its hidden_act is relu, must be gelu"):
        load_bert(make_decoder(relu), SYMBOLS)
    short = make_bert(tmp_path / "short", max_position_embeddings=64)
    with pytest.raises(ValueError, match="reads 64 pieces, 512 are expected"):
        load_bert(make_decoder(short), SYMBOLS)
    with pytest.raises(FileNotFoundError, match="does not exist: correct --bert"):
        load_bert(make_decoder(str(tmp_path / "none")), SYMBOLS)


def test_too_many_tokens_and_wrong_settings():
    with pytest.raises(ValueError, match="512 tokens in an utterance, BERT reads 511"):
        make_decoder().eval()(torch.zeros(1, 512, 8), None)
    with pytest.raises(ValueError, match="true_share_falls is"):
        make_decoder(falls=(0.5, 0.5))
