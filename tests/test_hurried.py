"""What an artist in a hurry does: the wrong folder, a moved one, a typo, no model. Each gets a sentence that helps."""

from __future__ import annotations

import shutil

import pytest
import yaml

import guda_core
from guda_core.data.groups import load_group_set
from guda_core.data.sources.source import open_dataset
from guda_core.diffusion.cards import read_cards
from guda_core.errors import ModelError, OptionError
from guda_core.unlearning.run import Forgetting
from tests.own_pictures import guda, paint
from tests.own_workspace import own_workspace
from tests.tiny import save_tiny


def test_a_folder_too_deep_or_too_high_is_told_from_the_right_one(home, pictures):
    said = guda("groups", "new", pictures / "Dee", code=2)
    assert f"lie in no subfolder. If it is a group itself, name {pictures}." in said
    said = guda("groups", "new", pictures.parent, code=2)
    assert "('artists')" in said and "If its subfolders are the groups (Ann Lee, Bo Chan, Dee and 3 more)" in said
    said = guda("groups", "new", pictures / "Dee" / "0.jpg", code=2)
    assert "is one picture. Name the folder that holds one subfolder for each group." in said
    paint(pictures / " " / "0.png")
    assert "a subfolder whose name is spaces alone" in guda("groups", "new", pictures, code=2)
    assert not home.exists()


def test_a_moved_folder_is_named_with_the_command_that_finds_it_again(home, pictures):
    guda("groups", "new", pictures, "--name", "Six artists")
    path = home / "sets" / "six-artists" / "group_set.yaml"
    path.write_text(path.read_text().replace("author: not stated", "author: Ann", 1))
    path.write_text(path.read_text().replace("name: Six artists", "name: Half a dozen artists", 1))
    moved = pictures.rename(pictures.with_name("moved"))
    for command in (("groups", "check", "six-artists"), ("assets", "bank", "--set", "six-artists")):
        said = guda(*command, code=2)
        assert f"should be in {pictures}, and there is no such folder" in said
        assert "guda groups new PLACE --name six-artists --again" in said
    said = guda("groups", "new", moved, "--name", "six-artists", "--again")
    assert "name: Half a dozen artists" in path.read_text() and "'name' was" not in said
    assert f"The pictures were in {pictures} and are in {moved}." in said
    assert "author: Ann" in path.read_text() and "48 pictures" not in guda("groups", "check", "six-artists")


def test_a_set_that_was_typed_wrong_is_said_to_be_so(home, pictures):
    guda("groups", "new", pictures)
    path = home / "sets" / "artists" / "group_set.yaml"
    text = path.read_text()
    path.write_text(text.replace("\n", "\r\n"))
    assert "48 pictures" not in guda("groups", "check", "artists", "--no-copies")
    path.write_text(text.replace("phrase: by Dee", "phrase: style: Dee"))
    assert "Put a text that holds a colon into quotes." in guda("groups", "check", "artists", code=2)
    path.write_bytes(text.encode("utf-16"))
    assert "is not readable as UTF-8 text. Save it again as UTF-8." in guda("groups", "check", "artists", code=2)


def test_the_included_model_has_nothing_of_another_set_to_unlearn(home, pictures):
    guda("groups", "new", pictures)
    for more in ((), ("--plan",), ("--draft",)):
        said = guda("unlearn", "--set", "artists", *more, code=2)
        assert "there is nothing of 'artists' to unlearn from it" in said and "--model" in said
    with pytest.raises(OptionError, match="nothing of 'artists' to unlearn"):
        guda_core.unlearn("artists")
    assert not (home / "runs").exists()


def test_a_plan_that_cannot_be_written_is_one_sentence(home):
    own_workspace(home, adapters_too=False)
    (home / "file").touch()
    asked = ("unlearn", "--set", "artists", "--model", "brush", "--steps", "1", "--batch", "1", "--plan", "--json")
    assert "cannot be written" in guda(*asked, home / "file" / "plan.json", code=2)
    assert "Written" in guda(*asked, home / "plans" / "plan.json") and (home / "plans" / "plan.json").is_file()
    assert "Use guda_c or esd." in guda(*asked[:9], "--operator", "retrack", code=2)


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_done(home):
    own_workspace(home, adapters_too=False)
    (home / "file").touch()
    asked = ("unlearn", "--set", "artists", "--model", "brush", "--folder", home / "file" / "adapters")
    for how in (("--steps", "1"), ("--draft",)):
        said = guda(*asked, *how, code=2)
        assert "cannot be written" in said and "Name another --folder" in said and "encode" not in said, said
    assert not (home / "runs" / "brush" / "artists" / "latents").exists()


def test_a_set_of_another_resolution_is_read_at_the_models(home, pictures):
    """And not made smaller first and larger again."""
    guda("groups", "new", pictures, "--resolution", "8")
    save_tiny(home / "models" / "mine")
    gs = load_group_set("artists")
    job = Forgetting(gs, model=str(home / "models" / "mine"))
    items = open_dataset(gs).split("train")
    assert job.pictures().pixels.shape == (len(items), 16, 16, 3)
    assert all((a == b.image(16)).all() for a, b in zip(job.pictures().pixels, items, strict=True))


CARD = {"name": "Mine", "source": "folder", "path": "mine", "resolution": 16}


@pytest.mark.parametrize(("change", "says"), [
    ({"prediction_typ": "v"}, r"has a field 'prediction_typ' that means nothing here\. Is 'prediction_type' meant\?"),
    ({"colour": "red"}, r"has a field 'colour' that means nothing here\. Known: name, source, path, resolution"),
    ({"resolution": None}, r"'resolution': input should be a valid integer"),
])  # fmt: skip
def test_a_typo_in_a_card_is_named_with_what_is_meant(tmp_path, change, says):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"mine": {**CARD, **change}}))
    with pytest.raises(ModelError, match=says):
        read_cards(tmp_path / "mine.yaml")


def test_a_card_without_a_field_or_with_a_wrong_path_says_what_to_do(home, pictures):
    (home / "models").mkdir(parents=True)
    path = home / "models" / "mine.yaml"
    path.write_text(yaml.safe_dump({"mine": {k: v for k, v in CARD.items() if k != "resolution"}}))
    with pytest.raises(ModelError, match=r"card 'mine' has no field 'resolution'\. Add it\."):
        guda_core.load_model("mine")
    path.write_text(yaml.safe_dump({"mine": CARD}))
    with pytest.raises(ModelError, match=r"is not in .*mine\. Correct `path` in its card"):
        guda_core.load_model("mine")
    save_tiny(home / "models" / "mine")
    for lora in (5, b"x", ["a"]):
        with pytest.raises(OptionError, match="A LoRA is given by its file's path"):
            guda_core.load_model("mine", lora=lora)  # type: ignore[arg-type]
    for lora in (
        pictures,
        pictures / "none.safetensors",
        shutil.copy(pictures / "Dee" / "0.jpg", home / "a.safetensors"),
    ):
        with pytest.raises(ModelError, match="LoRA"):
            guda_core.load_model("mine", lora=lora)
