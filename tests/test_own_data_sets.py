"""Group sets from data sets that the library `datasets` reads: on disk, parquet, folders, and the Hub by its name."""

from __future__ import annotations

import builtins
import sys

import datasets
import pytest
from PIL import Image

from guda_core.data.groups import load_group_set
from guda_core.data.own import data_sets
from guda_core.data.sources.source import open_dataset
from guda_core.errors import DataError
from tests.own_pictures import guda, waves

NAMES = ["Ann_Lee", "Bo"]


def rows(n: int = 6) -> datasets.Dataset:
    """Pictures in turn by two artists, with their files' bytes inside."""
    features = datasets.Features({
        "picture": datasets.Image(), "artist": datasets.ClassLabel(names=NAMES), "caption": datasets.Value("string"),
        "license": datasets.Value("string"),
    })  # fmt: skip
    told = {
        "picture": [Image.fromarray(waves(i % 2, i, 40, 30)) for i in range(n)],
        "artist": [i % 2 for i in range(n)],
        "caption": [f"a wave, number {i}" for i in range(n)],
        "license": ["CC0-1.0"] * n,
    }
    return datasets.Dataset.from_dict(told, features=features)


@pytest.fixture(params=["disk", "splits", "parquet", "folder"])
def place(request, tmp_path, home):
    """A data set in each form in which one lies on a disk."""
    if request.param == "disk":
        rows().save_to_disk(str(tmp_path / "set"))
    elif request.param == "splits":
        datasets.DatasetDict({"train": rows(), "test": rows(8).select([6, 7])}).save_to_disk(str(tmp_path / "set"))
    elif request.param == "parquet":
        rows().to_parquet(str(tmp_path / "set.parquet"))
        return tmp_path / "set.parquet"
    else:
        (tmp_path / "set" / "data").mkdir(parents=True)
        rows().to_parquet(str(tmp_path / "set" / "data" / "train-00000-of-00001.parquet"))
    return tmp_path / "set"


def test_a_data_set_becomes_a_group_set(place):
    columns = ("--image-column", "picture", "--group-column", "artist", "--text-column", "caption")
    guda("groups", "new", place, "--name", "own", *columns)
    gs = load_group_set("own")
    assert [(g.id, g.name, g.licence) for g in gs.groups.values()] == [
        ("ann-lee", "Ann Lee", "CC0-1.0"), ("bo", "Bo", "CC0-1.0")
    ]  # fmt: skip
    own = open_dataset(gs)
    items = {i.caption: i for i in (*own.split("train"), *own.split("held_out"))}
    assert len(items) == 6 and len(own.split("held_out")) == 2
    for i in range(6):
        item = items[f"a wave, number {i}"]
        assert item.group == gs_id(i)
        assert (item.image(30) == waves(i % 2, i, 40, 30)[:, 5:35]).all()  # the middle, at its own size
    assert "6" in guda("groups", "check", "own") and own.missing() == []


def gs_id(i: int) -> str:
    return ("ann-lee", "bo")[i % 2]


def test_columns_are_found_by_their_usual_names_and_missing_ones_named(home, tmp_path):
    rows().save_to_disk(str(tmp_path / "set"))
    said = guda("groups", "new", tmp_path / "set", "--split", "train")
    assert "Columns that were taken: 'picture' (image), 'artist' (group)" in said
    assert len(open_dataset(load_group_set("set")).split("train")) == 4
    assert "There is no column 'nope'. There are picture, artist" in guda(
        "groups", "new", tmp_path / "set", "--text-column", "nope", code=2
    )
    assert "There is no split 'test'" in guda("groups", "new", tmp_path / "set", "--split", "test", code=2)
    rows().rename_column("artist", "who").save_to_disk(str(tmp_path / "other"))
    assert "--group-column" in guda("groups", "new", tmp_path / "other", code=2)


