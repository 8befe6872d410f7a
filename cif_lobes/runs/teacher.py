"""The teacher of a run: a run that goes on learns from the one that it was begun with."""

import json
import pathlib

from cif_lobes.runs.resume import remedy
from cif_lobes.storage.atomic_files import write_atomically

# Of a run folder: the teacher's name, and what decides its states.
NOTE = "teacher.json"


def meet_teacher(hparams, source, identity):
    """See that a run that goes on has the teacher of before; have it noted if it begins.

    Runs of before such notes go on with any, and have one from then on.

    Arguments
    ---------
    hparams : dict
        The loaded yaml: output_folder, checkpointer. Given `teacher_note`, for
        `keep_teacher`.
    source : str or list of str
        What the teacher, or each of several, is called.
    identity : dict
        What decides its states, as JSON has it.

    Raises
    ------
    ValueError
        If it is another. Names both.
    """
    path = pathlib.Path(hparams["output_folder"]) / NOTE
    hparams["teacher_note"] = {"teacher": source, **identity}
    # What was begun with another one and has not come as far as a checkpoint is lost.
    if not path.exists() or not hparams["checkpointer"].list_checkpoints():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    was = before.pop("teacher")
    names = [n for n in {**before, **identity} if before.get(n) != identity.get(n)]
    if names:
        changed = (f"{n} {before.get(n)} there, {identity.get(n)} here" for n in names)
        raise ValueError(
            f"{path.parent} was begun with states of {was}, these of {source} are others: "
            f"{'; '.join(changed)}. {remedy(path.parent, hparams)}"
        )


def meet_cached_teacher(hparams, cache):
    """The same, of a `cif_lobes.cache.reader.TeacherCache` that is about to be read.

    One of CIF vectors names the recogniser that they are of.
    """
    named = cache.attributes
    source = named.get("teacher") or named.get("recognizer") or cache.path
    meet_teacher(hparams, source, cache.identity)


def keep_teacher(hparams):
    """Write down whom a run learns from, as its training begins."""
    note = hparams.get("teacher_note")
    if note is not None:
        path = pathlib.Path(hparams["output_folder"]) / NOTE
        text = json.dumps(note, ensure_ascii=False, indent=1)
        write_atomically(path, f"{text}\n")
