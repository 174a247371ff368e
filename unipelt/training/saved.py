"""A finished run put to use: evaluate on other data, predict, merge into a plain model."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import unipelt

from ..language.diagnostics import error
from ..runtime.seam import NAME as RESERVED
from . import data as reading
from .models import load_model, load_tokenizer, quiet
from .run import TASK, read_json
from .tasks import Collator, Task, Tick, encode, encode_texts, evaluate, generate, logits_of


@dataclass(frozen=True)
class Run:
    """A fresh base model with a saved adapter attached, and the task that it was trained for."""

    model: Any
    tokenizer: Any
    task: Task
    name: str
    batch_size: int

    @property
    def collator(self) -> Collator:
        return Collator(self.tokenizer, self.task)


def load_run(folder: str | Path, model: str | None = None, force: bool = False) -> Run:
    """Load a run's folder onto its base model, or onto ``model``; another base is refused unless forced."""
    place = Path(folder)
    if not place.is_dir():
        raise error("E0615", f"there is no folder `{place}`", help="name the `--out` folder of `unipelt train`")
    if not (place / TASK).is_file():
        raise error("E0615", f"`{place}` holds no finished run: `{TASK}` is missing",
                    help="name the `--out` folder of `unipelt train`; a run cut short goes on with `--resume`")  # fmt: skip
    record = read_json(place / TASK)
    task = Task.from_json(record.get("task", {}))
    base = model or str(record.get("model"))
    tokenizer = load_tokenizer(base)
    loaded = load_model(base, task, tokenizer, int(record.get("seed", 0)))
    with quiet():
        name = unipelt.attach(loaded, str(place), force=force)
    loaded.eval()
    return Run(loaded, tokenizer, task, name, int(record.get("eval_batch_size", 64)))


def evaluate_run(run: Run, data: str | Path, split: str | None = None, tick: Tick | None = None
                 ) -> tuple[dict[str, float], str, int]:  # fmt: skip
    """Metrics on a file or a folder's split (the test split, else the validation split); which, and how many were cut."""
    found = reading.read(data, split or "test")
    chosen = split or next((s for s in ("test", "validation") if s in found), None)
    if chosen is None or chosen not in found:
        have = ", ".join(found.splits)
        raise error("E0608", f"`{data}` has no {chosen or 'test'} split; it has {have}", help="name one with `--split`")
    encoded = encode(run.task, found[chosen], run.tokenizer)
    with quiet():
        return evaluate(run.model, run.task, encoded, run.collator, run.batch_size, tick), chosen, encoded.truncated


def predict_run(run: Run, texts: Sequence[Sequence[str]], max_new_tokens: int = 64) -> list[dict[str, Any]]:
    """For each text (a pair where the task reads two) its label with a probability, or its continuation."""
    if not texts:
        return []
    wanted = len(run.task.texts) if run.task.classifies else 1
    for text in texts:
        if len(text) != wanted or not all(part.strip() for part in text):
            raise error("E0607", f"the task reads {wanted} text{'s' * (wanted > 1)} each, none of them empty",
                        help="give texts, or a file with the columns " + ", ".join(run.task.texts))  # fmt: skip
    with quiet():
        if not run.task.classifies:
            prompts = [t[0] for t in texts]
            answers = generate(run.model, run.task, prompts, run.tokenizer, max_new_tokens)
            return [{"text": p, "completion": a} for p, a in zip(prompts, answers)]
        encoded = encode_texts(run.task, texts, run.tokenizer)
        shares = logits_of(run.model, encoded, run.collator, run.batch_size).softmax(-1)
    out = []
    for text, share in zip(texts, shares):
        best = int(share.argmax())
        out.append({
            "text": text[0] if len(text) == 1 else list(text),
            "label": run.task.titles[best],
            "probability": round(share[best].item(), 6),
            "probabilities": {t: round(p.item(), 6) for t, p in zip(run.task.titles, share)},
        })  # fmt: skip
    return out


def read_texts(run: Run, file: str) -> list[list[str]]:
    """The texts of a data file, or of a plain text file with one text on each line."""
    path = Path(file)
    if path.suffix in reading.SUFFIXES:
        split = reading.read_file(path)
        columns = run.task.texts if run.task.classifies else run.task.texts[:1]
        return [list(row) for row in zip(*(reading.texts_of(split, reading._named(split, c, "text")) for c in columns))]
    if not path.is_file():
        raise error("E0601", f"there is no file `{path}`", help="check the path and the spelling")
    try:
        lines = path.read_text("utf-8").split("\n")
    except UnicodeDecodeError:
        raise error("E0610", f"`{path}` is not UTF-8", help="save the file with the encoding UTF-8") from None
    return [[line] for line in lines if line.strip()]


def merge_run(run: Run, out: str | Path) -> None:
    """Write a plain Hugging Face model with the adapter merged into its weights; an error where that is not exact."""
    place = Path(out)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise error("E0611", f"`{place}` exists and is not empty", help="give another `--out`")
    unipelt.merge(run.model, run.name)
    # What lives in the model under the reserved name is the adapter, now inactive; the rest is the plain model.
    plain = {n: t for n, t in run.model.state_dict().items() if RESERVED not in n.split(".")}
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as staging, quiet():
        whole = Path(staging) / "model"
        run.model.save_pretrained(whole, state_dict=plain)
        run.tokenizer.save_pretrained(whole)
        if place.exists():
            place.rmdir()
        whole.rename(place)
