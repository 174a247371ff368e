"""Names of the library in tests: the suite also runs with every definition renamed (see `test_renamed`).

``UNIPELT_RENAMED`` holds a JSON object from the names in ``specs/`` to those in force; without it they are the same.
"""

from __future__ import annotations

import hashlib
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


#: The methods that every test of a method takes. Of the others each such test takes a share (see `members`).
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


def drawn(test: str, method: str, share: int = 8) -> bool:
    """Whether a method is among the one in ``share`` that a test takes besides the classics; ``method`` as it is called in ``specs/``."""
    everything = bool(os.environ.get("UNIPELT_ALL"))
    return everything or int(hashlib.sha256(f"{test}:{method}".encode()).hexdigest(), 16) % share == 0


def members(test: str, share: int = 8) -> list[str]:
    """The methods that a costly test takes: the classics, and of the others one in ``share``, other ones for each test.

    With UNIPELT_ALL=1 all of them. Every method goes through `tests/zoo` in any case.
    """
    classics = {name(n) for n in CLASSICS}
    return [m for m in methods() if m in classics or (not RENAMED and drawn(test, m, share))]
