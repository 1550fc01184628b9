"""Digests of PyTorch tensors and generators; torch itself is only ever looked up among the loaded modules.

What counts: dtype, shape, device, layout, whether gradients are wanted, the values (one NaN is as good as
another) and the gradient. A tensor that a computation made and that remembers how is part of a graph, which
has no digest.
"""

from __future__ import annotations

import sys
from typing import Any

from ipyparcache.digest.arrays import content_digest
from ipyparcache.digest.walk import NAMED, Kind, Walk
from ipyparcache.errors import Unrestorable


class TensorKind(Kind):
    """Tensors and parameters."""

    def write(self, walk: Walk, obj: Any) -> None:
        torch = sys.modules["torch"]
        if obj.grad_fn is not None:
            raise walk.fail("it is part of a computation's graph; `.detach()` gives its value", obj)
        if obj.layout is not torch.strided:
            raise walk.fail(f"tensors with the layout {obj.layout} are not taken apart", obj)
        walk.token(
            b"tensor",
            str(obj.dtype),
            tuple(obj.shape),
            str(obj.device),
            obj.requires_grad,
            obj.is_contiguous(),
        )
        walk.definition(type(obj))
        walk.out += content_digest(values_of(obj))
        parts: list[object] = [obj.grad if obj.is_leaf else None, dict(obj.__dict__)]
        walk.keep(parts)
        walk.push(parts)

    def mark(self, walk: Walk, obj: Any) -> object:
        return walk.apart().run(obj)

    def state(self, obj: Any) -> object:
        return {"tensor": obj.detach(), "grad": obj.grad, "dict": dict(obj.__dict__)}

    def put(self, obj: Any, state: Any) -> None:
        torch = sys.modules["torch"]
        wanted = state["tensor"]
        if obj.shape != wanted.shape or obj.dtype != wanted.dtype:
            raise Unrestorable("torch.Tensor", "its shape or dtype changed in place")
        with torch.no_grad():
            obj.copy_(wanted)
        obj.grad = state["grad"]
        obj.__dict__.clear()
        obj.__dict__.update(state["dict"])


def values_of(tensor: Any) -> Any:
    """The values as a contiguous array; dtypes that NumPy does not know as their bytes."""
    torch = sys.modules["torch"]
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    try:
        return plain.numpy()
    except TypeError:
        return plain.view(torch.uint8).numpy()


class TorchGeneratorKind(Kind):
    """`torch.Generator`: its state."""

    def write(self, walk: Walk, obj: Any) -> None:
        walk.token(b"torch generator", str(obj.device))
        walk.out += content_digest(obj.get_state().numpy())

    def mark(self, walk: Walk, obj: Any) -> object:
        return bytes(obj.get_state().numpy())

    def state(self, obj: Any) -> object:
        return {"state": obj.get_state()}

    def put(self, obj: Any, state: Any) -> None:
        obj.set_state(state["state"])


NAMED.update(
    {
        "torch.Tensor": lambda cls: TensorKind(),
        "torch._C.Generator": lambda cls: TorchGeneratorKind(),
    }
)
