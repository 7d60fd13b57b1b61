"""IntroStyle (Kumar et al., arXiv 2412.14432): likeness of style, read from the model's own features.

    f(x)      features of one block on the way up of the UNet at x_t, for a small t and no caption: (C, h, w)
    style     mean mu_c and standard deviation sd_c of each channel over its places
    W2(x, y)  sqrt( sum_c (mu_c(x) - mu_c(y))^2 + (sd_c(x) - sd_c(y))^2 ), the 2-Wasserstein distance of the normal
              distributions with these means and diagonal variances
    score_k   - mean over the group's training pictures of W2(x, x_i)

Likeness, not influence: it never asks what the model learned from the pictures. It needs no other network and no
download. The interval is that of a mean over the group's pictures (normal approximation). All pictures get the same
noise, so that equal pictures have equal styles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from guda_core.attribution.aggregate import mean_score
from guda_core.attribution.method import Budget, Context, Method, Unavailable
from guda_core.attribution.run_files import in_place_of
from guda_core.data.encoded import Examples
from guda_core.data.sources.listed import ListedFiles
from guda_core.data.sources.source import open_dataset
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.batches import at_most
from guda_core.diffusion.finite import is_finite
from guda_core.diffusion.memory import Fitting, in_batches
from guda_core.errors import CacheError, GudaError, ScoreError
from guda_core.records import Attribution, Cost, GroupScore, GroupSet, Query

FILE = "introstyle.safetensors"
LISTED = "listed_sha256"  # in the file: `listed_sha256` of the set
MAKE = "guda assets introstyle"


@dataclass(frozen=True)
class IntroStyleConfig:
    """block: of the UNet's blocks on the way up, from 0. t: the noise level, as a share of the schedule's steps. The
    paper's choice for Stable Diffusion is block 1 and step 25 of 1000. seed: of the noise."""

    block: int = 1
    t: float = 0.025
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.block >= 0 and 0 <= self.t < 1):
            raise CacheError(f"block must be 0 or more, and t from 0 to below 1; got {self.block} and {self.t}.")


def block_of(model: BaseModel, config: IntroStyleConfig) -> nn.Module:
    """The block that is read. Raises ScoreError where the network has none such."""
    blocks = getattr(model.network, "up_blocks", ())
    if config.block >= len(blocks):
        raise ScoreError("IntroStyle reads the blocks of a UNet on its way up. This network has no such block.")
    return blocks[config.block]


