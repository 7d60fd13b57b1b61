"""What other systems do to paths and names: drives and backslashes, an accent in two characters, their own files."""

from __future__ import annotations

import ast
import ntpath
import os
import sys
import unicodedata
from importlib import import_module
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import fsspec
import pytest
import torch
from gradio.processing_utils import client_utils, save_file_to_cache

from guda_core import paths
from guda_core.data.left_behind import LEFT_BEHIND, PassedOver
from guda_core.data.own.found import Found
from guda_core.data.own.in_folder import files_below
from guda_core.diffusion import base_model
from guda_core.diffusion.cards import load_model
from guda_core.errors import ImageError, OptionError
from guda_core.paths import ROOT
from guda_core.reports.batch import Batch, BatchConfig, pictures
from guda_core.scoring import again, listing, parts, places, summary_page
from guda_core.scoring.asking import Asked, Results
from guda_core.scoring.listing import Listing
from guda_core.scoring.summary import Summary
from guda_core.scoring.table_run import Table
from guda_core.ui import results_screen, uploads
from guda_core.ui.serve import launch
from guda_core.ui.several import begun
from guda_core.ui.uploads import uploaded
from tests.fakes import FakeService
from tests.light import LightService, draw
from tests.table_works import folder_of
from tests.table_works import run as make_table
from tests.test_cli import run  # noqa: F401  (a fixture)
from tests.test_pipeline import service  # noqa: F401  (a fixture)
from tests.tiny import save_tiny, save_tiny_unconditional

NFC, NFD = "caf\u00e9.png", "cafe\u0301.png"
HERE = r"C:\Lists"  # what Windows calls the folder that the tests below work in


class AsOnWindows(PureWindowsPath):
    """Windows' reading of paths; the file that is opened lies in the folder that the test works in."""

    def open(self, *args, **kwargs):
        return Path(self.name).open(*args, **kwargs)

    def stat(self, **named):
        return Path(self.name).stat(**named)


@pytest.fixture
def windows(tmp_path, monkeypatch) -> Path:
    """Places are read as on Windows, in a folder that it calls `HERE`."""
    monkeypatch.chdir(tmp_path)

    def full(path) -> str:
        return ntpath.normpath(ntpath.join(HERE, path))

    asked = {"isfile": os.path.isfile, "isdir": os.path.isdir, "join": ntpath.join}
    monkeypatch.setattr(places, "os", SimpleNamespace(path=SimpleNamespace(abspath=full, realpath=full, **asked)))
    monkeypatch.setattr(places, "Path", AsOnWindows)
    return tmp_path


def placed(*sources: str) -> dict[str, str]:
    """Name -> place of what sources list."""
    return dict(Listing(sources)._connection.execute("SELECT picture, place FROM listed").fetchall())


def test_a_part_has_its_number_on_windows(windows):
    assert parts.number_of(parts.place_of(r"C:\out", 3)) == 3 == parts.number_of("s3://bucket/out/parts/000003.parquet")
    assert parts.place_of(r"C:\out", 3) == r"C:\out\parts\000003.parquet"
    assert parts.number_of(r"C:\out\parts\mine.parquet") == -1


def test_the_origin_of_a_part_is_found_however_its_folder_is_written():
    told = [("/out/./parts/000000.parquet", b'{"of": "a"}'), ("/out/./parts/000001.parquet", b'{"rows": 1}')]
    connection = SimpleNamespace(
        cursor=lambda: SimpleNamespace(execute=lambda query: SimpleNamespace(fetchall=lambda: told))
    )
    asked = [f"/out/parts/00000{i}.parquet" for i in range(3)]
    assert parts._origins(connection, asked) == dict(zip(asked, ("a", None, None), strict=True))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_on_windows_names_files_beside_it_and_anywhere(windows, kind):
    names = ["a.png", "in\\b.png", "D:\\x\\c.png", "E:/d.png", "\\\\host\\share\\e.png", "s3://bucket/f.png"]
    Path("t.csv").write_text("file\n" + "\n".join(names), encoding="utf-8")
    if kind == "parquet":
        rows = "read_csv('t.csv', all_varchar=true, header=true, sep='\t')"
        listing.connect().execute(f"COPY (FROM {rows}) TO 't.parquet' (FORMAT parquet)")
    found = placed(f"t.{kind}")
    assert list(found) == names
    expected = ["C:\\Lists\\a.png", "C:\\Lists\\in\\b.png", *names[2:]]
    assert [PureWindowsPath(p) for p in found.values()] == [PureWindowsPath(p) for p in expected]
    assert found["a.png"] == "C:\\Lists\\a.png"


def test_names_on_windows_hold_no_folder(windows):
    for name in ("a.png", "b.png"):
        Path(name).write_bytes(b"x")
    assert placed("a.png", "b.png") == {"a.png": f"{HERE}\\a.png", "b.png": f"{HERE}\\b.png"}
    assert listing._last("D:\\Pics\\") == "Pics" and listing._last("s3://bucket/Pics/") == "Pics"


def test_results_below_the_pictures_are_refused_on_windows(windows):
    Path("pics").mkdir()
    for out in ("pics\\out", "PICS\\out", "pics"):
        with pytest.raises(OptionError, match="another folder than"):
            Table(["pics"], out, LightService)
    assert not places.is_within(r"C:\Lists\pics2", "pics") and not places.is_within(r"D:\Lists\pics", "pics")


def test_the_page_of_results_has_the_folders_name_on_windows(windows, monkeypatch):
    written = {}
    monkeypatch.setattr(places, "write", written.__setitem__)
    empty = Summary(0, 0, 0, 0, 0, 0, {}, {}, {}, {})
    summary_page.write(SimpleNamespace(folder="C:\\Users\\Ann\\cats", summary=lambda: empty))
    assert list(written) == ["C:\\Users\\Ann\\cats\\summary.html"]
    assert "<title>cats: results" in written["C:\\Users\\Ann\\cats\\summary.html"].decode()


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///C:/x/y.png", "C:\\x\\y.png"),
        ("file://C:\\x\\y.png", "C:\\x\\y.png"),
        ("file:////host/share/y.png", "\\\\host\\share\\y.png"),
        ("C:/x/y.png", "C:\\x\\y.png"),
    ],
)
def test_a_file_url_on_windows_is_a_path_with_a_drive(windows, url, path):
    assert str(places.as_path(url)) == path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ann/1.png", r"D:\Pics\ann\1.png"),
        (r"ann\..\1.png", r"D:\Pics\1.png"),
        *((name, None) for name in (r"\\host\share\1.png", "//host/share/1.png", "C:1.png", r"C:\1.png", r"\1.png")),
        *((name, None) for name in (r"..\1.png", "../Pics2/1.png", r"ann\..\..\1.png", r"\\?\C:\1.png")),
    ],
)
def test_a_name_from_elsewhere_leads_to_no_other_disk_or_machine(monkeypatch, name, expected):
    monkeypatch.setattr(AsOnWindows, "absolute", lambda self: self, raising=False)
    monkeypatch.setattr(paths, "os", SimpleNamespace(path=ntpath))
    monkeypatch.setattr(paths, "Path", AsOnWindows)
    found = paths.below(AsOnWindows("D:/Pics"), name)
    assert found == (AsOnWindows(expected) if expected else None)


@pytest.mark.parametrize("saved", [save_tiny, save_tiny_unconditional])
def test_nnpack_is_off_on_a_mac_alone_for_models_of_latents_and_of_pixels(tmp_path, monkeypatch, saved):
    card, flags = saved(tmp_path / "model"), []
    monkeypatch.setattr(torch.backends.nnpack, "set_flags", flags.append)
    load_model(card)
    assert flags == [] or sys.platform == "darwin"
    flags.clear()
    monkeypatch.setattr(base_model, "sys", SimpleNamespace(platform="darwin"))
    load_model(card)
    assert flags == [False]


def test_places_here_stay_what_they_are(tmp_path):
    assert str(places.as_path("file:///C:/x")) == "/C:/x" and str(places.as_path("/C:/x")) == "/C:/x"
    assert (places.name_of("/a\\b/c"), places.name_of("/"), places.name_of("s3://b/c/")) == ("c", "", "c")
    assert (places.parent_of("/t.csv"), places.parent_of("/a/t.csv"), places.parent_of("s3://b/t.csv")) == (
        "/", "/a", "s3://b",
    )  # fmt: skip
    assert places.joined("/in", "file:///out/a.png") == "file:///out/a.png" and places.joined("/in", "/b") == "/b"
    assert [places.joined("s3://in", n) for n in ("file:///a", "s3://b/c")] == ["s3://in/file:///a", "s3://b/c"]
    assert [places.begin_of(f) for f in ("/", "/a", "s3://b")] == ["/", "/a/", "s3://b/"]
    assert places.is_within("s3://b/in/out", "s3://b/in/") and not places.is_within("s3://b/in2", "s3://b/in")
    assert places.is_within("/a/b", "/") and not places.is_within("/a/b", "s3://a") and not places.on_windows()


