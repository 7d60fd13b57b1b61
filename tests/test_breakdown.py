"""What a score is made of: the parts add up to it, and the interval narrows to the one that is shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from guda_core.attribution import contributions
from guda_core.diffusion.likelihood import Strata, elbo_drop
from guda_core.records import Attribution, GroupModels, GroupScore, KLValues
from guda_core.ui import inspect
from tests.light import LightService, sha

EDGES = (1, 3, 10, 40, 100)


def values(draws: int) -> KLValues:
    rng = np.random.default_rng(0)
    full, t = rng.normal(5, 1, (4, draws)), np.tile(np.array(EDGES[:-1])[:, None], draws)
    return KLValues(t, np.array(EDGES), full, {"noto": full + rng.normal(0.2, 0.1, (4, draws))})


def score(of: KLValues):
    return elbo_drop(full=of.full, without=of.without["noto"], strata=Strata(EDGES))


@pytest.mark.parametrize("draws", [1, 2, 6])
def test_the_parts_add_up_to_the_score(draws):
    of = values(draws)
    parts = contributions.contributions(of, "noto")
    assert [(p.first, p.last) for p in parts] == [(1, 2), (3, 9), (10, 39), (40, 99)]
    assert sum(p.value for p in parts) == pytest.approx(score(of).value)
    if draws == 1:
        assert all(p.se is None for p in parts)
    else:
        assert sum(p.se**2 for p in parts if p.se is not None) == pytest.approx(score(of).se ** 2)


def test_the_last_interval_is_the_scores_own():
    found = contributions.narrowing(values(6), "noto")
    assert [m for m, _ in found] == [2, 4, 6] and found[-1][1] == score(values(6))
    assert contributions.narrowing(values(1), "noto") == []
    _, last = contributions.narrowing(values(6), "noto", 5.0, 2.0)[-1]
    assert last == score(values(6)).plus(5.0, 2.0)


def test_the_interval_of_each_range_covers_as_often_as_it_says():
    """Two draws in each: by 1.96 standard errors seven of ten would cover."""
    rng, covered = np.random.default_rng(1), []
    for _ in range(400):
        full = np.zeros((4, 2))
        kl = KLValues(
            np.tile(np.array(EDGES[:-1])[:, None], 2), np.array(EDGES), full, {"noto": rng.normal(size=(4, 2))}
        )
        covered += [abs(c.value) <= c.half for c in contributions.contributions(kl, "noto") if c.half is not None]
    assert len(covered) == 1600 and 0.93 < np.mean(covered) < 0.97


@pytest.mark.parametrize(("draws", "said_so", "not_there"), [(2, "More effort", "was"), (6, "was", "More effort")])
def test_the_screen_says_how_wide_it_was_only_where_it_narrowed(draws, said_so, not_there):
    of = values(draws)
    a = Attribution("guda", "nats", {"noto": GroupScore(1.0, 0.0, 2.0)}, 1.0, kl=of)
    said, plot, table = inspect.narrowing(a, "noto", "Noto Emoji")
    width = score(of).high - score(of).low
    assert f"with {draws} draws" in str(said) or f"with {draws} it is" in str(said)
    assert said_so in str(said) and not_there not in str(said)
    assert f"{width:.0f}"[:2] in str(table) and plot is not None
    offset = replace(a, settings={"offset": {"noto": 5.0}, "offset_se": {"noto": 2.0}})
    again, _, wider = inspect.narrowing(offset, "noto", "Noto Emoji")
    assert ("not the part of the offset" in str(again)) == (draws == 2) and str(wider) != str(table)


@pytest.mark.parametrize(
    ("adds", "said"),
    [
        ((9.0, 1.0), "timestep 1 adds most: 10.00 "),
        ((0.0, 9.0), "timesteps 2-3 add most: 20.0 "),
        ((0, 0), "no ra"),
    ],
)
def test_only_a_range_that_is_clearly_above_0_is_named(adds, said):
    noise = np.array([[-60.0, 0.0, 150.0]] * 2) * (np.array(adds) == 0)[:, None]
    without = np.array(adds)[:, None] + noise + [1.0, 0.9, 1.1] if any(adds) else noise
    kl = KLValues(np.ones((2, 3), np.int64), np.array([1, 2, 4]), np.zeros((2, 3)), {"noto": without})
    found, _, _ = inspect.steps(
        Attribution("guda", "nats", {"noto": GroupScore(0.0, None, None)}, kl=kl), "noto", "Noto Emoji"
    )
    assert said in found


def test_the_screen_says_what_the_oracle_lost_by_being_compressed():
    service = LightService()
    found = {"pictures": 167, "spearman": 0.99849, "rms": 6.84, "sd": 144.17}
    told = {"noto": found, "twemoji": "health.json is damaged.", "openmoji": {"pictures": 3}}
    hashes = {g: sha(f"retrained {g}") for g in (*told, "fluent-emoji")}
    columns = {"pictures": "Pictures", "spearman": "Rank", "rms": "Error", "sd": "Spread"}
    models = GroupModels("Retrained without", hashes, {"fluent-emoji": "gone"}, "Lost", "", columns, told)
    service.change(models={**service.made_with.models, "logo": models})
    page = inspect.figures(service, service.provenance())
    assert "What the adapters forgot" in page and "12.5 ± 1.0" in page
    names = {g: group.name for g, group in service.group_set.groups.items()}
    shown = page.split("Lost</h2>")[1].split("<tr>")
    rows = {name: row for row in shown for name in names.values() if f">{name}<" in row}
    assert all(v in rows[names["noto"]] for v in (">167<", ">0.998<", ">6.84<", ">144<"))
    assert "health.json is damaged." in rows[names["twemoji"]] and ">3<" in rows[names["openmoji"]]
    assert "unavailable: gone" in rows[names["fluent-emoji"]] and "was not measured" in rows[names["fluent-emoji-flat"]]
    service.change(made_from={"clip": {"bank_sha256": sha("another bank")}})
    shown = inspect.hashes(service, service.provenance(), None)
    assert "CLIP similarity: bank<" in shown and sha("another bank") in shown
    assert all(h in shown for h in hashes.values()) and f"Retrained without: {names['noto']}" in shown
