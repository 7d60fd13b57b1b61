"""The plain sentence says what the figures say, and never more."""

from __future__ import annotations

import dataclasses

import pytest

from guda_core.attribution import METHODS
from guda_core.data.groups import load_group_set
from guda_core.records import Attribution, GroupScore
from guda_core.ui import compare, words

SETS = load_group_set("emoji")
GROUPS = list(SETS.groups)[:3]
FORBIDDEN = ("share", "percent", "%", "prove", "infring", "owner", "responsib", "stole", "copied")


def nats(first: tuple[float, float, float], second: tuple[float, float, float], **more) -> Attribution:
    scores = {"twemoji": GroupScore(*second), "openmoji": GroupScore(*first)}
    return Attribution("guda", "nats", scores, **{"runner_up": "twemoji", "separable": True, **more})


AHEAD = nats((41.2, 35.0, 47.4), (12.0, 8.0, 16.0))
TIED = nats((41.2, 35.0, 47.4), (40.0, 34.0, 46.0), separable=False)
NOTHING = nats((2.0, -1.0, 5.0), (1.0, -2.0, 4.0), separable=False)
BELOW = nats((-3.0, -4.0, -2.0), (-9.0, -12.0, -6.0))
COSINE = Attribution(
    "clip", "cosine", {"noto": GroupScore(0.7123, 0.701, 0.7236), "twemoji": GroupScore(0.6, 0.5, 0.7)}
)
GRADIENTS = Attribution(
    "das", "kernel", {"noto": GroupScore(0.0123, 0.01, 0.0146), "twemoji": GroupScore(0.005, 0.004, 0.006)},
    separable=False, runner_up="twemoji",
)  # fmt: skip
TOGETHER = Attribution(
    "combined", "standard scores", {"noto": GroupScore(1.23, 1.0, 1.46), "twemoji": GroupScore(-0.5, -0.7, -0.3)},
    separable=True, runner_up="twemoji",
)  # fmt: skip
NONE = Attribution("guda", "nats", {"noto": GroupScore(None, None, None, "unavailable", "Its file is missing.")})


def test_a_clear_first_is_named_with_its_figures_and_its_lead():
    assert words.sentence(AHEAD, SETS) == (
        "Without OpenMoji in the training data, the model would explain this picture worst: 41 nats, 95% interval 35 "
        "to 47; clearly ahead of Twemoji."
    )


def test_the_lead_is_not_claimed_when_it_was_not_tested():
    one = dataclasses.replace(AHEAD, separable=None, runner_up=None)
    assert words.sentence(one, SETS).endswith("95% interval 35 to 47.")


def test_two_that_overlap_cannot_be_told_apart():
    said = words.sentence(TIED, SETS)
    assert said.startswith("The first two, OpenMoji and Twemoji, are not separable")
    assert "clearly" not in said


@pytest.mark.parametrize(("a", "where"), [(NOTHING, "includes 0"), (BELOW, "lies below 0")])
def test_nothing_stands_out_when_the_first_is_not_above_zero(a, where):
    said = words.sentence(a, SETS)
    assert said.startswith("No group stands out") and where in said


def test_an_interval_that_touches_zero_does_not_stand_out():
    assert words.sentence(nats((4.0, 0.0, 8.0), (1.0, -1.0, 3.0)), SETS).startswith("No group stands out")


def test_what_is_not_final_says_so_and_what_was_not_scored_is_named():
    groups = {**AHEAD.groups, **NONE.groups}
    assert words.sentence(dataclasses.replace(AHEAD, progress=0.5), SETS).startswith("So far: Without OpenMoji")
    assert words.sentence(dataclasses.replace(AHEAD, groups=groups), SETS).endswith("Not scored: Noto Emoji.")
    assert words.sentence(NONE, SETS) == "No group could be scored. The table says why."
    assert words.sentence(Attribution("guda", "nats", {}, 0.1), SETS) == ""


def test_likeness_is_never_told_as_influence():
    said = words.sentence(COSINE, SETS)
    assert said.startswith("It looks most like the pictures of Noto Emoji: 0.712 cosine, 95% interval 0.701 to 0.724")
    assert "Without" not in said


def test_two_methods_together_put_a_group_first_and_say_no_more():
    said = words.sentence(TOGETHER, SETS, METHODS["combined"].name)
    assert said == (
        "By GUDA and DAS combined, Noto Emoji comes first: 1.2 standard scores, 95% interval 1.0 to 1.5; clearly ahead "
        "of Twemoji."
    )
    tied = dataclasses.replace(TOGETHER, separable=False)
    assert words.sentence(tied, SETS).endswith("not separable from Twemoji.")


