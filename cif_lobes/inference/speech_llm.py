"""A language model that writes what a recogniser has fired: a run of train_llm.py.

An exported folder has hyperparams.yaml (the adapter, and which language model: a name on
the hub or a path, which may be changed), adapter.safetensors (its weights, averaged over
checkpoints, and those of LoRA), llm.json (hashes of all that it was trained for),
recognizer/ (an export of the recogniser) and README.md. The language model is not in it.
"""

import difflib
import io
import pathlib
import re
import shutil

import torch
from ruamel.yaml import YAML
from safetensors.torch import save_file

from cif_lobes.inference.card import Exported, write_card
from cif_lobes.inference.export import (
    export_run,
    open_export,
    open_run,
    use_parameters,
)
from cif_lobes.inference.folders import longest_seconds
from cif_lobes.inference.transcript import Token, Transcript
from cif_lobes.nets.lora import SETTINGS as LORA
from cif_lobes.nets.opened_llm import check_identity, identity_of, open_llm
from cif_lobes.settings.safe_yaml import build, read_settings
from cif_lobes.storage.atomic_files import new_folder
from cif_lobes.storage.parameters import FIRING, average_parameters, hash_modules
from cif_lobes.storage.run_files import LLM_NOTE

PARAMETERS, RECOGNIZER = "adapter.safetensors", "recognizer"  # of an export
OTHERS = (*LORA, "max_seconds")  # the latter of an export, the former not of all
WRITING = "adapter llm llm_dtype prompt chat random_llm seed beam_size".split()

HEADER = """\
# CIF vectors into a language model, average of epochs {epochs}. Needs the package cif_lobes,
# and the language model, which is not in this folder.
#   python -m cif_lobes.inference FOLDER speech.wav

"""


class Writer:
    """Adapter and language model, in place of a recogniser's decoder.

    Arguments
    ---------
    adapter : torch.nn.Module
        From CIF vectors to embeddings.
    llm : cif_lobes.nets.speech_llm.SpeechLLM
    tokenizer : cif_lobes.data.tokens.Tokenizer
        The recogniser's, which says how texts are spelt.
    beam_size : int
        Texts that are kept.
    """

    def __init__(self, adapter, llm, tokenizer, beam_size):
        self.adapter, self.llm = adapter.eval(), llm
        self.tokenizer, self.beam_size = tokenizer, beam_size

    def to(self, device):
        """Move the networks."""
        self.adapter.to(device)
        self.llm.to(device)

    @torch.no_grad()
    def write(self, fired, heard, starts):
        """Transcripts of a batch.

        Arguments
        ---------
        fired : cif_lobes.cif.CIFOutput
        heard : list of Transcript
            What the recogniser itself reads there, for the times of words.
        starts : list of float
            Seconds at which each utterance begins.

        Returns
        -------
        list of list of Transcript
            Of each utterance, best first. Tokens are words; in Chinese, characters.
        """
        embeddings = self.adapter(fired.embeddings, fired.lengths)
        found = self.llm.nbest(embeddings, fired.lengths.cpu(), self.beam_size)
        return [
            [self._transcript(written, below, start) for written in beam]
            for beam, below, start in zip(found, heard, starts, strict=True)
        ]

    def _transcript(self, written, below, start):
        words = spell(self.llm.decode, written, self.tokenizer)
        texts, confidences = [w for w, _ in words], [c for _, c in words]
        spans = find_times(texts, below.words, start)
        tokens = [
            Token(text, *span, confidence)
            for text, span, confidence in zip(texts, spans, confidences, strict=True)
        ]
        space = "" if self.tokenizer.language == "zh" else " "
        return Transcript(space.join(texts), sum(written.log_probs), tokens, tokens)


def spell(decode, written, tokenizer):
    """Words that were written, each with the probability of the pieces that it is in.

    Arguments
    ---------
    decode : callable
        From ids to text.
    written : cif_lobes.nets.speech_llm.Written
    tokenizer : cif_lobes.data.tokens.Tokenizer
        Spells them.

    Returns
    -------
    list of (str, float)
        In Chinese, characters.
    """
    text, ids = decode(written.ids), written.ids
    # A piece may end within a character, which is then shown as U+FFFD.
    ends = [len(decode(ids[: i + 1]).rstrip("\ufffd")) for i in range(len(ids))]
    words = []
    for found in re.finditer(r"\S" if tokenizer.language == "zh" else r"\S+", text):
        word = tokenizer.normalize(found[0])
        if word:
            pieces = zip([0, *ends], ends, written.log_probs, strict=False)
            total = sum(
                log_prob
                for start, end, log_prob in pieces
                if start < found.end() and max(end, start + 1) > found.start()
            )
            words.append((word, min(1.0, float(torch.tensor(total).exp()))))
    return words


