"""The shipped group set is sound, and every way to get a group set wrong ends in a sentence."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import yaml

from guda_core.data import SOURCES
from guda_core.data.captions import captioner_of
from guda_core.data.dataset import Pictures, described
from guda_core.data.groups import list_group_sets, load_group_set, normal
from guda_core.data.sources.source import Source, load_pictures, open_dataset
from guda_core.errors import DataError, GroupSetError
from guda_core.file_names import ID
from guda_core.records import NOT_STATED

WORDS = [f"trait {n}" for n in ("one", "two", "three", "four", "five")]


def group(name: str, words: list[str]) -> dict:
    return {
        "name": name,
        "author": "Somebody",
        "licence": "CC0-1.0",
        "licence_link": "https://example.org/licence",
        "link": "https://example.org/pictures",
        "source": {"package": f"@iconify-json/{normal(name)}", "version": "1.2.3"},
        "descriptors": words,
    }


GOOD = {
    "id": "small",
    "name": "A small set",
    "resolution": 16,
    "caption": "{object} with {descriptors}",
    "descriptors_per_caption": 2,
    "source": "npm-iconify",
    "groups": {"first": group("Alpha", WORDS), "second": group("Beta", [WORDS[0], *(f"{w} b" for w in WORDS[1:])])},
    "objects": {"train": ["cat", "red-car"], "held_out": ["dog"]},
}


@pytest.fixture
def load(tmp_path):
    """Writes a changed copy of GOOD and reads it."""

    def write_and_load(change=lambda s: None):
        entry = copy.deepcopy(GOOD)
        change(entry)
        (tmp_path / "small").mkdir()
        (tmp_path / "small" / "group_set.yaml").write_text(yaml.safe_dump(entry, allow_unicode=True), encoding="utf-8")
        return load_group_set("small", tmp_path)

    return write_and_load


def test_the_emoji_are_enough_and_name_their_authors():
    s = load_group_set("emoji")
    assert len(s.groups) >= 8
    assert len(s.train_objects) >= 150
    assert len(s.held_out_objects) >= 100
    assert not {normal(o) for o in s.train_objects} & {normal(o) for o in s.held_out_objects}
    assert all(g.author and g.licence and g.licence_link.startswith("https://") for g in s.groups.values())


@pytest.mark.parametrize("name", list_group_sets())
def test_shipped_sets_are_sound_and_captioned_as_they_say(name):
    s = load_group_set(name)
    assert len(s.groups) >= 8 and all(g.author != NOT_STATED for g in s.groups.values())
    assert (captioner_of(s).examples() == []) == (name in ("cifar10", "digits"))


def test_three_sets_are_shipped():
    assert list_group_sets() == ["cifar10", "digits", "emoji"]


def test_a_good_set_is_read(load):
    s = load()
    assert list(s.groups) == ["first", "second"]
    assert (s.id, s.resolution, s.descriptors_per_caption) == ("small", 16, 2)
    assert s.groups["first"].descriptors == tuple(WORDS)
    assert s.train_objects == ("cat", "red-car")
    assert s.held_out_objects == ("dog",)
    assert s.groups["first"].source == {"package": "@iconify-json/alpha", "version": "1.2.3"}
    assert captioner_of(s).prompt(described("first", "red-car")) == "red car with trait one, trait two"


def folder_set(**more) -> dict:
    groups = {"ann-lee": {"name": "Ann Lee"}, "bo": {"name": "Bo"}}
    return {"id": "small", "name": "Small", "source": {"id": "folder", "path": "pictures"}, "groups": groups, **more}


def test_a_group_needs_an_id_and_a_name_alone(load):
    s = load(lambda e: (e.clear(), e.update(folder_set())))
    g = s.groups["ann-lee"]
    assert (g.name, g.author, g.licence, g.licence_link, g.link) == ("Ann Lee", NOT_STATED, NOT_STATED, "", "")
    assert (s.source, s.caption, s.resolution) == ("folder", "", 512)
    assert s.options == {"path": "pictures", "held_out": 0.1, "seed": 0}
    assert s.folder is not None and s.folder.name == "small"


def test_phrases_and_what_holds_for_all_groups(load):
    def change(e):
        e.clear()
        e.update(folder_set(caption="{content}, {phrase}", licence="CC0-1.0", author="A. Nother"))
        e["groups"]["ann-lee"].update(phrase="by Ann Lee", author="Ann Lee", source={"folder": "Ann"})
        e["groups"]["bo"].update(phrase="by Bo")

    s = load(change)
    assert [(g.phrase, g.author, g.licence) for g in s.groups.values()] == [
        ("by Ann Lee", "Ann Lee", "CC0-1.0"), ("by Bo", "A. Nother", "CC0-1.0")
    ]  # fmt: skip
    assert s.groups["ann-lee"].source == {"folder": "Ann"} and s.groups["bo"].source == {}
    assert captioner_of(s).examples() == ["by Ann Lee", "by Bo"]


def test_names_in_other_scripts_are_welcome(load):
    assert load(lambda s: s["groups"]["first"].update(name="日本画")).groups["first"].name == "日本画"


@pytest.mark.parametrize(
    ("name", "expected"), [("Smiling-Face_2", "smilingface2"), ("  A b ", "ab"), ("é!", ""), ("日本", "")]
)
def test_normal(name, expected):
    assert normal(name) == expected


def put(*keys, value):
    """A change that sets one entry."""

    def change(s):
        for k in keys[:-1]:
            s = s[k]
        s[keys[-1]] = value

    return change


def drop(*keys):
    def change(s):
        for k in keys[:-1]:
            s = s[k]
        del s[keys[-1]]

    return change


FIRST = ("groups", "first")
SOURCE = (*FIRST, "source")
BAD = [
    (drop("caption"), "group set 'small' has no field 'caption'"),
    (put("colour", value=1), "has a field 'colour' that means nothing"),
    (put("id", value="other"), "calls itself 'other'"),
    (put("source", value="ftp"), "source 'ftp' is unknown"),
    (put("name", value=3), "'name' must be a non-empty text"),
    *[(put("resolution", value=v), "'resolution' must be a whole number") for v in (7, 16.0, "16", True)],
    *[
        (put("caption", value=v), "'caption' must hold {object} and {descriptors}")
        for v in (3, "a picture", "{object}", "{object} {descriptors} {x}", "{object} {descriptors} {", "{object}" * 2)
    ],
    *[
        (put("caption", value=v), "'caption' must hold names alone in its braces, such as {object}, with no ':' or '!'")
        for v in (
            "{object:>99999999} with {descriptors}",
            "{object!r} {descriptors}",
            "{object:{descriptors}} {descriptors}",
            "{object} {descriptors:.3}",
            "{content}, {phrase:{}}",
        )
    ],
    *[(put("groups", value=v), "at least two groups") for v in ([], {"first": group("Alpha", WORDS)})],
    (put("groups", "first", value="x"), "group 'first' must be a mapping"),
    (put("groups", "../up", value=group("Gamma", WORDS)), "an id is made of a-z, 0-9 and single dashes"),
    (drop(*FIRST, "name"), "group 'first' has no field 'name'"),
    (drop(*FIRST, "source"), "group 'first': source has no field 'package'"),
    (drop(*SOURCE, "version"), "group 'first': source has no field 'version'"),
    (put(*SOURCE, "tag", value="x"), "group 'first': source has a field 'tag' that means nothing"),
    (put(*FIRST, "source", value="x"), "group 'first': source must be a mapping with the fields package, version"),
    (put(*FIRST, "package", value="x"), "'package', which stands under `source` since version 0.2"),
    (put("source", value={"id": "npm-iconify", "path": "x"}), "source has a field 'path' that means nothing"),
    (put("source", value={"id": "folder"}), "group set 'small': source has no field 'path'"),
    (put("source", value=["npm-iconify"]), "source '['npm-iconify']' is unknown. Known: npm-iconify, folder"),
    (drop("objects"), "has no field 'objects'. The source npm-iconify needs it"),
    (put("caption", value="{content}, {phrase}"), "'first' has a field 'descriptors' that the caption"),
    (put(*FIRST, "phrase", value="by A"), "'first' has a field 'phrase' that the caption"),
    (put(*FIRST, "phrase", value=""), "'phrase' must be a non-empty text"),
    (put(*FIRST, "url", value="x"), "group 'first' has a field 'url'"),
    (put(*SOURCE, "version", value=1.2), "'version' must be a non-empty text (quote numbers)"),
    (put(*FIRST, "author", value="  "), "'author' must be a non-empty text"),
    *[(put(*SOURCE, "version", value=v), "one exact version") for v in ("latest", "^1.2.3", "file:../x")],
    *[(put(*SOURCE, "package", value=v), "the name of an npm package") for v in ("--prefix=/", "../x", "@a/b/../c")],
    *[(put(*FIRST, f, value="javascript:alert(1)"), f"'{f}' must be an https") for f in ("link", "licence_link")],
    (put(*FIRST, "descriptors", value="flat"), "'descriptors' must be a list of words"),
    (put(*FIRST, "descriptors", value=[*WORDS, 3]), "must be a list of words"),
    (put(*FIRST, "descriptors", value=WORDS[:4]), "has 4 descriptors; at least 5"),
    (put(*FIRST, "descriptors", value=[*WORDS, "Trait-one "]), "names Trait-one, trait one twice"),
    (put(*FIRST, "descriptors", value=[*WORDS, "in alpha style"]), "'in alpha style' holds the group's name"),
    (put(*FIRST, "descriptors", value=[*WORDS, "the first look"]), "'the first look' holds the group's name"),
    (put("groups", "second", "descriptors", value=[*WORDS[:2], "x", "y", "z"]), "share 2 descriptors; fewer than 2"),
    *[
        (put("descriptors_per_caption", value=v), "'descriptors_per_caption' must be a whole number, at least 1")
        for v in (0, 1.0, "2", True)
    ],
    (
        put("descriptors_per_caption", value=6),
        "'descriptors_per_caption' must be between 1 and the length of",
    ),
    (put("objects", value=["cat"]), "objects must be a mapping"),
    (drop("objects", "held_out"), "objects has no field 'held_out'"),
    (put("objects", "train", value=[]), "objects: 'train' must be a list of words"),
    (put("objects", "held_out", value=["dog", True]), "objects: 'held_out' must be a list of words"),
    (put("objects", "train", value=["cat", "cat"]), "names cat twice"),
    (put("objects", "held_out", value=["Red Car"]), "redcar are both trained on and held out"),
    (put("objects", "train", value=["cat", "red- car"]), "the object 'red- car' was cut at a dash"),
]


@pytest.mark.parametrize(("change", "words"), BAD, ids=[f"{i}-{words[:40]}" for i, (_, words) in enumerate(BAD)])
def test_wrong_sets_are_refused_with_a_sentence(change, words, load):
    with pytest.raises(GroupSetError) as e:
        load(change)
    assert words in str(e.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"groups: [", "not readable as YAML"),
        (b"\xff\xfe\x00", "Save it again as UTF-8"),
        (b"id: small\nid: small\n", "the key 'id' stands twice"),
        (b"groups:\n  a: 1\n  a: 2\n", "the key 'a' stands twice"),
        (b"!!python/object/apply:os.getcwd []", "not readable as YAML"),
        (b"- a\n- b\n", "must be a mapping with the fields"),
        (b"", "must be a mapping with the fields"),
    ],
)
def test_files_that_are_no_group_set_are_refused(text, words, tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "group_set.yaml").write_bytes(text)
    with pytest.raises(GroupSetError, match=words):
        load_group_set("small", tmp_path)


PHRASED = {"caption": "{content}, {phrase}"}


@pytest.mark.parametrize(
    ("more", "phrases", "words"),
    [
        (PHRASED, ("by Ann", ""), "group 'bo' has no field 'phrase'. Add it, for example \"in the Bo style\""),
        (PHRASED, ("by Ann", "By  ann!"), "groups 'ann-lee' and 'bo' have the same phrase"),
        (PHRASED, ("by Fay_Wu.", "by (fay wu)"), "groups 'ann-lee' and 'bo' have the same phrase"),
        (PHRASED, ("by José", "by Jose\u0301"), "groups 'ann-lee' and 'bo' have the same phrase"),
        ({}, ("by Ann", "by Bo"), "has no field 'caption', but its groups have a phrase. Add \"{content}, {phrase}\""),
        ({"source": {"id": "folder", "path": "x", "held_out": 1.5}}, ("", ""), "'held_out' must be between 0 and 0.9"),
        ({"source": {"id": "folder", "path": "x", "held_out": "1"}}, ("", ""), "source: 'held_out': input should be a"),
        ({"source": "scikit-digits"}, ("", ""), "its source has the classes 0, 1, 2"),
    ],
)
def test_own_sets_that_are_wrong_are_refused_with_a_sentence(more, phrases, words, load):
    def change(e):
        e.clear()
        e.update(folder_set(**more))
        for g, phrase in zip(e["groups"].values(), phrases, strict=True):
            g.update({"phrase": phrase} if phrase else {})

    with pytest.raises(GroupSetError) as e:
        load(change)
    assert words in str(e.value)


@pytest.mark.parametrize(
    "phrases",
    [("by C", "by C#"), ("by AB", "by A&B"), ("by Pnk", "by P!nk"), ("by C", "by C++"), ("by ❤", "by ★"),
     ("by !!!", "by ???"), ("by कि", "by की"), ("by José", "by Jose")],
)  # fmt: skip
def test_phrases_that_differ_in_a_sign_are_two(phrases, load):
    def change(e):
        e.clear()
        e.update(folder_set(**PHRASED))
        for g, phrase in zip(e["groups"].values(), phrases, strict=True):
            g["phrase"] = phrase

    assert tuple(g.phrase for g in load(change).groups.values()) == phrases


def test_a_source_from_outside_the_package_is_read_and_asked(load):
    class Made(Source):
        def split(self, name):
            return Pictures(np.zeros((1, 8, 8, 3), np.uint8), ("ann-lee",), ("1",))

        def fingerprint(self, split="train"):
            return self.split(split).sha256()

    SOURCES.add("made-up", Made)
    try:
        s = load(lambda e: (e.clear(), e.update(folder_set(source="made-up"))))
        assert [i.id for i in open_dataset(s).split("train")] == ["ann-lee/1"]
        assert load_pictures(s, "train", 4).pixels.shape == (1, 4, 4, 3)
        assert open_dataset(s).plan() == [] and [f for f, _ in open_dataset(s).fetch()] == [1.0]
    finally:
        SOURCES.remove("made-up")
    with pytest.raises(DataError, match="does not say where its pictures come from"):
        open_dataset(s)


@pytest.mark.parametrize("id", ["SD 1.5 + LoRA", "cats & dogs", "anna's", "a(b)", "_x", "हिन्दी", "日本"])
def test_an_id_may_be_any_folders_name(id):
    assert ID.fullmatch(id)


@pytest.mark.parametrize("id", ["", "../x", "a/b", "a\\b", "c:", "..", ".x", " a", "a ", "a.", "a\nb", "a?"])
def test_an_id_leads_to_no_other_folder(id):
    assert not ID.fullmatch(id)


def test_a_set_whose_id_is_no_folder_s_name_is_refused(tmp_path):
    folder = tmp_path / "there" / "small"
    folder.mkdir(parents=True)
    (folder / "group_set.yaml").write_text(yaml.safe_dump({**GOOD, "id": "../there/small"}))
    (tmp_path / "sets").mkdir()
    with pytest.raises(GroupSetError, match="An id is a folder's name"):
        load_group_set("../there/small", tmp_path / "sets")


@pytest.mark.parametrize("name", ["../../secret", "..", "/etc", r"\\10.0.0.66\share\m", "c:m"])
def test_the_name_of_a_set_is_checked_before_it_is_looked_for(name):
    class Sets:
        def __truediv__(self, name: str) -> Path:
            pytest.fail(f"{name} was looked for")

        def glob(self, pattern: str) -> list[Path]:
            return [Path("small", "group_set.yaml")]

    with pytest.raises(GroupSetError, match=r"There is no group set '.*An id is a folder's name.*Known: small\."):
        load_group_set(name, Sets())  # type: ignore[arg-type]


def test_a_missing_set_lists_the_known_ones(load, tmp_path):
    load()
    with pytest.raises(
        GroupSetError, match=r"no group set 'large'.*Known: small\. Make one with `guda groups new FOLDER`"
    ):
        load_group_set("large", tmp_path)
