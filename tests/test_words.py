"""The headline, its chips and its lines say what the figures say, and never more."""

from __future__ import annotations

import dataclasses

import pytest

from guda_core.answers import sentences
from guda_core.answers.verdict import CLEAR, Verdict, verdict
from guda_core.attribution import METHODS
from guda_core.cli.attribute_command import _show_answer
from guda_core.data.groups import load_group_set
from guda_core.records import VERDICTS, Attribution, Group, GroupScore, GroupSet, Scope
from guda_core.service import EFFORTS
from guda_core.ui import compare, words
from guda_core.ui.layout import effort_choices
from tests.fakes import FakeService, answered

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


KNOWN = {m: METHODS[m].info() for m in METHODS}


def judged(a: Attribution, *others: Attribution, **more) -> Verdict:
    """The verdict when these were asked, the first one being what the headline is about."""
    asked = [x.method for x in (a, *others)]
    return verdict({x.method: x for x in (a, *others)}, SETS, asked, KNOWN, **more)


def logo(*order: str, separable: bool = True, low: float = 20.0) -> Attribution:
    """The oracle's answer with the groups in this order."""
    scores = {g: GroupScore(40.0 - 10 * i, low - 10 * i, 50.0 - 10 * i) for i, g in enumerate(order)}
    return Attribution("logo", "nats", scores, separable=separable, runner_up=order[1])


def chips(v: Verdict) -> list[str]:
    return [c.text for c in v.chips]


def everything(v: Verdict) -> str:
    return " ".join([v.headline, v.plain, v.figures, *chips(v)])


def test_a_clear_first_is_named_with_its_figures_and_its_lead():
    v = judged(AHEAD)
    assert v.headline == "Most needed: OpenMoji" and chips(v) == [CLEAR]
    assert v.plain == "By GUDA (unlearning), the model explains this picture worst without OpenMoji."
    assert v.figures.startswith("OpenMoji: 41 nats (95% interval 35 to 47). Next: Twemoji, 12.")


def test_the_lead_is_not_claimed_when_it_was_not_tested():
    assert chips(judged(dataclasses.replace(AHEAD, separable=None, runner_up=None))) == ["not compared"]


def test_two_that_overlap_cannot_be_told_apart():
    v = judged(TIED)
    assert v.headline == "Two groups cannot be told apart: OpenMoji and Twemoji" and chips(v) == ["close"]


@pytest.mark.parametrize(("third", "said"), [((30.0, 24.0, 36.0), True), ((10.0, 4.0, 16.0), False), (None, False)])
def test_a_third_group_as_close_is_not_passed_over(third, said):
    score = GroupScore(*third) if third else GroupScore(None, None, None, "unavailable")
    v = judged(dataclasses.replace(TIED, groups={**TIED.groups, "noto": score}))
    assert ("Others may be as close." in v.plain) is said


def test_a_name_that_is_read_from_right_to_left_moves_no_figure(capsys):
    names = {"a": "Emoji", "b": "رسوم ١", "c": "ציורים (2)"}
    sets = GroupSet("x", "X", {g: Group(g, n) for g, n in names.items()})
    a = Attribution("guda", "nats", {g: GroupScore(v, v - 6, v + 6) for g, v in zip("bca", (30, 20, 10), strict=True)})
    apart = ("\u2068رسوم ١\u2069", "\u2068ציורים (2)\u2069")
    assert sentences.strip(a, sets) == f"1 {apart[0]}, 2 {apart[1]}, 3 Emoji"
    v = verdict({"guda": a}, sets, ["guda"], KNOWN)
    assert f"{apart[0]}: 30 nats" in v.figures and f"Next: {apart[1]}, 20" in v.figures and apart[0] in v.headline
    assert sentences.rows(a, sets)[0][1] == "رسوم ١"  # alone in its cell
    assert (
        apart[0]
        in sentences.compared([a, dataclasses.replace(a, method="clip")], sets, {"guda": "GUDA", "clip": "CLIP"})[0]
    )
    _show_answer(dataclasses.replace(a, separable=False, runner_up="c"), sets, KNOWN["guda"])
    assert f"{names['b']} and {names['c']} are not separable." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("a", "where"),
    [(NOTHING, "reaches down to 0"), (BELOW, "is below 0"), (nats((4.0, 0.0, 8.0), (1.0, -1.0, 3.0)), "down to 0")],
)
def test_nothing_stands_out_when_the_first_is_not_above_zero(a, where):
    v = judged(a)
    assert v.headline == "No group stands out" and chips(v) == ["no group"] and where in v.plain


