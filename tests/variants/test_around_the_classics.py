"""From LoRA, the adapter and prefix tuning, spaces over the words of the language arrive at other published methods."""

from __future__ import annotations

import pytest
from names import RENAMED

from unipelt.language.check.space import space_of
from unipelt.language.loading import definition
from unipelt.variants.generate import generate
from unipelt.variants.recognise import recognise

CLASSICS = {"lora", "adapter", "prefix_tuning"}


@pytest.mark.skipif(bool(RENAMED), reason="the file calls forms of the library by their names")
def test_published_methods_come_out_of_spaces_around_the_classics(record_property: pytest.FixtureRequest) -> None:
    found: set[str] = set()
    members = 0
    for name in ("around_lora", "around_the_adapter", "around_prefixes"):
        generated = generate(space_of(*definition(f"examples/spaces/{name}.pelt"))).members
        members += len(generated)
        whole = [recognise(m.method).whole for m in generated]
        found |= {w.name for w in whole if w is not None and w.plain}
    record_property(
        "figure", f"spaces: {len(found - CLASSICS)} methods of the library among {members} members around the classics"
    )  # type: ignore[operator]
    assert len(found - CLASSICS) >= 20, sorted(found)
