"""The encoders that a card may name, against transformers' own output on tiny random towers; and their banks."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from guda_core import paths
from guda_core.data.dataset import Pictures
from guda_core.data.embeddings import make_bank
from guda_core.data.encoders import LARGE, bank_name, bank_of, name_of, open_encoder
from guda_core.data.groups import load_group_set
from guda_core.diffusion.cards import find_card, load_model
from guda_core.errors import ModelError
from guda_core.file_names import placeless
from guda_core.local import load_service, service_for
from guda_core.records import Group, GroupSet
from guda_core.reports.record import to_json
from guda_core.unlearning import adapter_files
from guda_core.unlearning.run import Forgetting
from tests.loopback_hub import loopback_hub
from tests.own_pictures import guda
from tests.own_workspace import own_workspace
from tests.tiny import InMemory, tiny_tokenizer

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


def save_clip(folder: Path) -> Path:
    """The layout of openai/clip-vit-large-patch14: one CLIPModel, its tokenizer, its preprocessor."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(77)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        projection_dim=12, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    vision = CLIPVisionConfig(**SMALL, intermediate_size=32, projection_dim=12)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder


def save_dino(folder: Path) -> Path:
    torch.manual_seed(1)
    Dinov2Model(Dinov2Config(**SMALL, mlp_ratio=2)).save_pretrained(folder)
    return folder


def save_csd(folder: Path) -> Path:
    torch.manual_seed(2)
    CLIPVisionModel(CLIPVisionConfig(**SMALL, intermediate_size=32)).save_pretrained(folder)
    save_file({"weight": torch.randn(10, 16)}, folder / "style_head.safetensors")
    return folder


def opened(encoder: str, folder: Path):
    return open_encoder(replace(find_card("sd15"), encoder=encoder), folder / "bank.safetensors")


