"""The command line with a tiny real model: files that it writes, and errors as one sentence with exit code 2."""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from guda_core import __version__, local
from guda_core.attribution import counterfactual_pictures, maps
from guda_core.cli import app, loading
from guda_core.errors import ModelError
from guda_core.reports.read import read_report
from guda_core.service import NO_MAPS, NO_NEAR, NO_STRIP
from tests.light import draw
from tests.test_pipeline import MISSING, service  # noqa: F401  (a fixture)


@pytest.fixture
def run(service, monkeypatch):  # noqa: F811
    """Call the command line; the bundled model is replaced by the tiny one."""
    monkeypatch.setattr(local, "load_service", lambda *a, **k: service)
    monkeypatch.setattr(loading, "set_up_libraries", lambda: None)

    def call(*arguments: object):
        return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})

    return call


def test_help_names_every_command(run):
    done = run("--help")
    assert done.exit_code == 0
    for command in (
        "app",
        "attribute",
        "generate",
        "replay",
        "compare",
        "sign",
        "verify",
        "groups",
        "unlearn",
        "assets",
        "--version",
    ):
        assert command in done.output
    assert "not shares" in done.output


def test_groups_are_listed_with_licences(run):
    done = run("groups", "check")
    assert done.exit_code == 0 and "OpenMoji" in done.output and "CC-BY-SA-4.0" in done.output


