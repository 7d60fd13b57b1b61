"""What a training that was stopped goes on from: one file, tensors and numbers alone, read without running code.

It is written aside and renamed, so that a kill or a full disk never leaves a torn one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from guda_core.diffusion.memory import MEND, lacked_memory
from guda_core.errors import NoMemoryError, TrainingError, first_line
from guda_core.held_files import advice, replacing


class Kept(Protocol):
    """What has a state of its own beside the weights."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint in place of the one that is there.

    Raises:
        TrainingError: it cannot be written, such as on a full disk. The one before stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, alone=True) as aside:
            torch.save(dict(state), aside)
    except (OSError, RuntimeError) as e:  # torch's writer raises a RuntimeError on a full disk
        what = advice(e, "Free some disk space")
        raise TrainingError(
            f"The checkpoint {path} cannot be written ({first_line(e)}). {what} and run the same command again: it "
            "goes on from the checkpoint before."
        ) from e


def read(path: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state in a checkpoint, on the CPU; None where there is none.

    Raises:
        TrainingError: it cannot be read, or was made with other settings than these.
        NoMemoryError: there is not enough memory for it.
    """
    try:
        if not path.is_file():
            return None
        state = torch.load(path, weights_only=True, map_location="cpu")
        theirs = dict(state["config"])
    except Exception as e:
        if lacked_memory(e):
            raise NoMemoryError(f"The checkpoint {path} cannot be read: there is not enough memory. {MEND}") from e
        if isinstance(e, OSError):  # the disk's or the system's fault: what is in it may be sound
            what = advice(e, "See that the disk works and that the file may be read")
            raise TrainingError(
                f"The checkpoint {path} cannot be read ({e.strerror or first_line(e)}). {what}, and run the same "
                "command again: it goes on from there."
            ) from e
        raise TrainingError(f"{path} is damaged ({first_line(e)}). Delete it to start again.") from e
    changed = sorted(k for k in config if k != "checkpoint_s" and config[k] != theirs.get(k))
    if changed:
        raise TrainingError(
            f"{path} was made with other settings ({', '.join(changed)}). Delete it to start again, or use the same."
        )
    return state


def state_of(parts: Mapping[str, Kept | None]) -> dict[str, dict[str, Any]]:
    """The states of those that are there; {} of another."""
    return {name: part.state_dict() if part is not None else {} for name, part in parts.items()}


def restore(state: Mapping[str, Any], weights: Mapping[str, nn.Parameter], parts: Mapping[str, Kept | None]) -> None:
    """Put a checkpoint's state back: weights by name, and the other parts."""
    with torch.no_grad():
        for name, p in weights.items():
            p.copy_(state["module"][name])
    for name, part in parts.items():
        if part is not None and state.get(name):
            part.load_state_dict(state[name])


def smoothed(state: Mapping[str, Any]) -> float:
    """The smoothed loss of the step that was reached."""
    return float(state.get("smooth", math.nan))