def test_what_was_not_scored_is_named():
    assert (
        "Not scored: Noto Emoji." in judged(dataclasses.replace(AHEAD, groups={**AHEAD.groups, **NONE.groups})).figures
    )
    v = judged(NONE)
    assert v.headline == "No group could be scored" and v.plain == "The table says why."


def test_no_group_is_named_before_the_main_method_is_done():
    half = dataclasses.replace(AHEAD, progress=0.5)
    asked = ["guda", "clip"]
    for found in ({}, {"clip": COSINE}, {"guda": Attribution("guda", "nats", {}, 0.1)}, {"guda": half, "clip": COSINE}):
        v = verdict(found, SETS, asked, KNOWN)
        assert chips(v) == ["working"] and not [n for n in SETS.groups.values() if n.name in everything(v)]
    done = verdict({"guda": AHEAD}, SETS, asked, KNOWN)
    assert (
        verdict({"guda": AHEAD, "clip": COSINE}, SETS, asked, KNOWN) == done
    )  # what comes later changes no word of it


def test_a_cancelled_answer_says_so_and_how_far_it_had_come():
    v = judged(dataclasses.replace(AHEAD, progress=0.5), over=True)
    assert (
        "Cancelled" in v.headline and chips(v) == ["cancelled"] and v.plain.startswith("So far: Most needed: OpenMoji.")
    )
    early = verdict({}, SETS, ["guda"], KNOWN, over=True)
    assert early.headline == "Cancelled" and chips(early) == ["cancelled"]
    late = verdict({"guda": AHEAD}, SETS, ["guda", "clip"], KNOWN, over=True)
    assert late.headline == "Most needed: OpenMoji" and chips(late) == [CLEAR, "others cancelled"]


def test_out_of_scope_there_is_no_attribution():
    v = judged(AHEAD, scope=Scope("out of scope", 9.0, 6.0, "bits", "It needs 9 bits."))
    assert v.headline == "This model could not have made this picture: no attribution"
    assert chips(v) == ["out of scope"] and "OpenMoji" not in everything(v) and v.figures == "It needs 9 bits."
    assert judged(AHEAD, scope=Scope("in scope", 2.0, 6.0, "bits", "")) == judged(AHEAD)


def test_clearly_ahead_is_never_said_alone_where_the_oracle_names_another_group():
    assert chips(judged(AHEAD, logo("openmoji", "twemoji"))) == [CLEAR, "oracle agrees"]
    v = judged(AHEAD, logo("twemoji", "openmoji"))
    assert chips(v) == [CLEAR, "oracle: Twemoji"] and "(the oracle) put Twemoji first" in v.figures
    v = judged(AHEAD, logo("twemoji", "openmoji", separable=False))
    assert chips(v) == [CLEAR, "oracle: close"] and "cannot tell Twemoji and OpenMoji apart" in v.figures
    assert chips(judged(AHEAD, logo("openmoji", "twemoji", low=-1.0))) == [CLEAR, "oracle: no group"]
    gone = dataclasses.replace(logo("openmoji", "twemoji"), groups={"twemoji": GroupScore(9.0, 8.0, 10.0)})
    v = judged(AHEAD, dataclasses.replace(gone, runner_up=None, separable=None))
    assert chips(v) == [CLEAR, "oracle: not checked"] and "no score without OpenMoji" in v.figures
    wide = logo("openmoji", "twemoji", low=-1.0)
    clear = dataclasses.replace(wide.groups["twemoji"], low=1.0)
    v = judged(AHEAD, dataclasses.replace(wide, groups={**wide.groups, "twemoji": clear}))
    assert chips(v) == [CLEAR, "oracle: two readings"] and "but it is Twemoji that stands out" in v.figures
    waiting = verdict({"guda": AHEAD}, SETS, ["guda", "logo"], KNOWN)
    assert chips(waiting) == [CLEAR] and "are asked next" in waiting.figures
    assert "were not asked" in judged(AHEAD).figures
    without = {m: info for m, info in KNOWN.items() if not info.oracle}
    assert (
        "No retrained models (the oracle) checked this answer"
        in verdict({"guda": AHEAD}, SETS, ["guda"], without).figures
    )