@pytest.mark.parametrize(("system", "most"), [("win32", uploads.NAME_BYTES), ("linux", 200)])
def test_a_long_name_of_an_upload_is_cut_to_what_windows_takes(tmp_path, monkeypatch, system, most):
    name = "strip_invalid_filename_characters"
    monkeypatch.setattr(client_utils, name, getattr(client_utils, name))  # so that it comes back
    monkeypatch.setattr(uploads, "sys", SimpleNamespace(platform=system))
    launch(SimpleNamespace(launch=lambda **given: (None, "", "")), "127.0.0.1", 7860)  # type: ignore[arg-type]
    for letter in ("a", "\u00e9"):
        (tmp_path / "from").mkdir(exist_ok=True)
        given = tmp_path / "from" / f"{letter * 120}.png"
        given.write_bytes(letter.encode())
        kept = Path(save_file_to_cache(given, str(tmp_path / "cache")))
        assert len(kept.name.encode()) == min(len(given.name.encode()), most) and kept.suffix == ".png"


def test_what_systems_leave_behind_is_no_picture(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "in", 1)
    left = ("desktop.ini", "Thumbs.db", "Icon\r", ".DS_Store")
    for name in left:
        (folder / name).write_bytes(b"x")
    for inner in ("@eaDir", "$RECYCLE.BIN", "System Volume Information"):
        draw(folder_of(folder / inner, 0) / "x.png", seed=1)
    assert [p.name for p in pictures([folder], None, PassedOver())] == list(placed(str(folder))) == ["000.png"]
    assert [p.name for p in files_below(folder, Found("", {}))] == ["000.png"]
    memory = fsspec.filesystem("memory")
    try:
        for name in ("a.png", "desktop.ini", "@eaDir/b.png"):
            memory.pipe_file(f"/left/{name}", b"x")
        assert list(placed("memory://left")) == ["a.png"]
    finally:
        memory.rm("/left", recursive=True)
    assert (
        [p.name for p in pictures([folder / left[0]], None, PassedOver())]
        == list(placed(str(folder / left[0])))
        == [left[0]]
    )
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    files = [str(p) for p in sorted(folder.iterdir()) if p.is_file()]
    assert begun(FakeService(), files, "quick", None).files == (str(folder / "000.png"),)
    assert all(name == name.lower() for name in LEFT_BEHIND)


@pytest.mark.parametrize("names", [(NFD, NFC), (NFC, NFD)])
def test_prompts_find_a_file_whose_accent_is_spelled_otherwise(tmp_path, names):
    on_disk, in_csv = names
    folder, prompts = tmp_path / "in", tmp_path / "prompts.csv"
    folder.mkdir()
    draw(folder / on_disk, seed=1)
    prompts.write_text(f"file,prompt\n{in_csv},a cat\n", encoding="utf-8")
    config = BatchConfig("quick", ("clip",), prompts)
    assert Batch(LightService(), folder, tmp_path / "out", config).prompts == {on_disk: "a cat"}
    draw(folder / in_csv, seed=2)  # two files: the one that is named just so
    assert Batch(LightService(), folder, tmp_path / "out", config).prompts == {in_csv: "a cat"}
    prompts.write_text("file,prompt\ncafe.png,a cat\n", encoding="utf-8")
    with pytest.raises(OptionError, match=r"'cafe\.png' is not in the folder"):
        Batch(LightService(), folder, tmp_path / "out", config)


def test_results_find_a_picture_whose_accent_is_spelled_otherwise(run, tmp_path, monkeypatch):  # noqa: F811
    folder = tmp_path / "in"
    folder.mkdir()
    draw(folder / NFD, seed=1)
    draw(folder / "plain.png", seed=2)
    make_table(folder, tmp_path / "out", LightService)
    done = run("results", tmp_path / "out", "--picture", NFC)
    assert done.exit_code == 0 and unicodedata.normalize("NFC", done.output).count(NFC) >= 1, done.output
    assert run("results", tmp_path / "out", "--picture", "cafe.png").exit_code == 2
    results = Results(str(tmp_path / "out"))
    assert {r["picture"] for r in again.rows_of(results, NFC)} == {NFD}
    assert "no picture" not in results_screen.opened(results, NFC) and NFD in results_screen.opened(results, NFC)
    assert {r["picture"] for r in results.rows(Asked(text="CAF\u00c9"))} == {NFD}
    assert {r["picture"] for r in results.rows(Asked(text="cafe"))} == {NFD}  # as it was
    assert "--report plain.png report.zip" in results_screen.opened(results, "plain.png")
    monkeypatch.setattr(results_screen, "WINDOWS", True)
    assert "--report &quot;plain.png&quot; report.zip" in results_screen.opened(results, "plain.png")


