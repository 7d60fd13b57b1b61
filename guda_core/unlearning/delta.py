"""A whole network as its difference from another one, in a few bits a weight.

Each large tensor's difference is rounded to multiples of a step of its own and the whole numbers are Huffman-coded
(deflate without matching, so a value costs about as many bits as its entropy); small tensors, such as biases and norms,
are kept as they are in float16.

Rounding moves what the network answers, to first order, by J d, with J the derivative of the answer by the tensor's
weights and d the rounding errors, of variance step^2 / 12. With h the mean square of J over the tensor's weights, the
bits are best spent where step^2 h is the same for all tensors (the reverse water-filling of rate-distortion theory;
Cover & Thomas, Elements of Information Theory, 10.3.3): step = quality / sqrt(h).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LEVELS = 127  # the largest whole number; a tensor whose step would need larger ones gets a wider step
SMALLEST = 4096  # tensors of fewer weights, or of one dimension, are kept in float16
STEP, SHAPE = "#step", "#shape"  # endings of the names under which a tensor's step and shape stand beside its codes


@dataclass(frozen=True)
class Codes:
    """The difference of one tensor: step * numbers. numbers: int8 in the tensor's shape."""

    numbers: Tensor
    step: float

    def difference(self, device: torch.device | str = "cpu") -> Tensor:
        """float32, in the tensor's shape."""
        return self.numbers.to(device).float() * self.step


def is_large_shape(shape: Sequence[int]) -> bool:
    """Whether a tensor of that shape is coded."""
    return len(shape) >= 2 and math.prod(shape) >= SMALLEST


def _round(difference: Tensor, step: float) -> Codes:
    step = max(step, float(difference.abs().max()) / LEVELS)
    if step == 0:  # nothing differs and nothing is asked
        return Codes(torch.zeros_like(difference, dtype=torch.int8), 0.0)
    return Codes((difference / step).round().to(torch.int8), step)


def _squeeze(numbers: Tensor) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(numbers.contiguous().numpy().tobytes()) + coder.flush()


def _unsqueeze(coded: Tensor, shape: tuple[int, ...]) -> Tensor:
    size = int(torch.Size(shape).numel())
    if size < 1:
        raise ValueError(f"a tensor of shape {shape} is coded")
    coder = zlib.decompressobj()
    raw = coder.decompress(coded.numpy().tobytes(), size)
    if len(raw) != size or not coder.eof or coder.unconsumed_tail:
        raise ValueError(f"{len(raw)} of {size} numbers, or more, are coded")
    return torch.frombuffer(bytearray(raw), dtype=torch.int8).reshape(shape)


def encode(
    base: Mapping[str, Tensor], other: Mapping[str, Tensor], sensitivity: Mapping[str, float], quality: float
) -> dict[str, Tensor]:
    """`other` as what is stored beside `base`.

    base, other: parameter name -> weight, of the same names and shapes. sensitivity: h of every large tensor. quality:
    the step of a tensor with h = 1.
    """
    out: dict[str, Tensor] = {}
    for name, weight in other.items():
        if not is_large_shape(weight.shape):
            out[name] = weight.to(torch.float16).contiguous()
            continue
        codes = _round(weight.float() - base[name].float(), quality / max(sensitivity[name], 1e-20) ** 0.5)
        out[name] = torch.frombuffer(bytearray(_squeeze(codes.numbers)), dtype=torch.uint8)
        out[name + STEP] = torch.tensor([codes.step], dtype=torch.float64)
        out[name + SHAPE] = torch.tensor(weight.shape, dtype=torch.int64)
    return out


def size(stored: Mapping[str, Tensor]) -> int:
    """Bytes of the stored tensors."""
    return sum(t.numel() * t.element_size() for t in stored.values())


def fit(
    base: Mapping[str, Tensor], other: Mapping[str, Tensor], sensitivity: Mapping[str, float], most: int
) -> dict[str, Tensor]:
    """`encode` with the best quality that takes at most `most` bytes.

    Raises:
        ValueError: even without any differences it takes more.
    """
    low, high, best = 1e-9, 1e6, None
    for _ in range(40):
        quality = (low * high) ** 0.5
        stored = encode(base, other, sensitivity, quality)
        if size(stored) <= most:
            high, best = quality, stored
        else:
            low = quality
        if best is not None and high / low < 1.01:
            break
    if best is None:
        raise ValueError(f"{most} bytes are too few")
    return best


def decode(stored: Mapping[str, Tensor]) -> tuple[dict[str, Codes], dict[str, Tensor]]:
    """(codes of the large tensors, the small tensors themselves as float32), by parameter name.

    Raises:
        KeyError, ValueError, zlib.error: it is not what `encode` made.
    """
    codes, small = {}, {}
    for name, t in stored.items():
        if name.endswith((STEP, SHAPE)):
            continue
        if t.dtype != torch.uint8:
            small[name] = t.float()
            continue
        shape = tuple(int(n) for n in stored[name + SHAPE])
        codes[name] = Codes(_unsqueeze(t, shape), float(stored[name + STEP]))
    return codes, small
