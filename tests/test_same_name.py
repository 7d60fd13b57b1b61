"""Two models of one name: what was made for the first is not replaced by what is made for the second."""

from __future__ import annotations

import json
import shutil

import pytest

import guda_core
from guda_core.attribution import introstyle, scope_fit
from guda_core.attribution.gradient import feature_jobs as features
from guda_core.attribution.gradient import quantised
from guda_core.attribution.gradient.feature_jobs import AskedFeatures, feature_jobs
from guda_core.data import encoded
from guda_core.errors import AdapterError, CacheError
from guda_core.jobs.job import perform
from guda_core.unlearning.group_jobs import Asked, first_job
from tests.own_pictures import guda
from tests.own_workspace import own_workspace

FEW = {"steps": 2, "batch": 1, "rank": 2}
TOLD = [text for name, value in FEW.items() for text in (f"--{name}", value)]
NAMED = "brush-style"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workspace and two LoRAs of one file name; the adapters of the model with the first of them are there."""
    root = tmp_path_factory.mktemp("names")
    home, files = root / "home", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUDA_HOME", str(home))
        patch.setenv("GUDA_CACHE", str(root / "cache"))
        patch.setenv("GUDA_LORA", "")  # `--lora` sets it; it is as it was after the test
        adapters = own_workspace(home) / "runs" / "brush" / "artists" / "adapters"
        for place, group in (("a", "ann-lee"), ("b", "dee")):
            (root / place).mkdir()
            files.append(root / place / "style.safetensors")
            shutil.copyfile(adapters / group / "adapter_model.safetensors", files[-1])
        shutil.rmtree(home / "runs")
        guda("unlearn", "--model", "brush", "--lora", files[0], "--groups", "dee", *TOLD)
    return home, files


@pytest.fixture
def home(made, monkeypatch):
    """The workspace; one test looks at its adapters, the other at its features."""
    monkeypatch.setenv("GUDA_HOME", str(made[0]))
    monkeypatch.setenv("GUDA_LORA", "")
    return made[0]


@pytest.fixture
def styles(made, home):
    return made[1]


def test_the_adapters_of_a_model_of_the_same_name_are_kept(styles, home, monkeypatch):
    folder = home / "runs" / NAMED / "artists" / "adapters"
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and ".claims" not in p.parts}
    assert folder / "dee" / "guda.json" in before
    command = ("unlearn", "--model", "brush", "--lora", styles[1], "--groups", "dee", *TOLD)
    said = guda(*command, code=2)
    assert "the adapter of another model" in said and "--folder" in said and "--again" in said and "card" in said
    assert "the adapter of another model" in guda(*command, "--plan", code=2)
    monkeypatch.setenv("GUDA_LORA", str(styles[1]))
    with pytest.raises(AdapterError, match="adapter of another model"):
        guda_core.unlearn("artists", "brush", only=["dee"], **FEW)
    asked = Asked("artists", "brush", groups=("dee",), changes=tuple(sorted(FEW.items())))
    told = perform(first_job(asked, NAMED), lambda told: None)
    assert told.kind == "refused" and "adapter of another model" in told.note
    assert "adapter of another model" in guda("unlearn", "--draft", "--model", "brush", "--groups", "dee", code=2)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and ".claims" not in p.parts} == before

    guda(*command, "--again")  # by request
    new = json.loads((folder / "dee" / "guda.json").read_text())
    assert new["base_sha256"] != json.loads(before[folder / "dee" / "guda.json"])["base_sha256"]


def test_the_features_of_a_model_of_the_same_name_are_kept(styles, home, monkeypatch):
    asked = ("assets", "features", "--model", "brush", "--set", "artists", "--methods", "dtrak", "--dim", 8)
    guda(*asked, "--lora", styles[0])
    folder = home / "runs" / NAMED / "artists" / "features" / "dtrak"
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert quantised.META in before
    with monkeypatch.context() as patch:
        patch.setattr(features, "opened_of", None)  # nothing is encoded
        said = guda(*asked, "--lora", styles[1], code=2)
    assert "the features of another model" in said and "--folder" in said and "add --again" in said
    monkeypatch.setenv("GUDA_LORA", str(styles[1]))
    (job,) = feature_jobs(AskedFeatures("artists", "brush", 8), NAMED, ["dtrak"])
    assert perform(job, lambda told: None).kind == "refused"
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    guda(*asked, "--lora", styles[1], "--again")
    assert (folder / quantised.META).read_bytes() != before[quantised.META]


def test_styles_of_a_model_of_the_same_name_are_kept_and_that_is_said_before_the_pictures_are_encoded(
    styles, home, monkeypatch
):
    asked = ("assets", "introstyle", "--model", "brush", "--set", "artists", "--block", 0)
    guda(*asked, "--lora", styles[0])
    path = home / "runs" / NAMED / "artists" / "features" / introstyle.FILE
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(encoded, "examples_of", None)
        assert "the styles of another model" in guda(*asked, "--lora", styles[1], code=2)
        assert "has no such block" in guda(*asked[:-1], 9, "--lora", styles[0], code=2)
    assert path.read_bytes() == before
    guda(*asked, "--lora", styles[1], "--again")
    assert path.read_bytes() != before


def test_the_command_of_the_scope_passes_again_on(home, monkeypatch):
    def run(*_: object, again: bool, **__: object) -> None:
        raise CacheError(f"again: {again}")

    monkeypatch.setattr(scope_fit, "run", run)
    asked = ("assets", "scope", "--model", "brush", "--set", "artists")
    assert "again: True" in guda(*asked, "--again", code=2) and "again: False" in guda(*asked, code=2)
