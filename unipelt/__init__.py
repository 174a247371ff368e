"""unipelt: parameter-efficient tuning methods, written down.

A method is a row of the unified view's table (He et al. 2022) in a ``.pelt`` text; it is compiled into edits on a
Hugging Face model. Importing this package imports neither torch nor transformers; the functions that need them do.
"""

from __future__ import annotations

from importlib import import_module
from inspect import isfunction
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "load": "runtime.references", "parse": "language.loading", "check": "language.loading", "analyse": "language.analyse.method", "library": "language.loading",
    "Method": "language.ir", "Diagnostic": "language.report.diagnostics", "PeltError": "language.report.diagnostics",
    "plan": "runtime.members", "Plan": "compiler.plan", "sites": "anatomy.shown", "Sites": "anatomy.shown",
    "apply": "runtime.attach", "remove": "runtime.attach", "activate": "runtime.acting", "active": "runtime.acting",
    "adapters": "runtime.acting", "labels": "runtime.acting", "disabled": "runtime.acting", "using": "runtime.acting", "parameter_groups": "runtime.acting",
    "inputs": "runtime.prompts.arguments", "ensemble": "runtime.ensemble", "at_tokens": "runtime.prompts.outputs", "with_rows": "runtime.prompts.outputs",
    "progress": "runtime.steps", "penalties": "runtime.steps", "after_step": "runtime.steps",
    "merge": "runtime.merge", "unmerge": "runtime.merge", "save_merged": "runtime.save_merged",
    "combine": "runtime.arithmetic", "Combined": "runtime.arithmetic", "bank": "runtime.bank", "Bank": "runtime.bank",
    "export_onnx": "runtime.exporting", "import_peft": "interchange.peft_in", "export_peft": "interchange.peft_out",
    "export_as_lora": "interchange.peft_factors", "export_gguf": "interchange.gguf_out",
    "import_adapters": "interchange.adapterhub_in", "export_adapters": "interchange.adapterhub_out",
    "state_dict": "runtime.saving", "save": "runtime.saving", "attach": "runtime.checkpoint",
    "restore": "runtime.checkpoint", "push": "runtime.push", "Pushed": "runtime.push",
    "watch": "runtime.watch", "Seen": "runtime.watch", "gradient_norms": "runtime.watch",
}  # fmt: skip

__all__ = sorted(_WHERE)

if TYPE_CHECKING:
    from .anatomy.shown import Sites, sites
    from .compiler.plan import Plan
    from .runtime.members import plan
    from .language.report.diagnostics import Diagnostic, PeltError
    from .language.analyse.method import analyse
    from .language.ir import Method
    from .language.loading import check, library, parse
    from .interchange.adapterhub_in import import_adapters
    from .interchange.adapterhub_out import export_adapters
    from .interchange.peft_in import import_peft
    from .interchange.gguf_out import export_gguf
    from .interchange.peft_factors import export_as_lora
    from .interchange.peft_out import export_peft
    from .runtime.prompts.arguments import inputs
    from .runtime.arithmetic import Combined, combine
    from .runtime.acting import activate, active, adapters, disabled, labels, parameter_groups, using
    from .runtime.attach import apply, remove
    from .runtime.bank import Bank, bank
    from .runtime.checkpoint import attach, restore
    from .runtime.ensemble import ensemble
    from .runtime.exporting import export_onnx
    from .runtime.merge import merge, unmerge
    from .runtime.prompts.outputs import at_tokens, with_rows
    from .runtime.save_merged import save_merged
    from .runtime.push import Pushed, push
    from .runtime.references import load
    from .runtime.saving import save, state_dict
    from .runtime.steps import after_step, penalties, progress
    from .runtime.watch import Seen, gradient_norms, watch


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'unipelt' has no attribute {name!r}")
    value = getattr(import_module(f"unipelt.{_WHERE[name]}"), name)
    if isfunction(value):
        value = import_module("unipelt.language.public").checked(value)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
