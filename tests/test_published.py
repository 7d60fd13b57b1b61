"""The folder that `hf upload` publishes: what is in it, what never is, and the same scores from the hub's copy."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from guda_core import paths
from guda_core.attribution import calibration
from guda_core.attribution.guda import Guda
from guda_core.cli.publish_lines import publish_lines
from guda_core.data.encoders import bank_name
from guda_core.data.groups import load_group_set
from guda_core.data.sources.source import open_dataset
from guda_core.diffusion.cards import find_card, load_model, read_cards
from guda_core.errors import AdapterError, DataError, OptionError
from guda_core.local import load_service
from guda_core.publishing import published
from guda_core.publishing.hub_card import plain
from guda_core.publishing.published import publish
from guda_core.unlearning import adapters
from guda_core.unlearning.adapter_files import NOTHING_FORGOTTEN, forgot_nothing
from guda_core.unlearning.health import KINDS, read_all
from tests.loopback_hub import loopback_hub
from tests.own_pictures import guda
from tests.own_workspace import entry, own_workspace, plant
from tests.tiny_single_file import save_single

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


@pytest.fixture
def work(home):
    return own_workspace(home)


def made(**asked):
    return publish(find_card("brush"), load_group_set("artists"), **asked)


def scores(service):
    found = list(service.attribute(service.query(PIXELS, "a cat, by Dee"), methods=["guda"], effort="quick"))[-1]
    return {g: s.score for g, s in found.groups.items()}


def front(text: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)---\n", text, re.DOTALL)[1])


def test_it_holds_adapters_groups_and_the_card_and_nothing_of_the_pictures(work):
    found = made()
    names = {p.relative_to(found.folder).as_posix() for p in found.folder.rglob("*") if p.is_file()}
    adapter = {f"runs/brush/artists/adapters/{g}/{f}" for g in ("ann-lee", "bo-chan", "dee") for f in (
        "guda.json", "adapter_model.safetensors", "adapter_config.json", "health.json")}  # fmt: skip
    alone = {"README.md", "models/brush.yaml", "sets/artists/group_set.yaml", "runs/brush/artists/run.json"}
    assert names == adapter | alone and not found.missing and not found.model_inside
    for name in names:
        if not name.endswith(".safetensors"):
            text = (found.folder / name).read_text(encoding="utf-8")
            assert "secret" not in text and str(work) not in text


def test_the_models_card_says_what_is_known_and_what_is_not(work):
    text = (made(on_hub="ann/brush").folder / "README.md").read_text(encoding="utf-8")
    told = front(text)
    assert told["base_model"] == "ann/brush" and "guda" in told["tags"]
    assert not [k for k in told if k.startswith("license")]  # nobody gave one
    assert "| Ann Lee | Ann Lee | [CC\\-BY" not in text  # a dash is no markup
    assert (
        "| Ann Lee | Ann Lee | [CC-BY-4.0](https://creativecommons.org/licenses/by/4.0/) | by Ann Lee | yes |" in text
    )
    assert "| Bo Chan | not stated | not stated | by Bo Chan | yes |" in text
    assert "| steps | 80 |" in text and "checkpoint\\_s" not in text
    assert "| Bo Chan | 10.0 ± 0.5 (n = 16) | 8.0 ± 0.5 (n = 16) |" in text
    assert "guda app --home hub:USER/NAME" in text and "The scores hold no offset." in text
    assert "The model itself is not in this repository" not in text


def test_no_licence_is_given_in_the_publishers_name_and_the_models_goes_with_it(work):
    sets, mine = load_group_set("artists"), work / "models" / "brush"
    free = {gid: dataclasses.replace(g, licence="CC-BY-NC-ND-4.0") for gid, g in sets.groups.items()}
    for name in ("LICENSE", "LICENSE.txt", "NOTICE"):
        (mine / name).write_text("Its terms.")
    card = dataclasses.replace(find_card("brush"), licence="CreativeML OpenRAIL-M")
    folder = publish(card, dataclasses.replace(sets, groups=free), with_model=True).folder
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "license" not in front(text)
    assert "The base model: CreativeML OpenRAIL-M." in text and "not stated by who published them" in text
    assert {p.name for p in (folder / "models" / "brush").iterdir()} >= {"LICENSE", "LICENSE.txt", "NOTICE"}
    assert "It holds a LoRA" not in text


PRIVATE = (
    "train/cat.png", "checkpoint-500/unet/config.json", "sample.png", "metadata.jsonl", "wandb/wandb-summary.json",
    "trainer_state.json", "unet/trainer_state.json", "unet/old/model.safetensors", "optimizer.safetensors", "NOTES.md",
    "config.yaml", "safety_checker/config.json",
)  # fmt: skip


def strew(folder):
    for name in PRIVATE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "LICENSE").write_text("Its terms.")


def test_of_a_models_folder_only_what_it_is_opened_from_is_published(work):
    mine = work / "models" / "brush"
    whole = {p.relative_to(mine).as_posix() for p in mine.rglob("*") if p.is_file()}
    strew(mine)
    for name, key in (("unet/config.json", "_name_or_path"), ("tokenizer/tokenizer_config.json", "name_or_path")):
        told = json.loads((mine / name).read_text())
        (mine / name).write_text(json.dumps({**told, key: "/home/ann/secret"}))
    there = made(with_model=True).folder / "models" / "brush"
    assert not [p for p in there.rglob("*.json") if "secret" in p.read_text()]
    assert {p.relative_to(there).as_posix() for p in there.rglob("*") if p.is_file()} == whole | {"LICENSE"}
    card = find_card("brush")
    assert load_model(replace(card, path=str(there))).sha256 == load_model(card).sha256


def test_beside_a_single_file_only_its_settings_and_tokenizers_are_published(work):
    mine, one = work / "models" / "brush", work / "models" / "one.safetensors"
    save_single(mine, one)
    card = replace(find_card("brush"), source="file", path=str(one))
    strew(work / "models" / "one")  # no settings: pictures of the same name
    shutil.copytree(mine / "tokenizer", work / "models" / "tokenizer")
    (work / "models" / "tokenizer" / "notes.json").write_text("private")

    def files():
        there = publish(card, load_group_set("artists"), with_model=True).folder / "models"
        return {p.relative_to(there).as_posix() for p in there.rglob("*") if p.is_file()}

    tokenizer = {p.name for p in (mine / "tokenizer").iterdir()}
    alone = {"brush.yaml", "brush.safetensors", *[f"tokenizer/{name}" for name in tokenizer]}
    assert files() == alone
    shutil.copytree(mine, work / "models" / "one", dirs_exist_ok=True)
    own = {p.relative_to(mine) for p in mine.rglob("*.*") if p.suffix != ".safetensors"}
    assert files() == alone | {f"brush/{p.as_posix()}" for p in own} | {"brush/LICENSE"}
    there = work / "published" / "brush" / "artists" / "models"
    assert load_model(read_cards(there / "brush.yaml")["brush"]).sha256 == load_model(card).sha256


def test_a_licence_is_given_only_where_it_is_asked_for_and_stays(work):
    for asked in ({"licence": "cc-by-sa-4.0"}, {}):
        found = made(**asked)
        text = (found.folder / "README.md").read_text(encoding="utf-8")
        assert front(text)["license"] == found.licence == "cc-by-sa-4.0"
        assert "The adapters and features: cc-by-sa-4.0, given by who published them." in text
    assert "gives no licence" not in guda("assets", "card", "--licence", "mit") and made().licence == "mit"
    text = (made(with_model=True).folder / "README.md").read_text(encoding="utf-8")
    assert "features: mit, given" in text and "license" not in front(text)  # the model in it has its own
    assert made(licence="openrail++").licence == made().licence == "openrail++"
    for name in ("My own: see\nbelow", ".", "4.0", "CC-BY-4.0"):
        with pytest.raises(OptionError, match="A licence is named as the Hub spells it"):
            made(licence=name)


def test_what_strangers_wrote_into_an_adapters_files_is_no_markup(work):
    there = paths.run("brush", "artists").own / "adapters"
    health = json.loads((there / "dee" / "health.json").read_text())
    kind = next(k for k in KINDS if k in health)
    health[kind]["n"] = "<b>"
    (there / "dee" / "health.json").write_text(json.dumps(health))
    path = there / "bo-chan" / "guda.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, "base_sha256": f"{meta['base_sha256'][:12]}`<img src=x>`"}))
    found = made()
    text = (found.folder / "README.md").read_text(encoding="utf-8")
    assert "base_sha256 is no SHA-256, which has 64 of the digits" in found.missing["bo-chan"]
    assert "<img" not in text and "<b>" not in text and r"(n = \<b\>)" in text
    path.write_text(json.dumps({**meta, "base_sha256": meta["base_sha256"][:12] + "0" * 52}))  # the same at its start
    with pytest.raises(AdapterError, match="The adapters are of 2 models"):
        made()


SAME = {k: {"mean": 10.0, "se": 0.5, "n": 16} for k in KINDS}


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, True),
        ({"forgotten_empty": {"mean": 11.3, "se": 0.5, "n": 16}}, True),
        ({"forgotten_empty": {"mean": 11.5, "se": 0.5, "n": 16}}, False),
        ({"forgotten_prompt": {"mean": -9.0, "se": 0.0, "n": 16}, "others_empty": {"mean": -9.0, "n": 1}}, True),
        ({f"others_{k}": {"mean": 10.0, "n": 1} for k in ("prompt", "empty")}, False),
        (dict.fromkeys(KINDS, "damaged"), False),
    ],
)
def test_the_models_card_and_answers_say_which_adapters_forgot_nothing(work, changes, kept):
    there = paths.run("brush", "artists").own / "adapters"
    health = json.loads((there / "dee" / "health.json").read_text())
    (there / "dee" / "health.json").write_text(json.dumps(health | SAME | changes))
    said = NOTHING_FORGOTTEN.format(which="Dee")
    assert (said in (made().folder / "README.md").read_text(encoding="utf-8")) == kept
    model, gs = load_model(find_card("brush")), load_group_set("artists")
    assert Guda(model, gs, there).caveat() == (said if kept else "")


def test_of_the_shipped_adapters_each_forgot():
    found = read_all(paths.Layers((paths.SHIPPED_RUN / "adapters",)), load_group_set("emoji").groups)
    assert len(found) == 8 and not any(forgot_nothing(h) for h in found.values())


def test_settings_that_differ_are_told_by_group(work):
    plant(paths.run("brush", "artists").own / "adapters" / "dee", "dee", 2, steps=40)
    text = (made().folder / "README.md").read_text(encoding="utf-8")
    assert "| steps | ann-lee: 80; bo-chan: 80; dee: 40 |" in text
    assert "The model itself is not in this repository. Put it into `models/brush/`" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", r"a\|b"),
        ("# x\n\n- y", r"\# x - y"),
        ("<b>", r"\<b\>"),
        ("[a](b)", r"\[a\]\(b\)"),
        ("x\x1b[2J", r"x \[2J"),
    ],
)
def test_texts_from_outside_are_no_markup(text, expected):
    assert plain(text) == expected


def test_the_hubs_copy_gives_the_same_scores_by_one_variable(work, tmp_path, monkeypatch):
    here = scores(load_service(None, fall_back=False))
    folder = made(with_model=True).folder
    with loopback_hub(tmp_path) as hub:
        hub.upload("ann/brush", folder)
        monkeypatch.setenv("GUDA_HOME", "hub:ann/brush")
        service = load_service()
        assert service.model.card.id == "brush" and service.group_set.id == "artists" and service.banner == ""
        assert scores(service) == here and None not in here.values()
        guda_ = service.offered["guda"]  # its adapters' health has what an offset is made of, but no weight was fitted
        assert guda_.offset == {} and guda_.provenance()["offset"] == {}
        with pytest.raises(DataError, match="were not published with it"):
            open_dataset(service.group_set).split("train")
        said = guda("unlearn", code=2)
        assert "read only" in said and "hf download ann/brush" in said


def test_an_adapter_of_another_set_group_model_or_settings_leaves_only_its_group_without_a_score(work, monkeypatch):
    folder = made(with_model=True).folder
    there = folder / "runs" / "brush" / "artists" / "adapters"
    monkeypatch.setenv("GUDA_HOME", str(folder))
    for change, why in (
        ({"group_set": "others"}, "was made for the group set 'others', not 'artists'"),
        ({"group": "dee"}, "it is of group 'dee', not 'bo-chan'"),
        ({"base_sha256": "0" * 64}, "it was made for another base model"),
        ({"settings_sha256": "40"}, "with other settings than its workspace says in run.json"),
    ):
        path = there / "bo-chan" / "guda.json"
        before = path.read_text()
        path.write_text(json.dumps({**json.loads(before), **change}))
        service = load_service(None, fall_back=False)
        assert why in service.offered["guda"].unavailable["bo-chan"]
        found = scores(service)
        assert found["bo-chan"] is None and found["ann-lee"] is not None and found["dee"] is not None
        path.write_text(before)


def test_an_adapter_made_anew_in_a_copy_is_not_held_to_what_was_published(work, tmp_path, monkeypatch):
    folder = made(with_model=True).folder
    run = folder / "runs" / "brush" / "artists"
    monkeypatch.setenv("GUDA_HOME", str(folder))
    plant(run / "adapters" / "dee", "dee", 2, steps=40)
    assert not (run / "run.json").exists()
    service = load_service(None, fall_back=False)
    assert service.offered["guda"].unavailable == {}


def test_a_rule_and_a_weight_are_published_where_they_are_sound_and_of_this_model_and_set(work):
    run = paths.run("brush", "artists").own
    base = adapters.read_meta(run / "adapters" / "dee")["base_sha256"]
    shipped = json.loads((paths.SHIPPED_RUN / "scope.json").read_text(encoding="utf-8"))
    of = calibration.fitted_with(paths.run("brush", "artists").adapters, ["dee"])
    sound = {
        "calibration.json": {"offset_weight": 0.5, "base_sha256": base, "group_set": "artists", **of},
        "scope.json": {**shipped, "base_sha256": base, "group_set": "artists"},
    }

    def published(**changes):
        for name, told in sound.items():
            (run / name).write_text(json.dumps({**told, **changes}), encoding="utf-8")
        return made()

    good = published()
    there = good.folder / "runs" / "brush" / "artists"
    assert not good.left_out
    for name in sound:
        assert (there / name).read_bytes() == (run / name).read_bytes()
    for changes, why in (
        ({"base_sha256": "0" * 64}, "was made for another base model (000000000000, this one is "),
        ({"group_set": "others"}, "was made for another group set ('others', not 'artists')"),
        ({"date": 5}, "holds no usable date, but 5"),
        ({"note": "/home/ann"}, "It holds 'note', which is none of its entries."),
    ):
        found = published(**changes)
        assert set(found.left_out) == set(sound) and all(why in said for said in found.left_out.values())
        assert not any((there / name).exists() for name in sound)
        assert "The scores hold no offset." in (found.folder / "README.md").read_text(encoding="utf-8")
    said = guda("assets", "card", "--model", "brush", "--set", "artists")
    assert "Without scope.json: It holds 'note'" in said and "Without calibration.json: It holds 'note'" in said


def with_encoder(work, encoder: str) -> None:
    path = work / "models" / "brush.yaml"
    told = yaml.safe_load(path.read_text(encoding="utf-8"))
    told["brush"]["encoder"] = encoder
    path.write_text(yaml.safe_dump(told), encoding="utf-8")


@pytest.mark.parametrize("place", ["eyes", "{work}/models/eyes", "/mnt/ann/eyes", "~/ann-eyes"])
def test_an_encoder_on_the_authors_disk_is_not_named_and_what_needs_it_is_left_out(work, place):
    (work / "models" / "eyes").mkdir()
    with_encoder(work, f"clip:{place.format(work=work)}")
    run = paths.run("brush", "artists").own
    base = adapters.read_meta(run / "adapters" / "dee")["base_sha256"]
    shipped = json.loads((paths.SHIPPED_RUN / "scope.json").read_text(encoding="utf-8"))
    (run / "scope.json").write_text(json.dumps({**shipped, "base_sha256": base, "group_set": "artists"}))
    (run / bank_name(find_card("brush"))).write_bytes(b"features")
    found = made(with_model=True)
    assert "folder on this machine" in found.left_out["the encoder"]
    inside = [p.relative_to(found.folder).as_posix() for p in found.folder.rglob("*") if p.is_file()]
    assert not any("bank" in n or "scope" in n for n in inside)
    for name in inside:
        assert "eyes" not in name and b"eyes" not in (found.folder / name).read_bytes()
    assert "encoder" not in yaml.safe_load((found.folder / "models" / "brush.yaml").read_text())["brush"]
    said = guda("assets", "card", "--model", "brush", "--set", "artists")
    assert "Without the encoder: What sees likeness is a folder" in said


def test_an_encoder_of_the_hub_is_named_and_only_its_bank_is_published(work):
    with_encoder(work, "dinov2:facebook/dinov2-small")
    run = paths.run("brush", "artists").own
    for name in (bank_name(find_card("brush")), "bank-clip-home-ann-eyes.safetensors"):
        (run / name).write_bytes(b"features")
    found = made()
    assert not found.left_out
    assert [p.name for p in found.folder.rglob("bank*")] == ["bank-dinov2-facebook-dinov2-small.safetensors"]
    card = yaml.safe_load((found.folder / "models" / "brush.yaml").read_text(encoding="utf-8"))["brush"]
    assert card["encoder"] == "dinov2:facebook/dinov2-small"


def test_what_cannot_be_published_is_told(work, monkeypatch):
    run = paths.run("brush", "artists").own
    (run / "adapters" / "dee" / "guda.json").unlink()
    assert "no finished adapter" in made().missing["dee"]
    plant(run / "adapters" / "dee", "dee", 2, group_set="others")
    assert "'others'" in made().missing["dee"]
    path = run / "adapters" / "dee" / "guda.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_sha256": "1" * 64, "group_set": "artists"}))
    with pytest.raises(AdapterError, match="of 2 models"):
        made()
    for gid in ("ann-lee", "bo-chan", "dee"):
        (run / "adapters" / gid / "guda.json").unlink()
    with pytest.raises(AdapterError, match="no adapter of 'artists' to publish"):
        made()
    with pytest.raises(AdapterError):
        publish(find_card("sd15"), load_group_set("artists"), with_model=True)


def test_the_command_makes_it_again_and_remembers_where_the_model_is(work):
    said = guda("assets", "card")
    assert "The model itself is not in it" in said and "Ready to publish" in said
    assert "author or licence is not stated: bo-chan" in said and "Publish them only if you may" in said
    assert "gives no licence in your name" in said
    guda("assets", "card", "--model-on-hub", "ann/brush")
    assert "The model itself" not in guda("assets", "card")
    models = work / "published" / "brush" / "artists" / "models"
    card = yaml.safe_load((models / "brush.yaml").read_text())["brush"]
    assert card["source"] == "hub" and card["path"] == "ann/brush" and card["group_set"] == "artists"
    assert "the model is on the Hub: ann/brush. That stays" in guda("assets", "card", "--without-model")
    guda("assets", "card", "--with-model")
    assert "Give one of them" in guda("assets", "card", "--with-model", "--model-on-hub", "ann/brush", code=2)
    said = guda("assets", "card")
    assert (models / "brush" / "model_index.json").is_file()
    assert "own files are in it. That stays when the folder is made again." in said and "--without-model`" in said
    assert "The model itself is not in it" in guda("assets", "card", "--without-model")
    assert not (models / "brush").exists() and "The model itself is not in it" in guda("assets", "card")
    assert not (models / "brush").exists()


def test_what_is_said_names_the_folder_first_and_its_commands_can_be_typed(work, monkeypatch):
    monkeypatch.setenv("GUDA_LORA", "mine.safetensors")
    said = list(publish_lines(find_card("brush"), load_group_set("artists"), "my models/brush"))
    folder = work / "published" / "brush" / "artists"
    assert said[0] == f"Ready to publish: {folder}" and said[-1].endswith(f'hf upload USER/NAME {folder} --delete "*"')
    of = '--set artists --model "my models/brush" --lora mine.safetensors'
    assert f"`guda assets card {of} --with-model` puts it in" in said[1] and f"card {of} --licence NAME" in said[-2]


def test_what_was_taken_out_of_the_folder_leaves_the_repository_with_the_command_that_is_told(work, tmp_path):
    with loopback_hub(tmp_path) as hub:
        for inside in (True, False):
            *_, last = publish_lines(find_card("brush"), load_group_set("artists"), "brush", with_model=inside)
            hf, upload, _, folder, *words = shlex.split(last.partition(": ")[2])
            assert (hf, upload) == ("hf", "upload")
            hub.upload("ann/brush", Path(folder), delete=words == ["--delete", "*"])
            names = hub.files("ann/brush", "main")[1]
            assert "README.md" in names and any(n.startswith("models/brush/") for n in names) == inside


@pytest.mark.parametrize("before", ["", "hub:", "https://huggingface.co/", "hf.co/"])
def test_where_the_model_is_may_be_its_address_on_the_hub(work, before):
    found = made(on_hub=f"{before}ann/brush" + ("/tree/main/" if "/" in before else ""))
    assert found.on_hub == "ann/brush"
    assert yaml.safe_load((found.folder / "models" / "brush.yaml").read_text())["brush"]["path"] == "ann/brush"
    assert front((found.folder / "README.md").read_text(encoding="utf-8"))["base_model"] == "ann/brush"


def test_of_a_single_file_it_is_said_in_which_layout_the_hub_must_have_it(work):
    of_file = replace(find_card("brush"), source="file")
    for card, said in (
        (of_file, "ann/brush. It must be there as a folder in diffusers' layout"),
        (find_card("brush"), "ann/brush. That stays"),
    ):
        assert said in " ".join(publish_lines(card, load_group_set("artists"), "brush", on_hub="ann/brush"))


@pytest.mark.parametrize(
    "name", ["brush", "~/models/brush", "ann/brush/unet", "ann/brush@1", "https://example.org/ann/brush", "../brush"]
)
def test_what_names_no_repository_of_the_hub_is_refused(work, name):
    with pytest.raises(OptionError, match=f"named USER/NAME, not '{name}'"):
        made(on_hub=name)
    assert not (work / "published").exists()


def test_two_processes_that_publish_at_once_wait_for_each_other(work, monkeypatch):
    inside, most, real = [0], [], published._write

    def write(*a, **more):
        inside[0] += 1
        most.append(inside[0])
        time.sleep(0.3)
        try:
            return real(*a, **more)
        finally:
            inside[0] -= 1

    monkeypatch.setattr(published, "_write", write)
    with ThreadPoolExecutor(2) as pool:
        folders = {f.result().folder for f in [pool.submit(made) for _ in range(2)]}
    assert most == [1, 1] and (folders.pop() / "README.md").is_file() and not folders


def test_what_is_published_does_not_change_with_the_users_own_files(work, tmp_path, monkeypatch):
    adapters_of = work / "runs" / "brush" / "artists" / "adapters"
    own = tmp_path / "style.safetensors"
    shutil.copyfile(adapters_of / "dee" / "adapter_model.safetensors", own)
    card = dataclasses.replace(find_card("brush"), lora=str(own))
    folder = publish(card, load_group_set("artists"), with_model=True).folder
    files = [p for p in (folder / "models").rglob("*") if p.is_file()]
    assert "It holds a LoRA. If that was trained on" in (folder / "README.md").read_text(encoding="utf-8")
    before, theirs = {p: p.read_bytes() for p in files}, [own, *(work / "models" / "brush").rglob("*.*")]
    assert len([p for p in files if p.suffix == ".safetensors"]) == 4
    for path in theirs:
        with path.open("r+b") as f:
            f.write(b"changed in place")
    assert {p: p.read_bytes() for p in files} == before
    weights = folder / "runs" / "brush" / "artists" / "adapters" / "dee" / "adapter_model.safetensors"
    assert weights.samefile(adapters_of / "dee" / weights.name)  # these are only ever replaced


def test_a_model_from_the_hub_cannot_be_put_in(work):
    card = replace(find_card("brush"), source="hub", path="ann/brush")
    with pytest.raises(OptionError, match="not on this machine's disk"):
        publish(card, load_group_set("artists"), with_model=True)


def test_the_published_set_says_the_same_of_its_groups(work):
    folder = made().folder
    found, own = load_group_set("artists", folder / "sets"), load_group_set("artists")
    assert found.source == "not-published" and entry()["source"] != "not-published"
    assert found.caption == own.caption and found.fit == own.fit
    for gid, group in own.groups.items():
        assert found.groups[gid] == group
    assert adapters.read_meta(folder / "runs" / "brush" / "artists" / "adapters" / "dee")["group"] == "dee"


@pytest.mark.parametrize(("model", "group_set"), [("../../pictures", "artists"), ("brush", "../.."), ("brush", "..")])
def test_nothing_outside_the_published_folder_is_replaced(work, model, group_set):
    own = work / "pictures" / "artists" / "mine.png"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    for gid in ("ann-lee", "bo-chan", "dee"):  # what `guda unlearn` would have left there before ids were checked
        shutil.copytree(
            paths.run("brush", "artists").own / "adapters" / gid, paths.run(model, group_set).own / "adapters" / gid
        )
    before = sorted(p for p in work.rglob("*"))
    with pytest.raises(OptionError, match="lead out of"):
        publish(replace(find_card("brush"), id=model), replace(load_group_set("artists"), id=group_set))
    assert own.read_bytes() == b"mine" and sorted(work.rglob("*")) == before