@pytest.mark.parametrize(
    ("name", "there", "elsewhere"),
    [
        ("a b & c.png", '"a b & c.png"', "'a b & c.png'"),
        ("it's.png", '"it\'s.png"', "'it'\"'\"'s.png'"),
        ("$(calc).png", "PICTURE", "'$(calc).png'"),
        ("%PATH%.png", "PICTURE", "%PATH%.png"),
        ("a\nb.png", "PICTURE", "'a\nb.png'"),
        ("s3\\", "PICTURE", "'s3\\'"),
    ],
)
def test_the_command_for_a_report_is_quoted_as_the_system_reads_it(monkeypatch, name, there, elsewhere):
    assert results_screen.typed(name) == elsewhere
    monkeypatch.setattr(results_screen, "WINDOWS", True)
    assert results_screen.typed(name) == there


def test_a_path_to_another_host_is_refused_without_a_look(tmp_path, monkeypatch):
    (tmp_path / "uploads").mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "link"))
    (tmp_path / "link").symlink_to(tmp_path / "uploads")
    (tmp_path / "uploads" / "out.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "secret.png").write_bytes(b"x")
    looked, resolve = [], Path.resolve

    def seen(self, *args, **kwargs):
        looked.append(str(self))
        return resolve(self, *args, **kwargs)

    monkeypatch.setattr(Path, "resolve", seen)
    for path in ("\\\\far.example\\x\\y.png", "//far.example/x/y.png", "\\??\\UNC\\far.example\\y.png"):
        with pytest.raises(ImageError, match="Only what you upload"):
            uploaded(path)
    assert not [p for p in looked if "far.example" in p]
    for path in (tmp_path / "link" / "out.png", tmp_path / "link" / ".." / "secret.png"):
        with pytest.raises(ImageError, match="Only what you upload"):
            uploaded(str(path))
    for folder in ("link", "uploads"):
        assert uploaded(str(tmp_path / folder / "a.png")) == tmp_path / "uploads" / "a.png"


LACKING = {"resource", "fcntl", "pwd", "grp", "termios"}  # modules that Windows does not have
LACKED = {"getuid", "geteuid", "getloadavg", "fork", "posix_fallocate", "setrlimit", "preexec_fn", "pass_fds"}
LINUX_ALONE = ("experiments/fuzz/", "experiments/space.py")  # commands that refuse elsewhere, in a sentence


def asked_of_unix(tree: ast.Module) -> list[tuple[str, ast.AST]]:
    """(What of Unix a module asks for, where), but for functions that ask which system they run on. A library's own
    `getloadavg` is on every system."""
    found: list[tuple[str, ast.AST]] = []

    def look(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and "sys.platform" in ast.unparse(node):
            return
        if isinstance(node, ast.Import):
            found.extend((a.name, node) for a in node.names if a.name in LACKING)
        if isinstance(node, ast.ImportFrom) and node.module in LACKING:
            found.append((node.module or "", node))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os":
            found.extend([(node.attr, node)] if node.attr in LACKED or node.attr.startswith("sched_") else [])
        if isinstance(node, ast.keyword) and node.arg in LACKED:
            found.append((node.arg or "", node))
        if isinstance(node, ast.Constant) and str(node.value).startswith("/proc/"):
            found.append(("/proc", node))
        for inner in ast.iter_child_nodes(node):
            look(inner)

    look(tree)
    return found


def test_what_other_systems_lack_stands_behind_a_question_or_in_a_command_that_refuses():
    """The type check looks away in two folders. Found by a planted fault too."""
    assert [n for n, _ in asked_of_unix(ast.parse("import resource\nos.getloadavg()\npsutil.getloadavg()"))] == [
        "resource", "getloadavg",
    ]  # fmt: skip
    found = {
        path.relative_to(ROOT).as_posix(): names
        for room in ("guda_core", "experiments")
        for path in sorted((ROOT / room).rglob("*.py"))
        if (names := [n for n, _ in asked_of_unix(ast.parse(path.read_text(encoding="utf-8")))])
    }
    assert {p: n for p, n in found.items() if not p.startswith(LINUX_ALONE)} == {
        "guda_core/machine.py": ["/proc"]  # where there is none, it is another system
    }
    assert all(any(p.startswith(f) for p in found) for f in LINUX_ALONE)


@pytest.mark.parametrize(
    ("module", "words", "told"),
    [("experiments.fuzz.__main__", [], "on Linux alone"), ("experiments.space", ["--run"], "--run needs Linux")],
)
def test_commands_of_linux_alone_refuse_elsewhere_in_a_sentence(monkeypatch, module, words, told):
    command = import_module(module)
    monkeypatch.setattr(command, "sys", SimpleNamespace(platform="win32", argv=["x"]))
    monkeypatch.setattr(sys, "argv", ["x", *words])
    with pytest.raises(SystemExit, match=told):
        command.main()
