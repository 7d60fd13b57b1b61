"""Bad input to `guda groups new`: each kind in its sentence."""

from __future__ import annotations

import json
import re
import shutil
import unicodedata

import pytest
from PIL import Image

import guda_core
from guda_core.cli import groups_check
from guda_core.data.dataset import Item
from guda_core.data.groups import load_group_set
from guda_core.data.own import in_folder
from guda_core.data.own.in_folder import find_in_folder, find_in_table
from guda_core.data.own.slugs import slug, slugs
from guda_core.data.own.tables import read_table
from guda_core.data.prompts import MAX_PROMPT
from guda_core.errors import DataError, GroupSetError, OptionError
from guda_core.records import Group, GroupSet
from tests.own_pictures import guda, made, paint


def test_what_systems_leave_behind_is_no_picture_and_endings_are_of_any_case(tmp_path):
    for i, name in enumerate(("ann/A.JPG", "ann/b.JpEg", "bo/C.Png", "bo/d.WEBP")):
        paint(tmp_path / name, 0, i)
    left = ("ann/._A.JPG", "ann/.hidden.png", "Thumbs.db", "ann/Thumbs.db", "bo/.DS_Store", ".thumbs/x.png")
    for name in (*left, "__MACOSX/ann/A.JPG", "bo/desktop.ini", "bo/README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"no picture")
    found = made(tmp_path, broken=0.0)
    assert len(found.pictures) == 4 and found.notes == []


def test_empty_folders_and_single_groups(home, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "There are no groups of pictures in" in guda("groups", "new", tmp_path / "empty", code=2)
    paint(tmp_path / "flat" / "1.png")
    assert "lie in no subfolder" in guda("groups", "new", tmp_path / "flat", code=2)
    paint(tmp_path / "one" / "ann" / "1.png")
    said = guda("groups", "new", tmp_path / "one", code=2)
    assert "There is 1 group with pictures" in said and "('ann')" in said and "at least two" in said
    assert "There is no folder" in guda("groups", "new", tmp_path / "nothing", code=2)
    (tmp_path / "artists.zip").write_bytes(b"PK")
    assert "Unpack it" in guda("groups", "new", tmp_path / "artists.zip", code=2)
    for name, splits in (("set", ("train", "test")), ("large", ("Train", "VAL"))):
        for split in splits:
            paint(tmp_path / name / split / "ann" / "1.png")
        said = guda("groups", "new", tmp_path / name, code=2)
        assert "look like the splits of a data set" in said and f"was trained on: {tmp_path / name / splits[0]}" in said
    assert not home.exists()


def test_broken_pictures_are_named_counted_and_refused_over_the_limit(tmp_path):
    for i in range(4):
        paint(tmp_path / "ann" / f"{i}.png", 0, i), paint(tmp_path / "bo" / f"{i}.png", 1, i)
    (tmp_path / "bo" / "cut.png").write_bytes((tmp_path / "bo" / "1.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"1 of 9 pictures cannot be read, more than 1%: bo/cut\.png \(This PNG"):
        made(tmp_path, broken=0.01)
    got = made(tmp_path, broken=0.12)
    assert len(got.pictures) == 8 and got.notes == [
        "1 of 9 pictures cannot be read and were left out: bo/cut.png (This PNG file is damaged or cut off)."
    ]
    for i in range(4):
        (tmp_path / "bo" / f"{i}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"There is 1 group with pictures in .* \('ann'\)"):
        made(tmp_path, broken=1.0)


def test_one_in_a_hundred_may_be_broken_and_two_may_not(tmp_path):
    for i in range(98):
        paint(tmp_path / ("ann", "bo")[i % 2] / f"{i}.png", i % 2, i, (16, 16))
    (tmp_path / "ann" / "a.png").write_bytes(b"no picture")
    assert len(made(tmp_path, broken=0.0102).pictures) == 98
    paint(tmp_path / "bo" / "b.png", 1, 98, (16, 16))
    assert len(made(tmp_path, broken=0.01).pictures) == 99
    (tmp_path / "bo" / "b.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"2 of 100 pictures cannot be read, more than 1%: .*--broken 0\.02"):
        made(tmp_path, broken=0.01)


def test_leaving_most_pictures_out_is_not_offered(tmp_path):
    for i in range(2):
        paint(tmp_path / "ann" / f"{i}.png", 0, i), paint(tmp_path / "bo" / f"{i}.png", 1, i)
    (tmp_path / "bo" / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"^1 of 5 pictures .* take them out\. .* add --broken 0\.2[01]\.$"):
        made(tmp_path, broken=0.01)
    for i in range(4):
        (tmp_path / "bo" / f"b{i}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"^5 of 9 pictures cannot be read, .* take them out\.$"):
        made(tmp_path, broken=0.01)


def test_a_picture_that_stands_twice_is_named_and_never_on_both_sides(pictures):
    first = pictures / "Ann Lee" / "1.PNG"
    with Image.open(first) as im:
        im.save(pictures / "Ann Lee" / "copy.png", compress_level=0)  # other bytes, the same pixels
        im.save(pictures / "Dee" / "stolen.webp", lossless=True)
    got = made(pictures, held_out=0.9, broken=0.0)
    assert any(
        "1 copy of pictures in the same group left out: Ann Lee/copy.png = Ann Lee/1.PNG" in n for n in got.notes
    )
    assert any("1 picture in more than one group: Ann Lee/1.PNG = Dee/stolen.webp" in n for n in got.notes)
    sides = {p.picture: p.held_out for p in got.pictures}
    assert "Ann Lee/copy.png" not in sides and not sides["Ann Lee/1.PNG"] and not sides["Dee/stolen.webp"]


def test_metadata_that_names_missing_files(tmp_path):
    for i, name in enumerate(("ann/1.png", "bo/1.png")):
        paint(tmp_path / name, i)
    (tmp_path / "metadata.csv").write_text("file_name,text\nann/1.png,a cat\nann/2.png,a dog\n")
    with pytest.raises(DataError, match=r"1 of 3 .*: ann/2\.png \(not there; named in metadata\.csv, line 3\)"):
        made(tmp_path, broken=0.01)
    assert len(made(tmp_path).pictures) == 2


def test_rows_that_say_different_things_of_one_picture_are_told(tmp_path):
    for i, name in enumerate(("ann/1.png", "bo/1.png")):
        paint(tmp_path / name, i)
    lines = ("file_name,text", "ann/1.png,a cat", "bo/1.png,a sea", "bo/1.png,a sea", "./ann/1.png,a dog")
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    found = find_in_folder(tmp_path)
    assert [c.text for c in found.candidates] == ["a dog", "a sea"]
    assert len(found.notes) == 1 and found.notes[0].endswith(
        "of which the last was taken: ./ann/1.png (metadata.csv, line 2, and metadata.csv, line 5)."
    )


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_an_accent_that_is_spelled_in_another_way_loses_no_caption(form, tmp_path):
    """macOS writes é as e and an accent; tables mostly as one character."""
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    for i, name in enumerate(("José/é.png", "José/ü.png", "José/ö.png", "bo/1.png")):
        paint(tmp_path / unicodedata.normalize(form, name), i)
    row = unicodedata.normalize(other, "José/é.png")
    (tmp_path / "metadata.csv").write_text(f"file_name,text,author\n{row},a cat,Z\n", encoding="utf-8")
    (tmp_path / unicodedata.normalize(form, "José") / f"{unicodedata.normalize(other, 'ü')}.txt").write_text("a sea")
    (tmp_path / unicodedata.normalize(form, "José") / f"{unicodedata.normalize(other, 'ö')}.png.txt").write_text(
        "an egg"
    )
    found, said = find_in_folder(tmp_path), [("", ""), ("a cat", "Z"), ("a sea", ""), ("an egg", "")]
    assert sorted((c.text, c.author) for c in found.candidates) == said
    assert found.missing == [] and not any("belong" in note for note in found.notes)
    assert {c.group for c in found.candidates} == {"José", "bo"}  # as captions are spelled that name it
    (tmp_path / "t.csv").write_text(f"file,group\n{row},a\nbo\\1.png,b\n,\n", encoding="utf-8")
    assert len(find_in_table(tmp_path / "t.csv").candidates) == 2
    for i, style in enumerate(("Cubism", "Pop")):
        paint(tmp_path / "styles" / style / unicodedata.normalize((form, other)[i], "Café") / "1.png", i)
    assert {c.object for c in find_in_folder(tmp_path / "styles").candidates} == {"Café"}


def test_backslashes_in_metadata_are_read_as_windows_writes_them(tmp_path):
    paint(tmp_path / "ann" / "1.png"), paint(tmp_path / "bo" / "a\\1.png", 1)  # the second is a file's own name
    (tmp_path / "metadata.csv").write_text("file_name,text\nann\\1.png,a cat\nbo/a\\1.png,a dog\n")
    found = find_in_folder(tmp_path)
    assert [c.text for c in found.candidates] == ["a cat", "a dog"] and found.missing == []


def test_a_table_lists_only_folders_that_it_names_each_once(tmp_path, monkeypatch):
    """What lies beside them may be all of a home folder, or a folder that nobody may open."""
    nfd = unicodedata.normalize("NFD", "é")
    for i, name in enumerate(("Bo/1.png", f"Cy/{nfd}/1.png", "else/1.png")):
        paint(tmp_path / name, i)
    rows = ["Bo/1.png", "Cy/é/1.png", *(f"Bo/x{i}.png" for i in range(9)), "none/1.png", "locked/1.png"]
    (tmp_path / "t.csv").write_text("".join(f"{row},a\n" for row in ("file", *rows)).replace("file,a", "file,group"))
    listed, real = [], in_folder.Path.iterdir

    def iterdir(folder):
        listed.append(folder.relative_to(tmp_path).as_posix())
        if folder.name == "locked":
            raise PermissionError
        return real(folder)

    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(in_folder.Path, "iterdir", iterdir)
    found = find_in_table(tmp_path / "t.csv")
    assert [c.picture for c in found.candidates] == ["Bo/1.png", f"Cy/{nfd}/1.png"] and len(found.missing) == 11
    assert sorted(listed) == [".", "Bo", "Cy", f"Cy/{nfd}", "locked", "none"]
    assert len(find_in_table(tmp_path / "t.csv", tmp_path / "gone").away) == 13


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("file_name,text\nann/1.png,a,b\n", "line 2 has more fields"),
        ("sep=;\nfile_name;text\nann/1.png;a;b\n", "line 3 has more fields"),
        ('file_name,text\nann/1.png,a\nann/2.png,"a" b\n', "line 3 is not readable as CSV"),
        ('sep=,\r\nfile_name,text\r\nann/1.png,"a" b\r\n', "line 3 is not readable as CSV"),
        ("file_name,text\nann/1.png,a\0b\n", r"line 2: 'text' holds the character NUL \(U\+0000\). Take it out"),
        ("text\na cat\n", "names no file"),
        ("file_name,file\nann/1.png,ann/2.png\n", "line 2: 'file_name' and 'file' differ, and mean the same"),
        ("file_name,text,Text\nann/1.png,a,b\n", "has two columns 'text'"),
        (b"file_name,text\nann/1.png,\xe9\n", "not UTF-8"),
    ],
)
def test_metadata_that_cannot_be_read(text, sentence, tmp_path):
    paint(tmp_path / "ann" / "1.png")
    (tmp_path / "metadata.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=sentence):
        find_in_folder(tmp_path)


@pytest.mark.parametrize("first", ["sep=;\n", '"sep=;"\r\n', "SEP=;;\n", "sep=|\n", "\ufeffsep=\t\n", ""])
def test_a_csv_may_begin_with_its_separator_as_excel_writes_it(first, tmp_path):
    by = next((c for c in ";|\t" if c in first), ",")
    (tmp_path / "t.csv").write_text(f"{first}file{by}text\na.png{by}a cat\n", encoding="utf-8", newline="")
    (row,) = read_table(tmp_path / "t.csv")[0]
    assert row == {"file": "a.png", "text": "a cat", "where": f"t.csv, line {3 if first else 2}"}


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.json"])
def test_a_row_that_says_a_column_twice_is_refused(name, tmp_path):
    paint(tmp_path / "1.png")
    row = '{"file_name": "1.png", "group": "ann", "Text": "a cat", "text": "a dog"}'
    (tmp_path / name).write_text(row if name.endswith("l") else f"[{row}]")
    with pytest.raises(DataError, match=r"(line|row) 1 has two columns 'text'\. Take one out\."):
        read_table(tmp_path / name)


def test_of_text_and_caption_the_text_is_taken_and_the_other_is_told(tmp_path):
    for n in "123":
        paint(tmp_path / "ann" / f"{n}.png")
    (tmp_path / "metadata.csv").write_text(
        "file_name,text,caption\nann/1.png,a cat,Figure 3\nann/2.png,,Figure 4\nann/3.png,a,\n"
    )
    found = find_in_folder(tmp_path)
    assert [c.text for c in found.candidates] == ["a cat", "Figure 4", "a"]
    (note,) = found.notes
    assert note == "Where metadata.csv has a text and a caption of one picture, the text was taken."
    (tmp_path / "metadata.csv").write_text("file_name,text,caption,n\nann/1.png,a,a\nann/2.png,,b\n")
    found = find_in_folder(tmp_path)
    assert found.notes == ["Columns of metadata.csv that mean nothing here: n."]


def test_a_caption_file_may_be_named_after_the_whole_picture_and_one_of_no_picture_is_told(tmp_path):
    for name in ("cat", "dog"):
        paint(tmp_path / "ann" / f"{name}.png")
    (tmp_path / "ann" / "cat.png.txt").write_text("a cat")
    (tmp_path / "ann" / "dog.txt").write_text("a dog")
    (tmp_path / "ann" / "cow.caption").write_text("a cow")
    found = find_in_folder(tmp_path)
    assert [c.text for c in found.candidates] == ["a cat", "a dog"]
    (note,) = (n for n in found.notes if "to no picture" in n)
    assert note.startswith("1 caption file belongs to no picture: ") and "cow.caption" in note
    (tmp_path / "metadata.csv").write_text("file_name,text\nann/cat.png,a lion\nann/dog.png,a dog\n")
    found = find_in_folder(tmp_path)
    assert [c.text for c in found.candidates] == ["a cat", "a dog"]
    (note,) = (n for n in found.notes if "text file" in n)
    assert note.startswith("1 picture has one caption in a text file and another") and "ann/cat.png" in note


def test_texts_of_no_picture_of_a_group_are_no_captions_that_miss_one(tmp_path):
    for name in ("ann/1.png", "2.png"):
        paint(tmp_path / name)
    for name in ("ann/1.txt", "2.txt", "README.txt", "ann/LICENSE.txt"):
        (tmp_path / name).write_text("Bär", encoding="utf-8" if name == "ann/1.txt" else "latin-1")
    found = find_in_folder(tmp_path)
    assert [c.text for c in found.candidates] == ["Bär"]
    assert found.notes == ["1 picture in no subfolder and so of no group: 2.png."]


@pytest.mark.parametrize("option", [("--split", "train"), ("--folder", "x"), ("--image-column", "x")])
def test_a_place_that_is_not_there_is_told_before_its_options(option, home, tmp_path):
    for name in ("none", "none.csv", "none.parquet"):
        assert f"There is nothing at '{tmp_path / name}'." in guda("groups", "new", tmp_path / name, *option, code=2)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"file": "1.png"}, "has no group"),
        ({"file": "../1.png", "group": "a"}, "lies outside"),
        ({"file": "/etc/1.png", "group": "a"}, "lies outside"),
        ({"file": "1.png", "group": ["a"]}, "'group' must be text"),
        ("1.png", "must be an object"),
    ],
)
def test_tables_that_are_wrong(row, sentence, home, tmp_path):
    (tmp_path / "table.json").write_text(json.dumps([row]))
    assert sentence in guda("groups", "new", tmp_path / "table.json", code=2)


@pytest.mark.parametrize("said", ["holds the character NUL (U+0000). Take it out.", "Save it again as UTF-8."])
def test_a_caption_file_that_cannot_be_taken_says_why(said, tmp_path):
    for i in range(6):
        paint(tmp_path / "ann" / f"{i}.png", i)
        (tmp_path / "ann" / f"{i}.txt").write_bytes(b"a\0b" if i < 5 else b"\xff")
    with pytest.raises(DataError, match=re.escape(said)) as told:
        find_in_folder(tmp_path)
    assert "1 caption file is not readable as UTF-8 text" in str(told.value)
    assert str(told.value).count("NUL") == 3 and "2 more caption files cannot be read." in str(told.value)


def test_captions_that_are_longer_than_a_prompt_are_told(tmp_path):
    for i, text in enumerate(("a" * MAX_PROMPT, "a" * (MAX_PROMPT + 1))):
        paint(tmp_path / f"g{i}" / "1.png", i)
        (tmp_path / f"g{i}" / "1.txt").write_text(text)
    notes = made(tmp_path).notes
    said = "1 caption has more than the 2,000 characters that a prompt may have: g1/1.png."
    assert said in notes
    two = GroupSet("s", "S", {"j": Group("j", "J", phrase="x")}, caption="{content}, {phrase}")
    items = [Item("g1/1.png", "j", caption="a" * MAX_PROMPT), Item("g1/2.png", "j", caption="b")]
    assert said in groups_check.warnings(two, items, [])


def test_captions_of_several_lines_are_told(tmp_path):
    """Some trainers take the first line alone, or one of them at a time."""
    for i, text in enumerate(("a cat\na dog", "a cat\n\n", "\n a cat \n", "a\r\nb\r\n")):
        paint(tmp_path / "ann" / f"{i}.png", i)
        (tmp_path / "ann" / f"{i}.txt").write_text(text, newline="")
    found = find_in_folder(tmp_path)
    assert [c.text for c in found.candidates] == ["a cat a dog", "a cat", "a cat", "a b"]
    assert found.notes == [
        "2 caption files have several lines, which were joined to one caption: ann/0.txt, ann/3.txt."
    ]


def test_captions_that_are_not_utf8_are_all_named(tmp_path):
    for i, name in enumerate(("ann/1.png", "bo/1.png")):
        paint(tmp_path / name, i)
        (tmp_path / name).with_suffix(".txt").write_text("ein Bär", encoding="utf-16" if i else "latin-1")
    with pytest.raises(DataError, match=r"2 caption files are not readable as UTF-8 text: .*ann/1\.txt, .*bo/1\.txt"):
        find_in_folder(tmp_path)


def test_links_that_lead_round_end(tmp_path):
    for i, name in enumerate(("ann/1.png", "bo/1.png")):
        paint(tmp_path / name, i)
    (tmp_path / "ann" / "up").symlink_to("..")
    (tmp_path / "ann" / "self.png").symlink_to("self.png")
    elsewhere = paint(tmp_path.parent / f"{tmp_path.name}-more" / "2.png", 2).parent
    (tmp_path / "cy").symlink_to(elsewhere)
    got = made(tmp_path)
    assert [p.picture for p in got.pictures] == ["ann/1.png", "bo/1.png", "cy/2.png"]
    assert sum("leads to a folder that was read already" in n for n in got.notes) == 1
    assert sum("leads nowhere" in n for n in got.notes) == 1


def test_names_that_are_no_text_are_told(tmp_path):
    for i, name in enumerate(("ann/1.png", "bo/1.png", "bo/2.png")):
        paint(tmp_path / name, i)
    shutil.copy(tmp_path / "bo" / "2.png", tmp_path / "bo" / "\udcff.png")
    assert any("its name is no text" in n for n in made(tmp_path).notes)


def test_links_that_cannot_be_looked_at_are_told(tmp_path):
    paint(tmp_path / "ann" / "1.png"), paint(tmp_path / "bo" / "1.png", 1)
    for place in ("bo/2.png", "3.png", "cy"):  # no system has names of 300 characters
        (tmp_path / place).symlink_to("x" * 300)
    notes = made(tmp_path, broken=0.0).notes
    for place in ("bo/2.png", "3.png", "cy"):
        assert f"{tmp_path / place} is a link that leads nowhere; it was passed over." in notes


def test_a_caption_whose_name_is_no_text_is_no_picture(tmp_path):
    paint(tmp_path / "ann" / "1.png"), paint(tmp_path / "bo" / "1.png", 1)
    (tmp_path / "bo" / "\udcc3.txt").write_text("a wave")
    assert len(made(tmp_path, broken=0.0).pictures) == 2


def test_a_huge_picture_is_told_the_limit_of_ones_own_pictures(tmp_path):
    paint(tmp_path / "ann" / "1.png"), paint(tmp_path / "bo" / "1.png", 1)
    Image.new("1", (20000, 20000)).save(tmp_path / "bo" / "2.png")
    with pytest.raises(DataError, match="far more than 89 megapixels"):
        made(tmp_path, broken=0.0)


def test_ids_that_collide_are_named(tmp_path):
    for i, name in enumerate(("Ann Lee", "ann_lee")):
        paint(tmp_path / name / "1.png", i)
    with pytest.raises(GroupSetError, match="'Ann Lee' and 'ann lee' would both have the id 'ann-lee'"):
        made(tmp_path)
    (tmp_path / "ann_lee").rename(tmp_path / "Ann_Lee")
    with pytest.raises(DataError, match="The subfolders Ann Lee, Ann_Lee would be one group, 'Ann Lee'"):
        made(tmp_path)
    for form in ("NFC", "NFD"):
        paint(tmp_path / "two" / unicodedata.normalize(form, "José") / "1.png")
    with pytest.raises(DataError, match=r"The subfolders Jose\u0301, José \(they look the same: .* would be one group"):
        made(tmp_path / "two")
    shutil.rmtree(tmp_path / "two")
    for old, new in (("Ann Lee", "10_ann"), ("Ann_Lee", "5_ann")):
        (tmp_path / old).rename(tmp_path / new)
    paint(tmp_path / "1_bo" / "1.png", 2)
    assert "The subfolders 10_ann, 5_ann are one group, 'ann'." in made(tmp_path).notes


def test_a_link_to_another_groups_folder_takes_nothing_from_that_group(tmp_path):
    for i, name in enumerate(("Ann/1.png", "Bo/1.png")):
        paint(tmp_path / name, i)
    (tmp_path / "Ann" / "collab").symlink_to(tmp_path / "Bo")
    got = made(tmp_path)
    assert [p.picture for p in got.pictures] == ["Ann/1.png", "Bo/1.png"]
    (said,) = got.notes
    assert f"{tmp_path / 'Ann' / 'collab'} leads to a folder that was read already" in said


@pytest.mark.parametrize(
    ("link", "to", "pictures"),
    [
        ("Ann/collab", "Bo", ["Ann/1.png", "Bo/1.png"]),
        ("All", "", ["All/Cy/1.png", "Ann/1.png", "Bo/1.png"]),
    ],
)
def test_a_group_that_is_a_link_keeps_its_pictures(link, to, pictures, tmp_path, monkeypatch):
    root, store = tmp_path / "root", tmp_path / "store"
    for i, path in enumerate((root / "Ann", store / "Bo", store / "Cy")):
        paint(path / "1.png", i)
    (root / link).symlink_to(store / to)
    (root / "Bo").symlink_to(store / "Bo")
    monkeypatch.setattr(in_folder.Path, "is_symlink", lambda path: False)  # as of Windows' junctions
    found = find_in_folder(root)
    assert [c.picture for c in found.candidates] == pictures
    (said,) = (n for n in found.notes if "read already" in n)
    assert said.startswith(str(root / link))


def test_names_of_files_keep_their_white_space(tmp_path):
    names = ("Ann/at 1.00.00\u202fPM.png", "Ann/a  b.png", "Bo/桜\u3000花.png")
    for i, name in enumerate(names):
        paint(tmp_path / name, i)
    rows = "".join(f"{name},caption {i}\n" for i, name in enumerate(names))
    (tmp_path / "metadata.csv").write_text(f"file_name,text\n{rows}", encoding="utf-8")
    found = find_in_folder(tmp_path)
    assert {c.picture: c.text for c in found.candidates} == {n: f"caption {i}" for i, n in enumerate(names)}


def test_an_empty_caption_beside_another_and_a_copy_without_one_lose_no_text(tmp_path):
    for i, name in enumerate(("Ann/0.png", "Ann/1.png", "Bo/0.png")):
        paint(tmp_path / name, i)
    (tmp_path / "Ann" / "0.txt").write_text("")
    (tmp_path / "Ann" / "0.caption").write_text("a cat")
    shutil.copyfile(tmp_path / "Ann" / "1.png", tmp_path / "Ann" / "2.png")
    (tmp_path / "Ann" / "2.txt").write_text("a sea")
    rows = ("file_name,author,licence,licence_link,object", "Ann/1.png,X,CC0-1.0,https://a.b/0,dog", "Ann/2.png,,MIT,,")
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    found = made(tmp_path).pictures
    assert {p.picture: p.text for p in found} == {"Ann/0.png": "a cat", "Ann/2.png": "a sea", "Bo/0.png": ""}
    sea = found[1]  # its licence is not that of the link
    assert (sea.author, sea.object, sea.licence, sea.licence_link) == ("X", "dog", "MIT", "")


def test_a_share_of_broken_pictures_that_is_offered_is_enough(tmp_path):
    for i in range(7):
        paint(tmp_path / "Ann" / f"{i}.png", 0, i), paint(tmp_path / "Bo" / f"{i}.png", 1, i)
    for i in range(29):
        (tmp_path / "Bo" / f"broken-{i}.png").write_bytes(b"")
    for i in range(57):
        paint(tmp_path / "Ann" / f"more-{i}.png", 0, 10 + i, (20, 20))
    with pytest.raises(DataError, match=r"29 of 100 .*add --broken") as refused:
        made(tmp_path, broken=0.01)
    offered = float(re.search(r"--broken ([\d.]+)", str(refused.value))[1].rstrip("."))
    assert offered == 0.29 and len(made(tmp_path, broken=offered).pictures) == 71  # 0.29 * 100 is 28.999...
    with pytest.raises(DataError, match="29 of 100 pictures cannot be read, more than 28%"):
        made(tmp_path, broken=0.28)


def test_a_damaged_list_is_written_anew(home, tmp_path):
    for i, name in enumerate(("Ann/1.png", "Ann/2.png", "Bo/1.png", "Bo/2.png")):
        paint(tmp_path / name, i, i)
    guda("groups", "new", tmp_path, "--name", "two")
    listed = next(home.rglob("pictures.jsonl"))
    listed.write_text(listed.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    entry = listed.with_name("group_set.yaml")
    entry.write_text(entry.read_text(encoding="utf-8").replace("author: not stated", "author: Zed", 1))
    (tmp_path / "metadata.csv").write_text("file_name,author\nAnn/1.png,Yan\nAnn/2.png,Yan\n")
    said = guda("groups", "new", tmp_path, "--name", "two", "--again")
    assert "captions that a network wrote into it are not kept, and authors, licences and links stay as" in said
    assert "'author' of 'ann' stays 'Zed', as group_set.yaml says. The pictures' table or metadata says 'Yan'" in said
    assert "Changed: The list of pictures is written anew." in said and " new: " not in said
    assert len(load_group_set("two").groups) == 2 and listed.read_text(encoding="utf-8").count("\n") == 4


def test_slugs():
    assert [slug(n) for n in ("José Núñez", "Søren Ł", "A--b_", "ÆØ")] == ["jose-nunez", "soren-l", "a-b", "aeo"]
    odd = ["!!!", "???", "葛飾北斎", "歌川広重", "北斎 2", "広重 2", "Пикассо", ""]
    ids = slugs(odd)
    assert len(set(ids.values())) == len(odd) and all(i.isascii() and i == i.strip("-") for i in ids.values())
    assert ids["北斎 2"].startswith("2-") and ids["!!!"].startswith("group-")
    assert slug("José") == slug(unicodedata.normalize("NFD", "José"))
    assert slug("ガラス") == slug(unicodedata.normalize("NFD", "ガラス"))


def test_names_of_other_scripts_have_phrases_of_their_own(home, tmp_path):
    for i, name in enumerate(("葛飾北斎", "歌川広重", "!!!")):
        paint(tmp_path / "w" / name / "1.png", i)
    guda("groups", "new", tmp_path / "w")
    assert sorted(g.phrase for g in load_group_set("w").groups.values()) == ["by !!!", "by 歌川広重", "by 葛飾北斎"]


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (("--held-out", "1.5"), "between 0 and 0.9"),
        (("--phrase", "by someone"), "needs {name}"),
        (("--broken", "-1"), "between 0 and 1"),
        (("--name", "emoji"), "is the name of an included group set"),
        (("--name", " "), "(--name) is empty"),
        (("--fit", "stretch"), "crop"),
        (("--split", "train"), "--split is for a data set, and"),
        (("--folder", "elsewhere"), "--folder is for a table, and"),
    ],
)
def test_options_that_are_wrong(option, sentence, home, pictures):
    assert sentence in guda("groups", "new", pictures, *option, code=2)
    assert not (home / "sets").exists()


@pytest.mark.parametrize("wrong", [{"group_column": "artist"}, {"split": "test"}, {"config": "small"}])
def test_a_table_takes_nothing_that_is_of_data_sets(wrong, home, tmp_path):
    (tmp_path / "t.csv").write_text("file,artist\na.png,Ann\n")
    with pytest.raises(OptionError) as said:
        guda_core.make_groups(tmp_path / "t.csv", **wrong)
    (name,) = wrong
    assert str(said.value).startswith(f"`{name}` is for a data set, and '{tmp_path / 't.csv'}' is none.")
    assert ("Call the columns of a table file_name, group and text." in str(said.value)) == (name == "group_column")


def test_a_data_set_without_a_name_is_told(home):
    with pytest.raises(DataError, match="'hub:' names no data set"):
        guda_core.make_groups("hub:")
    with pytest.raises(OptionError, match="is a whole number"):
        guda_core.make_groups(home, name="a", seed=True)
