"""Group sets made of one's own pictures: what is found, what is held out, and what a second time says."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter

import numpy as np
import pytest
import yaml

from guda_core.data.groups import load_group_set
from guda_core.data.own import in_folder, set_files
from guda_core.data.own.in_folder import find_in_folder
from guda_core.data.own.new_set import likely_phrase
from guda_core.data.own.picture_list import Listed, changes, read_list, trained_on, write_list
from guda_core.data.sources.source import open_dataset
from guda_core.errors import DataError, GroupSetError
from guda_core.records import NOT_STATED, Group
from tests.own_pictures import IDS, guda, made, paint, studio


def test_a_folder_becomes_a_group_set(home, pictures):
    said = guda("groups", "new", pictures, "--name", "Six artists")
    assert "6 groups, 48 pictures" in said and 'How captions say a group: "by Ann Lee"' in said
    gs = load_group_set("six-artists")
    assert tuple(gs.groups) == IDS and gs.name == "Six artists" and gs.fit == "crop"
    assert [g.name for g in gs.groups.values()] == ["Ann Lee", "Bo Chan", "Dee", "Fay Wu", "葛飾北斎", "José Núñez"]
    assert {(g.author, g.licence) for g in gs.groups.values()} == {(NOT_STATED, NOT_STATED)}
    train, held = (open_dataset(gs).split(s) for s in ("train", "held_out"))
    assert Counter(i.group for i in held) == dict.fromkeys(IDS, 1) and len(train) == 42
    assert {i.caption for i in train + held if i.group == "ann-lee"} == {f"a wave, number {n}" for n in range(8)}
    pixels = train[0].image(16)
    assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8


def test_an_object_is_the_folder_between_group_and_picture(tmp_path):
    for style in ("Cubism", "Pop_Art"):
        for i, thing in enumerate(("Dogs", "red_cars")):
            paint(tmp_path / style / thing / "1.png", len(style), i)
    entry = made(tmp_path, phrase="in the {name} style")
    assert [(p.group, p.object) for p in entry.pictures] == [
        ("cubism", "Dogs"), ("cubism", "red cars"), ("pop-art", "Dogs"), ("pop-art", "red cars")
    ]  # fmt: skip
    assert entry.entry["groups"]["pop-art"]["phrase"] == "in the Pop Art style"


@pytest.mark.parametrize("kind", ["jsonl", "csv", "semicolons"])
def test_metadata_gives_captions_groups_and_rights(tmp_path, kind):
    for i, name in enumerate(("ann/1.png", "bo/1.png", "2.png")):
        paint(tmp_path / name, i)
    rows = [
        {"file_name": "ann/1.png", "text": "a cat, grey", "group": "", "author": "Ann", "license": "CC0-1.0"},
        {"file_name": "2.png", "text": "a dog", "group": "bo", "author": "", "license": ""},
    ]
    if kind == "jsonl":
        text = "\n".join(json.dumps(r) for r in rows)
    else:
        split = ";" if kind == "semicolons" else ","
        text = "\n".join(split.join(f'"{v}"' for v in r) for r in (rows[0].keys(), *(r.values() for r in rows)))
    (tmp_path / f"metadata.{'jsonl' if kind == 'jsonl' else 'csv'}").write_text(text, encoding="utf-8-sig")
    new = made(tmp_path)
    assert [(p.picture, p.group, p.text) for p in new.pictures] == [
        ("ann/1.png", "ann", "a cat, grey"), ("2.png", "bo", "a dog"), ("bo/1.png", "bo", "")
    ]  # fmt: skip
    assert (new.entry["groups"]["ann"]["author"], new.entry["groups"]["ann"]["licence"]) == ("Ann", "CC0-1.0")
    assert new.entry["groups"]["bo"]["author"] == NOT_STATED
    assert made(tmp_path / "ann" / "..").pictures == new.pictures
    (tmp_path / "ann" / "1.txt").write_text("a lynx", encoding="utf-8")
    assert made(tmp_path).pictures[0].text == "a lynx"  # what stands beside the picture goes before


def test_a_name_in_other_letters_is_found_where_the_disk_finds_it(tmp_path, monkeypatch):
    """macOS and Windows take Cat.JPG for cat.jpg; here there is no such file."""
    for i, name in enumerate(("ann/cat.png", "bo/1.png")):
        paint(tmp_path / name, i)
    (tmp_path / "metadata.csv").write_text("file_name,text\nann/Cat.PNG,a cat\n", encoding="utf-8")
    assert [(p.picture, p.text) for p in made(tmp_path).pictures] == [("ann/cat.png", ""), ("bo/1.png", "")]

    def blind(path):
        return any(p.name.lower() == path.name.lower() and p.suffix for p in path.parent.iterdir())

    monkeypatch.setattr(in_folder, "is_file", blind)
    assert [(p.picture, p.text) for p in made(tmp_path).pictures] == [("ann/cat.png", "a cat"), ("bo/1.png", "")]


def test_a_table_names_files_groups_and_rights(home, tmp_path):
    for i in range(6):
        paint(tmp_path / "files" / f"{i}.png", i % 2, i)
    lines = ["file,group,text,author,licence,link"]
    for i in range(6):
        link = f"https://example.org/{'ann' if i % 2 else i}"
        lines.append(f"files/{i}.png,{'Ann Lee' if i % 2 else 'Bo'},a wave,Author {i},CC-BY-4.0,{link}")
    (tmp_path / "rights.csv").write_text("\n".join(lines), encoding="utf-8")
    said = guda("groups", "new", tmp_path / "rights.csv")
    assert "The group 'Bo' has several link" in said
    gs = load_group_set("rights")
    ann, bo = gs.groups.values()
    assert (ann.author, ann.licence, ann.link) == (
        "Author 1, Author 3, Author 5",
        "CC-BY-4.0",
        "https://example.org/ann",
    )
    assert (bo.author, bo.link) == ("Author 0, Author 2, Author 4", "")
    assert read_list(home / "sets" / "rights" / "pictures.jsonl")[0].author == "Author 1"
    assert "CC-BY-4.0" in guda("groups", "check", "rights")


def test_a_new_table_changes_what_the_old_one_said_and_not_what_a_person_wrote(home, tmp_path):
    for i in range(4):
        paint(tmp_path / f"{i}.png", i % 2, i)

    def table(**rights):
        lines = ["file,group," + ",".join(rights)]
        lines += [f"{i}.png,{('ann', 'bo')[i % 2]}," + ",".join(rights.values()) for i in range(4)]
        (tmp_path / "rights.csv").write_text("\n".join(lines), encoding="utf-8")
        return tmp_path / "rights.csv"

    guda("groups", "new", table(author="A", licence="CC0-1.0", link="https://example.org/a"))
    file = home / "sets" / "rights" / "group_set.yaml"
    entry = yaml.safe_load(file.read_text(encoding="utf-8"))
    entry["groups"]["bo"] |= {"licence": "mine", "licence_link": "https://example.org/mine"}
    file.write_text(yaml.safe_dump(entry), encoding="utf-8")
    assert "nothing has changed" in guda(
        "groups", "new", table(author="A", licence="CC0-1.0", link="https://example.org/a")
    )
    said = guda("groups", "new", table(author="A", licence="CC-BY-4.0"), code=2)
    assert "'licence' of 'ann' was 'CC0-1.0' and is 'CC-BY-4.0'." in said and "add --again" in said
    assert "'licence' of 'bo' stays 'mine', as group_set.yaml says. The pictures' table or metadata says 'CC-BY" in said
    guda("groups", "new", tmp_path / "rights.csv", "--again")
    ann, bo = load_group_set("rights").groups.values()
    assert (ann.licence, bo.licence, bo.licence_link) == ("CC-BY-4.0", "mine", "https://example.org/mine")
    assert ann.author == bo.author == "A" and ann.link == "https://example.org/a"  # the table says nothing of links now


def test_rights_that_only_some_pictures_have_are_said_so(tmp_path):
    for i, name in enumerate(("ann/1.png", "ann/2.png", "bo/1.png", "bo/2.png")):
        paint(tmp_path / name, 0, i)
    (tmp_path / "metadata.csv").write_text("file_name,licence\nann/1.png,CC0-1.0\n")
    assert made(tmp_path).entry["groups"]["ann"]["licence"] == "CC0-1.0 (not stated for 1 picture)"


@pytest.mark.parametrize(
    ("texts", "phrase"),
    [
        ([], "by {name}"),
        (["a cat, in the style of Ann", "a dog in the style of ann", "a"], "in the style of {name}"),
        (["a cat by Ann", "dog by ann", "Ann, a cow by Ann"], "by {name}"),
        (["ann, a cat", "ann, a dog"], "{name}"),
        (["a cat", "a dog", "ann"], "by {name}"),
        (["a cat in the style of annabel", "a dog in the style of Annabel"], "by {name}"),
    ],
)
def test_a_phrase_is_taken_from_the_captions(texts, phrase, tmp_path):
    for i, text in enumerate(texts):
        paint(tmp_path / "Ann" / f"{i}.png").with_suffix(".txt").write_text(text)
    paint(tmp_path / "Bo" / "0.png")
    assert likely_phrase(find_in_folder(tmp_path).candidates) == phrase


def test_kohyas_repeats_are_no_part_of_a_name(tmp_path):
    for i, name in enumerate(("10_ann lee", "5_bo")):
        paint(tmp_path / name / "1.png", i)
    assert list(made(tmp_path).entry["groups"]) == ["ann-lee", "bo"]
    paint(tmp_path / "2024" / "1.png", 3)
    assert list(made(tmp_path).entry["groups"]) == ["10-ann-lee", "2024", "5-bo"]


def test_each_group_holds_out_its_share_and_the_seed_says_which(pictures):
    def held(**asked):
        return {p.picture for p in made(pictures, **asked).pictures if p.held_out}

    assert held(held_out=0.25) >= held(held_out=0.1) and len(held(held_out=0.25)) == 12 and held(held_out=0) == set()
    assert held(seed=1) != held(seed=2) == held(seed=2)
    (pictures / "Dee" / "new.png").write_bytes((paint(pictures.parent / "new.png", 9)).read_bytes())
    assert len(held(held_out=0.25) ^ {p.picture for p in made(pictures, held_out=0.25).pictures if p.held_out}) <= 2


def test_a_group_of_one_trains_and_a_group_of_two_does_both(tmp_path):
    for i, name in enumerate(("one/1.png", "two/1.png", "two/2.png")):
        paint(tmp_path / name, i)
    got = made(tmp_path, held_out=0.9)
    assert Counter((p.group, p.held_out) for p in got.pictures) == {
        ("one", False): 1, ("two", False): 1, ("two", True): 1
    }  # fmt: skip


def test_a_set_that_is_there_is_compared_and_kept(home, pictures):
    folder = home / "sets" / "artists"
    guda("groups", "new", pictures, "--held-out", "0.25", "--phrase", "in the manner of {name}")
    assert "nothing has changed since" in guda("groups", "new", pictures)
    entry = yaml.safe_load((folder / "group_set.yaml").read_text(encoding="utf-8"))
    entry["groups"]["dee"] |= {"author": "D. Ee", "licence": "CC0-1.0", "phrase": "deeish"}
    (folder / "group_set.yaml").write_text(yaml.safe_dump(entry, allow_unicode=True), encoding="utf-8")
    paint(pictures / "Dee" / "new.png", 3, 99)
    (pictures / "Bo Chan" / "1.PNG").unlink()
    paint(pictures / "Bo Chan" / "5.PNG", 1, 77)
    (pictures / "Ann Lee" / "0.txt").write_text("a hill")
    before = (folder / "pictures.jsonl").read_bytes()
    said = guda("groups", "new", pictures, code=2)
    for line in ("1 picture new: Dee/new.png", "1 picture gone: Bo Chan/1.PNG", "another caption: Ann Lee/0.jpg"):
        assert line in said
    assert "1 picture changed in their pixels: Bo Chan/5.PNG" in said and "add --again" in said
    assert (folder / "pictures.jsonl").read_bytes() == before
    guda("groups", "new", pictures, "--again")
    dee = load_group_set("artists").groups["dee"]
    assert (dee.author, dee.licence, dee.phrase) == ("D. Ee", "CC0-1.0", "deeish")
    assert len(read_list(folder / "pictures.jsonl")) == 48 and (folder / "group_set.before.yaml").is_file()
    held = Counter(p.group for p in read_list(folder / "pictures.jsonl") if p.held_out)
    assert held == dict.fromkeys(IDS, 2)  # the share of before
    assert "phrase of 'dee' was 'deeish' and is 'by Dee'" in guda(
        "groups", "new", pictures, "--phrase", "by {name}", code=2
    )


def test_a_set_with_descriptors_is_written_anew_with_them(home, pictures):
    guda("groups", "new", pictures)
    file = home / "sets" / "artists" / "group_set.yaml"
    entry = yaml.safe_load(file.read_text(encoding="utf-8")) | {"caption": "{object} with {descriptors}"}
    for k, group in enumerate(entry["groups"].values()):
        del group["phrase"]
        group["descriptors"] = [f"{word} {k}" for word in ("red", "blue", "flat", "soft", "loud")]
    file.write_text(yaml.safe_dump(entry, allow_unicode=True), encoding="utf-8")
    paint(pictures / "Dee" / "new.png", 3, 99)
    said = guda("groups", "new", pictures, "--again")
    assert 'How captions say a group: "{object} with {descriptors}".' in said and "no captions" not in said
    groups = load_group_set("artists").groups.values()
    assert [g.descriptors[0] for g in groups] == [f"red {k}" for k in range(6)] and not any(g.phrase for g in groups)


def test_what_differs_between_two_lists_is_said():
    a = Listed(picture="a.png", group="x", sha256="1", held_out=True)
    assert changes([a], [a]) == []
    for change, word in (
        ({"sha256": "2"}, "changed"), ({"group": "y"}, "in another group"), ({"text": "t"}, "another caption"),
        ({"held_out": False}, "trained on now"), ({"licence": "CC0"}, "other rights"),
        ({"object": "o"}, "another caption"),
    ):  # fmt: skip
        (said,) = changes([a], [a.model_copy(update=change)])
        assert word in said and "a.png" in said
    b = a.model_copy(update={"picture": "b.png"})
    assert changes([a], [b]) == ["1 picture renamed: b.png (was a.png)."]
    assert changes([a], [b.model_copy(update={"held_out": False})])[1] == "1 picture trained on now: b.png."
    before = [Listed(picture=f"{k}/x.png", group=k, sha256="1") for k in "AB"]
    now = [p.model_copy(update={"picture": f"{p.group}/y.png"}) for p in before[::-1]]
    assert changes(before, now) == ["2 pictures renamed: B/y.png (was B/x.png), A/y.png (was A/x.png)."]
    moved = now[0].model_copy(update={"group": "C"})
    assert changes(before[:1], [moved])[1:] == ["1 picture in another group: B/y.png."]
    assert len(changes([a], [a, b])) == 1 and "new" in changes([a], [a, b])[0]  # a copy


def test_what_a_set_is_trained_on_holds_what_captions_are_made_of(tmp_path):
    one = Listed(picture="a.png", group="x", sha256="1", object="cat")
    told = {}
    for name, p in {
        "as it is": one, "shows another thing": one.model_copy(update={"object": "dog"}),
        "has a caption": one.model_copy(update={"text": "cat"}), "moved": one.model_copy(update={"picture": "b.png"}),
        "has other rights": one.model_copy(update={"author": "Ann"}),
    }.items():  # fmt: skip
        write_list(tmp_path / "pictures.jsonl", [p])
        told[name] = trained_on(tmp_path)
    assert len(set(told.values())) == 3 and told["as it is"] == told["moved"] == told["has other rights"]


def test_a_list_is_read_as_it_was_written_and_faults_are_named(tmp_path):
    rows = [
        Listed(picture="ä.png", group="x", sha256="1", text="two\u2028lines"),
        Listed(picture="b", group="y", sha256="2"),
    ]
    write_list(tmp_path / "pictures.jsonl", rows)
    assert read_list(tmp_path / "pictures.jsonl") == rows
    (tmp_path / "pictures.jsonl").write_text('{"picture": "a"}\n')
    with pytest.raises(GroupSetError, match="line 1 is wrong at 'group'"):
        read_list(tmp_path / "pictures.jsonl")
    with pytest.raises(GroupSetError, match="cannot be read"):
        read_list(tmp_path / "nothing.jsonl")


def test_pictures_that_changed_since_are_errors(home, pictures):
    guda("groups", "new", pictures)
    gs = load_group_set("artists")
    item = open_dataset(gs).split("train")[0]
    path = pictures / item.id.partition("/")[2]
    paint(path, 5, 55)
    with pytest.raises(DataError, match="was changed after it was listed"):
        item.image(16)
    path.unlink()
    with pytest.raises(DataError, match=r"is not there any more\. Put it back.*--again"):
        item.image(16)
    assert "1 listed picture is not there" in guda("groups", "check", "artists", code=2)
    with pytest.raises(DataError, match="no split"):
        open_dataset(gs).split("test")


@pytest.mark.parametrize("name", ["../secret.png", "Ann Lee/../../secret.png", "{whole}"])
def test_a_list_that_names_a_file_outside_its_folder_is_refused(home, pictures, tmp_path, name):
    guda("groups", "new", pictures)
    path, secret = home / "sets" / "artists" / "pictures.jsonl", paint(tmp_path / "secret.png")
    there = {"picture": name.format(whole=secret), "sha256": hashlib.sha256(secret.read_bytes()).hexdigest()}
    rows = read_list(path)
    write_list(path, [rows[0].model_copy(update=there), *rows[1:]])
    own = open_dataset(load_group_set("artists"))
    item = next(i for i in own.split("train") if "secret" in i.id)
    for asked in (own.missing, lambda: item.image(16), lambda: own.bytes_of(there["picture"])):
        with pytest.raises(
            DataError, match=r"pictures\.jsonl: '.*secret\.png' lies outside .*artists\. Write the list"
        ):
            asked()
    assert "lies outside" in guda("groups", "check", "artists", code=2)


def test_the_fingerprint_stands_for_what_is_learned(home, pictures):
    guda("groups", "new", pictures)
    folder = home / "sets" / "artists"

    def now():
        return open_dataset(load_group_set("artists")).fingerprint()

    seen = {now(), open_dataset(load_group_set("artists")).fingerprint("held_out")}
    text = (folder / "group_set.yaml").read_text(encoding="utf-8")
    (folder / "group_set.yaml").write_text(text.replace("fit: crop", "fit: pad"), encoding="utf-8")
    seen.add(now())
    rows = read_list(folder / "pictures.jsonl")
    for field, value in (("text", "new"), ("sha256", "0"), ("object", "o"), ("picture", "q.png")):
        write_list(folder / "pictures.jsonl", [rows[0].model_copy(update={field: value}), *rows[1:]])
        assert rows[0].held_out is False
        seen.add(now())
    assert len(seen) == 7
    write_list(folder / "pictures.jsonl", [rows[0].model_copy(update={"group": "nobody"})])
    with pytest.raises(GroupSetError, match="names the group 'nobody'"):
        now()


def test_a_workspace_that_moves_takes_its_pictures_along(home, tmp_path):
    studio(home / "sets" / "mine" / "pictures", each=2)
    guda("groups", "new", home / "sets" / "mine" / "pictures", "--name", "mine")
    home.rename(tmp_path / "elsewhere")
    gs = load_group_set("mine", tmp_path / "elsewhere" / "sets")
    assert gs.options["path"] == "pictures" and open_dataset(gs).split("train")[0].image(8).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("said", "way"),
    [
        ({"Ann": "in the Ann style", "Bo": "in the Bo style"}, "in the {name} style"),
        ({"Ann": "in the Ann style", "Bo (1901)": "in the Bo style", "Cy": "in the Cy style"}, "in the {name} style"),
        ({"in": "in the style of in", "e": "in the style of e"}, "in the style of {name}"),
        ({"Art": "an Art of Arts"}, "an {name} of Arts"),
        ({"Ann": "by Ann", "Bo": "in the Bo style"}, None),
        ({"Ann": "by her", "Bo": "by him"}, None),
        ({"Ann": "", "Bo": ""}, None),
    ],
)
def test_new_groups_are_said_as_most_of_the_set_are(said, way):
    groups = {str(i): Group(str(i), n, phrase=p) for i, (n, p) in enumerate(said.items())}
    assert set_files._one_phrase(dataclasses.replace(load_group_set("emoji"), groups=groups)) == way
