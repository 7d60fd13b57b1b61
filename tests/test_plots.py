"""The bars show the same figures as the record: sorted, with intervals, in one unit, nothing left out."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from guda_core.answers.plots import BACK, DROP, FIRST, HOLLOW, HOLLOW_PART, INTERVAL, OFFSET, agreement, bars
from guda_core.data.groups import load_group_set
from guda_core.records import Attribution, Group, GroupScore, GroupSet
from guda_core.reports import figures
from guda_core.reports.figures import bars_png

SETS = load_group_set("emoji")
SCORES = {
    "twemoji": GroupScore(2.0, -1.0, 6.0),
    "openmoji": GroupScore(41.0, 35.0, 48.0),
    "noto": GroupScore(None, None, None, "unavailable", "Its file is missing."),
    "emojione-monotone": GroupScore(None, None, None, "no_score", "Not finite."),
    "streamline-emojis": GroupScore(-7.0, -9.0, -5.0),
}


class Bar:
    """A row of a figure, read back from its markup."""

    def __init__(self, row: ElementTree.Element) -> None:
        self.text = ["".join(s.itertext()) for s in row.findall("span")]
        self.marks = {i.get("class", ""): numbers(i.get("style", "")) for i in row.iter("i")}


def numbers(style: str) -> list[float]:
    return [float(v) for v in re.findall(r"([-0-9.]+)%", style)]


def drawn(unit: str = "nats", **settings: Any) -> ElementTree.Element:
    return ElementTree.fromstring(bars(Attribution("guda", unit, SCORES, settings=settings), SETS))


def read(figure: ElementTree.Element) -> list[Bar]:
    return [Bar(row) for row in figure[0] if row.get("class") == "guda-bar"]


def axis(figure: ElementTree.Element) -> dict[float, float]:
    """Tick -> its place, as a percentage."""
    ticks = figure[0][-1].iter("i")
    return {float("".join(t.itertext())): numbers(t.get("style", ""))[0] for t in ticks}


def places(figure: ElementTree.Element) -> Callable[[float], float]:
    """The map from a value to its place, from two ticks."""
    (a, pa), *_, (b, pb) = axis(figure).items()
    return lambda v: pa + (pb - pa) * (v - a) / (b - a)


def test_bars_are_sorted_best_first_and_nothing_is_left_out():
    assert [b.text[:1] + b.text[-1:] for b in read(drawn())] == [
        ["OpenMoji", "41"], ["Twemoji", "2"], ["Streamline Emojis", "-7.0"], ["Noto Emoji", "unavailable"],
        ["Emoji One Monotone", "no score"],
    ]  # fmt: skip


def test_a_bar_runs_from_zero_to_its_score_and_its_interval_is_the_recorded_one():
    figure = drawn()
    at, rows = places(figure), read(figure)
    assert 0.0 in axis(figure) and all(0 <= place <= 100 for place in axis(figure).values())
    assert at(-9.0) == pytest.approx(0, abs=0.02) and at(48.0) == pytest.approx(100, abs=0.02)  # the outermost ends
    for row, (score, low, high) in zip(rows, ((41, 35, 48), (2, -1, 6), (-7, -9, -5)), strict=False):
        bar = next(v for k, v in row.marks.items() if k.startswith("measured"))
        assert bar == pytest.approx([at(min(0, score)), at(abs(score)) - at(0)], abs=0.02)
        assert row.marks["span"] == pytest.approx([at(low), at(high) - at(low)], abs=0.02)


def test_a_bar_whose_interval_includes_zero_is_hollow_in_nats_only():
    assert ["measured hollow" in b.marks for b in read(drawn("nats"))[:3]] == [False, True, False]
    assert not any("measured hollow" in b.marks for b in read(drawn("cosine")))
    assert HOLLOW in text(drawn("nats")) and HOLLOW not in text(drawn("cosine"))


def legend(figure: ElementTree.Element) -> dict[str, str]:
    """What the legend says of each mark."""
    return {key[0].get("class", ""): "".join(key.itertext()) for key in figure[1]}


def text(figure: ElementTree.Element) -> str:
    return " ".join(figure.itertext())


@pytest.mark.parametrize("unit", ["nats", "cosine"])
def test_a_figure_says_in_words_what_it_shows(unit):
    figure = drawn(unit)
    assert figure[0].get("role") == "img" and unit in text(figure)
    said = figure[0].get("aria-label", "")
    assert said.startswith(f"Scores by guda, in {unit}: OpenMoji 41") and "Noto Emoji unavailable" in said


def test_nothing_scored_still_draws_who_is_missing():
    found = ElementTree.fromstring(bars(Attribution("guda", "nats", {"noto": SCORES["noto"]}), SETS))
    assert [b.text for b in read(found)] == [["Noto Emoji", "unavailable"]]


def test_ticks_are_plain_numbers_also_of_small_scores():
    tiny = {"noto": GroupScore(0.00012, 0.0001, 0.00014), "twemoji": GroupScore(0.00003, 0.00001, 0.00005)}
    found = bars(Attribution("dtrak", "kernel", tiny), SETS)
    assert not re.search(r"[0-9][um\u00b5]<", found) and re.search(r"<b>0\.0000\d<", found)


def test_names_from_outside_are_escaped():
    found = agreement(["<b>x</b>"], [0.5], [0.4], [0.6])
    assert FIRST in found
    assert "<b>x" not in found and [b.text[0] for b in read(ElementTree.fromstring(found))] == ["<b>x</b>"]


def test_a_bar_has_a_part_for_the_offset_and_one_for_the_drop_and_the_legend_names_them():
    assert "added" not in read(drawn())[0].marks and legend(drawn()) == {"hollow": HOLLOW, "span": INTERVAL}
    offset = {"openmoji": 12.0, "twemoji": 0.0, "streamline-emojis": 3.0, "noto": 9.0}
    figure = drawn(offset=offset)
    at, (openmoji, twemoji, streamline, *_) = places(figure), read(figure)
    assert openmoji.marks["added"] == pytest.approx([at(0), at(12) - at(0)], abs=0.02)
    assert openmoji.marks["measured"] == pytest.approx([at(12), at(41) - at(12)], abs=0.02)
    assert "added" not in twemoji.marks
    assert streamline.marks["measured back"] == pytest.approx([at(-7), at(3) - at(-7)], abs=0.02)  # a drop below 0
    both = {"added": OFFSET, "measured": DROP}
    assert legend(figure) == {**both, "measured back": BACK, "hollow": HOLLOW_PART, "span": INTERVAL}
    assert BACK in text(drawn(offset={"openmoji": -3.0})) and BACK not in text(drawn(offset={"openmoji": 3.0}))
    assert "every picture" in OFFSET and "measured on this picture" in DROP
    offset["openmoji"] = 36.0  # more than the lower end, 35
    assert "measured hollow" in read(drawn(offset=offset))[0].marks


def test_both_parts_are_said_to_those_who_cannot_see_the_bar():
    said = drawn(offset={"openmoji": 12.0, "streamline-emojis": 3.0})[0].get("aria-label", "")
    assert "OpenMoji 41 (35 to 48; offset 12, drop 29)" in said and "Twemoji 2 (-1 to 6)" in said
    assert "Streamline Emojis -7.0 (-9.0 to -5.0; offset 3.0, drop -10.0)" in said
    assert "offset" not in drawn()[0].get("aria-label", "")


def test_names_in_a_reports_picture_are_told_apart():
    names = {f"y{year}": f"Scanned sketchbook pages of the year {year}" for year in range(1990, 1993)}
    names |= {"p": f"{'a' * 30} one {'z' * 30}", "q": f"{'a' * 30} two {'z' * 30}", "g1": "水墨", "g2": "😀"}
    long = [f"{'a-long-id-' * 6}{i}" for i in range(3)]
    names |= {long[0]: "水", long[1]: "Emoji", long[2]: "Emoji"}
    found = figures._labels(GroupSet("x", "X", {g: Group(g, n) for g, n in names.items()}))
    assert max(map(len, found.values())) <= figures.LONGEST + figures.LONGEST_ADDED + 3
    assert len(set(found.values())) == len(names)
    assert all(found[f"y{year}"].endswith(f"the year {year}") for year in range(1990, 1993))
    assert found["p"].endswith("(p)") and found["g1"] == "g1"


def test_the_reports_picture_marks_the_offset_with_a_tick():
    def violet(offset: dict[str, float]) -> int:
        """Pixels of the tick's colour."""
        png = bars_png([Attribution("guda", "nats", SCORES, settings={"offset": offset})], SETS)
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
        return int((np.abs(pixels - [0x6D, 0x28, 0xD9]).sum(axis=2) < 30).sum())

    assert violet({}) == 0 and violet({"openmoji": 12.0}) > 20
