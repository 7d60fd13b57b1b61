"""`make_groups`: a group set of one's own pictures from Python, the same that the command makes."""

from __future__ import annotations

import inspect
import logging
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import guda_core
from guda_core import api
from guda_core.errors import GroupSetError, GudaError, OptionError
from tests.own_pictures import IDS, guda, paint

PAGE = Path(__file__).resolve().parent.parent / "docs" / "how-to" / "own-groups.md"


def files(home):
    return {p.name: p.read_text(encoding="utf-8") for p in (home / "sets" / "artists").iterdir() if p.is_file()}


def test_it_is_the_set_that_the_command_makes_and_is_read_back(home, pictures):
    guda("groups", "new", pictures, "--held-out", "0.25", "--resolution", "64")
    by_command = files(home)
    (home / "sets").rename(home / "by-command")
    made = guda_core.make_groups(pictures, held_out=0.25, resolution=64)
    assert files(home) == by_command
    assert made == guda_core.load_groups("artists") and tuple(made.groups) == IDS
    assert made.resolution == 64 and made.options["held_out"] == 0.25


def test_the_same_again_is_nothing_and_another_needs_again(home, pictures, caplog):
    made = guda_core.make_groups(str(pictures), name="Six", seed=np.int64(3).item())
    before = (home / "sets" / "six" / "group_set.yaml").stat().st_mtime_ns
    assert guda_core.make_groups(pictures, name="Six") == made  # seed and share are as they were
    assert (home / "sets" / "six" / "group_set.yaml").stat().st_mtime_ns == before
    paint(pictures / "Gil" / "0.png", 7)
    paint(pictures / "Gil" / "1.png", 7, 1)
    with pytest.raises(GroupSetError, match="is there already, and nothing was written"):
        guda_core.make_groups(pictures, name="Six")
    assert guda_core.load_groups("six") == made
    with caplog.at_level(logging.INFO, "guda_core.api"):
        more = guda_core.make_groups(pictures, name="Six", again=True)
    assert set(more.groups) == {*IDS, "gil"} and more.options["seed"] == 3
    assert "The group 'gil' is new." in caplog.text


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"held_out": "0.1"}, "between 0 and 0.9; got '0.1'"),
        ({"held_out": float("nan")}, "between 0 and 0.9"),
        ({"fit": "stretch"}, "one of pad, crop, bucket"),
        ({"resolution": 4}, "8 pixels or more"),
        ({"seed": "x"}, "whole number"),
        ({"name": 3}, "no text"),
        ({"phrase": "by someone"}, "needs {name}"),
    ],
)
def test_a_wish_that_is_no_good_is_one_sentence_and_writes_nothing(wish, sentence, home, pictures):
    with pytest.raises(OptionError) as said:
        guda_core.make_groups(pictures, **wish)
    assert sentence in str(said.value)
    assert not (home / "sets").exists()


def test_a_place_with_no_groups_is_said(tmp_path):
    with pytest.raises(GudaError, match="nowhere"):
        guda_core.make_groups(tmp_path / "nowhere")
    with pytest.raises(OptionError, match="path or a name"):
        guda_core.make_groups(3)  # type: ignore[arg-type]


def test_the_lines_of_the_how_to_page_run(home, pictures, tmp_path, monkeypatch, capsys):
    lines = re.search(r"```python\n(import logging.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    called = []

    def stand_in(function):
        def call(*given, **named):
            called.append((function.__name__, inspect.signature(function).bind(*given, **named).arguments))
            return SimpleNamespace(best="ann-lee")

        return call

    for function in (api.unlearn, api.attribute):  # a model of one's own is hours of work
        monkeypatch.setattr(guda_core, function.__name__, stand_in(function), raising=False)
    monkeypatch.setattr(logging, "basicConfig", lambda **settings: None)
    monkeypatch.chdir(tmp_path)
    assert lines is not None
    exec(compile(lines[1], "own-groups.md", "exec"), {})
    made = guda_core.load_groups("artists")
    assert [name for name, _ in called] == ["unlearn", "attribute"]
    assert all(given["groups"] == made and given["model"] == "NAME" for _, given in called)
    assert capsys.readouterr().out == "ann-lee\n"
