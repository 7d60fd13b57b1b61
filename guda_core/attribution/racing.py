"""Racing: groups that are clearly behind after a few draws get no more of them, and a clear answer ends early.

At a look, all groups that still go on have the same m draws. With L the first of them by score,

    D_g = score_L - score_g     from paired values, so that the full model and most of the noise cancel
    b_g = D_g - t(1 - a, df) se(D_g)     the one-sided lower bound;     a = error / (looks * rivals)   (Bonferroni)

    g stops         when b_g > 0 and g is not among the first `keep`
    all stop        when b_g > 0 for every g that goes on, and the interval of L is no wider than +- width |score_L|

So the group that is truly the first is stopped, or called behind, in at most `error` of all answers: against it stand
as many rivals, at as many looks. A race depends on the values alone: the same values give the same draws. Racing by
such bounds: Maron and Moore 1993 (Hoeffding races).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from guda_core.diffusion.likelihood import Estimate, Strata, difference, elbo_drop
from guda_core.service import Race

BEHIND = "stopped early: clearly behind"


@dataclass(frozen=True)
class Standing:
    """What a look says. order: groups that go on, best first. bound: rival -> b_g in nats; se: rival -> se(D_g).

    half: the leader's half-width of the 95% interval, nats; asked: the half-width that is narrow enough.
    """

    order: tuple[str, ...]
    bound: Mapping[str, float]
    se: Mapping[str, float]
    half: float
    asked: float

    def behind(self, keep: int) -> list[str]:
        """Groups that stop."""
        return [g for g in self.order[keep:] if self.bound[g] > 0]

    @property
    def is_decided(self) -> bool:
        """Whether the leader is ahead of all that go on, in an interval that is narrow enough."""
        return self.half <= self.asked and all(b > 0 for b in self.bound.values())


def one_sided(e: Estimate, level: float) -> float:
    """The value that the estimated sum exceeds with probability 1 - level, nats."""
    return e.value - float(special.stdtrit(e.df, 1 - level)) * e.se


def look(
    full: np.ndarray,
    without: Mapping[str, np.ndarray],
    strata: Strata,
    race: Race,
    *,
    groups: int,
    offset: Mapping[str, float],
) -> Standing:
    """The standing of the groups that go on. full and each of `without`: (K, m), nats. groups: how many began.

    offset: group id -> nats that its scores hold beside the drop."""
    scores = {g: elbo_drop(full=full, without=v, strata=strata).plus(offset.get(g, 0.0)) for g, v in without.items()}
    first, *rivals = sorted(without, key=lambda g: (-scores[g].value, g))
    level = race.level(groups)
    bound, se = {}, {}
    for g in rivals:
        ahead = difference(first=without[first], second=without[g], strata=strata)
        ahead = ahead.plus(offset.get(first, 0.0) - offset.get(g, 0.0))
        bound[g], se[g] = one_sided(ahead, level), ahead.se
    e = scores[first]
    return Standing((first, *rivals), bound, se, (e.high - e.low) / 2, race.width * abs(e.value))


def passes(draws: int, per_pass: int, race: Race | None) -> list[range]:
    """The draws of each pass: `per_pass` each, or in a race from look to look."""
    ends: Sequence[int] = [*range(per_pass, draws, per_pass), draws]
    if race is not None:
        ends = [*(n for n in race.looks if 0 < n < draws), draws]
    return [range(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]


class Racing:
    """Who still goes on. going: groups that get the next pass, in their order. decided: all stopped, early and clear.

    follow: group -> draws that a report names. It decides where a bound lies within `slack` standard errors of its
    threshold, so that other hardware, which moves values a little, does not change who stopped when.
    """

    def __init__(
        self,
        race: Race | None,
        groups: Sequence[str],
        *,
        offset: Mapping[str, float],
        follow: Mapping[str, int] | None = None,
        slack: float = 0.0,
    ) -> None:
        self.race, self.groups, self.offset = race, len(groups), offset
        self.going, self.decided = list(groups), False
        self.follow, self.slack = dict(follow or {}), slack

    def drop(self, group: str) -> None:
        """A group that has no score goes on no longer."""
        self.going = [g for g in self.going if g != group]

    def look(self, m: int, full: np.ndarray, without: Mapping[str, np.ndarray], strata: Strata) -> None:
        """Stop who is clearly behind after m draws; all, when the answer is clear. full, without: (K, >= m), nats."""
        race = self.race
        if race is None or m not in race.looks or not self.going:
            return
        values = {g: without[g][:, :m] for g in self.going}
        seen = look(full[:, :m], values, strata, race, groups=self.groups, offset=self.offset)
        near = {g: abs(b) <= self.slack * seen.se[g] for g, b in seen.bound.items()}
        most = max(self.follow.values(), default=0)
        clear = seen.is_decided
        if self.follow and (any(near.values()) or abs(seen.half - seen.asked) <= self.slack * seen.half):
            clear = most == m
        if clear:
            self.going, self.decided = [], True
            return
        behind = set(seen.behind(race.keep))
        for g in seen.order[race.keep :]:
            if near[g] and g in self.follow:
                behind = (behind - {g}) | ({g} if self.follow[g] == m else set())
        self.going = [g for g in self.going if g not in behind]
