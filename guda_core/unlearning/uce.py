"""UCE, Unified Concept Editing (Gandikota et al. 2024, arXiv 2308.14761): cross-attention edited in closed form.

    W' = argmin  mean_e ||W' c - W c*||^2 + mu mean_p ||W' c - W c||^2 + lam ||W' - W||^2
    W' = W (I + T),    T = mean_e[(c* - c) c^T] M^-1,    M = mean_e[c c^T] + mu mean_p[c c^T] + lam I

W: every layer that maps the embedded prompt to keys or values. c: embedded tokens of captions of the forgotten group
(e, edited) or of others (p, preserved). c*: the token of the anchor caption in the place of c. The paper writes v* for
W c*; written so, T is one matrix for all layers. Its rank is at most the number of edited tokens, so that the change is
a LoRA: W T = B A. Where the rank is cut off, what is left out is smallest over the captions' tokens (M), in all layers
together.

The empty prompt is our addition: it names no group, so that there is nothing to edit, and a draft would say nothing of
a picture without a prompt. Its tokens are moved a share s of the way that captions without content are moved:

    c* = c + s (mean of the anchors - mean of the group's captions), place by place
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from guda_core.errors import OptionError

LEAST = 1e-10  # of the largest eigenvalue: below it there is nothing


@dataclass(frozen=True)
class UceConfig:
    """captions: of the group that are edited; as many of each other kind are preserved. anchors: of each caption, drawn
    as GUDA-C's default draws them. preserve: mu. empty_shift: s; 0 preserves the empty prompt. ridge: lam, as a share
    of the mean eigenvalue of the rest of M. rank: the largest. rest: the share of the change, as a root mean square,
    that a smaller rank may leave out. seed: of all that is drawn."""

    operator: str = "uce"
    captions: int = 96
    anchors: int = 3
    preserve: float = 1.0
    empty_shift: float = 0.5
    ridge: float = 1e-3
    rank: int = 32
    rest: float = 0.01
    seed: int = 5

    def __post_init__(self) -> None:
        if self.captions < 1 or self.anchors < 1 or self.rank < 1:
            raise OptionError("captions, anchors and rank of a draft must be at least 1.")
        if not (self.preserve >= 0 and self.empty_shift >= 0 and self.ridge > 0 and 0 <= self.rest < 1):
            raise OptionError(
                "A draft needs preserve and empty_shift of at least 0, ridge above 0, and rest from 0 to below 1."
            )

    def sha256(self) -> str:
        """Hash of all settings."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()


class Moments:
    """Sums over tokens of one kind; float64. width: D, of an embedded token."""

    def __init__(self, width: int) -> None:
        self.moves, self.squares = torch.zeros(2, width, width, dtype=torch.float64).unbind()
        self.n = 0

    def add(self, tokens: Tensor, goals: Tensor | None = None) -> None:
        """These tokens, (N, D), are to be answered as the goals, (N, D), are; None: as before."""
        c = tokens.double()
        if goals is not None:
            self.moves = self.moves + (goals.double() - c).T @ c
        self.squares = self.squares + c.T @ c
        self.n += len(c)


def weighed(edited: Moments, *others: Moments, preserve: float, ridge: float) -> tuple[Tensor, Tensor]:
    """(what the tokens are moved by, M), each (D, D). others: each kind counts mu = preserve times what the edited
    tokens do; ridge: lam as a share (`UceConfig`)."""
    kinds = [(1.0, edited), *((preserve, o) for o in others)]
    moves, m = (sum(w * getattr(k, name) / max(1, k.n) for w, k in kinds) for name in ("moves", "squares"))
    assert isinstance(moves, Tensor) and isinstance(m, Tensor)
    scale = float(m.diagonal().mean()) or 1.0
    return moves, m + ridge * scale * torch.eye(len(m), dtype=m.dtype)


def edit_of(moves: Tensor, m: Tensor) -> Tensor:
    """T = moves M^-1, (D, D)."""
    return torch.linalg.solve(m, moves.T).T


@dataclass(frozen=True)
class LowRank:
    """Factors of W T for every layer. down: A, (r, D), with orthonormal rows. up: layer -> B, (out, r). rest: the root
    mean square over tokens of what the rank leaves out of the change of all keys and values, as a share of it."""

    down: Tensor
    up: Mapping[str, Tensor]
    rest: float

    @property
    def rank(self) -> int:
        return len(self.down)


def factored(weights: Mapping[str, Tensor], t: Tensor, m: Tensor, *, rank: int, rest: float) -> LowRank:
    """The change W T of each layer as B A, of the smallest rank that leaves out no more than `rest`, at most `rank`.

    weights: layer -> W, (out, D). t: T; m: M, both (D, D) float64.
    """
    values, vectors = torch.linalg.eigh(m)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    undone = vectors * values.clamp_min(LEAST * float(values[-1])).rsqrt() @ vectors.T
    seen = t @ root  # the change, by tokens of unit variance
    gram = sum((w.double().cpu().T @ w.double().cpu() for w in weights.values()), torch.zeros_like(m))
    sizes, turns = torch.linalg.eigh(seen.T @ gram @ seen)
    sizes, turns = sizes.flip(0).clamp_min(0), turns.flip(1)
    left = (1 - sizes.cumsum(0) / sizes.sum().clamp_min(torch.finfo(m.dtype).tiny)).clamp_min(0).sqrt()
    enough = int((left > max(rest, 1e-7)).sum()) + 1
    r = min(rank, enough, len(sizes))
    q, triangle = torch.linalg.qr(undone @ turns[:, :r])  # (D, r), (r, r)
    inner = seen @ turns[:, :r] @ triangle.T
    up = {n: w.double().cpu() @ inner for n, w in weights.items()}
    return LowRank(q.T.contiguous(), up, float(left[r - 1]))


def places(tokens: Tensor, goals: Tensor, n_tokens: int, n_goals: int) -> Tensor:
    """Which token of the anchor stands in the place of each token of a caption, (L,).

    tokens, goals: (L, D) embedded. n_tokens, n_goals: how many of them are written, start and end included; the rest is
    padding. Words before the first difference stay in their places; those behind it are stretched to the other's
    length, so that end meets end; padding follows the end one by one.
    """
    length = len(tokens)
    differs = (tokens - goals).abs().amax(dim=1) > 1e-5 * goals.abs().amax().clamp_min(1e-12)
    found = torch.nonzero(differs)
    if not len(found):
        return torch.arange(length)
    n_tokens, n_goals = min(n_tokens, length), min(n_goals, length)
    first = min(int(found[0]), n_tokens - 1, n_goals - 1)
    at = torch.arange(length)
    span = max(1, n_tokens - 1 - first)
    words = first + ((at - first) * (n_goals - 1 - first) / span).round().long()
    behind = (n_goals + at - n_tokens).clamp_max(length - 1)
    return torch.where(at <= first, at, torch.where(at < n_tokens, words, behind)).clamp(0, length - 1)
