"""What lies in folders and zips that nobody put there: hidden files, and what Windows, macOS and network disks make."""

from __future__ import annotations

LEFT_BEHIND = (
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "system volume information",
    "icon\r", "__macosx", "@eadir",
)  # fmt: skip


def is_left_behind(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or a system's own."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND
