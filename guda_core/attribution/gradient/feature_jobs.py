"""Making the gradient features that are stored beside a model: of each method, in one process or as a job
(`guda_core.jobs`). A job is done when the method's features are there, of just this model, these pictures and settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guda_core import paths
from guda_core.attribution.gradient import quantised
from guda_core.attribution.gradient.kernel import kernel_methods
from guda_core.attribution.run_files import check_others
from guda_core.data.captions import captioner_of
from guda_core.data.encoded import Examples, examples_of
from guda_core.data.groups import load_group_set
from guda_core.data.sources.source import open_dataset
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.cards import chosen_card, load_model
from guda_core.errors import CacheError
from guda_core.jobs.environ import once_a_process
from guda_core.jobs.job import Job, Steps
from guda_core.libraries import set_up_libraries
from guda_core.records import GroupSet
from guda_core.versions import today, versions


@dataclass(frozen=True)
class AskedFeatures:
    """What `guda assets features` was asked for; small, and can be pickled. dim: coordinates of the projected
    gradients. folder: where the methods' folders go, absolute; None: the workspace's. parts: of the weights that count
    (`FeatureConfig`). again: also in place of features of another model."""

    group_set: str
    model: str | None
    dim: int
    folder: Path | None = None
    parts: tuple[str, ...] = ()
    again: bool = False


def config_of(method: str, dim: int, parts: tuple[str, ...] = ()) -> Any:
    """A method's settings, with features of so many coordinates, of these parts of the weights."""
    plain = kernel_methods()[method].defaults()
    return dataclasses.replace(plain, features=dataclasses.replace(plain.features, dim=dim, parts=parts))


@dataclass(frozen=True)
class Opened:
    """What a process keeps from method to method: the model and the encoded pictures. pictures_sha256: by
    `quantised.pictures_sha256`, as they were before they were encoded."""

    asked: AskedFeatures
    model: BaseModel
    group_set: GroupSet
    pictures_sha256: str
    examples: Examples

    def folder(self, method: str) -> Path:
        """Where the method's features are written."""
        own = self.asked.folder or paths.run(self.model.card.id, self.group_set.id).features.own("")
        return own / method

    def config(self, method: str) -> Any:
        """The method's settings."""
        return config_of(method, self.asked.dim, self.asked.parts)

    def made_from(self, method: str) -> dict[str, Any]:
        """What the features depend on."""
        own = self.config(method).features
        return {
            "base_sha256": self.model.sha256,
            "examples_sha256": self.examples.sha256(),
            "pictures_sha256": self.pictures_sha256,
            "config": dataclasses.asdict(dataclasses.replace(own, parts=tuple(own.parts))),
        }


def open_asked(asked: AskedFeatures) -> Opened:
    """Load the model, and encode the pictures. Raises GudaError: the set or the model is refused."""
    return opened_of(asked, load_model(chosen_card(asked.model)), load_group_set(asked.group_set))


def opened_of(asked: AskedFeatures, model: BaseModel, group_set: GroupSet) -> Opened:
    """Likewise with a model that is loaded."""
    pictures = quantised.pictures_sha256(group_set)  # first: the set may change while its pictures are encoded
    examples = examples_of(model, open_dataset(group_set).split("train"), captioner_of(group_set))
    return Opened(asked, model, group_set, pictures, examples)


@once_a_process
def _opened(asked: AskedFeatures) -> Opened:
    set_up_libraries()
    return open_asked(asked)


def make(opened: Opened, method: str) -> Steps:
    """Make and write a method's features.

    Raises:
        CacheError: another model's features are in their place, or they cannot be written.
    """
    if not opened.asked.again:
        check_others(opened.folder(method) / quantised.META, opened.model, "features")
    kind, config = kernel_methods()[method], opened.config(method)
    made = kind(opened.model, opened.examples, list(opened.group_set.groups), config)
    for fraction in made.prepare():
        yield fraction, ""
    parts = f" --parts {','.join(opened.asked.parts)}" if opened.asked.parts else ""
    meta = {
        "command": f"python -m guda_core assets features --methods {method} --dim {opened.asked.dim}{parts}",
        **opened.made_from(method),
        "config": dataclasses.asdict(made.config.features),
        "versions": versions(),
        "date": today(),
    }
    quantised.write(opened.folder(method), made.features, opened.examples.groups, meta)


def seem_made(asked: AskedFeatures, model: BaseModel, group_set: GroupSet, methods: Sequence[str]) -> list[str]:
    """The methods whose features are there, whole, and made from this model, these settings and, by
    `quantised.pictures_sha256`, these pictures. `is_made` tells also of features that do not say that hash, but has to
    encode the pictures."""
    folder = asked.folder or paths.run(model.card.id, group_set.id).features.own("")
    found, pictures = [], ""
    for method in methods:
        try:
            bank = quantised.QuantisedBank(model, folder / method)
        except CacheError:
            continue
        if bank.config == config_of(method, asked.dim, asked.parts).features and "pictures_sha256" in bank.meta:
            pictures = pictures or quantised.pictures_sha256(group_set)
            found += [method] if bank.meta["pictures_sha256"] == pictures else []
    return found


def is_made(opened: Opened, method: str) -> bool:
    """Whether the method's features are there, whole, and made from just this."""
    try:
        bank = quantised.QuantisedBank(opened.model, opened.folder(method))
    except CacheError:
        return False
    wanted = opened.made_from(method)
    older = {"pictures_sha256": opened.pictures_sha256}  # they do not say it
    found = {**older, **bank.meta, "config": dataclasses.asdict(bank.config)}
    return {k: found.get(k) for k in wanted} == wanted


def work(asked: AskedFeatures, method: str) -> Steps:
    """`make`, as a job."""
    return make(_opened(asked), method)


def is_done(asked: AskedFeatures, method: str) -> bool:
    """`is_made`, of a job."""
    return is_made(_opened(asked), method)


def feature_jobs(asked: AskedFeatures, card: str, methods: list[str]) -> list[Job]:
    """One job for each method. card: the model's id."""
    folder = (asked.folder or paths.run(card, asked.group_set).features.own("")) / ".claims"
    return [Job(m, work, folder / m, is_done, (asked, m)) for m in methods]
