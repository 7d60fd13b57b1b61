"""A planted truth: GUDA names the style that a picture was made from. UnlearnCanvas in miniature, on drawn pictures."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from experiments import few, planted, unlearncanvas
from experiments.benchmark.own_run import TABLE
from experiments.logo.whole_way import everything
from experiments.tables import committed, planted_table
from guda_core import paths
from guda_core.cli import groups_check
from guda_core.data.own.picture_list import FILE as PICTURES
from guda_core.data.own.picture_list import read_list
from guda_core.errors import DataError
from guda_core.unlearning import adapters
from tests.tiny import save_tiny

SMALL = planted.PlantedConfig(
    pictures=2, channels=(16, 32), steps=2, batch=2, unlearn_steps=2, unlearn_batch=2, asked=1, draw_steps=2, strata=4
)


@pytest.fixture
def run(monkeypatch, capsys):
    """(exit code, everything said) of a program called with arguments."""

    def call(program, *arguments: object) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["program", *[str(a) for a in arguments]])
        with pytest.raises(SystemExit) as done:
            program()
        said = capsys.readouterr()
        return done.value.code, " ".join((said.out + said.err).split())

    return call


def test_unlearncanvas_in_miniature_runs_and_resumes(run, tmp_path, home, monkeypatch):
    """Three styles of two objects, drawn; the paper's settings but for sizes and steps."""
    monkeypatch.setattr(planted, "OBJECTS", dict(list(planted.OBJECTS.items())[:2]))
    monkeypatch.setattr(planted, "STYLES", dict(list(planted.STYLES.items())[:3]))
    planted.write_pictures(tmp_path / "canvas", SMALL)
    save_tiny(tmp_path / "tiny", small=True)
    small = ["--data", tmp_path / "canvas", "--model", tmp_path / "tiny", "--resolution", 16, "--steps", 2]
    small += ["--batch", 2, "--unlearn-steps", 2, "--asked", 2, "--draw-steps", 2]
    code, said = run(unlearncanvas.main, *small)
    assert code == 2 and "There are 3 styles, and 16 are asked for. Use --styles 3." in said
    code, said = run(unlearncanvas.main, *small, "--styles", 3, "--plan")
    assert code == 0 and "4 trainings" in said and "6 pictures to draw" in said and "3 groups to unlearn" in said
    assert not (home / "models").exists()
    code, said = run(unlearncanvas.main, *small, "--styles", 3, "--minutes", 0.00001)
    assert code == 0 and "to do" in said and "Run the same command again" in said
    code, said = run(unlearncanvas.main, *small, "--styles", 3)
    assert code == 0 and "score is the paper's" in said
    own = paths.run("tiny-unlearncanvas", "unlearncanvas")
    table = json.loads((own.own / "logo" / TABLE).read_text())
    rows = {r["method"]: r for r in table["rows"] if r["query_set"] == "generated"}
    assert rows["guda"]["n"] == 6 and rows["guda"]["groups"] == 3 and "guda + offset" not in rows
    meta = adapters.read_meta(own.adapters / "striped")
    config = meta["config"]
    assert (config["selection"], config["beta"], config["eta"], config["lam"]) == ("weighted", 2.0, 0.3, 1.0)
    assert (config["empty_share"], config["loop"]["lr"], config["lora"], meta["kind"]) == (0.0, 2e-6, None, "whole")
    assert adapters.read_meta(own.oracle / "striped")["kind"] == "whole" and not own.calibration.exists()


def test_the_papers_settings_are_the_defaults_and_styles_are_spread():
    assert unlearncanvas.STYLES == 16 and unlearncanvas.UNLEARNING["lr"] == 2e-6
    assert unlearncanvas.spread([str(i) for i in range(60)], 16)[:4] == ["0", "3", "7", "11"]
    assert len(set(unlearncanvas.spread([str(i) for i in range(60)], 16))) == 16
    with pytest.raises(DataError, match="--styles 2"):
        unlearncanvas.spread(["a", "b"], 3)


