"""LoRA in a frozen speech language model, through the package peft.

Hu et al., https://arxiv.org/abs/2106.09685: beside a matrix W that stays as it is, two
narrow ones are trained, W x + (alpha / rank) B A x. B begins as zero, so training begins
with the language model as it was.
"""

from torch import nn

SETTINGS = ("lora_rank", "lora_alpha", "lora_targets")  # of a yaml


class LoRA(nn.Module):
    """The narrow matrices in a language model: all of it that is trained and saved.

    Called in the language model's place, so that DistributedDataParallel sees that its
    parameters are used.

    Arguments
    ---------
    llm : cif_lobes.nets.speech_llm.SpeechLLM
        Changed in place. It stays outside of this module.
    rank : int
        Columns of B, at least 1.
    alpha : float
        See above.
    targets : list of str
        Names of the linear layers, in every layer of the model: q_proj, v_proj.

    Attributes
    ----------
    identity : list
        rank, alpha, and the targets.

    Raises
    ------
    ValueError
        If the package is missing, or there is no linear layer of such a name.
    """

    def __init__(self, llm, rank, alpha, targets):
        super().__init__()
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError:
            raise ValueError(
                f"lora_rank {rank} needs the package peft, not installed: pip install "
                "peft, or the extra [llm] of cif-lobes"
            ) from None
        check_targets(llm.lm, targets)
        self.identity = [rank, alpha, *targets]
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets))
        inject_adapter_in_model(config, llm.lm)
        learnt = {n: p for n, p in llm.lm.named_parameters() if p.requires_grad}
        for weight in learnt.values():
            # Whatever the model's own are: updates of bfloat16 are lost in rounding.
            weight.data = weight.data.float()
        # The very parameters of the model; a name must not have dots.
        self.matrices = nn.ParameterDict(
            {name.replace(".", "/"): weight for name, weight in learnt.items()}
        )
        self._held = (llm,)  # in a tuple, so that it is not one of this module's own

    def forward(self, *args):
        """As the language model's."""
        return self._held[0](*args)


def check_targets(lm, targets):
    """See that every name is that of a layer with a matrix.

    Arguments
    ---------
    lm : torch.nn.Module
    targets : list of str
    """
    embeddings = (lm.get_input_embeddings(), lm.get_output_embeddings())
    names = {
        name.split(".")[-1]
        for name, module in lm.named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2
        and module not in embeddings
        and not isinstance(module, nn.Embedding)
    }
    unknown = [name for name in targets if name not in names]
    if unknown or not targets:
        raise ValueError(
            f"lora_targets: {f'no linear layer {unknown[0]}' if unknown else 'none'} in "
            f"this language model, which has {', '.join(sorted(names))}"
        )
