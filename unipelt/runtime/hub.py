"""The hub: names of repositories, what of a path may be told to others, and adapters fetched from there.

What is fetched is untrusted. Sizes are asked before anything is downloaded, only the files of an adapter are, by their
exact names and at one commit, and they are then checked as any folder is (`runtime.folder`). Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from os.path import exists
from pathlib import Path
from typing import Any

from ..language.report.diagnostics import PeltError, error, near_path
from .download import bring, listing

WEIGHTS, MANIFEST, METHOD, README = "adapter.safetensors", "adapter.json", "method.pelt", "README.md"
#: What a run keeps beside its adapter: what was asked, what `unipelt eval` and `predict` need, what was reached.
RUN, TASK, METRICS = "run.json", "task.json", "metrics.json"
#: Beside the files of a base that was saved with adapters: which there are, and what their folders are called. (One level deep:
#: transformers pushes no more to the hub.)
INDEX, FOLDER = "unipelt.json", "unipelt-{}"
#: What is fetched, with the most bytes each may have; all but the last are needed.
FETCHED = {MANIFEST: 16 * 2**20, METHOD: 2**20, WEIGHTS: 8 * 2**30, TASK: 16 * 2**20}
#: ``user/name`` or, for a base of the hub's own, ``name``.
_NAME = re.compile(r"(?!.*(\.\.|--))[A-Za-z0-9_]([\w.\-]{0,94}\w)?(/[A-Za-z0-9_]([\w.\-]{0,94}\w)?)?")
_REVISION = re.compile(r"(?!.*\.\.)[\w.\-]+(/[\w.\-]+)*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def is_hub_name(name: str) -> bool:
    """Whether this can only be a name on the hub: of its form, and nothing of that name lies here."""
    return bool(_NAME.fullmatch(name)) and not name.endswith((".git", ".ipynb")) and not exists(name)


def is_data_set(name: str) -> bool:
    """Whether this has the form `user/name` of a data set on the hub."""
    return "/" in name and bool(_NAME.fullmatch(name)) and not name.endswith((".git", ".ipynb"))


def public_name(name: str) -> str:
    """A name that tells nothing of this machine: a hub name as it is, of a path its last part."""
    return name if is_hub_name(name) else re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def repository(place: str | Path) -> tuple[str, str | None] | None:
    """``user/name`` and the revision of ``user/name@revision``; None for a path, and for what lies here under that name."""
    if not isinstance(place, str) or exists(place):
        return None
    name, at, revision = place.partition("@")
    if "/" not in name or not is_hub_name(name) or (at and not _REVISION.fullmatch(revision)):
        return None
    return name, revision or None


def located(place: str | Path) -> Path:
    """The folder of an adapter: one that lies here, else what the hub keeps under the name ``user/name[@revision]``."""
    found = repository(place)
    return Path(place) if found is None else fetch(*found)


def fetch(name: str, revision: str | None = None) -> Path:
    """The adapter's files of a repository, in the hub's cache; a name's commit is settled before the first download."""
    from huggingface_hub import constants

    wanted = list(FETCHED)
    with answers(name, revision, "fetched"):
        if constants.HF_HUB_OFFLINE:
            return Path(
                client().snapshot_download(name, revision=revision, allow_patterns=wanted, local_files_only=True)
            )
        found = listing(name, revision)
        _trust(name, found.commit, found.sizes)
        return bring(
            name, found.commit, {n: size for n in wanted if (size := found.sizes.get(n)) is not None}, revision
        )


