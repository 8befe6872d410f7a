"""README.md of an exported folder: a model card, as hubs of models read and show it.

What it says was measured and written down by the run: hours, parameters, error rates. What
is not known is said to be unknown.
"""

import json
import pathlib
from collections.abc import Iterable
from inspect import signature
from typing import NamedTuple

from huggingface_hub import EvalResult, ModelCardData
from ruamel.yaml import YAML

from cif_lobes.decoding.scoring import NAMES
from cif_lobes.decoding.searcher import BeamSearcher
from cif_lobes.settings.safe_yaml import read_settings

TASK = "automatic-speech-recognition"
# How a set was decoded: what an export has, and what it has not.
SAME = ("beam", "tail_threshold", "average", "num_checkpoints", "ctc_weight_decode")
OTHERS = ("lm", "rescore", "hotwords", "coldec")
# That of an export is the default.
EOS_THRESHOLD = signature(BeamSearcher).parameters["eos_threshold"].default

USE = {
    "speechbrain": """\
```python
from speechbrain.inference.ASR import EncoderDecoderASR

EncoderDecoderASR.from_hparams(source="{name}").transcribe_file("speech.wav")
```

or, with times, confidences and recordings of any length:

```
cif-transcribe {name} speech.wav
```

Both need the package cif-lobes; the first runs whatever `hyperparams.yaml` names, the second
only what cif-lobes knows.""",
    "llm": """\
```
cif-transcribe {name} speech.wav
```

needs the package cif-lobes, and the language model that `llm` in `hyperparams.yaml` names: a
name on the hub, or a folder. Its weights and tokenizer must be those that `llm.json` has the
hashes of. `recognizer/` is an export of the recogniser that the adapter was trained on.""",
    "onnx": """\
```
cif-transcribe {name} speech.wav
```

needs the package cif-lobes, onnxruntime, numpy and soundfile, but no PyTorch.""",
}

BODY = """
# {name}

Turns speech into text by Continuous Integrate-and-Fire: one vector per token
([arXiv 1905.11235](https://arxiv.org/abs/1905.11235)), trained with SpeechBrain and
cif-lobes.

| | |
|---|---|
{facts}

## Error rates

{results}

## Use

{use}

## Licence

{license}
"""


class Exported(NamedTuple):
    """What an export is, beside its run."""

    kind: str
    """str: a key of `USE`."""
    language: str
    """str: zh, en or none."""
    sample_rate: int
    """int: Hz."""
    learnt: Iterable
    """iterable of torch.nn.Parameter"""
    decoding: dict
    """dict: beam, tail_threshold, ctc_weight_decode, average, num_checkpoints; those of the
    run are taken for None."""
    int8: bool = False
    """bool: whether the weights of matrices have 8 bits."""
    llm: str = ""
    """str: language model that writes, and of which the export has an adapter."""


def read_exported(settings, learnt, average=None, num_checkpoints=None):
    """The Exported of a hyperparams.yaml, given as text."""
    yaml = YAML().load(settings)
    decoding = {
        "beam": yaml["beam_size"],
        "tail_threshold": yaml["tail_threshold"],
        "ctc_weight_decode": yaml.get("ctc_weight_decode") or None,
        "average": average,
        "num_checkpoints": num_checkpoints,
    }
    language, rate = yaml["tokenizer"]["language"], yaml["sample_rate"]
    return Exported("speechbrain", language, rate, learnt, decoding)


