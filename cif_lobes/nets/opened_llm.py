"""A language model as a yaml describes it, and the adapter that was trained for it."""

import json
import pathlib

from cif_lobes.nets.lora import SETTINGS as LORA
from cif_lobes.nets.lora import LoRA
from cif_lobes.nets.speech_llm import SpeechLLM
from cif_lobes.storage.run_files import LLM_NOTE

TEXT = "prompt in its template"


def open_llm(settings, folder):
    """The language model that a yaml describes, and its LoRA.

    Arguments
    ---------
    settings : dict
        llm, llm_dtype, prompt, chat, random_llm, seed, and those of
        `cif_lobes.nets.lora`, which yamls of before have not.
    folder : str
        Run or export, whose note has the prompt as it was put into the model's template.

    Returns
    -------
    llm : SpeechLLM
    lora : cif_lobes.nets.lora.LoRA or None
        None if lora_rank is 0.

    Raises
    ------
    ValueError
        As these.
    """
    random = settings["seed"] if settings["random_llm"] else None
    prompt, chat = settings["prompt"], settings["chat"]
    note = read_note(folder)
    known = (note.get("prompt"), note.get("chat")) == (prompt, chat)
    llm = SpeechLLM(
        settings["llm"],
        prompt,
        chat,
        random,
        settings["llm_dtype"],
        text=note[TEXT] if known else None,
    )
    if not settings.get("lora_rank"):
        return llm, None
    rank, alpha, targets = (settings[name] for name in LORA)
    return llm, LoRA(llm, rank, alpha, targets)


def identity_of(llm, lora, recognizer):
    """All that an adapter depends on, as it is noted beside it.

    Arguments
    ---------
    llm : SpeechLLM
    lora : cif_lobes.nets.lora.LoRA or None
    recognizer : str
        Hash of the weights that fire.

    Returns
    -------
    dict
    """
    found = {**llm.identity, "recognizer": recognizer, TEXT: llm.text_around}
    return found | ({"lora": lora.identity} if lora else {})


def read_note(folder):
    """The identity that was noted in a run or an export, or {}."""
    path = pathlib.Path(folder) / LLM_NOTE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def check_identity(folder, now, llm):
    """See that a language model is still the one that an adapter was trained for.

    Arguments
    ---------
    folder : str
        Run or export, with its note.
    now : dict
        From `identity_of`.
    llm : str
        What the model is called in a message.

    Raises
    ------
    ValueError
        Names what differs.
    """
    before = read_note(folder)
    changed = [n for n in {**before, **now} if before.get(n) != now.get(n)]
    if changed:
        raise ValueError(
            f"{folder}: its adapter was trained with {' and '.join(changed)} other than "
            f"those of the language model {llm} and of the recogniser, as {LLM_NOTE} has "
            "them. Give the same ones; to train with others, another --output_folder"
        )
