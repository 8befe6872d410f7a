"""Start a network from the parameters of one that was trained before."""

import logging

import torch

from cif_lobes.runs.ears import with_ears
from cif_lobes.settings.safe_yaml import inside, read_settings
from cif_lobes.storage.parameters import (
    DISTILLATION,
    find_unlike,
    module_names,
    read_parameters,
    run_folder,
)

logger = logging.getLogger(__name__)

TOKENS = ("decoder", "ctc_head")  # modules of a CIF recogniser that know its vocabulary


def start_from(model, run, tokenizer):
    """Give a CIF recogniser the parameters of a trained one.

    Encoder and CIF must fit. Decoder and CTC head are taken along if both runs have the
    same vocabulary; else they learn anew, as the heads of a teacher always do. So do
    features or a decoder of another kind: an offline recogniser can become one for
    streams, and one that reads its tokens can get a BERT for it.

    Arguments
    ---------
    model : torch.nn.ModuleDict
        Changed in place.
    run : str
        Output folder of a run (its checkpoints are averaged), or one checkpoint of it.
    tokenizer : cif_lobes.data.tokens.Tokenizer
        The vocabulary of `model`.

    Raises
    ------
    FileNotFoundError
        If there is no such run or checkpoint.
    ValueError
        If a module that is to be taken does not fit.
    """
    folder = run_folder(run)
    settings = read_settings(folder / "hyperparams.yaml", "tokenizer")
    vocabulary = inside(folder, settings["tokenizer"]["path"])
    same = vocabulary.read_bytes() == tokenizer.path.read_bytes()
    parameters = read_parameters(run)
    if "features" in model:
        parameters = with_ears(parameters, model["features"], folder, run)
    parameters, own_head = _place_head(parameters, model.state_dict(), same)
    there = module_names(parameters)
    fresh = {DISTILLATION, *(() if same else TOKENS)}
    # A head that only one of the two runs has.
    fresh |= {"ctc_head"} - (there & set(model))
    if find_unlike(model.state_dict(), parameters, {"features"}):
        fresh |= {"features"}
    # Of two kinds no weight has the same name.
    decoder = {n for n in parameters if n.startswith("decoder.")}
    if not decoder & model.state_dict().keys():
        fresh |= {"decoder"}
    for name, value in model.named_parameters():
        frozen = not value.requires_grad and name.split(".")[0] not in fresh
        if frozen and name in parameters and not torch.equal(value, parameters[name]):
            raise ValueError(
                f"init_from {run}: {name} is frozen and another than that run's: its "
                "recogniser was trained on another student or BERT. Give the same "
                "student_run, or bert"
            )
    taken = take_parameters(model, parameters, fresh, f"init_from {run}")
    anew = sorted(set(model) - taken)
    if own_head:
        anew.append("the CTC head of cif")
    logger.info(
        f"parameters of {', '.join(sorted(taken))} from {run}"
        + (f"; {', '.join(anew)} learn anew" if anew else "")
    )


def take_parameters(model, parameters, fresh, source):
    """Copy parameters into a network, but for some of its modules.

    Arguments
    ---------
    model : torch.nn.ModuleDict
        Changed in place.
    parameters : dict of str to torch.Tensor
        Of a whole network.
    fresh : iterable of str
        Names of modules to leave as they are.
    source : str
        Setting and folder, for the error.

    Returns
    -------
    set of str
        Names of the modules that were given parameters.

    Raises
    ------
    ValueError
        If the other modules are not alike.
    """
    ours = model.state_dict()
    kept = (module_names(ours) | module_names(parameters)) - {*fresh}
    unlike = find_unlike(ours, parameters, kept)
    if unlike:
        name, (there, here) = next(iter(unlike.items()))
        raise ValueError(
            f"{source}: {len(unlike):,} weights do not fit, first {name}, "
            f"{there} there, {here} here: its yaml has another network. Give this one "
            "the same sizes"
        )
    taken = {k: v for k, v in parameters.items() if k.split(".")[0] in kept}
    model.load_state_dict(taken, strict=False)
    return module_names(taken)


def _place_head(parameters, ours, same):
    """A CTC head where the network that begins has its own: beside CIF or, guided, in it.

    In it, the network's own if the vocabulary is not the same, or that run had none, which
    is also returned.
    """
    guided = any(name.startswith("cif.ctc_head.") for name in ours)
    placed = {}
    for name, value in parameters.items():
        plain = name.removeprefix("cif.")
        if plain.startswith("ctc_head."):
            name = f"cif.{plain}" if guided else plain
        placed[name] = value
    heads = {k: v for k, v in ours.items() if k.startswith("cif.ctc_head.")}
    is_own = bool(heads) and not (same and heads.keys() <= placed.keys())
    return ({**placed, **heads} if is_own else placed), is_own
