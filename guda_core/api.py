"""The library in functions: `load_model`, `make_groups`, `load_groups`, `methods`, `generate`, `best_caption` and
`attribute`; `offline.unlearn` and `offline.draft`; `many.attribute_many`; and `opened_reports`. `guda_core` exports
them.

Names follow one rule, as on the command line: what is given; else the variable (GUDA_MODEL, GUDA_GROUP_SET, GUDA_HOME);
else the workspace's only model or the included one, and the group set of the model's card or the workspace's only set.
Sign: a higher score means that the group contributed more, by that method. In nats, a positive one means that it did
at all.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from PIL import Image

from guda_core import kept_services
from guda_core.data import groups as group_sets
from guda_core.data.images import Fit
from guda_core.data.own.prepared import prepare
from guda_core.diffusion import cards
from guda_core.diffusion.base_model import BaseModel
from guda_core.errors import OptionError
from guda_core.given import (
    Picture,
    check_callable,
    check_texts,
    model_name,
    names,
    original_bytes,
    path_of,
    path_or_none,
    picture_bytes,
    plain,
    set_name,
)
from guda_core.local import LocalService, service_for
from guda_core.picture_records import Drawn, Near, PlaceMap, Shown, Strip
from guda_core.python_words import in_python, speaks_python
from guda_core.records import VERDICTS, Attribution, GroupSet, MethodInfo, Provenance, Query, Scope
from guda_core.reports import bundle, picture_files
from guda_core.reports.record import limits, to_json
from guda_core.service import (
    EFFORTS,
    NO_MAPS,
    NO_NEAR,
    NO_STRIP,
    Beside,
    check_methods,
    find_effort,
    scope_or_why,
)

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, repr=False)  # arrays have no one truth: an answer is equal to itself alone
class Answer:
    """What `attribute` says of one picture.

    methods: method id -> its scores, in the order they were asked. scope: could this model have made the picture?
    query: the picture as it was scored. groups: the group set. settings: effort and methods. provenance: hashes of all
    that the scores are computed from.
    pictures: method id -> what its models draw without each group, where that was asked. maps: method id -> group id ->
    where in the picture its drop comes from, where that was asked. nearest: the training pictures that are most alike,
    where that was asked: likeness, not influence. missing: why some of these are not there, though they were asked for.
    """

    methods: Mapping[str, Attribution]
    scope: Scope
    query: Query
    groups: GroupSet
    settings: Mapping[str, Any]
    provenance: Provenance
    pictures: Mapping[str, Strip] = field(default_factory=dict)
    maps: Mapping[str, Mapping[str, PlaceMap]] = field(default_factory=dict)
    nearest: Sequence[Near] = ()
    missing: str = ""

    @property
    def shown(self) -> Shown:
        """Strip and maps as a report holds them: of the first method that has them, maps in the order of its ranks; and
        the nearest pictures."""
        strip = next(iter(self.pictures.values()), None)
        method, found = next(iter(self.maps.items()), ("", {}))
        ranked = self.methods[method].ranked() if method else []
        made = picture_files.shown(self.query.pixels, strip, ranked, found)
        return replace(made, near=tuple(self.nearest), missing=self.missing)

    @property
    def best(self) -> str | None:
        """Id of the first group by the method that was asked first; None where no group has a score, and for a picture
        that the model could not have made."""
        if self.scope.verdict == "out of scope":
            return None
        first = next(iter(self.methods.values()))
        return next(iter(first.ranked()), None)

    @property
    def limits(self) -> list[str]:
        """What has to be said beside the scores, in sentences: that the model could not have made the picture, or
        nobody knows; that adapters are older than the pictures; what a score is not; what is missing."""
        scope = [] if self.scope.verdict == "in scope" else [VERDICTS[self.scope.verdict]]
        return [*scope, *limits(self.methods, self.provenance), *([self.missing] if self.missing else [])]

    def __repr__(self) -> str:
        said = {"best": self.best, "methods": list(self.methods), "scope": self.scope.verdict, "groups": self.groups.id}
        return f"Answer({', '.join(f'{k}={v!r}' for k, v in said.items())})"

    def record(self) -> dict[str, Any]:
        """The full record as plain data: the JSON of `guda attribute --json`."""
        return to_json(self.query, list(self.methods.values()), self.groups, **self._about())

    @speaks_python
    def report(self, path: str | Path, *, original: str | Path | bytes | None = None) -> Path:
        """Write the report bundle (a zip that `guda replay` computes again); returns its path.

        Args:
            path: of the zip.
            original: the file that was scored, or its bytes, to be put in as it is, with its metadata.

        Raises:
            ReportError: the place cannot be written to, a value is not finite, or the original is another file than the
                one that was scored, or too large for a report.
            ImageError: the original is too large for a picture. UnreadError: it cannot be read.
        """
        at = path_of(path, "path")
        if not at.name:
            raise OptionError(f"path must name a file; got {path!r}.")
        data = original_bytes(original)
        answers, about = list(self.methods.values()), {**self._about(), "shown": self.shown, "original": data}
        made = bundle.make(self.query, answers, self.groups, **about)
        bundle.write(at, made)
        return at

    def _about(self) -> dict[str, Any]:
        return {"settings": dict(self.settings), "provenance": self.provenance, "scope": self.scope.plain()}


@speaks_python
def load_model(
    name: str | Path | None = None, *, device: str | int | torch.device | None = None, lora: str | Path | None = None
) -> BaseModel:
    """Load a model.

    Args:
        name: what `--model` takes: a card's id, a folder in diffusers' layout, a .safetensors file, or a Hub id.
        device: for example "cpu", "cuda:1", or a GPU's number; default: what GUDA_DEVICE says, else the GPU when there
            is one.
        lora: a LoRA file that is merged into the model; default: what GUDA_LORA says.

    Raises:
        ModelError: there is no such model or LoRA file, it is a pickle, or it cannot be loaded.
        OptionError: there is no such device here, GUDA_DTYPE names no type, or the workspace (GUDA_HOME) cannot
            be used.
    """
    return cards.load_model(cards.chosen_card(model_name(name) or None, lora=lora), device=device)


@speaks_python
def load_groups(name: str | None = None) -> GroupSet:
    """Read and check a group set, by its name in the workspace.

    Args:
        name: a folder below `sets/`; None: what GUDA_GROUP_SET says, else the set of the model's card (GUDA_MODEL's, or
            the default model's), else the workspace's only one.

    Raises:
        GroupSetError: there is no such set, its file is wrong, or nothing says which one.
        ModelError: without a name: there is no such model, or its card is wrong.
        OptionError: the name is no text, or the workspace (GUDA_HOME) cannot be used.
    """
    return _groups(name, None)


@speaks_python
def make_groups(
    place: str | Path,
    *,
    name: str | None = None,
    held_out: float | None = None,
    seed: int | None = None,
    phrase: str | None = None,
    fit: Fit | None = None,
    resolution: int | None = None,
    broken: float | None = None,
    folder: str | Path | None = None,
    image_column: str | None = None,
    group_column: str | None = None,
    text_column: str | None = None,
    split: str | None = None,
    config: str | None = None,
    again: bool = False,
) -> GroupSet:
    """Make a group set of your own pictures and write it into the workspace, as `guda groups new` does.

    A set of its name that is there and says the same is given as it is. What is not asked for is as it was in the set
    that is written anew, else as below; but `broken`, `folder` and what is of a data set are asked anew each time. What
    was found is logged: nothing is shown unless `logging.basicConfig(level=logging.INFO)`.

    Args:
        place: a folder with one subfolder for each group; a table (.csv, .json, .jsonl) of files and groups; or a data
            set: "hub:user/name", a .parquet file, a folder that `datasets` reads.
        name: of the set; default: the folder's. Its id, `GroupSet.id`, is made from it.
        held_out: the share of each group that is held out, 0 to 0.9; default: 0.1. seed: decides which; default: 0.
        phrase: how captions say a group, such as "by {name}"; "": no captions; default: as most captions do.
        fit: how pictures become square: "crop" (the default) or "pad"; "bucket": they nearly keep their shape.
        resolution: their side in pixels, at least 8; default: 512.
        broken: the share of pictures that may be left out because they cannot be read; default: 0.01.
        folder: of a table: where the files lie; default: beside it.
        image_column, group_column, text_column, split, config: of a data set.
        again: write it in place of another set of its name. What was written into that by hand is kept.

    Raises:
        GudaError: another set of that name is there, the pictures cannot be found or read, there are fewer than two
            groups, or a wish is no good.
    """
    path_of(place, "The place of the pictures")
    given = {"name": name, "held_out": held_out, "seed": seed, "phrase": phrase, "fit": fit, "resolution": resolution}
    given |= {"broken": broken}
    rows = {"image_column": image_column, "group_column": group_column, "text_column": text_column}
    rows |= {"split": split, "config": config}
    check_texts(rows)
    wishes = {k: plain(v) for k, v in given.items() if v is not None}
    made = prepare(str(place), wishes, rows, folder=path_or_none(folder, "folder"))
    for line in made.draft.notes:
        log.info("group set %s: %s", made.draft.id, in_python(line, make_groups))
    for line in made.differing:
        log.info("group set %s: changed: %s", made.draft.id, line)
    written = made.write(again=again)
    for gid, n in made.draft.counts().items():
        more = f"{n.trained:,} trained on, {n.held_out:,} held out, {n.captions:,} with a caption"
        log.info("group set %s: %s: %s", made.draft.id, gid, more)
    n = (len(made.draft.entry["groups"]), len(made.draft.pictures))
    log.info("group set %s: %d groups, %d pictures, in %s", made.draft.id, *n, written)
    return group_sets.load_group_set(made.draft.id)


@dataclass(frozen=True)
class Methods:
    """What can be asked of a model and a group set.

    offered: method id -> what is said of it. not_offered: method id -> why it is not, with what mends it. seconds:
    method id -> effort -> seconds that `attribute` is expected to take by that method alone.
    """

    offered: Mapping[str, MethodInfo]
    not_offered: Mapping[str, str]
    seconds: Mapping[str, Mapping[str, float]]


@speaks_python
def methods(model: BaseModel | str | Path | None = None, groups: GroupSet | str | None = None) -> Methods:
    """The methods that `attribute` takes for a model and a group set, why others are not offered, and how long each
    takes on this machine. The first call loads the model and measures its pace, which takes seconds.

    Args:
        model, groups: loaded ones, or their names. What was loaded is ready for the next call.

    Raises:
        GudaError: a name is refused, in one sentence.
    """
    service = _service(_model(model), groups)
    seconds = {m: {effort: service.estimate([m], effort) for effort in EFFORTS} for m in service.offered}
    return Methods(service.methods(), dict(service.not_offered), seconds)


@speaks_python
def generate(
    prompt: str,
    model: BaseModel | str | Path | None = None,
    groups: GroupSet | str | None = None,
    *,
    seed: int = 0,
    steps: int = 25,
    guidance: float = 2.5,
) -> Image.Image:
    """Let the model draw a picture, as `guda generate` does. The same seed gives the same one.

    Args:
        prompt: what to draw.
        model, groups: loaded ones, or their names.
        seed: 0 to 4294967295. steps: of DDIM, 1 to 200. guidance: weight of classifier-free guidance, 1 to 20.

    Returns:
        The picture, which `attribute` takes. In memory it keeps how it was drawn; a file of it, and a picture that was
        changed, is one from elsewhere. What the model could not read of the prompt is logged.

    Raises:
        GudaError: the prompt, a name or a number is refused, in one sentence.
    """
    check_texts({"prompt": prompt})
    service = _service(_model(model), groups)
    numbers = {"seed": plain(seed), "steps": plain(steps), "guidance": plain(guidance)}
    *_, query = service.generate(prompt=prompt, **numbers)
    assert isinstance(query, Query)
    for said in query.preparation:
        log.warning("%s", said)
    picture = Image.fromarray(query.pixels)
    if query.drawn is not None:
        picture.info[Drawn.KEY] = Drawn(query.drawn, query.prompt, service.model.sha256, query.image_hash)
    return picture


@speaks_python
def best_caption(
    picture: Picture,
    model: BaseModel | str | Path | None = None,
    groups: GroupSet | str | None = None,
) -> str:
    """The caption of a group set that suits a picture best, by CLIP: a prompt for `attribute` where none is known.

    Args:
        picture: a file, its bytes, or a PIL image.
        model, groups: loaded ones, or their names.

    Returns:
        The caption, one of `data.captions`' examples; "" where the encoder reads no words, or the set has no captions.

    Raises:
        GudaError: the picture or a name is refused, in one sentence.
    """
    data = picture_bytes(picture)
    service = _service(_model(model), groups)
    return service.best_caption(service.prepare(data))


@speaks_python
def attribute(
    picture: Picture,
    prompt: str = "",
    model: BaseModel | str | Path | None = None,
    groups: GroupSet | str | None = None,
    methods: Sequence[str] = ("guda",),
    effort: str = "standard",
    *,
    pictures: bool = False,
    maps: bool = False,
    nearest: bool = False,
    progress: Callable[[Attribution], object] | None = None,
) -> Answer:
    """Score every group for one picture.

    Args:
        picture: a file, its bytes, or a PIL image. What `generate` gave, by the same model and with the same prompt,
            is known as the model's own: `query.drawn`, the report and `pictures` go by its seed, steps and guidance.
        prompt: the caption; "" asks the unconditional model.
        model, groups: loaded ones, or their names. What was loaded for one call is ready for the next.
        methods: ids, such as guda, clip, das; the first is the one that `best` is about.
        effort: "quick", "standard" or "full": how much computing, so how narrow the intervals are; "every": as "full",
            but every draw is made of every group.
        pictures: also draw the picture again without each group, by every asked method that has models without one.
        maps: also map where in the picture each group's drop comes from, by the same methods.
        nearest: also find the training pictures that are most alike, by CLIP; none for a model without an encoder.
        progress: is called with the scores as they refine, method by method; `Attribution.progress` goes to 1.0, and
            the first ones may have no group yet. What it raises ends the work within one step, and is raised.

    Raises:
        GudaError: the picture, the prompt, a name or an option is refused, in one sentence.

    Warnings say, each time, that the model could not have made this picture, that a method has no score of any group,
    or that what stands beside the scores (pictures, maps, nearest) could not be made; and once, what is known to be
    wrong with model, set or adapters. `Answer.limits` has more.
    """
    asked = names(methods, "methods")
    check_texts({"effort": effort})
    find_effort(effort)
    check_callable(progress, "progress")
    data = picture_bytes(picture)
    service = _service(_model(model), groups)
    check_methods(asked, service.offered, service.not_offered)
    query = _as_drawn(service.prepare(data, prompt=prompt), picture, service)
    able = service.with_models(asked) if pictures or maps else []
    final: dict[str, Attribution] = {}
    with closing(cast(Generator, service.attribute(query, methods=asked, effort=effort))) as refining:
        for a in refining:
            final[a.method] = a
            if progress is not None:
                progress(copy.deepcopy(a))  # whoever hears it may change it
    settings = {"effort": effort, "methods": asked}
    found, scope, provenance = {m: final[m] for m in asked}, scope_or_why(service, query), service.provenance()
    if scope.verdict == "out of scope":
        log.warning("%s", VERDICTS[scope.verdict])
    for said in _without_scores(found, service.group_set):
        log.warning("%s", said)
    _warn_once(service, provenance.said_of(asked))
    beside = Beside(lambda said: log.warning("%s", said))
    name = {m: service.methods()[m].name if len(able) > 1 else "" for m in able}
    strips = {m: beside.made(partial(service.strip, query, m), None, NO_STRIP, name[m]) for m in able if pictures}
    places = {m: beside.made(partial(service.place_maps, query, m), {}, NO_MAPS, name[m]) for m in able if maps}
    near = beside.made(lambda: service.nearest(query), (), NO_NEAR) if nearest else ()
    return Answer(
        found, scope, query, service.group_set, settings, provenance,
        pictures={m: strip for m, strip in strips.items() if strip is not None},
        maps={m: each for m, each in places.items() if each},
        nearest=near, missing=beside.missing,
    )  # fmt: skip


def _as_drawn(query: Query, picture: Picture, service: LocalService) -> Query:
    """The query of a picture in memory that this model drew of this prompt, if it is as it was then; else as it is."""
    said = picture.info.get(Drawn.KEY) if isinstance(picture, Image.Image) else None
    if not isinstance(said, Drawn) or said != Drawn(said.drawing, query.prompt, service.model.sha256, query.image_hash):
        return query
    return replace(query, file_hash=None, preparation=service.unread(query.prompt), drawn=said.drawing)


def _without_scores(found: Mapping[str, Attribution], group_set: GroupSet) -> list[str]:
    """A sentence for each method that has no score of any group."""
    said = []
    for m, a in found.items():
        if not a.ranked():
            why = next((s.reason for s in a.groups.values() if s.reason), "")
            said.append(f"No group of '{group_set.id}' has a score by {m}. {why}")
    return said


def _warn_once(service: LocalService, sentences: Sequence[str]) -> None:
    """Warn of what was not yet said of this service."""
    for said in sentences:
        if said not in service.told:
            service.told.add(said)
            log.warning("%s", said)


def _model(given: BaseModel | str | Path | None) -> BaseModel | str | None:
    """A model, or its name. Raises OptionError for what is neither."""
    return given if isinstance(given, BaseModel) else model_name(given)


def _groups(given: GroupSet | str | None, model: str | None) -> GroupSet:
    if isinstance(given, GroupSet):
        return given
    of_card = "" if set_name(given) else cards.chosen_card(model).group_set
    return group_sets.load_group_set(group_sets.chosen_set(given, of_card))


def _service(model: BaseModel | str | None, groups: GroupSet | str | None) -> LocalService:
    """The service of a model and a group set; the last one is kept."""
    base = model if isinstance(model, BaseModel) else cards.chosen_card(model)
    found = groups
    if not isinstance(found, GroupSet):
        card = base.card if isinstance(base, BaseModel) else base
        found = group_sets.load_group_set(group_sets.chosen_set(set_name(found), card.group_set))

    def make() -> LocalService:
        return service_for(base if isinstance(base, BaseModel) else cards.load_model(base), found)

    return cast(LocalService, kept_services.kept((base, found), make))