def test_generate_and_attribute_write_their_files(run, tmp_path):
    out = tmp_path / "cat.png"
    done = run("generate", "--prompt", "cat, flat colours", "--seed", 3, "--steps", 2, "--out", out)
    assert done.exit_code == 0, done.output
    with Image.open(out) as im:
        assert im.size == (16, 16)
    record = tmp_path / "cat.json"
    done = run("attribute", out, "--prompt", "cat, flat colours", "--effort", "quick", "--json", record)
    assert "It was not checked whether the model could have made this picture." in " ".join(done.output.split())
    assert done.exit_code == 0, done.output
    assert "not shares" in done.output and "unavailable" in done.output
    said = " ".join(done.output.split())
    assert said.count("positive = the group contributed") == 1 and said.count("compare them with each other alone") == 1
    told = json.loads(record.read_text())
    assert set(told["methods"]) == {"guda", "clip"}
    groups = told["methods"]["guda"]["groups"]
    assert groups[MISSING]["status"] == "unavailable"
    assert all(g["low"] <= g["score"] <= g["high"] for k, g in groups.items() if k != MISSING)
    run("attribute", out, "--prompt", "cat, flat colours", "--effort", "quick", "--json", tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["methods"]["guda"]["groups"] == groups


def test_strip_and_maps_are_told_but_for_a_picture_out_of_scope(run, service, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(counterfactual_pictures, "STEPS", 4)
    monkeypatch.setattr(maps, "STRATA", 4)
    path, report = draw(tmp_path / "cat.png"), tmp_path / "cat.zip"
    asked = ("attribute", path, "--effort", "quick", "--methods", "guda", "--report", report, "--pictures", "--maps")
    done = run(*asked)
    assert done.exit_code == 0, done.output
    _, found, told = done.output.partition("How far from the full model's picture")
    names = [g.name for k, g in service.group_set.groups.items() if k != MISSING]
    assert (
        found and sum(re.search(rf"^  {re.escape(n)}: \d+\.\d\d$", told, re.MULTILINE) is not None for n in names) == 7
    )
    with Image.open(tmp_path / "cat-without.png") as im, Image.open(tmp_path / "cat-where.png") as where:
        assert min(*im.size, *where.size) > 16
    scope = replace(service.scope(service.prepare(path.read_bytes())), verdict="out of scope")
    monkeypatch.setattr(service, "scope", lambda query: scope)
    done = run(*asked[:-1])
    assert done.exit_code == 0 and "no attribution" in done.output and report.is_file()
    assert "About such a picture they say little." in " ".join(done.output.split())
    assert not [g.name for g in service.group_set.groups.values() if g.name in done.output]
    monkeypatch.setattr(service, "attribute", None)  # refused before anything is computed
    done = run("attribute", path, "--methods", "clip", "--report", report, "--pictures")
    assert done.exit_code == 2 and "Ask for guda too" in done.output


def test_what_fails_beside_the_scores_leaves_the_report(run, service, tmp_path, monkeypatch):  # noqa: F811
    def fails(*_, **__):
        raise ModelError("The drawing is not finite.")

    for name in ("scope", "pictures", "maps", "nearest"):
        monkeypatch.setattr(service, name, fails)
    path, report, out = draw(tmp_path / "cat.png"), tmp_path / "cat.zip", tmp_path / "cat.json"
    asked = ("attribute", path, "--effort", "quick", "--methods", "clip,guda", "--report", report, "--json", out)
    done = run(*asked, "--pictures", "--maps")
    assert done.exit_code == 0 and report.is_file() and out.is_file(), done.output
    for said in (NO_STRIP, NO_MAPS, NO_NEAR):
        assert f"{said} The drawing is not finite." in re.sub(r"\s+", " ", done.output)
    assert NO_STRIP in read_report(report).record["absent"]["pictures/without"]


def test_a_place_that_cannot_be_written_to_is_one_sentence(run, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    done = run("generate", "--prompt", "cat", "--steps", 1, "--out", tmp_path / "file" / "cat.png")
    assert (
        done.exit_code == 2 and "cannot be written" in " ".join(done.output.split()) and "Traceback" not in done.output
    )


def test_methods_are_chosen(run, tmp_path):
    Image.fromarray(np.full((16, 16, 3), 200, np.uint8)).save(tmp_path / "p.png")
    run("attribute", tmp_path / "p.png", "--methods", "clip", "--json", tmp_path / "p.json")
    assert list(json.loads((tmp_path / "p.json").read_text())["methods"]) == ["clip"]


@pytest.mark.parametrize(
    ("content", "more", "sentence"),
    [
        (b"this is no picture", (), "Only PNG, JPEG, WebP, AVIF, TIFF and HEIC"),
        (None, (), "There is no file .*in.png"),
        ("good", ("--effort", "huge"), "quick, standard, full"),
        ("good", ("--methods", "magic"), "magic"),
        ("truncated", (), "damaged|cut off|truncated"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(run, tmp_path, content, more, sentence):
    path = tmp_path / "in.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "ok.png")
    good = (tmp_path / "ok.png").read_bytes()
    if content is not None:
        path.write_bytes({"good": good, "truncated": good[: len(good) // 2]}.get(content, content))  # type: ignore[call-overload]
    done = run("attribute", path, *more)
    assert done.exit_code == 2
    assert "Error: " in done.output and "Traceback" not in done.output
    assert re.search(sentence, " ".join(done.output.split()), re.I), done.output


def test_an_unknown_operator_is_refused(run):
    done = run("unlearn", "--operator", "magic")
    assert done.exit_code == 2 and "no forget loss 'magic'" in done.output


def test_a_missing_npm_is_said(run, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    done = run("groups", "fetch")
    assert done.exit_code == 2 and "Node.js" in done.output


def test_group_sets_are_listed_and_the_version_is_said(run):
    assert run("groups", "list").output.split() == ["cifar10", "digits", "emoji"]
    assert run("--version").output == f"guda {__version__}\n"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["p.png", "--out", "out", "--json", "r.json"], "are for one picture"),
        (["p.png", "--out", "r.zip"], "looks like a file. For one picture: --report"),
        (["p.png", "--out", "r.json"], "looks like a file. For one picture: --report"),
        (["p.png", "--prompts", "p.csv"], "--prompts goes with --out"),
        (["."], "Name it with --out"),
        (["p.png", "p.png", "--report", "r.zip"], "For several, name a folder"),
        (["p.png", "--out", "out", "--prompt", "cat", "--prompts", "p.csv"], "not both"),
        (["p.png", "sub/p.png", "--out", "out"], "Two pictures are called 'p.png'"),
        (["--prompt", "cat"], "Missing argument"),
    ],
)
def test_options_of_attribute_that_contradict_are_refused(run, tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("p.png", "sub/p.png"):
        draw(tmp_path / name)
    done = run("attribute", *options)
    assert done.exit_code == 2 and sentence in done.output and not (tmp_path / "out").exists()


def test_a_prompt_that_a_program_wrote_is_told_and_not_used(run, tmp_path):
    info = PngInfo()
    info.add_text("parameters", "cat, \x1b[31mred\nNegative prompt: photo\nSteps: 20, Sampler: DDIM")
    path = tmp_path / "pictures" / "made.png"
    path.parent.mkdir()
    Image.new("RGB", (64, 64), "teal").save(path, pnginfo=info)
    asked = ("attribute", path, "--methods", "clip", "--effort", "quick", "--json", tmp_path / "a.json")
    told = 'A1111 wrote a prompt into this file: "cat, [31mred". It was not used. To use it, add --prompt.'
    assert told in run(*asked).output
    assert json.loads((tmp_path / "a.json").read_text())["picture"]["prompt"] == ""
    assert "A1111 wrote" not in run(*asked, "--prompt", "cat").output
    draw(tmp_path / "pictures" / "plain.png")
    asked = ("attribute", path.parent, "--methods", "clip", "--effort", "quick", "--out", tmp_path / "out")
    told = "Files that hold a prompt, written by a program: 1 of 2. These prompts were not used"
    assert told in run(*asked).output and told not in run(*asked, "--prompt", "cat").output


def test_marks_in_a_file_are_told_and_change_no_score(run, tmp_path):
    info, out = PngInfo(), {}
    info.add_itxt("XML:com.adobe.xmp", '<rdf:Description Iptc4xmpExt:DigitalSourceType="trainedAlgorithmicMedia"/>')
    for name, more in (("marked", info), ("plain", None)):
        Image.new("RGB", (64, 64), "teal").save(tmp_path / f"{name}.png", pnginfo=more)
        asked = ("--methods", "guda", "--effort", "quick", "--report", tmp_path / f"{name}.zip")
        done = run("attribute", tmp_path / f"{name}.png", *asked)
        out[name] = done.output, read_report(tmp_path / f"{name}.zip").record
        assert run("replay", tmp_path / f"{name}.zip", "--model", "tiny").exit_code == 0
    said = "The file says that it was made by AI (IPTC digital source type)."
    assert said in out["marked"][0] and "AI" not in out["plain"][0]
    marked, plain = out["marked"][1], out["plain"][1]
    assert said in marked["picture"]["preparation"] and marked["methods"] == plain["methods"]
    assert marked["scope"] == plain["scope"]
    with zipfile.ZipFile(tmp_path / "marked.zip") as z:
        assert said in z.read("report.html").decode()


def test_several_pictures_are_shown_one_after_the_other(run, tmp_path):
    for i in range(2):
        draw(tmp_path / f"{i}.png", seed=i)
    done = run("attribute", tmp_path / "0.png", tmp_path / "1.png", "--methods", "clip", "--effort", "quick")
    assert done.exit_code == 0, done.output
    assert f"{tmp_path / '0.png'}:" in done.output and done.output.count("CLIP similarity (cosine)") == 2
