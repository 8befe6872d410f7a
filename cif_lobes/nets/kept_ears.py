"""Where the ears of a run are: kept once, by the hash of their weights, and found again.

<ears_folder>/<hash>/   the encoder, of all runs that hear with it
<run>/ears.json         which it is: hash, source, folder
<export>/ears/          the encoder: an export is complete
<export>/ears.json      its hash, and the files of ears/: a hub lists none
"""

import json
import pathlib
import shutil

from cif_lobes.nets.ears import PretrainedEars
from cif_lobes.nets.pretrained import load_encoder
from cif_lobes.settings.safe_yaml import inside
from cif_lobes.storage.atomic_files import new_folder, write_atomically

NOTE, HELD = "ears.json", "ears"
# Of an export whose note does not name them.
FILES = ("config.json", "model.safetensors")


def keep_ears(features, source, ears_folder, run):
    """Keep the encoder, unless it is kept already, and note in the run which it is.

    Arguments
    ---------
    features : PretrainedEars
        Loaded, and not trained yet.
    source : str or dict
        From where.
    ears_folder : str
        Of all runs.
    run : str
        Output folder.
    """
    kept = (pathlib.Path(ears_folder) / features.weights_hash).resolve()
    if not kept.exists():
        with new_folder(kept) as folder:
            features.encoder.save(folder)
    note = {"hash": features.weights_hash, "source": str(source), "folder": str(kept)}
    write_atomically(pathlib.Path(run) / NOTE, json.dumps(note, indent=1) + "\n")


def read_note(folder):
    """What a run or export says of its ears, as dict; None if it has no note."""
    path = pathlib.Path(folder) / NOTE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def open_ears(features, folder):
    """Load the ears of a run or export, if it has pretrained ones.

    Arguments
    ---------
    features : torch.nn.Module
        Of the folder's yaml.
    folder : str
        Output folder of a run, or an export.

    Raises
    ------
    FileNotFoundError
        If they are nowhere. Says where they were looked for.
    """
    if isinstance(features, PretrainedEars):
        features.load(find_ears(folder))


def find_ears(folder):
    """The folder of a run's or export's ears; see `open_ears`.

    Returns
    -------
    pathlib.Path
    """
    folder = pathlib.Path(folder)
    note = read_note(folder)
    if note is None:
        raise FileNotFoundError(
            f"{folder} has no {NOTE}, which names its pretrained ears: copy the whole "
            "folder again"
        )
    places = [inside(folder, HELD)]
    places += [pathlib.Path(note[k]) for k in ("folder", "source") if k in note]
    others = []
    for place in places:
        if place.is_dir():
            found = load_encoder(place).weights_hash
            if found == note["hash"]:
                return place
            others.append(f"{place} has others, with weights {found}")
    source = f", {note['source']}" if "source" in note else ""
    raise FileNotFoundError(
        f"{folder}: its ears{source} with weights {note['hash']} are missing: "
        f"{'; '.join(others) or 'none of these folders is there'}: "
        f"{', '.join(map(str, places))}. Put them into {folder / HELD}: a copy of the "
        "folder that they were trained from, or of the one in ears_folder"
    )


def export_ears(run, folder):
    """Copy the ears of a run into its export, if it has pretrained ones."""
    note = read_note(run)
    if note is not None:
        shutil.copytree(find_ears(run), folder / HELD)
        files = sorted(path.name for path in (folder / HELD).iterdir())
        exported = {"hash": note["hash"], "files": files}
        (folder / NOTE).write_text(json.dumps(exported) + "\n")
