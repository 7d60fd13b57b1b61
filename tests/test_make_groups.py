"""`make_groups`: a group set of one's own pictures from Python, the same that the command makes."""

from __future__ import annotations

import inspect
import logging
import re
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import guda_core
from guda_core import api, offline
from guda_core.errors import DataError, GroupSetError, GudaError, OptionError
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
    with caplog.at_level(logging.INFO, "guda_core.api"):
        made = guda_core.make_groups(str(pictures), name="Six", seed=3)
    assert "group set six: 6 groups, 48 pictures, in" in caplog.text
    assert f"group set six: {IDS[0]}: 7 trained on, 1 held out, 8 with a caption" in caplog.text
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
    assert "The group 'gil' is new; captions say it \"by Gil\"." in caplog.text


def test_a_set_that_was_renamed_by_hand_stays_where_it_is(home, pictures):
    made = guda_core.make_groups(pictures)
    other = guda_core.make_groups(pictures, name="Cats", held_out=0)
    path = home / "sets" / "artists" / "group_set.yaml"
    for name in ("Cats", "My six artists", "Emoji"):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(f"name: {made.name}\n", f"name: {name}\n", 1), encoding="utf-8")
        assert guda_core.make_groups(pictures).name == name  # it is there, and nothing differs
        made = guda_core.make_groups(pictures, held_out=0.3, again=True)
        assert (made.id, made.name, made.options["held_out"]) == ("artists", name, 0.3)
        made = guda_core.make_groups(pictures, held_out=0.25, again=True)
    assert guda_core.load_groups("cats") == other and {p.name for p in (home / "sets").iterdir()} == {"artists", "cats"}


def test_what_captions_say_of_a_group_goes_on_for_a_new_one_and_a_template_by_hand_stays(home, pictures, caplog):
    guda_core.make_groups(pictures, phrase="in the {name} style")
    path = home / "sets" / "artists" / "group_set.yaml"
    template = "a drawing of {content}, {phrase}"
    path.write_text(path.read_text(encoding="utf-8").replace("{content}, {phrase}", template), encoding="utf-8")
    paint(pictures / "Eve" / "0.png", 7)
    paint(pictures / "Eve" / "1.png", 7, 1)
    with caplog.at_level(logging.INFO, "guda_core.api"):
        made = guda_core.make_groups(pictures, again=True)
    assert made.groups["eve"].phrase == "in the Eve style" and made.caption == template
    assert "The group 'eve' is new; captions say it \"in the Eve style\"." in caplog.text
    made = guda_core.make_groups(pictures, phrase="by {name}", again=True)
    assert {g.phrase for g in made.groups.values()} == {f"by {g.name}" for g in made.groups.values()}
    assert made.caption == template


def test_a_home_is_read_and_a_link_that_is_none_is_told(home, pictures, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    folder = tmp_path / "mine"
    pictures.rename(folder)
    lines = [f"{p.relative_to(folder).as_posix()},{p.parent.name},http://ann.example" for p in folder.glob("Dee/*")]
    lines += [f"{p.relative_to(folder).as_posix()},{p.parent.name}," for p in folder.glob("Fay_Wu/*.jpg")]
    (tmp_path / "rights.csv").write_text("\n".join(["file,group,link", *lines]), encoding="utf-8")
    with caplog.at_level(logging.INFO, "guda_core.api"):
        made = guda_core.make_groups("~/rights.csv", folder="~/mine")
    assert set(made.groups) == {"dee", "fay-wu"} and made.groups["dee"].link == ""
    assert "'Dee' has several link or one that is no https:// address; none was written." in caplog.text


def test_numbers_of_other_libraries_are_taken_and_a_wish_counts_though_the_pictures_stay(home, pictures):
    share = np.float32(0.125)
    made = guda_core.make_groups(pictures, held_out=share, seed=np.int64(3), resolution=np.int32(64))
    assert made.options["held_out"] == 0.125 and made.options["seed"] == 3 and made.resolution == 64
    assert guda_core.make_groups(pictures, held_out=Fraction(1, 8)) == made
    with pytest.raises(GroupSetError, match="again=True"):
        guda_core.make_groups(pictures, held_out=0.13)  # one of eight, as before
    assert guda_core.make_groups(pictures, held_out=0.13, again=True).options["held_out"] == 0.13


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"held_out": "0.1"}, "between 0 and 0.9; got '0.1'"),
        ({"held_out": float("nan")}, "between 0 and 0.9"),
        ({"fit": "stretch"}, "one of pad, crop, bucket"),
        ({"resolution": 4}, "of pixels, 8 or more"),
        ({"seed": "x"}, "whole number"),
        ({"name": 3}, "no text"),
        ({"phrase": "by someone"}, "needs {name}"),
        ({"phrase": 3}, "is a text; got int"),
        ({"resolution": 2**21}, "8 or more"),
        ({"folder": b"x"}, "folder must be a path"),
        ({"image_column": ["a"]}, "image_column must be a text"),
    ],
)
def test_a_wish_that_is_no_good_is_one_sentence_and_writes_nothing(wish, sentence, home, pictures):
    with pytest.raises(OptionError) as said:
        guda_core.make_groups(pictures, **wish)
    assert sentence in str(said.value)
    assert not (home / "sets").exists()