@pytest.mark.parametrize("first", ["openmoji", "twemoji"])
@pytest.mark.parametrize("a", [TIED, NOTHING])
def test_the_oracles_first_group_is_named_where_the_main_method_names_none_alone(a, first):
    other = "twemoji" if first == "openmoji" else "openmoji"
    v, name = judged(a, logo(first, other)), SETS.groups[first].name
    assert chips(v)[1:] == [f"oracle: {name}"] and [c.kind for c in v.chips] == ["unsure"] * 2
    assert v.figures.endswith(f" The retrained models (the oracle) put {name} first.")


def test_likeness_is_never_told_as_influence():
    v = judged(COSINE)
    assert v.headline == "Looks most like: Noto Emoji" and chips(v) == ["likeness"] and "Without" not in v.plain
    assert v.figures == "Noto Emoji: 0.712 cosine (95% interval 0.701 to 0.724). Next: Twemoji, 0.600."


def test_methods_of_other_units_put_a_group_first_and_say_no_more():
    v = judged(TOGETHER)
    assert v.headline == "First: Noto Emoji" and v.plain == "GUDA and DAS combined puts this group first."
    assert chips(v) == [CLEAR] and chips(judged(dataclasses.replace(TOGETHER, separable=False))) == ["close"]
    assert judged(GRADIENTS).figures.startswith("Noto Emoji: 0.0123 kernel (95% interval 0.0100 to 0.0146).")


def test_rows_hold_the_same_figures_best_first_with_the_rest_last():
    a = dataclasses.replace(AHEAD, groups={**NONE.groups, **AHEAD.groups})
    assert sentences.rows(a, SETS) == [
        ("1", "OpenMoji", "41", "35 to 47", ""),
        ("2", "Twemoji", "12", "8 to 16", ""),
        ("-", "Noto Emoji", "-", "-", "unavailable: Its file is missing."),
    ]
    assert sentences.rows(AHEAD, SETS) == [("1", "OpenMoji", "41", "35 to 47"), ("2", "Twemoji", "12", "8 to 16")]
    assert sentences.strip(a, SETS) == "1 OpenMoji, 2 Twemoji" and "no group" in sentences.strip(NONE, SETS)


def test_many_groups_are_put_in_order_a_few_times_and_not_once_for_each(monkeypatch):
    groups = {f"g{i}": GroupScore(float(i), 0.0, 1.0) if i % 2 else NONE.groups["noto"] for i in range(100)}
    a, real, asked = dataclasses.replace(AHEAD, groups=groups), Attribution.ranked, []
    monkeypatch.setattr(Attribution, "ranked", lambda self: asked.append(1) or real(self))
    found = sentences.rows(a, GroupSet("s", "S", {g: Group(g, g) for g in groups}))
    assert len(asked) <= 5 and [r[1] for r in found] == real(a) + [g for g in groups if g not in real(a)]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(41.4, "nats", "41"), (-12.6, "nats", "-13"), (3.26, "nats", "3.3"), (0.041, "nats", "0.04"),
     (-0.001, "nats", "0.00"), (0.7126, "cosine", "0.713"), (0.00106, "kernel", "0.0011"), (0.909, "kernel", "0.91"),
     (0.0, "kernel", "0"), (12.3, "kernel", "12"), (-123456789.0, "nats", "-123456789"),
     (-1.7e308, "nats", "-1.7e+308"), (1e308, "cosine", "1e+308"), (1e308, "kernel", "1e+308"),
     (9.96, "nats", "10"), (0.996, "nats", "1.0"), (0.3, "kernel", "0.30"), (-5.3e-5, "kernel", "-0.000053"),
     (5.3e-9, "kernel", "5.3e-09")],
)  # fmt: skip
def test_numbers_have_as_many_digits_as_are_worth_reading(value, unit, text):
    assert sentences.number(value, unit) == text


@pytest.mark.parametrize(
    ("span", "unit", "score", "interval"),
    [((-12.35, -12.31, -12.27), "features", "-12.31", "-12.35 to -12.27"), ((7.8, 13.8, 19.8), "nats", "14", "8 to 20"),
     ((0.4, 1.2, 2.0), "kernel", "1.2", "0.4 to 2.0"),
     ((2e-5, 5.3e-5, 8e-5), "kernel", "0.00005", "0.00002 to 0.00008"),
     ((-38.0, 10.0, 58.0), "nats", "10", "-38 to 58"), ((2.0, 2.0, 2.0), "nats", "2.0", ""),
     ((1.0, 1.0 + 1e-9, 1.0 + 2e-9), "nats", "1.0", "1.0 to 1.0"),
     ((0.7011, 0.7123, 0.7235), "cosine", "0.712", "0.701 to 0.724")],
)  # fmt: skip
def test_a_score_is_as_exact_as_its_interval(span, unit, score, interval):
    s = GroupScore(span[1], span[0], span[2])
    assert (sentences.score(s, unit), sentences.interval(s, unit)) == (score, interval)


