"""A trained run as a recogniser: the network and its parameters, nothing of training.

An exported folder is complete and can be moved: hyperparams.yaml (the network),
model.safetensors (its parameters, averaged over checkpoints), tokenizer.ckpt (the
vocabulary), README.md (a model card). Exports of before have the parameters in a
model.ckpt of torch.
SpeechBrain's own interface loads it, from a folder or from the hub::

    EncoderDecoderASR.from_hparams(source=folder).transcribe_file("speech.wav")

That runs whatever the folder's yaml names; `open_export` and `open_run` do not, see
`cif_lobes.settings.safe_yaml`.
"""

import io
import pathlib
import shutil
from pickle import UnpicklingError

from ruamel.yaml import YAML
from ruamel.yaml.comments import TaggedScalar
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from speechbrain.utils.fetching import FetchSource, fetch
from speechbrain.utils.parameter_transfer import Pretrainer

from cif_lobes.decoding.ctc_ranking import CTC_HEAD, check_head
from cif_lobes.inference.card import read_exported, write_card

# Older exports name them here.
from cif_lobes.inference.fire_modules import FireDecoder, FireEncoder  # noqa: F401
from cif_lobes.inference.folders import (
    copy_teacher_vocab,
    longest_seconds,
    use_vocabularies,
)
from cif_lobes.nets.ears import PretrainedEars
from cif_lobes.nets.kept_ears import (
    FILES,
    HELD,
    NOTE,
    export_ears,
    open_ears,
    read_note,
)
from cif_lobes.settings.safe_yaml import build, inside, read_settings
from cif_lobes.storage.atomic_files import new_folder
from cif_lobes.storage.checkpoints import load_parameters
from cif_lobes.storage.parameters import average_parameters

# What recognition needs of the yaml's modules. The distillation heads stay out, and the
# CTC head, too, unless it ranks hypotheses.
NETWORK = ("features", "encoder", "cif", "decoder")

PARAMETERS, OLD_PARAMETERS = "model.safetensors", "model.ckpt"
VOCABULARY = "tokenizer.ckpt"  # as SpeechBrain's Pretrainer names it

# Settings that an export has, too.
COPIED = ("tail_threshold", "sample_rate")

HEADER = """\
# CIF speech recogniser, average of epochs {epochs}. Needs the package cif_lobes.
#   from speechbrain.inference.ASR import EncoderDecoderASR
#   EncoderDecoderASR.from_hparams(source="FOLDER").transcribe_file("speech.wav")
#   python -m cif_lobes.inference FOLDER speech.wav

"""
# The network comes between sample_rate and searcher.
TEMPLATE = """\
beam_size: 1  # hypotheses kept; 1: greedy
tail_threshold: 0.0  # a remainder above this fires one more token, 0 to 1
sample_rate: 0  # Hz that the network was trained with; others are resampled
max_seconds: 0  # longer recordings are cut at pauses; that of training utterances

searcher: !new:cif_lobes.decoding.searcher.BeamSearcher
  decoder: !ref <decoder>
  beam_size: !ref <beam_size>

model: !new:torch.nn.ModuleDict
  modules:
    features: !ref <features>
    encoder: !ref <encoder>
    cif: !ref <cif>
    decoder: !ref <decoder>

# What speechbrain.inference.ASR.EncoderDecoderASR calls.
modules:
  encoder: !new:cif_lobes.inference.fire_modules.FireEncoder
    features: !ref <features>
    encoder: !ref <encoder>
    cif: !ref <cif>
  decoder: !new:cif_lobes.inference.fire_modules.FireDecoder
    searcher: !ref <searcher>

audio_normalizer: !new:speechbrain.dataio.preprocess.AudioNormalizer
  sample_rate: !ref <sample_rate>

pretrainer: !new:cif_lobes.inference.export.ExportPretrainer
  loadables:
    model: !ref <model>
    tokenizer: !ref <tokenizer>
  custom_hooks:
    model: !name:cif_lobes.inference.export.use_parameters
    tokenizer: !name:cif_lobes.inference.export.use_vocabulary
"""


# Beside the above, of an export whose CTC head ranks hypotheses.
RANKING = """\
ctc_weight_decode: 0.0  # of log p of the CTC head, by which a beam is ranked again
ranker: !new:cif_lobes.decoding.ctc_ranking.CTCRanker
  head: !ref <ctc_head>
  weight: !ref <ctc_weight_decode>
"""


