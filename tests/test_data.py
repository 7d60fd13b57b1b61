"""Rendering against closed forms, the splits, and what is said when pictures are missing. No network, no npm."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from guda_core import paths
from guda_core.data.dataset import Pictures
from guda_core.data.reserved import reserved
from guda_core.data.sources import iconify
from guda_core.errors import DataError
from guda_core.records import Group, GroupSet

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
NAMES = ("first", "second")


def make_group(gid: str) -> Group:
    return Group(gid, gid, source={"package": f"icons-{gid}", "version": "1.0.0"})


SET = GroupSet(
    "small", "Small", {n: make_group(n) for n in NAMES}, source="npm-iconify", resolution=16,
    train_objects=("cat",), held_out_objects=("red-car",),
)  # fmt: skip


def pictures_of(split: str, group_set: GroupSet = SET) -> Pictures:
    return iconify.Iconify(group_set).split(split)


def fetch(group_set: GroupSet = SET) -> None:
    list(iconify.Iconify(group_set).fetch(yes=True))


def package(root: Path, name: str, colour: str = "#f00") -> Path:
    """An Iconify package: a cat with its left half coloured, a car 2:1, and aliases; a bike only in the first."""
    left = f'<rect width="8" height="16" fill="{colour}"/>'
    icons = {
        "cat": {"body": left},
        "red-car": {"body": f'<rect width="32" height="16" fill="{colour}"/>', "width": 32},
        "tree": {"body": left.replace("width", 'x="8" width', 1)},
    }
    aliases = {
        "kitten": {"parent": "cat"},
        "kitty": {"parent": "kitten"},
        "cat-right": {"parent": "cat", "hFlip": True},
        "cat-up": {"parent": "cat", "rotate": 1},
        "cat-down": {"parent": "cat-up", "vFlip": True},
    }
    if name.endswith("first"):
        icons["bike"] = {"body": left}
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "icons.json").write_text(json.dumps({"icons": icons, "aliases": aliases, "width": 16, "height": 16}))
    return folder


@pytest.fixture
def built(monkeypatch) -> Path:
    """The small set, built from made-up packages as `npm install` would have left them; gives the data folder."""

    def install(groups, into, *, yes):
        for g, colour in zip(groups, ("#f00", "#00f"), strict=True):
            package(into / "node_modules", iconify.package_of(g), colour)

    monkeypatch.setattr(iconify, "npm_install", install)
    fetch()
    return iconify.Iconify(SET).folder


def test_svg_is_rendered_on_white():
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 2"><rect width="1" height="2" fill="#f00"/></svg>'
    pixels = iconify.render_svg(svg, 32)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert (pixels[:, :16] == RED).all()
    assert (pixels[:, 16:] == WHITE).all()


def test_svg_that_is_none_is_said():
    with pytest.raises(DataError, match="could not be rendered"):
        iconify.render_svg("<svg", 16)


def test_icons_are_found_by_normalised_name_and_absent_ones_left_out(tmp_path):
    folder = package(tmp_path, "icons-first")
    got = iconify.render_icons(folder, ["Red Car", "unicorn", "CAT"], 16)
    assert list(got) == ["Red Car", "CAT"]
    assert (got["CAT"][:, :8] == RED).all()
    assert (got["CAT"][:, 8:] == WHITE).all()
    car = got["Red Car"]  # 2:1, so the upper and the lower quarter stay white
    assert (car[4:12] == RED).all()
    assert (car[:4] == WHITE).all()
    assert (car[12:] == WHITE).all()


@pytest.mark.parametrize(
    ("alias", "red"),
    [
        ("kitten", np.s_[:, :8]),
        ("kitty", np.s_[:, :8]),
        ("cat-right", np.s_[:, 8:]),
        ("cat-up", np.s_[:8]),  # a quarter clockwise: left becomes top
        ("cat-down", np.s_[8:]),
    ],
)
def test_aliases_are_drawn_as_their_parent_mirrored_or_turned(alias, red, tmp_path):
    pixels = iconify.render_icons(package(tmp_path, "icons-first"), [alias], 16)[alias]
    expected = np.full((16, 16, 3), 255, np.uint8)
    expected[red] = RED
    assert (pixels == expected).all()


def test_a_package_without_icons_is_said(tmp_path):
    with pytest.raises(DataError, match=r"icons\.json is missing.*python -m guda_core groups fetch"):
        iconify.render_icons(tmp_path, ["cat"], 16)


def test_shared_objects_are_those_that_enough_groups_drew(tmp_path):
    first, second = map(iconify.package_of, SET.groups.values())
    for name in (first, second):
        package(tmp_path / "node_modules", name)
    icons = tmp_path / "node_modules" / first / "icons.json"
    more = json.loads(icons.read_text())
    for name in ("fox", "waving-hand-medium-skin-tone", "flag-for-chad", "keycap-1"):
        more["icons"][name] = more["icons"]["tree"]
    icons.write_text(json.dumps(more))
    assert "fox" in iconify.shared_objects(SET, tmp_path, at_least=1)
    common = iconify.shared_objects(SET, tmp_path, at_least=2)
    assert common == ("cat", "cat-down", "cat-right", "cat-up", "kitten", "kitty", "red-car", "tree")


def test_build_writes_every_picture_with_its_hash(built):
    manifest = json.loads((built / "manifest.json").read_text())
    assert manifest["packages"] == {"icons-first": "1.0.0", "icons-second": "1.0.0"}
    train = pictures_of("train")
    assert train.pixels[:, 8, 0].tolist() == [list(RED), list(BLUE)]
    for g, o, pixels in zip(train.groups, train.names, train.pixels, strict=True):
        assert manifest["pictures"][g][o] == hashlib.sha256(pixels.tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("split", "objects"),
    [
        ("train", ["cat"]),
        ("held_out", ["red-car"]),
        ("pretrain", ["cat", "cat-down", "cat-right", "cat-up", "kitten", "kitty", "tree"]),
    ],
)
def test_splits(split, objects, built):
    pictures = pictures_of(split)
    assert pictures.groups == ("first",) * len(objects) + ("second",) * len(objects)
    assert list(pictures.names) == objects * 2
    assert pictures.pixels.shape == (2 * len(objects), 16, 16, 3)


def test_an_unknown_split_is_said(built):
    with pytest.raises(DataError, match=r"no split 'test'\. Known: train, held_out, pretrain"):
        pictures_of("test")


def test_build_stops_when_a_group_lacks_an_object_and_leaves_no_manifest(built, monkeypatch):
    monkeypatch.setattr(iconify, "npm_install", lambda groups, into, *, yes: None)
    lacking = replace(SET, train_objects=("cat", "bike"))
    with pytest.raises(DataError, match=r"icons-second@1\.0\.0 has no picture of bike"):
        fetch(lacking)
    with pytest.raises(DataError, match="No pictures in"):
        pictures_of("train")


def test_load_before_build_is_said():
    with pytest.raises(DataError, match=r"No pictures in .*python -m guda_core groups fetch"):
        pictures_of("train")


@pytest.mark.parametrize("content", [b"", b"not a zip", None])
def test_damaged_pictures_are_said(content, built):
    (built / "second.npz").unlink()
    if content is not None:
        (built / "second.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"second\.npz is damaged"):
        pictures_of("train")


@pytest.mark.parametrize("change", [{"resolution": 32}, {"groups": {"first": SET.groups["first"]}}])
def test_pictures_of_another_version_are_not_used(change, built):
    with pytest.raises(DataError, match="of another version"):
        pictures_of("train", replace(SET, **change))


def test_npm_missing_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"`npm` was not found.*Install Node\.js"):
        iconify.npm_install(list(SET.groups.values()), tmp_path, yes=True)


@pytest.mark.parametrize("code", [0, 1])
def test_npm_is_asked_for_exact_versions_and_its_failure_is_said(code, monkeypatch, tmp_path):
    npm = tmp_path / "npm"
    npm.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nprintf "E404 no such thing \\201\\n" >&2\nexit {code}\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    if code:
        with pytest.raises(DataError, match=r"could not install icons-first@1\.0\.0.*E404"):
            iconify.npm_install(list(SET.groups.values()), tmp_path / "into", yes=True)
    else:
        iconify.npm_install(list(SET.groups.values()), tmp_path / "into", yes=True)
    asked = (tmp_path / "asked").read_text().split()
    assert asked[-3:] == ["--", "icons-first@1.0.0", "icons-second@1.0.0"]
    assert "--ignore-scripts" in asked


def test_packages_by_others_than_iconify_are_not_installed_without_a_yes(monkeypatch, tmp_path):
    """A slip in a package's name must not bring a stranger's package onto the machine."""
    monkeypatch.setattr(iconify.subprocess, "run", lambda *a, **k: pytest.fail("npm was asked"))
    mixed = replace(SET, groups={
        "a": Group("a", "A", source={"package": "@iconify-json/twemoji", "version": "1.2.5"}),
        "b": Group("b", "B", source={"package": "@iconify-jsom/noto", "version": "1.2.9"}),
    })  # fmt: skip
    assert iconify.Iconify(mixed).plan() == ["@iconify-json/twemoji@1.2.5", "@iconify-jsom/noto@1.2.9"]
    with pytest.raises(DataError, match=r"would install @iconify-jsom/noto@1\.2\.9 from npm.*add `--yes`"):
        list(iconify.Iconify(mixed).fetch())
    assert not iconify.Iconify(mixed).folder.exists()


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("GUDA_CACHE", str(tmp_path / "here"))
    assert paths.cache_dir() == tmp_path / "here"
    monkeypatch.delenv("GUDA_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.cache_dir() == tmp_path / ".cache" / "guda"


def test_a_manifest_or_queries_that_are_torn_are_told(built, tmp_path):
    (built / "manifest.json").write_text('{"resolution": 6')
    with pytest.raises(DataError, match=r"manifest.json is damaged .* again"):
        pictures_of("train")
    for text in ("", "[]", '{"group_set": "emoji"}', '{"group_set": "emoji", "items": [{"set": "real"}]}'):
        (tmp_path / "queries.json").write_text(text)
        with pytest.raises(DataError, match=r"queries.json is damaged"):
            reserved(tmp_path / "queries.json", replace(SET, id="emoji"))
