"""What extract_teacher.py does: from a yaml to its kind of teacher and the cache."""

from hyperpyyaml import load_hyperpyyaml

from cif_lobes.cache.build import VERBS
from cif_lobes.cache.dry_run import estimate
from cif_lobes.cache.ears import EarsStates
from cif_lobes.cache.posteriors import Posteriors
from cif_lobes.cache.reader import TeacherCache
from cif_lobes.cache.speech_states import SpeechStates
from cif_lobes.cache.text_states import TextStates
from cif_lobes.devices.precision import full_float32
from cif_lobes.devices.processes import check_device

# By a setting that only the yamls of this kind have; the others are of a text teacher.
KINDS = {"teachers": Posteriors, "layers": SpeechStates, "ears": EarsStates}


@full_float32()
def run(verb, hparams_file, run_opts, overrides):
    """Build, inspect or verify the cache of a yaml.

    Arguments
    ---------
    verb : str
        "build", "inspect" or "verify".
    hparams_file : str
        A recipe's extract_*.yaml.
    run_opts : RunOptions
        Of which only `dry_run` is used: the device is a setting of the yaml.
    overrides : str
        Settings of the command line, as YAML.
    """
    with open(hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    check_device(hparams["device"])
    kind = next((KINDS[name] for name in KINDS if name in hparams), TextStates)
    dry_run = run_opts is not None and run_opts.get("dry_run")
    if dry_run and verb != "build":
        raise ValueError(f"--dry_run is of build, {verb} writes nothing anyway")
    if dry_run:
        estimate(kind, hparams)
    elif verb == "build":
        VERBS[verb](kind(hparams))
    else:
        # One that is not there is said before a corpus is decoded for it.
        cache = TeacherCache(hparams["cache"])
        hparams["listing"] = None  # which is the build's
        states = kind(hparams)
        states.cache = cache
        VERBS[verb](states)
