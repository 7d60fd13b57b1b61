"""Pictures that no model made, to fit and try a scope's rule on: drawn by a generator, or from a folder.

A folder has one folder a kind, and in each pictures or one folder a source: FOLDER/KIND/SOURCE/*.png. Pictures are read
through the same door as uploads, so that they are prepared in the same way.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from guda_core.data.images import Square, read_file, read_picture
from guda_core.errors import DataError, ImageError
from guda_core.paths import is_folder

LONGEST = 256  # pixels; models that read more get these enlarged
WIDEST = 4.0  # aspect ratio of cuts
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
PHOTOGRAPHS = (  # package, file: they come with what requirements.txt installs
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ("gradio", "media_assets/images/cheetah1.jpg"),
    ("gradio", "media_assets/images/lion.jpg"),
    ("gradio", "media_assets/images/tower.jpg"),
)
WORDS = "The quick brown fox jumps over the lazy dog and runs away through old fields while 1234567890 birds look on."


@dataclass(frozen=True)
class Kind:
    """Pictures of one kind. pixels: (N, H, W, 3) uint8. sources: N names; pictures of one source are alike."""

    pixels: np.ndarray
    sources: tuple[str, ...]

    def where(self, keep: np.ndarray) -> Kind:
        """Those that `keep`, (N,) bool or indices, says."""
        at = np.flatnonzero(keep) if keep.dtype == bool else keep
        return Kind(self.pixels[at], tuple(self.sources[i] for i in at))


def cut(im: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A part of a picture: 40 to 100% of the largest of its aspect ratio, which is drawn evenly in its logarithm."""
    ratio = float(np.exp(rng.uniform(-np.log(WIDEST), np.log(WIDEST))))
    w = min(im.width, im.height * ratio)
    scale = rng.uniform(0.4, 1.0)
    w, h = (max(16, int(scale * s)) for s in (w, w / ratio))
    w, h = min(w, im.width), min(h, im.height)
    x, y = int(rng.integers(im.width - w + 1)), int(rng.integers(im.height - h + 1))
    return im.crop((x, y, x + w, y + h))


def save(made: Iterable[Image.Image], folder: Path) -> int:
    """Write pictures as numbered PNG files of at most `LONGEST` pixels; how many."""
    folder.mkdir(parents=True, exist_ok=True)
    n = 0
    for n, im in enumerate(made, 1):
        im.convert("RGB").resize(_smaller(im), Image.Resampling.LANCZOS).save(folder / f"{n:04d}.png")
    return n


def _smaller(im: Image.Image) -> tuple[int, int]:
    scale = min(1.0, LONGEST / max(im.size))
    return max(16, round(im.width * scale)), max(16, round(im.height * scale))


def prepared(im: Image.Image, size: int, fit: Square) -> np.ndarray:
    """A picture as an upload of it would be prepared for a set of that fit: (size, size, 3) uint8."""
    data = io.BytesIO()
    im.convert("RGB").save(data, "PNG", compress_level=1)
    return read_picture(data.getvalue(), size=size, fit=fit).pixels


def kinds_in(folder: Path) -> list[Path]:
    """The folders of kinds. Raises DataError: there is no such folder."""
    if not is_folder(folder):
        raise DataError(f"There is no folder '{folder}'.")
    return sorted(p for p in folder.iterdir() if p.is_dir())


def read_folder(folder: Path, size: int, fit: Square) -> dict[str, Kind]:
    """Every kind in a folder; pictures that the door refuses are left out.

    Raises:
        DataError: there is no such folder, or no picture in it.
    """
    out = {}
    for kind in kinds_in(folder):
        files = [p for p in sorted(kind.rglob("*")) if p.suffix.lower() in ENDINGS]
        pixels, sources = [], []
        for path in files:
            try:
                pixels.append(read_picture(read_file(path), size=size, fit=fit).pixels)
            except ImageError:
                continue
            sources.append(path.parent.name if path.parent != kind else path.name)
        if pixels:
            out[kind.name] = Kind(np.stack(pixels), tuple(sources))
    if not out:
        raise DataError(f"{folder} has no pictures. Put them into one folder for each kind: FOLDER/KIND/*.png.")
    return out


def installed_photographs(n: int, size: int, seed: int, fit: Square) -> Kind:
    """n cuts of the photographs that come with the app's own libraries. Raises DataError: a file is not there."""
    rng, out, names = np.random.default_rng(seed), [], []
    for i in range(n):
        package, name = PHOTOGRAPHS[i % len(PHOTOGRAPHS)]
        spec = find_spec(package)
        path = Path(spec.origin).parent / name if spec is not None and spec.origin else Path(name)
        if not path.is_file():
            raise DataError(f"{package} has no {name} any more; take another photograph in {Path(__file__).name}.")
        with Image.open(path) as im:
            im.draft("RGB", (512, 512))
            out.append(prepared(cut(im.convert("RGB"), rng), size, fit))
        names.append(path.name)
    return Kind(np.stack(out), tuple(names))


def _side(rng: np.random.Generator) -> tuple[int, int]:
    """(height, width), the longer one 128."""
    ratio = float(np.exp(rng.uniform(-np.log(WIDEST), np.log(WIDEST))))
    return max(16, round(128 / max(1.0, ratio))), max(16, round(128 * min(1.0, ratio)))


