"""Frozen records that flow through the project: groups, queries and attributions. Plain data; no torch import.

A higher score means that the group contributed more, by that method. In nats of ELBO, a positive score means that
removing the group makes the picture harder to explain, that is, the group contributed; other units have no zero that
says so. Scores are not shares: they do not add up to anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from guda_core.errors import OptionError, ReportError
from guda_core.picture_records import Drawing

KL_WITHOUT = "kl_without/"  # begins the name of an array of KL values without a group
Status = Literal["ok", "unavailable", "no_score"]


NOT_STATED = "not stated"


@dataclass(frozen=True)
class Group:
    """One group of training pictures, for example one artist's or one design team's.

    licence_link, link: https addresses, "" where not stated. descriptors: words for its style, of which captions take
    some; or phrase: the words that stand for it in captions, such as "in the Cubism style". source: what the source of
    the pictures needs to know of the group.
    """

    id: str
    name: str
    _: KW_ONLY
    author: str = NOT_STATED
    licence: str = NOT_STATED
    licence_link: str = ""
    link: str = ""
    descriptors: tuple[str, ...] = ()
    phrase: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupSet:
    """A partition of the training data into groups.

    source: id in `guda_core.data.SOURCES`, where the pictures come from; options: what it needs to know of the set;
    folder: where the set's file lies. resolution: side of the pictures in pixels, where the source makes them.
    fit: how a picture that is not square becomes one, also the picture that is asked about: "pad" or "crop"; or
    that it keeps its shape: "bucket" (`guda_core.data.images`).
    caption: template of captions, "" for none (`guda_core.data.captions`). train_objects, held_out_objects: names of
    what is drawn, where the set lists them.
    """

    id: str
    name: str
    groups: Mapping[str, Group]
    _: KW_ONLY
    source: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    resolution: int = 512
    fit: Literal["pad", "crop", "bucket"] = "pad"
    caption: str = ""
    descriptors_per_caption: int = 3
    train_objects: tuple[str, ...] = ()
    held_out_objects: tuple[str, ...] = ()

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"GroupSet(id={self.id!r}, name={self.name!r}, groups={list(self.groups)})"

    def ids(self, given: Iterable[str]) -> list[str]:
        """Ids of the groups that are given by id or name, each once; one alone may be given as it is. An id goes
        before, and a name that two groups share means both. Raises OptionError for what is neither."""
        found: dict[str, None] = {}
        for said in [given] if isinstance(given, str) else given:
            ids = [said] if said in self.groups else [g for g, group in self.groups.items() if group.name == said]
            if not ids:
                raise OptionError(f"There is no group '{said}'. Known: {', '.join(self.groups)}.")
            found |= dict.fromkeys(ids)
        return list(found)


@dataclass(frozen=True, eq=False)  # arrays have no one truth
class Query:
    """A picture made ready for scoring. Nothing downstream opens the picture again.

    pixels: (H, W, 3) uint8, the prepared picture (resized, sRGB, of the shape that the training pictures have).
    latent: (1, C, h, w) float32, the scaled VAE mean (a torch tensor on the CPU).
    prompt: the caption; "" is the unconditional model.
    image_hash: SHA-256 of the prepared pixels; seeds the noise.
    file_hash: SHA-256 of the uploaded bytes, or None for a generated picture.
    preparation: sentences that say what was done to the upload.
    drawn: how this model drew it; None for a picture from elsewhere.
    """

    pixels: np.ndarray = field(repr=False)
    latent: Any = field(repr=False)
    prompt: str
    image_hash: str
    file_hash: str | None = None
    preparation: tuple[str, ...] = ()
    drawn: Drawing | None = None


@dataclass(frozen=True)
class MethodInfo:
    """What screens, the command line and reports say of a method.

    name: as shown. unit: of its scores. note: what its score and its interval mean, for a reader.
    main: the method that the first sentence on the screen is about. oracle: the one that others are compared with.
    default: whether it is asked when nobody chooses. needs: ids of the methods that it is made from.
    """

    id: str
    name: str
    unit: str
    note: str = field(repr=False)
    main: bool = False
    oracle: bool = False
    default: bool = False
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class GroupModels:
    """The models without a group each that a method answers from, and what was measured of them beforehand.

    label: what one of them is called, e.g. "Adapter". hashes: group id -> SHA-256 of its weights.
    unavailable: group id -> why its model cannot be used.
    title, note: of the table of figures. columns: figure -> its heading.
    figures: group id -> figure -> a number, or {"mean", "se"}; or a sentence why there are none.
    """

    label: str = ""
    hashes: Mapping[str, str] = field(default_factory=dict)
    unavailable: Mapping[str, str] = field(default_factory=dict)
    title: str = ""
    note: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, Mapping[str, Any] | str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Cost:
    """What an answer takes. Progress, the expected time and the seconds asked of ZeroGPU are all made from it.

    forward: forward passes of the network, of one picture each, in batches. gradients: forward and backward passes, of
    one picture alone. seconds: of other work, as measured on this machine.
    """

    forward: int = 0
    gradients: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.forward + other.forward, self.gradients + other.gradients, self.seconds + other.seconds)


@dataclass(frozen=True)
class Provenance:
    """What a service computes with, as far as it enters a score or tells how far to trust one.

    model, name: id and name of the card. sha256: of its weights. clip_sha256, bank_sha256: of the CLIP's weights and of
    the file of its training pictures' features. dtype, device: of the model, e.g. "float32" and "cpu". threads: of one
    operation on the CPU.
    methods: method id -> what is said of it, of all that are offered. not_offered: method id -> why it is not.
    made_from: method id -> the part of its answers' settings that names what they are computed from: hashes, offsets.
    models: method id -> its models without a group each, of methods that have such.
    validation: name of a file of measurements -> its figures with the file's `sha256`, or a sentence why there are
    none.
    caveats: method id -> a sentence to show beside its scores, such as that its models are drafts; "" -> beside all of
    this model's, where they mean something else than other models'.
    resolution: of the model's square pictures, in pixels; 0: not told. only_groups: whether the model has seen no
    pictures but those of the group set. scope_sha256: of the file of the scope's rule; "" where nothing is assessed.
    """

    model: str
    name: str
    sha256: str
    clip_sha256: str
    bank_sha256: str
    dtype: str
    device: str
    threads: int
    methods: Mapping[str, MethodInfo] = field(default_factory=dict, repr=False)
    not_offered: Mapping[str, str] = field(default_factory=dict, repr=False)
    made_from: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    models: Mapping[str, GroupModels] = field(default_factory=dict, repr=False)
    validation: Mapping[str, Mapping[str, Any] | str] = field(default_factory=dict, repr=False)
    caveats: Mapping[str, str] = field(default_factory=dict, repr=False)
    resolution: int = 0
    only_groups: bool = False
    scope_sha256: str = ""

    @property
    def caveat(self) -> str:
        """All caveats, each once."""
        return " ".join(self.said_of(self.caveats))

    def said_of(self, methods: Iterable[str]) -> list[str]:
        """The caveats of the model, of these methods and of those that they are made from, each once."""
        asked = ["", *methods]
        for k in asked:  # grows on the way
            asked += [n for n in self.methods[k].needs if n not in asked] if k in self.methods else []
        return list(dict.fromkeys(filter(None, (self.caveats.get(k, "") for k in asked))))

    @property
    def unlearned(self) -> GroupModels:
        """The models of the main method; an empty record where there are none."""
        return next((m for k, m in self.models.items() if k in self.methods and self.methods[k].main), GroupModels())


VERDICTS = {  # a sentence for each verdict of a `Scope`
    "in scope": "The model could have made this picture, as far as this check can tell.",
    "out of scope": "This model could not have made this picture: no attribution.",
    "not assessed": "It was not checked whether the model could have made this picture.",
}


@dataclass(frozen=True)
class Scope:
    """Whether the model could have made a picture: a counterfactual of one that it could not says little about it.

    verdict: by a rule whose error rates were measured. value, threshold: of the rule's statistic, None when not
    assessed; threshold also where the rule knows too few pictures that belong to call any out of scope. `reason` says
    in one plain sentence what the verdict comes from.
    settings: everything needed to recompute the verdict, with the rule's `sha256`; `kinds`: for each kind of picture
    that the rule was tried on, how often it was called out of scope, and `belongs`: whether that is wrong.
    p_value: the share of pictures that belong which look at least as foreign; None when not assessed.
    """

    verdict: Literal["in scope", "out of scope", "not assessed"]
    value: float | None
    threshold: float | None
    unit: str
    reason: str
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    p_value: float | None = None

    def plain(self) -> dict[str, Any] | None:
        """As a report holds it; None when not assessed."""
        return None if self.verdict == "not assessed" else asdict(self)


@dataclass(frozen=True)
class GroupScore:
    """One group's score: a value with its 95% interval, or the reason why there is none.

    status "ok": score, low and high are finite numbers; `reason` says where a group had fewer draws.
    "unavailable": the group's adapter cannot be used.
    "no_score": the computation failed. In the last two, score, low and high are None and `reason` says why.
    """

    score: float | None
    low: float | None
    high: float | None
    status: Status = "ok"
    reason: str = ""

    @property
    def span(self) -> tuple[float, float] | None:
        """(low, high), None where there is no interval: it has no width then, as that of one picture alone."""
        return None if self.low is None or self.high is None or self.low == self.high else (self.low, self.high)


@dataclass(frozen=True, eq=False)  # arrays have no one truth
class KLValues:
    """The KL values behind an ELBO drop, at M draws in each of K strata of timesteps.

    t: (K, M) int64, the timesteps drawn. edges: (K + 1,) int64; stratum k holds edges[k] <= t < edges[k + 1].
    full: (K, M) float64 nats, KL_t of the full model. without: group id -> the same of the model without that group, at
    the first draws, (K, m) with m <= M: a group that is clearly behind gets fewer.
    """

    t: np.ndarray = field(repr=False)
    edges: np.ndarray = field(repr=False)
    full: np.ndarray = field(repr=False)
    without: Mapping[str, np.ndarray] = field(repr=False)

    def pair(self, group: str) -> tuple[np.ndarray, np.ndarray]:
        """(full, without), (K, m) each: the values at the draws that the group has."""
        v = self.without[group]
        return self.full[:, : v.shape[1]], v

    @property
    def fewer(self) -> dict[str, int]:
        """Group id -> its draws, of groups that have fewer than M."""
        return {g: v.shape[1] for g, v in self.without.items() if v.shape[1] < self.t.shape[1]}

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Name -> array, as a report's values.npz names them: t, edges, kl_full, kl_without/<group>."""
        without = {f"{KL_WITHOUT}{g}": v for g, v in self.without.items()}
        return {"t": self.t, "edges": self.edges, "kl_full": self.full, **without}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> KLValues:
        """What `to_arrays` wrote; arrays of other names are left alone.

        Raises:
            ReportError: one is missing, or they do not belong together by their shapes.
        """
        without = {k.removeprefix(KL_WITHOUT): v for k, v in arrays.items() if k.startswith(KL_WITHOUT)}
        try:
            found = cls(arrays["t"], arrays["edges"], arrays["kl_full"], without)
        except KeyError as e:
            raise ReportError(f"There is no array {e} among the KL values.") from e
        k, m = found.t.shape if found.t.ndim == 2 else (0, 0)
        fit = all(v.ndim == 2 and v.shape[0] == k and 0 < v.shape[1] <= m for v in without.values())
        if found.edges.shape != (k + 1,) or found.full.shape != (k, m) or not fit:
            raise ReportError("The arrays of KL values do not belong together: their shapes differ.")
        return found


