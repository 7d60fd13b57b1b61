"""What the first screen says that the model has seen, and whose pictures it shows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from guda_core.records import Provenance
from guda_core.ui import seen
from tests.fakes import FakeService


class Drawer(FakeService):
    """A service whose model has seen the groups alone, or more."""

    only = True

    def provenance(self) -> Provenance:
        return replace(super().provenance(), resolution=64, only_groups=self.only)


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the fake model's own pictures, with one in it."""
    monkeypatch.setenv("GUDA_HOME", str(tmp_path))
    folder = tmp_path / "runs" / "fake" / "emoji" / "drawn"
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 64), "teal").save(folder / seen.group_file("noto"))
    (folder / seen.LIST).write_text(json.dumps({"base_sha256": Drawer().provenance().sha256}))
    return folder


def test_it_is_built_from_the_set_and_the_card():
    service = Drawer()
    said = seen.seen(service, None)
    assert (
        "This model has seen only the pictures of these eight groups, at 64 by 64 pixels: Emoji design teams." in said
    )
    assert all(f"<span>{g.name}</span>" in said for g in service.group_set.groups.values()) and "<img" not in said
    service.only = False
    assert "seen only" not in seen.seen(service, None) and "asks about eight groups" in seen.seen(service, None)


def test_pictures_are_shown_for_the_model_that_drew_them_alone(drawn):
    service = Drawer()
    assert seen.folder(service) == drawn and seen.seen(service, drawn).count("<img") == 1
    assert seen.thumbnail(drawn, seen.group_file("noto")) and seen.thumbnail(drawn, "example-x.png") is None
    (drawn / seen.LIST).write_text(json.dumps({"base_sha256": "another"}))
    assert seen.folder(service) is None
    (drawn / seen.LIST).write_text("[]")
    assert seen.folder(service) is None


@pytest.mark.parametrize(("n", "word"), [(2, "two"), (12, "twelve"), (13, "13")])
def test_numbers_are_read_as_words(n, word):
    assert seen.counted(n) == word