def test_pictures_of_a_style_are_told_apart_by_their_colours_alone(tmp_path):
    """The truth that is planted: no two styles share a colour, and what they show is the same."""
    planted.write_pictures(tmp_path, SMALL)
    assert len(list(tmp_path.glob("*/*/*.png"))) == 4 * 4 * SMALL.pictures
    rng = np.random.default_rng(0)
    means = {s: [planted.paint(s, o, rng).reshape(-1, 3).mean(axis=0) for o in planted.OBJECTS] for s in planted.STYLES}
    centres = {s: np.mean(m, axis=0) for s, m in means.items()}
    for s, of in means.items():
        for m in of:
            assert min(centres, key=lambda k: np.linalg.norm(m - centres[k])) == s


def test_guda_names_the_planted_style_in_the_committed_figures():
    """`python -m experiments.planted` on a full-size training: the first group is the planted one on 80% and more."""
    found = json.loads((paths.BENCHMARKS / planted.FILE).read_text(encoding="utf-8"))
    of = found["first"]["guda/drop" if "guda/drop" in found["first"] else "guda"]["generated"]
    assert of["of"] == 40 and of["right"] >= 32
    (row,) = (r for r in found["rows"] if r["method"] == "guda" and r["query_set"] == "generated")
    assert row["n"] == 40 and row["top1"]["low"] > 0.25 and row["variation"]["low"] > 0  # a quarter is chance


def test_the_page_says_what_the_committed_file_says(monkeypatch, tmp_path):
    record = json.loads((committed.FOLDER / planted.FILE).read_text(encoding="utf-8"))
    page = (paths.ROOT / "docs" / "results" / "planted.md").read_text(encoding="utf-8")
    assert len(record["first"]) == 2 and set(record["groups"]) == set(planted.STYLES)
    for name, found in record["first"].items():
        cells = " | ".join(f"{found[s]['right']} of {found[s]['of']}" for s in ("generated", "real"))
        assert f"| {name} | {cells} |" in page
    guda = next(r for r in record["rows"] if (r["method"], r["query_set"]) == ("guda", "generated"))
    assert f"| guda | generated | {guda['n']} | {guda['top1']['value']:.2f} (" in page
    assert f"No offset. {record['calibration']['none']} (`{planted.COMMAND}`, {record['date'][:10]}" in page
    made = {**record, "first": {"guda": {"real": {"right": 1, "of": 3}}}, "calibration": {"offset_weight": 0.5}}
    (tmp_path / planted.FILE).write_text(json.dumps(made), encoding="utf-8")
    monkeypatch.setattr(committed, "FOLDER", tmp_path)
    assert "| guda | 1 of 3 |" in planted_table.planted()
    assert "The offset's weight: 0.5." in planted_table.planted_agreement()
    (tmp_path / planted.FILE).unlink()
    assert {render() for render in planted_table.RENDER.values()} == {committed.UNKNOWN}


def shorter(monkeypatch, styles: int) -> None:
    """So many styles, and after the trainings fewer pictures and draws."""
    usual = planted.way_of

    def way_of(config):
        way = usual(config)
        health, queries = replace(way.health, pictures=1, held_out=3), replace(way.queries, real=2)
        return replace(way, health=health, queries=queries, scores=replace(way.scores, draws=1))

    monkeypatch.setattr(planted, "way_of", way_of)
    monkeypatch.setattr(planted, "STYLES", dict(list(planted.STYLES.items())[:styles]))