def test_a_table_whose_files_lie_elsewhere_asks_for_their_folder(home, pictures, tmp_path, monkeypatch):
    files = sorted(p.relative_to(pictures) for p in pictures.glob("*/*") if p.suffix != ".txt")
    lines = [f"{p.as_posix()},{p.parent.name}" for p in files]
    (tmp_path / "rights.csv").write_text("\n".join(["file,group", *lines]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    away = f"Not there: 48 of 48 files that rights.csv names, the first of them {files[0].as_posix()}. Looked for "
    for folder, where in ((None, f"beside the table, in {tmp_path}. "), ("wrong", f"in {tmp_path / 'wrong'}. ")):
        for broken in (0.01, 1.0):
            with pytest.raises(DataError) as said:
                guda_core.make_groups("rights.csv", folder=folder, broken=broken)
            told = str(said.value)
            assert told.startswith(f"{away}{where}Name the folder") and "folder" in told and "broken" not in told
    assert "Name the folder where they lie: --folder." in guda("groups", "new", "rights.csv", code=2)
    assert tuple(guda_core.make_groups("rights.csv", folder=pictures).groups) == IDS


def test_a_place_with_no_groups_is_said(tmp_path):
    with pytest.raises(GudaError, match="nowhere"):
        guda_core.make_groups(tmp_path / "nowhere")
    for wrong, what in ((3, "int"), (None, "NoneType"), ("", "an empty text")):
        with pytest.raises(OptionError, match=f"place of the pictures must be a path; got {what}"):
            guda_core.make_groups(wrong)  # type: ignore[arg-type]


def test_the_lines_of_the_how_to_page_run(home, pictures, tmp_path, monkeypatch, capsys):
    lines = re.search(r"```python\n(import logging.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    called = []

    def stand_in(function):
        def call(*given, **named):
            called.append((function.__name__, inspect.signature(function).bind(*given, **named).arguments))
            scores = SimpleNamespace(separable=True)
            scope = SimpleNamespace(verdict="in scope")
            return SimpleNamespace(scope=scope, best="ann-lee", methods={"guda": scores}, limits=["It is a stand-in."])

        return call

    for function in (offline.unlearn, api.attribute):  # a model of one's own is hours of work
        monkeypatch.setattr(guda_core, function.__name__, stand_in(function), raising=False)
    monkeypatch.setattr(logging, "basicConfig", lambda **settings: None)
    monkeypatch.chdir(tmp_path)
    assert lines is not None
    exec(compile(lines[1], "own-groups.md", "exec"), {})
    made = guda_core.load_groups("artists")
    assert [name for name, _ in called] == ["unlearn", "attribute"]
    assert all(given["groups"] == made and given["model"] == "NAME" for _, given in called)
    assert capsys.readouterr().out == "in scope\nann-lee\nTrue\nIt is a stand-in.\n"
