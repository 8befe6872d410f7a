"""Parameters of a trained network: of one checkpoint, or an average of several."""

import hashlib
import pathlib

from speechbrain.utils.checkpoints import average_checkpoints

from cif_lobes.settings.safe_yaml import read_settings
from cif_lobes.storage.checkpoints import SafeCheckpointer, find_fault, load_parameters

DISTILLATION = "distillation"  # the module that knows a teacher, while one is trained
FIRING = ("features", "encoder", "cif")  # modules that CIF vectors depend on


def average_parameters(checkpoints_dir, average, num_checkpoints):
    """Average checkpoints in memory; nothing on disk changes.

    Arguments
    ---------
    checkpoints_dir : str
        The `save` folder of a run. Checkpoints within an epoch do not count.
    average : str
        "last" or "best" (by the error rate on the validation set).
    num_checkpoints : int
        How many at most.

    Returns
    -------
    parameters : dict of str to torch.Tensor
        Of the yaml's modules, heads included.
    epochs : list of int
        Of the checkpoints, sorted.

    Raises
    ------
    ValueError
        If `average` is another word.
    FileNotFoundError
        If no epoch has been finished yet.
    """
    if average not in ("last", "best"):
        raise ValueError(f'average is {average!r}, must be "last" or "best"')
    checkpoints = SafeCheckpointer(checkpoints_dir).find_checkpoints(
        min_key="error_rate" if average == "best" else None,
        max_num_checkpoints=num_checkpoints,
        ckpt_predicate=lambda c: "error_rate" in c.meta,
    )
    if not checkpoints:
        raise FileNotFoundError(
            f"no checkpoint of a whole epoch in {checkpoints_dir}: train first"
        )
    try:
        parameters = average_checkpoints(checkpoints, "model", load_parameters)
    except FileNotFoundError:
        if all(c.path.exists() for c in checkpoints):
            raise
        # The run is being trained, and has just set one of them aside.
        return average_parameters(checkpoints_dir, average, num_checkpoints)
    return parameters, sorted(int(c.meta["epoch"]) for c in checkpoints)


def fill(model, parameters):
    """Give a network all of its parameters.

    Those that know a teacher are left out if it has no such: only training does.

    Arguments
    ---------
    model : torch.nn.ModuleDict
        Changed in place.
    parameters : dict of str to torch.Tensor
        From `read_parameters`.
    """
    if DISTILLATION not in model:
        heads = f"{DISTILLATION}."
        parameters = {k: v for k, v in parameters.items() if not k.startswith(heads)}
    model.load_state_dict(parameters)


def read_parameters(path):
    """Parameters of a run's network: of one checkpoint, or averaged as its yaml says.

    Arguments
    ---------
    path : str
        Output folder of a run, or one checkpoint of it (`.../save/CKPT+...`, or the
        `model.ckpt` in it).

    Returns
    -------
    dict of str to torch.Tensor

    Raises
    ------
    FileNotFoundError
        If there is no such run or checkpoint.
    ValueError
        If that one checkpoint is broken.
    """
    path, run = pathlib.Path(path), run_folder(path)
    if path != run:
        checkpoint = path.parent if path.name == "model.ckpt" else path
        fault = find_fault(checkpoint, ["model.ckpt"])
        if fault:
            raise ValueError(
                f"{checkpoint} is no whole checkpoint: {fault}. Give another one of "
                f"{run / 'save'}, or the run {run}"
            )
        return load_parameters(checkpoint / "model.ckpt")
    needed = ("average", "num_checkpoints")
    settings = read_settings(run / "hyperparams.yaml", *needed)
    return average_parameters(
        run / "save", settings["average"], settings["num_checkpoints"]
    )[0]


def run_folder(path):
    """The run that a path names, or lies in; see `read_parameters`."""
    path = pathlib.Path(path)
    for folder in (path, *path.parents[:3]):
        if (folder / "hyperparams.yaml").exists() and path.exists():
            return folder
    raise FileNotFoundError(
        f"{path} is neither a run folder nor a checkpoint of one: correct the path, or "
        "train it first"
    )


def module_names(parameters):
    """Modules that parameters are of: the first parts of their names, as set."""
    return {name.split(".")[0] for name in parameters}


def find_unlike(ours, theirs, modules=None):
    """Parameters that one of two networks lacks, or has in another shape.

    Arguments
    ---------
    ours, theirs : dict of str to torch.Tensor
        From `state_dict`.
    modules : set of str, optional
        Names of the modules that are compared; by default, all.

    Returns
    -------
    dict of str to (list of int, list of int)
        Shape there and here by name, sorted; "none" where there is no such parameter.
    """
    names = sorted(ours.keys() | theirs.keys())
    if modules is not None:
        names = [name for name in names if name.split(".")[0] in modules]
    shapes = {name: (_shape(theirs, name), _shape(ours, name)) for name in names}
    return {name: pair for name, pair in shapes.items() if pair[0] != pair[1]}


def _shape(parameters, name):
    return list(parameters[name].shape) if name in parameters else "none"


def hash_parameters(parameters):
    """16 hex digits of names, shapes and values of some weights, whatever their order."""
    digest = hashlib.sha256()
    for name, weight in sorted(parameters.items()):
        digest.update(f"{name} {list(weight.shape)}".encode())
        digest.update(weight.contiguous().cpu().numpy())
    return digest.hexdigest()[:16]


def hash_values(weights):
    """16 hex digits of shapes and values of some weights, whatever their names and order.

    Bfloat16 weights have the hash of the same numbers in float32.

    Arguments
    ---------
    weights : iterable of torch.Tensor
    """
    digests = []
    for weight in weights:
        digest = hashlib.sha256(f"{list(weight.shape)}".encode())
        digest.update(weight.detach().float().contiguous().cpu().numpy())
        digests.append(digest.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()[:16]


def hash_modules(parameters, names):
    """Hash of those of a network's weights that are of some of its modules."""
    theirs = {k: v for k, v in parameters.items() if k.split(".")[0] in names}
    return hash_parameters(theirs)


def hash_weights(encoder, without):
    """Hash of all weights but those whose name has `without` in it."""
    weights = encoder.state_dict().items()
    return hash_parameters({name: w for name, w in weights if without not in name})
