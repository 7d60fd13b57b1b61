"""A run made ready for the Hugging Face Hub: a folder that is a workspace of its own, with its model card.

    README.md                       the model card (`hub_card`)
    models/<model>.yaml             the base model's card; with_model: its weights beside it
    sets/<set>/group_set.yaml       groups, credits, licences and words; not the pictures, nor a list of them
    runs/<model>/<set>/             adapters with their health, and what else was made for the model and the set
        run.json                    with which settings each adapter was made; one of other settings is refused

`hf upload USER/NAME FOLDER --delete "*"` publishes it, and takes out of the repository what is no longer in it.
`GUDA_HOME=hub:USER/NAME` works in it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from guda_core import paths
from guda_core.attribution import calibration, scope
from guda_core.data.encoders import bank_name
from guda_core.diffusion.base_model import Card
from guda_core.diffusion.cards import called, read_cards
from guda_core.errors import AdapterError, CacheError, DataError, ModelError, OptionError
from guda_core.from_hub import NAME as HUB_NAME
from guda_core.held_files import advice, check_writable, is_held, replace_file
from guda_core.paths import Run
from guda_core.publishing import hub_card
from guda_core.records import NOT_STATED, GroupSet
from guda_core.unlearning import adapter_files
from guda_core.unlearning.adapters import RUN
from guda_core.work_queue import claimed

PUBLIC = ("npm-iconify", "scikit-digits", "cifar10")  # sources that anybody can fetch; others say where pictures lie
TOLD = ("name", "author", "licence", "licence_link", "link", "phrase")  # of a group
SMALL = (scope.FILE, calibration.FILE)
LICENCE = re.compile("(?=.*[a-z])[a-z0-9][a-z0-9.+-]{0,59}")  # the Hub adds to its list, and looks at it on upload
ADDRESS = re.compile(
    r"^(?:hub:|(?:https?://)?(?:huggingface\.co|hf\.co)/)"
)  # what may stand before a repository's name
LOCAL_ENCODER = (
    "What sees likeness is a folder on this machine, which nobody else has. So the published card does not name it, "
    "and the feature bank and the scope's rule that need it are left out. To publish them, put the folder into a "
    "repository of the Hub, write its USER/NAME into the card (encoder: KIND:USER/NAME), and make both again."
)
FOLDERS = {"features": (".json", ".safetensors"), "drawn": (".json", ".png")}  # drawn: what the model itself drew


@dataclass(frozen=True)
class Made:
    """What was published. folder: where. missing: groups that have no adapter, with why. model_inside: whether the
    published card finds its model, in the folder or on the hub. left_out: files of the run that are not published, with
    why. licence: what is given for adapters and features, "" for none. with_model, on_hub: as of `publish`."""

    folder: Path
    missing: Mapping[str, str]
    model_inside: bool
    left_out: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""
    with_model: bool = False
    on_hub: str = ""


def publish(
    card: Card, group_set: GroupSet, *, with_model: bool | None = None, on_hub: str = "", licence: str = ""
) -> Made:
    """Write the folder anew, in place of the one of before.

    with_model: whether to put the model's own files into it. on_hub: the Hub repository (user/name, or its address)
    where the model is. Where neither is said, it is as it was in the folder of before. licence: what is given for
    adapters and features, as the Hub spells it; "" for that of the folder of before.

    Raises:
        AdapterError: there is no adapter, or they are of several models. OptionError: the workspace is read only, an id
        leads out of it, the licence or the repository is no name of one, or both of the model's places are said.
        DataError: the disk is full, or the folder cannot be written.
    """
    if with_model and on_hub:
        raise OptionError("--with-model puts the model in, and --model-on-hub names where it is. Give one of them.")
    on_hub = on_hub and _repository(on_hub)
    if licence and not LICENCE.fullmatch(licence):
        raise OptionError(
            f"A licence is named as the Hub spells it, such as mit or cc-by-4.0, not '{licence}'. All its names: "
            "https://huggingface.co/docs/hub/repositories-licenses"
        )
    published = paths.writable(paths.home()) / "published"
    target = _place(published, card.id, group_set.id)
    with _alone(published):
        return _publish(target, card, group_set, with_model=with_model, on_hub=on_hub, licence=licence)


@contextmanager
def _alone(published: Path) -> Iterator[None]:
    """Within the block no other process publishes in this workspace: both would exchange the same folder."""
    with ExitStack() as claim:
        with suppress(OptionError):  # a disk that knows no locks; of one that cannot be written to is told later
            claim.enter_context(claimed(published / ".publish", wait=True))
        yield


def _repository(text: str) -> str:
    """USER/NAME of a repository of the Hub, whose address may be given."""
    found = HUB_NAME.fullmatch("hub:" + ADDRESS.sub("", text.strip()).removesuffix("/").removesuffix("/tree/main"))
    if found is None or found[2] or ".." in text:
        raise OptionError(f"A model on the Hub is named USER/NAME, not '{text[:120]}'.")
    return found[1]


def _publish(
    target: Path, card: Card, group_set: GroupSet, *, with_model: bool | None, on_hub: str, licence: str
) -> Made:
    run = paths.run(card.id, group_set.id)
    metas, missing = _adapters(run, group_set)
    small, left_out = _small(run, card, group_set, metas)
    if encoder_is_local(card):
        left_out["the encoder"] = LOCAL_ENCODER
        small = [p for p in small if p.name != scope.FILE]
        card = replace(card, encoder="")
    small += [p for p in [run.mine / bank_name(card)] if p.is_file()]
    if not with_model and not on_hub:
        inside, on_hub = _as_before(target / "models", card)
        with_model = inside if with_model is None else with_model
    with_model = bool(with_model)
    licence = licence or _licence_before(target / "README.md")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        check_writable(target.parent.parent)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=target.parent.parent, ignore_cleanup_errors=True) as name:
            new = Path(name) / "made"
            inside = _write(
                new, run, card, group_set, metas, small, with_model=with_model, on_hub=on_hub, licence=licence
            )
            _put(new, target, before=Path(name) / "before")
    except OSError as e:
        what = f" {advice(e, '')}." if is_held(e) else ""
        raise DataError(f"{target} cannot be written: {e.strerror or e}.{what}") from e
    return Made(target, missing, inside, left_out, licence, with_model, on_hub)


def _place(published: Path, model: str, group_set: str) -> Path:
    """The folder of a model and a set within the published ones. It is replaced, so it is no other."""
    target = published / model / group_set
    if Path(os.path.normpath(target)).parts != (*Path(os.path.normpath(published)).parts, model, group_set):
        raise OptionError(f"The ids '{model}' and '{group_set}' lead out of {published}. Rename the card or the set.")
    return target


def _put(new: Path, target: Path, *, before: Path) -> None:
    """Put a folder in the place of another, which goes to `before`, and comes back where the new one is refused."""
    if target.is_dir():
        replace_file(target, before)
    try:
        replace_file(new, target)
    except BaseException:
        if before.is_dir():
            replace_file(before, target)
        raise


def _as_before(folder: Path, card: Card) -> tuple[bool, str]:
    """(with_model, on_hub) of a folder of cards that was published before."""
    try:
        before = read_cards(folder / f"{card.id}.yaml")[card.id]
    except (ModelError, KeyError):
        return False, ""
    if card.source in ("folder", "file") and before.source == "hub":
        return False, before.path
    return before.source == card.source and card.source in ("folder", "file") and Path(before.path).exists(), ""


def _licence_before(readme: Path) -> str:
    """The licence that was given when the folder was made before; "" for none."""
    try:
        return hub_card.licence_given(readme.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""


def _adapters(run: Run, group_set: GroupSet) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """(group id -> its adapter's metadata; group id -> why it has none)."""
    metas: dict[str, dict[str, Any]] = {}
    missing: dict[str, str] = {}
    for gid in group_set.groups:
        try:
            meta = adapter_files.read_meta(run.adapters / gid)
        except AdapterError as e:
            missing[gid] = str(e)
            continue
        if meta.get("group") != gid or meta.get("group_set", group_set.id) != group_set.id:
            missing[gid] = f"Its adapter is of '{meta.get('group')}' in the group set '{meta.get('group_set')}'."
        elif adapter_files.is_draft(meta):
            missing[gid] = "Its adapter is a draft. Make the real one with `guda unlearn`."
        else:
            metas[gid] = meta
    if not metas:
        drafts = " Drafts are not published." if any("is a draft" in why for why in missing.values()) else ""
        raise AdapterError(
            f"There is no adapter of '{group_set.id}' to publish.{drafts} Make them with `guda unlearn`."
        )
    models = sorted({m["base_sha256"] for m in metas.values()})
    if len(models) > 1:
        named = ", ".join(m[:12] for m in models)
        raise AdapterError(f"The adapters are of {len(models)} models ({named}). Run `guda unlearn` again.")
    return metas, missing


def encoder_is_local(card: Card) -> bool:
    """Whether a card names an encoder that is no repository of the Hub, but a place on this machine."""
    place = card.encoder.partition(":")[2]
    return bool(card.encoder) and (Path(place).expanduser().is_dir() or not HUB_NAME.fullmatch(f"hub:{place}"))


def _small(
    run: Run, card: Card, group_set: GroupSet, metas: Mapping[str, dict[str, Any]]
) -> tuple[list[Path], dict[str, str]]:
    """(small files that are sound and of the adapters' model and of the set; name of each other one -> why not)."""
    base_sha256 = next(iter(metas.values()))["base_sha256"]
    good: list[Path] = []
    bad: dict[str, str] = {}
    for name in SMALL:
        path = run.file(name)
        if not path.is_file():
            continue
        try:
            if name == scope.FILE:
                found, _ = scope.read_scope(
                    path,
                    base_sha256=base_sha256,
                    group_set=group_set.id,
                    fit=scope.fit_of(group_set),
                    mended_by=f"{scope.MAKE} {called(card, group_set.id)}",
                )
            else:
                found = calibration.read_calibration(path, base_sha256=base_sha256, group_set=group_set.id)
                assert found is not None  # it is a file
                if why := found.why_not(run.adapters, metas):
                    bad[name] = why
                    continue
        except CacheError as e:
            bad[name] = str(e)
            continue
        if found.model_extra:
            bad[name] = f"It holds '{next(iter(found.model_extra))}', which is none of its entries. Take that out."
        else:
            good.append(path)
    return good, bad


def _write(
    folder: Path,
    run: Run,
    card: Card,
    group_set: GroupSet,
    metas: Mapping[str, dict[str, Any]],
    small: Sequence[Path],
    *,
    with_model: bool,
    on_hub: str,
    licence: str,
) -> bool:
    inside = _write_card(folder / "models", card, group_set.id, with_model=with_model, on_hub=on_hub)
    _write_yaml(folder / "sets" / group_set.id / "group_set.yaml", entry_of(group_set))
    there = folder / "runs" / card.id / group_set.id
    for gid in metas:
        _copy_adapter(run.adapters / gid, there / "adapters" / gid)
    for path in small:
        shutil.copyfile(path, there / path.name)
    for name, kinds in FOLDERS.items():
        for path in run.layers(name).glob("**/*"):
            if path.is_file() and path.suffix in kinds:
                to = there / name / path.relative_to(next(p for p in path.parents if p.name == name))
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, to)
    named = {gid: m["settings_sha256"] for gid, m in metas.items() if m.get("settings_sha256")}
    (there / RUN).write_text(json.dumps({"settings": named}, indent=1), encoding="utf-8")
    text = hub_card.write(card, group_set, there, metas, on_hub=on_hub, model_inside=with_model, licence=licence)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return inside


