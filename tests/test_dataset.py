"""Items, pictures in memory and datasets: alignment, order, sizes and hashes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from guda_core.data import dataset
from guda_core.data.dataset import Item, Pictures, batches, described, fitted, in_memory
from guda_core.errors import DataError

NOISE = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)


def pictures() -> Pictures:
    pixels = np.stack([np.full((2, 2, 3), v, np.uint8) for v in (1, 2, 3)])
    return Pictures(pixels, ("a", "a", "b"), ("cat", "dog", "cat"))


def test_where_keeps_order_and_alignment():
    cats = pictures().where(lambda g, o: o == "cat")
    assert (len(cats), cats.groups, cats.names) == (2, ("a", "b"), ("cat", "cat"))
    assert cats.pixels[:, 0, 0, 0].tolist() == [1, 3]
    none = pictures().where(lambda g, o: False)
    assert (len(none), none.pixels.shape) == (0, (0, 2, 2, 3))


def test_sha256_sees_pixels_names_and_order():
    base = pictures()
    expected = hashlib.sha256()
    for g, o, v in (("a", "cat", 1), ("a", "dog", 2), ("b", "cat", 3)):
        expected.update(f"{g}/{o}\n".encode() + bytes([v] * 12))
    assert base.sha256() == expected.hexdigest()
    others = [
        Pictures(base.pixels + 1, base.groups, base.names),
        Pictures(base.pixels, ("a", "b", "b"), base.names),
        Pictures(base.pixels, base.groups, ("cat", "dog", "cow")),
        Pictures(base.pixels[::-1], base.groups[::-1], base.names[::-1]),
    ]
    assert len({base.sha256(), *(o.sha256() for o in others)}) == 5


def test_captions_enter_the_hash_only_where_there_are_some():
    base = pictures()
    captioned = [Pictures(base.pixels, base.groups, base.names, captions=c) for c in (("x", "y", "z"), ("x", "y", ""))]
    assert len({base.sha256(), *(c.sha256() for c in captioned)}) == 3


def test_items_are_the_rows():
    own = Pictures(NOISE, ("a", "a", "b"), ("1", "2", "1"), ("cat", "", "dog"), ("my cat", "", "his dog"))
    assert [(i.id, i.group, i.concept, i.caption) for i in own] == [
        ("a/1", "a", "cat", "my cat"), ("a/2", "a", "", ""), ("b/1", "b", "dog", "his dog")
    ]  # fmt: skip
    for item, pixels in zip(own, NOISE, strict=True):
        assert (item.image(8) == pixels).all()
        assert (item.image(4) == np.asarray(Image.fromarray(pixels).resize((4, 4), Image.Resampling.LANCZOS))).all()
    assert own[-1].id == "b/1" and [i.id for i in own[1:]] == ["a/2", "b/1"]


def test_without_concepts_the_names_tell():
    assert [(i.concept, i.caption) for i in pictures()] == [("cat", ""), ("dog", ""), ("cat", "")]


def test_what_does_not_align_is_refused():
    with pytest.raises(DataError, match=r"equally many; got \[3, 3, 2\]"):
        Pictures(NOISE, ("a", "a", "b"), ("1", "2"))


def test_a_fitting_size_is_not_resampled():
    one = NOISE[0]
    assert fitted(one, 8) is one


def lazy(opened: list[str]) -> list[Item]:
    def read(i: int, size: int) -> np.ndarray:
        opened.append(f"{i} at {size}")
        return fitted(NOISE[i], size)

    return [
        Item(f"{g}/{n}", g, c, read=lambda size, i=i: read(i, size))
        for i, (g, n, c) in enumerate((("a", "x", ""), ("a", "y", "a cat"), ("b", "x", "")))
    ]


def test_items_are_opened_only_when_asked_for_and_gathered_into_arrays():
    opened: list[str] = []
    items = lazy(opened)
    assert opened == []
    own = in_memory(items, 4)
    assert opened == ["0 at 4", "1 at 4", "2 at 4"]
    assert (own.groups, own.names, own.captions) == (("a", "a", "b"), ("x", "y", "x"), ("", "a cat", ""))
    assert [i.id for i in own] == [i.id for i in items] and own.pixels.shape == (3, 4, 4, 3)
    assert in_memory(own, 4) is own and in_memory(own, 8).pixels.shape == (3, 8, 8, 3)
    with pytest.raises(DataError, match="no pictures in this split"):
        in_memory([], 4)


def test_batches_open_no_more_than_they_give():
    opened: list[str] = []
    stream = batches(lazy(opened), 8, 2)
    assert (next(stream) == NOISE[:2]).all() and len(opened) == 2
    assert (next(stream) == NOISE[2:]).all() and list(stream) == []


def test_an_item_without_a_picture_says_so():
    item = described("noto", "cat")
    assert (item.id, item.group, item.concept) == ("noto/cat", "noto", "cat")
    with pytest.raises(DataError, match="'noto/cat' has no picture"):
        item.image(8)


def test_many_pictures_lie_on_the_disk_and_are_the_same(monkeypatch):
    usual = in_memory(lazy([]), 4)
    monkeypatch.setattr(dataset, "LARGE", 0)
    large = in_memory(lazy([]), 4)
    assert isinstance(large.pixels, np.memmap) and not isinstance(usual.pixels, np.memmap)
    assert np.array_equal(large.pixels, usual.pixels) and large.sha256() == usual.sha256()
    assert large.at([1]).pixels.shape == (1, 4, 4, 3)
    assert large.file_bytes == large.pixels.nbytes == 3 * 4 * 4 * 3 and usual.file_bytes == 0
    wide = [Item(i.id, i.group, read=i.read, whole=lambda size: np.zeros((2, 4, 3), np.uint8)) for i in lazy([])]
    assert in_memory(wide, 4, seen=True).file_bytes == large.file_bytes  # each in its own shape

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(DataError, match="Set TMPDIR to a folder with more room"):
        in_memory(lazy([]), 4)
