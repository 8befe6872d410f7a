"""What every loss does with its arguments: precision, padding, a teacher that fits."""

import torch


def at_least_float32(x):
    """float64 stays, for gradcheck; everything else becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def without_padding(x, valid_mask, value=0):
    """[B, U, ...] with `value` at padded tokens. Replacing, not multiplying by the mask,
    keeps a NaN there out of values and gradients."""
    if valid_mask.dtype != torch.bool or valid_mask.shape != x.shape[:2]:
        raise ValueError(
            f"valid_mask {list(valid_mask.shape)} {valid_mask.dtype} for a tensor "
            f"{list(x.shape)}: expected {list(x.shape[:2])} torch.bool"
        )
    valid_mask = valid_mask.view(*valid_mask.shape, *[1] * (x.dim() - 2))
    return x.masked_fill(~valid_mask, value)


def check_same_states(student, teacher):
    """Refuse a teacher whose states cannot be paired one to one with the student's."""
    if student.shape == teacher.shape:
        return
    message = f"student states {list(student.shape)}, teacher {list(teacher.shape)}: "
    token_axis = 0 if student.dim() == 2 else 1
    num_tokens, num_states = student.shape[token_axis], teacher.shape[token_axis]
    if num_tokens != num_states:
        raise ValueError(
            f"{message}{num_states} teacher states for {num_tokens} tokens. The "
            "teacher cache was built with another tokenizer or from other transcripts. "
            "Run: python extract_teacher.py verify"
        )
    raise ValueError(
        f"{message}expected equal shapes. Give the distillation head the width of the "
        "teacher and one output per teacher layer"
    )
