"""Tables of scores that were broken on purpose: odd lists of pictures, odd parts, odd folders, two runs that differ."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

import pytest

from guda_core.errors import ImageError, OptionError, ReportError
from guda_core.scoring import listing, part_jobs, parts, scorer, table_run
from guda_core.scoring.asking import Asked, Results
from guda_core.scoring.listing import Listing
from guda_core.scoring.table_run import Options, Table, Total
from guda_core.work_queue import claimed
from tests.light import LightService, draw
from tests.table_works import QUICK, folder_of, rows, run
from tests.test_cli import run as command  # noqa: F401  (a fixture)
from tests.test_pipeline import service  # noqa: F401  (a fixture)


@pytest.fixture
def folder(tmp_path) -> Path:
    return folder_of(tmp_path / "in", 9)


def listed(source: Path | str) -> dict[str, str]:
    """Name -> prompt of what a source lists."""
    found = Listing([str(source)])._connection.execute("SELECT picture, prompt FROM listed").fetchall()
    return dict(found)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("file,prompt\na.png\nb.png,x\n", {"a.png": "", "b.png": "x"}),
        ("File; Prompt\na.png;cat, flat\n", {"a.png": "cat, flat"}),
        ('"sep=;"\r\nfile;prompt\r\na.png;cat, flat\r\n', {"a.png": "cat, flat"}),
        ('file\tprompt\na.png\t"two\nlines"\n', {"a.png": "two\nlines"}),
        (
            'file\n"a, b.png"\n\n=cmd()\n-rf.png\n../x.png\n',
            dict.fromkeys(("a, b.png", "=cmd()", "-rf.png", "../x.png"), ""),
        ),
        ("file,prompt\r\nNULL,it's\r\n,no file\r\n\r\n", {"NULL": "it's"}),
    ],
)
def test_a_csv_is_read_as_people_write_it(tmp_path, text, found):
    (tmp_path / "t.csv").write_bytes(text.encode())
    assert listed(tmp_path / "t.csv") == found
    assert Listing([str(tmp_path / "t.csv")]).nameless == ("no file" in text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"file,prompt\na.png,x\nb.png,cat, flat\n", "Line 3 of .* has 3 columns, and the first line has 2"),
        ("file,prompt\na.png,sch\xf6n\n".encode("latin-1"), "not in UTF-8"),
        (b"a.png,x\n", "one column 'file'.* It has the columns 'a.png', 'x'"),
        (b"file,file\na.png,b.png\n", "one column 'file'"),
        (b'file,prompt\na.png,"open\n', "t.csv', line 2 is not readable as CSV"),
        (b'sep=;\r\nfile;prompt\r\na.png;"x" y\r\n', "t.csv', line 3 is not readable as CSV: ';' expected"),
        (b"sep=;\nfile;prompt\na.png;x;y\n", "Line 3 of .* has 3 columns"),
        (b"", "It has the columns nothing"),
    ],
)
def test_a_csv_that_cannot_be_read_says_what_is_wrong(tmp_path, text, sentence):
    (tmp_path / "t.csv").write_bytes(text)
    with pytest.raises(OptionError, match=sentence):
        Listing([str(tmp_path / "t.csv")])


def test_a_parquet_table_may_name_files_by_numbers(tmp_path):
    place = listing.quoted(str(tmp_path / "t.parquet"))
    listing.connect().execute(f"COPY (SELECT 1 AS file, 2 AS prompt) TO {place} (FORMAT parquet)")
    assert listed(tmp_path / "t.parquet") == {"1": "2"}


def test_odd_names_are_one_sentence(tmp_path, folder):
    (tmp_path / "list.json").write_text("[]")
    for sources, prompt, sentence in (
        (["a" * 5000], "", "no folder or picture"),
        ([""], "", "names is empty"),
        ([str(folder)], "caf\udce9", "bytes that are no text"),
        ([str(tmp_path / "list.json")], "", "Save it as CSV or Parquet"),
    ):
        with pytest.raises(OptionError, match=sentence):
            Listing(sources, prompt)
    for out in ("", "x\udcff"):
        with pytest.raises(OptionError, match="Name one with --out"):
            Table([str(folder)], out, LightService)
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    draw(Path(odd), seed=1)
    assert listed(odd) == {"\\udcff.png": ""}
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(OptionError, match="another folder than"):
        Table([str(folder)], str(tmp_path / "link" / "out"), LightService)


def test_links_end_and_nothing_is_left_out_unsaid(tmp_path, folder, monkeypatch):
    (folder / "loop").symlink_to(folder)
    (folder / "self").symlink_to("self")
    (folder / "gone.png").symlink_to("nowhere.png")
    total = run(folder, tmp_path / "out", LightService)
    assert (total.scored, set(total.why)) == (9, {"self", "gone.png"})
    (folder / "sub").mkdir()
    real = os.scandir

    def refused(place):
        if str(place).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(place))
        return real(place)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(OptionError, match=r"sub' cannot be read \(Permission denied\)"):
        Listing([str(folder)])


def test_parts_of_another_table_or_place_are_left_out_and_made_again(tmp_path, folder):
    other = LightService()
    other.change(sha256="f" * 64)
    run(folder, tmp_path / "mine", LightService)
    run(folder, tmp_path / "other", lambda: other)
    mine = tmp_path / "mine" / "parts"
    before = rows(tmp_path / "mine")
    for source, n in ((tmp_path / "other" / "parts" / "000000.parquet", 0), (mine / "000001.parquet", 2)):
        shutil.copy(source, mine / f"{n:06d}.parquet")
        summary = Results(str(tmp_path / "mine")).summary()
        assert summary.cut == 1 and summary.pictures < 9
        total = run(folder, tmp_path / "mine", LightService)
        assert total.scored == 9 - summary.pictures and rows(tmp_path / "mine") == before


def test_parts_of_an_older_version_are_kept(tmp_path, folder, monkeypatch):
    real = parts.write
    monkeypatch.setattr(parts, "write", lambda place, rows, of: real(place, rows))
    run(folder, tmp_path / "out", LightService)
    monkeypatch.undo()
    assert Results(str(tmp_path / "out")).summary().pictures == 9
    assert run(folder, tmp_path / "out", LightService) == Total(9, kept=9)


class Choosy(LightService):
    """Refuses every picture while something is missing."""

    missing = True

    def prepare(self, data, *, prompt=""):
        if self.missing:
            raise ImageError("Install what reads it.")
        return super().prepare(data, prompt=prompt)


def test_what_was_refused_is_tried_again(tmp_path, folder):
    choosy = Choosy()
    assert run(folder, tmp_path / "out", lambda: choosy).refused == 9
    choosy.missing = False
    assert run(folder, tmp_path / "out", lambda: choosy) == Total(9, scored=9)


def test_two_runs_of_different_pictures_begin_a_folder_together(tmp_path, folder):
    others, out = folder_of(tmp_path / "others", 17), tmp_path / "out"
    for path in others.iterdir():
        path.rename(path.with_name(f"other-{path.name}"))
    first, second = (Table([str(f)], str(out), LightService, QUICK) for f in (folder, others))

    def work(tasks):
        assert list(second.run())[-1] == Total(17, scored=17)
        yield from part_jobs.here(tasks)

    assert list(first.run(work))[-1] == Total(9, scored=9)
    summary = Results(str(out)).summary()
    assert (summary.pictures, summary.cut) == (26, 0)
    assert [p.name for p in out.glob("asked*")] == [first.listing.name]
    (out / "asked by me.parquet").touch()  # the user's
    assert run(others, out, LightService) == Total(17, kept=17)
    assert {p.name for p in out.glob("asked*")} == {second.listing.name, "asked by me.parquet"}


def test_a_run_keeps_its_list_when_the_same_command_beside_it_is_stopped(tmp_path, folder):
    others, out = folder_of(tmp_path / "others", 1), tmp_path / "out"
    first, second = (Table([str(folder)], str(out), LightService, QUICK).run() for _ in range(2))
    assert next(first).done == next(second).done == 1
    first.close()
    next(second)
    assert run(others, out, LightService).pictures == 1
    assert list(second)[-1].done == 9
    run(others, out, LightService)
    (left,) = out.glob("asked*")
    assert (out / "claims" / f"{left.name}.lock").is_file()


def test_a_refused_command_ends_no_run_that_goes_on(tmp_path, folder):
    others, out = folder_of(tmp_path / "others", 5), tmp_path / "out"

    def work(tasks):
        found = part_jobs.here(tasks)
        yield next(found)
        with pytest.raises(OptionError, match=r"begun with something else \(effort\)"):
            run(others, out, LightService, options=Options("standard"))
        yield from found

    assert run(folder, out, LightService, work) == Total(9, scored=9)


BROKEN = ("[]", "null", "{", "[" * 100_000, '{"format": 1}', '{"format": 1, "parts": "x"}', '{"format": 0, "parts": 3}')


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_damaged_table_file_is_one_sentence(tmp_path, folder, text):
    out = tmp_path / "out"
    run(folder, out, LightService)
    (out / table_run.TABLE).write_text(text)
    for ask in (partial(Results, str(out)), partial(run, folder, out, LightService)):
        with pytest.raises(OptionError, match=r"table\.json' is damaged"):
            ask()


def test_results_of_a_newer_version_are_not_read(tmp_path, folder):
    out = tmp_path / "out"
    run(folder, out, LightService)
    (out / table_run.TABLE).write_text(json.dumps({"format": 2, "parts": 3}))
    for ask in (partial(Results, str(out)), partial(run, folder, out, LightService)):
        with pytest.raises(OptionError, match="of format 2, which a newer version of guda writes"):
            ask()


def forged(part: str, key: str, value: object) -> str:
    whole = {
        "model": {"id": "a", "sha256": "b", "dtype": "float32"},
        "group_set": {"id": "c"},
        "settings": {"effort": "quick", "methods": ["guda"]},
    }
    return json.dumps(whole | {part: {**whole[part], key: value}})


ODD = [forged("model", "id", 1), forged("model", "dtype", None), forged("group_set", "id", ["x"])]
ODD += [forged("settings", "methods", "guda"), forged("settings", "methods", [1]), forged("settings", "effort", {})]


@pytest.mark.parametrize("text", ["[]", "null", "", "{}", '{"settings": 1}', '{"model": 1}', *ODD])
def test_a_damaged_record_of_what_a_table_is_made_from_is_made_again(tmp_path, folder, text):
    out = tmp_path / "out"
    run(folder, out, LightService)
    (out / scorer.MADE_FROM).write_text(text)
    with pytest.raises(ReportError, match=r"lacks a whole made_from\.json"):
        Results(str(out)).summary()
    assert run(folder, out, LightService) == Total(9, kept=9)
    assert Results(str(out)).summary().pictures == 9


def test_a_full_folder_for_temporary_files_is_one_sentence(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(ReportError, match="TMPDIR"):
        parts.write(str(tmp_path / "part.parquet"), [])
    monkeypatch.undo()
    found = Listing([str(folder)])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(ReportError, match="TMPDIR"):
        found.write(str(tmp_path / "out"), 2)


def test_a_folder_that_takes_no_claims_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="Nothing can be claimed in"), claimed(tmp_path / "file" / "part"):
        pass


def test_filters_take_any_text(tmp_path, folder):
    run(folder, tmp_path / "out", LightService)
    found = Results(str(tmp_path / "out"))
    for text in ("'; DROP VIEW scores; --", "%", "\udcff", "\0", "x" * 100_000):
        for asked in (Asked(text=text), Asked(group=text), Asked(method=text), Asked(picture=text), Asked(status=text)):
            assert found.count(asked) == 0
    assert found.count(Asked())


def test_the_command_says_what_there_is_not(command, tmp_path, folder):  # noqa: F811
    (folder / "<no>.doc").write_text("no picture")
    out = tmp_path / "out"
    run(folder, out, LightService)
    for option, sentence in (
        (("--group", "nobody"), "There is no group 'nobody' in these results. Known: emojione-monotone,"),
        (("--method", "magic"), "There is no method 'magic' in these results. Known: guda, clip."),
        (("--picture", "x.png"), "There is no picture 'x.png'"),
    ):
        done = command("results", out, *option)
        assert done.exit_code == 2 and sentence in " ".join(done.output.split()), done.output
    assert "There are no such rows." in command("results", out, "--scope", "out of scope").output
    said = command("results", out, "--group", "twemoji", "--method", "guda").output
    assert "9 rows" in said and "In each of these rows: method: guda; group: Twemoji;" in said and "scope │" not in said
    said = command("results", out, "--status", "refused").output
    assert "1 row" in said and "<no>.doc" in said and "score" not in said
