"""Files that another program holds for a moment, or for good, as Windows refuses them; names that it keeps."""

from __future__ import annotations

import ast
import errno
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from guda_core import held_files
from guda_core.attribution.gradient.store import Store
from guda_core.attribution.gradient.trak import Trak
from guda_core.cli import start
from guda_core.cli.groups_check import warnings
from guda_core.data.groups import load_group_set
from guda_core.data.own import set_files
from guda_core.data.own.picture_list import write_list
from guda_core.data.own.slugs import slug
from guda_core.data.shards import Shards
from guda_core.diffusion.cards import find_card, load_model, resolve_card
from guda_core.errors import AdapterError, CacheError, DataError, ReportError, TrainingError
from guda_core.file_names import DEVICES, MOST, fitting, is_devices
from guda_core.held_files import replace_file
from guda_core.publishing import published
from guda_core.reports import bundle
from guda_core.unlearning import adapter_files, adapters, checkpoints
from tests.linear import GROUPS, linear_world
from tests.own_workspace import own_workspace
from tests.test_baselines import config, last
from tests.tiny import save_tiny


def refusal(number=5):
    error = PermissionError(13, "Access is denied")
    error.winerror = number  # as on Windows
    return error


@pytest.fixture
def naps(monkeypatch):
    found: list[float] = []
    monkeypatch.setattr(held_files.time, "sleep", found.append)
    return found


def hold(monkeypatch, name, times, *, only=lambda *paths: True, number=5):
    """`os.NAME` is refused so many times, of the calls that `only` is true of."""
    real, calls = getattr(os, name), []

    def refused(*paths, **named):
        if only(*map(Path, paths)):
            calls.append(paths)
            if len(calls) <= times:
                raise refusal(number)
        return real(*paths, **named)

    monkeypatch.setattr(os, name, refused)
    return calls


@pytest.mark.parametrize("number", held_files.HELD)
def test_what_is_held_for_a_moment_is_tried_again(tmp_path, monkeypatch, naps, number):
    new, old = tmp_path / "new", tmp_path / "old"
    new.write_text("new"), old.write_text("old")
    hold(monkeypatch, "replace", 2, number=number), hold(monkeypatch, "unlink", 2, number=number)
    held_files.replace_file(new, old)
    assert old.read_text() == "new" and not new.exists() and naps == [0.01, 0.02]
    held_files.remove_file(old)
    held_files.remove_file(old)  # it is not there
    assert not old.exists() and naps == [0.01, 0.02] * 2


def test_what_lasts_is_raised_after_two_seconds_and_any_other_error_at_once(tmp_path, monkeypatch, naps):
    hold(monkeypatch, "unlink", 99)
    with pytest.raises(PermissionError):
        held_files.remove_file(tmp_path / "a")
    assert sum(naps) == pytest.approx(2)
    naps.clear()
    with pytest.raises(FileNotFoundError):
        held_files.replace_file(tmp_path / "none", tmp_path / "a")
    hold(monkeypatch, "replace", 1, number=None)  # Linux: no such number
    with pytest.raises(PermissionError):
        held_files.replace_file(tmp_path / "none", tmp_path / "a")
    assert not naps


def test_no_other_module_replaces_or_removes_a_file_by_itself():
    """A path's `replace` has one argument, a text's two. The laboratory removes files by itself, but replaces none."""
    root = Path(held_files.__file__).parent
    found = []
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                of = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
                files = node.func.attr == "unlink" or (
                    node.func.attr == "replace" and len(node.args) == 1 and not node.keywords
                )
                if files or (of == "os" and node.func.attr in ("replace", "rename", "remove")):
                    found.append(f"{path.relative_to(root).as_posix()}: {ast.unparse(node)}")
    assert found == ["held_files.py: os.replace(source, target)", "held_files.py: path.unlink(missing_ok=True)"]
    laboratory = sorted(root.with_name("experiments").rglob("*.py"))
    assert laboratory and [p.name for p in laboratory if "os.replace(" in p.read_text(encoding="utf-8")] == []


def test_a_folder_that_may_not_be_written_to_is_told_at_once(home, monkeypatch):
    """There, `tempfile` tries two thousand million names on Windows."""
    own_workspace(home)
    opened = Path.open
    new = set_files.Draft({"id": "more", "source": {"path": "x"}}, [])

    def refused(self, mode="r", *more, **named):
        if mode == "xb":
            raise refusal()
        return opened(self, mode, *more, **named)

    def forever(*given, **named):
        pytest.fail("asked before the folder was tried")

    held_files.check_writable(home)
    assert not list(home.glob(".guda-*"))
    monkeypatch.setattr(Path, "open", refused)
    for maker in ("mkdtemp", "TemporaryFile"):
        monkeypatch.setattr(tempfile, maker, forever)
    assert start.try_folder(home) == "Access is denied"
    with pytest.raises(AdapterError, match="Access is denied"):
        adapter_files.check_place(home / "runs" / "a")
    with pytest.raises(DataError, match="Access is denied"):
        published.publish(find_card("brush"), load_group_set("artists"))
    with pytest.raises(DataError, match="Access is denied"):
        set_files.write(new)


def test_every_folder_for_a_moment_may_be_left_behind():
    """Windows does not remove one with a file in it that is held: the run that made it goes on."""
    root = Path(held_files.__file__).parent
    made = [
        (path.relative_to(root).as_posix(), {k.arg for k in node.keywords})
        for path in sorted(root.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("TemporaryDirectory")
    ]
    assert made and [name for name, given in made if "ignore_cleanup_errors" not in given] == []


WRITERS = {
    "checkpoint": (lambda folder: checkpoints.write(folder / "a.pt", {"x": 1}), TrainingError),
    "adapter's file": (lambda folder: adapter_files.write_json(folder / "a.json", {}), AdapterError),
    "report": (lambda folder: bundle.write(folder / "a.zip", b"zip"), ReportError),
    "encoded pictures": (lambda folder: Shards(folder, "z").write({"a": {"x": torch.ones(1)}}), CacheError),
    "list of pictures": (lambda folder: write_list(folder / "a.jsonl", []), PermissionError),
}


@pytest.mark.parametrize("name", WRITERS)
def test_writers_outlast_a_moment_and_say_what_to_do_about_what_lasts(tmp_path, monkeypatch, naps, name):
    write, error = WRITERS[name]
    with monkeypatch.context() as patch:
        assert not naps and len(hold(patch, "replace", 2)) == 0
        write(tmp_path)
        assert naps == [0.01, 0.02] and len(list(tmp_path.iterdir())) == 1
    next(tmp_path.iterdir()).unlink()
    hold(monkeypatch, "replace", 99)
    told = "denied" if error is PermissionError else r"denied.* Close the program that has the file open"
    with pytest.raises(error, match=told):
        write(tmp_path)


@pytest.fixture
def two(tmp_path):
    """(writes an adapter of the folder filled with a number, reads that number, the folder)."""
    folder = tmp_path / "a"

    def write(value, *, lora=True):
        state = {"x": torch.full((2,), float(value))}
        meta = {"group": "a", "base_sha256": "0" * 64}
        adapter_files.write(folder, state, meta, parameters=2, lora={"r": 1} if lora else None)
        (folder / adapter_files.HEALTH).write_text(str(value))

    def read():
        path = adapter_files.weights_file(folder)
        state = adapter_files.read_weights(path, adapter_files.read_meta(folder)["sha256"], 100)
        assert (folder / adapter_files.HEALTH).read_text() == str(int(state["x"][0]))
        return int(state["x"][0])

    return write, read, folder


@pytest.mark.parametrize("lora", [True, False])
def test_whichever_file_is_held_the_old_adapter_or_the_new_one_loads(two, monkeypatch, naps, lora):
    """Of a LoRA, and of a network in a LoRA's place; each step of the exchange is the one that is refused."""
    write, read, folder = two
    write(1)
    names, seen, steps = {p.name for p in folder.iterdir()}, [], 7 if lora else 6

    def at(step):
        seen.clear()
        return lambda source, target: [seen.append(source), len(set(seen)) == step][1]

    for step in range(1, steps + 1):
        told = r"denied.* Close the program .* before is still there"
        with monkeypatch.context() as patch:
            hold(patch, "replace", 99, only=at(step))
            with pytest.raises(AdapterError, match=told):
                write(2, lora=lora)
        assert read() == 1 and {p.name for p in folder.iterdir()} == names
    hold(monkeypatch, "replace", 99, only=at(steps + 1))
    write(2, lora=lora)
    assert len(set(seen)) == steps and read() == 2 and not list(folder.glob("*.before"))


KILLED = """
import os, sys, torch
from pathlib import Path
from guda_core.unlearning import adapter_files

def killed(source, target):
    real(source, target)
    if Path(target).name == adapter_files.LORA:
        os._exit(3)

real, os.replace = os.replace, killed
adapter_files.write(Path(sys.argv[1]), {"x": torch.ones(2)}, {}, parameters=2, lora={})
"""


def test_a_kill_between_the_two_leaves_no_finished_adapter_and_the_next_one_clears_up(two):
    write, read, folder = two
    write(1)
    assert subprocess.run([sys.executable, "-c", KILLED, folder], check=False).returncode == 3
    with pytest.raises(AdapterError, match="no finished adapter"):
        read()
    write(3)
    assert read() == 3 and not list(folder.glob("*.before")) and not list(folder.glob("*.tmp"))


def test_what_is_no_longer_published_but_held_is_one_sentence(tmp_path, monkeypatch, naps):
    folder = tmp_path / "adapters" / "a"
    folder.mkdir(parents=True)
    (tmp_path / adapters.RUN).write_text("{}")
    hold(monkeypatch, "unlink", 99)
    with pytest.raises(AdapterError, match=r"run\.json cannot be removed .*denied.* Close the program"):
        adapters.save_weights({"x": torch.ones(1)}, folder, meta={})


def test_a_damaged_file_of_encoded_pictures_that_is_held_is_passed_over(tmp_path, monkeypatch, naps):
    (tmp_path / "z-1.safetensors").write_bytes(b"torn")
    hold(monkeypatch, "unlink", 99)
    assert Shards(tmp_path, "z").read(["a"]) == {} and sum(naps) == pytest.approx(2)


def test_encoded_pictures_that_another_process_keeps_and_reads_are_not_written_twice(tmp_path, monkeypatch, naps):
    """Two workers keep the same ones; Windows replaces no file that a tensor is mapped from."""
    entry = {"a": {"x": torch.ones(1)}}
    Shards(tmp_path, "z").write(entry)
    hold(monkeypatch, "replace", 99)
    Shards(tmp_path, "z").write(entry)
    assert len(list(tmp_path.iterdir())) == 1 and Shards(tmp_path, "z").read(["a"])["a"]["x"].tolist() == [1]


def test_features_are_renamed_when_no_file_of_theirs_is_mapped(monkeypatch):
    def mapped(folder):
        return [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]

    store, seen, real = Store("x", {"n": 1}), [], os.replace
    one = store.create("v", (2,))
    one[:] = [1, 2]
    assert mapped(store._aside)  # so that the question is a good one

    def replace(source, target):
        seen.append(mapped(source))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    del one
    store.finish()
    world = linear_world()
    last(Trak(world.model, world.examples, GROUPS, config()), world.query)
    assert seen == [[], []] and np.array_equal(store.open()["v"], [1, 2])


def test_a_published_folder_is_the_old_one_or_the_new_one_whichever_is_held(home, monkeypatch, naps):
    own_workspace(home)
    card, group_set = find_card("brush"), load_group_set("artists")
    folder = published.publish(card, group_set).folder
    (folder / "mine").write_text("of before")
    whole = sorted(p.relative_to(folder) for p in folder.rglob("*"))
    for held in (lambda a, b: a == folder, lambda a, b: a.name == "made"):
        with monkeypatch.context() as patch:
            assert hold(patch, "replace", 99, only=held) == []
            with pytest.raises(DataError, match=r"cannot be written: Access is denied\. Close the program"):
                published.publish(card, group_set)
        assert sorted(p.relative_to(folder) for p in folder.rglob("*")) == whole
    with monkeypatch.context() as patch:  # what is left of the old folder cannot be removed
        hold(patch, "unlink", 99, only=lambda a: a.name == "mine")
        assert published.publish(card, group_set).folder == folder
    assert not (folder / "mine").exists() and (folder / "README.md").is_file()


def test_what_is_made_lies_no_deeper_than_what_is_published(home, monkeypatch):
    own_workspace(home)
    seen, real = [], published._write
    monkeypatch.setattr(published, "_write", lambda folder, *a, **k: seen.append(folder) or real(folder, *a, **k))
    published.publish(find_card("brush"), load_group_set("artists"))
    assert len(str(seen[0].relative_to(home / "published"))) == len(".new-12345678/made")


def test_a_models_id_is_short_and_no_devices_name(tmp_path):
    ids = {}
    for name in ("Short One", "con", "m" * 70 + "1", "m" * 70 + "2", "m" * MOST):
        save_tiny(tmp_path / name)
        ids[name] = resolve_card(tmp_path / name).id
    assert ids["Short One"] == "short-one" and ids["m" * MOST] == "m" * MOST
    assert len(set(ids.values())) == 5 and all(len(i) <= MOST and not is_devices(i) for i in ids.values())
    assert fitting("m.1") == "m.1" and not is_devices(fitting("con.v2")) and fitting("con.v2") != fitting("con-v2")
    (tmp_path / f"{'l' * 70}.safetensors").write_bytes(b"")
    assert len(resolve_card("emoji", lora=tmp_path / f"{'l' * 70}.safetensors").id) == MOST


def test_a_groups_id_is_no_devices_name_and_one_that_is_there_is_warned_of(home):
    assert all(slug(n) not in DEVICES and slug(n).startswith(f"{n}-") for n in DEVICES) and slug("Conny") == "conny"
    own_workspace(home)
    path = home / "sets" / "artists" / "group_set.yaml"
    path.write_text(path.read_text().replace("dee:", "aux:"))
    found = load_group_set("artists")  # made before, elsewhere: it stays
    assert any("Windows keeps the name 'aux'" in line for line in warnings(found, [], []))
    found = replace(found, id="CON.v2", groups={"console": found.groups["aux"]})
    assert sum("Windows keeps the name 'CON.v2'" in line for line in warnings(found, [], [])) == 1


def test_a_card_that_has_a_devices_name_is_warned_of(tmp_path, caplog):
    card = save_tiny(tmp_path / "model")
    for id, told in (("console", 0), ("Con.v2", 1), ("nul", 1)):
        caplog.clear()
        load_model(replace(card, id=id))
        assert sum(f"Windows keeps the name '{id}'" in line for line in caplog.messages) == told


def test_a_files_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order, real, sync = [], os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda f: order.append(("sync", os.fstat(f).st_ino)) or sync(f))
    monkeypatch.setattr(os, "replace", lambda a, b: order.append(("replace", Path(a).stat().st_ino)) or real(a, b))
    (tmp_path / "a").write_bytes(b"new")
    (tmp_path / "folder").mkdir()
    replace_file(tmp_path / "a", tmp_path / "b")
    replace_file(tmp_path / "folder", tmp_path / "other")  # has no content of its own
    at, of = ((tmp_path / name).stat().st_ino for name in ("b", "other"))
    assert order == [("sync", at), ("replace", at), ("replace", of)]


