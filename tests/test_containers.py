"""Files of very many parts: they are known without being gone through, and read in a process apart or not at all."""

from __future__ import annotations

import io
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image

from guda_core.data import apart, containers
from guda_core.data.apart import decoded
from guda_core.data.containers import MOST_PARTS, MOST_PASSES, PASS, PNG, is_crowded, needed
from guda_core.data.images import UPLOADS, hash_pixels
from guda_core.data.written_prompts import written_prompt
from guda_core.errors import ReportError
from guda_core.reports import restore
from guda_core.reports.picture_files import _split
from guda_core.reports.read import Report
from tests.test_imaging import NOISE, chunk, encoded

PICTURE = Image.fromarray(NOISE)
SOUND = {
    "PNG": encoded(PICTURE),
    "JPEG": encoded(PICTURE, "JPEG", progressive=True, exif=Image.Exif().tobytes()),
    "WEBP": encoded(PICTURE, "WEBP"),
}
JPEG = SOUND["JPEG"]


def passes(n: int) -> bytes:
    """The progressive JPEG with its last pass again and again, until it has n."""
    last = JPEG[JPEG.rfind(PASS) : -2]
    return JPEG[:-2] + last * (n - JPEG.count(PASS)) + JPEG[-2:]


def before(segments: bytes) -> bytes:
    """The JPEG with segments before its own."""
    return JPEG[:2] + segments + JPEG[2:]


CROWDED = {
    "passes": passes(MOST_PASSES + 1),
    "segments": before(b"\xff\xe1\0\x02" * MOST_PARTS),
    "markers alone": before(b"\xff\xd0" * MOST_PARTS),
    "fill": before(b"\xff" * 70_000),
    "chunks": SOUND["PNG"][:33] + chunk(b"abCd", b"") * MOST_PARTS + SOUND["PNG"][33:],
}


@pytest.mark.parametrize("kind", SOUND)
def test_usual_files_are_decoded_here_and_only_broken_ones_are_searched_for_what_they_need(kind, monkeypatch):
    for name in ("_in_a_process", "needed"):
        monkeypatch.setattr(apart, name, lambda *a: pytest.fail("it is an ordinary picture"))
    assert decoded(SOUND[kind], UPLOADS).image.size == PICTURE.size
    if kind == "JPEG":
        assert decoded(passes(MOST_PASSES), UPLOADS).image.size == PICTURE.size


@pytest.mark.parametrize("what", CROWDED)
def test_files_of_very_many_parts_are_read_apart(what, monkeypatch):
    data, sent = CROWDED[what], []
    monkeypatch.setattr(apart, "_in_a_process", lambda data, kind, limits: sent.append(kind))
    decoded(data, UPLOADS)
    assert sent == ["PNG" if what == "chunks" else "JPEG"]
    monkeypatch.setattr(Image, "open", lambda *a, **k: sent.append("opened"))
    assert written_prompt(data) is None and len(sent) == 1


def test_a_jpeg_of_many_passes_shows_what_it_holds():
    few, many = decoded(passes(MOST_PASSES), UPLOADS), decoded(passes(MOST_PASSES + 1), UPLOADS)
    assert np.array_equal(np.asarray(few.image), np.asarray(many.image))


class Watched(bytes):
    """Counts the bytes that are copied out of it."""

    copied = 0

    def __getitem__(self, at):
        found = super().__getitem__(at)
        Watched.copied += len(found) if isinstance(at, slice) else 0
        return found


@pytest.mark.parametrize("metadata", [b"\xff\xe1\xff\xe3", b"\xff\xed\xff\xd0", b"\xff" * 4])
def test_metadata_of_wrong_lengths_is_not_copied_again_and_again(metadata):
    data = Watched(before(metadata * 20_000))
    Watched.copied = 0
    assert len(needed(data, "JPEG")) <= len(data) and Watched.copied < 20 * len(data)


@pytest.mark.parametrize("kind", SOUND)
def test_what_is_looked_at_is_bounded(kind, monkeypatch):
    """So a file of more parts is as it is, or cut, and never a longer search."""
    part = {"PNG": chunk(b"abCd", b""), "JPEG": b"\xff\xfe\0\x02", "WEBP": b"abCd\0\0\0\0"}[kind]
    at = {"PNG": 33, "JPEG": 2, "WEBP": 12}[kind]
    data = SOUND[kind][:at] + part * 50 + SOUND[kind][at:]
    with Image.open(io.BytesIO(needed(data, kind))) as im:
        assert np.array_equal(np.asarray(im), np.asarray(Image.open(io.BytesIO(SOUND[kind]))))
    monkeypatch.setattr(containers, "MOST_PARTS", 50)
    found = needed(data, kind)
    assert found == data if kind == "JPEG" else len(found) < 64
    assert is_crowded(data, kind) == (kind != "WEBP") and not is_crowded(PNG, "PNG")


def test_a_report_s_pictures_of_very_many_parts_are_refused():
    for data, known in ((SOUND["PNG"], True), (CROWDED["chunks"], False)):
        told = {"size": list(PICTURE.size), "pixels_sha256": hash_pixels(NOISE)}
        report = Report({"picture": told}, data, {}, "")
        with nullcontext() if known else pytest.raises(ReportError, match=r"picture\.png is not the picture"):
            assert np.array_equal(restore.pixels(report), NOISE)
        with nullcontext() if known else pytest.raises(ReportError, match=r"x\.png does not hold the pictures"):
            assert len(_split(data, 2, "x.png")) == 2
