"""Names of the library in tests: the suite also runs with every definition renamed (see `test_renamed`).

``UNIPELT_RENAMED`` holds a JSON object from the names in ``specs/`` to those in force; without it they are the same.
"""

from __future__ import annotations

import json
import os
import re

RENAMED: dict[str, str] = json.loads(os.environ.get("UNIPELT_RENAMED", "{}"))
_WORD = re.compile(r"(?<![\w.])[A-Za-z_]\w*")


def name(original: str) -> str:
    """The name of a definition of the library; ``a+b`` of a union."""
    return "+".join(RENAMED.get(n, n) for n in original.split("+"))


def spec(text: str) -> str:
    """A text of the language in which definitions of the library are called by the names in force."""
    return _WORD.sub(lambda m: RENAMED.get(m[0], m[0]), text)


#: The methods that every test of a method takes; the others go through `tests/zoo`.
CLASSICS = (
    "adapter adapter_drop adapter_drop_robust adapter_plus bitfit first_head full ia3 llama_adapter ln_tuning lora lora_plus mam "
    "mean_head multi_head_parallel_adapter p_tuning p_tuning_mlp p_tuning_mlp_prepended p_tuning_prepended p_tuning_v2 "
    "parallel_adapter partial pfeiffer prefix_tuning prefix_tuning_mlp probing probing_cls probing_mean prompt_ensemble "
    "prompt_tuning prompt_tuning_after_cls rslora scaled_parallel_adapter scaled_parallel_adapter_learned unipelt_ap "
    "unipelt_ap_ungated unipelt_apl unipelt_apl_causal unipelt_apl_ungated unipelt_gated_prefix unipelt_prefix"
).split()


def methods() -> list[str]:
    """Every method of the library, by the name in force."""
    from unipelt import library

    return [e.name for e in library() if e.kind == "method"]


def members() -> list[str]:
    """The methods that a costly test takes: the classics; with UNIPELT_ALL=1 every one, also those too large for its models."""
    classics = {name(n) for n in CLASSICS}
    return [m for m in methods() if m in classics or os.environ.get("UNIPELT_ALL")]