def _of(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def noise(rng: np.random.Generator, size: int = 128) -> Image.Image:
    """Uniform or normal noise, grey or coloured. Half of it has the model's own size, so that nothing smooths it."""
    h, w = (size, size) if rng.random() < 0.5 else _side(rng)
    c = 1 if rng.random() < 0.3 else 3
    flat = rng.integers(0, 256, (h, w, c)) if rng.random() < 0.5 else rng.normal(128, rng.uniform(10, 90), (h, w, c))
    return _of(np.broadcast_to(flat, (h, w, 3)))


def smooth(rng: np.random.Generator) -> Image.Image:
    """Noise of a few cells, enlarged."""
    cells = rng.integers(0, 256, (*rng.integers(2, 14, 2), 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(_side(rng), Image.Resampling.BICUBIC)


def plain(rng: np.random.Generator) -> Image.Image:
    """One colour; every third is black, white or grey."""
    grey = (0, 255, int(rng.integers(1, 255)))[int(rng.integers(3))]
    colour = (grey,) * 3 if rng.random() < 0.35 else tuple(map(int, rng.integers(0, 256, 3)))
    return Image.new("RGB", _side(rng), colour)


def gradient(rng: np.random.Generator) -> Image.Image:
    """From one colour to another in a straight line."""
    h, w = _side(rng)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:h, 0:w]
    t = (x * np.cos(angle) + y * np.sin(angle)) / 128
    t = (t - t.min()) / max(1e-9, float(np.ptp(t)))
    a, b = rng.integers(0, 256, (2, 3))
    return _of(a + (b - a) * t[..., None])


def shapes(rng: np.random.Generator) -> Image.Image:
    """Overlapping rectangles and ellipses that fill the picture."""
    h, w = _side(rng)
    im = Image.new("RGB", (w, h), tuple(map(int, rng.integers(0, 256, 3))))
    draw = ImageDraw.Draw(im)
    for _ in range(int(rng.integers(5, 40))):
        x, y = np.sort(rng.integers(0, w, 2)), np.sort(rng.integers(0, h, 2))
        form = draw.rectangle if rng.random() < 0.5 else draw.ellipse
        form((int(x[0]), int(y[0]), int(x[1]), int(y[1])), fill=tuple(map(int, rng.integers(0, 256, 3))))
    return im


def page(rng: np.random.Generator) -> Image.Image:
    """Dark text on light paper, from a few large words to many small lines."""
    h, w = (2 * s for s in _side(rng))
    paper = 255 if rng.random() < 0.6 else int(rng.integers(225, 255))
    im = Image.new("RGB", (w, h), (paper, paper, max(0, paper - int(rng.integers(0, 20)))))
    draw, size = ImageDraw.Draw(im), int(rng.integers(6, 26))
    font, ink = ImageFont.load_default(size), (int(rng.integers(0, 90)),) * 3
    words, left = WORDS.split(), int(rng.integers(4, max(5, w // 6)))
    for y in range(int(rng.integers(2, 20)), h - size, int(size * rng.uniform(1.1, 1.7))):
        line = " ".join(words[i] for i in rng.integers(0, len(words), max(1, (w - 2 * left) // (3 * size))))
        if rng.random() < 0.9:
            draw.text((left, y), line, fill=ink, font=font)
    return im


def window(rng: np.random.Generator) -> Image.Image:
    """A program's window: bars, panels, buttons and lines of text."""
    h, w = (2 * s for s in _side(rng))
    dark = rng.random() < 0.3
    back, ink = ((30, 32, 38), (210, 210, 215)) if dark else ((246, 247, 249), (60, 60, 70))
    im = Image.new("RGB", (w, h), back)
    draw, accent = ImageDraw.Draw(im), tuple(map(int, rng.integers(0, 256, 3)))
    bar = max(4, h // int(rng.integers(8, 18)))
    draw.rectangle((0, 0, w, bar), fill=accent)
    if rng.random() < 0.6:
        draw.rectangle((0, bar, w // int(rng.integers(4, 8)), h), fill=tuple(int(0.85 * c) for c in back))
    for _ in range(int(rng.integers(3, 16))):
        x, y = int(rng.integers(0, w)), int(rng.integers(bar, h))
        x1, y1 = x + int(rng.integers(10, 1 + max(11, w // 2))), y + int(rng.integers(6, 1 + max(7, h // 4)))
        fill = tuple(map(int, rng.integers(0, 256, 3))) if rng.random() < 0.2 else tuple(min(255, c + 9) for c in back)
        draw.rounded_rectangle(
            (x, y, x1, y1), 3, fill=fill, outline=tuple((c + i) // 2 for c, i in zip(back, ink, strict=True))
        )
        draw.text((x + 3, y + 1), WORDS[int(rng.integers(40)) :][:20], fill=ink, font=ImageFont.load_default(8))
    return im


DRAWN: Mapping[str, Callable[[np.random.Generator], Image.Image]] = {
    "noise": noise,
    "smooth noise": smooth,
    "plain colours": plain,
    "gradients": gradient,
    "shapes": shapes,
    "printed pages": page,
    "screenshots": window,
}


def made_up(n: int, size: int, seed: int, fit: Square) -> dict[str, Kind]:
    """n pictures of every kind that the generator draws, prepared at `size`."""
    return dict(_made_up(n, size, seed, fit))


def _made_up(n: int, size: int, seed: int, fit: Square) -> Iterator[tuple[str, Kind]]:
    for name, draw in {**DRAWN, "noise": partial(noise, size=size)}.items():
        rng = np.random.default_rng([seed, *hashlib.sha256(name.encode()).digest()[:4]])
        made = np.stack([prepared(draw(rng), size, fit) for _ in range(n)])
        yield name, Kind(made, tuple(f"drawn {i}" for i in range(n)))
