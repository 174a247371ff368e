"""The columns of a tensor: taken, put back and compared, against a boolean mask of the same columns."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import nn

from unipelt.anatomy.columns import Columns, joined

TOTAL = 96
#: By how the columns lie: side by side, head by head, group by group, one range and rows, no order at all.
LAID: dict[str, tuple[Columns, Columns]] = {
    "spans": (Columns.span(0, 16), Columns.span(32, 48)),
    "heads": tuple(Columns.of_indices(i for i in range(TOTAL) if i % 24 // 8 == part) for part in (0, 2)),
    "groups": tuple(Columns.of_indices(i for i in range(TOTAL) if i % 48 in part) for part in (range(32), range(40, 48))),
    "span and heads": (Columns.span(90, 96), Columns.of_indices(i for i in range(72) if i % 24 < 8)),
    "without order": (Columns.of_indices([1, 2, 5, 6, 7, 90]), Columns.of_indices([0, 3, 95])),
    "heads and heads of another width": (Columns.of_indices(range(0, 96, 4)), Columns.of_indices(range(1, 96, 8))),
}  # fmt: skip


def mask_of(c: Columns) -> torch.Tensor:
    mask = torch.zeros(TOTAL, dtype=torch.bool)
    for start, stop in c.ranges:
        mask[start:stop] = True
    return mask


class Both(nn.Module):
    """Twice the one columns, the third of the others."""

    def __init__(self, a: Columns, b: Columns):
        super().__init__()
        self.a, self.b = a, b

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        new = {self.b: self.b.of(h) / 3}
        new[self.a] = self.a.of(h) * 2
        return joined(h, new)


def expected(a: Columns, b: Columns, h: torch.Tensor) -> torch.Tensor:
    return torch.where(mask_of(a), h * 2, torch.where(mask_of(b), h / 3, h))


laid = pytest.mark.parametrize("a, b", list(LAID.values()), ids=list(LAID))


@laid
@pytest.mark.parametrize("lead", [(), (5,), (2, 3)], ids=str)
def test_columns_are_taken_and_put_back(a: Columns, b: Columns, lead: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    h = torch.randn(*lead, TOTAL, dtype=torch.float64, requires_grad=True)
    for c in (a, b):
        assert torch.equal(c.of(h), h[..., mask_of(c)]) and c.width == int(mask_of(c).sum())
        assert torch.equal(c.put(h, -c.of(h)), torch.where(mask_of(c), -h, h))
    assert torch.equal(Both(a, b)(h), expected(a, b, h))
    weight = torch.randn(TOTAL, dtype=torch.float64)
    for out in (Both(a, b)(h), expected(a, b, h)):
        (out * weight).sum().backward()
    assert h.grad is not None
    once = torch.autograd.grad((expected(a, b, h) * weight).sum(), h)[0]
    torch.testing.assert_close(h.grad, 2 * once, rtol=0, atol=0)


@laid
def test_columns_are_compiled_and_exported_whole(a: Columns, b: Columns) -> None:
    torch.manual_seed(0)
    h, model = torch.randn(2, 3, TOTAL), Both(a, b)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    entered, weight = h.clone().requires_grad_(), torch.randn(TOTAL)
    assert torch.equal(compiled(entered), expected(a, b, h))
    (compiled(entered) * weight).sum().backward()
    wanted = torch.autograd.grad((expected(a, b, other := h.clone().requires_grad_()) * weight).sum(), other)[0]
    torch.testing.assert_close(entered.grad, wanted, rtol=1e-6, atol=1e-7)
    exported = torch.export.export(model, (h,)).module()
    assert torch.equal(exported(h * 2), expected(a, b, h * 2))
    assert torch.equal(copy.deepcopy(model)(h), expected(a, b, h))


def test_only_a_single_range_is_a_view() -> None:
    h = torch.zeros(2, TOTAL)
    Columns.span(3, 5).of(h).fill_(1)
    assert h.sum() == 4
    LAID["heads"][0].of(h).fill_(1)
    assert h.sum() == 4


def test_the_same_columns_are_equal_however_they_are_said() -> None:
    one = Columns(((0, 2), (2, 5), (7, 9)))
    assert one == Columns.of_indices([8, 7, 0, 1, 4, 3, 2, 2]) == Columns(((0, 5), (7, 9)))
    assert hash(one) == hash(copy.deepcopy(one)) and one.ranges == ((0, 5), (7, 9)) and one.width == 7
    assert Columns.span(0, 5) == Columns(((0, 3), (3, 5))) != one
    assert [c.period for c in (one, Columns.span(0, 5), Columns(((1, 3), (5, 7), (9, 11))))] == [0, 0, 4]


@pytest.mark.parametrize("ranges", [(), ((2, 2),), ((3, 2),), ((0, 4), (3, 6)), ((4, 6), (0, 2)), ((-1, 2),)], ids=str)
def test_what_is_no_map_of_columns_is_refused(ranges: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="columns are"):
        Columns(ranges)


def test_columns_meet_where_one_is_in_both() -> None:
    choice = random.Random(0)
    seen = set()
    for _ in range(300):
        a, b = (Columns.of_indices(choice.sample(range(40), choice.randint(1, 5))) for _ in "ab")
        wanted = bool((mask_of(a) & mask_of(b)).any())
        assert a.meets(b) == b.meets(a) == wanted
        seen.add(wanted)
    assert seen == {True, False}


def test_columns_as_text() -> None:
    heads = LAID["heads"][0]
    assert str(Columns.span(0, 64)) == "[0:64]" and str(heads) == "[0:8, 24:32, 48:56, …]"
    assert heads.text(head=4, group=2) == "[0:8, 24:32, 48:56, …] per head"
    assert heads.text(head=8, group=4) == "[0:8, 24:32, 48:56, …] per group"
    assert repr(heads) == "<columns [0:8, 24:32, 48:56, …]: 32>" and heads.text(head=2) == str(heads)
    assert Columns(((0, 1), (2, 3), (4, 6), (7, 8))).text(head=4) == "[0:1, 2:3, 4:6, …]"
