"""Workspaces and models from the hub, over HTTP: what is brought, what is not, what is said where that fails."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import constants, file_download, hf_api
from PIL import Image

from guda_core import __version__, from_hub, paths
from guda_core.data.groups import chosen_set, load_group_set
from guda_core.data.sources.listed import ListedFiles
from guda_core.data.sources.source import open_dataset
from guda_core.diffusion.cards import chosen_model, find_card, load_model, resolve_card
from guda_core.errors import DataError, GroupSetError, ModelError, OptionError
from guda_core.jobs.environ import apply, settings
from guda_core.jobs.local_pool import LocalPool
from tests.loopback_hub import Hub, loopback_hub
from tests.own_pictures import guda
from tests.tiny import save_tiny

SET = {
    "id": "artists", "name": "Two artists", "source": "not-published", "caption": "{content}, {phrase}",
    "groups": {"ann": {"name": "Ann", "phrase": "by Ann"}, "bo": {"name": "Bo", "phrase": "by Bo"}},
}  # fmt: skip
CARD = {"kind": "stable_diffusion", "name": "Mine", "source": "folder", "path": "mine", "resolution": 64}


@pytest.fixture
def hub(tmp_path):
    with loopback_hub(tmp_path) as found:
        yield found


def workspace(folder: Path, **files: str) -> Path:
    (folder / "sets" / "artists").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "sets" / "artists" / "group_set.yaml").write_text(yaml.safe_dump(SET))
    (folder / "models" / "mine.yaml").write_text(yaml.safe_dump({"mine": CARD}))
    (folder / "runs" / "mine" / "artists" / "adapters" / "ann").mkdir(parents=True)
    (folder / "runs" / "mine" / "artists" / "adapters" / "ann" / "guda.json").write_text("{}")
    (folder / "runs" / "mine" / "artists" / "bank.safetensors").write_bytes(b"a large file")
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_a_workspace_is_brought_whole_without_pickles_and_code(hub, tmp_path, monkeypatch):
    hub.upload("ann/artists", workspace(tmp_path / "w", weights__bin="pickle", run__py="import os", README__md="# Hi"))
    monkeypatch.setenv("GUDA_HOME", "hub:ann/artists")
    home = paths.home()
    kept = sorted(p.name for p in home.rglob("*") if p.is_file())
    assert kept == ["README.md", "bank.safetensors", "group_set.yaml", "guda.json", "mine.yaml"]
    assert (home / "runs" / "mine" / "artists" / "bank.safetensors").read_bytes() == b"a large file"
    assert any(p.startswith("/cdn/") for p in hub.asked) and not any("weights.bin" in p for p in hub.asked)
    assert load_group_set("artists").groups["bo"].phrase == "by Bo"
    assert find_card("mine").path == str(home / "models" / "mine")
    assert (paths.run("mine", "artists").adapters / "ann" / "guda.json").is_file()
    asked = len(hub.asked)
    assert paths.home() == home and len(hub.asked) == asked  # once for each process


def test_the_only_card_and_the_only_set_are_the_defaults(hub, tmp_path, monkeypatch):
    folder = workspace(tmp_path / "w")
    hub.upload("ann/artists", folder)
    assert chosen_model(None) == "emoji"
    for home in ("hub:ann/artists", str(folder)):
        monkeypatch.setenv("GUDA_HOME", home)
        assert chosen_model(None) == "mine" and chosen_model("sd15") == "sd15"
        assert chosen_set(None, find_card("mine").group_set) == "artists"
        assert chosen_set(None, find_card("sd15").group_set) == "artists"
        assert chosen_set(None, find_card("emoji").group_set) == "emoji" and chosen_set("x") == "x"
        monkeypatch.setenv("GUDA_MODEL", "emoji")
        assert chosen_model(None) == "emoji"
        monkeypatch.delenv("GUDA_MODEL")
    (folder / "sets" / "b").mkdir()
    (folder / "sets" / "b" / "group_set.yaml").write_text(yaml.safe_dump({**SET, "id": "b"}))
    (folder / "models" / "two.yaml").write_text(yaml.safe_dump({"two": CARD}))
    assert chosen_model(None) == "emoji"
    with pytest.raises(GroupSetError, match=r"names no group set. Name one with --set .* artists, b, "):
        chosen_set(None, find_card("mine").group_set)


def test_a_revision_is_held_on_to(hub, tmp_path, monkeypatch):
    first = hub.upload("ann/artists", workspace(tmp_path / "one", README__md="one"))
    hub.upload("ann/artists", workspace(tmp_path / "two", README__md="two"))
    hub.upload("ann/artists", workspace(tmp_path / "three", README__md="three"), revision="v3")
    for name, text in (("", "two"), (f"@{first}", "one"), ("@v3", "three")):
        monkeypatch.setenv("GUDA_HOME", f"hub:ann/artists{name}")
        assert (paths.home() / "README.md").read_text() == text


def test_a_worker_reads_the_state_that_its_driver_reads_whatever_is_uploaded_since(hub, tmp_path, monkeypatch):
    for name in ("hub:ann/artists", "hub:ann/artists@main"):
        commit = hub.upload("ann/artists", workspace(tmp_path / name[-4:], README__md=f"{name} one"))
        from_hub.forget()
        monkeypatch.setenv("GUDA_HOME", name)
        home, told = paths.home(), settings()
        assert told["GUDA_HOME"] == f"hub:ann/artists@{commit}"
        assert {e["GUDA_HOME"] for e in LocalPool(2, devices=["0"])._environs} == {told["GUDA_HOME"]}
        hub.upload("ann/artists", workspace(tmp_path / f"{name[-4:]}2", README__md="two"))
        from_hub.forget()
        apply(told, __version__)
        asked = len(hub.asked)
        assert paths.home() == home and len(hub.asked) == asked  # what is there is not asked for again


def test_a_run_alone_is_a_workspace(hub, tmp_path, monkeypatch):
    folder = workspace(tmp_path / "w") / "runs" / "mine" / "artists"
    hub.upload("ann/run", folder)
    for home in ("hub:ann/run", str(folder)):
        monkeypatch.setenv("GUDA_HOME", home)
        run = paths.run("mine", "artists")
        assert (run.adapters / "ann" / "guda.json").is_file() and run.bank.is_file()
        assert paths.run("emoji", "emoji").bank == paths.SHIPPED_RUN / "bank.safetensors"


def test_without_a_network_the_copy_of_before_is_used_else_one_sentence_says_so(hub, tmp_path, monkeypatch):
    hub.upload("ann/artists", workspace(tmp_path / "w"))
    monkeypatch.setenv("GUDA_HOME", "hub:ann/artists")
    home = paths.home()
    for cut in ("down", "offline"):
        from_hub.forget()
        if cut == "down":
            monkeypatch.setattr(hub, "down", True)
        else:
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setenv("GUDA_HOME", "hub:ann/artists")
        assert paths.home() == home
        said = guda("groups", "check", "artists", "--home", "hub:bo/else", code=2)
        assert "hub:bo/else could not be brought from the Hugging Face Hub" in said and "Traceback" not in said


def test_half_a_copy_is_not_taken_for_one(hub, tmp_path, monkeypatch):
    hub.upload("ann/artists", workspace(tmp_path / "w"))
    monkeypatch.setenv("GUDA_HOME", "hub:ann/artists")
    (paths.home() / "sets" / "artists" / "group_set.yaml").unlink()
    from_hub.forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OptionError, match="no complete copy of before"):
        paths.home()


REFUSALS = {
    "token": (
        401,
        {"X_Error_Message": "Invalid credentials in Authorization header"},
        "Log in again with `hf auth login`",
    ),
    "private": (
        401,
        {"X_Error_Code": "RepoNotFound"},
        "it is private. Correct the name, or log in with `hf auth login`",
    ),
    "gated": (403, {"X_Error_Code": "GatedRepo"}, "Accept it on https://huggingface.co/ann/x, then log in"),
    "forbidden": (403, {"X_Error_Message": "Too few rights"}, "(403 Forbidden: Too few rights). Log in again"),
    "too often": (429, {}, "Wait some minutes"),
    "revision": (404, {"X_Error_Code": "RevisionNotFound"}, "it has no such revision"),
}


@pytest.mark.parametrize(("code", "headers", "says"), REFUSALS.values(), ids=list(REFUSALS))
def test_what_the_hub_refuses_is_told_with_what_mends_it(hub, models, code, headers, says):
    hub.refusal = code, headers
    for opened in (
        lambda: from_hub.snapshot("hub:ann/x"),
        lambda: from_hub.bring("ann/x", ["*.json"]),
        lambda: resolve_card("ann/x"),
        lambda: load_model(dataclasses.replace(find_card("sd15"), path="ann/x")),
    ):
        with pytest.raises((ModelError, OptionError), match=re.escape(says)) as found:
            opened()
        assert "internet" not in str(found.value)


def test_a_full_disk_is_told_as_one():
    error = RuntimeError("Data processing error")
    error.__cause__ = OSError(errno.ENOSPC, "full")
    for found in (error, RuntimeError(f"Xet: {os.strerror(errno.ENOSPC)} (os error 28)")):
        assert from_hub.why_not(found, "ann/x").startswith("the disk is full. Make room, or set HF_HOME to")


@pytest.mark.parametrize("cut", ["revision", "cdn"])
def test_where_an_update_breaks_off_the_whole_copy_of_before_is_used_then_and_offline(
    hub, tmp_path, monkeypatch, caplog, cut
):
    hub.upload("ann/artists", workspace(tmp_path / "w"))
    monkeypatch.setenv("GUDA_HOME", "hub:ann/artists")
    home = paths.home()
    (tmp_path / "w/runs/mine/artists/bank.safetensors").write_bytes(b"another large file")
    hub.upload("ann/artists", tmp_path / "w")
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda s: None))  # it waits before it asks again
    hub.cut = cut
    for offline in (False, True):
        from_hub.forget()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        assert paths.home() == home
    (line,) = [r.getMessage() for r in caplog.records if r.name == "guda_core.from_hub"]
    assert line.startswith("ann/artists is used as it was brought before. It could not be brought anew: ")
    hub.cut = ""
    from_hub.forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert (paths.home() / "runs/mine/artists/bank.safetensors").read_bytes() == b"another large file"


@pytest.mark.parametrize(
    "name", ["hub:", "hub:ann", "hub:ann/b/c", "hub:../x", "hub:ann/..", "hub:a/b@", "hub:a/b@../c"]
)
def test_a_wrong_name_is_refused_before_anything_is_asked(hub: Hub, name):
    said = guda("groups", "check", "artists", "--home", name, code=2)
    assert "Write hub:USER/NAME or hub:USER/NAME@REVISION" in said and hub.asked == []


def test_an_unknown_repository_and_an_unknown_revision_are_one_sentence(hub, tmp_path):
    hub.upload("ann/artists", workspace(tmp_path / "w"))
    for name in ("hub:ann/none", "hub:ann/artists@none"):
        said = guda("groups", "check", "artists", "--home", name, code=2)
        assert f"{name} could not be brought" in said


ELSEWHERE = {
    "whole path": {"id": "folder", "path": "PLACE"},
    "upwards": {"id": "listed", "path": "../../../../mine"},
    "a group's": {"id": "folder", "path": "here"},
}


@pytest.mark.parametrize("source", ELSEWHERE.values(), ids=list(ELSEWHERE))
def test_a_set_from_the_hub_names_no_pictures_of_this_machine(hub, tmp_path, monkeypatch, source):
    """They are the reader's own, and a stranger chose them."""
    mine = tmp_path / "mine" / "ann"
    mine.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(mine / "a.png")
    folder = workspace(tmp_path / "w")
    path = source["path"].replace("PLACE", str(mine.parent))
    told = {**SET, "source": {**source, "path": path}}
    if path == "here":
        (folder / "sets" / "artists" / "here").mkdir()
        (folder / "sets" / "artists" / "here" / "README.md").write_text("so that it is there")
        told["groups"] = {**SET["groups"], "ann": {**SET["groups"]["ann"], "source": {"folder": str(mine)}}}
    (folder / "sets" / "artists" / "group_set.yaml").write_text(yaml.safe_dump(told))
    (folder / "sets" / "artists" / "pictures.jsonl").write_text("")
    hub.upload("ann/artists", folder)
    monkeypatch.setenv("GUDA_HOME", "hub:ann/artists")
    pictures = open_dataset(load_group_set("artists"))
    look = pictures.check_there if isinstance(pictures, ListedFiles) else lambda: pictures.split("train")
    with pytest.raises(OptionError, match="comes from the hub, and names a place of this machine"):
        look()
    monkeypatch.setenv("GUDA_HOME", str(folder))  # one's own may
    pictures = open_dataset(load_group_set("artists"))
    if not isinstance(pictures, ListedFiles):
        with pytest.raises(DataError, match="The pictures of 'bo' should be in"):  # ann's were found
            pictures.split("train")


