"""Where a model runs: on the device that is asked for, else on GUDA_DEVICE's, else on the GPU where there is one.

The device is tried before a model is loaded. A GPU that this torch is not built for takes tensors, and fails at the
first sum.
"""

from __future__ import annotations

import os
import sys

import torch

from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.memory import is_out_of_memory
from guda_core.errors import OptionError, first_line

VARIABLE = "GUDA_DEVICE"
TYPES = ("cpu", "cuda")  # Apple's GPUs ("mps") have no float64, which the terms of a score are added up in
LARGE_PX = 256  # from there on a CPU takes so long that people should know why it is a CPU


def chosen_device(asked: str | int | torch.device | None = None) -> torch.device:
    """The device of that name, or the GPU of that number, else GUDA_DEVICE's, else the first GPU, else the CPU.

    Raises:
        OptionError: there is none of that name here, it is of another type than `TYPES`, or it cannot compute.
    """
    named = os.environ.get(VARIABLE, "").strip()
    asked = None if asked == "" else asked
    name = (named or ("cuda" if torch.cuda.is_available() else "cpu")) if asked is None else asked
    if isinstance(name, bool):
        raise OptionError(f"A device is named by a text such as 'cuda:1' or by a GPU's number; got {name}.")
    name = f"cuda:{name}" if isinstance(name, int) else name
    mend = f" Correct {VARIABLE}." if named and asked is None else ""
    device = None
    try:
        device = torch.device(name)
        if device.type not in TYPES:
            raise OptionError(f"Models run on 'cpu' or 'cuda'; Apple's GPUs and '{device.type}' are not used.{mend}")
        if device.type != "cpu" and not _is_lent(device):
            float(torch.ones(1, device=device) + 1)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as e:
        if device is not None and device.type == "cuda" and (device.index or 0) < torch.cuda.device_count():
            raise _cannot_compute(device, e) from e
        here = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise OptionError(f"There is no device '{name}' here. There is: {here}.{mend}") from e
    return device


def _is_lent(device: torch.device) -> bool:
    """Whether it is a GPU of a ZeroGPU Space, which is there only while a call computes."""
    return device.type == "cuda" and bool(os.environ.get("SPACES_ZERO_GPU"))


def _cannot_compute(device: torch.device, error: Exception) -> OptionError:
    name = called(device)
    if is_out_of_memory(error):
        return OptionError(
            f"{name} has no memory left. Close the programs that use it, or set {VARIABLE}=cpu to use the CPU."
        )
    why = first_line(error)
    major, minor = torch.cuda.get_device_capability(device)
    built = ", ".join(torch.cuda.get_arch_list()) or "no GPU"
    return OptionError(
        f"{name}, of compute capability {major}.{minor}, cannot compute ({why}); this torch is built for {built}. "
        f"Install a torch that is built for this GPU, or set {VARIABLE}=cpu to use the CPU."
    )


def called(device: torch.device) -> str:
    """A device for people: "cpu", or "cuda:0 (its name)"."""
    if device.type != "cuda":
        return str(device)
    index = torch.cuda.current_device() if device.index is None else device.index
    return f"cuda:{index} ({torch.cuda.get_device_name(index)})"


def where_it_runs(model: BaseModel) -> list[str]:
    """Sentences: on which device a model runs and in which type; and why not on a GPU, where that matters. None of the
    included model on a CPU."""
    on_cpu, card = model.device.type == "cpu", model.card
    if on_cpu and card.source == "assets":
        return []
    first = f"On {called(model.device)}, {str(model.dtype).removeprefix('torch.')}."
    why = _why_no_gpu() if on_cpu and card.resolution >= LARGE_PX else ""
    return [first, why] if why else [first]


def _why_no_gpu() -> str:
    """Why a GPU that may be there is not used; "" where the user chose so, or where none could be used."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if os.environ.get(VARIABLE) or hidden or sys.platform == "darwin" or torch.cuda.is_available():
        return ""
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            "This torch is built without GPU support. If this machine has a GPU, install a torch that is built for it."
        )
    return "torch finds no GPU. If this machine has one, see that its driver is new enough for this torch."


def slow_type(device: torch.device, dtype: torch.dtype) -> str:
    """What to say where the GPU does not have bfloat16 in hardware and the model runs in it; else ""."""
    if device.type != "cuda" or dtype != torch.bfloat16 or torch.version.hip is not None or _is_lent(device):
        return ""
    if torch.cuda.get_device_capability(device) >= (8, 0):  # Ampere
        return ""
    return f"bfloat16 is emulated on {called(device)}, so this is slow. GUDA_DTYPE=float16 may be faster."
