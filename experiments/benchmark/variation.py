"""Does a method tell a group's pictures apart as the oracle does? Agreement over pictures, group by group.

Top-1 and rank correlations compare groups on one picture, where a constant for each group, the same whatever the
picture, already earns something. *Variation* asks the other question, where a constant earns nothing:

    centred   s_k(x) less the mean over groups of s(x), for the method and the oracle alike
    r_k       Pearson's correlation over pictures x of the method's and the oracle's centred scores of group k
    variation the mean of r_k over groups, in [-1, 1]

It rewards knowing on which pictures the groups lie far apart, which scores in the oracle's own unit do more easily. On
*standardised* scores, each picture's centred ones over their standard deviation over the groups, only the pattern
counts, as in a correlation over the groups of each picture.

`others`: r_k over the pictures that are not group k's own: it did not draw them, and none of its words are in their
prompt (`fair.others`; groups share words). A group whose scores are constant has r_k = 0.

Intervals are 95% ones by the jackknife (Tukey 1958), with theta_i the figure without the i-th of n:

    theta +- t(0.975, n - 1) sqrt((n - 1) / n  sum_i (theta_i - mean theta)^2)

A percentile bootstrap covers too seldom: of correlations over some 70 pictures, some of which count for much, and of
eight artists. Over pictures, one picture is left out at a time (of more than 1,000, a thousandth of them). Over
artists, a whole group is: its own r_k and all pictures that were made of it (a blend belongs to the group that gave it
most words).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from scipy.stats import t

DRAWS, SEED = 2000, 0
PARTS = 1000  # of the pictures, at most, that are left out in turn
LEAST = 1e-12  # of the variance, relative to the mean square: below it scores are constant
ROUNDING = 1e-6  # of a difference: below it the scores are the same, in float32


def _centred(scores: np.ndarray) -> np.ndarray:
    s = scores.astype(float)
    return s - s.mean(axis=1, keepdims=True)


def standardised(scores: np.ndarray) -> np.ndarray:
    """(Q, G): each picture's scores less their mean, over their standard deviation; 0 where all are equal."""
    s = _centred(scores)
    spread = s.std(axis=1, keepdims=True)
    size = np.abs(scores.astype(float)).max(axis=1, keepdims=True)
    return np.divide(s, spread, out=np.zeros_like(s), where=spread > LEAST * size)


def correlations(scores: np.ndarray, oracle: np.ndarray, weights: np.ndarray, at: np.ndarray) -> np.ndarray:
    """(B, G): each group's weighted correlation over pictures. scores, oracle: (Q, G); weights: (B, Q), how often each
    picture counts; at: (Q, G) bool, the pictures that count for a group. 0 where a side is constant."""
    x, y = _centred(scores) * at, _centred(oracle) * at
    n = np.maximum(weights @ at.astype(float), 1.0)
    mx, my = weights @ x / n, weights @ y / n
    xx, yy, xy = weights @ (x * x) / n, weights @ (y * y) / n, weights @ (x * y) / n
    vx, vy = xx - mx**2, yy - my**2
    varies = (vx > LEAST * xx) & (vy > LEAST * yy)
    return np.divide(xy - mx * my, np.sqrt(np.maximum(vx * vy, 0.0)), out=np.zeros_like(xy), where=varies)


@lru_cache(maxsize=8)
def picture_weights(n: int) -> np.ndarray:
    """(DRAWS, n): how often a resampling of the pictures holds each, the same ones as `metrics.bootstrap`."""
    drawn = np.random.default_rng(SEED).integers(0, n, (DRAWS, n))
    return np.stack([np.bincount(d, minlength=n) for d in drawn]).astype(float)


def _jackknife(value: float, without: np.ndarray, most: float) -> dict[str, float]:
    """value: of all units; without: (n,), when each one is left out; +-most: what the figure can be. Of fewer than two
    units nothing is known: -most to most."""
    n = len(without)
    half = 2 * most if n < 2 else t.ppf(0.975, n - 1) * np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    return {"value": value, "low": float(max(-most, value - half)), "high": float(min(most, value + half))}


def p_of(difference: Mapping[str, float], pictures: int) -> float:
    """The two-sided p of the t test that a difference's interval over pictures stands for."""
    df = min(pictures, PARTS) - 1
    value, half = abs(difference["value"]), (difference["high"] - difference["low"]) / 2
    if df < 1 or half < ROUNDING:
        return float(df < 1 or value < ROUNDING)
    return float(2 * t.sf(value / half * t.ppf(0.975, df), df))


Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (B, Q) weights of pictures, (B, G) of groups -> (B,)


def of_all(statistic: Statistic, pictures: int, groups: int) -> float:
    """The statistic of all pictures and groups alike."""
    return float(statistic(np.ones((1, pictures)), np.ones((1, groups)))[0])


def over_pictures(statistic: Statistic, pictures: int, groups: int, most: float = 2.0) -> dict[str, float]:
    """The statistic's value, with its interval over pictures. most: its largest size, 1 of a correlation or a mean."""
    parts = min(pictures, PARTS)
    left = np.ones((parts, pictures))
    left[np.arange(pictures) % parts, np.arange(pictures)] = 0
    return _jackknife(of_all(statistic, pictures, groups), statistic(left, np.ones((parts, groups))), most)


def over_artists(statistic: Statistic, artist: Sequence[int], has: np.ndarray, most: float = 2.0) -> dict[str, float]:
    """The statistic's value, with its interval over artists. artist: of each picture, the place of its group among all;
    has: (all groups,) bool, those that the statistic knows."""
    places = np.asarray(artist)
    units = np.flatnonzero(has | (np.bincount(places, minlength=len(has)) > 0))
    left = np.ones((len(units), len(has)))
    left[np.arange(len(units)), units] = 0
    value = of_all(statistic, len(places), int(has.sum()))
    return _jackknife(value, statistic(left[:, places], left[:, has]), most)


def variation(scores: np.ndarray, oracle: np.ndarray, at: np.ndarray | None = None) -> Statistic:
    """The variation as a statistic of weights. scores, oracle: (Q, G). at: (Q, G) bool; None = all pictures."""
    at = np.ones(scores.shape, bool) if at is None else at

    def statistic(pictures: np.ndarray, groups: np.ndarray) -> np.ndarray:
        r = correlations(scores, oracle, pictures, at)
        return (r * groups).sum(axis=1) / np.maximum(groups.sum(axis=1), 1.0)

    return statistic


def mean(per_picture: np.ndarray) -> Statistic:
    """The mean of a figure of each picture, (Q,), as a statistic of weights."""
    return lambda pictures, groups: pictures @ per_picture / np.maximum(pictures.sum(axis=1), 1.0)


def less(first: Statistic, second: Statistic) -> Statistic:
    """The paired difference of two statistics."""
    return lambda pictures, groups: first(pictures, groups) - second(pictures, groups)