@pytest.mark.parametrize(
    ("date", "text"),
    [("2026-11-29T10:28:03+00:00", "2026-11-29 10:28 UTC"), ("2026-11-29T01:28:03+02:00", "2026-11-28 23:28 UTC"),
     ("some day", "some day")],
)  # fmt: skip
def test_a_date_is_told_to_the_minute(date, text):
    assert sentences.moment(date) == text


@pytest.mark.parametrize("width", [float("nan"), float("inf"), -2.0, 5e-324, 0.0, 1e-12])
def test_an_interval_that_somebody_elses_file_turned_round_or_left_out_still_gives_a_number(width):
    assert sentences.number(1.25, "nats", width) in ("1.2", "1.3", "1.25")
    assert sentences.interval(GroupScore(1.0, 2.0, 1.0), "nats") == "2.0 to 1.0"


@pytest.mark.parametrize(("value", "text"), [(0.2, "about 1 s"), (41.7, "about 42 s"), (170, "about 3 min")])
def test_durations(value, text):
    assert words.seconds(value) == text


def test_efforts_that_may_end_early_promise_no_more_than_a_bound():
    labels = [label for label, _ in effort_choices(dict.fromkeys(EFFORTS, 300.0))]
    assert labels[0] == "Quick, about 5 min" and labels[2:] == ["Full, up to about 5 min", "Every draw, about 5 min"]
    assert effort_choices()[2] == ("Full", "full")


@pytest.mark.parametrize("a", [AHEAD, TIED, NOTHING, BELOW, COSINE, GRADIENTS, TOGETHER, NONE])
def test_no_sentence_says_more_than_a_score_can(a):
    said = everything(judged(a)).replace("95% interval", "").lower()
    assert not [w for w in FORBIDDEN if w in said]


def of(method: str, *scores: float | None) -> Attribution:
    found = [GroupScore(s, None, None, "no_score" if s is None else "ok") for s in scores]
    return Attribution(method, "nats", dict(zip(GROUPS, found, strict=True)))


def test_methods_that_put_the_same_group_first_are_named_together():
    names = {"guda": "GUDA", "clip": "CLIP", "combined": "Both"}
    said = sentences.compared([of("guda", 3, 2, 1), of("clip", 2, 3, 1), of("combined", 3, 1, 2)], SETS, names)
    one, two, _ = (SETS.groups[g].name for g in GROUPS)
    assert said[0] == f"The methods disagree: {one} is first by GUDA, Both; {two} is first by CLIP."


@pytest.mark.parametrize(
    ("answers", "said", "not_said"),
    [
        # without the group that only one of them scores both have the same order
        ([of("guda", None, 2, 1), of("clip", 9, 2, 1)],
         ["Left out: {0}.", "All methods put {1} first."], ["They differ"]),
        ([of("guda", 3, 2, 1), of("clip", 3, 2, 1)], ["All methods put {0} first."], ["Left out"]),
        ([of("guda", 3, 2, 1), of("clip", 3, 2, 1), of("das", None, None, None)],
         ["No group could be scored by DAS.", "GUDA and CLIP put {0} first."], ["All methods", "Left out"]),
        ([of("guda", 3, 2, 1), of("das", None, None, None)],
         ["No group could be scored by DAS.", "nothing to compare"], ["Only one method has answered"]),
        ([of("guda", 3, None, None), of("clip", None, 2, 1)], ["No group was scored by all"], ["first"]),
        ([of("guda", 3, None, 1), of("clip", 1, None, 3)], ["{0} is first by GUDA"], []),
    ],
)  # fmt: skip
def test_methods_are_compared_on_the_groups_that_all_of_them_score(answers, said, not_said):
    names, shown = {"guda": "GUDA", "clip": "CLIP", "das": "DAS"}, [SETS.groups[g].name for g in GROUPS]
    text = " ".join(sentences.compared(answers, SETS, names))
    assert all(s.format(*shown) in text for s in said), text
    assert not [s for s in not_said if s in text], text


