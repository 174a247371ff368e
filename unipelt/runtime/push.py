"""Pushing an adapter to the hub: a cleaned copy of its folder, in one commit.

What leaves is an adapter's files, its card and a run's records, never anything else that lies in the folder. Places of
this machine are replaced by the names of what lies there, and nothing is sent while one is left.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os.path import exists, isdir, isfile
from pathlib import Path
from typing import Any

from ..language.report.diagnostics import error
from ..language.report.source import refuse_link
from .card import LARGEST, PLACE, parts_of, sealed, unsealed
from .download import Listing, TooMuch, listing, received
from .folder import verify
from .hub import (
    MANIFEST, METHOD, METRICS, README, RUN, TASK, WEIGHTS, answers, client, is_hub_name, public_name, repository
)  # fmt: skip

#: What is pushed of a folder, where it is there.
PUSHED = (MANIFEST, WEIGHTS, METHOD, README, TASK, METRICS, RUN, "report.json", "report.png", "report.svg")
#: What a repository may hold besides: the hub makes it.
_OF_THE_HUB = (".gitattributes", "LICENSE", "LICENSE.md", "LICENSE.txt")
_TEXTS = (".json", ".pelt", ".md", ".svg")
_METADATA = re.compile(rb"\A---\r?\n.*?\n---", re.DOTALL)


@dataclass(frozen=True)
class Pushed:
    """What was pushed, or would be: files with their sizes in bytes, the address, the commit once there is one."""

    repository: str
    revision: str | None
    files: Mapping[str, int]
    url: str
    notes: tuple[str, ...] = ()
    commit: str | None = None
    contents: Mapping[str, bytes | Path] = field(default_factory=dict, repr=False, compare=False)

    @property
    def place(self) -> str:
        """The name by which it is loaded."""
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"

    def to_json(self) -> dict[str, Any]:
        return {"repository": self.repository, "revision": self.revision, "url": self.url, "commit": self.commit,
                "files": [{"file": n, "bytes": size} for n, size in self.files.items()], "notes": list(self.notes)}  # fmt: skip


def push(
    folder: str | Path, name: str, *, private: bool | None = None, revision: str | None = None, dry_run: bool = False
) -> Pushed:
    """Pushes the adapter in ``folder`` to the hub's repository ``name`` (``"user/name"``), which is made where it is missing.

    ``private`` is of a new repository; None leaves it to the account's setting. ``revision`` is a branch, made where it is
    missing. ``dry_run`` sends nothing and asks nobody. A card that somebody edited on the hub is kept, unless the one here
    was edited too. Raises a `PeltError`; the repository is then as it was, or new and empty.
    """
    made = prepared(folder, name, revision)
    return made if dry_run else send(made, private)


def prepared(folder: str | Path, name: str, revision: str | None = None) -> Pushed:
    """What a push would send, cleaned and checked. Needs no network."""
    from huggingface_hub import constants

    _check_name(name, revision)
    place = Path(folder)
    verify(place)
    at = name if revision is None else f"{name}@{revision}"
    contents = _cleaned(place, name, at)
    notes = () if README in contents else (f"there is no model card: {place} has no {README}",)
    url = f"{constants.ENDPOINT}/{name}" + (f"/tree/{revision}" if revision else "")
    return Pushed(name, revision, {n: _size(data) for n, data in contents.items()}, url, notes, contents=contents)


def _size(data: bytes | Path) -> int:
    return data.stat().st_size if isinstance(data, Path) else len(data)


def _check_name(name: str, revision: str | None) -> None:
    front, at, after = name.partition("@")
    if at:
        raise error(
            "E0820",
            f"`{name}` is no name of a repository: a branch is given by itself",
            help=f"give `{front}` and `--revision {after}`",
        )
    if "/" not in name or not is_hub_name(name):
        lies = f": it is a {'folder' if isdir(name) else 'file'} here" if exists(name) else ""
        raise error("E0820", f"`{name}` is no name of a repository on the hub{lies}",
                    help="give your user's or organisation's name and the adapter's, as in `user/name`")  # fmt: skip
    if revision is not None and repository(f"{name}@{revision}") is None:
        raise error("E0820", f"`{revision}` is no name of a branch", help="letters, digits, `-`, `_` and `.` make one")


def send(made: Pushed, private: bool | None = None) -> Pushed:
    """Sends what was prepared, in one commit."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    name, revision, api = made.repository, made.revision, client()
    contents, notes = dict(made.contents), list(made.notes)
    with answers(name, revision, "pushed"):
        there = _there(name)
        if there is None:
            api.create_repo(name, private=private, exist_ok=True)
        elif private and not there.private:
            raise error(
                "E0826", f"`{name}` exists and is public", help="push to another name, or make it private on its page"
            )
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        kept = set(listing(name, revision).sizes)
        foreign = sorted(kept - {*PUSHED, *_OF_THE_HUB})
        if foreign and MANIFEST not in kept:
            raise error(
                "E0826",
                f"`{name}` holds other things than an adapter, such as `{foreign[0]}`",
                help="push to a name of its own",
            )
        if README in kept and README in contents and _as_written(contents[README]):
            if _by_hand(name, revision):
                del contents[README]
                notes.append(f"the {README} on the hub was written by hand: it is kept")
        steps = [CommitOperationAdd(n, str(data) if isinstance(data, Path) else data) for n, data in contents.items()]
        gone = [CommitOperationDelete(n) for n in sorted(kept & set(PUSHED) - set(made.contents)) if n != README]
        done = api.create_commit(
            name, [*steps, *gone], commit_message=f"{_method_name(made)}, by unipelt", revision=revision
        )
    files = {n: size for n, size in made.files.items() if n in contents}
    return Pushed(name, revision, files, made.url, tuple(notes), done.oid, contents)


