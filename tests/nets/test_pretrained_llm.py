"""Causal language models and their tokenizers, as they are loaded."""

import json

import pytest
import torch
import transformers
from tiny_llm import make_llm
from tokenizers import normalizers

from cif_lobes.nets.lora import LoRA
from cif_lobes.nets.pretrained_llm import find_end, identify, load_llm, render
from cif_lobes.nets.speech_llm import SpeechLLM


def test_what_is_loaded_is_frozen(tmp_path):
    lm, tokenizer = load_llm(make_llm(tmp_path))
    assert not lm.training and not any(p.requires_grad for p in lm.parameters())
    assert tokenizer.eos_token_id == 2


def test_identity_does_not_depend_on_lora_dtype_or_names(tmp_path):
    """A model that was saved in bfloat16 is the same, however it is loaded."""
    folder = make_llm(tmp_path, "llama")
    lm, _ = load_llm(folder, "bfloat16")
    lm.save_pretrained(folder)
    whole, half = (SpeechLLM(folder, dtype=d) for d in ("float32", "bfloat16"))
    LoRA(half, 2, 8, ["q_proj"])
    assert whole.identity == half.identity
    with torch.no_grad():
        whole.lm.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    assert identify(whole.lm, whole.tokenizer)["weights"] != half.identity["weights"]


def test_a_tokenizer_that_splits_in_another_way_is_another(tmp_path):
    folder = make_llm(tmp_path)
    lm, tokenizer = load_llm(folder)
    before = identify(lm, tokenizer)["tokenizer"]
    lower = transformers.AutoTokenizer.from_pretrained(folder)
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert lower.get_vocab() == tokenizer.get_vocab()
    assert identify(lm, lower)["tokenizer"] != before


def test_a_template_that_thinks_is_told_not_to(tmp_path):
    _, tokenizer = load_llm(make_llm(tmp_path))
    tokenizer.chat_template = "a{% if enable_thinking is not false %}b{% endif %}"
    assert render(tokenizer, "x", "my/llm") == "a"


@pytest.mark.parametrize(
    "template, end",
    [
        ("{% for m in messages %}{{ m['content'] }}<end>{% endfor %}", "<end>"),
        ("{% for m in messages %}{{ m['content'] }}</s>{% endfor %}", "</s>"),
        ("{% for m in messages %}{{ m['content'] }}a{% endfor %}", "</s>"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "</s>"),
        ("{{ raise_exception('users only') }}", "</s>"),
    ],
)
def test_the_end_of_a_turn(tmp_path, template, end):
    _, tokenizer = load_llm(make_llm(tmp_path, marks=("<end>",)))
    tokenizer.chat_template = template
    assert tokenizer.convert_ids_to_tokens(find_end(tokenizer)) == end


def test_what_cannot_be(tmp_path):
    folder = make_llm(tmp_path / "llm")
    with pytest.raises(ValueError, match="no chat template: --chat False"):
        SpeechLLM(folder, "S:{speech}T:", chat=True)
    with pytest.raises(ValueError, match="none: neither a folder nor .* hub gives"):
        load_llm(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: folder lacks"):
        load_llm(str(tmp_path / "empty"))
    config = json.loads((tmp_path / "llm/config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (tmp_path / "llm/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="weights are quantized.*--llm_dtype bfloat16"):
        load_llm(folder)
