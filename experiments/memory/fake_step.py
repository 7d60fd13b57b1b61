"""`python -m experiments.memory`: how much memory unlearning takes, by layout, size of a pass, and checkpointing.

Nothing is computed: tensors are torch's fake ones, which have a shape, a type and a place but no values, so that a
model of billions of parameters fits on any machine. A mode below torch counts the bytes of every tensor from its making
to its end. The step is the product's own: frozen network in half precision, LoRA and optimiser in float32, teacher and
student in one network, AdamW's two states. CUDA's autocast computes norms in float32, the CPU's does not; that is
copied here. Not counted: the CUDA context (about 0.5 GiB), workspaces of its libraries, and memory lost between blocks.
"""

from __future__ import annotations

import time
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from experiments.commands import program, write_record
from experiments.layouts import LAYOUTS, config_of, make_unet
from guda_core.cli.terminal import say
from guda_core.paths import BENCHMARKS
from guda_core.unlearning import losses
from guda_core.unlearning.config import MemorySettings
from guda_core.unlearning.defaults import OF_LARGE
from guda_core.unlearning.forget import config_of as settings_of
from guda_core.unlearning.student import Student, precision

GIB = 2**30
TARGETS = {"sd15": 12.0, "sdxl": 24.0}  # GiB, with checkpointing and the default settings
FILE = "memory.json"


class Tracker(TorchDispatchMode):
    """Bytes of all tensors that are alive, their highest sum, and what they were then, by `label`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.label = "other"
        self.by: Counter[str] = Counter()
        self.at_peak: dict[str, int] = {}
        self._seen: dict[int, Any] = {}

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once."""
        storage = tensor.untyped_storage()
        key, size, label = storage._cdata, storage.nbytes(), self.label
        if key in self._seen or not size:
            return
        self._seen[key] = weakref.finalize(storage, self._gone, key, size, label)
        self.now += size
        self.by[label] += size
        if self.now > self.peak:
            self.peak, self.at_peak = self.now, dict(self.by)

    def _gone(self, key: int, size: int, label: str) -> None:
        self.now -= size
        self.by[label] -= size
        self._seen.pop(key, None)

    @contextmanager
    def called(self, label: str) -> Iterator[None]:
        """What is made within the block is counted under this name."""
        before, self.label = self.label, label
        try:
            yield
        finally:
            self.label = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self.add(value)
        return out


@contextmanager
def norms_in_float32() -> Iterator[None]:
    """As CUDA's autocast: norms read and write float32."""

    def cast(norm: Any) -> Any:
        def call(x: Tensor, *given: Any, **named: Any) -> Tensor:
            if not torch.is_autocast_enabled("cpu"):
                return norm(x, *given, **named)
            full = [v.float() if isinstance(v, Tensor) else v for v in given]
            return norm(x.float(), *full, **{k: v.float() if isinstance(v, Tensor) else v for k, v in named.items()})

        return call

    with patch.object(F, "group_norm", cast(F.group_norm)), patch.object(F, "layer_norm", cast(F.layer_norm)):
        yield


def conditions(layout: str, pictures: int, dtype: torch.dtype, *, tiny: bool = False) -> dict[str, Any]:
    """What the UNet reads beside latents and times, for a text of 77 tokens."""
    said = config_of(layout, "unet", tiny=tiny)
    out: dict[str, Any] = {"encoder_hidden_states": torch.zeros(pictures, 77, said["cross_attention_dim"], dtype=dtype)}
    if said.get("addition_embed_type") == "text_time":
        pooled = config_of(layout, "text_encoder_2", tiny=tiny)["projection_dim"]
        more = {"text_embeds": torch.zeros(pictures, pooled, dtype=dtype)}
        out["added_cond_kwargs"] = {**more, "time_ids": torch.zeros(pictures, 6, dtype=dtype)}
    return out


