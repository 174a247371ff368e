"""Any Trainer of transformers on a model that has adapters: `for_trainer`; and what a preference is measured against: `Reference`.

A Trainer writes the whole model at each checkpoint and gives every tensor one learning rate. `for_trainer` puts `WithAdapters`
in front of the class of a Trainer that exists, so what its own class does otherwise (TRL's losses, the datasets of
sentence-transformers) stays as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME

import unipelt

from ..anatomy.base import base_modules
from ..language.files import check, reason
from ..language.report.diagnostics import PeltError, counted, error
from ..runtime.acting import rates_of
from ..runtime.checkpoint import restore
from ..runtime.registry import record, registry, unwrapped
from ..runtime.save_pretrained import write_adapters
from ..runtime.sharding import is_sharded
from .words import Words, adapted_models

if TYPE_CHECKING:
    _Trainer = Trainer
else:
    _Trainer = object

#: Tensors that are trained beside the adapters, such as a pooling layer's; by their names in the Trainer's model.
BESIDE = "beside.safetensors"


class WithAdapters(_Trainer):
    """What a Trainer does otherwise where its model, or one inside it, has adapters.

    Checkpoints and `save_model` hold the adapters that are trained, not the base; a resumed run and the best model are read
    from them. The optimiser has the learning rates that the method gives, and no decay on vectors and scalars. `for_trainer` puts
    it in front of a Trainer's class; a class of one's own may as well be written ``class Mine(WithAdapters, SFTTrainer)``.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.add_callback(Words())

    @property
    def adapted(self) -> nn.Module:
        """The one model with adapters: the Trainer's, or a part of it."""
        return _adapted(self.model)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        given = self.optimizer is not None  # the caller's: it has the groups that he gave it
        optimizer = super().create_optimizer(*args, **kwargs)
        if not given:
            regroup(optimizer, rates_of(self.adapted))
        return optimizer

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss, with norms over the batch as in evaluation: their running statistics are the base's, and no adapter holds others."""
        for m in self._norms():
            m.eval()
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _norms(self) -> list[nn.Module]:
        found: list[nn.Module] | None = self.__dict__.get("norms_of_batches")
        if found is None:
            kinds = nn.modules.batchnorm._BatchNorm
            found = [m for _, m in base_modules(self.adapted) if isinstance(m, kinds) and m.running_mean is not None]
            self.__dict__["norms_of_batches"] = found
        return found

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if is_sharded(self.adapted):
            self._save(output_dir)  # by all processes: each has parts
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save or is_sharded(self.adapted):
            folder = Path(str(output_dir or self.args.output_dir))
            folder.parent.mkdir(parents=True, exist_ok=True)
            write_adapters(self.adapted, folder, _trained(self.adapted))
        if self.args.should_save:
            self._save_more(folder)

    def _save_more(self, folder: Path) -> None:
        """What is written besides the adapters."""
        beside = {n: p.detach().contiguous() for n, p in self._beside().items()}
        if beside:
            save_file(beside, folder / BESIDE)
        reader: Any = self.processing_class or getattr(self.data_collator, "tokenizer", None)
        if hasattr(reader, "save_pretrained"):
            reader.save_pretrained(str(folder))
        torch.save(self.args, folder / TRAINING_ARGS_NAME)

    def _beside(self) -> dict[str, nn.Parameter]:
        """Parameters that are trained and that no adapter has."""
        own = {id(p) for p in self.adapted.parameters()}
        assert self.model is not None
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad and id(p) not in own}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._restore(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        self._restore(Path(str(self.state.best_model_checkpoint)))

    def _restore(self, folder: Path) -> None:
        """Reads the adapters of a checkpoint, and what is trained beside them."""
        beside = self._beside()
        found = _read_beside(folder, beside) if beside else {}
        for name in _trained(self.adapted):
            restore(self.adapted, folder, name)
        with torch.no_grad():
            for n, t in found.items():
                beside[n].copy_(t)


def for_trainer(trainer: Any) -> Any:
    """Makes a Trainer keep and train the adapters of its model, and returns it: see `WithAdapters`.

    ``trainer`` is a `transformers.Trainer` or of a class made from it (Seq2SeqTrainer, TRL's, SentenceTransformerTrainer), or an
    object that holds one (SetFit's). The method is applied before: the Trainer's model, or one model inside it, has adapters.
    Raises `PeltError` where it has none, where none is trained, and under DeepSpeed, which takes a model's parameters away.
    """
    found = trainer if isinstance(trainer, Trainer) else _held(trainer)
    if isinstance(found, WithAdapters):
        return trainer
    if found.is_deepspeed_enabled:
        raise error("E0661", "the Trainer uses DeepSpeed, which takes a model's parameters away",
                    help="use FSDP 2 (fsdp_version: 2), or copies of the model")  # fmt: skip
    if not _trained(_adapted(found.model)):
        raise error("E0622", "none of the model's adapters is trained",
                    help="attach it with `trainable=True`, or apply a method that trains something")  # fmt: skip
    cls = type(found)
    found.__class__ = type(cls.__name__, (WithAdapters, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})
    if not any(isinstance(c, Words) for c in found.callback_handler.callbacks):
        found.add_callback(Words())
    return trainer


def _held(trainer: Any) -> Trainer:
    found = [v for v in vars(trainer).values() if isinstance(v, Trainer)] if hasattr(trainer, "__dict__") else []
    if len(found) != 1:
        raise error("E0772", f"`{type(trainer).__name__}` is no Trainer of transformers, and holds {counted(len(found), 'Trainer') if found else 'none'}",
                    help="give a Trainer: unipelt.training.for_trainer(trainer)")  # fmt: skip
    return found[0]


def _adapted(model: Any) -> nn.Module:
    found = adapted_models(model)
    if len(found) != 1:
        said = "has no adapter" if not found else f"holds {len(found)} models that have adapters"
        raise error(
            "E0550",
            f"the Trainer's model {said}",
            help="attach one to its model first: unipelt.apply(model, method, name=…)",
        )
    return found[0]


def _trained(model: nn.Module) -> list[str]:
    r = registry(model)
    assert r is not None
    return [n for n, a in r.attached.items() if a.trainable and any(p.requires_grad for p in a.trained().values())]


def regroup(optimizer: Any, rates: dict[int, tuple[float, bool]]) -> None:
    """Divides an optimiser's groups by the multiples of the learning rate and by what decays.

    ``rates`` has, by the id of a parameter, its multiple and whether it may decay; others stay as they are.
    """
    made: dict[tuple[int, float, bool], dict[str, Any]] = {}
    for i, group in enumerate(optimizer.param_groups):
        names = group.get("param_names") or [None] * len(group["params"])
        for p, name in zip(group["params"], names):
            multiple, decays = rates.get(id(p), (1.0, True))
            decays = decays or not group.get("weight_decay")
            part = made.setdefault((i, multiple, decays), {**group, "lr": group["lr"] * multiple, "params": [],
                                   **({"param_names": []} if "param_names" in group else {}),
                                   **({} if decays else {"weight_decay": 0.0})})  # fmt: skip
            part["params"].append(p)
            if "param_names" in group:
                part["param_names"].append(name)
    optimizer.param_groups[:] = made.values()


def _read_beside(folder: Path, beside: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    path = folder / BESIDE
    try:
        check(path)
        found = load_file(path)
        wrong = sorted(set(found) ^ set(beside)) or [n for n, t in found.items() if t.shape != beside[n].shape]
    except PeltError:
        raise
    except Exception as e:  # noqa: BLE001 - safetensors raises whatever its reader raises
        raise error("E0781", f"the run cannot go on from `{path}`: {' '.join(reason(e).split())[:200]}",
                    help="resume from another checkpoint, or train anew") from None  # fmt: skip
    if wrong:
        raise error("E0781", f"the run cannot go on from `{path}`: it has other tensors than are trained here, such as `{wrong[0]}`",
                    help="resume from another checkpoint, or train anew")  # fmt: skip
    return found


class Reference(nn.Module):
    """What a preference is measured against, on the weights that are there: the base, or an adapter as it was.

    ``DPOTrainer(model, ref_model=Reference(model), …)``: without it TRL loads a second base. ``Reference(model, "sft")`` runs the
    attached adapter of that name, which is not to be trained, such as the one that the trained adapter started from
    (``unipelt.attach(model, folder, "sft")`` and then ``unipelt.attach(model, folder, "dpo", trainable=True)``). It is called as the
    model is, without gradients and in evaluation mode. It has no parameters of its own.
    """

    def __init__(self, model: nn.Module, adapter: str | None = None):
        super().__init__()
        model = unwrapped(model)
        r = registry(model)
        if r is None:
            raise error("E0550", "this model has no adapter", help="attach one: unipelt.apply(model, method, name=…)")
        if adapter is not None and record(model, adapter) and adapter in _trained(model):
            raise error("E0773", f"the adapter `{adapter}` is trained, and a reference stays as it is",
                        help="attach the saved adapter once more under another name, and name that one")  # fmt: skip
        self.__dict__["of"], self.__dict__["adapter"] = (
            model,
            adapter,
        )  # not a child: what is done to this is not done to the policy

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Here and not in `forward`: libraries put a forward of their own in its place, which calls parts of the model.
        modes = [(m, m.training) for m in self.of.modules()] if self.of.training else []
        acting = unipelt.disabled(self.of) if self.adapter is None else unipelt.using(self.of, self.adapter)
        with torch.no_grad(), acting:
            try:
                for m, _ in modes:
                    m.training = False
                return super().__call__(*args, **kwargs)
            finally:
                for m, was in modes:
                    m.training = was

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.of(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["of"], name)