def test_a_file_that_nobody_may_open_again_takes_its_place_all_the_same(tmp_path, monkeypatch):
    """As where a virus scanner has the new file in hand: Python's `open` has no number of Windows' to wait by then."""
    opened = Path.open

    def refused(path, mode="r", *more, **named):
        if "+" in mode:
            raise PermissionError(13, "Permission denied")
        return opened(path, mode, *more, **named)

    monkeypatch.setattr(Path, "open", refused)
    bundle.write(tmp_path / "a.zip", b"zip")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.zip", b"zip")]


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no disk in memory there")
def test_a_file_on_the_disk_in_memory_is_replaced_in_one_go(tmp_path):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "a.json"
        bundle.write(path, b"whole")

        def pieces():
            yield b"ha"
            raise OSError(28, "No space left on device")

        with pytest.raises(ReportError, match="No space left"):
            bundle.write(path, pieces())
        assert path.read_bytes() == b"whole"


@pytest.fixture
def full_at_the_end(monkeypatch):
    """A disk that says only when it is asked to write what it holds that it is full, as NFS and quotas do."""

    def sync(descriptor):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    return lambda: monkeypatch.setattr(os, "fsync", sync)


@pytest.mark.parametrize("name", WRITERS)
def test_what_does_not_reach_the_disk_takes_no_ones_place(tmp_path, monkeypatch, full_at_the_end, name):
    write, error = WRITERS[name]
    full_at_the_end()
    with pytest.raises(OSError if error is PermissionError else error, match="Disk quota exceeded"):
        write(tmp_path)
    assert not list(tmp_path.iterdir())

    def unknown(descriptor):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", unknown)  # of a disk that cannot be asked for it
    write(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_an_adapter_that_does_not_reach_the_disk_leaves_the_one_of_before(two, full_at_the_end):
    write, read, folder = two
    write(1)
    names = {p.name for p in folder.iterdir()}
    full_at_the_end()
    with pytest.raises(AdapterError, match="Disk quota exceeded"):
        write(2)
    assert read() == 1 and {p.name for p in folder.iterdir()} == names
