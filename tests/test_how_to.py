"""The examples of the how-to pages run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import yaml

from guda_core.attribution import METHODS
from guda_core.attribution.method import Budget, answers
from guda_core.data import SOURCES
from guda_core.data.groups import load_group_set
from guda_core.data.sources.source import open_dataset
from guda_core.records import Query

PAGES = Path(__file__).resolve().parent.parent / "docs" / "how-to"


def block(page: str, language: str) -> str:
    """The first example of that language on a page."""
    found = re.search(rf"```{language}\n(.*?)```", (PAGES / page).read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def test_a_source_added_from_outside_reads_a_group_sets_pictures(tmp_path):
    made: dict[str, object] = {}
    exec(compile(block("add-a-source.md", "python"), "add-a-source.md", "exec"), made)
    try:
        for i, group in enumerate(("ann", "bo")):
            np.save(tmp_path / f"{group}.npy", np.full((3, 8, 8, 3), i, np.uint8))
        (tmp_path / "sets" / "two").mkdir(parents=True)
        entry = {
            "id": "two", "name": "Two", "resolution": 8, "source": {"id": "arrays", "path": str(tmp_path)},
            "groups": {"ann": {"name": "Ann"}, "bo": {"name": "Bo"}},
        }  # fmt: skip
        (tmp_path / "sets" / "two" / "group_set.yaml").write_text(yaml.safe_dump(entry), encoding="utf-8")
        dataset = open_dataset(load_group_set("two", tmp_path / "sets"))
        assert [i.id for i in dataset.split("train")] == ["ann/0", "ann/1", "bo/0", "bo/1"]
        assert [i.id for i in dataset.split("held_out")] == ["ann/2", "bo/2"]
        assert dataset.split("train")[2].image(8).max() == 1
        assert dataset.fingerprint("train") != dataset.fingerprint("held_out")
    finally:
        SOURCES.remove("arrays")


def test_the_group_set_of_the_page_is_one(tmp_path):
    lines = block("own-groups.md", "yaml").splitlines()
    text = "\n".join(line.removeprefix("   ") for line in lines)
    (tmp_path / "artists").mkdir()
    (tmp_path / "artists" / "group_set.yaml").write_text(text, encoding="utf-8")
    found = load_group_set("artists", tmp_path)
    assert [g.name for g in found.groups.values()] == ["Ann Lee", "Bo Chan"] and found.source == "folder"


def test_a_method_added_from_outside_scores_every_group():
    made: dict[str, object] = {}
    exec(compile(block("add-a-method.md", "python"), "add-a-method.md", "exec"), made)
    try:
        method = METHODS["random"].load(SimpleNamespace(groups=["ann", "bo"]))
        query = Query(np.zeros((2, 2, 3), np.uint8), None, "", "0" * 63 + "1")
        (answer,) = answers({"random": method}, ["random"], query, Budget())
        (again,) = answers({"random": method}, ["random"], query, Budget())
        assert sorted(answer.ranked()) == ["ann", "bo"] and answer.ranked() == again.ranked()
        assert method.info().name == "Random" and answer.unit == "points" and answer.progress == 1
    finally:
        METHODS.remove("random")
