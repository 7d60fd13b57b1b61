"""How answers look: rules that the app and the page in a report share, and their colours in light and dark."""

from __future__ import annotations

from pathlib import Path

RULES = Path(__file__).with_name("answer.css").read_text(encoding="utf-8")
COLOURS = {  # light, dark
    "added": ("#64748b", "#94a3b8"),  # of a bar: the offset, added for every picture; the drop, measured on this one
    "measured": ("#2563eb", "#60a5fa"),
    "good": ("#166534", "#bbf7d0"),  # chips
    "good-back": ("#dcfce7", "#14532d"),
    "unsure": ("#92400e", "#fde68a"),
    "unsure-back": ("#fef3c7", "#713f12"),
    "quiet": ("#334155", "#e2e8f0"),
    "quiet-back": ("#f1f5f9", "#334155"),
    "edge": ("#71717a", "#a1a1aa"),  # of pictures and of rows that unfold
    "warn": ("#b45309", "#fbbf24"),  # beside what must not be overlooked
    "needed": ("#ea580c", "#ea580c"),  # of maps (`reports.picture_files`)
    "hindered": ("#2563eb", "#3b82f6"),
}


COLOURED = ("chart", "chip", "drawings", "picture", "seen", "banner", "strip", "key", "past")  # parts that use them


def variables(colours: dict[str, tuple[str, str]], *, dark: bool) -> str:
    """Declarations of CSS variables."""
    return "".join(f"--{name}: {pair[dark]};" for name, pair in colours.items())
