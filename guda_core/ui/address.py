"""The page's address carries what a picture is drawn from, so that a link brings others to the same form.

    ?prompt=...&seed=1&steps=25&guidance=2.5&effort=quick

Whatever is wrong in an address is left out: the form then keeps its own value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from guda_core.data.prompts import check_options, check_prompt
from guda_core.errors import OptionError, PromptError
from guda_core.service import find_effort

FIELDS = ("prompt", "seed", "steps", "guidance", "effort")
WRITE = """(...values) => {
    const address = new URL(location.href), names = ["prompt", "seed", "steps", "guidance", "effort"];
    names.forEach((name, i) => address.searchParams.set(name, values[i]));
    history.replaceState(null, "", address);
    return [];
}"""  # runs in the browser when a picture is asked for


def read(found: Mapping[str, str]) -> dict[str, Any]:
    """The values in an address that may stand in the form, by field."""
    readers: dict[str, Callable[[str], Any]] = {
        "prompt": check_prompt,
        "seed": lambda v: _checked(seed=int(v))["seed"],
        "steps": lambda v: min(50, max(5, _checked(steps=int(v))["steps"])),
        "guidance": lambda v: min(8.0, max(1.0, _checked(guidance=float(v))["guidance"])),
        "effort": lambda v: find_effort(v).id,
    }
    out: dict[str, Any] = {}
    for name, reader in readers.items():
        if name in found:
            try:
                out[name] = reader(found[name])
            except (OptionError, PromptError, ValueError):
                continue
    return out


def _checked(*, seed: int = 0, steps: int = 25, guidance: float = 2.5) -> dict[str, Any]:
    check_options(seed=seed, steps=steps, guidance=guidance)
    return {"seed": seed, "steps": steps, "guidance": guidance}


def filled(request: gr.Request) -> list[Any]:
    """The form's values from the address of the page, a component each of FIELDS."""
    found = read(dict(request.query_params))
    return [found[name] if name in found else gr.skip() for name in FIELDS]
