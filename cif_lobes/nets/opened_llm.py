"""A language model as a yaml describes it, and the adapter that was trained for it."""

import json
import pathlib

from cif_lobes.nets.lora import SETTINGS as LORA
from cif_lobes.nets.lora import LoRA
from cif_lobes.nets.speech_llm import SpeechLLM
from cif_lobes.storage.run_files import LLM_NOTE


def open_llm(settings):
    """The language model that a yaml describes, and its LoRA.

    Arguments
    ---------
    settings : dict
        llm, prompt, chat, random_llm, seed, and those of `cif_lobes.nets.lora`, which
        yamls of before have not.

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
    llm = SpeechLLM(settings["llm"], settings["prompt"], settings["chat"], random)
    if not settings.get("lora_rank"):
        return llm, None
    rank, alpha, targets = (settings[name] for name in LORA)
    lora = LoRA(llm, rank, alpha, targets)
    llm.identity["lora"] = [rank, alpha, *targets]
    return llm, lora


def check_identity(folder, now, llm):
    """See that a language model is still the one that an adapter was trained for.

    Arguments
    ---------
    folder : str
        Run or export, with its note.
    now : dict
        The `identity`, and `recognizer`: hash of the weights that fire.
    llm : str
        What the model is called in a message.

    Raises
    ------
    ValueError
        Names what differs.
    """
    path = pathlib.Path(folder) / LLM_NOTE
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [n for n in {**before, **now} if before.get(n) != now.get(n)]
    if changed:
        raise ValueError(
            f"{folder}: its adapter was trained with {' and '.join(changed)} other than "
            f"those of the language model {llm} and of the recogniser, as {LLM_NOTE} has "
            "them. Give the same ones; to train with others, another --output_folder"
        )
