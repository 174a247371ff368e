"""Whether a row means something where each example of a batch has tensors of its own: the same lines are typed once more, with the
axis of the batch at those tensors. Words whose weights have no axes (`lstm`) say there that they do not take it."""

from __future__ import annotations

from dataclasses import replace

from ..once import once
from .infer import Inference
from .typed import TypedRow
from .values import IndexType, Poison, Several, TensorType, Value


@once
def takes_a_tensor_for_each_example(t: TypedRow, labels: frozenset[str]) -> bool:
    """Whether the lines that a pass computes are typed with the tensors of these labels (a gate's as ``gate.A``) along the batch."""
    found = Inference(dict(t.values), dict(t.sizes), dict(t.bases), axes=dict(t.axes))
    own = {x.label: x.value for x in t.tensors}
    found.names |= {n: _each(v) if n in labels else v for n, v in own.items() if not n.startswith("gate.")}
    outside = dict(found.names)
    for b in t.bindings:
        if b.expression is None or b.declared is not None or b.part not in ("insert", "form", "gate", "compose"):
            continue
        if b.part == "gate":
            found.names |= {
                n.removeprefix("gate."): _each(v) if n in labels else v for n, v in own.items() if n.startswith("gate.")
            }
        found.apart = b.expression if b.result is not None else None
        value = found.infer(b.expression)
        if b.result is not None and isinstance(value.type, Several):
            value = replace(value, type=value.type.parts[b.result])
        if isinstance(value.type, (Poison, Several)):
            return False
        found.names = {**(found.names if b.part == "gate" else {**outside, **found.names}), b.name: value}
    return not found.problems


def _each(v: Value) -> Value:
    """The value of a tensor that has the axis of the batch as well."""
    assert isinstance(v.type, (TensorType, IndexType))
    return replace(v, type=replace(v.type, axes=v.type.axes | {"batch"}))
