"""`unipelt show` and `unipelt diff`: methods as rows of the unified view's table, with formulas, counts, verdicts, a picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..language.analyse.canonical import difference
from ..language.analyse.method import analyse
from ..language.report.diagnostics import error
from ..language.write.columns import BESIDE, COLUMNS, columns_met, columns_of, rows_of, trained_of
from ..language.write.document import markdown
from ..language.ir import Method
from ..training.options import read_arguments
from ..runtime.references import load
from .output import emit, pour, say, table, tell

FORMATS = ("text", "markdown", "latex")


def show_methods(
    specs: Sequence[str], arguments: list[str], form: str, picture: Path | None, as_json: bool, as_torch: bool = False,
    typed: bool = False,
) -> None:  # fmt: skip
    """One method whole, or the table of several."""
    if form not in FORMATS:
        raise error("E0812", f"there is no format `{form}`", help=f"give one of {', '.join(FORMATS)}")
    given = read_arguments(arguments)
    methods = [load(s, arguments=given if len(specs) == 1 else None) for s in specs]
    if len(specs) > 1 and given:
        raise error("E0812", "`--set` binds the arguments of one method", help="show one method, or leave it out")
    alone = "`--torch`" if as_torch else "`--typed`" if typed else ""
    if alone and (len(methods) > 1 or form != "text" or (as_torch and typed)):
        raise error(
            "E0812",
            f"{alone} prints one method, in a format of its own",
            help="show one method, and leave `--format` out"
            + ", and one of `--torch` and `--typed`" * (as_torch and typed),
        )
    if picture is not None:
        from .picture import picture as draw

        if len(methods) > 1:
            raise error("E0812", "a picture shows one method", help="draw them one after the other")
        draw(methods[0], picture)
        say(f"drawn to {picture}")
    if typed:
        emit({"ok": True, **analyse(methods[0]).to_json()}) if as_json else pour(f"{analyse(methods[0])}\n")
    elif as_json:
        found = [described(m) | ({"torch": m.torch_source()} if as_torch else {}) for m in methods]
        emit({"ok": True, **found[0]} if len(found) == 1 else {"ok": True, "methods": found})
    elif as_torch:
        pour(methods[0].torch_source())
    elif form == "latex":
        pour(latex(methods) + "\n")
    elif form == "markdown":
        pour(markdown(methods) + "\n")
    elif len(methods) > 1:
        rows = rows_of(methods)
        table(rows, columns_met(rows, ("method", "row", *COLUMNS)))
    else:
        _whole(methods[0])


def described(method: Method) -> dict[str, Any]:
    """Everything that is known of a method without a model, as plain data."""
    from ..language.write import formula as mathematics
    from ..language.analyse.counts import formula, symbols
    from ..language.analyse.merged import merged
    from ..language.analyse.owned import owned
    from ..language.analyse.verdicts import verdicts

    counts = {k: str(v) for k, v in formula(method).items()}
    return {
        "name": method.name, "doc": method.doc,
        "rows": [{"row": r.name, **columns_of(r, method)} for r in method.rows],
        "trains": [{"row": t.name, **trained_of(t)} for t in method.trains],
        "formula": {"text": mathematics.as_text(method), "latex": mathematics.as_latex(method)},
        "arguments": [{"argument": p.name, "type": p.type, "value": method.arguments.get(p.name)} for p in method.params],
        "tensors": [t.to_json() for t in owned(method)], "parameters": counts, "symbols": symbols(counts.values(), method.arguments),
        "properties": {k: v.to_json() for k, v in verdicts(method).items()},
        "merged": [m.to_json() for m in merged(method)],
        "text": str(method),
    }  # fmt: skip


def _whole(method: Method) -> None:
    from ..language.write import formula as mathematics
    from ..language.analyse.merged import merged
    from ..language.analyse.verdicts import verdicts
    from ..language.report.texts import shown

    found = described(method)
    tell(method.name + (f"\n{method.doc.strip()}" if method.doc else "") + "\n")
    if found["rows"]:
        table(found["rows"], columns_met(found["rows"], ("row", *COLUMNS)))
    if found["trains"]:
        table(found["trains"], columns_met(found["trains"], ("row", "trains")))
    if method.rows:
        tell(found["formula"]["text"] + "\n")
    if found["arguments"]:
        table(found["arguments"], ["argument", "type", "value"])
    if found["tensors"]:
        table(found["tensors"], ["tensor", "row", "at", "sizes", "one for each"])
    table([{"parameters": k, "formula": v} for k, v in found["parameters"].items()], ["parameters", "formula"])
    if found["symbols"]:
        table([{"symbol": k, "meaning": v} for k, v in found["symbols"].items()], ["symbol", "meaning"])
    table([{"property": k, "": v.value, "because": v.reason, "at": shown(v.span)} for k, v in verdicts(method).items()],
          ["property", "", "because", "at"])  # fmt: skip
    if found["merged"]:
        table([{"row": m.row, "at": m.site, "merges into": m.into, "weight": mathematics.write(m.weight_expression),
                "bias": mathematics.write(m.bias_expression)} for m in merged(method)],
              ["row", "at", "merges into", "weight", "bias"])  # fmt: skip
    tell(str(method))


# ---------------------------------------------------------------- documents


_TEX = {"\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "{": r"\{", "}": r"\}", "$": r"\$",
        "^": r"\^{}", "~": r"\~{}"}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text)


def latex(methods: Sequence[Method]) -> str:
    """The table as a booktabs `tabular`; of one method also its formula."""
    rows = rows_of(methods)
    columns = columns_met(rows, ("method", "row", *COLUMNS))
    head = {
        "modify": "modified representation",
        "insert": "insertion form",
        "form": "functional form",
        "compose": "composition",
    }
    lines = [r"\begin{tabular}{" + "l" * len(columns) + "}", r"\toprule", " & ".join(head.get(c, c) for c in columns) + r" \\",
             r"\midrule"]  # fmt: skip
    for r in rows:
        cells = [_tex(str(r.get(c, ""))) for c in columns]
        cells = [
            r"\texttt{" + text + "}" if c not in ("method", "row") and text else text for c, text in zip(columns, cells)
        ]
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if len(methods) == 1 and methods[0].rows:
        from ..language.write.formula import as_latex

        lines += ["", as_latex(methods[0])]
    return "\n".join(lines)


# ---------------------------------------------------------------- differences


def diff_methods(first: str, second: str, as_json: bool) -> bool:
    """In which columns two methods differ, row by row; whether they mean the same."""
    a, b = load(first), load(second)
    rows, found = _compared(a, b), difference(a, b)
    if as_json:
        emit({"ok": True, "equal": found is None, "columns": rows})
        return found is None
    if found is None:
        tell(f"{a.name} and {b.name} mean the same" + (", though written differently" if rows else ""))
    if rows:
        table(rows, ["row", "column", a.name, b.name])
    elif found is not None:
        tell(f"the columns are the same; they differ in what they call, {_first(found, a, b)}")
    return found is None


def equal_methods(first: str, second: str, as_json: bool) -> bool:
    """Whether two methods mean the same at their arguments; otherwise the first difference."""
    a, b = load(first), load(second)
    found = difference(a, b)
    if as_json:
        apart = dict(zip(("at", "first", "second"), found)) if found is not None else None
        emit({"ok": True, "equal": found is None, "difference": apart})
    elif found is None:
        tell(f"{a.name} and {b.name} are equal: the same function, starts and trained tensors")
    else:
        tell(f"{a.name} and {b.name} differ, {_first(found, a, b)}")
    return found is None


def _first(found: tuple[str, str, str], a: Method, b: Method) -> str:
    return f"first at {found[0]}:\n  {a.name}: {found[1]}\n  {b.name}: {found[2]}"


def _compared(a: Method, b: Method) -> list[dict[str, Any]]:
    """The columns that differ once the arguments are in them, as they are written."""
    left, right = rows_of([a]), rows_of([b])
    said = {id(r): text for m, rows in ((a, left), (b, right)) for r, text in zip(rows, _said(m))}
    titles = (a.name, b.name) if a.name != b.name else (f"{a.name} (first)", f"{b.name} (second)")
    out: list[dict[str, Any]] = []
    for one, other in _paired(left, right):
        name = " / ".join(dict.fromkeys(r["row"] for r in (one, other) if r is not None))
        for c in (*COLUMNS, *BESIDE):
            written = [r.get(c, "") if r else "" for r in (one, other)]
            meant = [said[id(r)].get(c, "") if r else "" for r in (one, other)]
            if meant[0] == meant[1]:
                continue
            shown = (
                written
                if written[0] != written[1]
                else _with_arguments(written[0], a, b) or [" ".join(m.split()) for m in meant]
            )
            out.append({"row": name, "column": c, **{title: text or "–" for title, text in zip(titles, shown)}})
    return out


def _with_arguments(text: str, a: Method, b: Method) -> list[str]:
    """A text of two methods, each time with the arguments that differ; nothing if none does."""
    names = [n for n in dict.fromkeys(re.findall(r"[A-Za-z_]\w*", text)) if a.arguments.get(n) != b.arguments.get(n)]
    return [f"{text}, {', '.join(f'{n} = {m.arguments.get(n)}' for n in names)}" for m in (a, b)] if names else []


def _said(method: Method) -> list[dict[str, str]]:
    """What each column of each row says with the arguments in it, in the order of `rows_of`."""
    from ..language.ir import row_clauses
    from ..language.analyse.meaning import bound
    from ..language.syntax.printer import to_text

    method = bound(method)
    out: list[dict[str, str]] = []
    for row in method.rows:
        said = {clause.kind: to_text(clause) for clause in row_clauses(row)}
        said["gated by"] = "\n".join(map(to_text, row.gate or ()))
        said["layers"] = columns_of(row, method)["layers"]
        out.append(said)
    return out + [
        {**trained_of(t), "modify": ", ".join(map(str, t.paths)), "form": "a trained copy"} for t in method.trains
    ]


def _paired(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    """Rows of one name together, then those that share most columns."""
    rest = list(right)
    out: list[tuple[Any, Any]] = []
    for one in left:
        scores = [(sum(one[c] == o[c] for c in COLUMNS) + 2 * (one["row"] == o["row"]), -i) for i, o in enumerate(rest)]
        if rest and (len(left) == len(right) == 1 or max(scores)[0] > 0):
            other = rest.pop(-max(scores)[1])
            out.append((one, other))
        else:
            out.append((one, None))
    return out + [(None, o) for o in rest]