def _copy_adapter(source: Path, to: Path) -> None:
    to.mkdir(parents=True)
    weights = adapter_files.weights_file(source)
    _link(weights, to / weights.name)
    small = (
        adapter_files.meta_file(source).name,
        adapter_files.LORA_CONFIG,
        adapter_files.HEALTH,
        adapter_files.TIMING,
    )
    for name in small:
        if (source / name).is_file():
            shutil.copyfile(source / name, to / name)


def _link(source: Path, to: Path) -> None:
    """A second name of a large file that only this project writes, and never in place; a copy where that cannot be."""
    try:
        os.link(source.resolve(), to)
    except OSError:
        shutil.copyfile(source, to)


def entry_of(group_set: GroupSet) -> dict[str, Any]:
    """The set's `group_set.yaml`, with no word about where pictures lie on this machine."""
    s, public = group_set, group_set.source in PUBLIC
    source: Any = {"id": s.source, **s.options} if public else "not-published"
    out: dict[str, Any] = {"id": s.id, "name": s.name, "source": source, "resolution": s.resolution, "fit": s.fit}
    if s.caption:
        out |= {"caption": s.caption, "descriptors_per_caption": s.descriptors_per_caption}
    if s.train_objects:
        out["objects"] = {"train": list(s.train_objects), "held_out": list(s.held_out_objects)}
    out["groups"] = {}
    for gid, g in s.groups.items():
        told: dict[str, Any] = {k: v for k in TOLD if (v := getattr(g, k)) and v != NOT_STATED}
        if g.descriptors:
            told["descriptors"] = list(g.descriptors)
        if public and g.source:
            told["source"] = dict(g.source)
        out["groups"][gid] = told
    return out