def test_the_code_runs_from_pictures_to_figures_on_ever_fewer_pictures_of_each_style(tmp_path, monkeypatch):
    shorter(monkeypatch, 2)
    monkeypatch.setenv("GUDA_HOME", "")  # `measured` sets it
    small = replace(SMALL, pictures=3)
    made = few.measured(tmp_path, (1, 3), small)
    assert [(r["pictures"], r["method"]) for r in made if r["query_set"] == "generated"] == [
        (size, method) for size in (1, 3) for method in few.METHODS
    ]
    for size, held in ((1, 7), (3, 9)):
        listed = read_list(tmp_path / str(size) / "sets" / planted.SET / PICTURES)
        assert Counter((p.group, p.held_out) for p in listed) == {
            (g, out): n for g in planted.STYLES for out, n in ((False, size), (True, held))
        }
    real = [r for r in made if r["query_set"] == "real"]
    assert all(r["of"] == r["n"] and r["low"] <= r["right"] / r["of"] == r["value"] <= r["high"] for r in real)
    own, held_out = few.world(3, small)
    found = planted.figures(own)  # of the last
    assert found["groups"] == sorted(planted.STYLES) and len(found["groups"]) == 2
    assert found["first"]["guda"]["generated"]["of"] == 2 and set(found["first"]) >= {"guda", "logo"}
    assert {"generated", "real"} == {r["query_set"] for r in found["rows"] if r["method"] == "guda"}
    way = everything(planted.prepare(tmp_path / "3", own, held_out=held_out), planted.way_of(own))
    assert [what for what, _ in way] == []  # all of it is there
    for changed, said in (({"pictures": 1}, "pictures was 3 and is 1"), ({"asked": 2, "draw_steps": 3}, "steps was 2")):
        other = replace(own, **changed)
        with pytest.raises(DataError, match=said):
            list(everything(planted.prepare(tmp_path / "3", other, held_out=held_out), planted.way_of(other)))
    with pytest.raises(DataError, match=f"held_out was {held_out} and is 0.5. Ask for the same, or delete"):
        planted.prepare(tmp_path / "3", own, held_out=0.5)


def test_a_beginning_that_was_stopped_is_gone_on_with_and_one_with_other_settings_is_refused(tmp_path, monkeypatch):
    def stopped(folder, config):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(planted, "write_model", stopped)
        with pytest.raises(KeyboardInterrupt):
            planted.begin(tmp_path / "p", SMALL)
    planted.begin(tmp_path / "p", SMALL)
    assert (tmp_path / "p" / "model" / "model_index.json").is_file()
    monkeypatch.setattr(planted, "write_model", None)  # all is there
    planted.begin(tmp_path / "p", replace(SMALL, steps=9))
    for config in (replace(SMALL, pictures=3), replace(SMALL, seed=9), replace(SMALL, channels=(16, 64))):
        with pytest.raises(DataError, match="made with other settings"):
            planted.begin(tmp_path / "p", config)
    (tmp_path / "p" / planted.SETTINGS).unlink()  # as a folder of before, or of someone else
    with pytest.raises(DataError, match="pictures was not told and is 2"):
        planted.begin(tmp_path / "p", SMALL)


@pytest.mark.parametrize("size", few.SIZES)
def test_a_size_is_what_is_left_to_train_on(size):
    own, held_out = few.world(size, planted.PlantedConfig())
    drawn = own.pictures * len(planted.OBJECTS)
    assert drawn - round(held_out * drawn) == size and 6 <= drawn - size <= 7 * size and held_out <= 0.9


def test_the_answer_on_few_pictures_is_that_of_the_committed_file():
    """What the page of questions and the page of results say of it."""
    record = json.loads((committed.FOLDER / few.FILE).read_text(encoding="utf-8"))
    assert record["sizes"] == list(few.SIZES) and len(record["rows"]) == 2 * 2 * len(few.SIZES)
    guda = {(r["pictures"], r["query_set"]): r for r in record["rows"] if r["method"] == "guda"}
    assert all(guda[n, "real"]["low"] < 0.25 for n in (2, 4))  # one in four is chance
    assert all(guda[n, s]["low"] > 0.25 for n in (12, 36) for s in ("real", "generated"))
    questions = (paths.ROOT / "docs" / "explanation" / "questions.md").read_text(encoding="utf-8")
    said = {n: f"{guda[n, 'real']['right']} of {guda[n, 'real']['of']}" for n in (12, 36)}
    assert f"With 12, it does so on {said[12]}, and with 36 on all." in questions and said[36] == "24 of 24"
    logo = {r["pictures"]: r["right"] for r in record["rows"] if (r["method"], r["query_set"]) == ("logo", "real")}
    assert min(logo[2], logo[4]) > 12 > groups_check.FEW - 1 >= 4  # the oracle names most; the warning begins between