class ExportPretrainer(Pretrainer):
    """SpeechBrain's, which looks for every file as .ckpt, but for parameters and ears."""

    ears_in = None  # folder of the collected note and ears, of pretrained ones

    def collect_files(self, default_source=None, **options):
        """Find the files of a folder or hub; see SpeechBrain."""
        # A path, or how to fetch it and a path.
        path = f"{getattr(default_source, 'path', default_source)}/{PARAMETERS}"
        if isinstance(default_source, FetchSource):
            path = FetchSource(default_source.FetchFrom, path)
        self.add_paths({"model": path})
        if isinstance(self.loadables["model"]["features"], PretrainedEars):
            self.ears_in = self._collect_ears(default_source, **options)
        return super().collect_files(default_source, **options)

    def _collect_ears(self, source, **options):
        """Fetch the ears and their note; returns the folder that they are in."""
        if self.collect_in is not None:
            (self.collect_in / HELD).mkdir(parents=True, exist_ok=True)
        folder = fetch(NOTE, source, self.collect_in, **options).parent
        for name in (read_note(folder) or {}).get("files", FILES):
            # A note of a hub is not trusted with folders of this machine.
            name = pathlib.PurePath(str(name)).name
            fetch(f"{HELD}/{name}", source, self.collect_in, **options)
        return folder

    def load_collected(self):
        """Load the files: first the ears, some of whose layers may be parameters."""
        if self.ears_in is not None:
            open_ears(self.loadables["model"]["features"], self.ears_in)
        super().load_collected()


def use_parameters(model, path):
    """Give a network the parameters of an export.

    Arguments
    ---------
    model : torch.nn.ModuleDict
        Changed in place.
    path : str
        File of safetensors, or of torch if its name is `OLD_PARAMETERS` and no link.

    Raises
    ------
    ValueError
        If the file is damaged, or of another network.
    """
    try:
        # In its savedir SpeechBrain calls every file .ckpt.
        if pathlib.Path(path).resolve().name == OLD_PARAMETERS:
            parameters = load_parameters(path)
        else:
            parameters = load_file(path)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} is damaged, or holds more than tensors: copy it again, or export the "
            "run again"
        ) from error
    try:
        model.load_state_dict(parameters)
    except RuntimeError as error:
        raise ValueError(
            f"{path} holds the parameters of another network than the hyperparams.yaml "
            f"beside it describes, export the run again: {error}"
        ) from error


def find_parameters(folder):
    """The file of parameters in a folder, if it is an exported one; else None."""
    names = PARAMETERS, OLD_PARAMETERS
    files = (pathlib.Path(folder, name) for name in names)
    return next((file for file in files if file.exists()), None)


def use_vocabulary(tokenizer, path):
    """Pretrainer's way to load a tokenizer: tell it where its file was put."""
    tokenizer.path = pathlib.Path(path)


def read_run(folder, average=None, num_checkpoints=None, decoding=None):
    """What recognition needs of a run folder, wherever it has been moved to.

    The other objects of its yaml are not even made: an optimizer, an augmentation or a
    random seed would be side effects of loading a recogniser.

    Arguments
    ---------
    folder : str
        Output folder of a training run.
    average, num_checkpoints : optional
        As in `storage.parameters.average_parameters`; by default what the yaml says.
    decoding : dict, optional
        `beam_size` and `tail_threshold` other than those of the yaml; and
        `ctc_weight_decode`, of a `cif_lobes.decoding.ctc_ranking.CTCRanker`.

    Returns
    -------
    settings : str
        The yaml of an exported folder.
    parameters : dict of str to torch.Tensor
    vocabulary : pathlib.Path

    Raises
    ------
    FileNotFoundError
        If the folder holds no run.
    ValueError
        If it holds another kind of run, the run's searcher has a scorer, which would
        not be exported, or the yaml names what it may not; see
        `cif_lobes.settings.safe_yaml`.
    """
    folder = pathlib.Path(folder)
    for name in ("hyperparams.yaml", "save"):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"{folder} is not a run folder: no {name}. Give the output_folder of a "
                "training run, for instance results/AISHELL-1/cif/1986"
            )
    yaml = YAML()
    settings = read_settings(folder / "hyperparams.yaml", "modules")
    if "cif" not in settings:
        raise ValueError(
            f"{folder} is no run of a CIF recogniser: it trained "
            f"{', '.join(settings['modules'])}"
        )
    network = NETWORK
    if (decoding or {}).get("ctc_weight_decode"):
        check_head(settings, folder)
        if CTC_HEAD in settings["modules"]:
            network = (*NETWORK, CTC_HEAD)
    needed = ("tokenizer", *network, "searcher", *COPIED, "average", "num_checkpoints")
    settings = read_settings(folder / "hyperparams.yaml", *needed)
    if settings["searcher"].get("scorer"):
        raise ValueError(
            f"{folder}: its searcher has a scorer, and an exported recogniser has none: "
            "set searcher without scorer in hyperparams.yaml to recognise without it"
        )
    parameters, epochs = average_parameters(
        folder / "save",
        average or settings["average"],
        num_checkpoints or settings["num_checkpoints"],
    )
    vocabulary = inside(folder, settings["tokenizer"]["path"])
    settings["tokenizer"]["path"] = VOCABULARY
    settings["cif"]["tail_threshold"] = TaggedScalar("<tail_threshold>", tag="!ref")
    # Dumped, not pasted: a text among the settings must stay a text.
    exported, text = yaml.load(TEMPLATE), io.StringIO()
    exported["beam_size"] = settings["searcher"].get("beam_size", 1)
    exported |= {name: settings[name] for name in COPIED}
    exported["max_seconds"] = longest_seconds(folder)
    before = list(exported).index("searcher")
    if (decoding or {}).get("ctc_weight_decode"):
        for name, value in yaml.load(RANKING).items():
            exported.insert(before, name, value)
            before += name == "ctc_weight_decode"
        exported["searcher"]["ranker"] = TaggedScalar("<ranker>", tag="!ref")
        if CTC_HEAD in network:
            head = TaggedScalar("<ctc_head>", tag="!ref")
            exported["model"]["modules"][CTC_HEAD] = head
        else:  # a GuidedCIF has it
            exported["ranker"]["head"] = TaggedScalar("<cif>", tag="!ref")
    exported |= decoding or {}
    for place, name in enumerate(("tokenizer", *network), before):
        exported.insert(place, name, settings[name])
    text.write(HEADER.format(epochs=", ".join(map(str, epochs))))
    yaml.dump(exported, text)
    kept = {k: v for k, v in parameters.items() if k.split(".")[0] in network}
    return text.getvalue(), kept, vocabulary