@torch.no_grad()
def styles(model: BaseModel, latents: Tensor, config: IntroStyleConfig) -> Tensor:
    """(N, C, h, w) latents -> (N, 2 C) float32 CPU: each channel's mean, then each channel's standard deviation.

    Raises:
        ScoreError: the network has no such block, or a value is not finite.
    """
    found: list[Tensor] = []

    def read(_module: nn.Module, _inputs: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    g = torch.Generator().manual_seed(config.seed)
    eps = torch.randn(tuple(latents.shape[1:]), generator=g, dtype=torch.float32).expand_as(latents)
    t = torch.full((len(latents),), int(config.t * len(model.schedule)))
    x_t = model.schedule.add_noise(latents, eps, t).to(model.device)
    with model.lock:
        hook = block_of(model, config).register_forward_hook(read)
        try:
            model.predict(x_t, t.to(model.device), model.embed([""]).expand(len(latents)))
        finally:
            hook.remove()
    f = found[-1].float().flatten(2)  # (N, C, h w)
    out = torch.cat([f.mean(dim=2), f.std(dim=2, correction=0)], dim=1).cpu()
    if not is_finite(out):
        raise ScoreError("The model's features are not finite, so there is no style to compare.")
    return out


def write(
    path: Path,
    model: BaseModel,
    examples: Examples,
    config: IntroStyleConfig | None = None,
    batch: int = 32,
    listed: str = "",
) -> Iterator[float]:
    """Write the styles of training pictures, by group; yields the fraction done. The file appears when it is whole.

    batch: latents of a pass; fewer, where memory runs out. listed: `listed_sha256` of the set.

    Raises:
        ScoreError: as `styles`, or there is too little memory for one. CacheError: the file cannot be written.
    """
    config = config or IntroStyleConfig()
    parts: list[Tensor] = []
    batch = batch if isinstance(examples.latents, Tensor) else 1  # of several sizes
    fits = Fitting(at_most(batch, model))
    for i in range(0, len(examples), batch):
        parts.append(_of_those_that_fit(model, examples.latents[i : i + batch], config, fits))
        yield min(i + batch, len(examples)) / len(examples)
    all_styles = torch.cat(parts)
    groups = list(dict.fromkeys(examples.groups))
    at = {g: [i for i, own in enumerate(examples.groups) if own == g] for g in groups}
    meta = {
        "base_sha256": model.sha256,
        "examples_sha256": examples.sha256(),
        **({LISTED: listed} if listed else {}),
        "command": "python -m guda_core assets introstyle",
        **{k: str(v) for k, v in asdict(config).items()},
    }
    with in_place_of(path) as aside:
        save_file({g: all_styles[i].to(torch.float16).contiguous() for g, i in at.items()}, aside, metadata=meta)


def _of_those_that_fit(model: BaseModel, latents: Tensor, config: IntroStyleConfig, fits: Fitting) -> Tensor:
    """`styles`, of as many latents at once as fit into memory."""

    def run(part: Sequence[int]) -> list[Tensor]:
        return list(styles(model, latents[part[0] : part[-1] + 1], config))

    return torch.stack(in_batches(run, range(len(latents)), fits))


def _meta(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as f:
        return f.metadata() or {}


def listed_sha256(group_set: GroupSet) -> str:
    """Hash of a list's training pictures and of how they are made square; captions do not count, which no style
    depends on. "" for a set without a list: its pictures would have to be opened."""
    data = open_dataset(group_set)
    return data.fingerprint("train", captions=False) if isinstance(data, ListedFiles) else ""


def is_outdated(meta: Mapping[str, str], group_set: GroupSet) -> bool:
    """Whether a set's list names other pictures now than the styles were made of."""
    try:
        return LISTED in meta and listed_sha256(group_set) not in ("", meta[LISTED])
    except GudaError:  # there is no list, or none that can be read
        return False


class IntroStyle(Method):
    """Scores groups by the styles of their training pictures. bank: group id -> (N, 2 C) float32."""

    id = "introstyle"
    name = "IntroStyle"
    unit = "-W2"
    note = (
        "Likeness of style, not influence: how near the picture is to the group's pictures, by the means and spreads "
        "of the model's own features. 0 is the same style. The farther below 0, the less alike. It does not ask what "
        "the model learned. The interval is the spread over the group's pictures."
    )

    def __init__(
        self, model: BaseModel, bank: Mapping[str, Tensor], groups: Sequence[str], config: IntroStyleConfig, sha256: str
    ) -> None:
        self.model, self.bank, self.groups, self.config, self.sha256 = model, dict(bank), list(groups), config, sha256
        self.mended_by = MAKE
        self.outdated = False  # whether the set's list names other pictures now

    @classmethod
    def load(cls, context: Context) -> Self | Unavailable:
        """From the stored styles. Raises CacheError when they are damaged or of another model."""
        make = context.command("assets introstyle")
        path = None if context.features is None else context.features / FILE
        if path is None or not path.is_file():
            return Unavailable(f"There are no styles of the training pictures. Make them with `{make}`.")
        found = cls.read(path, context.model, context.groups, mended_by=make)
        found.outdated = is_outdated(_meta(path), context.group_set)
        return found

    @classmethod
    def read(cls, path: Path, model: BaseModel, groups: Sequence[str], *, mended_by: str = MAKE) -> Self:
        """The method on stored styles. mended_by: the command that makes them.

        Raises:
            CacheError: they cannot be read, or are of another model.
            ScoreError: the network has no such block.
        """
        try:
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            meta = _meta(path)
            with safe_open(path, framework="pt") as f:
                bank = {g: f.get_tensor(g).float() for g in f.keys()}  # noqa: SIM118
            config = IntroStyleConfig(int(meta["block"]), float(meta["t"]), int(meta["seed"]))
            base = meta["base_sha256"]
        except (OSError, SafetensorError, KeyError, ValueError) as e:
            raise CacheError(f"{path.name} cannot be read ({e}). Make them with `{mended_by}`.") from e
        if not model.goes_by(base):
            raise CacheError(f"{path.name} is of another base model. Make them with `{mended_by} --again`.")
        block_of(model, config)
        found = cls(model, bank, groups, config, sha256)
        found.mended_by = mended_by
        return found

    def caveat(self) -> str:
        """What has to be said of the scores; "" where the styles are what they should be."""
        if not self.outdated:
            return ""
        return (
            f"The styles that {self.name} compares with were made before the set's pictures changed. "
            f"`{self.mended_by}` makes them again."
        )

    def cost(self, budget: Budget) -> Cost:
        return Cost(forward=1)

    def provenance(self) -> dict[str, Any]:
        return {"base_sha256": self.model.sha256, "bank_sha256": self.sha256, **asdict(self.config)}

    def prepare(self) -> Iterator[float]:
        """Nothing is left to compute."""
        yield from ()

    def attribute(self, query: Query, budget: Budget | None = None) -> Iterator[Attribution]:
        """Yields one Attribution; a group without styles is unavailable. budget: has no influence."""
        own, make = styles(self.model, query.latent, self.config)[0], f"Make them with `{self.mended_by}`."
        none = GroupScore(None, None, None, "unavailable", f"There are no styles of this group. {make}")
        scores = {g: self._score(self.bank[g], own) if g in self.bank else none for g in self.groups}
        yield Attribution(self.id, self.unit, scores, settings=self.provenance())

    @staticmethod
    def _score(bank: Tensor, own: Tensor) -> GroupScore:
        return mean_score(-(bank - own).square().sum(dim=1).sqrt())
