"""What lies in folders and zips that nobody put there: hidden files, and what Windows, macOS and network disks make.
And what people keep beside pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

LEFT_BEHIND = (
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "system volume information",
    "icon\r", "__macosx", "@eadir",
)  # fmt: skip
BESIDE = (".txt", ".caption", ".md", ".json", ".jsonl", ".csv", ".yaml", ".yml", ".npz", ".toml", ".pdf")
NO_PICTURES = (
    *BESIDE, ".tsv", ".xlsx", ".parquet", ".npy", ".pt", ".ckpt", ".safetensors", ".zip", ".tar", ".gz", ".html",
    ".xml", ".xmp", ".log",
)  # fmt: skip


def is_left_behind(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or a system's own."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND


def is_no_picture(name: str) -> bool:
    """Whether a file is plainly no picture, by its ending: a caption or a table beside pictures, say."""
    return PurePath(name).suffix.lower() in NO_PICTURES


@dataclass
class PassedOver:
    """What a walk through folders left out, counted: files that are no pictures by their endings, and folders that are
    not entered."""

    files: int = 0
    folders: int = 0

    def __str__(self) -> str:
        """One sentence for each kind; "" where nothing was left out."""
        said = []
        if self.files:
            they = "file is" if self.files == 1 else "files are"
            said.append(f"{self.files:,} {they} left out: no pictures, by their endings (such as .txt or .json).")
        if self.folders:
            they = "subfolder is" if self.folders == 1 else "subfolders are"
            said.append(f"{self.folders:,} {they} not read. With --table, subfolders are read too.")
        return " ".join(said)