def test_of_several_splits_the_one_for_training_is_taken(home, tmp_path):
    datasets.DatasetDict({"train": rows(4), "test": rows(6)}).save_to_disk(str(tmp_path / "set"))
    assert "Splits that were not taken: test (6)" in guda("groups", "new", tmp_path / "set")
    own = open_dataset(load_group_set("set"))
    assert len(own.split("train")) + len(own.split("held_out")) == 4
    guda("groups", "new", tmp_path / "set", "--split", "test", "--name", "other")
    assert {p.picture.split("/")[0] for p in open_dataset(load_group_set("other")).pictures} == {"test"}


def test_a_set_whose_data_set_changed_is_an_error(home, tmp_path):
    rows().save_to_disk(str(tmp_path / "set"))
    guda("groups", "new", tmp_path / "set")
    rows(4).save_to_disk(str(tmp_path / "less"))
    path = home / "sets" / "set" / "group_set.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace(str(tmp_path / "set"), str(tmp_path / "less")))
    own = open_dataset(load_group_set("set"))
    assert sorted(own.missing()) == ["train/4", "train/5"]
    with pytest.raises(DataError, match=r"has no row train/4"):
        own.bytes_of("train/4")
    assert "2 listed pictures are not there" in guda("groups", "check", "set", code=2)


def test_paths_that_lead_out_of_a_data_set_are_not_followed(home, tmp_path):
    secret = tmp_path / "secret.png"
    Image.fromarray(waves(0, 0, 40, 30)).save(secret)
    (tmp_path / "set").mkdir()
    told = {"image": [str(secret), str(tmp_path / "set" / ".." / "secret.png")], "group": ["a", "b"]}
    features = datasets.Features({"image": datasets.Image(), "group": datasets.Value("string")})
    datasets.Dataset.from_dict(told, features=features).to_parquet(str(tmp_path / "set" / "a.parquet"))
    said = guda("groups", "new", tmp_path / "set" / "a.parquet", code=2)
    assert "2 of 2 pictures cannot be read" in said and "lies outside the data set" in said
    inside = tmp_path / "set" / "1.png"
    inside.write_bytes(secret.read_bytes())
    assert data_sets.file_of(str(tmp_path / "set"), {"bytes": None, "path": str(inside)}) == secret.read_bytes()
    with pytest.raises(DataError, match="no picture in this row"):
        data_sets.file_of(str(tmp_path / "set"), {"bytes": None, "path": None})


def test_the_hub_is_asked_by_name_and_revision(home, monkeypatch, tmp_path):
    asked = []

    def load(name, config, *, revision, cache_dir):
        asked.append((name, config, revision, cache_dir))
        return datasets.DatasetDict({"train": rows()})

    monkeypatch.setattr(datasets, "load_dataset", load)
    guda("groups", "new", "hub:user/name@abc", "--config", "small", "--image-column", "picture")
    gs = load_group_set("name")
    assert gs.options["path"] == "hub:user/name@abc" and gs.source == "datasets"
    assert open_dataset(gs).split("train")[0].image(8).shape == (8, 8, 3)
    assert asked == [("user/name", "small", "abc", str(tmp_path / "cache" / "datasets"))] * 2
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user" / "name").mkdir(parents=True)
    with pytest.raises(DataError, match="would be read in its place"):
        data_sets.open_data_set("hub:user/name")


def test_what_cannot_be_read_is_one_sentence(home, monkeypatch, tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    assert "cannot be read: " in guda("groups", "new", tmp_path / "bad.parquet", code=2)
    assert "There is no data set" in guda("groups", "new", tmp_path / "no.parquet", code=2)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "code.py").write_text("raise SystemExit('run')")
    assert "cannot be read" in guda("groups", "new", tmp_path / "code", "--group-column", "a", code=2)
    real = builtins.__import__

    def without(name, *more):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.delitem(sys.modules, "datasets")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match="Install it: pip install datasets"):
        data_sets.open_data_set(str(tmp_path))


def test_a_class_without_a_name_and_several_captions(home):
    assert data_sets.text_of(datasets.ClassLabel(names=NAMES), -1, "x") == ""
    assert data_sets.text_of(None, ["a", "b"], "x") == "a" and data_sets.text_of(None, 7, "x") == "7"
    with pytest.raises(DataError, match="must be text"):
        data_sets.text_of(None, {"a": 1}, "x")
    assert data_sets.text_of(None, float("nan"), "x") == ""