def test_each_method_stands_beside_the_oracle_where_that_was_asked():
    names = {"guda": "GUDA", "clip": "CLIP", "das": "DAS", "logo": "LOGO"}
    answers = [of("guda", 3, 2, 1), of("clip", 1, 2, 3), of("das", 5, None, 1)]
    assert compare._beside_the_oracle(answers, "logo", SETS, names) == ""
    html = compare._beside_the_oracle([*answers, of("logo", 9, 8, 7)], "logo", SETS, names)
    assert f"Also puts {SETS.groups['twemoji'].name} first" in html and "LOGO" not in html
    cells = [row.split("</td>")[:3] for row in html.split("<tr>")[2:]]
    assert [[c.split(">")[1] for c in row] for row in cells] == [
        ["GUDA", "yes", "1.00"], ["CLIP", "no", "-1.00"], ["DAS", "yes", "1.00"],
    ]  # fmt: skip
    lacks = compare._beside_the_oracle([of("das", None, 1, 2), of("logo", 9, 8, 7)], "logo", SETS, names)
    assert "not scored" in lacks and "-1.00" in lacks
    silent = of("das", None, None, None)  # such as for too little memory
    html = compare._beside_the_oracle([*answers[:2], silent, of("logo", 9, 8, 7)], "logo", SETS, names)
    assert "GUDA" in html and "DAS" not in html
    assert compare._beside_the_oracle([*answers, of("logo", None, None, None)], "logo", SETS, names) == ""


def test_the_comparison_of_a_picture_that_is_out_of_scope_names_no_group_unasked():
    service, names = FakeService(), [g.name for g in SETS.groups.values()]
    for service.scoped in ("in scope", "out of scope"):
        away = service.scoped == "out of scope"
        html = compare.shown(answered(service), service)
        unasked = html.partition("<details")[0]
        assert (VERDICTS["out of scope"] in unasked) is away is not any(n in unasked for n in names)
        assert all(n in html for n in names)


def test_every_method_that_can_be_offered_says_what_its_score_is():
    for m in METHODS:
        info = METHODS[m].info()
        assert info.id == m and info.name and info.unit and "The interval" in info.note
        assert not [w for w in FORBIDDEN if w in info.note.replace("not a share", "")]
    said = [METHODS[m].info() for m in METHODS]
    assert [i.id for i in said if i.main] == ["guda"] and [i.id for i in said if i.oracle] == ["logo"]


def test_what_the_scope_check_often_misses_is_said_beside_a_verdict_of_in_scope():
    def kind(about, value, belongs=False):
        return {"about": about, "belongs": belongs, "out_of_scope": {"value": value, "low": 0, "high": 1, "n": 9}}

    kinds = {"a": kind("drawn by hand", 0.06), "b": kind("photographs", 1.0), "c": kind("own pictures", 0.05, True)}
    kinds["d"] = kind("coloured icons", 0.31)
    inside = Scope("in scope", 0.1, 1.0, "x", "p = 0.500.", {"kinds": kinds})
    said = sentences.scope_note(inside)
    assert "misses most of these: drawn by hand (6% are found), coloured icons (31% are found)." in said
    assert "photographs" not in said and "own pictures" not in said
    outside = dataclasses.replace(inside, verdict="out of scope")
    assert "misses" not in sentences.scope_note(outside)
    assert "misses" not in sentences.scope_note(dataclasses.replace(inside, settings={}))


def test_captions_of_which_one_gave_no_score_are_not_said_to_agree():
    none = dataclasses.replace(
        AHEAD, groups={g: GroupScore(None, None, None, "unavailable", "x") for g in AHEAD.groups}
    )
    assert "no group could be scored" in sentences.captions_agree([AHEAD, none], SETS)
    assert "does not depend on the caption" in sentences.captions_agree([AHEAD, AHEAD], SETS)
    assert sentences.captions_agree([none, none], SETS).startswith("Under these captions no group could be scored")


def test_a_share_of_places_is_never_said_to_be_none():
    assert [sentences.places(s) for s in (0.001, 0.005, 0.0051, 0.0149)] == ["fewer than 1", "fewer than 1", "1", "1"]


def test_few_places_of_a_map_are_not_none():
    assert [sentences.places(s) for s in (1 / 1024, 0.02, 1.0)] == ["fewer than 1", "2", "100"]