def normalised(mean, std):
    x = torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255
    return (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def test_the_clip_of_a_card_gives_its_projected_picture_features_and_reads_words(tmp_path):
    folder = save_clip(tmp_path / "clip")
    found = opened(f"clip:{folder}", tmp_path)
    processed = CLIPImageProcessor.from_pretrained(folder)(list(PIXELS), return_tensors="pt")
    torch.testing.assert_close(found.prepared(PIXELS), processed.pixel_values, atol=1e-5, rtol=0)
    plain = CLIPVisionModelWithProjection.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = F.normalize(plain(pixel_values=processed.pixel_values).image_embeds, dim=-1)
        model = CLIPModel.from_pretrained(folder).eval()
        ids = tiny_tokenizer(77)(["a cat"], padding="max_length", max_length=77, return_tensors="pt")
        text = F.normalize(model.text_projection(model.text_model(**ids).pooler_output), dim=-1)
    torch.testing.assert_close(found.image_features(PIXELS), expected)
    torch.testing.assert_close(found.text_features(["a cat"]), text)
    assert found.kind == "clip" and found.size == 32 and found.reads_words
    assert found.image_features(np.zeros((1, 48, 48, 3), np.uint8)).shape == (1, 12)  # other sizes are resampled


def test_dinov2_gives_its_class_token_and_reads_no_words(tmp_path):
    found = opened(f"dinov2:{save_dino(tmp_path / 'dino')}", tmp_path)
    with torch.no_grad():
        out = Dinov2Model.from_pretrained(tmp_path / "dino").eval()(
            pixel_values=normalised([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        )
    torch.testing.assert_close(found.image_features(PIXELS), F.normalize(out.last_hidden_state[:, 0], dim=-1))
    with pytest.raises(ModelError, match="needs a CLIP with its text tower"):
        found.text_features(["a cat"])


def test_csd_is_the_tower_times_the_style_head(tmp_path):
    found = opened(f"csd:{save_csd(tmp_path / 'csd')}", tmp_path)
    with torch.no_grad():
        out = CLIPVisionModel.from_pretrained(tmp_path / "csd").eval()(pixel_values=normalised(MEAN, STD)).pooler_output
    torch.manual_seed(2)
    CLIPVisionModel(CLIPVisionConfig(**SMALL, intermediate_size=32))
    head = torch.randn(10, 16)
    torch.testing.assert_close(found.image_features(PIXELS), F.normalize(out @ head.T, dim=-1))


def test_the_hash_is_of_what_enters_the_features(tmp_path):
    one, same = (opened(f"csd:{save_csd(tmp_path / n)}", tmp_path).sha256 for n in ("a", "b"))
    save_file({"weight": torch.zeros(10, 16)}, tmp_path / "b" / "style_head.safetensors")
    other_head = opened(f"csd:{tmp_path / 'b'}", tmp_path).sha256
    (tmp_path / "a" / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    other_mean = opened(f"csd:{tmp_path / 'a'}", tmp_path).sha256
    assert one == same and len({one, other_head, other_mean}) == 3


@pytest.mark.parametrize("name", ["resnet:x", "clip:", "clip"])
def test_a_wrong_encoder_is_one_sentence(tmp_path, name):
    with pytest.raises(ModelError, match=r"Write KIND:PLACE with one of clip, dinov2, csd"):
        opened(name, tmp_path)


def test_an_empty_folder_a_pickle_and_no_network_are_one_sentence(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(ModelError, match="cannot be read"):
        opened(f"clip:{tmp_path / 'none'}", tmp_path)
    save_dino(tmp_path / "p")
    torch.save({}, tmp_path / "p" / "pytorch_model.bin")
    (tmp_path / "p" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        opened(f"dinov2:{tmp_path / 'p'}", tmp_path)
    with loopback_hub(tmp_path) as hub:
        hub.down = True
        with pytest.raises(ModelError, match="'ann/eyes' is no folder here, and could not be brought"):
            opened("clip:ann/eyes", tmp_path)


def test_which_encoder_a_card_has_and_where_its_bank_lies():
    card, run = find_card("emoji"), paths.run("emoji", "emoji")
    assert name_of(card) == "" and bank_name(card) == run.bank.name
    assert name_of(find_card("sd15")) == LARGE
    big = replace(card, source="folder", resolution=512)
    assert name_of(big) == LARGE and name_of(replace(big, resolution=64)) == ""
    assert bank_name(big) == "bank-clip-openai-clip-vit-large-patch14.safetensors"
    assert (
        bank_name(replace(big, encoder="dinov2:facebook/dinov2-base")) == "bank-dinov2-facebook-dinov2-base.safetensors"
    )


def with_encoder(work: Path, name: str) -> None:
    path = work / "models" / "brush.yaml"
    card = yaml.safe_load(path.read_text())
    card["brush"]["encoder"] = name
    path.write_text(yaml.safe_dump(card))


def test_without_a_bank_only_similarity_is_missing_and_the_sentence_names_the_command(home, tmp_path):
    own_workspace(home)
    for encoder in ("", "clip:openai/clip-vit-large-patch14", f"dinov2:{save_dino(tmp_path / 'dino')}"):
        with_encoder(home, encoder)
        service = load_service(None, fall_back=False)
        assert "guda" in service.offered and "clip" not in service.offered
        assert service.not_offered["clip"] == (
            "There are no features of the training pictures for this model and group set. Make them with "
            "`guda assets bank --set artists --model brush`."
        )
        assert service.provenance().bank_sha256 == ""
        query = service.query(PIXELS[0, :16, :16], "by Dee")
        assert service.scope(query).verdict == "not assessed"
    said = guda(
        "attribute", home / "sets" / "artists" / "secret pictures" / "dee" / "0.png", "--methods", "clip", code=2
    )
    assert "guda assets bank --set artists --model brush" in said


@pytest.mark.parametrize("source", ["folder", "card"])
def test_reports_do_not_tell_where_a_model_or_its_encoder_lies(home, tmp_path, source):
    own_workspace(home)
    secret = tmp_path / "Jane's secret place"
    shutil.copytree(home / "models" / "brush", secret / "brush")
    if source == "folder":
        service = load_service(str(secret / "brush"), group_set="artists", fall_back=False)
        assert "`guda assets bank --set artists --model MODEL`" in service.not_offered["clip"]
    else:
        (secret / "eyes").mkdir()
        (secret / "eyes" / "config.json").write_text("{")
        with_encoder(home, f"clip:{secret / 'eyes'}")
        (run := paths.run("brush", "artists")).mine.mkdir(parents=True, exist_ok=True)
        bank_of(find_card("brush"), run).touch()
        meta = run.mine / "adapters" / "dee" / "guda.json"
        meta.unlink()
        meta.mkdir()  # which the system says with its whole path
        service = load_service(None, fall_back=False)
        assert "The clip in eyes cannot be read" in service.not_offered["clip"]
        assert "dee" in service.provenance().unlearned.unavailable
    query = service.query(PIXELS[0, :16, :16], "by Dee")
    settings = {"effort": "quick", "methods": ["guda"]}
    told = json.dumps(to_json(query, [], service.group_set, provenance=service.provenance(), settings=settings))
    assert "secret" not in told and str(tmp_path) not in told and "secret" not in " ".join(service.not_offered.values())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/home/jane/models/brush cannot be read.", "brush cannot be read."),
        ("It lies in '/home/jane doe/brush'.", "It lies in 'brush'."),
        ("`guda bank --model ~/models/brush`", "`guda bank --model brush`"),
        (r"[Errno 13] Permission denied: 'C:\Users\Jane Doe\a.json'", "[Errno 13] Permission denied: 'a.json'"),
        (r"C:\Users\jane\a.json: no", "a.json: no"),
        ("The clip in /srv/my place/eyes (/srv/my place/eyes/x.json)", "The clip in eyes (eyes/x.json)"),
        ("See https://example.org/a/b or hub:user/name, bank/a.json, and/or 3 / 4.",) * 2,
    ],
)
def test_a_sentence_without_places(text, told):
    assert placeless(text, Path("/srv/my place/eyes"), Path()) == told


@pytest.mark.parametrize(("kind", "save", "name"), [
    ("clip", save_clip, "CLIP similarity"), ("dinov2", save_dino, "DINOv2 similarity"),
    ("csd", save_csd, "CSD similarity (style)"),
])  # fmt: skip
def test_the_command_makes_the_bank_from_which_similarity_answers(home, kind, save, name):
    own_workspace(home)
    save(home / "models" / "eyes")
    with_encoder(home, f"{kind}:eyes")  # a folder beside the card's file
    said = guda("assets", "bank")
    (bank,) = (home / "runs" / "brush" / "artists").glob("bank-*.safetensors")
    assert bank.name.startswith(f"bank-{kind}-") and str(bank.name) in said
    assert "Features of 9 pictures will take about" in said and "bank ━" in said
    service = load_service(None, fall_back=False)
    assert service.methods()["clip"].name == name and service.provenance().clip_sha256 == service.encoder().sha256
    picture = (home / "sets" / "artists" / "secret pictures" / "dee" / "1.png").read_bytes()
    (answer,) = service.attribute(service.prepare(picture), methods=["clip"], effort="quick")
    features = service.encoder().read_bank()
    assert {g: len(f) for g, f in features.items()} == {"ann-lee": 3, "bo-chan": 3, "dee": 3}
    own = service.encoder().image_features(service.prepare(picture).pixels[None])[0]
    for g, f in features.items():
        assert answer.groups[g].score == pytest.approx(float((f @ own).mean()), abs=1e-5)
    assert (service.best_caption(service.prepare(picture)) != "") == (kind == "clip")


def test_a_bank_is_found_wherever_the_encoders_folder_lies(home, tmp_path):
    own_workspace(home)
    card, run = find_card("brush"), paths.run("brush", "artists")
    here = replace(card, encoder=f"dinov2:{save_dino(tmp_path / 'Far away' / 'eyes')}")
    name = bank_name(here)
    assert re.fullmatch(r"bank-dinov2-eyes-[0-9a-f]{12}\.safetensors", name) and bank_of(here, run) == run.mine / name
    shutil.copytree(tmp_path / "Far away" / "eyes", home / "eyes")
    assert bank_name(replace(card, encoder=f"dinov2:{home / 'eyes'}")) == name
    weights = home / "eyes" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert bank_name(replace(card, encoder=f"dinov2:{home / 'eyes'}")) != name
    words = re.sub("[^a-z0-9]+", "-", f"dinov2 {tmp_path}/Far away/eyes".lower())
    shutil.rmtree(tmp_path / "Far away")
    assert bank_name(here) == f"bank-{words}.safetensors"  # the folder is gone: opening it says so


def test_an_encoder_comes_from_the_hub(home, tmp_path, monkeypatch):
    own_workspace(home)
    with_encoder(home, "dinov2:ann/eyes")
    with loopback_hub(tmp_path) as hub:
        hub.upload("ann/eyes", save_dino(tmp_path / "dino"))
        guda("assets", "bank")
        assert load_service(None, fall_back=False).encoder().kind == "dinov2"


def test_a_bank_is_never_written_over_another_sets(home, tmp_path):
    clip = opened(f"clip:{save_clip(tmp_path / 'clip')}", tmp_path)

    def data(set_id, *groups):
        names = tuple(str(i) for i in range(len(groups)))
        kept = GroupSet(set_id, "S", {g: Group(g, g) for g in groups})
        return InMemory(kept, {"train": Pictures(PIXELS[: len(groups)], groups, names)})

    make_bank(clip, data("one", "a", "b"))
    before = clip.bank.read_bytes()
    for other in (data("two", "c", "d"), data("two", "a", "b")):
        with pytest.raises(ModelError, match="is the bank of another group set"):
            make_bank(clip, other)
        assert clip.bank.read_bytes() == before
    make_bank(clip, data("one", "a", "b", "c"))
    assert set(clip.read_bank()) == {"a", "b", "c"}


def test_unlearning_compares_words_by_the_same_encoder(home):
    own_workspace(home, adapters_too=False)
    save_clip(home / "models" / "eyes")
    with_encoder(home, "clip:eyes")
    job = Forgetting(load_group_set("artists"))
    assert job.clip.folder == home / "models" / "eyes" and job.clip.text_features(["by Dee"]).shape == (1, 12)
    save_dino(home / "models" / "more")
    with_encoder(home, "dinov2:more")
    said = guda("unlearn", "--selection", "weighted", "--steps", "1", "--batch", "1", code=2)
    assert "needs a CLIP with its text tower" in said


def test_an_adapter_that_was_drawn_by_likeness_is_made_again_with_another_encoder(home, monkeypatch):
    folder = own_workspace(home) / "runs" / "brush" / "artists" / "adapters" / "dee"
    save_clip(home / "models" / "eyes")
    with_encoder(home, "clip:eyes")
    job = Forgetting(load_group_set("artists"))
    config = job.config(selection="weighted")
    monkeypatch.setattr(job, "_unfit", lambda group, config: "")  # as far as its other settings go
    monkeypatch.setattr(job, "_of_these_pictures", lambda group: True)
    for made, pending in ((job.clip.sha256, []), ("0" * 64, ["dee"])):
        adapter_files.note(folder, {"clip_sha256": made})
        assert job.pending(["dee"], config=config) == pending
    assert job.pending(["dee"], config=job.config()) == []  # drawn with equal odds


def test_a_report_names_the_bank_that_was_read(home):
    own_workspace(home, adapters_too=False)
    save_clip(home / "models" / "eyes")
    with_encoder(home, "clip:eyes")
    guda("assets", "bank", "--set", "artists")
    service = service_for(load_model(find_card("brush")), load_group_set("artists"))
    read = service.provenance().bank_sha256
    bank = service.encoder().bank
    assert read == hashlib.sha256(bank.read_bytes()).hexdigest()
    service.encoder().write_bank({"dee": torch.ones(1, 12)}, "other pictures")
    assert service.provenance().bank_sha256 == read != hashlib.sha256(bank.read_bytes()).hexdigest()


def test_a_damaged_bank_makes_only_similarity_unavailable(home):
    own_workspace(home)
    bank = paths.run("brush", "artists").own / "bank.safetensors"
    bank.write_bytes(b"no safetensors")
    service = service_for(load_model(find_card("brush")), load_group_set("artists"))
    assert "guda" in service.offered and "cannot be read" in service.not_offered["clip"]
    assert service.provenance().clip_sha256 and not service.provenance().bank_sha256