def write_card(folder, out_folder, run_folder, exported, license=None):
    """Write README.md.

    Arguments
    ---------
    folder : pathlib.Path
        Where the export is written.
    out_folder : str
        What it will be called; the name of this folder is that of the model.
    run_folder : str
        Output folder of the training run.
    exported : Exported
    license : str, optional
        As hubs abbreviate it, for instance apache-2.0. Without it, it is not stated.
    """
    run_folder, name = pathlib.Path(run_folder), pathlib.Path(out_folder).resolve().name
    path = run_folder / "run.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    of_run = read_settings(
        run_folder / "hyperparams.yaml", "average", "num_checkpoints"
    )
    given = {k: v for k, v in exported.decoding.items() if v is not None}
    decoding = {**of_run, **given}
    rows = sorted(record.get("results", {}).items())
    same = [_is_same(figures, decoding, exported.kind) for _, figures in rows]
    data = ModelCardData(
        language=exported.language if exported.language in ("zh", "en") else None,
        license=license,
        library_name="onnx" if exported.kind == "onnx" else "speechbrain",
        pipeline_tag=TASK,
        tags=["cif", "speech"],
        metrics=sorted({NAMES[f["unit"]].lower() for _, f in rows}) or None,
        model_name=name,
        eval_results=[
            EvalResult(
                task_type=TASK,
                dataset_type=key,
                dataset_name=key,
                metric_type=NAMES[figures["unit"]].lower(),
                metric_value=round(figures["error_rate"], 2),
            )
            for (key, figures), is_same in zip(rows, same, strict=True)
            if is_same and not exported.int8
        ],
    )
    if not data.eval_results:  # else it would want a name of a figure that is not there
        data.eval_results = data.model_name = None
    facts = _facts(record, exported)
    body = BODY.format(
        name=name,
        facts="\n".join(
            f"| {fact} | {_cell(value)} |" for fact, value in facts.items()
        ),
        results=_results(rows, same, exported.int8),
        use=USE[exported.kind].format(name=name),
        license=license or "Not stated by who made this folder: ask before you use it.",
    )
    text = f"---\n{data.to_yaml()}\n---\n{body}"
    (folder / "README.md").write_text(text, encoding="utf-8")


def _is_same(figures, decoding, kind):
    """Whether a set was decoded as the export decodes."""
    others = any(figures.get(name) for name in OTHERS)
    # Where a beam may end; a greedy search ends at what is best.
    ends = decoding["beam"] == 1 or figures.get("eos_threshold") == EOS_THRESHOLD
    ends |= kind == "llm"
    return not others and ends and all(figures.get(n) == decoding.get(n) for n in SAME)


def _facts(record, exported):
    """What is known about the network and its training, by its name."""
    hours, longest = record.get("train_hours"), record.get("longest_seconds")
    versions = record.get("versions", {}).items()
    unknown = "not recorded by the run"
    return {
        "language": exported.language,
        "sample rate": f"{exported.sample_rate} Hz; others are resampled",
        "parameters": f"{sum(p.numel() for p in exported.learnt):,}"
        + (", those of matrices as 8-bit integers" if exported.int8 else "")
        + (", of the adapter" if exported.llm else ""),
        **({"language model": exported.llm} if exported.llm else {}),
        "trained on": unknown if hours is None else f"{hours:.2f} hours of speech",
        "longest training utterance": f"{longest:.1f} s" if longest else unknown,
        "recipe": _recipe(record.get("yaml")) or unknown,
        "seed": record.get("seed", unknown),
        "commit": record.get("commit", unknown),
        "hardware": record.get("hardware", unknown),
        "versions": ", ".join(f"{n} {v}" for n, v in versions) or unknown,
    }


def _recipe(yaml):
    """The yaml without the folders of a machine."""
    if yaml is None:
        return None
    parts = pathlib.Path(yaml).parts
    first = parts.index("recipes") if "recipes" in parts else -1
    return "/".join(parts[first:])


def _results(rows, same, int8):
    """A table of what the run has scored."""
    if not rows:
        return "The run has scored nothing: not known."
    lines = ["| set | error rate | S / D / I of | decoded with | as here |"]
    lines.append("|---|---:|---:|---|---|")
    for (key, f), is_same in zip(rows, same, strict=True):
        with_others = [f"{name} {f[name]}" for name in OTHERS if f.get(name)]
        how = [f"{name} {f[name]}" for name in SAME if name in f] + with_others
        counts = f"{f['substitutions']} / {f['deletions']} / {f['insertions']}"
        cells = (
            key,
            f"{NAMES[f['unit']]} {f['error_rate']:.2f} %",
            f"{counts} of {f['reference_length']}",
            ", ".join(how),
            "yes" if is_same else "no",
        )
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    if int8:
        lines.append("\nMeasured with the 32-bit weights that these were made from.")
    return "\n".join(lines)


def _cell(value):
    """Text that does not end its cell of a table."""
    return " ".join(str(value).replace("|", "\\|").split())
