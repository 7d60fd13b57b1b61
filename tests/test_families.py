"""Families of models: one contract, cards read strictly, folders described by their own files, members from outside."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from guda_core.diffusion import FAMILIES, likelihood
from guda_core.diffusion.base_model import BaseModel, Card
from guda_core.diffusion.cards import _slug, find_card, load_model, read_cards, resolve_card
from guda_core.diffusion.condition import Condition
from guda_core.diffusion.pixels import to_pixels, to_unit
from guda_core.diffusion.prediction import Prediction
from guda_core.diffusion.schedule import Schedule
from guda_core.errors import ModelError
from tests.tiny import save_tiny, save_tiny_unconditional


class Blobs(BaseModel):
    """A family of its own: flow matching with an exact network for pictures from N(0, 1), no prompt."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card, self.network, self.sha256 = card, nn.Identity(), "blobs"
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.prediction = Prediction("flow", Schedule.flow(torch.linspace(0.01, 1, 100, dtype=torch.float64)))

    @classmethod
    def load(cls, card, *, device, dtype):
        return cls(card)

    @classmethod
    def describe(cls, folder):
        return {"resolution": 4} if (folder / "blobs.txt").is_file() else None

    @property
    def latent_shape(self):
        return (3, 4, 4)

    def encode(self, pixels):
        return to_unit(pixels)

    def embed(self, prompts):
        return Condition({}, len(prompts))

    def tokens(self, prompt):
        return 0, 0

    def predict(self, x_t, t, condition, network=None):
        s = self.schedule.sigma[t].float()[:, None, None, None]
        return (s - (1 - s)) * x_t / ((1 - s) ** 2 + s**2)  # E[eps - x_0 | x_s]

    def decode(self, latent):
        return to_pixels(latent)

    def sample(self, prompts, *, seeds, steps=25, guidance=2.5):
        yield self.decode(torch.zeros(len(seeds), *self.latent_shape))


@pytest.fixture
def blobs(tmp_path):
    FAMILIES.add("blobs", Blobs)
    (tmp_path / "My Blobs").mkdir()
    (tmp_path / "My Blobs" / "model_index.json").write_text('{"_class_name": "Blobs"}')
    (tmp_path / "My Blobs" / "blobs.txt").touch()
    yield tmp_path / "My Blobs"
    FAMILIES.remove("blobs")


def test_a_family_from_outside_is_found_loaded_and_scored(blobs):
    card = resolve_card(str(blobs))
    assert (card.id, card.name, card.kind, card.resolution) == ("my-blobs", "My Blobs", "blobs", 4)
    model = load_model(card)
    assert isinstance(model, Blobs) and model.generate([""], seeds=[1, 2]).shape == (2, 4, 4, 3)
    strata = likelihood.make_strata(model.schedule, 8)
    draws = likelihood.draw_times("x", strata, 2)
    z = model.encode(np.zeros((4, 4, 3), np.uint8))
    assert np.isfinite(likelihood.kl_values(model, z, model.embed([""]), draws, [0, 1])).all()


def test_a_family_of_others_that_cannot_be_imported_stops_only_its_own_models(tmp_path, caplog, request):
    (tmp_path / "blobs.txt").touch()
    (tmp_path / "model_index.json").write_text("{}")
    for name, member in (("lost", "no_such_plug:Family"), ("blobs", Blobs)):
        FAMILIES.add(name, member)
        request.addfinalizer(lambda name=name: FAMILIES.remove(name))
    card = resolve_card(str(tmp_path))
    assert (card.kind, card.resolution) == ("blobs", 4) and "of the package 'no_such_plug'" in caplog.text
    with pytest.raises(ModelError, match=r"Card '.*': The family of models 'lost' cannot be imported"):
        load_model(replace(card, kind="lost"))


@pytest.mark.parametrize("save", [save_tiny, save_tiny_unconditional])
def test_a_folder_is_described_by_its_own_files(tmp_path, save):
    card = save(tmp_path / "a Model (v2)")
    own = resolve_card(str(tmp_path / "a Model (v2)"))
    assert (own.id, own.kind, own.resolution) == ("a-model-v2", card.kind, card.resolution)
    assert own.prediction_type is None and load_model(own).sha256 == load_model(card).sha256


def test_a_folder_called_as_a_card_gets_an_id_of_its_own(tmp_path):
    save_tiny_unconditional(tmp_path / "emoji")
    card = resolve_card(str(tmp_path / "emoji"))
    assert card.id.startswith("emoji-") and resolve_card("emoji") == find_card("emoji")


