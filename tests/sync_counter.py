"""Counts, without a GPU, where the CPU would wait for one.

Inside `SyncCounter` the device "meta" holds values: its tensors wrap CPU tensors on which
every operation is carried out, so a network that is moved there computes what it computes
on a GPU, but nothing passes between it and the CPU unseen::

    with SyncCounter() as counter:
        model.to("meta")
        model(batch.to("meta", non_blocking=True)).sum().backward()
    print(counter)  # how often and where

On a machine with a GPU, `torch.cuda.set_sync_debug_mode("warn")` says the same.
"""

import collections
import contextlib
import traceback
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten

# What they return is a number, or its size depends on values.
READS_VALUES = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
}
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
# PyTorch copies the lengths to the GPU and waits for it, also where they come from the CPU.
CTC = {
    aten._ctc_loss.default,
    aten._ctc_loss.Tensor,
    aten._ctc_loss_backward.default,
    aten._ctc_loss_backward.Tensor,
}


class DeviceTensor(torch.Tensor):
    """A CPU tensor, `value`, that pretends to be elsewhere."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, value):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            value.size(),
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device="meta",
        )

    def __init__(self, value):
        self.value = value

    def tolist(self):
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} on a tensor of a SyncCounter that has ended")


class SyncCounter(TorchDispatchMode):
    """A context that simulates a device; see above.

    Attributes
    ----------
    places : collections.Counter
        How often the CPU waited, by "file:line operation"; the line is the innermost one
        of the project.
    """

    def __init__(self):
        super().__init__()
        self.places = collections.Counter()

    def __enter__(self):
        # The simulated device has no autocast, and PyTorch would say so.
        self.patches = contextlib.ExitStack()
        for name, instead in (
            ("autocast", lambda *args, **kwargs: contextlib.nullcontext()),
            ("is_autocast_enabled", lambda *args: False),
            ("get_autocast_dtype", lambda *args: torch.float32),
            ("tensor", _tensor),
        ):
            self.patches.enter_context(mock.patch.object(torch, name, instead))
        return super().__enter__()

    def __exit__(self, *error):
        self.patches.close()
        return super().__exit__(*error)

    @property
    def total(self):
        """How often the CPU waited."""
        return self.places.total()

    def __str__(self):
        lines = [
            f"{number:3}  {place}" for place, number in sorted(self.places.items())
        ]
        return "\n".join([f"{self.total} waits", *lines])

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is aten._fused_sdp_choice.default:
            return 0  # the one that is made of simple operations
        tensors = [
            t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)
        ]
        theirs = [t for t in tensors if isinstance(t, DeviceTensor)]
        ours = [t for t in tensors if not isinstance(t, DeviceTensor)]
        assert not any(t.is_meta for t in ours), f"{func}: a tensor without values"
        device = kwargs.get("device")
        to_device = (
            bool(theirs) if device is None else torch.device(device).type == "meta"
        )
        if self._waits(func, args, kwargs, theirs, ours, to_device):
            self.places[f"{_place()} {func}"] += 1

        if device is not None:
            kwargs = {**kwargs, "device": "cpu"}
        kwargs.pop("pin_memory", None)
        out = func(*tree_map(_value, args), **tree_map(_value, kwargs))
        known = {id(t.value): t for t in theirs}  # what is written in place

        def wrap(x):
            if not isinstance(x, torch.Tensor):
                return x
            if not to_device:
                # On one machine, what is not copied would be the device's own memory.
                return x.clone() if func is aten._to_copy.default else x
            return known[id(x)] if id(x) in known else DeviceTensor(x)

        if func is aten.copy_.default:
            return args[0]
        return tree_map(wrap, out)

    def _waits(self, func, args, kwargs, theirs, ours, to_device):
        """Whether a GPU's operation would return only when the GPU has got there."""
        if func is aten.copy_.default:
            source, target = (isinstance(t, DeviceTensor) for t in (args[1], args[0]))
            blocking = not (len(args) > 2 and args[2] or kwargs.get("non_blocking"))
            return source != target and (blocking or source)
        if func is aten._to_copy.default:
            from_device = bool(theirs)
            if from_device == to_device:
                return False
            # To the CPU, one has to wait before the values are used.
            return from_device or not kwargs.get("non_blocking", False)
        if not theirs:
            return False
        if func in INDEXING:
            indices = [i for i in args[1] if i is not None]
            masks = any(i.dtype in (torch.bool, torch.uint8) for i in indices)
            return masks or any(not isinstance(i, DeviceTensor) for i in indices)
        if func in CTC:
            return True
        far = [tuple(t.shape) for t in ours if t.dim()]
        assert not far, f"{func}: tensors {far} of the CPU meet those of the device"
        if func is aten.repeat_interleave.Tensor:
            return kwargs.get("output_size") is None
        return func in READS_VALUES


_torch_tensor = torch.tensor


def _tensor(*args, device=None, **kwargs):
    """torch.tensor copies what the CPU knows, and no operation is seen."""
    made = _torch_tensor(*args, **kwargs)
    return made if device is None else made.to(device)


def _value(x):
    return x.value if isinstance(x, DeviceTensor) else x


def _place():
    """The innermost line of the project; in the backward pass there is none."""
    for frame in reversed(traceback.extract_stack()):
        _, found, room = frame.filename.rpartition("/cif_lobes/")
        if found:
            return f"{room}:{frame.lineno}"
    return "elsewhere"