def test_nothing_is_written_into_a_workspace_of_the_hub(hub, tmp_path, monkeypatch):
    hub.upload("ann/artists", workspace(tmp_path / "w"))
    monkeypatch.setenv("GUDA_HOME", "hub:ann/artists")
    run = paths.run("mine", "artists")
    for write in (lambda: run.own, lambda: run.adapters.own("bo"), lambda: paths.sets().own("new")):
        with pytest.raises(
            OptionError, match=r"read only\. Bring .* with `hf download ann/artists --local-dir FOLDER`"
        ):
            write()
    monkeypatch.setenv("GUDA_HOME", "hub:ann/artists@main")
    with pytest.raises(OptionError, match="`hf download ann/artists --revision main --local-dir FOLDER`"):
        paths.writable(paths.home())
    assert paths.run("emoji", "emoji").bank.is_file()


@pytest.fixture
def models(hub, tmp_path, monkeypatch):
    """A tiny model's folder, named with a safety checker; diffusers and the hub's library ask the server."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    folder = tmp_path / "model"
    save_tiny(folder)
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "model.safetensors").write_bytes(b"large, and read by nothing")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("kept", ["", ".fp16"])
def test_a_model_is_brought_without_its_safety_checker_in_half_precision_where_there_is_no_other(
    hub, models, tmp_path, monkeypatch, kept
):
    here = load_model(resolve_card(str(models))).sha256
    if kept:
        for path in models.glob("*/*.safetensors"):
            path.rename(path.with_name(f"{path.stem}{kept}.safetensors"))
    hub.upload("ann/model", models)
    assert load_model(resolve_card("ann/model")).sha256 == here
    assert any("unet" in p for p in hub.asked) and not any("safety_checker/model" in p for p in hub.asked)
    for cut in ("down", "offline"):  # the copy of before
        if cut == "down":
            monkeypatch.setattr(hub, "down", True)
        else:
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert load_model(resolve_card("ann/model")).sha256 == here


def test_why_a_model_cannot_be_brought_is_said(hub, models, tmp_path, monkeypatch):
    hub.upload("ann/gated", models)
    hub.gated.add("ann/gated")
    for path in models.glob("*/*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    hub.upload("ann/pickles", models)
    own = dataclasses.replace(find_card("sd15"), path="ann/none")
    for opened, says in (
        (lambda: resolve_card("ann/gated"), r"Accept it on https://huggingface\.co/ann/gated, then .*`hf auth login`"),
        (
            lambda: resolve_card("ann/none"),
            r"There is no folder .*none of that name, or it is private\. Correct the name",
        ),
        (lambda: load_model(own), r"\(ann/none\) could .* none of that name, or it is private\. Correct the name"),
        (lambda: load_model(dataclasses.replace(own, path="ann/gated")), r"then log in with `hf auth login`"),
        (lambda: load_model(resolve_card("ann/pickles")), r"not all of its weights are there as \.safetensors"),
    ):
        with pytest.raises(ModelError, match=says) as found:
            opened()
        assert "internet" not in str(found.value)
    hub.upload("ann/one", workspace(tmp_path / "one"))
    with pytest.raises(ModelError, match=r"it is no model in diffusers' layout, with a model_index\.json"):
        load_model(dataclasses.replace(own, path="ann/one"))
    monkeypatch.setattr(hub, "down", True)
    with pytest.raises(ModelError, match="Connect to the internet once"):
        resolve_card("bo/else")
