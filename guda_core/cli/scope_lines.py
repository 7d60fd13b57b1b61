"""What `guda assets scope` says of the rule that it made: how often it is wrong, and whether it is of any use."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from guda_core.amounts import time_said
from guda_core.cli.terminal import ERR, columned, note, say, show

if TYPE_CHECKING:
    from pathlib import Path

    from guda_core.attribution.scope import Rule
    from guda_core.attribution.scope_fit import ScopeConfig
    from guda_core.diffusion.base_model import BaseModel


def tell_cost(model: BaseModel, config: ScopeConfig, foreign: Path | None) -> None:
    """On stderr, before the work: what it will take, by a few passes that are tried. foreign: folder of pictures."""
    from guda_core.attribution.scope_plan import make_plan

    with ERR.status("Trying a few passes"):
        plan = make_plan(model, config, foreign=foreign)
    note(
        f"To draw {plan.drawn:,} pictures ({plan.passes:,} passes) and to measure up to {plan.measured:,} will take "
        f"about {time_said(plan.seconds)}."
    )


def tell(rule: Rule) -> None:
    """A table of the kinds of pictures, and a warning where the rule calls nothing out of scope."""
    title = "How often pictures are called out of scope (tried on pictures that the rule was not fitted on)"
    table = columned(title, "kind", "should be", "called out of scope", "pictures")
    for found in rule.kinds.values():
        share = found.get("out_of_scope") or {}
        right = "in scope" if found["belongs"] else "out of scope"
        table.add_row(str(found["about"]), right, _share(share), str(share.get("n", "-")))
    show(table)
    if not math.isfinite(rule.threshold):
        least = math.ceil(1 / rule.alarms) - 1
        say(
            f"Warning: this rule calls no picture out of scope. Its threshold needs {least} pictures that belong and "
            f"were not fitted on, and there are {len(rule.calibration)}. Use more --pictures, or hold out more of the "
            "set."
        )


def _share(found: dict[str, Any]) -> str:
    if "value" not in found:
        return "-"
    return f"{found['value']:.0%} ({found['low']:.0%} to {found['high']:.0%})"
