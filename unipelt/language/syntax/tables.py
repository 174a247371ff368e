"""The parse tables of `grammar/pelt.lark` as JSON: building them at start would cost half a second.

`python -m unipelt.language.syntax.tables` writes them anew (with lark's strict mode, which needs `interegular`); a test holds
them equal to the grammar. Lark's own cache is a pickle in a predictable place and is not used.
"""

from __future__ import annotations

import json
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ...resources import folder

if TYPE_CHECKING:
    from lark import Lark

STARTS = ("start", "expr")


def build() -> Lark:
    """A parser made from the grammar, with every conflict and every overlap of terminals an error."""
    from lark import Lark

    grammar = (folder("grammar") / "pelt.lark").read_text(encoding="utf-8")
    return Lark(
        grammar,
        parser="lalr",
        lexer="contextual",
        start=list(STARTS),
        strict=True,
        propagate_positions=True,
        maybe_placeholders=False,
    )


def generate() -> str:
    """The tables as JSON, the same bytes for the same grammar."""
    from lark.grammar import Rule
    from lark.lexer import TerminalDef

    parser = build()
    data, memo = parser.memo_serialize([TerminalDef, Rule])
    # Strictness is proved here once; asked again at load it would need interegular there.
    data["options"]["strict"] = False
    return json.dumps(_canonical({"data": data, "memo": memo}), separators=(",", ":")) + "\n"


def _canonical(tables: dict[str, Any]) -> dict[str, Any]:
    """The tables with states, tokens and rules numbered by content: lark numbers them by the order of its sets."""
    table = tables["data"]["parser"]["parser"]
    tokens: dict[int, str] = table["tokens"]
    names = sorted(tokens.values())
    number = {name: i for i, name in enumerate(names)}
    rules = {key: json.dumps(value, sort_keys=True, default=sorted) for key, value in tables["memo"].items()}
    memo_order = {old: new for new, old in enumerate(sorted(rules, key=lambda k: rules[k]))}

    # States are renumbered in the order in which they are reached, actions taken by the token's name.
    actions = {
        state: sorted((tokens[token], action) for token, action in row.items())
        for state, row in table["states"].items()
    }
    order: dict[int, int] = {}
    todo = [table["start_states"][start] for start in STARTS]
    while todo:
        state = todo.pop(0)
        if state in order:
            continue
        order[state] = len(order)
        todo += [target for _, (reduce, target) in actions[state] if not reduce]

    def memo_refs(value: Any) -> Any:
        if isinstance(value, dict):
            if set(value) == {"@"}:
                return {"@": memo_order[value["@"]]}
            return {key: memo_refs(item) for key, item in value.items()}
        if isinstance(value, (set, frozenset)):
            return sorted(value)
        if isinstance(value, (list, tuple)):
            return [memo_refs(item) for item in value]
        return value

    def state_row(row: list[tuple[str, Any]]) -> dict[str, Any]:
        return {str(number[name]): [act, memo_refs(arg) if act else order[arg]] for name, (act, arg) in row}

    new_table = {
        "tokens": {str(i): name for i, name in enumerate(names)},
        "states": {str(order[state]): state_row(actions[state]) for state in sorted(order, key=order.__getitem__)},
        "start_states": {start: order[state] for start, state in sorted(table["start_states"].items())},
        "end_states": {start: order[state] for start, state in sorted(table["end_states"].items())},
    }
    memo = {str(new): memo_refs(tables["memo"][old]) for old, new in sorted(memo_order.items(), key=lambda x: x[1])}
    data = {key: memo_refs(value) for key, value in tables["data"].items() if key != "parser"}
    data["parser"] = {key: memo_refs(v) for key, v in tables["data"]["parser"].items() if key != "parser"}
    data["parser"]["parser"] = new_table
    return {"data": data, "memo": memo}


def _restore(tables: dict[str, Any]) -> dict[str, Any]:
    """JSON knows only string keys; lark's tables count states, tokens and memo entries with integers."""
    table = tables["data"]["parser"]["parser"]
    table["tokens"] = {int(key): name for key, name in table["tokens"].items()}
    table["states"] = {
        int(state): {int(token): action for token, action in row.items()} for state, row in table["states"].items()
    }
    tables["memo"] = {int(key): value for key, value in tables["memo"].items()}
    return tables


@lru_cache(maxsize=1)
def load() -> Lark:
    """The parser, from the shipped tables; made once."""
    from lark import Lark

    text = (folder("grammar") / "pelt.tables.json").read_text(encoding="utf-8")
    # `Lark.load` takes the dict that `Lark.save` would have pickled.
    return Lark.load(_restore(json.loads(text)))


def main() -> None:
    path = folder("grammar") / "pelt.tables.json"
    text = generate()
    path.write_text(text, encoding="utf-8", newline="\n")
    print(f"{path}: {len(text):,} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
