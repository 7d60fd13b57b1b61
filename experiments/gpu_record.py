"""The figures of `experiments.gpu_check`: written after every part, and shown as a short table."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from guda_core.cli.terminal import say
from guda_core.held_files import replacing
from guda_core.versions import today, versions


class Record:
    """The figures, written after every part."""

    def __init__(self, out: Path, *, device: str, tiny: bool, deadline_s: float) -> None:
        self.out, self.began, self.deadline_s = out, time.monotonic(), deadline_s
        card = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        self.found: dict[str, Any] = {
            "command": "python -m experiments.gpu_check", "device": card, "tiny": tiny, "versions": versions(),
            "date": today(), "parts": {}, "not_reached": [], "failed": {},
        }  # fmt: skip

    @contextmanager
    def part(self, name: str) -> Iterator[dict[str, Any] | None]:
        """Gives where to put a part's figures, or None where no time is left. What fails is recorded, and the others
        follow."""
        if time.monotonic() - self.began > self.deadline_s:
            self.found["not_reached"].append(name)
            self.write()
            yield None
            return
        figures: dict[str, Any] = {}
        began = time.monotonic()
        try:
            yield figures
        except Exception as e:
            self.found["failed"][name] = f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"
        self.found["parts"][name] = {**figures, "part_s": round(time.monotonic() - began, 1)}
        self.write()
        say(f"{name}: {time.monotonic() - began:.0f} s")

    def write(self) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.out) as aside:
            aside.write_text(json.dumps(self.found, indent=1), encoding="utf-8")


def table(found: dict[str, Any]) -> Table:
    """The figures in a few lines."""
    title, parts = f"{found['device']}{' (tiny models)' if found['tiny'] else ''}", found["parts"]
    out = Table("what", "figure", title=title)
    for name in ("bare", "sdxl_bare"):
        for dtype, rows in parts.get(name, {}).items():
            if isinstance(rows, dict):
                out.add_row(f"{name} {dtype}", ", ".join(f"{b}: {r['passes_s']}/s" for b, r in rows.items()))
    for effort in ("quick", "full"):
        if s := parts.get("scoring", {}).get(effort):
            out.add_row(f"{effort} attribution", f"{s['seconds']} s, {s['share_of_bare']:.0%} of the bare rate")
    for name in ("float16", "bfloat16"):
        if s := parts.get("types", {}).get(name):
            out.add_row(f"scores in {name}", f"at most {s['largest_off_in_se']:.2g} standard errors off")
    for name in ("unlearning", "sdxl_unlearning"):
        for kind, s in parts.get(name, {}).items():
            if isinstance(s, dict):
                out.add_row(f"{name} {kind}", ", ".join(f"{k} {_short(v)}" for k, v in s.items()))
    if s := parts.get("embedded", {}):
        out.add_row(
            "embedded model", f"same ranks {s.get('same_ranks')}, {_short(s.get('largest_difference_nats'))} nats off"
        )
    for name, why in found["failed"].items():
        out.add_row(f"{name} FAILED", why)
    for name in found["not_reached"]:
        out.add_row(name, "not reached before the deadline")
    return out


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
