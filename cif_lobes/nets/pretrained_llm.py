"""A causal language model and its tokenizer, as they were published."""

import contextlib
import hashlib
import json
import pathlib

import torch

from cif_lobes.storage.parameters import hash_values

# Its pieces tell a tokenizer whose vocabulary is the same, and that splits in another way.
PROBE = "The QUICK brown fox. It's 3:45 pm, naïve Zoë!  这是一句话。\n<s>"
ANSWER = "transcript"


def load_llm(source, dtype="float32", random=None):
    """A causal language model, frozen and in eval mode, and its tokenizer.

    Arguments
    ---------
    source : str
        Folder with a HuggingFace model and its tokenizer, or a name on the hub.
    dtype : str
        Of the weights: float32 or bfloat16.
    random : int, optional
        Seed of weights as before any training, in place of the model's.

    Returns
    -------
    lm : transformers.PreTrainedModel
    tokenizer : transformers.PreTrainedTokenizerBase

    Raises
    ------
    ValueError
        If there is none, its weights are quantized, or its tokenizer has no end of sentence.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with _explain(source):
        tokenizer = AutoTokenizer.from_pretrained(source)
        config = AutoConfig.from_pretrained(source)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"llm {source}: its tokenizer has no end of sentence")
    if getattr(config, "quantization_config", None):
        raise ValueError(
            f"llm {source}: its weights are quantized, and gradients have to pass through "
            "them. Give the model that it was made from, with --llm_dtype bfloat16"
        )
    dtype = getattr(torch, dtype)
    with _explain(source):
        if random is None:
            lm = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
        else:
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(random)
                lm = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return lm.requires_grad_(False).eval(), tokenizer


@contextlib.contextmanager
def _explain(source):
    """Say what is missing where transformers does not find or know a model."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        lacks = "folder lacks a causal language model and its tokenizer"
        if not pathlib.Path(source).is_dir():
            lacks = "neither a folder nor a causal language model that the hub gives"
        raise ValueError(
            f"llm {source}: {lacks} ({str(error).strip().splitlines()[0]}). Where there is "
            "no network, give the folder of one that was downloaded"
        ) from None


def render(tokenizer, prompt, source):
    """A prompt in the model's chat template, as the user's words.

    Arguments
    ---------
    tokenizer : transformers.PreTrainedTokenizerBase
    prompt : str
    source : str
        What the model is called in a message.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If there is no template.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            f"llm {source} has no chat template: --chat False puts the prompt before it as "
            "it is"
        )
    return _apply(tokenizer, [_says("user", prompt)], add_generation_prompt=True)


def find_end(tokenizer):
    """The piece that ends what the model says in its chat template.

    Of many instructed models it is not the tokenizer's end of sentence (Gemma's is
    <end_of_turn>, Phi-3's <|end|>).

    Arguments
    ---------
    tokenizer : transformers.PreTrainedTokenizerBase
        With a template.

    Returns
    -------
    int
        The tokenizer's own where the template does not tell.
    """
    from jinja2 import TemplateError

    try:
        told = _apply(tokenizer, [_says("user", "speech"), _says("assistant", ANSWER)])
    except TemplateError:
        return tokenizer.eos_token_id
    behind = told.rpartition(ANSWER)[2]
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"]
    is_mark = bool(ids) and ids[0] in tokenizer.added_tokens_decoder
    return ids[0] if is_mark else tokenizer.eos_token_id


def identify(lm, tokenizer):
    """What an adapter depends on: hashes of the pieces and of the weights.

    Neither depends on the version of a library, nor on LoRA in the model.

    Arguments
    ---------
    lm : torch.nn.Module
    tokenizer : transformers.PreTrainedTokenizerBase

    Returns
    -------
    dict of str to str
    """
    probe = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    pieces = json.dumps([sorted(tokenizer.get_vocab().items()), probe])
    return {
        "tokenizer": hashlib.sha256(pieces.encode()).hexdigest()[:16],
        "weights": hash_values(p for p in lm.parameters() if not p.requires_grad),
    }


def _says(role, content):
    return {"role": role, "content": content}


def _apply(tokenizer, messages, **options):
    # Templates that know no thinking ignore it; the others begin to think without it.
    options |= {"tokenize": False, "enable_thinking": False}
    return tokenizer.apply_chat_template(messages, **options)