def test_gradient_methods_put_a_group_first_and_are_not_told_as_an_elbo():
    said = words.sentence(GRADIENTS, SETS, METHODS["das"].name)
    assert said == (
        "By DAS, Noto Emoji comes first: 0.012 kernel, 95% interval 0.01 to 0.015; not separable from Twemoji."
    )


def test_the_headline_is_about_guda_and_waits_for_it():
    both, known = ["guda", "clip"], {m: METHODS[m].info() for m in ("clip", "guda")}
    assert words.headline({"clip": COSINE, "guda": AHEAD}, SETS, both, known) == words.sentence(AHEAD, SETS)
    waiting = words.headline({"clip": COSINE}, SETS, both, known)
    assert waiting.startswith(words.WORKING) and "Noto Emoji" in waiting
    assert words.headline({"clip": COSINE}, SETS, ["clip"], known) == words.sentence(COSINE, SETS)


def test_rows_hold_the_same_figures_best_first_with_the_rest_last():
    a = dataclasses.replace(AHEAD, groups={**NONE.groups, **AHEAD.groups})
    assert words.rows(a, SETS) == [
        ("1", "OpenMoji", "41", "35 to 47", "ok"),
        ("2", "Twemoji", "12", "8.0 to 16", "ok"),
        ("-", "Noto Emoji", "-", "-", "unavailable: Its file is missing."),
    ]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(41.4, "nats", "41"), (-12.6, "nats", "-13"), (3.26, "nats", "3.3"), (0.041, "nats", "0.04"),
     (-0.001, "nats", "0.00"), (0.7126, "cosine", "0.713"), (0.00106, "kernel", "0.0011"), (0.909, "kernel", "0.91"),
     (0.0, "kernel", "0"), (12.3, "kernel", "12")],
)  # fmt: skip
def test_numbers_have_as_many_digits_as_are_worth_reading(value, unit, text):
    assert words.number(value, unit) == text


@pytest.mark.parametrize(("value", "text"), [(0.2, "about 1 s"), (41.7, "about 42 s"), (170, "about 3 min")])
def test_durations(value, text):
    assert words.seconds(value) == text


@pytest.mark.parametrize("a", [AHEAD, TIED, NOTHING, BELOW, COSINE, GRADIENTS, TOGETHER, NONE])
def test_no_sentence_says_more_than_a_score_can(a):
    said = words.sentence(a, SETS).replace("95% interval", "").lower()
    assert not [w for w in FORBIDDEN if w in said]


def test_methods_that_put_the_same_group_first_are_named_together():
    names = {"guda": "GUDA", "clip": "CLIP", "combined": "Both"}
    said = words.compared([AHEAD, COSINE, dataclasses.replace(AHEAD, method="combined")], SETS, names)
    assert said[0] == "The methods disagree: OpenMoji is first by GUDA, Both; Noto Emoji is first by CLIP."


def test_each_method_stands_beside_the_oracle_where_that_was_asked():
    def of(method: str, *scores: float | None) -> Attribution:
        found = [GroupScore(s, None, None, "no_score" if s is None else "ok") for s in scores]
        return Attribution(method, "nats", dict(zip(GROUPS, found, strict=True)))

    names = {"guda": "GUDA", "clip": "CLIP", "das": "DAS", "logo": "LOGO"}
    answers = [of("guda", 3, 2, 1), of("clip", 1, 2, 3), of("das", 5, None, 1)]
    assert compare._beside_the_oracle(answers, "logo", SETS, names) == ""
    html = compare._beside_the_oracle([*answers, of("logo", 9, 8, 7)], "logo", SETS, names)
    assert f"Also puts {SETS.groups['twemoji'].name} first" in html and "LOGO" not in html
    cells = [row.split("</td>")[:3] for row in html.split("<tr>")[2:]]
    assert [[c.split(">")[1] for c in row] for row in cells] == [
        ["GUDA", "yes", "1.00"], ["CLIP", "no", "-1.00"], ["DAS", "yes", "0.50"],
    ]  # fmt: skip


def test_every_method_that_can_be_offered_says_what_its_score_is():
    for m in METHODS:
        info = METHODS[m].info()
        assert info.id == m and info.name and info.unit and "The interval" in info.note
        assert not [w for w in FORBIDDEN if w in info.note.replace("not a share", "")]
    said = [METHODS[m].info() for m in METHODS]
    assert [i.id for i in said if i.main] == ["guda"] and [i.id for i in said if i.oracle] == ["logo"]
