"""CIF vectors in a language model's prompt."""

import pytest
import torch
from tiny_llm import make_llm

from cif_lobes.nets.speech_llm import LinearAdapter, SpeechLLM, TransformerAdapter

PROMPT = "S:{speech}T:"


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
    written = llm.transcribe(speech, lengths)
    for i, n in enumerate(lengths.tolist()):
        assert llm.transcribe(speech[i : i + 1, :n], lengths[i : i + 1]) == [written[i]]


def test_only_the_adapter_learns(llm):
    adapter = LinearAdapter(8, 32)
    assert not llm.train().training
    vectors = torch.randn(2, 3, 8)
    loss, *_ = llm(adapter(vectors, None), torch.tensor([3, 1]), ["ab", "c"])
    loss.backward()
    assert adapter.linear.weight.grad.abs().sum() > 0
    assert not any(p.requires_grad or p.grad is not None for p in llm.parameters())


def test_the_transformer_adapter_sees_no_padding():
    torch.manual_seed(0)
    adapter = TransformerAdapter(8, 12, d_model=16, num_layers=2, nhead=2, d_ffn=32)
    adapter.eval()
    vectors, lengths = torch.randn(3, 6, 8), torch.tensor([6, 2, 0])
    together = adapter(vectors, lengths)
    assert together.isfinite().all()
    for i, n in enumerate([6, 2]):
        alone = adapter(vectors[i : i + 1, :n], lengths[i : i + 1])
        assert torch.allclose(alone[0], together[i, :n], atol=1e-6)


def test_what_cannot_be(tmp_path, llm):
    folder = make_llm(tmp_path / "llm")
    for prompt in ("", "{speech}{speech}"):
        with pytest.raises(ValueError, match="must have {speech} once"):
            SpeechLLM(folder, prompt)
    with pytest.raises(ValueError, match="no chat template: --chat False"):
        SpeechLLM(folder, PROMPT, chat=True)
    with pytest.raises(ValueError, match="none: no such folder"):
        SpeechLLM(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: folder lacks"):
        SpeechLLM(str(tmp_path / "empty"))


def test_a_chat_template_and_random_weights(tmp_path):
    folder = make_llm(tmp_path)
    plain = SpeechLLM(folder, PROMPT)
    plain.tokenizer.chat_template = (
        "<s>{% for m in messages %}S{{ m['content'] }}{% endfor %}T"
    )
    plain.tokenizer.save_pretrained(folder)
    chat = SpeechLLM(folder, "a{speech}b", chat=True)
    assert chat.before.tolist() == [1, 8, 3] and chat.after.tolist() == [4, 9]
    random = SpeechLLM(folder, PROMPT, random=True)
    assert random.identity["weights"] != plain.identity["weights"]
    assert random.identity["tokenizer"] == plain.identity["tokenizer"]