def export_run(
    run_folder,
    out_folder,
    average=None,
    num_checkpoints=None,
    decoding=None,
    license=None,
):
    """Write the recogniser of a run into a folder of its own.

    Arguments
    ---------
    out_folder : str
        Made; must be empty if it exists.
    run_folder, average, num_checkpoints, decoding
        As in `read_run`.
    license : str, optional
        As in `card.write_card`.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_run`.
    FileExistsError
        If there is something in out_folder.
    """
    settings, parameters, vocabulary = read_run(
        run_folder, average, num_checkpoints, decoding
    )
    with new_folder(out_folder) as folder:
        # Copies, as tensors that share memory are refused.
        save_file(
            {name: tensor.clone() for name, tensor in parameters.items()},
            folder / PARAMETERS,
            metadata={"format": "pt"},
        )
        shutil.copyfile(vocabulary, folder / VOCABULARY)
        export_ears(run_folder, folder)
        (folder / "hyperparams.yaml").write_text(settings, encoding="utf-8")
        built = build(settings, only=["model", "tokenizer"])
        copy_teacher_vocab(built["tokenizer"], folder)
        learnt = built["model"].parameters()
        exported = read_exported(settings, learnt, average, num_checkpoints)
        write_card(folder, out_folder, run_folder, exported, license)


def open_run(folder, overrides=None, average=None, num_checkpoints=None):
    """The objects of a run's recogniser, without exporting it first.

    Arguments
    ---------
    folder, average, num_checkpoints
        As in `read_run`.
    overrides : dict, optional
        Settings of an exported folder's yaml to change: beam_size, tail_threshold,
        ctc_weight_decode.

    Returns
    -------
    dict
        The yaml of an exported folder, loaded, with parameters and vocabulary.
    """
    # The network depends on it.
    names = {"ctc_weight_decode"} & {*(overrides or {})}
    settings, parameters, vocabulary = read_run(
        folder, average, num_checkpoints, {name: overrides[name] for name in names}
    )
    hparams = build(settings, overrides)
    open_ears(hparams["features"], folder)
    hparams["model"].load_state_dict(parameters)
    hparams["tokenizer"].path = vocabulary
    return hparams


def open_export(folder, overrides=None):
    """The objects of an exported recogniser; see `open_run`.

    Raises
    ------
    FileNotFoundError
        If the folder holds none.
    ValueError
        If its yaml names what it may not, see `cif_lobes.settings.safe_yaml`; as
        `use_parameters`.
    """
    folder = pathlib.Path(folder)
    path = find_parameters(folder)
    if path is None:
        raise FileNotFoundError(
            f"{folder} is not an exported recogniser: no {PARAMETERS}. Make one with: "
            f"python evaluate.py export RUN {folder}"
        )
    hparams = build(folder / "hyperparams.yaml", overrides)
    open_ears(hparams["features"], folder)
    use_parameters(hparams["model"], path)
    use_vocabularies(hparams["tokenizer"], folder, VOCABULARY)
    return hparams
