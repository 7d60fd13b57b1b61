"""Ridge-regression kernels on gradient features: shared by TRAK, D-TRAK and DAS.

    tau(x, x_i) = phi(x)^T (Phi^T Phi + lam I)^-1 phi(x_i),   score_k = sum over group k of tau(x, x_i)

Positive = the picture contributed. lam = ridge * mean eigenvalue of Phi^T Phi (over its largest possible rank), with a
ridge fixed beforehand: it follows the scale of the features and never looks at an oracle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from scipy import linalg

from guda_core.attribution import METHODS
from guda_core.attribution.aggregate import check_aggregate, group_scores, lead
from guda_core.attribution.gradient.features import FeatureBank, FeatureConfig, Features, counted
from guda_core.attribution.gradient.projection import Projection, blocks_seconds
from guda_core.attribution.gradient.quantised import QuantisedBank
from guda_core.attribution.method import Budget, Context, Method, Unavailable
from guda_core.data.encoded import Examples
from guda_core.diffusion.base_model import BaseModel
from guda_core.errors import CacheError, OptionError, ScoreError
from guda_core.records import Attribution, Cost, GroupSet, Query

CHUNK = 1024  # rows or columns of Phi taken to float64 at a time
HELD = 2**29  # bytes up to which a float64 copy of Phi is held, so that a query need not make it again


class Ridge:
    """(Phi^T Phi + lam I)^-1 by a Cholesky factor of the smaller of Phi Phi^T and Phi^T Phi, in float64.

    Both give the same by (Phi^T Phi + lam)^-1 Phi^T = Phi^T (Phi Phi^T + lam)^-1. phi: (N, D).
    """

    def __init__(self, phi: np.ndarray, ridge: float) -> None:
        self.phi, self.dual = phi, phi.shape[0] <= phi.shape[1]
        small, long = min(phi.shape), max(phi.shape)
        gram = np.zeros((small, small))
        for i in range(0, long, CHUNK):
            part = (phi[:, i : i + CHUNK] if self.dual else phi[i : i + CHUNK].T).astype(np.float64)
            gram += part @ part.T
        self.lam = ridge * float(np.trace(gram)) / small
        if not np.isfinite(self.lam) or self.lam <= 0:
            raise ScoreError("The gradients of all training pictures are zero or not finite, so there is no score.")
        gram[np.diag_indices(small)] += self.lam
        self.held = phi.astype(np.float64) if 8 * phi.size <= HELD else None
        self.factor = linalg.cho_factor(gram, lower=True)

    def _times(self, v: np.ndarray) -> np.ndarray:
        """Phi v: (D,) -> (N,) float64."""
        if self.held is not None:
            return self.held @ v
        parts = [self.phi[i : i + CHUNK].astype(np.float64) @ v for i in range(0, len(self.phi), CHUNK)]
        return np.concatenate(parts)

    def kernel(self, query: np.ndarray) -> np.ndarray:
        """tau(x, x_i) of every training picture: (D,) -> (N,)."""
        q = query.astype(np.float64)
        if self.dual:
            return linalg.cho_solve(self.factor, self._times(q))
        return self._times(linalg.cho_solve(self.factor, q))

    def leverage(self) -> np.ndarray:
        """h_i = phi_i^T (Phi^T Phi + lam I)^-1 phi_i in [0, 1): (N,)."""
        if self.dual:
            return 1 - self.lam * np.diag(linalg.cho_solve(self.factor, np.eye(len(self.phi))))
        parts = [self.phi[i : i + CHUNK].astype(np.float64) for i in range(0, len(self.phi), CHUNK)]
        return np.concatenate([(p * linalg.cho_solve(self.factor, p.T).T).sum(axis=1) for p in parts])


@dataclass(frozen=True)
class KernelConfig:
    """features: see FeatureConfig (the method sets the output). ridge: lam over the mean eigenvalue. aggregate: "sum"
    (paper) or "mean" over a group's pictures."""

    features: FeatureConfig = field(default_factory=FeatureConfig)
    ridge: float = 0.1
    aggregate: str = "sum"

    def __post_init__(self) -> None:
        check_aggregate(self.aggregate)
        if self.ridge <= 0:
            raise OptionError(f"ridge {self.ridge} is not positive.")