def test_what_is_no_model_is_said(tmp_path):
    with pytest.raises(ModelError, match=r"emoji, sd15.*folder"):
        resolve_card("sd99")
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        resolve_card(str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableVideoPipeline"}')
    with pytest.raises(ModelError, match="no family here reads"):
        resolve_card(str(tmp_path))
    (tmp_path / "model_index.json").write_text("[]")
    with pytest.raises(ModelError, match="no settings"):
        resolve_card(str(tmp_path))
    (tmp_path / "one.safetensors").touch()
    with pytest.raises(ModelError, match="damaged or incomplete"):
        resolve_card(str(tmp_path / "one.safetensors"))


GOOD = {"name": "N", "source": "folder", "path": "p", "resolution": 64}


@pytest.mark.parametrize(
    "id", ["../../pictures", "..", ".", "", "/tmp/x", "a/b", "a\\b", ".hidden", "a\n", "c:x", " a", "a /"]
)
def test_a_card_whose_id_is_no_folder_s_name_is_refused(tmp_path, id):
    path = tmp_path / "found.yaml"
    path.write_text(json.dumps({id: GOOD}))
    with pytest.raises(ModelError, match=r"found\.yaml: card .*An id is a folder's name"):
        read_cards(path)


def test_ids_as_the_project_makes_them_and_as_people_write_them_are_read(tmp_path):
    made = [_slug(n) for n in ("../../A model (v2)", "日本", "x" * 300, "con", "..")]
    own = ["brush", "sd1.5", "my_model-2", "Großes Modell", *made, *(f"{m}-0123abcd" for m in made)]
    (tmp_path / "cards.yaml").write_text(json.dumps(dict.fromkeys(own, GOOD)))
    assert list(read_cards(tmp_path / "cards.yaml")) == list(dict.fromkeys(own))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"resolution": "64"}, "'resolution': .*integer"),
        ({"resolution": 0}, "resolution"),
        ({"colour": "red"}, "colour"),
        ({"gpu_dtype": "float8"}, "gpu_dtype"),
        ({"prediction_type": "sample"}, "prediction_type"),
        ({"source": "ftp"}, "source"),
        ({"name": None}, "name"),
    ],
)
def test_cards_are_read_strictly(tmp_path, change, says):
    path = tmp_path / "cards.yaml"
    path.write_text(json.dumps({"good": GOOD}))
    assert read_cards(path)["good"].kind == "stable_diffusion"
    path.write_text(json.dumps({"good": GOOD, "mine": {**GOOD, **change}}))
    with pytest.raises(ModelError, match=f"card 'mine'.*{says}"):
        read_cards(path)


@pytest.mark.parametrize("text", ["[]", "mine: 3", "a: {", "12: {}", "mine: {name: N}"])
def test_a_file_that_holds_no_cards_is_said(tmp_path, text):
    path = tmp_path / "cards.yaml"
    path.write_text(text)
    with pytest.raises(ModelError, match=r"cards\.yaml"):
        read_cards(path)


def test_cards_of_the_workspace_are_known(tmp_path, monkeypatch):
    monkeypatch.setenv("GUDA_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    mine = tmp_path / "models" / "mine.yaml"
    mine.write_text(json.dumps({"mine": GOOD}))
    assert find_card("mine").resolution == 64 and find_card("emoji").source == "assets"
    mine.write_text(json.dumps({"emoji": GOOD}))
    assert find_card("emoji").source == "folder"  # the workspace's comes first
    with pytest.raises(ModelError, match=r"There is no model 'mine'\. Known: emoji, sd15"):
        find_card("mine")


def test_pixels_go_in_and_come_out():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    x = to_unit(pixels)
    assert x.shape == (2, 3, 4, 5) and float(x.min()) >= -1 and float(x.max()) <= 1
    assert (to_pixels(x) == pixels).all() and (to_pixels(to_unit(pixels[0]))[0] == pixels[0]).all()
    old = torch.from_numpy(pixels[0]).permute(2, 0, 1)[None].float() / 127.5 - 1  # as version 0.1 wrote it
    assert torch.equal(to_unit(pixels[0]), old)
    assert to_unit(pixels[0]).stride() == old.stride()  # torch chooses a convolution by it
    assert (to_pixels(torch.tensor([-3.0, 3.0]).reshape(1, 1, 1, 2)) == [[[[0] * 3, [255] * 3]]]).all()
    with pytest.raises(ModelError, match="not finite"):
        to_pixels(torch.full((1, 3, 2, 2), float("nan")))
