"""Pictures that show the same though their files differ: found wherever they stand, and nothing else is."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from guda_core.cli.groups_check import copies_said
from guda_core.data.dataset import Pictures
from guda_core.data.own import near
from guda_core.data.own.near import NEAR, SHARE, Alike, Copies, alike, find_copies
from tests.own_pictures import guda

NONE = Pictures(np.zeros((0, 32, 32, 3), np.uint8), (), ())


def scenes(n: int, *, contrast: float = 60.0) -> np.ndarray:
    """(n, 32, 32, 3) uint8, each of its own."""
    rng = np.random.default_rng(n)
    rough = np.kron(rng.normal(128, contrast, (n, 8, 8, 3)), np.ones((1, 4, 4, 1)))
    return rough.clip(0, 255).astype(np.uint8)


def drawn(path, number: int, size=(240, 160), **more) -> None:
    """A drawing: shapes on a coloured ground, saved in a size and kind."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:160, :240]
    pixels = np.full((160, 240, 3), rng.integers(0, 256, 3), np.uint8)
    for _ in range(6):
        cx, cy, r = rng.integers(0, 240), rng.integers(0, 160), rng.integers(15, 60)
        pixels[(x - cx) ** 2 + (y - cy) ** 2 < r * r] = rng.integers(0, 256, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path, **more)


def in_words(thumbnails: np.ndarray) -> set[tuple[int, int]]:
    """The same by the definition, pair by pair."""
    x = thumbnails.astype(float)
    spread = [v.reshape(-1, 3).var(axis=0).mean() for v in x]
    found = set()
    for i in range(len(x)):
        for j in range(i):
            d2 = np.mean((x[i] - x[j]) ** 2)
            if d2 <= NEAR**2 and d2 <= SHARE * (spread[i] + spread[j]):
                found.add((j, i))
    return found


@pytest.mark.parametrize("many", [0, 10**9])
def test_the_pairs_are_those_of_the_definition_in_blocks_and_by_products(monkeypatch, many):
    """Noise from nothing to clearly more than the border, on strong and pale pictures, over several blocks."""
    monkeypatch.setattr(near, "ROWS", 16)
    monkeypatch.setattr(near, "PAIRS", 7)
    monkeypatch.setattr(near, "MANY", many)
    rng, made = np.random.default_rng(1), []
    for k, one in enumerate(np.concatenate([scenes(25), scenes(15, contrast=6.0)])):
        made.append(one)
        noisy = one + rng.normal(0, 0.5 * (k % 25), one.shape)
        made.append(noisy.clip(0, 255).astype(np.uint8))
    thumbnails = np.stack(made)
    expected = in_words(thumbnails)
    assert 10 < len(expected) < 40 and len({b - a for a, b in expected}) == 1  # else pairs would chain
    assert {(a, b) for a, b in alike(thumbnails)} == expected


def test_equal_pictures_are_together_however_many():
    thumbnails = scenes(3)[[0, 1, 0, 2, 0]]
    assert alike(thumbnails) == [[0, 2, 4]]
    assert alike(thumbnails[:1]) == [] and alike(thumbnails[:0]) == []


def test_what_matters_is_two_groups_or_two_sides_of_one():
    x = scenes(6)
    train = Pictures(x[[0, 1, 2, 3, 3]], ("a", "a", "b", "b", "b"), ("0", "1", "2", "3", "3 again"))
    held = Pictures(x[[0, 1, 5]], ("a", "b", "b"), ("0 held", "1 elsewhere", "5"))
    found = find_copies(train, held).found
    assert set(found) == {
        Alike(("a/0", "a/0 held"), between=False, leaked=True),
        Alike(("a/1", "b/1 elsewhere"), between=True, leaked=False),
    }
    assert find_copies(NONE, NONE).found == ()


def test_check_finds_scaled_and_recompressed_copies_and_nothing_else(home, tmp_path):
    root = tmp_path / "studio"
    for artist in range(2):
        for k in range(12):
            drawn(root / "AB"[artist] / f"{k}.png", 100 * artist + k)
    drawn(root / "B" / "small.jpg", 3, size=(120, 80), quality=70)  # A's fourth, half as large
    drawn(root / "A" / "large.webp", 7, size=(480, 320), quality=50)  # A's eighth, twice as large
    guda("groups", "new", root, "--name", "two", "--held-out", "0", "--phrase", "")
    listed = home / "sets" / "two" / "pictures.jsonl"
    rows = [json.loads(line) for line in listed.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["held_out"] = row["picture"] in ("A/large.webp", "B/5.png")
    listed.write_text("".join(f"{json.dumps(r)}\n" for r in rows), encoding="utf-8")
    said = guda("groups", "check", "two", "--json", tmp_path / "found.json")
    assert "1 picture stands in more than one group, the same or nearly: a/A/3.png = b/B/small.jpg." in said
    assert "1 picture is both trained on and held out, the same or nearly: a/A/7.png = a/A/large.webp." in said
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert [c["pictures"] for c in found["copies"]] == [["a/A/3.png", "b/B/small.jpg"], ["a/A/7.png", "a/A/large.webp"]]
    assert found["groups"]["b"] == {"trained_on": 12, "held_out": 1, "with_caption": 0} and found["not_opened"] == []
    quiet = guda("groups", "check", "two", "--no-copies", "--json", tmp_path / "quick.json")
    assert "the same or nearly" not in quiet and "copies" not in json.loads((tmp_path / "quick.json").read_text())
    assert "cannot be written" in guda("groups", "check", "two", "--json", tmp_path, code=2)


def test_a_picture_that_cannot_be_opened_is_named_and_the_others_are_compared(home, tmp_path):
    for artist in "AB":
        for k in range(3):
            drawn(tmp_path / "s" / artist / f"{k}.png", k if artist == "A" else 50 + k)
    drawn(tmp_path / "s" / "B" / "again.jpg", 1)
    guda("groups", "new", tmp_path / "s", "--name", "two", "--held-out", "0", "--phrase", "")
    (tmp_path / "s" / "A" / "0.png").write_bytes(b"no picture")
    said = guda("groups", "check", "two", "--sheet", tmp_path / "sheet.png", code=2)
    assert "a/A/0.png (The picture A/0.png was changed after it was listed)" in said
    assert "a/A/1.png = b/B/again.jpg" in said


def test_of_many_copies_ten_are_named_and_the_others_counted():
    found = tuple(Alike((f"a/{k}", f"b/{k}", *[f"c/{j}" for j in range(k)]), True, False) for k in range(12))
    (said,) = copies_said(Copies(found))
    assert said.startswith("12 pictures stand in more") and "a/9" in said and "a/10" not in said
    assert "; and 2 more." in said and "c/1 and 5 more" in said