class KernelMethod(Method):
    """A method that scores every training picture from gradient features.

    output, normalise: the method's features. dim: its authors' projection.
    """

    unit = "kernel"
    output = "loss"
    normalise = False
    dim = 32768
    group_set: GroupSet | None = None

    def __init__(
        self, model: BaseModel, examples: Examples, group_ids: Sequence[str], config: KernelConfig | None = None
    ) -> None:
        config = config or self.defaults()
        own = replace(config.features, output=self.output, normalise=self.normalise)
        self._use(FeatureBank(model, examples, own), replace(config, features=own), group_ids)

    def _use(self, bank: FeatureBank | QuantisedBank, config: KernelConfig, group_ids: Sequence[str]) -> None:
        self.bank, self.config, self.group_ids = bank, config, list(group_ids)

    @classmethod
    def load(cls, context: Context) -> Self | Unavailable:
        """From the stored features. Raises CacheError when they are damaged or of another model."""
        if context.features is None or not context.features.is_dir():
            make = context.command(f"assets features --methods {cls.id}")
            return Unavailable(f"There are no gradient features of the training pictures. Make them with `{make}`.")
        method = cls.on_quantised(context.model, context.features / cls.id, context.groups)
        method.group_set = context.group_set
        return method

    @classmethod
    def on_quantised(cls, model: BaseModel, folder: Path, group_ids: Sequence[str]) -> Self:
        """The method on stored features, without the training pictures.

        Raises:
            CacheError: the features are missing, damaged, of another base model or of another method.
        """
        bank, method = QuantisedBank(model, folder), cls.__new__(cls)
        if (bank.config.output, bank.config.normalise) != (cls.output, cls.normalise):
            raise CacheError(f"The features in {folder.name} are those of another method than {cls.id}.")
        method._use(bank, KernelConfig(bank.config), group_ids)
        return method

    @classmethod
    def defaults(cls) -> KernelConfig:
        """The settings of the method's authors, but for the ridge."""
        return KernelConfig(FeatureConfig(output=cls.output, normalise=cls.normalise, dim=cls.dim))

    @cached_property
    def features(self) -> Features:
        return self.bank.load()

    @cached_property
    def ridge(self) -> Ridge:
        return Ridge(self.features.phi, self.config.ridge)

    def values(self, query: np.ndarray) -> np.ndarray:
        """The score of every training picture, (N,), from the query's features (D,)."""
        return self.ridge.kernel(query)

    @cached_property
    def projection_seconds(self) -> float:
        """What the projection of one gradient takes on this machine: some blocks of it are tried, when first asked."""
        of = self.config.features
        weights = sum(p.numel() for p in counted(self.bank.model.network, of.parts).values())
        return blocks_seconds(Projection(weights, of.dim, of.seed)) if of.dim else 0.0

    @cached_property
    def outdated(self) -> bool:
        """Whether the stored features are of other pictures or captions than the set's list names now."""
        if self.group_set is None or not isinstance(self.bank, QuantisedBank):
            return False
        return self.bank.outdated(self.group_set)

    def caveat(self) -> str:
        """What has to be said of the scores; "" where the features are what they should be."""
        if not self.outdated:
            return ""
        return (
            f"The features that {self.name} answers from were made before the set's pictures or captions changed. "
            "`guda assets features` makes them again."
        )

    def cost(self, budget: Budget) -> Cost:
        """The gradient at every timestep, and its projection."""
        return Cost(gradients=self.config.features.timesteps, seconds=self.projection_seconds)

    def provenance(self) -> dict[str, Any]:
        return self.bank.provenance

    def prepare(self) -> Iterator[float]:
        """Compute the training pictures' features, unless they are in the cache; yields the fraction done."""
        yield from self.bank.prepare()

    def attribute(self, query: Query, budget: Budget | None = None) -> Iterator[Attribution]:
        """Yields an Attribution without scores while features are being made (first use), then the answer.

        budget: has no influence; the timesteps are those of the features.
        """
        yield Attribution(self.id, self.unit, {}, 0.0)
        for fraction in self.prepare():
            yield Attribution(self.id, self.unit, {}, 0.99 * fraction)
        values = self.values(self.bank.query(query))
        scores = group_scores(values, self.bank.groups, self.group_ids, self.config.aggregate)
        settings = {**self.features.settings, "config": asdict(self.config), "lam": self.ridge.lam}
        yield Attribution(self.id, self.unit, scores, values={"pictures": values}, settings=settings, **lead(scores))


def kernel_methods() -> dict[str, type[KernelMethod]]:
    """Method id -> class, of every method of the registry that answers from gradient features."""
    return {m: kind for m in METHODS if issubclass(kind := METHODS[m], KernelMethod)}
