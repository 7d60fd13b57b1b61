"""What a link to the page shows elsewhere: marks with the page's own address, and a picture of its own."""

from __future__ import annotations

import io
import re
from html import escape

import httpx
import pytest
from PIL import Image

from guda_core.ui import words
from guda_core.ui.card import PICTURE, SIZE, filled
from tests.fakes import WAIT, FakeService, serving

pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # gradio's use of pandas 3


def marks(html: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, content in re.findall(r'<meta\s+(?:property|name)="([^"]+)"\s+content="([^"]*)"', html):
        found.setdefault(name, []).append(content)
    return found


def test_the_page_has_one_mark_of_each_kind_and_its_picture_is_there():
    service = FakeService()
    with serving(service) as url:
        page = httpx.get(url, timeout=WAIT)
        found = marks(page.text)
        image = httpx.get(found["og:image"][0], timeout=WAIT)
        proxied = httpx.get(url, headers={"x-forwarded-host": "a.test", "x-forwarded-proto": "https"}, timeout=WAIT)
        strange = httpx.get(url, headers={"x-forwarded-host": 'a"><script>x</script>'}, timeout=WAIT)
        head = httpx.head(url, timeout=WAIT)
    own = {k: v for k, v in found.items() if k.startswith(("og:", "twitter:")) or k == "description"}
    assert all(len(v) == 1 for v in own.values())
    assert own["og:title"] == [escape(f"{service.model_name}: {words.TITLE}")]
    assert own["og:description"] == own["description"] == [escape(words.PURPOSE)]
    assert own["og:url"] == [url] and own["og:image"] == [f"{url.rstrip('/')}{PICTURE}"]
    assert "gradio.app" not in "".join(v for values in own.values() for v in values) and head.status_code == 200
    assert int(page.headers["content-length"]) == page.num_bytes_downloaded
    assert marks(proxied.text)["og:image"] == [f"https://a.test{PICTURE}"]
    assert "<script>x</script>" not in strange.text
    with Image.open(io.BytesIO(image.content)) as im:
        assert im.size == SIZE and len(im.getcolors(1_000_000) or []) > 4
    assert image.headers["content-type"] == "image/png" and len(image.content) < 100_000


def test_a_page_without_marks_gets_them():
    found = marks(filled("<html><head><title>x</title></head></html>", "http://h"))
    assert found["og:title"] == [escape(words.TITLE)] and found["og:image"] == [f"http://h{PICTURE}"]
