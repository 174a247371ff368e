"""Passes in which nothing has changed since the last one: hosts call functions written for them, and every change is seen."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator

import pytest
import small
import torch
from names import name as named
from torch import nn

import unipelt
from unipelt.compiler.lower import LOWERINGS
from unipelt.runtime.edits import Edit
from unipelt.runtime.seam import seams
from unipelt.runtime.steady import MOST, Kinds

#: Edits of projections, of sublayers (some read the stream or a norm of it), of what enters a map, at heads with rows fixed and gated.
PLAIN = ("lora", "ia3", "pfeiffer", "parallel_adapter", "prefix_tuning", "mam", "unipelt_apl_causal", "lora+ia3")


def adapted(method: str, kind: str = "llama", dtype: torch.dtype = torch.float32) -> nn.Module:
    m = small.model(kind, dtype=dtype)
    unipelt.apply(m, unipelt.load(named(method)))
    small.randomise(m)
    return m


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Edit]:
    """The edits that are called as modules."""
    found: list[Edit] = []
    forward = Edit.forward

    def counted(self: Edit, *args: object, **kwargs: object) -> object:
        found.append(self)
        return forward(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Edit, "forward", counted)
    return found


@pytest.fixture
def as_ever(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module], torch.Tensor]:
    """What a model yields in a pass that is like no other."""

    def output(m: nn.Module, **given: torch.Tensor) -> torch.Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(Kinds, "of", lambda self, acting, holder: None)
            return small.output(m, **given)

    return output


def step(m: nn.Module) -> dict[str, torch.Tensor]:
    """One token for each of three texts."""
    return {"input_ids": torch.tensor([[5], [6], [7]])}


@pytest.mark.parametrize(
    "kind, dtype", (("llama", torch.float32), ("llama", torch.bfloat16), ("gpt2", torch.float32)), ids=str
)
@pytest.mark.parametrize("method", PLAIN)
def test_the_third_pass_calls_no_edit_and_computes_the_same(
    method: str, kind: str, dtype: torch.dtype, calls: list[Edit], as_ever: Callable
) -> None:
    m = adapted(method, kind, dtype)
    for given in (small.inputs(), step(m)):
        expected = as_ever(m, **given)
        first, second = small.output(m, **given), small.output(m, **given)
        assert calls
        calls.clear()
        third = small.output(m, **given)
        # with several tokens a causal flag says what rows among the keys see, and gated ones are told apart
        heads = [e for e in calls if e.side == "attention"]
        assert len(heads) == len(calls) and (not heads or given["input_ids"].shape[1] > 1)
        assert torch.equal(first, expected) and torch.equal(second, expected) and torch.equal(third, expected)


def test_generation_is_the_same_with_pads_beams_and_a_cropped_cache(
    as_ever: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = adapted("unipelt_apl_causal")
    given = small.inputs()
    given["attention_mask"] = given["attention_mask"].flip(1)  # pads stand in front

    def generated() -> list[torch.Tensor]:
        found = [m.generate(**given, max_new_tokens=6, do_sample=False, num_beams=n, pad_token_id=0) for n in (1, 3)]
        with torch.no_grad():
            ids = given["input_ids"][:1]
            cache = small.cache_of(m(input_ids=ids))
            for _ in range(3):
                found.append(m(input_ids=ids[:, -1:], **small.with_cache(m, cache)).logits)
                cache.crop(-1)
        return found

    here = generated()
    monkeypatch.setattr(Kinds, "of", lambda self, acting, holder: None)
    assert all(torch.equal(a, b) for a, b in zip(here, generated(), strict=True))


# ---------------------------------------------------------------- what changes


def tensor_of(m: nn.Module) -> tuple[nn.Module, str, nn.Parameter]:
    """A parameter of an edit of which something is computed once."""
    edit = next(e for _, s in seams(m) for e in s.modules() if isinstance(e, Edit) and e.side == "attention")
    name, t = next((n, p) for n, p in edit.named_parameters() if p.dim() > 1)
    return edit, name, t


def in_place(m: nn.Module) -> None:
    with torch.no_grad():
        tensor_of(m)[2].mul_(3)


def other_data(m: nn.Module) -> None:
    for _, seam in seams(m):
        for t in seam.parameters():
            t.data = t.data * 3


def another_parameter(m: nn.Module) -> None:
    edit, name, t = tensor_of(m)
    setattr(edit, name, nn.Parameter(t.detach() * 3))


def past_the_count(m: nn.Module) -> None:
    t = tensor_of(m)[2]
    t.data.copy_(t.data * 3)
    m.train().eval()


def one_step(m: nn.Module) -> None:
    m(**small.inputs())[0].sum().backward()
    torch.optim.SGD([p for p in m.parameters() if p.requires_grad], 0.1).step()


def loaded(m: nn.Module) -> None:
    m.load_state_dict({n: p * 3 if "unipelt" in n else p for n, p in m.state_dict().items()}, assign=True)


def hooked(m: nn.Module) -> None:
    tensor_of(m)[0].register_forward_hook(lambda module, args, output: tuple(t if t is None else t * 3 for t in output))


def one_more(m: nn.Module) -> None:
    unipelt.apply(m, unipelt.load(named("lora")), "more")
    small.randomise(m, "more")
    unipelt.activate(m, "default", "more")


def none(m: nn.Module) -> None:
    unipelt.activate(m)


def removed(m: nn.Module) -> None:
    unipelt.remove(m)


def eager(m: nn.Module) -> None:
    small.randomise(m)
    m.set_attn_implementation("eager")


def doubled(m: nn.Module) -> None:
    m.double()


@pytest.mark.parametrize("change", (in_place, other_data, another_parameter, past_the_count, one_step, loaded, hooked, one_more, none, removed, eager,
                                    doubled), ids=lambda f: f.__name__)  # fmt: skip
@pytest.mark.parametrize("method", ("unipelt_apl_causal", "prefix_tuning"))
def test_a_change_is_seen(method: str, change: Callable[[nn.Module], None], as_ever: Callable) -> None:
    m = adapted(method)
    before = [small.output(m, **step(m)) for _ in range(4)][-1]
    change(m)
    after = small.output(m, **step(m))
    assert torch.equal(after, as_ever(m, **step(m))) and not torch.equal(after, before)


@pytest.mark.parametrize("data", (False, True), ids=("in place", "other data"))
@pytest.mark.parametrize("method", ("unipelt_apl_causal", "mam", "lora"))
def test_a_change_of_each_tensor_is_seen(method: str, data: bool, as_ever: Callable) -> None:
    m = adapted(method)
    own = [p for n, p in m.named_parameters() if "unipelt" in n and ("layers.1." in n or "layers" not in n)]
    assert len(own) > 3
    for t in own:
        # with one token there is one key, and queries change nothing
        before = [small.output(m, **given) for given in [small.inputs(), step(m)] * 3][-2]
        with torch.no_grad():
            if data:
                t.data = t * 0.5 + 0.1
            else:
                t.mul_(0.5).add_(0.1)
        assert torch.equal(small.output(m, **step(m)), as_ever(m, **step(m)))
        assert torch.equal(after := small.output(m), as_ever(m)) and not torch.equal(after, before)


def test_gradients_flow_after_passes_without_any() -> None:
    m = adapted("unipelt_apl_causal")
    for _ in range(3):
        small.output(m)
    m(**small.inputs())[0].sum().backward()
    trained = [p for p in m.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    for layer in m.model.layers:  # a part of the pass that has gradients, where the pass has none
        layer.register_forward_pre_hook(lambda module, args: torch.set_grad_enabled(True) and None)
    m.zero_grad()
    for _ in range(4):
        with torch.no_grad():
            out = m(**small.inputs())[0]
    out.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


def test_watching_and_autocast_see_every_edit(as_ever: Callable) -> None:
    m = adapted("unipelt_apl_causal")
    for _ in range(3):
        small.output(m)
    with unipelt.watch(m) as seen:
        for _ in range(3):
            small.output(m)
    rows = unipelt.load(named("unipelt_apl_causal")).rows
    assert {p.row for p in seen.edits} == {r.name for r in rows}
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = small.output(m), as_ever(m)
        assert torch.equal(found, expected)
    with torch.inference_mode():
        expected = as_ever(m)
        assert all(torch.equal(small.output(m), expected) for _ in range(4))
    assert all(torch.equal(small.output(m), as_ever(m)) for _ in range(4))


def test_without_the_lowerings_too(as_ever: Callable) -> None:
    for lowering in ([], *([n] for n in LOWERINGS)):
        m = small.model("llama")
        unipelt.apply(m, unipelt.load(named("unipelt_apl_causal")), lowering=lowering)
        small.randomise(m)
        expected = as_ever(m, **step(m))
        assert all(torch.equal(small.output(m, **step(m)), expected) for _ in range(3))


def test_threads_and_many_adapters(as_ever: Callable) -> None:
    m = small.model("llama")
    names = [f"a{i}" for i in range(MOST + 2)]
    for i, n in enumerate(names):
        unipelt.apply(m, unipelt.load(named(PLAIN[i % len(PLAIN)].partition("+")[0])), n)
        small.randomise(m, n, seed=i)
    expected = {}
    for n in names:
        with unipelt.using(m, n):
            expected[n] = as_ever(m, **step(m))
    wrong: list[str] = []

    def work(own: list[str]) -> None:
        for n in own:
            with unipelt.using(m, n):
                wrong.extend(n for _ in range(4) if not torch.equal(small.output(m, **step(m)), expected[n]))

    threads = [threading.Thread(target=work, args=(names[i:] + names[:i],)) for i in (0, 3, 6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    kinds: Kinds = next(s for _, s in seams(m)).switch.kinds
    assert 0 < len(kinds.known) <= MOST


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_adapters_that_are_mapped_over(as_ever: Callable) -> None:
    """Tensors in the place of those that are registered, batched ones among them (`torch.vmap`)."""
    m = adapted("unipelt_apl_causal")
    before = as_ever(m, **step(m))
    own = {n: p.detach() for n, p in m.named_parameters() if "unipelt" in n}
    both = {n: torch.stack([t, t * 2]) for n, t in own.items()}

    def output(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(m, tensors, kwargs={**step(m), "use_cache": False}).logits

    with torch.no_grad():
        for _ in range(3):
            found = torch.vmap(output)(both)
            for i, one in enumerate(found):
                torch.testing.assert_close(one, output({n: t[i] for n, t in both.items()}))
    assert not torch.equal(found[0], found[1]) and torch.equal(small.output(m, **step(m)), before)


@pytest.mark.parametrize("copied", (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))), ids=("copied", "pickled"))
def test_copies_have_functions_of_their_own(copied: Callable[[nn.Module], nn.Module], as_ever: Callable) -> None:
    m = adapted("unipelt_apl_causal")
    before = [small.output(m, **step(m)) for _ in range(3)][-1]
    other = copied(m)
    small.randomise(other, seed=5)
    after = [small.output(other, **step(other)) for _ in range(3)]
    assert all(torch.equal(t, as_ever(other, **step(other))) for t in after) and not torch.equal(after[0], before)
    assert torch.equal(small.output(m, **step(m)), before)


def test_a_layer_that_is_called_by_itself_or_twice_says_so() -> None:
    m = adapted("unipelt_apl_causal")
    for _ in range(3):
        small.output(m)
    with torch.no_grad(), pytest.raises(unipelt.PeltError, match="E0523"):
        m.model.layers[0].mlp(torch.zeros(1, 2, small.WIDTH))
    hook = m.model.layers[0].mlp.register_forward_hook(lambda module, args, output: hook.remove() or module(*args))
    with pytest.raises(unipelt.PeltError, match="E0523"):
        small.output(m)


def test_a_compiled_layer_is_compiled_once() -> None:
    torch.compiler.reset()
    m = adapted("mam")
    expected = small.output(m)
    made: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        made.append(graph)
        return graph.forward

    layer = m.model.layers[1]
    layer.forward = torch.compile(layer.forward, backend=backend, fullgraph=True)
    torch.testing.assert_close(small.output(m), expected)
    count = len(made)
    assert count
    for _ in range(4):
        torch.testing.assert_close(small.output(m), expected)
    assert len(made) == count


@pytest.fixture(autouse=True)
def without_gradients_left() -> Iterator[None]:
    yield
    torch.set_grad_enabled(True)


@pytest.mark.parametrize("method", ("mam", "dora", "unipelt_apl_causal"))
def test_data_that_come_to_lie_where_others_lay_are_seen(method: str) -> None:
    """As MeZO trains: other data between passes, often where those of an earlier pass lay, once nobody holds these."""
    m = adapted(method)
    own = [p for n, p in m.named_parameters() if "unipelt" in n]
    for _ in range(3):
        before = small.output(m, **step(m))
    for t in own:
        place = t.data_ptr()
        for _ in range(20):
            t.data = t.data * 0.9
            t.data = t.data + 0.1
            if t.data_ptr() == place:
                break
        after = small.output(m)
        assert torch.equal(after, small.output(copy.deepcopy(m)))
    assert not torch.equal(small.output(m, **step(m)), before)


@pytest.mark.parametrize("method", ("mam", "dora", "oft", "unipelt_apl_causal"))
def test_eval_is_enough_where_torch_counted_no_change(method: str) -> None:
    """Averaged weights are often written so, before an evaluation that calls `eval`."""
    m = adapted(method)
    before = [small.output(m) for _ in range(3)][-1]
    for n, t in m.named_parameters():
        if "unipelt" in n:
            t.data.copy_(t.data * 0.5 + 0.1)
    m.eval()
    after = small.output(m)
    assert torch.equal(after, small.output(copy.deepcopy(m))) and not torch.equal(after, before)
