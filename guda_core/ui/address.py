"""The page's address carries what a picture is drawn from and the settings, so that a link brings others to the same
form.

    ?prompt=...&seed=1&steps=25&guidance=2.5&effort=quick&methods=guda,clip&captions=0

methods: ids with commas between; empty: none is ticked. captions: 1 tries other captions for an upload, 0 does not.
Whatever is wrong in an address is left out: the form then keeps its own value. Of methods that are not offered, the
page says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import gradio as gr

from guda_core.data.prompts import check_options, check_prompt
from guda_core.errors import OptionError, PromptError
from guda_core.service import find_effort

FIELDS = ("prompt", "seed", "steps", "guidance", "effort", "methods", "captions")
LONGEST = 4000  # characters of an address that any host takes
WRITE = f"""(...values) => {{
    const address = new URL(location.href), names = {json.dumps(FIELDS)};
    const written = (v) => Array.isArray(v) ? v.join(",") : typeof v === "boolean" ? Number(v) : v;
    names.forEach((name, i) => address.searchParams.set(name, written(values[i])));
    if (address.search.length > {LONGEST}) address.searchParams.delete("prompt");
    history.replaceState(null, "", address);
    return [];
}}"""  # runs in the browser when a picture is asked for
LEFT_OUT = "The address asks for {what} not offered here{ids}. {left} left out."
NONE_LEFT = "The address asks only for {what} not offered here{ids}. The form keeps its own."
NAMED, MOST_NAMED = re.compile("[a-z0-9_-]{1,40}"), 8  # a stranger's address: which ids are repeated, and how many


def read(found: Mapping[str, str], offered: Iterable[str]) -> dict[str, Any]:
    """The values in an address that may stand in the form, by field. offered: ids of methods."""
    known = set(offered)
    readers: dict[str, Callable[[str], Any]] = {
        "prompt": check_prompt,
        "seed": lambda v: _checked(seed=int(v))["seed"],
        "steps": lambda v: min(50, max(5, _checked(steps=int(v))["steps"])),
        "guidance": lambda v: min(8.0, max(1.0, _checked(guidance=float(v))["guidance"])),
        "effort": lambda v: find_effort(v).id,
        "methods": lambda v: _some([m for m in _ids(v) if m in known]) if v else [],
        "captions": lambda v: bool(("0", "1").index(v)),
    }
    out: dict[str, Any] = {}
    for name, reader in readers.items():
        if name in found:
            try:
                out[name] = reader(found[name])
            except (OptionError, PromptError, ValueError):
                continue
    return out


def left_out(found: Mapping[str, str], offered: Iterable[str]) -> str:
    """What is said of the methods in an address that are not offered; "" where there are none. A link must not make the
    page say what it likes: only what looks like an id is repeated, the others are counted."""
    asked, known = _ids(found.get("methods", "")), set(offered)
    unknown = [m for m in asked if m not in known]
    if not unknown:
        return ""
    named = [m for m in unknown if NAMED.fullmatch(m)][:MOST_NAMED]
    others = len(unknown) - len(named)
    ids = f": {', '.join(named)}{f' and {others} more' if others else ''}" if named else ""
    many = len(unknown)
    what, left = ("a method that is", "It is") if many == 1 else (f"{many} methods that are", "They are")
    return (LEFT_OUT if len(unknown) < len(asked) else NONE_LEFT).format(what=what, ids=ids, left=left)


def _ids(value: str) -> list[str]:
    """Ids with commas between, each once."""
    return list(dict.fromkeys(m for part in value.split(",") if (m := part.strip())))


def _some(ids: list[str]) -> list[str]:
    if not ids:
        raise ValueError("no method is left")
    return ids


def _checked(*, seed: int = 0, steps: int = 25, guidance: float = 2.5) -> dict[str, Any]:
    check_options(seed=seed, steps=steps, guidance=guidance)
    return {"seed": seed, "steps": steps, "guidance": guidance}


def filled(query: Mapping[str, str], offered: Iterable[str]) -> list[Any]:
    """The form's values from the query of the page's address, a component each of FIELDS."""
    found = read(query, offered)
    return [found[name] if name in found else gr.skip() for name in FIELDS]