def find_times(texts, heard, start=0.0):
    """When words were said, from when a recogniser heard like ones.

    Equal words have the same times; what stands in another's place shares its time, and
    what the recogniser has not heard at all has a place between its neighbours, no time.

    Arguments
    ---------
    texts : list of str
    heard : list of Token
    start : float
        Where all words are, if it has heard none, in seconds.

    Returns
    -------
    list of (float, float)
        Start and end in seconds.

    Example
    -------
    >>> heard = [Token("a", 0.0, 1.0, 1.0), Token("hut", 1.0, 2.0, 1.0)]
    >>> find_times(["a", "big", "hat"], heard)
    [(0.0, 1.0), (1.0, 1.5), (1.5, 2.0)]
    """
    spans, names = [], [word.token for word in heard]
    matcher = difflib.SequenceMatcher(None, names, texts, autojunk=False)
    for _, a, b, c, d in matcher.get_opcodes():
        if b - a == d - c:
            spans += [(word.start, word.end) for word in heard[a:b]]
            continue
        between = heard[a - 1].end if a else heard[0].start if heard else start
        first, last = (heard[a].start, heard[b - 1].end) if b > a else (between,) * 2
        step = (last - first) / max(1, d - c)
        spans += [(first + i * step, first + (i + 1) * step) for i in range(d - c)]
    return spans


def open_llm_run(folder, overrides=None):
    """The objects of a run of train_llm.py, or of its export.

    Arguments
    ---------
    folder : str
    overrides : dict, optional
        Settings to change: beam_size, or llm, where the language model is by now.

    Returns
    -------
    dict
        Those of the recogniser, see `cif_lobes.inference.export.open_run`, and `writer`.

    Raises
    ------
    FileNotFoundError
        If the recogniser of a run is not where it was, or no epoch has been finished.
    ValueError
        If recogniser or language model are not those that the adapter was trained for,
        or are missing; as `open_run`.
    """
    folder = pathlib.Path(folder)
    path, exported = folder / "hyperparams.yaml", folder / PARAMETERS
    settings = read_settings(path, *WRITING)
    others = [name for name in OTHERS if name in settings]
    settings = {**settings, **build(path, overrides, only=[*WRITING, *others])}
    greedy = {"beam_size": 1}  # for times
    if exported.exists():
        hparams = open_export(folder / RECOGNIZER, greedy)
    else:
        hparams = open_run(settings["recognizer"], greedy)
    hparams["max_seconds"] = settings.get("max_seconds", longest_seconds(folder))
    llm, lora = open_llm(settings, folder)
    network = hparams["model"].state_dict()
    now = identity_of(llm, lora, hash_modules(network, FIRING))
    check_identity(folder, now, settings["llm"])
    modules = {"adapter": settings["adapter"], **({"lora": lora} if lora else {})}
    model = torch.nn.ModuleDict(modules)
    if exported.exists():
        use_parameters(model, exported)
    else:
        model.load_state_dict(_average(folder, settings)[0])
    hparams["writer"] = Writer(
        settings["adapter"], llm, hparams["tokenizer"], settings["beam_size"]
    )
    return hparams


def export_llm_run(
    run_folder,
    out_folder,
    average=None,
    num_checkpoints=None,
    decoding=None,
    license=None,
):
    """Write a run of train_llm.py into a folder of its own, but for the language model.

    Arguments
    ---------
    run_folder, out_folder, average, num_checkpoints, decoding, license
        See `cif_lobes.inference.export.export_run`; of decoding, beam_size only.

    Raises
    ------
    FileNotFoundError, ValueError
        As `open_llm_run`; also if there is a tail_threshold in decoding.
    FileExistsError
        If there is something in out_folder.
    """
    if "tail_threshold" in (decoding or {}):
        raise ValueError(
            "--tail_threshold is not for a language model's run: its adapter was trained "
            "on what the recogniser fires with its own"
        )
    run_folder, text = pathlib.Path(run_folder), io.StringIO()
    hparams = open_llm_run(run_folder, decoding)
    settings = read_settings(run_folder / "hyperparams.yaml", *WRITING, RECOGNIZER)
    parameters, epochs = _average(run_folder, settings, average, num_checkpoints)
    kept = {n: settings[n] for n in (*WRITING, *LORA) if n in settings}
    kept["beam_size"] = hparams["writer"].beam_size
    kept["max_seconds"] = hparams["max_seconds"]
    if pathlib.Path(kept["llm"]).is_dir():
        kept["llm"] = str(pathlib.Path(kept["llm"]).absolute())
    text.write(HEADER.format(epochs=", ".join(map(str, epochs))))
    YAML().dump(kept, text)
    with new_folder(out_folder) as folder:
        export_run(settings["recognizer"], folder / RECOGNIZER)
        save_file(
            {name: tensor.clone() for name, tensor in parameters.items()},
            folder / PARAMETERS,
            metadata={"format": "pt"},
        )
        (folder / "hyperparams.yaml").write_text(text.getvalue(), encoding="utf-8")
        shutil.copyfile(run_folder / LLM_NOTE, folder / LLM_NOTE)
        exported = Exported(
            "llm",
            hparams["tokenizer"].language,
            hparams["sample_rate"],
            parameters.values(),
            {
                "beam": kept["beam_size"],
                "average": average,
                "num_checkpoints": num_checkpoints,
            },
            llm=f"{kept['llm']}, weights {hparams['writer'].llm.identity['weights']}",
        )
        write_card(folder, out_folder, run_folder, exported, license)


def _average(folder, settings, average=None, num_checkpoints=None):
    """Parameters of a run's adapter and LoRA, and the epochs they are of."""
    return average_parameters(
        folder / "save",
        average or settings["average"],
        num_checkpoints or settings["num_checkpoints"],
    )