def _write_yaml(path: Path, entry: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(dict(entry), allow_unicode=True, sort_keys=False, width=110)
    path.write_text(text, encoding="utf-8")


def _write_card(folder: Path, card: Card, group_set: str, *, with_model: bool, on_hub: str) -> bool:
    """The base model's card, and its files; whether the card finds the model."""
    local = card.source in ("folder", "file")
    folder.mkdir(parents=True)
    only = card.only_groups and card.group_set in ("", group_set)
    own = replace(card, group_set=group_set, only_groups=only)
    if on_hub:
        own = replace(own, source="hub", path=on_hub)
    elif local:
        own = replace(own, path=f"{card.id}.safetensors" if card.source == "file" else card.id)
        if with_model:
            _copy_model(Path(card.path), folder / own.path)
    elif with_model:
        raise OptionError(
            f"The model '{card.id}' is not on this machine's disk but comes from elsewhere ({card.source})."
        )
    if card.lora:
        own = replace(own, lora=f"{card.id}.lora.safetensors")
        shutil.copyfile(Path(card.lora), folder / own.lora)
    plain = {f.name: f.default if f.default is not MISSING else None for f in fields(Card)}
    told = {k: v for k, v in asdict(own).items() if k != "id" and v and v != plain.get(k)}
    _write_yaml(folder / f"{card.id}.yaml", {card.id: told})
    return bool(on_hub) or not local or with_model


TERMS = ("LICEN[CS]E*", "NOTICE*")  # go with a model wherever it goes
SETTINGS = (  # of a model's parts, tokenizers too
    "config.json", "scheduler_config.json", "generation_config.json", "preprocessor_config.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json", "vocab.json",
    "vocab.txt", "merges.txt", "spiece.model",
)  # fmt: skip
WEIGHTS = ("*.safetensors", "*.safetensors.index*.json")
PLACES = {"_name_or_path", "name_or_path"}  # keys of settings: where they were read from
LARGEST_SETTINGS = 1_000_000  # bytes; a tokenizer's words take more, and name no place


def _copy_model(source: Path, to: Path) -> None:
    """Copies of the files that a model is opened from, and of its terms; nothing else that lies beside them. They are
    the user's, who may change them in place. A single file's settings and tokenizers lie beside it."""
    from guda_core.diffusion.model_files import INDEX

    if not source.is_file():
        _copy_parts(source, to, (*SETTINGS, *WEIGHTS))
        return
    shutil.copyfile(source, to)
    if (source.with_suffix("") / INDEX).is_file():
        _copy_parts(source.with_suffix(""), to.with_suffix(""), SETTINGS)
    for name in ("tokenizer", "tokenizer_2"):
        _copy_files(source.parent / name, to.parent / name, SETTINGS)


def _copy_parts(source: Path, to: Path, kinds: Sequence[str]) -> None:
    """Of a folder in diffusers' layout: its index, its terms, and those files of the parts that the index names."""
    from guda_core.diffusion.model_files import INDEX, read_json

    _copy_files(source, to, (INDEX, *TERMS))
    index = read_json(source / INDEX)
    for part in sorted(p for p in source.iterdir() if isinstance(index.get(p.name), list) and any(index[p.name])):
        _copy_files(part, to / part.name, (*kinds, *TERMS))


def _copy_files(source: Path, to: Path, kinds: Sequence[str]) -> None:
    """The files of these kinds that lie in a folder itself, not in one within it."""
    for path in sorted(source.glob("*")):
        if path.is_file() and any(fnmatch(path.name, k) for k in kinds):
            to.mkdir(parents=True, exist_ok=True)
            _copy_without_paths(path, to / path.name)


def _copy_without_paths(path: Path, to: Path) -> None:
    """A copy of a file. Settings lose where on this machine's disk they were read from."""
    told = json.loads(path.read_bytes()) if path.suffix == ".json" and path.stat().st_size < LARGEST_SETTINGS else None
    if isinstance(told, dict) and PLACES & told.keys():
        to.write_text(json.dumps({k: v for k, v in told.items() if k not in PLACES}, indent=2) + "\n", encoding="utf-8")
    else:
        shutil.copyfile(path, to)