def peak_of(
    layout: str, pictures: int, *, checkpointing: bool, dtype: torch.dtype = torch.float16, tiny: bool = False
) -> dict[str, Any]:
    """Peak memory of one step whose passes take so many pictures, in GiB, and what holds it."""
    kind, size = LAYOUTS[layout]
    side = 8 if tiny else size // 8
    config = settings_of("guda_c", **OF_LARGE[kind])
    with torch.device("meta"):
        network = make_unet(layout, tiny=tiny).requires_grad_(False)
        nn.Module.to(network, dtype)  # diffusers' own `to` warns whatever the model
    model: Any = SimpleNamespace(network=network, dtype=dtype, device=torch.device("cpu"))
    student = Student(model, config, MemorySettings(pictures, checkpointing))
    with warnings.catch_warnings(), student.ready(), FakeTensorMode(), Tracker() as tracker, norms_in_float32():
        warnings.simplefilter("ignore")
        _as_fake(network, tracker)
        trained = [p for p in network.parameters() if p.requires_grad]
        with tracker.called("LoRA and optimiser"):
            kept = [torch.zeros_like(p) for p in trained for _ in range(2)]
        tracker.peak = tracker.now
        tracker.label = "activations"
        x, t = torch.zeros(pictures, 4, side, side), torch.zeros(pictures, dtype=torch.int64)
        given = conditions(layout, pictures, dtype, tiny=tiny)
        student.switch(False)
        with torch.no_grad(), precision(model):
            target = _answer(network, x, t, given, dtype)
        teacher = tracker.peak
        with student.answers():
            with precision(model):
                out = _answer(network, x, t, given, dtype)
            held = tracker.now
            losses.mean_square(out, target).backward()
        assert all(p.grad is not None for p in trained) and len(kept) == 2 * len(trained)
        parts = {k: round(v / GIB, 3) for k, v in tracker.at_peak.items() if v > 0}
        found = {"peak_gib": tracker.peak, "teacher_gib": teacher, "before_backward_gib": held}
        count = sum(p.numel() for p in trained)
    return {
        **{k: round(v / GIB, 3) for k, v in found.items()},
        "at_peak_gib": parts,
        "trained_parameters": count,
    }


def _as_fake(network: nn.Module, tracker: Tracker) -> None:
    """Put fake tensors in place of the network's weights, which have no place yet; within a fake mode."""
    for module in network.modules():
        for name, p in module._parameters.items():
            if p is not None:
                with tracker.called("LoRA and optimiser" if p.requires_grad else "network"):
                    fake = torch.empty(p.shape, dtype=p.dtype, device="cpu")
                    module._parameters[name] = nn.Parameter(fake, requires_grad=p.requires_grad)
        for name, value in module._buffers.items():
            module._buffers[name] = None if value is None else torch.empty(value.shape, dtype=value.dtype)


def _answer(network: nn.Module, x: Tensor, t: Tensor, given: Mapping[str, Any], dtype: torch.dtype) -> Tensor:
    return network(x.to(dtype), t, **given).sample.float()


def measure(layout: str, sizes: list[int], *, tiny: bool = False) -> dict[str, Any]:
    """Peak memory of a layout by size of a pass, with and without checkpointing."""
    kind, size = LAYOUTS[layout]
    rows = []
    for pictures in sizes:
        for checkpointing in (True, False):
            began = time.perf_counter()
            row = peak_of(layout, pictures, checkpointing=checkpointing, tiny=tiny)
            rows.append({"pictures": pictures, "checkpointing": checkpointing, **row})
            mode = "with" if checkpointing else "without"
            seconds = time.perf_counter() - began
            say(f"{layout}, {pictures} a pass, {mode} checkpointing: {row['peak_gib']:.2f} GiB ({seconds:.0f} s)")
    return {"resolution": size, "settings": dict(OF_LARGE[kind]), "target_gib": TARGETS[layout], "rows": rows}


def memory(
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = BENCHMARKS / FILE,
    tiny: Annotated[bool, typer.Option("--tiny", help="Tiny models: to try the command.")] = False,
) -> None:
    """Estimate the memory of unlearning Stable Diffusion 1.5 and XL, without a GPU and without their weights."""
    found = {}
    for layout, (kind, _) in LAYOUTS.items():
        step = 2 * OF_LARGE[kind]["batch"]
        found[layout] = measure(layout, [step, 1], tiny=tiny)
    record = {
        "command": "python -m experiments.memory",
        "how": "fake tensors; norms in float32 as under CUDA's autocast; without the CUDA context and workspaces",
        "dtype": "float16",
        "layouts": found,
    }
    write_record(out, record)


main = program(memory)
