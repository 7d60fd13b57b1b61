"""What the fuzz run found, each with a small input: refused on one line, or read as it is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from experiments.fuzz import report_door
from experiments.fuzz.model_door import UNET
from experiments.fuzz.mutations import plain_safetensors
from experiments.fuzz.picture_door import chunk
from experiments.fuzz.set_door import LAUGHS, LISTED, SET, laid_out
from guda_core import paths
from guda_core.data.containers import PNG, png_chunks
from guda_core.data.groups import load_group_set
from guda_core.data.images import read_picture
from guda_core.data.own import set_files
from guda_core.data.own.in_folder import find_in_folder, find_in_table
from guda_core.data.own.new_set import NewSet, draft
from guda_core.data.own.picture_list import read_list
from guda_core.data.sources.source import open_dataset
from guda_core.diffusion.cards import CARDS, load_model, read_cards, resolve_card
from guda_core.errors import (
    LONGEST,
    DataError,
    GroupSetError,
    GudaError,
    ImageError,
    ModelError,
    OptionError,
    ReportError,
)
from guda_core.reports.read import read_report
from guda_core.service import check_methods, find_effort
from guda_core.strict import Bounded, parse_yaml
from guda_core.ui.uploads import uploaded
from tests.test_imaging import encoded
from tests.tiny import save_tiny

LONG = "a" * 300  # longer than a file's name can be


def test_every_message_is_one_line_of_bounded_length_that_keeps_its_end():
    assert str(GudaError("It failed:\n  in a.yaml\n\n  at line 3. ")) == "It failed: in a.yaml at line 3."
    long = str(GudaError("x" * 9000 + " Do this."))
    assert len(long) <= LONGEST and long.startswith("xxx") and long.endswith(" Do this.")
    assert str(GudaError()) == ""


def test_a_palette_picture_without_its_palette_is_damaged():
    data = encoded(Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).convert("P"), "PNG")
    bare = PNG + b"".join(chunk(n, b) for n, b, _ in png_chunks(data) if n != b"PLTE")
    with pytest.raises(ImageError, match="damaged or cut off"):
        read_picture(bare, size=32)


def written(tmp_path, text: str):
    folder = tmp_path / "sets" / "mine"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SET).write_text(text, encoding="utf-8")
    return tmp_path / "sets"


@pytest.mark.parametrize(
    "value",
    ["2026-13-45", "2026-11-26 99:99:99", "!!int x", "!!int ''", "!!float x", "!!bool x", "!!timestamp x", "9" * 5000],
)
def test_values_that_yaml_cannot_make_are_refused_in_sets_and_cards(value, tmp_path):
    root = written(tmp_path, LISTED.replace("resolution: 64", f"resolution: {value}"))
    with pytest.raises(GroupSetError, match="is not readable as YAML"):
        load_group_set("mine", root)
    (tmp_path / "card.yaml").write_text(f"mine: {{name: {value}}}", encoding="utf-8")
    with pytest.raises(ModelError, match=r"card\.yaml cannot be read"):
        read_cards(tmp_path / "card.yaml")


@pytest.mark.parametrize("use", ["source: *i", "groups: {a-b: *i, c: *i}", "resolution: *i", "name: *i"])
def test_aliases_that_make_much_of_little_are_refused(use, tmp_path):
    head, groups = LISTED.split("groups:\n")
    kept = "" if use.startswith("groups") else f"groups:\n{groups}"
    rest = [*(line for line in head.split("\n") if not line.startswith(use.split(":")[0])), kept]
    with pytest.raises(GroupSetError, match="repeat too much"):
        load_group_set("mine", written(tmp_path, LAUGHS + "\n".join(rest) + f"\n{use}\n"))
    with pytest.raises(yaml.YAMLError, match="repeat too much"):
        parse_yaml("a: &a [*a]")


def test_aliases_that_only_save_words_are_read(tmp_path):
    text = LISTED.replace("author: Ann", "author: &ann Ann").replace("licence: CC0", "licence: CC0\n    author: *ann")
    found = load_group_set("mine", written(tmp_path, text))
    assert found.groups["bo-chan"].author == "Ann" and found.groups["bo-chan"].licence == "CC0"
    rows = "\n".join(f"- {{name: &n{i} 'row {i}', again: *n{i}}}" for i in range(2000))
    assert parse_yaml(rows, Bounded)[1999] == {"name": "row 1999", "again": "row 1999"}


@pytest.mark.parametrize("name", [LONG, "a\0b", "~nobody-of-that-name/x", f"{LONG}/b"])
def test_names_that_no_file_can_have_are_not_there(name, tmp_path, monkeypatch):
    assert not paths.is_file(name) and not paths.is_folder(name) and not paths.is_there(name)
    with pytest.raises(GroupSetError, match="There is no group set"):
        load_group_set(name, tmp_path)
    for model in (name, f"{name}.yaml", f"{name}.safetensors"):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(ModelError):
            resolve_card(model)
    with pytest.raises(ModelError, match="There is no LoRA file"):
        resolve_card("emoji", lora=name)
    root = written(tmp_path, LISTED.replace("path: pictures", f"path: {json.dumps(name)}"))
    (root / "mine" / "pictures.jsonl").write_text(
        json.dumps({"picture": name, "group": "bo-chan", "sha256": "0"}) + "\n", encoding="utf-8"
    )
    dataset = open_dataset(load_group_set("mine", root))
    assert dataset.missing() == [name]  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="there is no such folder"):
        dataset.split("train")[0].image(16)


def test_a_workspace_of_nobody_is_an_empty_one(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GUDA_HOME", "~nobody-of-that-name/x")
    assert load_group_set().id == "emoji" and paths.home().name == "x"


@pytest.mark.parametrize("kind", ["metadata.jsonl", "table.jsonl", "table.json"])
def test_tables_with_names_and_numbers_that_cannot_be(kind, tmp_path):
    laid_out(tmp_path)

    def find():
        return find_in_folder(tmp_path) if kind.startswith("metadata") else find_in_table(tmp_path / kind)

    def write(row: str) -> None:
        (tmp_path / kind).write_text(f"[{row}]" if kind.endswith(".json") else row + "\n", encoding="utf-8")

    write(json.dumps({"file_name": f"{LONG}.png", "group": "x"}))
    assert find().missing and "not there" in find().missing[0]
    write('{"file_name": ' + "9" * 5000 + ', "group": "x"}')
    with pytest.raises(DataError, match="is not readable as JSON"):
        find()
    write('{"file_name": "Ann Lee/0.png", "group": "x", "text": "\\ud800"}')
    with pytest.raises(DataError, match="half a character"):
        find()


def test_a_single_file_whose_first_weight_has_another_number_of_sides_is_no_model(tmp_path):
    for shape in ([], [8], [8, 4]):
        (tmp_path / "a.safetensors").write_bytes(plain_safetensors({UNET: ("F16", shape, 2)}))
        with pytest.raises(ModelError, match="holds no whole Stable Diffusion"):
            resolve_card(tmp_path / "a.safetensors")


@pytest.mark.parametrize("asked", [None, 3, "clip", {"clip": 1}, [1], [None], [["clip"]]])
def test_methods_and_efforts_of_another_type_are_refused(asked):
    with pytest.raises(OptionError, match="must be a list of ids"):
        check_methods(asked, {"clip": 1})
    with pytest.raises(OptionError, match="There is no effort"):
        find_effort(asked)


def test_an_upload_whose_name_no_file_can_have_was_not_uploaded():
    for path in ("a\0b", "/" + LONG * 20):
        with pytest.raises(ImageError):
            uploaded(path)


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        (
            "scheduler/scheduler_config.json",
            {"num_train_timesteps": 2**31},
            "its num_train_timesteps is beyond 100,000",
        ),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": float("inf")}, "cannot be loaded|damaged"),
        ("unet/config.json", {"layers_per_block": float("inf")}, "cannot be loaded|damaged"),
        ("vae/config.json", {"block_out_channels": [8, 1e300]}, "its block_out_channels is beyond 10,000,000"),
        ("unet/config.json", {"layers_per_block": 10**9}, "its layers_per_block is beyond 1,000"),
        ("text_encoder/config.json", {"num_hidden_layers": 10**6}, "its num_hidden_layers is beyond 1,000"),
        ("vae/config.json", {"block_out_channels": [8, 2**40]}, "its block_out_channels is beyond 10,000,000"),
        ("scheduler/scheduler_config.json", {"beta_start": "much"}, "cannot be loaded|damaged"),
        ("scheduler/scheduler_config.json", {"beta_schedule": None}, "cannot be loaded|does not know|damaged"),
        ("unet/config.json", {"sample_size": "[/b]"}, "says its size as"),
        ("vae/config.json", {"block_out_channels": "text"}, "cannot be loaded|damaged"),
    ],
)
def test_settings_of_a_model_that_make_no_sense_are_refused(file, changes, sentence, tmp_path):
    card = save_tiny(tmp_path / "model")
    path = tmp_path / "model" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}), encoding="utf-8")
    with pytest.raises(ModelError, match=sentence):
        load_model(card, device="cpu")
    with pytest.raises(ModelError):  # the card of a folder is made from the same files
        load_model(resolve_card(tmp_path / "model"), device="cpu")


@pytest.mark.parametrize("device", ["banana", "cuda:99", "cpu,cuda"])
def test_a_device_that_is_not_there_is_one_sentence(device, tmp_path):
    with pytest.raises(OptionError, match=f"There is no device '{device}' here. There is: cpu") as found:
        load_model(save_tiny(tmp_path / "model"), device=device)
    assert "\n" not in str(found.value)


def test_line_ends_of_another_system_change_nothing(tmp_path):
    root = written(tmp_path, LISTED)
    lists = root / "mine" / "pictures.jsonl"
    lists.write_text(json.dumps({"picture": "a/1.png", "group": "bo-chan", "sha256": "0"}) + "\n", encoding="utf-8")
    (tmp_path / "cards.yaml").write_bytes(CARDS.read_bytes())
    laid_out(tmp_path / "pictures")
    table = tmp_path / "pictures" / "table.csv"
    table.write_text("file,group,text\nAnn Lee/0.png,Ann Lee,a cat\nBo Chan/1.png,Bo Chan,\n", encoding="utf-8")

    def read():
        table_rows = [(c.picture, c.group, c.text) for c in find_in_table(table).candidates]
        return load_group_set("mine", root), read_list(lists), read_cards(tmp_path / "cards.yaml"), table_rows

    before = read()
    for path in (root / "mine" / SET, lists, tmp_path / "cards.yaml", table):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert read() == before


def test_two_names_of_one_file_that_differ_in_case_alone_are_one_picture_named_twice(tmp_path):
    """As on a disk to which upper and lower case are the same. Other names of one file are pictures of their own."""
    (tmp_path / "Cat.png").write_bytes(b"1")
    (tmp_path / "cat.png").hardlink_to(tmp_path / "Cat.png")
    (tmp_path / "dog.png").hardlink_to(tmp_path / "Cat.png")
    (tmp_path / "DOG.png").write_bytes(b"2")
    table = tmp_path / "t.csv"
    table.write_text("file,group\nCat.png,ann\ndog.png,ann\nDOG.png,bo\nnone.png,bo\n")
    assert [c.picture for c in find_in_table(table).candidates] == ["Cat.png", "dog.png", "DOG.png"]
    for twice in ("cat.png", "Cat.png", "./Cat.png", "none.png"):
        table.write_text(f"file,group\nCat.png,ann\nnone.png,bo\n{twice},bo\n")
        with pytest.raises(DataError, match=rf"line 4: '{twice}' was named already in t\.csv, line [23]"):
            find_in_table(table)


def test_a_home_that_cannot_be_written_to_is_said(tmp_path, monkeypatch):
    laid_out(tmp_path)
    (tmp_path / "closed").write_text("a file where the workspace should be")
    monkeypatch.setenv("GUDA_HOME", str(tmp_path / "closed" / "home"))
    made = draft(find_in_folder(tmp_path), NewSet("Mine", resolution=32))
    with pytest.raises(DataError, match="The group set cannot be written to"):
        set_files.write(made)


@pytest.mark.parametrize("offset", [{"noto": "much"}, [1], "x", {"noto": None}, {"noto": [1]}])
def test_a_report_whose_offsets_are_no_numbers_is_refused(offset, tmp_path):
    record = json.loads(report_door.sound()["report.json"])
    record["methods"]["guda"]["settings"]["offset"] = offset
    (tmp_path / "r.zip").write_bytes(report_door.zipped(report_door.agreeing(report_door.sound(), record)))
    with pytest.raises(ReportError, match="does not follow the report's schema"):
        read_report(tmp_path / "r.zip")
    record["methods"]["guda"]["settings"]["offset"] = {"noto": 1}
    (tmp_path / "r.zip").write_bytes(report_door.zipped(report_door.agreeing(report_door.sound(), record)))
    assert read_report(tmp_path / "r.zip").record["methods"]["guda"]["settings"]["offset"] == {"noto": 1}
