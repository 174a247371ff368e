"""What a reader does who is told what to do in words that leave the change to them: for each help, the change in each program.

A change is what stands there and what is written in its place, in the file of the mistake or the one that is named;
or a function of that file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

Change = tuple[str, str] | tuple[str, str, str] | tuple[str, Callable[[Path], None]]


def beside(file: Path) -> None:
    """Puts a file beside the one that imports."""
    (file.parent / "beside.pelt").write_text("compose beside = h + 3 * delta\n")


def shortened(file: Path) -> None:
    """Gives the import a name that a file can have, and makes the file."""
    beside(file)
    file.write_text(re.sub(r'import "[^"]*"', 'import "beside.pelt"', file.read_text()))


def recoded(encoding: str) -> Callable[[Path], None]:
    """Saves the file with the encoding UTF-8."""

    def save(file: Path) -> None:
        file.write_text(file.read_bytes().decode(encoding), "utf-8")

    return save


def called_once(file: Path) -> None:
    """Calls each gate once, and reads what it gave twice."""
    file.write_text(re.sub(r"a = (g\d+\(z\))  b = \1  g = a \* b", r"a = \1  g = a * a", file.read_text()))


def halved(file: Path) -> None:
    """Deletes the second of two equal definitions."""
    text = file.read_text()
    file.write_text(text[: len(text) // 2])


BY_HAND: dict[str, dict[str, Change | list[Change]]] = {
    "modify the projection itself, or leave `insert` out: then `z` is the weight": {
        "E0305-bends": ("ffn.experts.down.weight", "ffn.down"),
        "E0305-constant": ("attn.q.weight", "attn.q"),
    },
    "give the axis another name, or leave the line out": {"E0224-axis-of-the-site": ("    axis expert = 8\n", "")},
    "declare it, as in `axis expert = 4`; the weights of a layer's own experts have it, as `ffn.experts.down.weight`": {
        "E0347-no-experts": ("    A: [d_in", "    axis expert = 4\n    A: [d_in")
    },
    "write `layers(2)` for one tensor in two layers, or `layer` for one in each": {
        "E0392-groups-without-a-number": ("per layers", "per layers(2)")
    },
    "write `per layers(k)`, or `per kind, layers(k)`": {
        "E0392-groups-per-model": ("per model, layers(2)", "per layers(2)")
    },
    "write a number, as in `layers(2)`": {"E0392-groups-by-layer": ("layers(layer + 1)", "layers(2)")},
    "start it from tensors of its own row": {"E0376-start-of-anothers": ("= 2 * first.A", "~ normal(0.02)")},
    "change the order of the rows": {
        "E0376-row-below": [
            (
                "form { B: [r, d_out] ~ zeros  delta = z @ second.A @ B }",
                "form { A: [d_in, r] ~ normal(0.02)  B: [r, d_out] ~ zeros  delta = z @ A @ B }",
            ),
            ("as first", "as none"),
            ("as second", "as first"),
            ("as none", "as second"),
        ]
    },
    "it has: A, B": {"E0376-no-such-tensor": ("first.C", "first.A")},
    "the kernel's third size is that of a token: r": {
        "E0312-conv2d-channels": ("[3, 3, d_in, d_out]", "[3, 3, r, d_out]")
    },
    "give both the same sizes": {
        "E0312-scatter-other-sizes": ("b: [k]", "b: [n]"),
        "E0312-rows-at-places": ("T: [3", "T: [2"),
    },
    "write the numbers themselves, as in `listed(3, 17)`": {"E0372-listed-below-nought": ("-7", "7")},
    "declare `frozen I: [2]`, or list as many as there are": {
        "E0372-listed-others": [("frozen I: [3]", "frozen I: [2]"), ("T: [3", "T: [2")]
    },
    "declare `frozen t: [3]`, or list as many as there are": {
        "E0372-values-others": ("frozen t: [4]", "frozen t: [3]")
    },
    "read a tensor with it, as in `b[I]`": {
        "E0317-whole-numbers-added": ("b + I", "b[I]"),
        "E0317-whole-numbers-bent": ("b * tanh(I)", "tanh(b[I])"),
    },
    "declare them, as in `frozen I: [n] ~ choice(d_in * d_out)`": {
        "E0331-scatter-at-a-tensor": [
            ("    b: [n]", "    frozen I: [n] ~ choice(d_out)\n    b: [n]"),
            ("scatter(b, b,", "scatter(b, I,"),
        ]
    },
    "for the largest entries of a token's own values compare them, as in `z * (z > b)`": {
        "E0331-top-indices-of-tokens": [
            ("b: [n]", "b: [d_in]"),
            ("scatter(b, top_indices(z, n), d_out)", "z * (z > b)"),
        ]
    },
    "draw numbers below d_model, or read a tensor of the size d_model + 1": {
        "E0363-numbers-beyond": ("integers(d_in + 1)", "integers(d_in)")
    },
    "declare the numbers or the tensor without the axis `head` (`per site`)": {
        "E0363-numbers-for-each-head": ("b: [n] ~ zeros", "b: [n] ~ zeros per site")
    },
    "draw places below d_model d_q": {"E0363-places-beyond": ("2 * d_in", "d_in")},
    "distinct whole numbers below the one given": {"E0372-choice-below-a-half": ("4.5", "4")},
    "draw fewer, or with `integers`, which draws each by itself": {
        "E0372-more-than-there-are": ("choice(d_out)", "integers(d_out)")
    },
    "declare `frozen I: [d_model]`": {
        "E0372-permutation-of-others": [
            ("frozen I: [2 * d_out]", "frozen I: [d_out]"),
            ("b: [2 * d_out]", "b: [d_out]"),
        ]
    },
    "give the method that uses it a parameter `of: adapters`, and hand that on": {
        "E0381-adapters-by-their-names": [('["first", "second"]', "of"), ("method m {", "method m(of: adapters) {")]
    },
    "write `axis member = of` above this line": {
        "E0382-adapters-without-axis": ("axis member = 2", "axis member = of"),
        "E0382-adapters-with-another-axis": ("axis member = n", "axis member = of"),
    },
    "declare `w: [] ~ constant(1 / of) per member`": {
        "E0383-weights-of-adapters-with-sizes": ("w: [d_out] ~ ones per member", "w: [] ~ constant(1 / of) per member"),
        "E0383-weights-of-adapters-of-another-axis": ("w: [] ~ ones per expert", "w: [] ~ constant(1 / of) per member"),
    },
    "keep them as they are drawn: `frozen I: …`": {
        "E0374-whole-numbers-trained": ("    I: [n]", "    frozen I: [n]"),
        "E0374-found-places-trained": ("    I: [n]", "    frozen I: [n]"),
    },
    "leave `chance` out of the start": {
        "E0370-chance-of-a-norm": (" * chance", ""),
        "E0370-start-of-a-chance": ("b: [] = chance", "b: [] ~ ones"),
    },
    "leave `noise` out of the start": {"E0370-start-of-noise": ("= noise[4, d_out]", "~ normal(1.0)")},
    "write them in brackets, as in `noise[d_in]` or `noise[batch, 4]`": {
        "E0385-without-brackets": ("noise", "noise[4]")
    },
    "write sizes, axes and at most one of site, layer, kind, model, as in `noise[batch, 4]`": {
        "E0385-no-size": ("0.5]", "4]"),
        "E0385-range": ("2 : 4", "4"),
        "E0385-two-places": ("site, layer", "layer"),
    },
    "write sizes, axes and at most one of site, layer, kind, model, as in `chance[batch, 4]`": {
        "E0385-twice": ("batch, batch", "batch")
    },
    "write `penalty …` into the row's form": {"E0386-penalty-in-a-composition": ("penalty 1.0  out", "out")},
    "reduce it: `mean(…, tokens, batch)`": {
        "E0386-penalty-of-tokens": ("sum((z @ A) ** 2)", "mean(sum((z @ A) ** 2), tokens, batch)")
    },
    "add its entries up: `sum(…)`": {"E0386-penalty-with-entries": ("A ** 2", "sum(sum(A ** 2))")},
    "read the row's tensors, or `gradient(…)` of one": {
        "E0303-token-after-a-step": ("mean(z, tokens)", "2"),
        "E0387-drawn": ("noise[r]", "1"),
    },
    "write what has its type": {"E0387-another-size": ("A = B", "A = 2 * A")},
    "write it into the form's `after step { … }`, where gradients are known": {
        "E0387-gradient-in-a-form": ("g = gradient(A)", "after step { A = A - gradient(A) }")
    },
    "as in `gradient(A)`; a frozen tensor has none": {"E0387-gradient-of-a-sum": ("A + A", "A")},
    "let each place have its own: `per site`": {"E0387-one-for-all-layers": ("per kind", "per site")},
    "as in `among(s, 8)`": {"E0387-among-a-tensor": ("(A, B)", "(A, 8)")},
    "declare two sizes, or start from another distribution, such as `normal(0.02)`": {
        "E0371-number-as-identity": ("~ identity", "~ normal(0.02)"),
        "E0371-vector-of-rows": ("~ orthogonal", "~ normal(0.02)"),
    },
    "normal(std) or normal(mean, std)": {"E0372-negative-deviation": ("0 - 0.02", "0.02")},
    "write a number": {
        "E0373-drawn-by-the-scale": ("normal(scale)", "normal(0.02)"),
        "E0373-rate-of-the-scale": ("lr scale", "lr 2"),
    },
    "let a row of its own, without `layers`, modify `embed.words`": {
        "E0518-beside-a-site-in-the-layers": [
            (
                "layers 0 .. 3\n  modify ffn, embed.words\n  compose h * 2",
                "use { layers 0 .. 3  modify ffn  compose h * 2 } as inner\n  use { modify embed.words  compose h * 2 } as words",
            )
        ]
    },
    "write what is expected, or close the bracket before it": {
        "E0101-anatomy-without-for": ("new {", "new for new_type {"),
        "E0101-choose-without-else": ("if r > 4 }", "if r > 4 else 2 * z }"),
        "E0101-empty-call-argument": ("(r,,)", "(r)"),
        "E0101-form-without-body": ("form wide(r: int)", "form wide(r: int) { delta = z }"),
        "E0101-operator-without-side": ("z + }", "z + z }"),
        "E0101-tensor-without-start": ("b: [d_out]\n", "b: [d_out] ~ zeros\n"),
        "E0101-use-as-nothing": ("as\n", "as part\n"),
        "mutant-adapter-train": ("*.norm.\n", "*.norm.*\n"),
        "several-broken-definitions": ("2 * * h", "2 * h"),
    },
    "comments begin with `#`": {"E0101-comment-of-c": ("//", "#")},
    "put the docstring first in its definition": {
        "E0101-docstring-behind-clause": (
            '  modify ffn\n  """What it does."""\n',
            '  """What it does."""\n  modify ffn\n',
        )
    },
    "give the value a name: `name = …`": {"E0101-expression-alone": ("relu(z)", "delta = relu(z)")},
    "put the row into `use { … } as name gated by a_gate`; within a form or composition call the gate: `g = a_gate(z)`": {
        "E0101-gated-block": ("    gated by { g = 0.5 }\n  } as part\n", "  } as part gated by { g = 0.5 }\n"),
        "E0101-gated-clause": (
            "  modify ffn\n  insert parallel\n  form low_rank(r)\n  gated by token_gate\n  compose add\n",
            "  use { modify ffn insert parallel form low_rank(r) compose add } as name gated by token_gate\n",
        ),
        "E0101-gated-form": (
            "  modify  ffn\n  insert  parallel\n  form    low_rank(r) gated by token_gate\n  compose add\n",
            "  use { modify ffn insert parallel form low_rank(r) compose add } as name gated by token_gate\n",
        ),
    },
    "select layers, for example `layers last 4`": {
        "E0101-layers-without-selection": ("  layers\n", "  layers last 4\n")
    },
    "name a site, for example `modify ffn`": {"E0101-missing-site": ("  modify\n", "  modify ffn\n")},
    "a parameter has a type: `r: int = 8`": {
        "E0101-parameter-without-type": ("(r = 8)", "(r: int = 8)"),
        "several-imports": ("low(r)", "low(r: int = 8)"),
    },
    "a file is a list of definitions": {
        "E0101-plain-text": ("LoRA is a method for tuning.", "method m { use lora }"),
        "E0101-python-def": ("def m(r):\n  return r", "method m(r: int = 8) { use lora(r) }"),
    },
    "write sites without brackets: `modify attn.q, attn.v`": {
        "E0101-sites-in-brackets": ("[attn.q, attn.v]", "attn.q, attn.v")
    },
    "a tensor needs its sizes: `b: [sizes] ~ distribution`": {
        "E0101-tensor-without-sizes": ("b ~ zeros", "b: [d_out] ~ zeros")
    },
    "write one `require` for each condition": {
        "E0103-and": ("require r > 2 && r < 9", "require r > 2\n  require r < 9")
    },
    "names are made of the letters a to z, digits and `_`": {"E0103-greek": ("α", "alpha")},
    "not equal is written `!=`; there is no `not`: exchange the two sides of `if … else`": {
        "E0103-negation": ("2 * h if !b else h", "h if b else 2 * h")
    },
    "a name begins with a letter; put an operator or a space after a number": {
        "E0103-number-with-letters": ("8x", "8")
    },
    "`%` is only a percent sign; divisibility is `divides(b, d)`": {
        "E0103-percent-as-remainder": ("12 % 4 == 0", "divides(4, 12)")
    },
    "let `z @ A` and what stands behind `then` have one type": {
        "E0390-carry-of-another-type": ("s @ U\n    delta", "s + z @ A\n    delta")
    },
    "let `z` and what stands behind `then` have one type": {"E0390-carry-of-a-mean": ("mean(s, tokens)", "s + z")},
    "carry what is made of `z`; what all examples share is a tensor `per model`": {
        "E0390-carry-of-a-tensor": ("A then", "z * A then")
    },
    "modify `attn.q`": {"E0390-carry-at-a-weight": ("attn.q.weight", "attn.q\n  insert parallel")},
    "modify a site within the layers": {"E0390-carry-behind-the-layers": ("final", "block")},
    "write `carry …` into the row's form": {
        "E0390-carry-in-a-composition": (
            "delta = z\n  }\n  compose {\n    carry s = delta then s + delta\n    out = h + s\n  }",
            "carry s = z then s + z\n    delta = s\n  }\n  compose h + delta",
        )
    },
    "take a composition that adds it: `compose add`": {
        "E0390-carry-of-shared-softmax": ("compose share_softmax", "compose add")
    },
    "a number has one point": {"E0103-two-points": ("1.2.3", "1.23")},
    'close it with `"""`': {"E0104-docstring": ("What it does.\n", 'What it does."""\n')},
    "leave out those that change nothing, or name parts of the expression with `name = …`": {
        "E0108-brackets": ("(" * 66 + "h" + ")" * 66, "h"),
        "E0108-lists": ("[" * 66 + "attn" + "]" * 66, "[attn]"),
    },
    "name parts of the expression with `name = …`": {
        "E0109-calls": (
            "compose h" + ".T" * 130,
            "compose {\n    a = h" + ".T" * 65 + "\n    out = a" + ".T" * 65 + "\n  }",
        ),
        "E0109-sum": (
            "compose h" + " + 1" * 120,
            "compose {\n    a = h" + " + 1" * 60 + "\n    out = a" + " + 1" * 60 + "\n  }",
        ),
    },
    "write one of at most about 1.8e308": {"E0110-beyond-floats": ("1e999", "1e30")},
    "write it with an exponent": {"E0110-digits": ("3.14159265358979323846264338327950288", "3.14159e0")},
    "use `*` or `@` for a product": {
        "E0115-number-called": ("2(s + 1)", "2 * (s + 1)"),
        "E0115-product-without-sign": ("(1 + h)(h)", "(1 + h) * (h)"),
    },
    "only a method is a space: give the alternatives there": {
        "E0118-form": (" in {8, 16}", ""),
        "E0118-gate": (" in {0.1, 0.5}", ""),
    },
    "name a `.pelt` file, not a folder": {
        "E0122-folder-named-as-a-file": (
            'E0122-folder-named-as-a-file/parts.pelt"',
            'E0122-folder-named-as-a-file/parts.pelt/low.pelt"',
        ),
        "E0122-import-of-a-folder": ('/parts"', '/parts/low.pelt"'),
        "E0122-import-of-no-name": [("", beside), ('import ""', 'import "beside.pelt"')],
    },
    "check its name and its permissions": {
        "E0123-folder-name-too-long": ("", shortened),
        "E0123-name-too-long": ("", shortened),
    },
    "save the file with the encoding UTF-8": {
        "E0124-import-in-latin-1": ("", recoded("latin-1")),
        "E0124-import-in-utf-16": ("", recoded("utf-16")),
        "E0124-import-of-an-import": ("", recoded("latin-1")),
    },
    "rename or delete one of them": {
        "E0201-defined-twice": ("method a {\n  use lora\n}", "method b {\n  use lora\n}"),
        "E0201-form-twice": ("form f {\n  delta = z\n}", "form f_2 {\n  delta = z\n}"),
        "E0201-in-an-import": ("", halved),
        "several-imports": ("method m(r: int = 4)", "method n(r: int = 4)"),
    },
    "put the file beside the spec, or into a folder below it": {
        "E0203-absolute": [("", beside), ('import "/etc/passwd"\n', 'import "beside.pelt"\n')],
        "E0203-folder-above": [("", beside), ('"../elsewhere.pelt"', '"beside.pelt"')],
        "E0203-import-of-an-import": [("", beside), ('"../../parts.pelt"', '"beside.pelt"')],
        "several-imports": [("", beside), ('"../bad.pelt"', '"beside.pelt"')],
    },
    "its path begins in the folder of `E0205-folder-below.pelt`": {
        "E0205-folder-below": [("", beside), ('"parts/none.pelt"', '"beside.pelt"')]
    },
    "its path begins in the folder of `parts.pelt`": {
        "E0205-import-of-an-import": [("", beside), ('"others.pelt"', '"beside.pelt"')]
    },
    "its path begins in the folder of `E0205-missing.pelt`": {
        "E0205-missing": [("", beside), ('"no_such_file.pelt"', '"beside.pelt"')]
    },
    "in `E0205-near-file`: did you mean `parts.pelt`?": {"E0205-near-file": ("/part.pelt", "/parts.pelt")},
    "did you mean `E0205-near-folder`?": {"E0205-near-folder": ("E0205-near-foldr", "E0205-near-folder")},
    "its parameters: r: int, dropout: float, init: init": {
        "E0206-called-form-parameter": (", zeros, 3)", ", zeros)"),
        "E0206-surplus-argument": (", zeros, 3)", ", zeros)"),
        "E0207-missing-argument": ("low_rank\n", "low_rank(r)\n"),
    },
    "its parameters: r: int": {
        "E0206-imported-form": ("rank = r", "r = r"),
        "E0207-imported-form": ("form low\n", "form low(r)\n"),
        "E0207-method": ("use inner\n", "use inner(8)\n"),
    },
    "give it once": {"E0208-argument-twice": ("(r, r = 2)", "(r)"), "E0208-by-name": ("(r = r, r = 4)", "(r = r)")},
    "add a row (`modify`, `insert`, `form`, `compose`), a `use` or a `train`": {
        "E0212-nothing": ("{}", "{ use lora }"),
        "E0212-only-a-docstring": ('written."""', 'written."""\n  train *.bias'),
    },
    "write out what one of them does in place of the call": {
        "E0213-cycle-from": ("method a from b {}", "method a { use lora }"),
        "E0213-cycle-self": ("method a from a {\n  compose add", "method a {\n  modify ffn\n  compose 2 * h"),
        "E0213-cycle-through-an-import": (
            "from m(r) { insert sequential }",
            "{ modify ffn insert sequential form low_rank(r) compose add }",
        ),
        "E0213-cycle-use": ("use b\n", "modify ffn compose 2 * h\n"),
    },
    "write out what it does in place of the call": {"E0213-form": ("f(z, r)", "z")},
    "name both sites in one: `modify attn, ffn`": {
        "E0214-modify-twice": ("  modify  ffn\n  modify  attn\n", "  modify  attn, ffn\n")
    },
    "keep one of them": {"E0214-slot-twice": ("  compose add\n", "")},
    "move it into the row's form or composition": {
        "E0215-later-method-input": (
            "  input task: index(3)\n  use lora\n",
            "  modify ffn\n  form {\n    input task: index(3)\n    b: [3, d_out] ~ zeros\n    delta = b[task]\n  }\n  compose add\n",
        ),
        "E0215-later-method-tensor": (
            "  A: [d_model] ~ zeros\n  use lora\n",
            "  modify ffn\n  form {\n    A: [d_model] ~ zeros\n    delta = A\n  }\n  compose add\n",
        ),
        "E0215-let": (
            "  s = 2\n  modify ffn\n  compose s * h\n",
            "  modify ffn\n  compose {\n    s = 2\n    out = s * h\n  }\n",
        ),
    },
    "write the rows with `use … { … }`": {
        "E0216-from-several": (
            "method m from two {\n  compose add\n",
            "method m {\n  use lora as a { compose add }\n  use lora as b { compose add }\n",
        ),
        "E0216-overrides-several": (
            "  use two {\n    insert sequential\n  }\n",
            "  use lora as a { insert sequential }\n  use lora as b { insert sequential }\n",
        ),
    },
    "leave one gate out": {
        "E0217-gated-twice": ("use inner as b gated by token_gate", "use inner as b"),
        "E0217-gated-union": ("as two gated by { g = 0.1 }", "as two"),
    },
    "add `modify SITE`, for example `modify ffn`": {
        "E0218-no-modify": ("  insert  parallel\n", "  modify ffn\n  insert  parallel\n")
    },
    "keep one alternative in each slot, or let `unipelt generate` write its members": {
        "E0220-from-a-space": (" in {8, 16} = 8", " = 8"),
        "E0220-used-space": ("attn | ffn", "ffn"),
    },
    "`bottleneck` is a form: write it after `form`": {
        "E0221-name-of-another-kind": ("form low_rank(4)\n  compose bottleneck", "form bottleneck(4)\n  compose add")
    },
    "`add` is a composition: write it after `compose`": {
        "E0225-name-of-another-kind": ("form add\n  compose h + delta", "form low_rank(4)\n  compose add")
    },
    "for example [attn, ffn]": {"E0226-number": ("[attn, 2 + 3]", "[attn, ffn]")},
    "write it shorter: `2 * s` for `s + s`, or a number": {"E0227-argument": ("s + s", "2 * s")},
    "call it once, and read what it gave by the name on the left": {"E0227-gates-that-double": ("", called_once)},
    "write a row once, and share it": {"E0227-rows": ("  use m8 as b\n", "")},
    "rename one, or define it in this file, too": {
        "E0228-compose-below": (
            'import "E0228-compose-below/both.pelt"\n',
            'import "E0228-compose-below/both.pelt"\n\ncompose halved = h + delta / 2\n',
        ),
        "E0228-form": [("form low(", "form low_2(", "E0228-form/other.pelt")],
    },
    "true or false": {"E0232-default-bool": ("= 3", "= true")},
    "what goes into `attn` is read there, not modified: `modify attn` with `insert parallel` reads it": {
        "E0302-input-of-a-site": ("attn.x", "attn")
    },
    "norms are trained as they are, in place of a row: `train *.norm.*`; the last one's output is the site `final`": {
        "E0302-norm": ("  modify attn.norm\n  compose 2 * h\n", "  train *.norm.*\n")
    },
    "add a form, as in `form { delta = tanh(z) }`": {
        "E0303-delta-without-form": ("  compose", "  insert parallel\n  form { delta = tanh(z) }\n  compose")
    },
    "add `insert parallel` or `insert sequential`": {
        "E0303-z-without-insert": ("  form {", "  insert parallel\n  form {")
    },
    "the last sizes must be equal: d_q and r": {"E0310-compose-expression": ("[d_in, r]", "[d_in, d_q]")},
    "the last sizes must be equal: r and 2 r": {"E0310-plus": ("b: [2 * r] ", "b: [r]")},
    "the last sizes must be equal: d_model and r": {"E0310-times": ("u: [r]", "u: [d_model]")},
    "turn the tensor with `.T`, or declare it with the sizes that are asked for": {
        "E0312-concat": ("concat(A, B)", "concat(A, B.T)"),
        "E0312-fill-wide": ("[r, 2 * d_out]", "[r, d_out]"),
        "E0312-lstm-gates": ("3 * r", "4 * r"),
        "E0312-module-of-another-size": ("P: [r, d_ff] ~ zeros", "P: [r, d_model] ~ zeros per site"),
        "E0312-prepend-wide": ("[r, 2 * d_out]", "[r, d_out]"),
        "mutant-lstm-gates": ("3 * h", "4 * h"),
    },
    "the two sizes must be equal: d_model and d_ff": {
        "E0312-imported-form-elsewhere": ("[d_out, d_out]", "[d_in, d_out]")
    },
    "the two sizes must be equal: r and 2 r": {"E0312-in-an-imported-form": ("[2 * r, d_out]", "[r, d_out]")},
    "did you mean `r`?": {"E0312-matmul-near": ("[rr, d_out]", "[r, d_out]")},
    "leave `.T` out and write the tokens first, as in `z @ A`: each goes through a product by itself": {
        "E0314-activation": ("A @ z.T", "z @ A"),
        "E0314-scores-of-tokens": ("{ delta = softmax(x @ x.T) @ x }", "{ A: [d_in, d_out] ~ zeros  delta = x @ A }"),
    },
    "for a choice in each entry multiply: `(z > 0) * a + (z <= 0) * b`": {
        "E0315-tensor": ("relu(z) if z > 0 else z", "(z > 0) * relu(z) + (z <= 0) * z"),
        "E0315-word": ("relu(z) if gelu else z", "(z > 0) * relu(z) + (z <= 0) * z"),
    },
    "read a tensor with it, as in `b[t]`": {
        "E0317-input-added": ("    delta = z + t", "    b: [3, d_out] ~ zeros\n    delta = z + b[t]")
    },
    'select `first k`, `last k`, `since "a text"` or `inserted`': {
        "E0397-since-activation": ("since gelu", 'since "a text"'),
        "E0397-since-nothing": ('since ""', 'since "a text"'),
        "E0397-since-number": ("since 3", "since [3]"),
        "E0397-tokens-every": ("every 2", "first 2"),
        "E0397-tokens-half": ("first 0.5", "first 1"),
    },
    "write `tokens inserted`": {
        "E0398-numbers-of-rows": ("  modify block.input\n", "  modify block.input\n  tokens inserted\n")
    },
    "leave `tokens` out": {"E0398-of-a-prompt": ("  tokens last 1\n", "")},
    "leave `tokens` out, or modify another site": {"E0398-of-a-weight": ("  tokens first 2\n", "")},
    "divide it by something other than 0": {"E0318-size-divided-by-zero": ("n: int = 0", "n: int = 4")},
    "correct the expression; numbers multiply with `*`": {
        "E0318-division-by-zero": ("r / 0", "r * 2"),
        "E0318-huge-power": ("10 ** 10 ** 10", "10 * 10 * 10"),
        "E0318-nested-powers": ("9 ** 9 ** 9", "9 * 9 * 9"),
    },
    "write one range or index for each size, from the first on": {
        "E0319-index-too-many": ("b[0 : 1, 0 : 1]", "b[0 : 1]")
    },
    "uniform between two numbers": {
        "E0321-distribution-arity": ("uniform(1)", "uniform(0, 1)"),
        "E0372-uniform-backwards": ("uniform(1, 0)", "uniform(0, 1)"),
    },
    "change the argument to what the message asks for": {
        "E0331-cayley-powers": ("cayley(S, 0)", "cayley(S, 3)"),
        "E0331-conv2d-of-a-kernel-for-texts": ("w: [3, d_in]", "w: [3, 3, d_in]"),
        "E0331-roll-half": ("0.5", "1"),
        "E0331-top-of-none": ("top(z, 0)", "top(z, 1)"),
        "E0331-svd-of-a-vector": ("svd(bias)", "svd(W)"),
        "E0331-ceil-of-a-word": ("ceil(tokens)", "ceil(r)"),
        "E0331-concat-a-number": ("concat(B, r)", "concat(B, B)"),
        "E0331-distribution-argument": ("normal(gelu)", "normal(0.02)"),
        "E0331-divides-a-tensor": ("divides(B, d_in)", "divides(r, d_in)"),
        "E0331-dropout-of-a-tensor": ("drop(z, z)", "drop(z, 0.1)"),
        "E0331-first-of-a-number": ("first(r, tokens)", "first(z, tokens)"),
        "E0331-flip-of-tokens": ("flip(z) @ A", "z @ flip(A)"),
        "E0331-function-of-word": ("tanh(gelu)", "tanh(z)"),
        "E0331-largest-of-a-tensor": ("max(2, z) @ A", "max(r, 2) * z @ A"),
        "E0331-lstm-of-a-number": ("lstm(r, A, A, B)", "lstm(A, A, A, B)"),
        "E0331-prepend-a-number": ("prepend(l, h)", "prepend(delta, h)"),
        "E0331-prepend-behind": ("0.5", "1"),
        "E0331-running-mean-of-a-number": ("running_mean(r)", "running_mean(z)"),
        "E0331-softmax-of-a-number": ("softmax(r)", "softmax(z)"),
        "E0331-sum-of-a-number": ("sum(r)", "sum(z)"),
        "E0331-text-for-number": ('"a"', "0.02"),
        "E0331-width-of-a-number": ("width(r)", "width(z)"),
    },
    "leave the reduction out, or reduce an axis: `sum(z, tokens)`": {
        "E0333-roll-no-size": ("roll(z, 1, 1)", "z"),
        "E0333-no-size-to-reduce": ("sum(b)", "sum(z, tokens)"),
        "E0333-norm-of-nothing": ("norm(b)", "b"),
    },
    "name one of these, or nothing for the last size": {
        "E0334-top-tokens": ("top(z, 1, tokens)", "top(z, 1)"),
        "E0334-reduce-word": ("gelu", "tokens"),
    },
    "leave the axis out, or reduce something that has it": {
        "E0335-axis": ("sum(A, expert)", "sum(A)"),
        "E0335-reduce-absent-axis": ("mean(b, tokens)", "mean(z, tokens)"),
        "E0335-running-mean-of-a-tensor": ("z @ running_mean(A)", "running_mean(z) @ A"),
    },
    "declare the tensor with the size `d_kv` (of the keys' and values' heads) or `d_q` (of the queries')": {
        "E0336-at-ffn": (
            "{ delta = sum(heads(z), head) }",
            "{ A: [d_in, d_q] ~ zeros  delta = z + sum(sum(heads(z @ A)), head) }",
        ),
        "E0336-heads-of-a-block": (
            "{ delta = tanh(heads(z)) }",
            "{ A: [d_in, d_kv] ~ zeros  delta = z + sum(sum(heads(z @ A)), group) }",
        ),
    },
    "declare the tensor with the size `d_kv` (of the keys' and values' heads) or `d_q` (of the queries'), or send it through `attn.k` first": {
        "E0336-heads-elsewhere": ("d_ff", "d_kv"),
        "E0336-no-set-of-heads": ("[r, r]", "[r, d_kv]"),
    },
    "a tensor at the heads is one for each head; write `per site` after it for one that is split": {
        "E0336-heads-twice": ("~ zeros", "~ zeros per site")
    },
    "declare it before this line, as in `axis block = 4`": {
        "E0334-split-along-tokens": (
            "    delta = join(split(z, tokens), tokens)",
            "    axis block = 4\n    delta = join(split(z, block), block)",
        )
    },
    "declare a second axis of that size, and split along that": {
        "E0331-split-twice": [
            ("axis block = 4", "axis block = 4\n    axis place = 4"),
            ("split(split(z, block), block)", "split(split(z, block), place)"),
            (", block)\n", ", block)\n    delta = join(delta, place)\n"),
        ]
    },
    "split it along that axis, or give a tensor that is read here `per` that axis": {
        "E0335-join-without-axis": ("join(z, block)", "join(split(z, block), block)")
    },
    "`block` has 3 entries; choose a number that divides 8": {"E0338-pieces": ("axis block = 3", "axis block = 4")},
    "`part` has 6 entries; choose a number that divides 8": {"E0338-rank": ("part = 6", "part = 4")},
    "declare the tensor with the size that the message names": {
        "E0339-cayley": (
            "[d_in, 8] ~ normal(0.02)\n    delta = z @ cayley(A) @ A.T",
            "[d_in, d_out] ~ normal(0.02)\n    delta = z @ cayley(A)",
        )
    },
    "write no more columns than rows": {"E0339-columns": ("A: [4, 8]", "A: [8, 8]")},
    "declare it with the size `b * (b - 1) / 2`": {"E0339-skew": ("S: [b * b]", "S: [b * (b - 1) / 2]")},
    "declare the tensor with the sizes that the message names": {
        "E0337-kron-of-vector": ("kron(C, b)", "kron(b, b)"),
        "E0337-lstm": ("    y = lstm(z,", "    x_0: [2, d_in] ~ zeros\n    y = lstm(x_0,"),
        "E0337-prepend-vector": ("[d_out]", "[r, d_out]"),
    },
    "write a number, a size of the site or a parameter of type `int`": {
        "E0340-tensor-size": ("[d_in, b]", "[d_in, r]")
    },
    "a start is computed once, before any token: write it of `W` where the site has one, of tensors declared above, or draw it, as in `~ constant(2)`": {
        "E0344-start-of-another-type": ("m: [r] = 2 * x", "m: [r] ~ constant(2)")
    },
    "declare the sizes of the value, or take a part of it: `W[:, : r]`": {
        "E0344-transposed": ("[d_out, d_in]", "[d_in, d_out]")
    },
    "bring the result to the type of `h`, for example with a further matrix product": {
        "E0350-inserted-axis": ("[d_in, 2, d_out]", "[d_in, d_out]"),
        "E0350-out-less": ("sum(h)", "h * sum(h)"),
        "E0350-out-number": ("out = 2", "out = 2 * h"),
        "E0350-out-wrong-size": ("    out = sum(h) * u", "    U: [r, d_out] ~ zeros\n    out = (sum(h) * u) @ U"),
    },
    "leave the gate out, or multiply the rows inside the form": {
        "E0351-append": (" as part gated by { g = 0.5 }", " as part"),
        "E0351-gated-prepend": (" as a gated by {\n    b: [] ~ zeros\n    g = sigmoid(b)\n  }", " as a"),
    },
    "leave this index out: it picks from what is the same for every example, and once": {
        "E0363-index-of-input": ("delta = b[t]", "delta = b"),
        "E0363-index-twice": ("b[t, t]", "b[t]"),
    },
    "give the tensor and the index the same size": {"E0363-index-other-size": ("[4, d_out]", "[3, d_out]")},
    "compose append(delta, h)": {
        "E0364-placed-by-a-form": [("append(P, z)", "P"), ("compose replace", "compose append(delta, h)")]
    },
    "modify embed, embed.words or block.input": {"E0364-placed-inside": ("modify  ffn", "modify  block.input")},
    "compose prepend(delta, h), or modify embed": {"E0364-filled-in-a-block": ("fill(delta, h)", "prepend(delta, h)")},
    "write a row of the table for each: `use { … } as name`": {
        "E0364-placed-twice": (
            "  modify  embed\n  form {\n    P: [r, d_out] ~ zeros\n    delta = P\n  }\n  compose append(delta, prepend(delta, h))",
            "  use { modify embed form { P: [r, d_out] ~ zeros delta = P } compose append(delta, h) } as one\n  use { modify embed form { P: [r, d_out] ~ zeros delta = P } compose prepend(delta, h) } as two",
        )
    },
    "for example [4, 8, 8, 16]": {"E0365-nested": ("[1, [2, 3]]", "[4, 8, 8, 16]")},
    "a dot of a path is written `\\.`, any text `.*`; brackets that mean themselves have a `\\` before them": {
        "E0394-module-half-open": ("(0|1\\.mlp", "(0|1)\\.mlp"),
        "E0394-module-in-a-stack": ("[0-9.fc1", "[0-9]\\.fc1"),
        "E0394-module-star-first": ("*.fc1", ".*\\.fc1"),
    },
    "give as many different names as there are values: `U, S, V = svd(W)`, `Q, R = qr(W)`": {
        "E0391-names-of-one-value": ("a, b = z", "a = z"),
        "E0391-two-of-three": ("U, S = svd(W)", "U, S, V = svd(W)"),
    },
    "give each a name in a line of their own: `a, b = qr(W)`": {
        "E0391-several-in-an-expression": (
            "frozen P: [d_in, d_out] = 2 * qr(W)",
            "a, b = qr(W)  frozen P: [d_in, d_out] = 2 * a @ b",
        )
    },
    "store what is needed of it in a tensor, as in `frozen P: [d_in, r] = U[:, : r]`, and read that": {
        "E0375-data-at-every-pass": (
            "delta = z @ mean_gradient(W)",
            "frozen G: [d_in, d_out] = mean_gradient(W)  delta = z @ G",
        ),
        "E0375-decomposed-at-every-pass": (
            "delta = (z @ U * S) @ V.T",
            "frozen P: [d_in, 4] = U[:, : 4] * S[: 4]  frozen Q: [d_out, 4] = V[:, : 4]  delta = z @ P @ Q.T",
        ),
    },
    "`pinv` is the inverse of any matrix, as far as there is one": {
        "E0312-inverse-of-no-square": ("delta = z @ (inverse(A) @ A)", "delta = z @ (A @ pinv(A)) @ W")
    },
    "write `second_moment(x)`, at a site that has an `x`, such as a projection": {
        "E0331-moment-of-a-tensor": ("second_moment(A)", "second_moment(x)")
    },
    "write `mean_gradient(W)`, at a site that has a `W`, such as a projection": {
        "E0331-gradient-of-a-tensor": ("mean_gradient(A)", "mean_gradient(W)")
    },
    "its parameters: l: int, mid: int, init: init": {"mutant-apl-surplus": (", zeros, ra)", ", zeros)")},
    "the two sizes must be equal: mid and d_model": {
        "mutant-attend-mlp-size": ("W_k: [d_model, d_head]", "W_k: [mid, d_head]")
    },
    "the last sizes must be equal: r and d_model": {"mutant-bottleneck-bias-size": ("b_down: [d_in]", "b_down: [r]")},
    "its parameters: none": {"mutant-learned-argument": ("learned_scale(2)", "learned_scale")},
    "a clause begins with `modify`, `insert`, `form`, `compose`, `layers`, `tokens`, `train` or `use`": {
        "mutant-llama-adapter-layers": ("last of top", "last top")
    },
    "give it 2; what it is: dropout with the given probability; x itself outside training. A plain number is left as it is": {
        "mutant-low-rank-argument": ("drop(z)", "drop(z, dropout)")
    },
    "name one of them: `use … as NAME`": {"mutant-mam-names": ("as prefix\n}", "as adapter\n}")},
    "its parameters: r: int, act: activation, init_down: init, init_up: init": {
        "mutant-pfeiffer-argument": ("bottleneck(act, r)", "bottleneck(r, act)"),
        "several-alternatives-of-a-space": ("rank = 4", "act = relu"),
    },
    "the two sizes must be equal: d_head and d_model": {
        "mutant-prefix-size": ("E:  [l, d_head] ", "E:  [l, d_model] ")
    },
    "the last sizes must be equal: d_model and l": {"mutant-prompt-lstm-size": ("b2: [l]", "b2: [d_model]")},
    "the last sizes must be equal: mid and d_model": {"mutant-prompt-mlp-operator": ("* W3", "@ W3")},
    "in `several-imports`: did you mean `parts.pelt`?": {"several-imports": ("prats", "parts")},
    "correct the name": {"E0320-at-any-site": ("nosuch", "tanh")},
}
