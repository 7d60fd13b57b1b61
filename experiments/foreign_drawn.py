"""Kinds that a generator draws in other ways than `guda_core.attribution.scope_pictures`, for `experiments.foreign`.

The rule is fitted on the library's noise, pages and windows; it is tried on these, which no line of that code draws.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

Drawn = dict[tuple[str, str, bool], list[Image.Image]]  # (kind, source, shown to the rule) -> pictures
N = 40


def _shape(rng: np.random.Generator) -> tuple[int, int]:
    ratio = rng.uniform(1, 5)
    a, b = 160, max(24, int(160 / ratio))
    return (a, b) if rng.random() < 0.5 else (b, a)


def _of(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def salt(rng: np.random.Generator) -> Image.Image:
    """Black and white dots."""
    h, w = _shape(rng)
    return _of(np.repeat(255 * (rng.random((h, w, 1)) < rng.uniform(0.2, 0.8)), 3, axis=2))


def pink(rng: np.random.Generator) -> Image.Image:
    """Noise whose power falls with frequency (1/f)."""
    h, w = _shape(rng)
    fy, fx = np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)[None]
    falls = 1 / np.maximum(np.hypot(fy, fx), 1 / max(h, w)) ** rng.uniform(0.7, 1.3)
    layers = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(h, w))) * falls).real for _ in range(3)]
    values = np.stack(layers, axis=-1)
    return _of(128 + 55 * values / values.std())


def poisson(rng: np.random.Generator) -> Image.Image:
    """The noise of few photons."""
    h, w = _shape(rng)
    light = rng.uniform(1, 12)
    return _of(rng.poisson(light, (h, w, 3)) * 255 / (2 * light))


def grain(rng: np.random.Generator) -> Image.Image:
    """Pixels that know nothing of each other, in squares of sizes that models read: there nothing smooths them."""
    side = int(rng.choice((64, 128, 256)))
    return _of(rng.triangular(0, rng.uniform(64, 192), 255, (side, side, 3)))


def radial(rng: np.random.Generator) -> Image.Image:
    """From one colour in the middle to another at the border."""
    h, w = _shape(rng)
    y, x = np.mgrid[0:h, 0:w]
    t = np.hypot(y / h - rng.uniform(), x / w - rng.uniform())[..., None]
    a, b = rng.integers(0, 256, (2, 3))
    return _of(a + (b - a) * t / t.max())


def plain(rng: np.random.Generator, i: int) -> Image.Image:
    """One colour: black, white and greys first."""
    named = ((0, 0, 0), (255, 255, 255), (128, 128, 128), (250, 250, 250), (255, 0, 0), (0, 0, 255))
    return Image.new("RGB", _shape(rng), named[i] if i < len(named) else tuple(map(int, rng.integers(0, 256, 3))))


def plot(rng: np.random.Generator, i: int) -> Image.Image:
    """A figure by matplotlib: lines, bars, points, a heat map or a pie."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=tuple(rng.uniform(3, 8, 2)), dpi=60)
    ax = figure.add_subplot()
    x = np.arange(20)
    kind = ("lines", "bars", "points", "heat", "pie")[i % 5]
    if kind == "lines":
        ax.plot(x, rng.normal(size=(20, 3)).cumsum(axis=0))
    elif kind == "bars":
        ax.bar(x, rng.random(20))
    elif kind == "points":
        ax.scatter(rng.normal(size=99), rng.normal(size=99), c=rng.random(99))
    elif kind == "heat":
        ax.imshow(rng.random((12, 12)))
    else:
        ax.pie(rng.random(5))
    ax.set_title("Measured values")
    data = io.BytesIO()
    figure.savefig(data)
    with Image.open(data) as im:
        return im.convert("RGB")


def digit(i: int) -> Image.Image:
    """A handwritten digit of scikit-learn, dark on white."""
    from sklearn.datasets import load_digits

    images: np.ndarray = load_digits(return_X_y=True)[0].reshape(-1, 8, 8)
    return _of(255 - images[(i * 37) % len(images)] * 15.9375).resize((96, 96), Image.Resampling.BICUBIC)


def drawn(seed: int) -> Drawn:
    """All of them; none is shown to the rule."""
    rng = np.random.default_rng(seed)
    out: Drawn = {("noise", f.__name__, False): [f(rng) for _ in range(N)] for f in (salt, pink, poisson)}
    own = np.random.default_rng([seed, 1])  # so that the others stay as they were
    out["noise", "grain", False] = [grain(own) for _ in range(N)]
    out["gradients", "radial", False] = [radial(rng) for _ in range(N)]
    out["plain colours", "named", False] = [plain(rng, i) for i in range(N)]
    out["plots", "matplotlib", False] = [plot(rng, i) for i in range(N)]
    out["digits", "scikit-learn", False] = [digit(i) for i in range(2 * N)]
    return out
