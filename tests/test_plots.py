"""The bars show the same figures as the record: sorted, with intervals, in one unit, nothing left out."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from guda_core.data.groups import load_group_set
from guda_core.records import Attribution, GroupScore
from guda_core.reports.figures import bars_png
from guda_core.ui.plots import BAR, PALE, bars

SETS = load_group_set("emoji")
SCORES = {
    "twemoji": GroupScore(2.0, -1.0, 6.0),
    "openmoji": GroupScore(41.0, 35.0, 48.0),
    "noto": GroupScore(None, None, None, "unavailable", "Its file is missing."),
    "emojione-monotone": GroupScore(None, None, None, "no_score", "Not finite."),
    "streamline-emojis": GroupScore(-7.0, -9.0, -5.0),
}


def drawn(unit: str = "nats") -> dict:
    return json.loads(bars(Attribution("guda", unit, SCORES), SETS).to_json())


def test_bars_are_sorted_best_first_and_from_top_to_bottom():
    d = drawn()
    assert d["data"][0]["y"] == ["OpenMoji", "Twemoji", "Streamline Emojis", "Noto Emoji", "Emoji One Monotone"]
    assert d["data"][0]["x"] == [41.0, 2.0, -7.0, None, None]
    top, bottom = d["layout"]["yaxis"]["range"][::-1]
    assert top < bottom and d["layout"]["yaxis"]["categoryarray"][0] == "OpenMoji"


def test_intervals_are_the_recorded_ones():
    error = drawn()["data"][0]["error_x"]
    assert error["array"] == [7.0, 4.0, 2.0]
    assert error["arrayminus"] == [6.0, 3.0, 2.0]


def test_groups_without_a_score_come_last_and_are_named():
    d = drawn()
    assert d["layout"]["yaxis"]["categoryarray"][3:] == ["Noto Emoji", "Emoji One Monotone"]
    assert [(a["y"], a["text"]) for a in d["layout"]["annotations"]] == [
        ("Noto Emoji", "unavailable"),
        ("Emoji One Monotone", "no score"),
    ]


def test_a_bar_whose_interval_includes_zero_is_pale_in_nats_only():
    assert drawn("nats")["data"][0]["marker"]["color"] == [BAR, PALE, BAR]
    assert drawn("cosine")["data"][0]["marker"]["color"] == [BAR] * 3


@pytest.mark.parametrize("unit", ["nats", "cosine"])
def test_the_unit_is_on_the_axis_with_a_zero_line_and_a_height_and_no_background(unit):
    layout = drawn(unit)["layout"]
    assert unit in layout["xaxis"]["title"]["text"]
    assert layout["xaxis"]["zeroline"] is True
    assert layout["height"] > 100
    assert layout["paper_bgcolor"] == layout["plot_bgcolor"] == "rgba(0,0,0,0)"


def test_nothing_scored_still_draws_who_is_missing():
    a = Attribution("guda", "nats", {"noto": SCORES["noto"]})
    assert [x["text"] for x in json.loads(bars(a, SETS).to_json())["layout"]["annotations"]] == ["unavailable"]


def test_a_tick_marks_what_a_group_gives_to_any_picture():
    assert len(drawn()["data"]) == 1 and "tick" not in drawn()["layout"]["xaxis"]["title"]["text"]
    settings = {"offset": {"openmoji": 12.0, "twemoji": 0.0, "streamline-emojis": -3.0, "noto": 9.0}}
    d = json.loads(bars(Attribution("guda", "nats", SCORES, settings=settings), SETS).to_json())
    assert (d["data"][1]["x"], d["data"][1]["y"]) == ([12.0, -3.0], ["OpenMoji", "Streamline Emojis"])
    assert "tick: the offset" in d["layout"]["xaxis"]["title"]["text"]
    assert d["data"][0]["marker"]["color"] == [BAR, PALE, BAR]
    settings["offset"]["openmoji"] = 36.0  # more than the lower end, 35
    d = json.loads(bars(Attribution("guda", "nats", SCORES, settings=settings), SETS).to_json())
    assert d["data"][0]["marker"]["color"][0] == PALE

    def violet(offset: dict[str, float]) -> int:
        """Pixels of the tick's colour."""
        png = bars_png([Attribution("guda", "nats", SCORES, settings={"offset": offset})], SETS)
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
        return int((np.abs(pixels - [0x6D, 0x28, 0xD9]).sum(axis=2) < 30).sum())

    assert violet({}) == 0 and violet({"openmoji": 12.0}) > 20
