"""The work of every other task: predictions for texts. Those of one adapter run together, and those of several where heads and tasks are the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

import unipelt

from ..compiler.labels import labels_of_base
from ..language.report.diagnostics import PeltError, counted, near
from ..runtime.hub import TASK
from ..training.folder import read_json
from ..training.models import quiet
from ..training.options import TaskOptions
from ..training.tasks import task_from_json, task_without_data
from ..training.tasks.evaluation import predict
from ..training.tasks.task import Predicting, Task
from .catalogue import Entry
from .jobs import Job, Prediction
from .listener import SILENT, Listener
from .options import OF_TEXTS, ServeOptions
from .placing import Placed
from .refusals import use_predict, wrong
from .texts import need_unicode
from .trial import alike, need_finite


@dataclass(frozen=True)
class Known:
    """The task of an adapter, and whether its texts may be computed beside those of others."""

    task: Task
    shares: bool


class Labelling:
    """See `engine.Work`. ``kind`` is the task that the model was loaded for; ``base`` the base's own, where it has a head for it."""

    def __init__(
        self, model: Any, tokenizer: Any, options: ServeOptions, kind: str, base: bool, listener: Listener = SILENT
    ):  # fmt: skip
        self.model, self.tokenizer, self.options, self.kind, self.listener = model, tokenizer, options, kind, listener
        self.base = Known(self._unrecorded(labels_of_base(model)), True) if base else None
        self._pending: list[Prediction] = []

    def look(self, entry: Entry, placed: Placed) -> Known:
        """The adapter's task, and whether it shares. Raises what makes it unusable."""
        if entry.has(TASK):
            task = task_from_json(read_json(entry.folder / TASK).get("task", {}))
            fits = task.kind in OF_TEXTS and task.auto_for(self.model.config) == type(task).auto_for(self.model.config)
            if not fits or task.kind != self.kind:
                raise ValueError(f"it was trained for {task.kind}, and the server's model was loaded for {self.kind}")
        else:
            task = self._unrecorded(placed.plan.labels or labels_of_base(self.model))
        return Known(task, self._tried(task, placed.inside))

    def _unrecorded(self, labels: Any) -> Task:
        """The task of an adapter that no run made: by the server's kind and the labels."""
        if labels is None and self.kind not in ("seq2seq", "question-answering"):
            raise ValueError(f"nothing says what the columns of its scores mean for {self.kind}")
        problem = labels.problem_type if labels is not None else None
        given = problem.removesuffix("_classification") if problem and self.kind == "sequence-classification" else None
        options: Any = {"task": self.kind, "problem_type": given}
        return task_without_data(TaskOptions(**options), labels).fit(self.model.config, self.tokenizer)

    def _tried(self, task: Task, inside: str) -> bool:
        """Whether a text gives the same beside the base's and one of another length. Raises `NotFinite`."""
        if not task.by_example:
            return False
        texts = [["a"] * len(task.inputs), ["a b c d e"] * len(task.inputs)]
        encoded = task.encode_inputs(texts, self.tokenizer)

        def outputs(chosen: list[int], *who: Any) -> list[Any]:
            batch = task.collate([encoded[i] for i in chosen], self.tokenizer)
            batch = {k: v.to(self.model.device) for k, v in batch.items()}
            with torch.no_grad(), unipelt.using(self.model, *who):
                return [torch.as_tensor(x).float() for x in task.outputs(self.model, batch, encoded, chosen)]

        (wanted,) = outputs([0], inside)
        need_finite(wanted)
        try:
            together = outputs([0, 1], [inside, None])
        except PeltError:
            return False
        (other,) = outputs([1], None)
        # Beside wider heads the scores have columns without a label.
        pairs = zip(together, (wanted, other))
        return all(alike(self.model, found[..., : own.shape[-1]], own) for found, own in pairs)

    # ------------------------------------------------------------ see `engine.Work`

    def check(self, job: Job) -> None:
        if not isinstance(job, Prediction):
            raise use_predict(self.kind)
        if job.adapter is None and self.base is None:
            raise wrong("no_head", f"the base has no trained head for {self.kind}: name an adapter", "model")
        most = min(self.options.max_batch, self.options.max_queue)
        if job.size > most:
            raise wrong("too_many_inputs", f"at most {counted(most, 'text')} in a request", "inputs")
        for given in job.inputs:
            for text in [given] if isinstance(given, str) else given.values() if isinstance(given, Mapping) else given:
                need_unicode(text, "inputs")

    def room(self) -> int:
        return self.options.max_batch - sum(job.size for job in self._pending)

    def begin(self, job: Job) -> None:
        assert isinstance(job, Prediction)
        task = self._known(job).task
        wanted = task.inputs
        job.inputs = [_in_order(given, wanted) for given in job.inputs]
        for given in job.inputs:
            if len(given) != len(wanted) or not all(text.strip() for text in given):
                raise wrong("wrong_inputs", f"the task reads {counted(len(wanted), 'text')} for each input, none of them empty: {', '.join(wanted)}",
                            "inputs")  # fmt: skip
        if not job.cut:
            try:
                cut = task.cut_of(job.inputs, self.tokenizer)
            except PeltError as e:
                raise _as_refusal(e) from None
            if cut:
                raise wrong("context_length_exceeded", f"{cut} of {counted(len(job.inputs), 'input')} {'is' if cut == 1 else 'are'} longer than the {task.longest} "
                            "that the adapter was trained with: shorten them, or send \"truncate\": true to have them cut", "inputs")  # fmt: skip
        self._pending.append(job)

    def running(self) -> list[Job]:
        return list(self._pending)

    def leave(self, jobs: Iterable[Job]) -> None:
        gone = {id(job) for job in jobs}
        self._pending = [job for job in self._pending if id(job) not in gone]

    def step(self) -> list[tuple[Job, Any]]:
        """The first request with all others that may run with it."""
        first = self._pending[0]
        chosen = [job for job in self._pending if self._together(first, job)]
        self.leave(chosen)
        return self._outcomes(chosen)

    # ------------------------------------------------------------ batches

    def _known(self, job: Job) -> Known:
        known = job.loaded.known if job.loaded is not None else self.base
        assert known is not None
        return known

    def _together(self, a: Prediction, b: Prediction) -> bool:
        if a.loaded is b.loaded:
            return True
        x, y = self._known(a), self._known(b)
        return x.shares and y.shares and x.task == y.task and not self.options.one_at_a_time

    def _outcomes(self, jobs: Sequence[Prediction]) -> list[tuple[Job, Any]]:
        """The answers of several requests. After a fault each runs by itself, which shows whose it was."""
        try:
            return list(zip(jobs, self._predict(jobs)))
        except Exception as e:  # noqa: BLE001
            if len(jobs) == 1:
                return [(jobs[0], _as_refusal(e))]
            return [outcome for job in jobs for outcome in self._outcomes([job])]

    def _predict(self, jobs: Sequence[Prediction]) -> list[list[dict[str, Any]]]:
        """The answers of several requests, in one batch."""
        task = self._known(jobs[0]).task
        inputs = [given for job in jobs for given in job.inputs]
        who = [job.inside for job in jobs for _ in job.inputs]
        adapters = set(who)

        def around(chosen: Sequence[int]) -> AbstractContextManager[Any]:
            return unipelt.using(self.model, [who[i] for i in chosen])

        self.listener.batch(len(inputs), len(adapters))
        one = len(adapters) == 1
        how = Predicting(self.options.max_batch, around=None if one else around)
        with quiet(), unipelt.using(self.model, who[0] if one else None):
            answers = iter(predict(self.model, task, inputs, self.tokenizer, how))
        return [[next(answers) for _ in job.inputs] for job in jobs]


def _in_order(given: Any, wanted: Sequence[str]) -> Sequence[str]:
    """The texts of an input in the order of the task's columns."""
    if isinstance(given, str):
        return [given]
    if not isinstance(given, Mapping):
        return given
    strange = next((n for n in given if n not in wanted), None)
    if strange is not None:
        help_ = near(strange[:80], wanted) or f"the task reads {', '.join(wanted)}"
        raise wrong("wrong_inputs", f"there is no input `{strange[:80]}`; {help_}", "inputs")
    return [given.get(n, "") for n in wanted]


def _as_refusal(e: BaseException) -> BaseException:
    """A mistake in the texts is the client's."""
    if isinstance(e, PeltError):
        return wrong("wrong_inputs", e.diagnostics[0].message, "inputs")
    return e
