"""Colours as every viewer shows them: what a file says of its colours, turned into sRGB.

    ICC profile         by LittleCMS, in the profile's own rendering intent
    cICP (PNG, and nclx of AVIF and HEIC)
                        linear = transfer^-1(v), then the primaries' matrix, then the sRGB curve (ITU-T H.273)
    gAMA, cHRM (PNG)    linear = v^(1/gamma), then the same; gAMA alone: v^(1 / (2.2 gamma)), as browsers and libpng do

In a PNG cICP comes before iCCP, that before sRGB, and that before gAMA and cHRM (PNG, third edition, 4.3). Whatever
comes out as sRGB within one level of 255 is left untouched, bit for bit, as are pictures that say nothing of colours.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

from guda_core.data.containers import PNG_COLOUR, PNG_LENGTHS, is_crowded, png_chunks, unpacked
from guda_core.data.metadata import coded_colours

SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), (0.3127, 0.3290))  # red, green, blue, white: x, y
PRIMARIES = {  # H.273, table 2
    1: SRGB,
    5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), (0.3127, 0.3290)),
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), (0.3127, 0.3290)),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), (0.3127, 0.3290)),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.3127, 0.3290)),
}
GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}  # H.273, table 3; 13 is sRGB, 1, 6, 14 and 15 the curve of BT.709
VIDEO = (1, 6, 14, 15)
UNSAID = 2
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
USUAL_GAMMA, NEAR_GAMMA = 2.2, 0.05  # libpng calls gammas within 5% the same
NEAR_XY = 0.005  # primaries that near are sRGB's: files round them
ROWS = 256  # converted at a time, so that a large picture needs little memory

Curve = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Coloured:
    """A picture in sRGB, and sentences that say what was done."""

    image: Image.Image
    notes: tuple[str, ...] = ()


def to_srgb(values: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1] -> sRGB's values in [0, 1] (IEC 61966-2-1)."""
    v = np.clip(values, 0.0, 1.0)
    return np.where(v <= 0.0031308, 12.92 * v, 1.055 * v ** (1 / 2.4) - 0.055)


def from_srgb(values: np.ndarray) -> np.ndarray:
    """sRGB's values in [0, 1] -> linear light in [0, 1]."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def from_video(values: np.ndarray) -> np.ndarray:
    """The curve of BT.709 in [0, 1] -> linear light in [0, 1]."""
    return np.where(values < 0.081, values / 4.5, ((values + 0.099) / 1.099) ** (1 / 0.45))


def _xyz(x: float, y: float) -> np.ndarray:
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _to_xyz(space: tuple[tuple[float, float], ...]) -> np.ndarray:
    """(3, 3): linear RGB of a space -> XYZ, its white adapted to sRGB's (Bradford)."""
    columns, white = np.stack([_xyz(*p) for p in space[:3]], axis=1), _xyz(*space[3])
    matrix = columns * np.linalg.solve(columns, white)
    ours = BRADFORD @ _xyz(*SRGB[3])
    return np.linalg.solve(BRADFORD, np.diag(ours / (BRADFORD @ white)) @ BRADFORD) @ matrix


def matrix_of(space: tuple[tuple[float, float], ...]) -> np.ndarray:
    """(3, 3): linear RGB of a space -> linear sRGB. Rows add up to 1: white stays white.

    Raises:
        ValueError: the space's corners are no triangle around its white.
    """
    try:
        matrix = np.linalg.solve(_to_xyz(SRGB), _to_xyz(space))
    except (np.linalg.LinAlgError, ZeroDivisionError) as e:
        raise ValueError("no colours") from e
    if not np.isfinite(matrix).all() or np.linalg.det(matrix) <= 0:
        raise ValueError("no colours")
    return matrix


def convert(image: Image.Image, curve: Curve, matrix: np.ndarray, png: bytes = b"") -> Image.Image:
    """An RGB or RGBA picture: its values through the curve to linear light, the matrix, and sRGB's curve. png: its
    file, whose values of 16 bits are taken whole: of linear light, 8 bits leave few dark steps."""
    values, lower = np.array(image), _lower(png, image.size)
    most = 255 if lower is None else 65535
    linear = curve(np.arange(most + 1) / most)
    for top in range(0, len(values), ROWS):
        part = values[top : top + ROWS, :, :3]
        whole = part if lower is None else part.astype(np.uint16) << 8 | lower[top : top + ROWS]
        part[...] = np.round(to_srgb(linear[whole] @ matrix.T) * 255).astype(np.uint8)
    return Image.fromarray(values, image.mode)


