"""The rows of a file's bytes: JSON lines, JSON, CSV and TSV, Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...language.report.diagnostics import Diagnostic, PeltError, error, repeated
from ...language.syntax.nodes import Span
from .split import Split, is_unicode, kind_of_value, listed, raise_all, said

Rows = list[dict[str, Any]]
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def parse(path: Path, name: str) -> Split:
    """The rows of a file whose name ends in one of the suffixes."""
    if path.suffix in (".parquet", ".json"):
        rows = _parquet_rows(path) if path.suffix == ".parquet" else _json_array(decoded(path), path)
        return Split(name, str(path), tuple(rows), tuple(range(1, len(rows) + 1)), "row")
    rows, lines = (_json_lines if path.suffix == ".jsonl" else _csv_rows)(decoded(path), path)
    return Split(name, str(path), tuple(rows), tuple(lines))


def decoded(path: Path) -> str:
    """The text of a file; bytes that are no UTF-8 are an error with their line."""
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        raise error("E0610", f"`{path}`, line {line}: the file is not UTF-8", Span(str(path)),
                    help="save the file with the encoding UTF-8") from None  # fmt: skip


def _json_lines(text: str, path: Path) -> tuple[Rows, list[int]]:
    rows: Rows = []
    lines: list[int] = []
    problems: list[Diagnostic] = []
    # Only "\n" ends a line: str.splitlines would also cut at U+2028, which JSON strings may hold.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = _json(line, path, number)
        except PeltError as e:
            problems += e.diagnostics
            continue
        if "\\u" in line and not is_unicode(row):
            problems.append(_no_unicode(f"`{path}`, line {number}", row, path))
        elif isinstance(row, dict):
            rows.append(row)
            lines.append(number)
        else:
            problems.append(_broken(path, number, f"this is {kind_of_value(row)}, not an object of columns"))
    raise_all(problems)
    return rows, lines


def _json_array(text: str, path: Path) -> Rows:
    rows = _json(text, path, 1)
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise PeltError(_broken(path, 1, "this is not a list of objects"))
    if "\\u" in text:
        raise_all(
            [_no_unicode(f"`{path}`, row {i}", row, path) for i, row in enumerate(rows, 1) if not is_unicode(row)]
        )
    return rows


def _json(text: str, path: Path, line: int) -> Any:
    """The value of a text that begins at a line of a file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        at = line + e.lineno - 1
        raise PeltError(_broken(path, at, f"this is not JSON: {e.msg} at column {e.colno}")) from None
    except (ValueError, RecursionError):
        raise PeltError(_broken(path, line, "this is not JSON: it cannot be read")) from None


def _no_unicode(place: str, row: Any, path: Path) -> Diagnostic:
    cells = row.items() if isinstance(row, dict) else ()
    column = next((c for c, v in cells if is_unicode(c) and not is_unicode(v)), None)
    what = f"`{column}` holds" if column is not None else "there is"
    return Diagnostic("E0649", f"{place}: {what} half of a character, which is no Unicode", Span(str(path)),
                      help="an escape such as `\\ud83d` needs the other half behind it: complete it, or take it out")  # fmt: skip


def _csv_rows(text: str, path: Path) -> tuple[Rows, list[int]]:
    rows: Rows = []
    lines: list[int] = []
    problems: list[Diagnostic] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    header: list[str] | None = None
    end = 0
    limit = csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # else a long text is no CSV
    try:
        for cells in reader:
            start, end = end + 1, reader.line_num
            if not cells:
                continue
            if header is None:
                header = [c.strip() for c in cells]
                twice = sorted(repeated(header))
                if twice:
                    raise PeltError(_broken(path, start, f"the header names {listed(twice)} twice", "E0609"))
            elif len(cells) != len(header):
                what = f"{len(cells)} columns where the header has {len(header)}"
                problems.append(_broken(path, start, what, "E0609"))
            else:
                rows.append(dict(zip(header, cells)))
                lines.append(start)
    except csv.Error as e:
        problems.append(_broken(path, end + 1, f"this is not CSV: {e}", "E0609"))  # where its row begins
    finally:
        csv.field_size_limit(limit)
    raise_all(problems)
    return rows, lines


def _broken(path: Path, line: int, what: str, code: str = "E0602") -> Diagnostic:
    remedy = "quote a cell that holds a separator" if code == "E0609" else "put one complete JSON object on each line"
    return Diagnostic(code, f"`{path}`, line {line}: {what}", Span(str(path)), help=remedy)


# ---------------------------------------------------------------- parquet


def _parquet_rows(path: Path) -> Rows:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise error("E0630", f"`{path}` is a Parquet file, and reading those needs pyarrow", Span(str(path)),
                    help="pip install 'unipelt[data]'") from None  # fmt: skip
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            twice = sorted(repeated(names))
            table = file.read() if not twice else None
    except (pyarrow.ArrowException, OSError, ValueError) as e:
        raise error("E0631", f"`{path}` cannot be read as Parquet: {said(e)}", Span(str(path)),
                    help="write the file again") from None  # fmt: skip
    if table is None:
        raise error(
            "E0609", f"`{path}` names the column {listed(twice)} twice", Span(str(path)), help="rename one of them"
        )
    try:
        rows = table.to_pylist()
    except UnicodeDecodeError:
        raise PeltError(_undecodable(table, path)) from None
    written = (table.schema.metadata or {}).get(b"huggingface")
    if written:
        try:
            features = json.loads(written)["info"]["features"]
        except (ValueError, KeyError, TypeError, RecursionError):
            features = {}
        name_classes(rows, class_names(features))
    return rows


def _undecodable(table: Any, path: Path) -> Diagnostic:
    """The first text of a table whose bytes are no UTF-8."""
    for i in range(table.num_rows):
        for name in table.column_names:
            try:
                table.column(name)[i].as_py()
            except UnicodeDecodeError:
                return Diagnostic("E0649", f"`{path}`, row {i + 1}: `{name}` holds bytes that are no Unicode", Span(str(path)),
                                  help="write the text as UTF-8")  # fmt: skip
    raise AssertionError("a table that cannot be read has a cell that cannot")


def class_names(features: Any) -> dict[str, list[str]]:
    """The names of the columns that are classes or lists of classes, from features as the library `datasets` writes them."""
    found: dict[str, list[str]] = {}
    for column, feature in features.items() if isinstance(features, Mapping) else ():
        while isinstance(feature, Mapping) and feature.get("_type") in ("Sequence", "List", "LargeList"):
            feature = feature.get("feature")
        if isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel":
            names = feature.get("names")
            found |= {column: [str(n) for n in names]} if isinstance(names, list) else {}
    return found


def name_classes(rows: Rows, names: Mapping[str, Sequence[str]]) -> None:
    """Class numbers become names, in place; -1, as in test splits whose labels are kept secret, becomes null."""

    def name(value: Any, of: Sequence[str]) -> Any:
        if isinstance(value, list):
            return [name(v, of) for v in value]
        if isinstance(value, int) and not isinstance(value, bool):
            return of[value] if 0 <= value < len(of) else None if value < 0 else value
        return value

    for row in rows:
        for column, of in names.items():
            if column in row:
                row[column] = name(row[column], of)
