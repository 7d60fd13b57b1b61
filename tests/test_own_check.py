"""Crop or pad, and what `guda groups check` says and draws."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from guda_core.cli.groups_check import anchors, asking, asking_said, warnings
from guda_core.data.captions import captioner_of
from guda_core.data.dataset import Item
from guda_core.data.groups import load_group_set
from guda_core.data.images import OWN, UPLOADS, hash_picture, read_picture
from guda_core.data.own.new_set import NewSet
from guda_core.data.sources.source import open_dataset
from guda_core.errors import GroupSetError, ImageError, OptionError
from guda_core.records import Group, GroupSet
from guda_core.unlearning.health import summary
from tests.own_pictures import IDS, KINDS, guda
from tests.own_workspace import own_workspace
from tests.test_imaging import chunk, encoded
from tests.test_pipeline import service  # noqa: F401  (a fixture)
from tests.tiny import save_tiny


def test_a_crop_is_the_middle_and_a_pad_is_white(tmp_path):
    wide = np.zeros((30, 90, 3), np.uint8)
    wide[:, :30], wide[:, 30:60], wide[:, 60:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    data = encoded(Image.fromarray(wide))
    crop, pad = (read_picture(data, size=30, fit=f) for f in ("crop", "pad"))
    assert (crop.pixels == (0, 255, 0)).all() and "Only its middle, 30 x 30 of 90 x 30" in crop.preparation[0]
    assert (pad.pixels[:9] == 255).all() and (pad.pixels[21:] == 255).all()
    square = encoded(Image.fromarray(wide[:, :30]))
    assert (read_picture(square, size=30, fit="crop").pixels == read_picture(square, size=30).pixels).all()


def test_ones_own_pictures_may_be_larger_files_than_uploads():
    data = encoded(Image.new("RGB", (7100, 7100)))
    with pytest.raises(ImageError, match="at most 50 megapixels"):
        read_picture(data, size=16)
    assert read_picture(data, size=16, limits=OWN).pixels.shape == (16, 16, 3)
    assert OWN.bytes > UPLOADS.bytes


def test_pictures_that_show_the_same_have_one_hash():
    im = Image.new("RGB", (20, 30), (1, 2, 3))
    clear = im.convert("RGBA")
    assert (
        len({hash_picture(encoded(im)), hash_picture(encoded(clear)), hash_picture(encoded(im, compress_level=0))}) == 1
    )
    assert hash_picture(encoded(im.transpose(Image.Transpose.ROTATE_90))) != hash_picture(encoded(im))


def test_the_group_set_says_crop_or_pad_and_nothing_else(tmp_path):
    entry = {"id": "s", "name": "S", "source": {"id": "folder", "path": "p"}, "groups": {"a": {"name": "A"}}}
    entry["groups"]["b"] = {"name": "B"}
    (tmp_path / "s").mkdir()
    for fit, right in ((None, "pad"), ("crop", "crop"), ("stretch", None)):
        told = entry if fit is None else {**entry, "fit": fit}
        (tmp_path / "s" / "group_set.yaml").write_text(yaml.safe_dump(told))
        if right is None:
            with pytest.raises(GroupSetError, match="'fit' must be pad"):
                load_group_set("s", tmp_path)
        else:
            assert load_group_set("s", tmp_path).fit == right
    assert load_group_set("emoji").fit == "pad"


def test_check_says_what_will_be_learned_and_draws_a_sheet(home, pictures):
    for path in list((pictures / "Dee").iterdir())[2:]:
        path.unlink()
    guda("groups", "new", pictures, "--held-out", "0")
    said = guda("groups", "check", "artists")
    assert "44 pictures" not in said and "42 pictures trained on, 0 held out, made square by: crop" in said
    assert "'dee' has 2 pictures" in said and "of ann-lee, bo-chan, dee" in said and "is held out" in said
    assert "Of 34 pictures nothing is known but the group" in said
    with Image.open(home / "sets" / "artists" / "contact-sheet.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (8 + 22 + 6 * 158, 8 + 8 * 136, 3)
    row = pixels[30 + 22 : 30 + 22 + 128, 8 : 8 + 128]
    assert (row == open_dataset(load_group_set("artists")).split("train")[0].image(128)).all()
    guda("groups", "check", "--set", "artists", "--sheet", home / "s.png")
    assert (home / "s.png").is_file()
    assert "Two sets are named" in guda("groups", "check", "a", "--set", "b", code=2)


def test_check_shows_the_captions_and_anchors_of_unlearning(home, pictures):
    guda("groups", "new", pictures)
    gs = load_group_set("artists")
    train = open_dataset(gs).split("train")
    rows = list(anchors(gs, train))
    assert len(rows) == 10 and {i.group for i, _, _ in rows} == set(IDS)
    captioner, g = captioner_of(gs), torch.Generator()
    for item, caption, anchor in rows:
        content = captioner.content(item)
        assert caption == captioner.caption(item, g)
        others = [captioner.anchor(item, k, g) for k in gs.groups if k != item.group]
        assert anchor in others and anchor != caption and content in anchor
    said = guda("groups", "check", "artists")
    assert all(" ".join(c.split()) in said and a in said for _, c, a in rows)


def test_check_warns_of_captions_that_do_not_work(home, pictures):
    (pictures / "Ann Lee" / "0.txt").write_text("a wave, Ann Lee style")
    (pictures / "Ann Lee" / "1.txt").write_text("word " * 60)
    guda("groups", "new", pictures, "--held-out", "0", "--phrase", "by {name}")
    gs = load_group_set("artists")
    train = open_dataset(gs).split("train")
    said = " ".join(warnings(gs, train, []))
    assert "1 caption of 'ann-lee' names the group outside its phrase 'by Ann Lee', and so does its anchor" in said
    (pictures / "Ann Lee" / "0.txt").write_text("a wave, ann_lee_style")  # a trigger word
    guda("groups", "new", pictures, "--again", "--held-out", "0", "--phrase", "by {name}")
    said_again = " ".join(warnings(gs, open_dataset(load_group_set("artists")).split("train"), []))
    assert "1 caption of 'ann-lee' names" in said_again
    (pictures / "Ann Lee" / "0.txt").write_text("a wave of joann leeds")
    guda("groups", "new", pictures, "--again", "--held-out", "0", "--phrase", "by {name}")
    said_again = " ".join(warnings(gs, open_dataset(load_group_set("artists")).split("train"), []))
    assert "of 'ann-lee' names" not in said_again
    jose = GroupSet("s", "S", {"j": Group("j", "Jose\u0301", phrase="x")}, caption="{content}, {phrase}")
    assert "1 caption of 'j' names" in " ".join(warnings(jose, [Item("j/1", "j", "a hill, jos\xe9_style")], []))
    assert "1 caption has more than 55 words" in said and "Ann Lee/1.PNG" in said
    exact = " ".join(warnings(gs, train, [], lambda text: (len(text.split()) + 2, 12)))
    assert "1 caption has more than the 12 tokens" in exact and "words" not in exact
    guda("groups", "new", pictures, "--name", "mute", "--phrase", "")
    assert "The set has no captions" in guda("groups", "check", "mute")


def test_check_counts_pictures_that_ask_not_to_be_used_to_train_ai(home, pictures):
    for name, value in (("Dee/1.PNG", "PROHIBITED-AIMLTRAINING"), ("Ann Lee/5.PNG", "ALLOWED")):
        data = (pictures / name).read_bytes()
        xmp = b'<rdf:Description plus:DataMining="http://ns.useplus.org/ldf/vocab/DMI-' + value.encode() + b'"/>'
        part = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
        (pictures / name).write_bytes(data[:-12] + part + data[-12:])
    guda("groups", "new", pictures)
    said = guda("groups", "check", "artists", "--json", home / "check.json")
    assert (
        "1 of 48 pictures asks not to be used to train AI" in said and "Content Credentials): dee/Dee/1.PNG. " in said
    )
    assert json.loads((home / "check.json").read_text())["asks_not_to_train_ai"] == ["dee/Dee/1.PNG"]
    assert "train AI" not in guda("groups", "check", "artists", "--no-copies")


def test_a_folder_s_pictures_are_asked_for_their_marks_too(tmp_path):
    xmp = b"<plus:DataMining>http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED-SEECONSTRAINT</plus:DataMining>"
    data = encoded(Image.new("RGB", (20, 20)))
    (tmp_path / "p" / "a").mkdir(parents=True)
    (tmp_path / "p" / "a" / "plain.png").write_bytes(data)
    (tmp_path / "p" / "a" / "asks.png").write_bytes(
        data[:-12] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp) + data[-12:]
    )
    options = {"path": str(tmp_path / "p"), "held_out": 0.0}
    items = open_dataset(GroupSet("s", "S", {"a": Group("a", "A")}, source="folder", options=options)).split("train")
    (tmp_path / "p" / "a" / "plain.png").unlink()  # one that is gone is passed over
    assert asking(items) == ["a/asks.png"]
    assert asking_said(["a"], 2).startswith("1 of 2 pictures asks") and "their own" in asking_said(["a", "b"], 2)


def test_check_of_a_set_whose_pictures_are_not_fetched_still_shows_its_groups(home):
    said = guda("groups", "check", "--set", "emoji")
    assert "OpenMoji" in said and "The pictures were not looked at." in said and not (home / "sets" / "emoji").exists()
    for option in ("--json", "--sheet"):  # what is asked for cannot be written
        assert "groups fetch" in guda("groups", "check", "--set", "emoji", option, home / "x.png", code=2)
        assert not (home / "x.png").exists()


def test_check_of_a_model_is_of_its_own_set_and_counts_captions_alike_in_table_and_json(home, pictures):
    own_workspace(home, adapters_too=False)
    card = home / "models" / "brush.yaml"
    card.write_text(card.read_text(encoding="utf-8") + "  group_set: emoji\n", encoding="utf-8")
    assert "Emoji design teams" in guda("groups", "check", "--model", "brush")
    guda("groups", "new", pictures, "--name", "Captioned")
    said = guda("groups", "check", "captioned", "--json", home / "c.json")
    captions = {g: n["with_caption"] for g, n in json.loads((home / "c.json").read_text())["groups"].items()}
    assert all(re.search(rf"{g}\W+\d+\W+\d+\W+{n}\b", said) for g, n in captions.items()), (captions, said)
    assert sum(captions.values()) > 0


def test_kinds_of_the_stand_ins_are_mixed():
    assert len({k for _, k in KINDS}) == 3
    with pytest.raises(OptionError):
        NewSet(name="a", held_out=-1)


def test_health_of_few_pictures_has_no_error_that_it_cannot_know():
    assert summary([2.0]) == {"mean": 2.0, "n": 1}
    assert summary([1.0, 3.0]) == {"mean": 2.0, "se": 1.0, "n": 2}


def test_the_picture_that_is_asked_about_is_made_square_as_the_sets_pictures_are(service):  # noqa: F811
    wide = np.full((16, 48, 3), 255, np.uint8)
    wide[:, 16:32] = (0, 128, 0)
    data = encoded(Image.fromarray(wide))
    assert (service.prepare(data).pixels[:5] == 255).all()
    service.group_set = replace(service.group_set, fit="crop")
    assert (service.prepare(data).pixels == (0, 128, 0)).all()


def test_check_counts_tokens_with_the_model(home, pictures, tmp_path):
    save_tiny(tmp_path / "tiny")
    (pictures / "Ann Lee" / "3.txt").write_text("a " * 90)
    guda("groups", "new", pictures, "--held-out", "0")
    said = guda("groups", "check", "artists", "--model", tmp_path / "tiny")
    assert (
        "1 caption has more than the 77 tokens that the model reads; the first is that of ann-lee/Ann Lee/3.JPEG"
        in said
    )


def test_check_counts_how_often_the_models_own_unlearning_shows_a_picture(home, pictures, tmp_path):
    card = save_tiny(tmp_path / "tiny", small=True)
    told = {"kind": card.kind, "name": "Tiny", "source": "folder", "path": str(tmp_path / "tiny"), "licence": "test"}
    told |= {"resolution": 16, "prediction_type": "epsilon", "unlearning": {"steps": 30, "batch": 4}}
    (home / "models").mkdir(parents=True)
    (home / "models" / "mine.yaml").write_text(yaml.safe_dump({"mine": told}), encoding="utf-8")
    guda("groups", "new", pictures, "--held-out", "0")
    usual, own = guda("groups", "check", "artists"), guda("groups", "check", "artists", "--model", "mine")
    assert "(counted for a small model; name yours with --model) shows each about 160 times" in usual
    assert "8 to train on. Unlearning shows each about 15 times" in own and "160 times" not in own