def _lower(png: bytes, size: tuple[int, int]) -> np.ndarray | None:
    """(H, W, 3): the lower bytes of a PNG's values of 16 bits; None of another, or where it was read in another way,
    such as in a process of its own (`apart`)."""
    if png[24:25] != b"\x10" or is_crowded(png, "PNG"):
        return None
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as im:
            if im.size != size:
                return None
            if im.mode.startswith("I"):
                return (np.asarray(im)[:, :, None] & 255).repeat(3, axis=2)
            if im.tile[0].args == "LA;16B":  # grey, opacity: as many bytes as RGBA has
                im.tile = [t._replace(args="RGBA") for t in im.tile]
                return np.asarray(im)[:, :, 1:2].repeat(3, axis=2)
            im.tile = [t._replace(args=f"{im.mode};16L") for t in im.tile]
            return np.asarray(im.convert("RGB"))
    except MemoryError:
        raise
    except Exception:  # such as for a broken part that it was read without
        return None


def _grid(mode: str) -> Image.Image:
    """All corners and many values between of a mode's colours, as a picture."""
    steps = np.linspace(0, 255, 18).round().astype(np.uint8)
    channels = {"L": 1, "RGB": 3, "CMYK": 4}[mode]
    if channels == 1:
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    mesh = np.stack(np.meshgrid(*[steps[:: 1 if channels == 3 else 3]] * channels, indexing="ij"), axis=-1)
    return Image.fromarray(mesh.reshape(1, -1, channels), mode)


def _changes(before: Image.Image, after: Image.Image) -> bool:
    return bool(np.abs(np.asarray(before.convert("RGB"), int) - np.asarray(after.convert("RGB"), int)).max() > 1)


def by_profile(image: Image.Image, profile: bytes) -> Coloured:
    """A picture of mode L, RGB, RGBA, LA or CMYK by its ICC profile."""
    colours, alpha = image, None
    if image.mode in ("RGBA", "LA"):
        alpha = image.getchannel("A")
        colours = image.convert(image.mode[:-1])
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = getattr(own.profile, "xcolor_space", "").strip()
        if {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space) != colours.mode:
            return Coloured(image, ("Its colour profile is for other colours than its own and was ignored.",))
        intent = ImageCms.Intent(min(3, max(0, ImageCms.getDefaultIntent(own))))
        if ImageCms.isIntentSupported(own, intent, ImageCms.Direction.INPUT) != 1:
            intent = ImageCms.Intent.PERCEPTUAL
        transform = ImageCms.buildTransform(own, ImageCms.createProfile("sRGB"), colours.mode, "RGB", intent)
        tried = _grid(colours.mode)
        changes = colours.mode == "CMYK" or _changes(tried, _applied(transform, tried))
        done = _applied(transform, colours) if changes else colours
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
        return Coloured(image, ("Its colour profile is broken and was ignored.",))
    if not changes:
        return Coloured(image)
    if alpha is not None:
        done.putalpha(alpha)
    return Coloured(done, ("Its colours were converted to sRGB as its colour profile says.",))


