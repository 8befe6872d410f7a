"""Language models that cannot read CIF vectors, for docs/errors.md."""

import json
import pathlib
import sys
from unittest import mock

from tiny_llm import make_llm

from cif_lobes.commands import evaluate
from cif_lobes.inference.speech_llm import export_llm_run
from cif_lobes.inference.stream import StreamingRecognizer
from cif_lobes.nets.lora import LoRA
from cif_lobes.nets.opened_llm import check_identity
from cif_lobes.nets.speech_llm import SpeechLLM
from cif_lobes.runs.speech_llm import make_datasets

TITLE = "A language model that writes"
PROMPT = "S:{speech}T:"


def _load(**changes):
    return lambda folder: SpeechLLM(make_llm(folder / "llm"), **changes)


def _quantized(folder):
    path = pathlib.Path(make_llm(folder / "llm")) / "config.json"
    config = json.loads(path.read_text()) | {"quantization_config": {"bits": 4}}
    path.write_text(json.dumps(config))
    SpeechLLM(str(path.parent))


def _lora(*targets):
    def cause(folder):
        LoRA(SpeechLLM(make_llm(folder / "llm"), PROMPT), 8, 16, targets)

    return cause


def _no_peft(folder):
    with mock.patch.dict(sys.modules, {"peft": None}):
        _lora("c_attn")(folder)


def _noted(folder):
    """The folder of a run."""
    folder.mkdir(exist_ok=True)
    (folder / "llm.json").write_text(json.dumps({"weights": "0123", "tokenizer": "45"}))
    return folder


def _another(folder):
    now = {"weights": "4567", "tokenizer": "67"}
    check_identity(_noted(folder / "run"), now, "my/qwen")


def _score(*words):
    def cause(folder):
        run = str(_noted(folder / "run"))
        evaluate.main(evaluate.parse_arguments([run, *words]))

    return cause


def _cache(folder):
    settings = {"features": None, "ears_cache": "ears.h5", "recognizer": "results/cif"}
    make_datasets(settings, {})


CASES = {
    "`--llm` with quantized weights": _quantized,
    "`--llm` that is nowhere": lambda folder: SpeechLLM("none"),
    "`--prompt` without a place for speech": _load(prompt="Speech:"),
    "`--chat True` without a template": _load(prompt=PROMPT, chat=True),
    "`--lora_rank 8` without the package": _no_peft,
    "`--lora_targets '[q_proj]'` of GPT-2": _lora("q_proj"),
    "`--lora_targets '[]'`": _lora(),
    "another language model than in training": _another,
    "`--ears_cache` without pretrained ears": _cache,
    "`evaluate.py RUN --hotwords FILE`": _score("--hotwords", "names.txt"),
    "`evaluate.py RUN --sweep`": _score("--sweep"),
    "`evaluate.py export RUN my_llm --tail_threshold 0.3`": lambda folder: (
        export_llm_run(folder, folder / "my_llm", decoding={"tail_threshold": 0.3})
    ),
    "`cif-transcribe RUN --stream`": lambda f: StreamingRecognizer({"writer": None}),
}
