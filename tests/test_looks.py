"""What values look like in a session: a short `repr` for each, HTML and SVG for notebooks."""

from __future__ import annotations

import base64
import re
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
import small
import torch

import unipelt
from unipelt.compiler.labels import Labels
from unipelt.language.loading import check_text

SPEC = '''
gate each { w: [d_in] ~ normal(0.02)  g = sigmoid(z @ w) }
method mine(r: int = 2) {
  """A <script>alert(1)</script> & "docstring" \u202e."""
  use {
    modify attn.q, attn.v   insert parallel
    form { A: [d_in, r] ~ normal(0.3)  B: [r, d_out] ~ zeros  delta = z @ A @ B }
    compose h + delta
  } as low gated by each
  use { train *.bias } as biases
}
'''
SHORT = 300


@pytest.fixture(scope="module")
def plan():
    return unipelt.plan(small.model("bert_labels"), unipelt.parse(SPEC))


def test_every_repr_is_short(plan):
    model = small.model("bert_labels")
    unipelt.apply(model, unipelt.parse(SPEC), "mine")
    with unipelt.watch(model, "mine") as seen:
        model(input_ids=torch.tensor([[1, 2, 3]]))
    checked = check_text("method m {}\n" * 40, "x.pelt")
    values = [
        plan, plan.method, *plan.edits, *plan.tensors.values(), *plan.copies, *plan.method.rows, *plan.method.trains, plan.counts,
        plan.sites, *plan.sites.sites, *plan.sites.stacks, *(e.typing for e in plan.edits), seen, *seen.places, *checked,
        *checked[0].diagnostics, *unipelt.library(), Labels(tuple(map(str, range(100_000)))),
        *unipelt.plan(small.model("bert"), unipelt.load("prefix_tuning_mlp")).folds,
    ]  # fmt: skip
    for value in values:
        assert len(repr(value)) <= SHORT and "\n" not in repr(value), (type(value), repr(value)[:1000])
    assert "mine" in repr(plan) and "low" in repr(plan.edits[0]) and "attn.q" in repr(plan.edits[0])


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.images: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        else:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(text: str) -> _Tags:
    page = _Tags()
    page.feed(text)
    assert not page.open
    return page


def test_a_method_in_a_notebook_is_its_row_its_formula_and_its_picture(plan):
    page = read(plan.method._repr_html_())
    assert "script" not in page.tags and "<script>alert(1)</script>" in page.text and "\u202e" not in page.text
    for part in ("attn.q, attn.v", "parallel", "z @ A @ B", "h + delta", "each()", "g · Δ"):
        assert part in page.text
    (image,) = page.images
    drawn = base64.b64decode(image.removeprefix("data:image/svg+xml;base64,"))
    assert drawn.decode() == plan.method._repr_svg_() and ET.fromstring(drawn).tag.endswith("svg")


def test_a_plan_in_a_notebook_is_its_table(plan):
    page = read(plan._repr_html_())
    assert page.tags.count("tr") == 1 + len(plan.table()) and f"{plan.counts.trained:,}" in page.text


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", [e.name for e in unipelt.library() if e.kind == "method"])
def test_every_method_has_html(name):
    method = unipelt.load(name)
    page = read(method._repr_html_())
    assert name in page.text and re.sub(r"\s", "", method.doc or "") in re.sub(r"\s", "", page.text)


def test_without_matplotlib_a_notebook_has_the_row(plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert plan.method._repr_svg_() is None and "img" not in read(plan.method._repr_html_()).tags