def _by_hand(name: str, revision: str | None) -> bool:
    """Whether somebody has written the card on the hub. Metadata alone are what the hub's page writes into a new repository."""
    from huggingface_hub import hf_hub_url

    try:
        card = received(hf_hub_url(name, README, revision=revision), LARGEST)
    except TooMuch:
        return True
    return not _as_written(card) and bool(_METADATA.sub(b"", card).strip())


def _as_written(card: bytes | Path) -> bool:
    return isinstance(card, bytes) and unsealed(card.decode("utf-8", errors="replace")) is not None


def _there(name: str) -> Listing | None:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return listing(name)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return None


def _method_name(made: Pushed) -> str:
    manifest = made.contents[MANIFEST]
    return str(json.loads(manifest).get("method") or "an adapter") if isinstance(manifest, bytes) else "an adapter"


# ---------------------------------------------------------------- the cleaned copy


def _cleaned(folder: Path, name: str, place: str) -> dict[str, bytes | Path]:
    """The files of a folder as they may be shown to others: texts as they will stand there, others by their place."""
    for n in PUSHED:
        refuse_link(folder / n)
    found: dict[str, bytes | Path] = {n: folder / n for n in PUSHED if isfile(folder / n)}
    texts = {n: (folder / n).read_bytes() for n in found if n.endswith(_TEXTS)}
    records = {n: _json(folder / n, data) for n, data in texts.items() if n.endswith(".json")}
    places = _places(folder, records.values())
    data = parts_of(parts_of(records[MANIFEST], "card"), "data").get("name")
    for n, record in records.items():
        _name_places(record, name, data)
        texts[n] = (json.dumps(_replaced(record, places), indent=1, ensure_ascii=False) + "\n").encode()
    if README in texts:
        texts[README] = _card(texts[README].decode("utf-8", errors="replace"), place).encode()
    _private({**texts, WEIGHTS: _header(folder / WEIGHTS)}, places, folder)
    return {**found, **texts}


def _header(path: Path) -> bytes:
    """What a file of tensors says in words."""
    with open(path, "rb") as f:
        return f.read(int.from_bytes(f.read(8), "little"))


def _json(path: Path, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise error("E0615", f"`{path}` is damaged: {e}", help="train again, or take the file away") from None
    if not isinstance(value, dict):
        raise error("E0615", f"`{path}` is damaged: it holds no record", help="train again, or take the file away")
    return value


def _name_places(record: dict[str, Any], name: str, data: Any) -> None:
    """A run's own places, by the fields in which they stand: relative paths tell of this machine too."""
    config: dict[str, Any] = record["config"] if isinstance(record.get("config"), dict) else {}
    for holder in (record, config):
        if isinstance(holder.get("folder"), str):
            holder["folder"] = name
        if isinstance(holder.get("out"), str):
            holder["out"] = name
        if isinstance(holder.get("data"), str):
            holder["data"] = data if isinstance(data, str) and data else public_name(holder["data"])
    if isinstance(config.get("method"), str):
        config["method"] = "+".join(public_name(part) for part in config["method"].split("+"))
    if isinstance(config.get("model"), str):
        config["model"] = public_name(config["model"])
    task = record.get("task")
    if isinstance(record.get("model"), str) and isinstance(task, dict) and not is_hub_name(record["model"]):
        # A bare name could be another model's on the hub: whoever loads this names the base.
        record["base"], record["model"] = public_name(record["model"]), None


def _card(text: str, place: str) -> str:
    """The card with the address for its place; one that nobody has edited keeps its marker."""
    own = unsealed(text)
    return text.replace(PLACE, place) if own is None else sealed(own.replace(PLACE, place))


def _places(folder: Path, records: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Places of this machine that must not be told, the longest first."""
    here = [Path.home(), Path.cwd(), Path(tempfile.gettempdir()), folder.absolute(), folder.absolute().parent]
    for r in records:
        config = r["config"] if isinstance(r.get("config"), dict) else {}
        told = [v for v in (r.get("model"), r.get("folder"), *config.values()) if isinstance(v, str)]
        here += [Path(v).parent for v in told if Path(v).is_absolute()]
    found = {str(p) for p in (*here, *(p.resolve() for p in here)) if p != Path(p.anchor)}
    return tuple(sorted(found, key=lambda p: (-len(p), p)))


def _pattern(places: Iterable[str]) -> re.Pattern[str]:
    among = "|".join(re.escape(p) for p in places)
    return re.compile(rf"(?<![\w.])(?:{among})(?![\w-])(?:[/\\][^\s\"'`,;:)\]}}]*)?")


def _replaced(value: Any, places: tuple[str, ...]) -> Any:
    """A JSON value in whose texts a path that lies in one of the places is its last part."""
    pattern = _pattern(places)

    def short(match: re.Match[str]) -> str:
        path = match[0].rstrip("/\\")
        return "…" if path in places else public_name(path)

    def walk(v: Any) -> Any:
        if isinstance(v, str):
            return pattern.sub(short, v)
        if isinstance(v, list):
            return [walk(x) for x in v]
        return {walk(k): walk(x) for k, x in v.items()} if isinstance(v, dict) else v

    return walk(value)


def _private(contents: Mapping[str, bytes], places: tuple[str, ...], folder: Path) -> None:
    """Refuses what would tell a place of this machine: texts that people wrote are theirs to change."""
    pattern = _pattern(places)
    for n, data in contents.items():
        found = pattern.search(data.decode("utf-8", errors="replace").replace("\\\\", "\\"))
        if found is not None:
            raise error("E0825", f"`{folder / n}` tells a place of this machine, `{found[0]}`, and is not pushed",
                        help=f"take it out of {n}, and push again" if n == README else "save the adapter anew without it")  # fmt: skip
