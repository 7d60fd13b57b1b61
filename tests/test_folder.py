"""Pictures from a folder: groups, captions, what is held out, and every fault in one sentence."""

from __future__ import annotations

from pathlib import Path, PurePath

import numpy as np
import pytest
import torch
from PIL import Image

from guda_core.data.captions import captioner_of
from guda_core.data.groups import load_group_set
from guda_core.data.sources.folder import Folder
from guda_core.data.sources.source import load_pictures, open_dataset
from guda_core.errors import DataError

SET = """
id: artists
name: Two artists
source: {id: folder, path: pictures, held_out: 0.25}
caption: "{content}, {phrase}"
groups:
  ann-lee: {name: Ann Lee, phrase: by Ann Lee}
  bo: {name: Bo, phrase: by Bo, source: {folder: Bo Chan}}
"""


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (40, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, format={".jpg": "JPEG"}.get(path.suffix.lower(), "PNG"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A group set with four pictures by Ann Lee and two by Bo; gives the folder of the pictures."""
    pictures = tmp_path / "artists" / "pictures"
    for i in range(4):
        paint(pictures / "ann-lee" / f"{i}.png", (60 * i, 0, 0))
    (pictures / "ann-lee" / "2.txt").write_text(" a red\n cat ", encoding="utf-8")
    paint(pictures / "Bo Chan" / "sea.jpg", (0, 0, 255))
    paint(pictures / "Bo Chan" / "Sky.PNG", (0, 128, 255))
    (pictures / "Bo Chan" / "notes.md").write_text("no picture")
    (pictures / "Bo Chan" / ".hidden.png").write_bytes(b"x")
    (tmp_path / "artists" / "group_set.yaml").write_text(SET, encoding="utf-8")
    return pictures


def dataset(root: Path, text: str = SET) -> Folder:
    (root.parent / "group_set.yaml").write_text(text, encoding="utf-8")
    found = open_dataset(load_group_set("artists", root.parent.parent))
    assert isinstance(found, Folder)
    return found


def test_every_picture_is_in_one_split_and_each_group_has_some_in_both(root):
    own = dataset(root)
    train, held = own.split("train"), own.split("held_out")
    assert [i.group for i in train] == ["ann-lee"] * 3 + ["bo"] and [i.group for i in held] == ["ann-lee", "bo"]
    ids = {f"ann-lee/{i}.png" for i in range(4)} | {"bo/sea.jpg", "bo/Sky.PNG"}
    assert {i.id for i in (*train, *held)} == ids and len(train) + len(held) == 6
    assert [i.id for i in own.split("pretrain")] == [i.id for i in train]
    assert own.plan() == [] and list(own.fetch()) == [(1.0, "nothing to fetch")]


def test_the_order_is_the_same_on_windows_and_a_caption_may_begin_with_a_byte_order_mark(root, monkeypatch):
    (root / "Bo Chan" / "sea.txt").write_text("the sea", encoding="utf-8-sig")
    own = dataset(root, SET.replace("0.25", "0.0"))
    before, fingerprint = [i.id for i in own.split("train")], own.fingerprint()
    monkeypatch.setattr(PurePath, "__lt__", lambda a, b: str(a).lower() < str(b).lower())  # as Windows orders paths
    own = dataset(root, SET.replace("0.25", "0.0"))
    assert [i.id for i in own.split("train")] == before and before[-2:] == ["bo/Sky.PNG", "bo/sea.jpg"]
    assert own.fingerprint() == fingerprint
    sea = own.split("train")[-1]
    assert captioner_of(own.group_set).caption(sea, torch.Generator()) == "the sea, by Bo"


def test_the_seed_chooses_what_is_held_out_and_a_new_picture_hardly_moves_it(root):
    held = {i.id for i in dataset(root).split("held_out")}
    seeds = [{i.id for i in dataset(root, SET.replace("0.25", f"0.25, seed: {s}")).split("held_out")} for s in range(8)]
    assert held == seeds[0] and len({frozenset(s) for s in seeds}) > 1
    paint(root / "ann-lee" / "new.png", (0, 255, 0))
    now = {i.id for i in dataset(root).split("held_out")}
    assert len(held - now) <= 1


def test_nothing_is_held_out_where_the_share_is_nought_or_a_group_has_one_picture(root):
    assert dataset(root, SET.replace("0.25", "0.0")).split("held_out") == []
    (root / "Bo Chan" / "sea.jpg").unlink()
    assert [i.group for i in dataset(root).split("held_out")] == ["ann-lee"]


def test_pictures_are_opened_when_asked_for_and_fitted_into_white(root):
    item = next(i for i in dataset(root, SET.replace("0.25", "0.0")).split("train") if i.id == "ann-lee/3.png")
    pixels = item.image(16)
    assert pixels.shape == (16, 16, 3) and (pixels[:4] == 255).all() and (pixels[4:12] == (180, 0, 0)).all()
    loaded = load_pictures(load_group_set("artists", root.parent.parent), "train", 8)
    assert loaded.pixels.shape == (6, 8, 8, 3) and loaded.pixels.dtype == np.uint8


def test_captions_stand_beside_the_pictures_and_the_phrase_is_added(root):
    own = dataset(root, SET.replace("0.25", "0.0"))
    captioner, g = captioner_of(own.group_set), torch.Generator()
    said = {i.id: captioner.caption(i, g) for i in own.split("train")}
    assert said["ann-lee/2.png"] == "a red cat, by Ann Lee" and said["bo/sea.jpg"] == "by Bo"


def test_the_fingerprint_sees_pictures_captions_names_and_groups(root):
    seen = {dataset(root, SET.replace("0.25", "0.0")).fingerprint()}
    (root / "ann-lee" / "1.txt").write_text("a dog")
    seen.add(dataset(root).fingerprint())
    (root / "ann-lee" / "1.png").rename(root / "ann-lee" / "9.png")
    seen.add(dataset(root).fingerprint())
    paint(root / "ann-lee" / "0.png", (1, 2, 3))
    seen.add(dataset(root).fingerprint())
    assert len(seen) == 4 and dataset(root).fingerprint("held_out") not in seen


def test_faults_are_named(root):
    own = dataset(root, SET.replace("0.25", "0.0"))
    with pytest.raises(DataError, match=r"no split 'test'"):
        own.split("test")
    (root / "ann-lee" / "2.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"2\.txt is not readable as UTF-8"):
        own.split("train")
    (root / "ann-lee" / "2.txt").unlink()
    (root / "ann-lee" / "2.png").write_bytes(b"no picture")
    item = own.split("train")[2]
    with pytest.raises(DataError, match=r"2\.png: Only PNG, JPEG, WebP, AVIF, TIFF and HEIC"):
        item.image(8)
    for path in (root / "Bo Chan").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="has no pictures"):
        own.split("train")
    (root / "Bo Chan").rmdir()
    with pytest.raises(DataError, match="there is no such folder"):
        own.split("train")
