"""A causal language model of random weights that knows the letters of the tones."""

import torch
import transformers
from tokenizers import Tokenizer, models

PIECES = ["[UNK]", "<s>", "</s>", "a", "b", "c", "d", ":", "S", "T"]


def make_llm(folder, kind="gpt2", width=32, pieces=tuple(PIECES), seed=1, marks=()):
    """Save model and tokenizer, which has marks as pieces too; returns the folder as str."""
    pieces = [*pieces, *marks]
    ids = {piece: i for i, piece in enumerate(pieces)}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(ids, [], unk_token="[UNK]")),
        unk_token="[UNK]",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(marks),
    ).save_pretrained(folder)
    config = {
        "gpt2": transformers.GPT2Config(
            vocab_size=len(pieces), n_embd=width, n_layer=2, n_head=2, n_positions=64
        ),
        "llama": transformers.LlamaConfig(
            vocab_size=len(pieces),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
        ),
        "mamba": transformers.MambaConfig(
            vocab_size=len(pieces), hidden_size=width, num_hidden_layers=2
        ),
        "rwkv": transformers.RwkvConfig(
            vocab_size=len(pieces), hidden_size=width, num_hidden_layers=2
        ),
    }[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.data.normal_(std=0.3)
        model.save_pretrained(folder)
    return str(folder)
