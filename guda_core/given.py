"""What callers of the library give: looked at before anything is loaded, and brought into one form."""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, cast

from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from guda_core import paths
from guda_core.data.decoding import ORIENTATION, grey_16, load
from guda_core.data.images import FromMemory, read_file
from guda_core.errors import ImageError, ModelError, OptionError, UnreadError

SEE_THROUGH = {"RGBa": "RGBA", "La": "LA", "PA": "RGBA"}  # modes that no PNG holds -> with the same colours
OTHER_COLOURS = ("F", "HSV", "I", "LAB")  # modes whose colours are not those of a profile, once they are RGB
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # of pictures that a PNG holds as they are
URL = re.compile(r"[a-z][a-z0-9+.-]+:[/\\]", re.I)  # also as Path writes it; a drive of Windows has one letter
Place = str | os.PathLike[str]
Picture = Place | bytes | Image.Image


def plain(value: Any) -> Any:
    """A number in Python's own type, such as one of numpy's; anything else as it is."""
    if type(value) in (bool, int) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def names(given: str | Iterable[str], what: str) -> list[str]:
    """A list of texts, each once; one alone may be given as it is. Raises OptionError for anything else."""
    found = [given] if isinstance(given, str) else list(given) if isinstance(given, Iterable) else None
    if found is None:
        raise OptionError(f"{what} must be a list of texts; got {type(given).__name__}.")
    if others := [name for name in found if not isinstance(name, str)]:
        raise OptionError(f"{what} must be a list of texts; it holds a value of type {type(others[0]).__name__}.")
    return list(dict.fromkeys(found))


def check_texts(given: Mapping[str, Any]) -> None:
    """Raises OptionError: one of these is neither a text nor None."""
    for what, value in given.items():
        if not isinstance(value, str | None):
            raise OptionError(f"{what} must be a text; got {type(value).__name__}.")


def check_callable(given: Callable | None, what: str) -> None:
    """Raises OptionError: it is no function."""
    if given is not None and not callable(given):
        raise OptionError(f"{what} must be a function; got {type(given).__name__}.")


def count(given: int | None, what: str) -> int | None:
    """A whole number in Python's own type, or None. Raises OptionError for anything else."""
    found = plain(given)
    if found is not None and type(found) is not int:
        raise OptionError(f"{what} must be a whole number; got {given!r:.60}.")
    return found


def path_of(given: Place, what: str) -> Path:
    """A path, with ~ read. Raises OptionError for what is none, such as an empty text."""
    if not isinstance(given, str | os.PathLike) or not str(os.fspath(given)).strip():
        shown = "an empty text" if isinstance(given, str) else type(given).__name__
        raise OptionError(f"{what} must be a path; got {shown}.")
    return paths.at_home(os.fsdecode(given))


def place_of(given: Place, what: str) -> str:
    """A path or a URL as a text, with ~ read. Raises OptionError for what is neither, such as an empty text, and for a
    URL as a Path, which has lost one of its slashes."""
    path_of(given, what)
    named = os.fsdecode(given)
    if not isinstance(given, str) and URL.match(named):
        raise OptionError(f"{what}: {named} is a URL in a {type(given).__name__}. Give it as a text.")
    return str(paths.at_home(named)) if named.startswith("~") else named


def path_or_none(given: Place | None, what: str) -> Path | None:
    """Likewise; None where nothing is given."""
    return None if given is None else path_of(given, what)


def set_name(given: object) -> str | None:
    """The name of a group set. Raises OptionError for what is none."""
    if given is not None and not isinstance(given, str):
        raise OptionError(f"A group set is given by its name, or as load_groups gives it; got {type(given).__name__}.")
    return given


def model_name(given: Place | None) -> str | None:
    """A model's name, or its path as a text.

    Raises:
        OptionError: it is neither. ModelError: there is nothing at the path.
    """
    if not isinstance(given, str | os.PathLike | None):
        raise OptionError(f"A model is given by its name, or as load_model gives it; got {type(given).__name__}.")
    if given is None or isinstance(given, str):
        return given
    if not paths.is_there(whole := paths.at_home(os.fsdecode(given)).absolute()):
        raise ModelError(f"There is no model {os.fspath(given)}: there is nothing at {whole}.")
    return str(whole)  # never the id of a card


