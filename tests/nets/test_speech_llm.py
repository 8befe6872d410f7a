"""CIF vectors in a language model's prompt."""

import sys
import time

import pytest
import torch
import transformers
from tiny_llm import make_llm

from cif_lobes.nets.adapters import LinearAdapter
from cif_lobes.nets.lora import LoRA
from cif_lobes.nets.speech_llm import SpeechLLM

PROMPT = "S:{speech}T:"
CHAT = "<s>{% for m in messages %}S{{ m['content'] }}{% endfor %}T"


def set_template(folder, template):
    """Write a chat template into a model's folder."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def llm(request, tmp_path_factory):
    folder = make_llm(tmp_path_factory.mktemp("llm"), request.param)
    return SpeechLLM(folder, PROMPT)


def test_the_loss_is_that_of_the_transcript_behind_the_speech(llm):
    """By hand: of its pieces and the end of sentence, nothing of the prompt."""
    speech, text = torch.randn(1, 3, 32), "abc"
    loss, correct, total = llm(speech, torch.tensor([3]), [text])
    ids = torch.tensor([[3, 4, 5, 2]])
    read = torch.cat(
        [
            llm.embed(torch.tensor([[1, 8, 7]])),
            speech,
            llm.embed(torch.tensor([[9, 7]])),
        ]
        + [llm.embed(ids[:, :-1])],
        dim=1,
    )
    log_probs = llm.lm(inputs_embeds=read).logits[0, 7:].log_softmax(-1)
    by_hand = -log_probs.gather(1, ids.T).sum()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert total == 4 and correct == (log_probs.argmax(1) == ids[0]).sum()


def test_alone_as_in_a_batch(llm):
    torch.manual_seed(0)
    speech, lengths = torch.randn(3, 5, 32), torch.tensor([5, 2, 0])
    texts = ["abcd", "", "ddd"]
    loss, _, total = llm(speech, lengths, texts)
    alone = [
        llm(speech[i : i + 1, :n], lengths[i : i + 1], texts[i : i + 1])
        for i, n in enumerate(lengths.tolist())
    ]
    assert loss.item() == pytest.approx(sum(x[0].item() for x in alone), rel=1e-5)
    assert total == sum(x[2] for x in alone) == 5 + 1 + 4


@pytest.mark.parametrize("size", [1, 3])
def test_what_is_written_alone_is_written_in_a_batch(llm, size):
    """Prompts of many lengths, texts that end early, late and never."""
    torch.manual_seed(0)
    speech, lengths = 3 * torch.randn(12, 11, 32), torch.arange(12)
    written = llm.nbest(speech, lengths, size)
    endless = 0
    for i, n in enumerate(lengths.tolist()):
        alone = llm.nbest(speech[i : i + 1, :n], lengths[i : i + 1], size)
        assert [w.ids for w in alone[0]] == [w.ids for w in written[i]]
        endless += any(len(w.ids) == 4 * n + 8 for w in alone[0])
    assert endless < 12 and (endless or size > 1)  # of a beam short ones win
    assert len({tuple(beam[0].ids) for beam in written}) > 4


def test_what_all_prompts_begin_with_is_read_once(llm):
    """Its keys and values are those of reading it in every row, gradients too."""
    torch.manual_seed(0)
    case = torch.tensor([4, 0, 2]), ["ab", "c", ""]
    found = []
    for read_before in (llm._read_before, lambda batch, device: ({}, 0)):
        speech = torch.linspace(-1, 1, 3 * 4 * 32).view(3, 4, 32).requires_grad_()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(llm, "_read_before", read_before)
            loss, correct, _ = llm(speech, *case)
        loss.backward()
        found.append((loss.detach(), correct, speech.grad))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-6)
    assert found[0][1] == found[1][1]
    assert torch.allclose(found[0][2], found[1][2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["mamba", "rwkv"])
def test_a_recurrent_model_is_asked_row_by_row(tmp_path, kind):
    """Its state is not keys and values; RWKV reads padding as well."""
    llm = SpeechLLM(make_llm(tmp_path, kind), "aabbc{speech}b")
    assert llm.memory is None
    torch.manual_seed(0)
    speech, lengths = torch.randn(6, 9, 32), torch.tensor([9, 1, 4, 0, 7, 2])
    texts = ["ab", "c", "", "a", "dd", "b"]
    loss, *_ = llm(speech, lengths, texts)
    written = llm.transcribe(speech, lengths)
    alone = 0.0
    for i, n in enumerate(lengths.tolist()):
        one = speech[i : i + 1, :n], lengths[i : i + 1]
        alone += llm(*one, texts[i : i + 1])[0].item()
        assert llm.transcribe(*one) == [written[i]]
    assert loss.item() == pytest.approx(alone, rel=1e-5)


def test_a_prompt_of_nothing_but_speech(tmp_path):
    """Its one piece before has to say the first of a text that was not spoken."""
    llm = SpeechLLM(make_llm(tmp_path), "{speech}")
    assert len(llm.before) == 1 and len(llm.after) == 0
    loss, _, total = llm(torch.zeros(1, 0, 32), torch.tensor([0]), ["a"])
    logits = llm.lm(torch.tensor([[1, 3]])).logits[0].log_softmax(-1)
    assert total == 2
    assert -loss.item() == pytest.approx((logits[0, 3] + logits[1, 2]).item(), rel=1e-5)


def test_what_is_written_has_the_probability_of_the_loss(llm):
    torch.manual_seed(0)
    speech, lengths = torch.randn(2, 3, 32), torch.tensor([3, 2])
    for size in (1, 3):
        found = llm.nbest(speech, lengths, size)
        best = [llm.text(beam[0].ids) for beam in found]
        assert best == llm.transcribe(speech, lengths, size)
        for i, beam in enumerate(found):
            sums = [sum(w.log_probs) for w in beam]
            assert len(beam) == size and sums == sorted(sums, reverse=True)
            for w in beam:
                n = lengths[i : i + 1]
                ended = w.ids[-1] == llm.end
                assert len(w.ids) == len(w.log_probs)
                assert ended or len(w.ids) == 4 * n + 8
                loss, *_ = llm(speech[i : i + 1], n, [llm.text(w.ids)])
                if ended and llm.pieces(llm.text(w.ids)) == w.ids[:-1]:
                    assert -sum(w.log_probs) == pytest.approx(loss.item(), rel=1e-4)
    assert llm.nbest(speech[:1], torch.tensor([0]))[0][0] == ([], [])


def test_the_model_s_own_way_to_write_is_not_asked(tmp_path):
    folder = make_llm(tmp_path / "llm", "llama")
    speech, lengths = torch.randn(1, 4, 32), torch.tensor([4])
    before = SpeechLLM(folder, PROMPT).nbest(speech, lengths)
    config = transformers.GenerationConfig(repetition_penalty=9.0, eos_token_id=[2, 3])
    config.save_pretrained(folder)
    assert SpeechLLM(folder, PROMPT).nbest(speech, lengths) == before


def test_only_the_adapter_learns(llm):
    adapter = LinearAdapter(8, 32)
    assert not llm.train().training
    vectors = torch.randn(2, 3, 8)
    loss, *_ = llm(adapter(vectors, None), torch.tensor([3, 1]), ["ab", "c"])
    loss.backward()
    assert adapter.linear.weight.grad.abs().sum() > 0
    assert not any(p.requires_grad or p.grad is not None for p in llm.parameters())


@pytest.mark.parametrize("kind, target", [("llama", "q_proj"), ("gpt2", "c_attn")])
def test_lora_is_all_that_learns_in_the_model(tmp_path, kind, target):
    folder = make_llm(tmp_path, kind)
    plain, llm = SpeechLLM(folder, PROMPT), SpeechLLM(folder, PROMPT)
    case = torch.randn(2, 3, 32), torch.tensor([3, 1]), ["ab", "c"]
    lora = LoRA(llm, 2, 8, [target])
    assert lora(*case)[0] == plain(*case)[0]  # B is zero
    lora(*case)[0].backward()
    learnt = {id(p) for p in lora.parameters()}
    assert {id(p) for p in llm.parameters() if p.grad is not None} == learnt
    assert len(learnt) == 2 * 2  # A and B, two layers
    assert all(target in name and "lora_" in name for name in lora.state_dict())
    with torch.no_grad():
        for p in lora.parameters():
            p += 0.1
    assert abs(lora(*case)[0] - plain(*case)[0]) > 0.01
    other = LoRA(plain, 2, 8, [target])
    other.load_state_dict(lora.state_dict())
    assert torch.equal(plain(*case)[0], lora(*case)[0])


def test_lora_s_formula(tmp_path):
    llm = SpeechLLM(make_llm(tmp_path, "llama"), PROMPT)
    q_proj, x = llm.lm.model.layers[0].self_attn.q_proj, torch.randn(5, 32)
    LoRA(llm, 2, 8, ["q_proj"])
    with_lora = llm.lm.model.layers[0].self_attn.q_proj
    a, b = with_lora.lora_A["default"].weight, with_lora.lora_B["default"].weight
    b.data.normal_()
    expected = q_proj(x) + 8 / 2 * x @ a.T @ b.T
    assert torch.allclose(with_lora(x), expected, atol=1e-5)


def test_lora_that_cannot_be(tmp_path, monkeypatch):
    llm = SpeechLLM(make_llm(tmp_path, "gpt2"), PROMPT)
    with pytest.raises(ValueError, match="no linear layer q_proj .* has c_attn, c_fc"):
        LoRA(llm, 2, 8, ["q_proj", "v_proj"])
    with pytest.raises(ValueError, match="lora_targets: none"):
        LoRA(llm, 2, 8, [])
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match="pip install peft, or the extra .llm."):
        LoRA(llm, 2, 8, ["c_attn"])


def test_bfloat16_weights(tmp_path):
    """Half the memory, nearly the same loss, and LoRA learns in float32."""
    folder = make_llm(tmp_path, "llama")
    plain, half = (SpeechLLM(folder, PROMPT, dtype=d) for d in ("float32", "bfloat16"))
    assert all(p.dtype == torch.bfloat16 for p in half.lm.parameters())
    torch.manual_seed(0)
    case = torch.randn(2, 3, 32), torch.tensor([3, 1]), ["ab", "c"]
    assert half(*case)[0].item() == pytest.approx(plain(*case)[0].item(), rel=0.03)
    assert len(half.nbest(*case[:2], 2)[0]) == 2
    lora = LoRA(half, 2, 8, ["q_proj"])
    assert {p.dtype for p in lora.parameters()} == {torch.float32}
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss, *_ = lora(*case)
        loss.backward()
    assert sum(p.grad.abs().sum() for p in lora.parameters()) > 0


def test_loss_and_its_gradient_with_few_rows_of_logits(llm):
    """Nothing of it reaches padding."""
    torch.manual_seed(0)
    speech = torch.randn(3, 4, 32).requires_grad_()
    loss, *_ = llm(speech, torch.tensor([4, 1, 2]), ["abcd", "", "b"])
    loss.backward()
    assert speech.grad[0].abs().sum() > 0
    assert not speech.grad[1, 1:].any() and not speech.grad[2, 2:].any()


def test_a_prompt_without_a_place(tmp_path):
    folder = make_llm(tmp_path / "llm")
    for prompt in ("", "{speech}{speech}"):
        with pytest.raises(ValueError, match="must have {speech} once"):
            SpeechLLM(folder, prompt)


def test_a_template_that_says_the_date(tmp_path):
    """The prompt is what it was when the adapter was trained."""
    folder = make_llm(tmp_path)
    set_template(folder, "{{ strftime_now('%f') }}" + CHAT)
    first = SpeechLLM(folder, "a{speech}b", chat=True)
    time.sleep(1e-3)
    second = SpeechLLM(folder, "a{speech}b", chat=True)
    assert first.text_around != second.text_around
    assert first.identity == second.identity
    again = SpeechLLM(folder, "a{speech}b", chat=True, text=first.text_around)
    assert again.text_around == first.text_around
    assert torch.equal(again.before, first.before)


def test_a_chat_template_and_random_weights(tmp_path):
    folder = make_llm(tmp_path)
    plain = SpeechLLM(folder, PROMPT)
    set_template(folder, CHAT)
    chat = SpeechLLM(folder, "a{speech}b", chat=True)
    assert chat.before.tolist() == [1, 8, 3] and chat.after.tolist() == [4, 9]
    state = torch.random.get_rng_state()
    random, again = (SpeechLLM(folder, PROMPT, random=7) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert random.identity == again.identity
    assert random.identity["weights"] != plain.identity["weights"]
    assert random.identity["tokenizer"] == plain.identity["tokenizer"]


def test_the_end_of_a_turn_ends_a_text(tmp_path):
    """Where a template ends turns with a piece of its own, that is learnt and waited for."""
    folder = make_llm(tmp_path, marks=("<end>",))
    set_template(folder, CHAT.replace("%}T", "%}<end>T"))
    llm = SpeechLLM(folder, PROMPT, chat=True)
    end = llm.tokenizer.convert_tokens_to_ids("<end>")
    assert llm.end == end != llm.tokenizer.eos_token_id
    assert llm.lm.generation_config.eos_token_id == end
    assert llm.text([3, end]) == "a"
    loss, _, total = llm(torch.zeros(1, 0, 32), torch.tensor([0]), [""])
    read = torch.cat([llm.before, llm.after])[None]
    said = llm.lm(read).logits[0, -1].log_softmax(-1)
    assert total == 1 and loss.item() == pytest.approx(-said[end].item(), rel=1e-5)
    assert llm.identity["end"] == "<end>"
