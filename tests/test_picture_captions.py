"""Captions that a network writes: of pictures that have none, kept with its name, gone on with, refused in words."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, BlipForConditionalGeneration

from guda_core.data.groups import load_group_set
from guda_core.data.own.picture_captions import PictureCaptioner, captioned
from guda_core.data.own.picture_list import FILE
from guda_core.data.sources.source import open_dataset
from guda_core.errors import GroupSetError, ModelError, NoMemoryError
from guda_core.paths import sets
from tests.own_pictures import guda
from tests.tiny_blip import WORDS, save_tiny_blip


@pytest.fixture
def artists(home, tmp_path):
    """Two artists with three pictures each, one of which has a caption."""
    for i, name in enumerate(("Ann Lee", "Bo Chan")):
        (tmp_path / "artists" / name).mkdir(parents=True)
        for k in range(3):
            pixels = np.random.default_rng(10 * i + k).integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "artists" / name / f"{k}.png")
    (tmp_path / "artists" / "Ann Lee" / "0.txt").write_text("a written caption")
    guda("groups", "new", tmp_path / "artists", "--resolution", "32")
    return tmp_path / "artists"


def listed():
    lines = (sets().own("artists") / FILE).read_text(encoding="utf-8").splitlines()
    return {r["picture"]: r for r in map(json.loads, lines)}


def test_a_network_captions_what_has_no_caption_and_new_again_keeps_it(artists, tmp_path):
    blip = save_tiny_blip(tmp_path / "blip")
    before = open_dataset(load_group_set("artists")).fingerprint()
    said = guda("groups", "caption", "artists", "--with", blip)
    assert "Captions by blip: 5. There before: 1." in said and "Make them again" in said
    rows = listed()
    own = rows.pop("Ann Lee/0.png")
    assert own["text"] == "a written caption" and "captioned_by" not in own
    assert all(r["captioned_by"] == "blip" and set(r["text"].split()) <= set(WORDS) for r in rows.values())
    assert open_dataset(load_group_set("artists")).fingerprint() != before
    assert "Captions by blip: 0. There before: 6." in guda("groups", "caption", "artists", "--with", blip)
    (artists / "Bo Chan" / "1.txt").write_text("written later")
    said = guda("groups", "new", artists, "--again")
    assert "1 picture with another caption: Bo Chan/1.png" in said
    after = listed()
    assert after["Bo Chan/1.png"]["text"] == "written later" and "captioned_by" not in after["Bo Chan/1.png"]
    assert {k: v for k, v in after.items() if k in rows and k != "Bo Chan/1.png"} == {
        k: v for k, v in rows.items() if k != "Bo Chan/1.png"
    }


def test_a_caption_belongs_to_its_picture_and_a_stopped_call_goes_on(artists):
    group_set, seen = load_group_set("artists"), []

    def say(pictures):
        seen.extend(np.asarray(p).tobytes() for p in pictures)
        if len(seen) > 4:
            raise ModelError("stopped")
        return [f"picture {np.asarray(p).sum()}" for p in pictures]

    with pytest.raises(ModelError, match="stopped"):
        captioned(group_set, say, "one", batch=2, tell=lambda done: None)
    assert sum("captioned_by" in r for r in listed().values()) == 4
    told = []
    assert captioned(group_set, lambda p: [f"picture {np.asarray(x).sum()}" for x in p], "two", tell=told.append) == (
        1,
        5,
    )
    assert told == [1.0]
    data = open_dataset(load_group_set("artists"))
    for item in [*data.split("train"), *data.split("held_out")]:
        assert item.caption in ("a written caption", f"picture {item.image(32).sum()}")
    assert captioned(load_group_set("artists"), lambda p: ["new"] * len(p), "x", again=True, tell=told.append) == (5, 1)
    assert [r["text"] for r in listed().values()].count("new") == 5


def test_what_cannot_be_captioned_is_said(artists, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(ModelError, match="holds no network that captions pictures"):
        PictureCaptioner(str(tmp_path / "none"))
    with pytest.raises(ModelError, match="is no folder here"):
        PictureCaptioner("nobody")
    with pytest.raises(GroupSetError, match="no set of your own pictures"):
        captioned(load_group_set("emoji"), lambda p: [], "x", tell=lambda done: None)
    guda("groups", "new", artists, "--name", "silent", "--phrase", "")
    with pytest.raises(GroupSetError, match="hold no content"):
        captioned(load_group_set("silent"), lambda p: [], "x", tell=lambda done: None)


def test_code_beside_a_network_is_neither_run_nor_asked_about(tmp_path, monkeypatch):
    folder = save_tiny_blip(tmp_path / "blip")
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    told["model_type"] = "their-own"  # so that only their code could read it
    told["auto_map"] = {f"Auto{k}": "theirs.Theirs" for k in ("Config", "Processor", "ModelForImageTextToText")}
    (folder / "config.json").write_text(json.dumps(told), encoding="utf-8")
    (folder / "theirs.py").write_text("raise SystemExit('it was run')", encoding="utf-8")
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("it asked at the terminal"))
    with pytest.raises(ModelError, match="holds no network that captions pictures"):
        PictureCaptioner(str(folder))


def test_a_network_that_wants_more_than_a_picture_is_refused(tmp_path):
    network = PictureCaptioner(str(save_tiny_blip(tmp_path / "blip")))
    network.processor = lambda **more: (_ for _ in ()).throw(ValueError("text is needed"))
    with pytest.raises(ModelError, match="could not caption a picture by itself"):
        network([Image.new("RGB", (8, 8))])


def test_a_network_that_runs_out_of_memory_is_asked_about_fewer_pictures_at_once(tmp_path, monkeypatch):
    place = str(save_tiny_blip(tmp_path / "blip"))
    network = PictureCaptioner(place)
    pictures = [Image.new("RGB", (8, 8), (50 * i, 200 - 40 * i, 90)) for i in range(5)]
    alone = [text for p in pictures for text in network([p])]
    generate, asked, most = network.model.generate, [], [2]

    def short(pixel_values, **more):
        asked.append(len(pixel_values))
        if len(pixel_values) > most[0]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return generate(pixel_values=pixel_values, **more)

    network.model.generate = short
    assert network(pictures) == network(pictures) == alone and asked == [5, *[2, 2, 1] * 2]
    most[0] = 0
    with pytest.raises(NoMemoryError) as told:
        network(pictures)
    assert "not enough memory" in str(told.value) and "BLIP" not in str(told.value)

    def full(*args, **more):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    for cls, name in ((BlipForConditionalGeneration, "to"), (AutoModelForImageTextToText, "from_pretrained")):
        monkeypatch.setattr(cls, name, full)
        with pytest.raises(ModelError, match="not enough memory to load"):
            PictureCaptioner(place)