@dataclass(frozen=True, eq=False)  # arrays have no one truth
class Attribution:
    """What one method answers for one query.

    method: id in `guda_core.attribution.METHODS`. unit: for example "nats" or "cosine".
    groups: group id -> GroupScore, in the order of the group set.
    progress: fraction in [0, 1] of the planned computation; 1 when final.
    separable: True when the first group is ahead of the second in the 95% interval of their difference: of paired draws
    for scores in nats, else as if their errors were independent. None when the method does not compare.
    runner_up: id of the second group, None when there is none, or the method does not compare.
    kl: the values behind scores that are ELBO drops, None for others.
    values: other arrays to keep as evidence, one-dimensional, e.g. "pictures" (N,), a value of each training picture.
    settings: everything needed to recompute the answer.
    reached: of an answer that may end early, when it is final: "width" where the first group is ahead and its interval
    is as narrow as the effort asks, "draws" where all draws were made before that.
    """

    method: str
    unit: str
    groups: Mapping[str, GroupScore]
    progress: float = 1.0
    separable: bool | None = None
    runner_up: str | None = None
    kl: KLValues | None = field(default=None, repr=False)
    values: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    reached: Literal["width", "draws"] | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array behind the answer, by its name in a report's values.npz."""
        return {**(self.kl.to_arrays() if self.kl is not None else {}), **self.values}

    def offset(self, group: str) -> float:
        """The part of a group's score that is the same for every picture, in the unit (`attribution.guda`); 0: none.
        Raises KeyError: there is no such group."""
        return self._of_group("offset", group)

    def offset_se(self, group: str) -> float:
        """The standard error of that part, in the unit; 0 where none is known, or the intervals do not hold it."""
        return self._of_group("offset_se", group)

    def _of_group(self, setting: str, group: str) -> float:
        if group not in self.groups:
            raise KeyError(group)
        return float(self.settings.get(setting, {}).get(group, 0.0))

    @property
    def has_offset(self) -> bool:
        """Whether scores hold a part that is the same for every picture."""
        return any(self.offset(g) for g in self.ranked())

    def stands_out(self, group: str) -> bool:
        """Whether the interval of a group that has a score lies above 0 and above its offset: whether both the score
        and the drop, score - offset, are clearly above 0."""
        return (self.groups[group].low or 0.0) > max(0.0, self.offset(group))

    def ranked(self) -> list[str]:
        """Ids of the groups that have a score, best first; ties by id."""
        ok = [(k, g.score) for k, g in self.groups.items() if g.score is not None]
        return [k for k, _ in sorted(ok, key=lambda kv: (-kv[1], kv[0]))]


@dataclass(frozen=True)
class Tried:
    """One caption of a picture and what the main method answers with it. label: what kind of caption it is."""

    label: str
    caption: str
    answer: Attribution
