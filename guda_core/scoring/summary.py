"""What a table of results says as a whole, and how that is said.

A picture "counts for" the group of rank 1, by each method. Pictures that the model could not have made count for none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from guda_core.errors import LACKS
from guda_core.scoring.listing import as_text
from guda_core.scoring.table_rows import FAILED, REFUSED

Query = Callable[..., list[tuple[Any, ...]]]  # `Results.query`
REASONS = 20  # that a summary lists
COUNTS = "scope IS DISTINCT FROM 'out of scope' AND status = 'ok'"


@dataclass(frozen=True)
class First:
    """How often a group is the first by a method. pictures: so often; apart: of these, so often it is clear of
    the second and, in nats, stands out (`Attribution.stands_out`). None: the method does not tell."""

    group_id: str
    name: str
    pictures: int
    apart: int | None


@dataclass(frozen=True)
class Silent:
    """Of a method: so many `pictures`, of so many that it was asked for, have no score of any group by it, or not of
    all because memory lacked. scored: have a score. lacked: memory was short. why: a lack of memory, else the commonest
    reason."""

    pictures: int
    of: int
    scored: int
    lacked: bool
    why: str


@dataclass(frozen=True)
class Summary:
    """What a table says as a whole, in numbers of pictures.

    scored, no_score, refused, failed: of `pictures`; no_score: no method had a score for any group. reasons: (status,
    reason) -> pictures, the commonest first. scopes: verdict -> pictures. firsts: method -> its groups, the most
    frequent first. unavailable: group -> why it has no score. cut: parts that are not whole or not of this table.
    made_from: model, settings. caveats: sentences that have to be said beside these scores. silent: method -> pictures
    that it has no score for.
    """

    pictures: int
    rows: int
    scored: int
    no_score: int
    refused: int
    failed: int
    reasons: Mapping[tuple[str, str], int]
    scopes: Mapping[str, int]
    firsts: Mapping[str, list[First]]
    unavailable: Mapping[str, str]
    cut: int = 0
    made_from: Mapping[str, Any] = field(default_factory=dict, repr=False)
    caveats: Sequence[str] = ()
    silent: Mapping[str, Silent] = field(default_factory=dict)

    def told(self) -> list[str]:
        """What has to be said beside the numbers."""
        return [s for s in (no_score_said(self.no_score), *silent_said(self.silent), *self.caveats) if s]

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        made = {k: self.made_from.get(k) for k in ("model", "group_set", "settings", "versions")}
        if isinstance(made["group_set"], dict):
            made["group_set"] = {k: made["group_set"].get(k) for k in ("id", "name")}
        return {
            **{k: getattr(self, k) for k in ("pictures", "rows", "scored", "no_score", "refused", "failed")},
            "reasons": [{"status": s, "reason": r, "pictures": n} for (s, r), n in self.reasons.items()],
            "scope": dict(self.scopes),
            "first": {m: [vars(f) for f in found] for m, found in self.firsts.items()},
            "unavailable": dict(self.unavailable),
            "without_scores": {m: vars(s) for m, s in self.silent.items()},
            "parts_cut_short": self.cut,
            "caveats": list(self.caveats),
            **made,
        }


def summary_of(
    query: Query, methods: Sequence[str], made_from: Mapping[str, Any], *, cut: int, caveats: Sequence[str]
) -> Summary:
    """What a table says as a whole; to be asked within `Results.at_once`."""
    ((rows, pictures, scored, refused, failed),) = query(  # at once, so that the numbers add up
        "SELECT count(*), count(DISTINCT picture), count(DISTINCT picture) FILTER (status = 'ok'), "
        f"count(*) FILTER (status = '{REFUSED}'), count(*) FILTER (status = '{FAILED}') FROM scores"
    )
    reasons = query(
        f"SELECT status, reason, count(*) AS n FROM scores WHERE status IN ('{REFUSED}', '{FAILED}') "
        f"GROUP BY 1, 2 ORDER BY n DESC, 2 LIMIT {REASONS}"
    )
    scopes = query(
        "SELECT scope, count(DISTINCT picture) AS n FROM scores WHERE scope IS NOT NULL GROUP BY 1 ORDER BY n DESC"
    )
    away = query("SELECT group_name, any_value(reason) FROM scores WHERE status = 'unavailable' GROUP BY 1")
    return Summary(
        pictures,
        rows,
        scored,
        pictures - scored - refused - failed,
        refused,
        failed,
        {(s, r): n for s, r, n in reasons},
        dict(scopes),
        _firsts(query, methods, made_from),
        dict(sorted(away)),
        cut,
        made_from,
        caveats,
        silent_of(query),
    )


def _firsts(query: Query, methods: Sequence[str], made_from: Mapping[str, Any]) -> dict[str, list[First]]:
    known = list(offsets(made_from))
    given = ", ".join(["(?, ?, ?)"] * len(known)) or "(NULL, NULL, NULL)"
    found = query(
        "WITH offsets AS (SELECT m::VARCHAR AS m, g::VARCHAR AS g, value::DOUBLE AS value "
        f"FROM (VALUES {given}) AS given(m, g, value)) "
        "SELECT method, group_id, any_value(group_name), count(*) FILTER (rank = 1) AS n, "
        "CASE WHEN bool_or(told_apart IS NOT NULL) THEN count(*) FILTER (rank = 1 AND told_apart AND "
        "(unit <> 'nats' OR low > greatest(0.0, coalesce(value, 0.0)))) END "
        "FROM scores LEFT JOIN offsets ON m = method AND g = group_id "
        f"WHERE {COUNTS} GROUP BY 1, 2 ORDER BY n DESC, 2",
        [v for row in known for v in row],
    )
    out: dict[str, list[First]] = {m: [] for m in methods}
    for method, *rest in found:
        out[method].append(First(*rest))
    return out


def offsets(made_from: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """(method, group, its offset in nats) of what a table was made from; what is no number is left out."""
    methods = made_from.get("made_from")
    for m, made in methods.items() if isinstance(methods, Mapping) else ():
        offset = made.get("offset") if isinstance(made, Mapping) else None
        for g, v in offset.items() if isinstance(offset, Mapping) else ():
            if isinstance(v, int | float) and abs(v) < 1e300:
                yield as_text(m), as_text(g), float(v)


def silent_of(query: Query) -> dict[str, Silent]:
    """`Results.silent`."""
    found = query(
        "WITH asked AS (SELECT method, bool_or(status = 'ok') AS scored, bool_or(contains(reason, $lacks)) AS lacks, "
        "mode(reason) FILTER (status <> 'ok') AS why FROM scores WHERE method IS NOT NULL GROUP BY picture, method) "
        "SELECT method, count(*) FILTER (NOT scored OR lacks) AS n, count(*), count(*) FILTER (scored), "
        "bool_or(lacks), mode(why) FILTER (NOT scored) FROM asked GROUP BY 1 HAVING n > 0 ORDER BY 1",
        {"lacks": LACKS},
    )
    return {
        str(method): Silent(n, of, scored, bool(lacks), LACKS if lacks else str(why or ""))
        for method, n, of, scored, lacks, why in found
    }


def silent_said(silent: Mapping[str, Silent]) -> list[str]:
    """A sentence for each method that lacks scores."""
    return [f"{_lack(s)} by {m}. {s.why}".strip() for m, s in silent.items()]


def _lack(s: Silent) -> str:
    if not s.scored:
        return "No picture has a score"
    return f"{s.pictures:,} of {s.of:,} pictures {'lacks' if s.pictures == 1 else 'lack'} scores"


def no_score_said(n: int) -> str:
    """A sentence on pictures for which no method had a score; "" for none."""
    return f"{n:,} of them {'has' if n == 1 else 'have'} no score by any method." if n else ""


def left_out(cut: int) -> str:
    """A sentence on parts that are left out."""
    are, they = ("part is", "it is") if cut == 1 else ("parts are", "they are")
    return f"{cut:,} {are} left out: {they} not whole, or not of this table. Run the command that made it again."