def _trust(name: str, commit: str, sizes: Mapping[str, int | None]) -> None:
    """Whether a listing is an adapter's, of a size that one has."""
    if not _COMMIT.fullmatch(commit):
        raise error("E0824", f"the hub names no commit of `{name}`")
    bad = next(
        (n for n in sizes if n.startswith(("/", "~")) or "\\" in n or ".." in n.split("/") or not n.isprintable()), None
    )
    if bad is not None:
        raise error(
            "E0824",
            f"`{name}` holds a file whose name leads out of its folder: {bad!r}",
            help="do not use this repository",
        )
    if MANIFEST not in sizes:
        other = " (it holds an adapter of peft)" if "adapter_config.json" in sizes else ""
        other = " (it is a model with adapters beside it)" if INDEX in sizes else other
        raise error("E0824", f"`{name}` is no adapter of unipelt: it has no {MANIFEST}{other}",
                    help=f"unipelt.attach(model, huggingface_hub.snapshot_download({name!r})) attaches them" if INDEX in sizes
                    else "name a repository made by `unipelt push`")  # fmt: skip
    if WEIGHTS not in sizes:
        pickled = next((n for n in sizes if n.endswith(_PICKLES)), None)
        raise error("E0824", f"`{name}` has no {WEIGHTS}" + (f"; `{pickled}` may be a pickle, and none is opened" if pickled else ""),
                    help="ask its author to push it with `unipelt push`")  # fmt: skip
    for n, most in FETCHED.items():
        size = sizes.get(n, 0)
        if size is None or size > most:
            told = "of unknown size" if size is None else f"of {size:,} bytes, more than the {most:,} that are fetched"
            raise error(
                "E0824",
                f"`{n}` of `{name}` is {told}",
                help="if you trust it, download the folder yourself and name that",
            )


# ---------------------------------------------------------------- the hub's client


def client() -> Any:
    """The hub's own client, with its settings (HF_ENDPOINT, HF_HOME, HF_TOKEN)."""
    from importlib.metadata import version

    from huggingface_hub import HfApi

    return HfApi(library_name="unipelt", library_version=version("unipelt"))


@contextlib.contextmanager
def answers(name: str, revision: str | None, done: str) -> Iterator[None]:
    """The hub's refusals and the network's failures as diagnostics; ``done`` is what was to be (fetched, pushed)."""
    from huggingface_hub import errors

    whole = name if revision is None else f"{name}@{revision}"
    try:
        yield
    except errors.GatedRepoError:
        raise error(
            "E0822", f"`{name}` is gated", help="ask for access on its page, and log in with `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise error(
            "E0821", f"`{name}` has no revision `{revision}`", help="name a branch, a tag or a commit"
        ) from None
    except errors.RepositoryNotFoundError:
        raise error("E0821", f"there is no folder `{name}` here, and no repository of that name on the hub that you may see",
                    help=near_path(Path(name), folders=True) or "check the spelling; for a private repository log in with `hf auth login`") from None  # fmt: skip
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as e:
        offline = e.__cause__ is None or isinstance(e.__cause__, errors.OfflineModeIsEnabled)
        why = "the hub is switched off (HF_HUB_OFFLINE)" if offline else _reason(e.__cause__ or e)
        if done == "pushed":
            raise error(
                "E0823",
                f"`{whole}` cannot be pushed: {why}",
                help="try again with a network, and without HF_HUB_OFFLINE",
            ) from None
        raise error("E0823", f"there is no folder `{whole}` here, and from the hub it cannot be fetched: {why}"
                    + (", and it was not fetched before" if offline else ""),
                    help=near_path(Path(name), folders=True) or "check the path, or try again with a network") from None  # fmt: skip
    except errors.HfHubHTTPError as e:
        status = e.response.status_code
        told = " ".join(str(e.server_message or "").split())
        if status in (401, 403):
            raise error("E0822", f"you may not do this with `{name}`: the hub answers {status}" + (f", {told}" if told else ""),
                        help="log in with `hf auth login`, with a token that may write where you push") from None  # fmt: skip
        raise error("E0823", f"`{whole}` cannot be {done}: the hub answers {status}" + (f", {told}" if told else ""),
                    help="try again later") from None  # fmt: skip
    except PeltError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as e:
        raise error("E0823", f"`{whole}` cannot be {done}: the hub's answer is not understood ({type(e).__name__}: {_reason(e)})",
                    help="try again later") from None  # fmt: skip
    except Exception as e:
        if not isinstance(e, OSError) and not type(e).__module__.startswith(("httpx", "httpcore", "requests")):
            raise
        raise error("E0823", f"`{whole}` cannot be {done}: {_reason(e)}", help=_cached(name, revision)) from None


def _reason(e: BaseException) -> str:
    text = " ".join((getattr(e, "strerror", None) or str(e) or type(e).__name__).split())
    return text if len(text) <= 200 else text[:197] + "…"


def _cached(name: str, revision: str | None) -> str:
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, WEIGHTS, revision=revision), str):
        return "with HF_HUB_OFFLINE=1 what was fetched before is used"
    return "check the network, and try again"