def _applied(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    done = ImageCms.applyTransform(image, transform)
    assert done is not None
    return done


def png_colours(data: bytes) -> dict[bytes, bytes]:
    """Name -> content of a PNG's colour chunks, the first of each; of a broken one b"". A profile comes unpacked."""
    found: dict[bytes, bytes] = {}
    for name, body, right in png_chunks(data):
        if name == b"IDAT":
            break
        if name in PNG_COLOUR and name not in found:
            whole = right and len(body) == PNG_LENGTHS.get(name, len(body))
            found[name] = ((unpacked(body) or b"") if name == b"iCCP" else body) if whole else b""
    return found


def by_png(image: Image.Image, data: bytes) -> Coloured:
    """A picture of mode L, LA, RGB or RGBA by the colour chunks of its PNG's bytes."""
    said, broken = png_colours(data), []
    for name in [n for n, body in said.items() if not body]:
        del said[name]
        broken.append(f"Its {name.decode()} chunk is broken and was ignored.")
    if b"cICP" in said:
        done = _by_codes(image, said[b"cICP"], "cICP " + "/".join(map(str, said[b"cICP"])), data)
    elif b"iCCP" in said:
        done = by_profile(image, said[b"iCCP"])
    elif b"sRGB" in said:
        done = Coloured(image)
    else:
        done = _by_gamma(image, said.get(b"gAMA"), said.get(b"cHRM"), data)
    return Coloured(done.image, (*broken, *done.notes))


def _rgb(image: Image.Image) -> Image.Image:
    """As RGB or RGBA."""
    return image.convert("RGBA" if image.mode in ("LA", "RGBA") else "RGB")


def by_boxes(image: Image.Image, data: bytes) -> Coloured:
    """A picture of mode L, LA, RGB or RGBA by the codes in its AVIF's or HEIC's bytes; the decoder has undone the
    matrix. Where nothing is said it is sRGB, and video's curves mean sRGB's, as in viewers: cameras write them."""
    primaries, transfer = coded_colours(data) or (UNSAID, UNSAID)
    codes = (1 if primaries == UNSAID else primaries, 13 if transfer in (UNSAID, *VIDEO) else transfer)
    return _by_codes(image, (*codes, 0, 1), f"nclx {primaries}/{transfer}")


def _by_codes(image: Image.Image, codes: Sequence[int], code: str, png: bytes = b"") -> Coloured:
    """codes: of primaries, transfer, matrix and range. code: how they are named in sentences. png: as for `convert`."""
    primaries, transfer, matrix, whole_range = codes
    if (primaries, transfer, matrix, whole_range) == (1, 13, 0, 1):
        return Coloured(image)
    known = transfer in (13, *GAMMAS, *VIDEO)
    if primaries not in PRIMARIES or not known or matrix != 0 or whole_range != 1:
        kind = "HDR" if transfer in (16, 18) else "of a kind that is not known here"
        return Coloured(image, (f"Its colours are {kind} ({code}) and were read as sRGB.",))
    if transfer in GAMMAS:
        curve: Curve = lambda v: v ** GAMMAS[transfer]  # noqa: E731
    else:
        curve = from_srgb if transfer == 13 else from_video
    done = convert(_rgb(image), curve, matrix_of(PRIMARIES[primaries]), png)
    return Coloured(done, (f"Its colours were converted to sRGB as its codes say ({code}).",))


def _by_gamma(image: Image.Image, gamma: bytes | None, corners: bytes | None, png: bytes) -> Coloured:
    """gAMA is the exponent that the values were encoded with, times 100,000; cHRM white, red, green, blue likewise."""
    if gamma is None:
        return Coloured(image)  # browsers read cHRM alone past, as there is no curve to go with it
    exponent = struct.unpack(">I", gamma)[0] / 100_000
    if not 0.1 <= exponent <= 10:
        return Coloured(image, ("Its gAMA chunk makes no sense and was ignored.",))
    usual = abs(USUAL_GAMMA * exponent - 1) < NEAR_GAMMA
    space = None
    if corners is not None:
        x = [v / 100_000 for v in struct.unpack(">8I", corners)]
        white, *rest = zip(x[::2], x[1::2], strict=True)
        space = (*rest, white)
        if max(abs(a - b) for p, q in zip(space, SRGB, strict=True) for a, b in zip(p, q, strict=True)) < NEAR_XY:
            space = None
    if space is None:
        if usual:
            return Coloured(image)
        curve: Curve = lambda v: from_srgb(v ** (1 / (USUAL_GAMMA * exponent)))  # noqa: E731
        done = convert(_rgb(image), curve, np.eye(3), png)
        return Coloured(done, ("Its brightness was converted as its gAMA chunk says.",))
    try:
        matrix = matrix_of(space)
    except ValueError:
        return Coloured(image, ("Its cHRM chunk makes no sense and was ignored.",))
    done = convert(_rgb(image), lambda v: v ** (1 / exponent), matrix, png)
    return Coloured(done, ("Its colours were converted to sRGB as its gAMA and cHRM chunks say.",))
