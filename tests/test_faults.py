"""Bad input as a caller of the running app meets it: refused with a sentence, or accepted with a word on what was done;
and nothing but the upload stays behind. Faults
of the server: test_faults_server."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from gradio_client.exceptions import AppError
from PIL import Image

from guda_core.data.prompts import MAX_PROMPT
from guda_core.ui import words
from tests.fakes import WAIT, FakeService
from tests.served import App, opened
from tests.test_imaging import (  # fmt: skip
    ACCEPTED,
    BAD,
    BROKEN_EXIF,
    EXACT,
    NOISE,
    RED,
    SIZE,
    TURNED,
    encoded,
    flat,
    halves,
    quarters,
    turned,
)
from tests.test_ui_api import DRAW, OPTIONS, file_data, text

pytestmark = pytest.mark.filterwarnings(
    "ignore::pandas.errors.Pandas4Warning",  # gradio's use of pandas 3
    "ignore:Corrupt EXIF data",  # Pillow's own word
)
AT_THE_DOOR = "larger than 25 MB"  # refused by the upload itself: test_ui_api


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """Pictures are really prepared; the scores are made up."""
    yield from opened(tmp_path_factory.mktemp("app"), FakeService())


# ---- pictures


DISGUISED = [(c, "picture.webp") for c in ("video", "eps", "svg", "gif")]


@pytest.mark.parametrize(("case", "name"), [*((c, "picture.png") for c in BAD if c != AT_THE_DOOR), *DISGUISED])
def test_refused_with_a_sentence_before_anybody_decodes_it_and_only_the_upload_is_kept(case, name, app, monkeypatch):
    data, sentence = BAD[case]
    decoded, load = [], Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda im: decoded.append(im.size) or load(im))
    before = app.kept()
    with pytest.raises(AppError, match=sentence) as told:
        app.attribute(data, name)
    assert str(told.value).endswith(".") and "Traceback" not in str(told.value)
    assert decoded == []
    assert all(p.name == name and p.read_bytes() == data for p in app.kept() - before)  # as it came, swept with time


@pytest.mark.parametrize("kind", EXACT)
def test_a_truncated_file_is_refused(kind, app):
    data = encoded(Image.fromarray(NOISE), kind)
    with pytest.raises(AppError, match="damaged or cut off"):
        app.attribute(data[: len(data) * 6 // 10])


def shown(out: dict[str, Any]) -> Image.Image:
    """The prepared picture that the page shows."""
    found = re.search(r'src="data:image/png;base64,([^"]+)"', out["picture"])
    assert found is not None
    im = Image.open(io.BytesIO(base64.b64decode(found[1])))
    im.load()
    return im


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted_and_said_what_was_done(case, app):
    data, said, (left, right) = ACCEPTED[case]
    before = app.kept()
    out = app.attribute(data)
    pixels, notes = np.asarray(shown(out)).astype(int), text(out["notes"])
    assert all(s in notes for s in said), notes
    assert pixels.shape == (SIZE, SIZE, 3)
    for x, colour in ((4, left), (SIZE - 5, right)):
        assert np.abs(pixels[SIZE // 2, x] - colour).max() <= 2
    assert all(p.read_bytes() == data for p in app.kept() - before)


@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation_is_applied_and_metadata_stripped(orientation, app):
    out = app.attribute(turned(orientation, "JPEG"))
    im = shown(out)
    assert np.abs(np.asarray(im).astype(int) - quarters()).max() <= 3
    assert ("turned upright" in out["notes"]) == (orientation != 1)
    assert "Metadata was left out (EXIF)." in text(out["notes"])
    assert not im.getexif() and not im.info


@pytest.mark.parametrize("block", BROKEN_EXIF)
@pytest.mark.parametrize("kind", EXACT)
def test_broken_exif_is_ignored(block, kind, app):
    out = app.attribute(encoded(flat(RED), kind, exif=block, **EXACT[kind]))
    assert np.abs(np.asarray(shown(out)).astype(int) - RED).max() <= 2
    assert "upright" not in out["notes"]


# ---- prompts and options


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("a" * (MAX_PROMPT + 1), f"{MAX_PROMPT:,} characters at most; this one has {MAX_PROMPT + 1:,}"),
        ("a\0b", "control character U+0000"),
        ("a\x07b", "control character U+0007"),
        ("a\x1b[31mb", "control character U+001B"),
    ],
)
def test_prompts_and_captions_are_capped_and_without_control_characters(prompt, sentence, app):
    with pytest.raises(AppError, match=re.escape(sentence)):
        app.visitor.generate(prompt=prompt)
    with pytest.raises(AppError, match=re.escape(sentence)):
        app.attribute(encoded(halves()), caption=prompt)


def test_the_longest_prompt_is_still_accepted(app):
    assert "a" * MAX_PROMPT in app.visitor.generate(prompt="a" * MAX_PROMPT, methods=["clip"])["notes"]


NAN, INF = float("nan"), float("inf")
WRONG = [
    *(("seed", v) for v in (-1, 2**32, 1.5, NAN, INF, "one", [1])),
    *(("steps", v) for v in (0, -5, 201, 10**9, NAN, INF, "five")),
    *(("guidance", v) for v in (0.5, -1, 20.5, NAN, INF, "much")),
    *(("methods", v) for v in (["magic"], ["clip", "magic"], "clip", [])),
    *(("effort", v) for v in ("huge", "", 3)),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_options_out_of_range_or_unknown_are_refused_and_nothing_is_computed(name, value, app, monkeypatch):
    started = []
    monkeypatch.setattr(app.service, "_answers", lambda *a: started.append(a) or iter(()))
    answer = app.send("generate_and_attribute", *{**DRAW, **OPTIONS, name: value}.values())
    assert "event: error" in answer and "event: complete" not in answer, answer
    assert started == [] and "Traceback" not in answer and "site-packages" not in answer
    assert words.FAULT not in answer


def test_an_unknown_style_or_object_is_refused(app):
    """No endpoint takes a style; the page's own event for it does."""
    config = httpx.get(f"{app.url}config", timeout=WAIT).json()
    labels = {c["id"]: c["props"].get("label") for c in config["components"]}
    fill = next(d for d in config["dependencies"] if [labels[i] for i in d["inputs"]][:2] == ["Object", "Style"])

    def filled(*data: str) -> httpx.Response:
        asked = {"data": [*data, None], "fn_index": fill["id"], "session_hash": "x"}
        return httpx.post(f"{app.url}gradio_api/run/predict", json=asked, timeout=WAIT)

    known = filled("rocket", "openmoji")
    assert known.status_code == 200 and "rocket" in known.json()["data"][0]
    for wrong in (("rocket", "picasso"), ("dragon-of-nobody", "openmoji")):
        assert filled(*wrong).status_code == 500


def test_a_picture_that_is_no_upload_is_refused_by_every_endpoint_that_takes_one(app):
    for name in ("attribute", "report"):
        for path in ("/etc/passwd", "https://example.com/a.png", "data:image/png;base64,AAAA"):
            answer = app.send(name, file_data(path), "", ["clip"], "quick")
            assert "event: error" in answer and "event: complete" not in answer