def picture_bytes(picture: Picture) -> bytes:
    """The bytes of a picture's file; of a PIL image those of a PNG (of CMYK a TIFF) with the same pixels, colours and
    orientation.

    Raises:
        OptionError: it is no picture. ImageError: there is none, or it cannot be read.
    """
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | os.PathLike):
        path = path_of(picture, "The picture")
        if not paths.is_there(path):
            raise ImageError(_no_picture(os.fsdecode(picture), path))
        if paths.is_folder(path):
            raise ImageError(f"{path} is a folder, not a picture. attribute_many scores all pictures of a folder.")
        return read_file(path)
    if not isinstance(picture, Image.Image):
        raise OptionError(
            f"A picture is a path, bytes or a PIL image; got {type(picture).__name__}. Of a NumPy array, give "
            'PIL.Image.fromarray(ARRAY); of a file that is open as "rb", FILE.read().'
        )
    out = io.BytesIO()
    try:
        load(picture, _not_loaded(picture))  # which turns a TIFF upright, and its EXIF then says so
        if picture.mode in ("F", "I"):
            _check_range(picture)
        clear = picture.convert(mode) if (mode := SEE_THROUGH.get(picture.mode)) else picture
        if clear.mode.startswith("I;16") and "transparency" not in clear.info:  # in any order of bytes
            clear = Image.fromarray(grey_16(clear).astype("<u2"))
        profile = None if picture.mode in OTHER_COLOURS else picture.info.get("icc_profile")
        if clear.mode == "CMYK":  # which no PNG holds, and whose profile tells its colours
            turn = _exif(picture, ORIENTATION)  # the rest would be taken for the new file's own, such as its width
            clear.save(out, format="TIFF", compression="tiff_adobe_deflate", icc_profile=profile, exif=turn)
            return FromMemory(out.getvalue())
        as_it_is = clear if clear.mode in PNG_MODES else clear.convert("RGB")
        how = {"icc_profile": profile, "exif": _exif(picture), "pnginfo": _curve(picture)}
        as_it_is.save(out, format="PNG", compress_level=1, **how)  # a large one takes half a minute by the usual level
    except (OSError, ValueError) as e:  # such as a closed one, or a file that is cut off
        raise ImageError(f"This PIL image cannot be read ({e}). Open it again, or give the file's path.") from e
    return FromMemory(out.getvalue())


def _no_picture(given: str, path: Path) -> str:
    """What is said of a picture that is not there."""
    if URL.match(given):
        return (
            f"{given} is a URL, and one picture is read from files alone. Download it, or give its bytes. "
            "attribute_many reads URLs."
        )
    whole = path.absolute()
    return f"There is no picture {given}{'' if str(whole) == given else f': there is nothing at {whole}'}."


def original_bytes(given: Place | bytes | None) -> bytes | None:
    """The bytes of the file that was scored, to be put into a report: of its path, or as they are.

    Raises:
        OptionError: it is no path. UnreadError: there is no such file, or it cannot be read. ImageError: it is too
            large.
    """
    if given is None or isinstance(given, bytes):
        return given
    path = path_of(given, "original")
    if not paths.is_file(path):
        raise UnreadError(f"original: there is no file {path.absolute()}.")
    return read_file(path)


def _not_loaded(picture: Image.Image) -> bytes:
    """The file of a PNG with a see-through colour, whose pixels were not loaded yet; b"" of any other."""
    if not isinstance(picture, PngImageFile) or not picture.tile or picture.fp is None or picture.tell():
        return b""
    if "transparency" not in picture.info:
        return b""
    at = picture.fp.tell()
    picture.fp.seek(0)
    data = picture.fp.read()
    picture.fp.seek(at)
    return data


def _curve(picture: Image.Image) -> PngInfo:
    """How its values stand for light, where a PNG's chunks said so."""
    out, said = PngInfo(), picture.info
    if isinstance(gamma := said.get("gamma"), float) and "srgb" not in said:
        out.add(b"gAMA", struct.pack(">I", round(gamma * 100_000)))
        if corners := said.get("chromaticity"):
            out.add(b"cHRM", struct.pack(">8I", *(round(v * 100_000) for v in corners)))
    return out


def _exif(picture: Image.Image, *tags: int) -> bytes:
    """Its EXIF, or only these tags of it; none where it cannot be written."""
    try:
        found, out = picture.getexif(), Image.Exif()
        out.update({k: found[k] for k in tags if k in found})
        out = out if tags else found
        return out.tobytes() if out else b""
    except (struct.error, TypeError, ValueError, SyntaxError, OverflowError, KeyError):
        return b""


def _check_range(picture: Image.Image) -> None:
    """Raises ImageError where the numbers of an image of mode F or I are not those of 8 bits."""
    low, high = cast(tuple[float, float], picture.getextrema() or (0, 0))  # None: it has no pixels
    if not (low >= 0 and (1 if picture.mode == "F" else -1) < high <= 255):
        raise ImageError(
            f"The numbers of this PIL image of mode {picture.mode} go from {low:g} to {high:g}, where 0 and 255 are "
            "black and white. Give Image.fromarray(ARRAY) with an array of uint8, 0 to 255."
        )
