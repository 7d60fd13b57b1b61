"""Computes a report's answer again and says whether it is the same.

    equal             every score, interval, rank and status is bitwise the same
    within tolerance  every number a, now b, has |a - b| <= max(1e-3 max(|a|, |b|), 1e-3 for nats, 1e-3 of the largest
                      score for units without an absolute size); no status differs, and what follows from a number and
                      a threshold differs only where the two are as near
    different         anything else, or another picture, prompt, model, adapter, CLIP, group set or setting than the
                      report names, even if no number moved: then the report's account of itself is wrong

    in half precision (bfloat16 or float16, then or now) a number may also move by a sixth of its interval's width, but
    for cosines; and scope's statistic by 0.2

Why 1e-3: on the same machine and versions all is deterministic. Other hardware sums float32 in another order, which
moves each KL (hundreds of nats) by about 1e-6 of itself and a score, a difference of such sums, by up to about 1e-3
nats; that is far below any interval. In half precision a KL moves by some 1e-3 of itself, and a score by up to a third
of its standard error (assets/benchmarks/engine.json). Versions, hardware and dtype that differ are told and judged by
the numbers.

Where groups stopped early, the report's draws of each group are made again. The rule itself decides, as it did then;
the report's draws decide only where a value is too close to the rule's threshold to tell on other hardware.

The verdict on scope is made again, but of a picture that the model drew where the report has none, and so are the
scores under other captions. A picture that the model drew is drawn again, and an uploaded file that is in the report is
prepared again (`sources`). report.html is drawn again, if it is of this version. Not looked at: bars.png (a drawing of
scores.csv), without.png and where.png (strip and maps), and what docs/reference/formats.md names beside them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from guda_core import __version__
from guda_core.answers.other_captions import BEST
from guda_core.attribution import METHODS
from guda_core.errors import ImageError, OptionError, PromptError, ReportError
from guda_core.records import Attribution, Query
from guda_core.reports.bundle import RECORD, VALUES
from guda_core.reports.findings import MISSING, Change, Doing, Outcome, Path, Verdict, differing, flat
from guda_core.reports.opened import tell
from guda_core.reports.page import is_same_page, page
from guda_core.reports.page_tables import PAGE
from guda_core.reports.read import Report
from guda_core.reports.record import method_record, to_json
from guda_core.reports.restore import attributions, pixels, shown
from guda_core.reports.scope_again import of_scope
from guda_core.reports.sources import drawn_again, from_file
from guda_core.service import Recorded, check_methods, scope_or_why

if TYPE_CHECKING:
    from guda_core.service import Service

RELATIVE = 1e-3
ABSOLUTE = {"nats": 1e-3}
NO_OFFSET_ERROR = "0.1."  # versions whose intervals do not hold the error of offsets
NUMBERS = ("score", "low", "high")
AROUND_IT = ("versions", "hardware", "health", "validation")  # of a record: told where it differs
COARSE = ("bfloat16", "float16")  # types of models
COARSE_SHARE = 1 / 3  # of an interval's half-width that a number of such a model may move by
COARSE_RELATIVE = 0.05  # and a value, of itself, or in nats; in units without a size, of the largest
SUMS = (("lam",),)  # settings that are sums in float64, whose last digits are the processor's: close is the same
ENVIRONMENT = (  # of a method's settings: told, not judged
    ("dtype",), ("device",), ("switching",), ("budget", "batch"), ("code_sha256",), ("package_version",),
)  # fmt: skip


def _inputs(record: Mapping[str, Any]) -> dict[Path, Any]:
    """Path -> value of everything that decides an answer, and of the dtypes and devices that it names."""
    picture = {k: record["picture"][k] for k in ("pixels_sha256", "prompt")}
    kept = {k: record[k] for k in ("model", "clip", "adapters", "seed", "settings", "group_set")}
    return flat({"picture": picture, **kept, "methods": {m: _made_with(f) for m, f in record["methods"].items()}})


def _made_with(found: Mapping[str, Any]) -> dict[str, Any]:
    """What one method's answer was computed with. What ended it early follows from its numbers (`_moved`)."""
    s = found["sampling"]
    drawn = s and {k: v for k, v in s.items() if k != "reached"}
    return {"settings": found["settings"], "sampling": drawn}


def is_close(a: float, b: float, unit: str, *, scale: float = 0.0, width: float = 0.0) -> bool:
    """Are two numbers of a unit the same within what other hardware does to them?

    scale: the largest score beside them, for units without an absolute size: a kernel's sums cancel. width: of the
    interval, where the model ran in half precision (`is_coarse`); cosines are of an encoder that does not.
    """
    coarse = COARSE_SHARE * width / 2 if unit != "cosine" else 0.0
    return abs(a - b) <= max(RELATIVE * max(abs(a), abs(b)), ABSOLUTE.get(unit, RELATIVE * scale), coarse)


def _scale(found: Mapping[str, Any]) -> float:
    """The largest score of a method in a unit of no absolute size; 0 for cosines, which have one."""
    scores = [abs(s["score"]) for s in found["groups"].values() if s["score"] is not None]
    return 0.0 if found["unit"] == "cosine" else max(scores, default=0.0)


def is_coarse(*dtypes: str) -> bool:
    """Whether a model of one of these types ran in half precision."""
    return any(t in COARSE for t in dtypes)


def _moved(
    method: str,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    answer: Attribution | None = None,
    *,
    coarse: bool = False,
) -> list[Change]:
    """What differs in one method's answer. Its order may follow numbers that moved within tolerance, since that of a
    report is that of its scores (`read`). Whether the first is separable, and what ended it, may only where the number
    that decides it is within tolerance of its threshold.

    answer: that of now, with its values. coarse: the model ran in half precision."""
    if before["unit"] != now["unit"]:
        return [Change(f"{method}/unit", before["unit"], now["unit"])]
    out, ranks, scale = [], [], _scale(now)
    for g in dict.fromkeys([*before["groups"], *now["groups"]]):
        a, b = before["groups"].get(g), now["groups"].get(g)
        if a is None or b is None or a["status"] != b["status"]:
            out.append(Change(f"{method}/{g}", (a and a["status"]) or MISSING, (b and b["status"]) or MISSING))
            continue
        for key in NUMBERS:
            x, y = a[key], b[key]
            if x is not None and y is not None and float(x) != float(y):
                width = b["high"] - b["low"] if coarse else 0.0
                within = is_close(float(x), float(y), before["unit"], scale=scale, width=width)
                out.append(Change(f"{method}/{g}/{key}", float(x), float(y), within))
        if a["rank"] != b["rank"]:
            ranks.append(Change(f"{method}/{g}/rank", a["rank"], b["rank"]))
    explained = bool(out) and all(c.within for c in out)
    out += [replace(c, within=explained) for c in ranks]
    for key in ("runner_up", "separable", "reached"):
        x, y = ((r["sampling"] or {}).get(key) if key == "reached" else r[key] for r in (before, now))
        if x != y:
            follows = explained and None not in (x, y)
            if follows and key != "runner_up":
                follows = answer is not None and _is_close_call(answer, key, scale, coarse=coarse)
            out.append(Change(f"{method}/{key}", x, y, follows))
    return out


def _is_close_call(a: Attribution, key: str, scale: float, *, coarse: bool) -> bool:
    """Whether the first's score need move by no more than the tolerance for `separable` or `reached` to be another."""
    ranked = a.ranked()
    if len(ranked) < 2:
        return False
    x, y = (a.groups[g] for g in ranked[:2])
    halves = [((s.high or 0.0) - (s.low or 0.0)) / 2 for s in (x, y)]
    score = x.score or 0.0
    if a.kl is None:
        ends = [score - (y.score or 0.0) - math.hypot(*halves)]
    else:
        from guda_core.attribution.counterfactual import ahead  # loads torch

        ends = [ahead(a.kl, ranked, *(a.settings.get(k, {}) for k in ("offset", "offset_se"))).low]
    if key == "reached":
        ends.append(halves[0] - a.settings["budget"]["race"]["width"] * abs(score))
    width = 2 * halves[0] if coarse else 0.0
    return any(is_close(score, score - end, a.unit, scale=scale, width=width) for end in ends)


def compare(
    report: Mapping[str, Any], now: Mapping[str, Any], answers: Mapping[str, Attribution] | None = None
) -> Verdict:
    """Compare two records of format `record.FORMAT`: one from a report and one computed now. answers: those of now."""
    scores, coarse = list[Change](), is_coarse(*(r["model"]["dtype"] for r in (report, now)))
    for m in dict.fromkeys([*report["methods"], *now["methods"]]):
        if m in report["methods"] and m in now["methods"]:
            scores += _moved(m, report["methods"][m], now["methods"][m], (answers or {}).get(m), coarse=coarse)
        else:
            before, after = ("an answer" if m in r["methods"] else MISSING for r in (report, now))
            scores.append(Change(m, before, after))
    inputs, more = _judged_apart(differing(_inputs(report), _inputs(now)))
    around = differing(*(flat({k: r[k] for k in AROUND_IT}) for r in (report, now)))
    narrower = _narrower("intervals", recorded(report["methods"], report["versions"]["guda_core"]))
    told = [*narrower, *_otherwise_said(report, now), *around.values(), *more]
    return _also(Verdict("equal"), inputs=tuple(inputs), scores=tuple(scores), environment=tuple(told))


def _narrower(where: str, how: Recorded) -> tuple[Change, ...]:
    """That intervals are made without a part of their error, where they are."""
    before, now = "narrower, without the offset's error (version 0.1)", "computed in the same way"
    return () if how.offset_error else (Change(where, before, now),)


def _otherwise_said(report: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Sentences for people that are others now: limits, and why a group has no score or fewer draws. Another version
    may word them otherwise, so of it only that is told."""
    out = [Change("limits", s, MISSING) for s in report["limits"] if s not in now["limits"]]
    out += [Change("limits", MISSING, s) for s in now["limits"] if s not in report["limits"]]
    why = [_reasons(r["methods"]) for r in (report, now)]
    out += differing(*why).values()
    version = report["versions"]["guda_core"]
    if out and version != now["versions"]["guda_core"]:
        return [Change("limits, reasons", f"words of guda_core {version} (not checked)", "other words")]
    return out


def _reasons(methods: Mapping[str, Any]) -> dict[Path, str]:
    return {(m, g, "reason"): s["reason"] for m, found in methods.items() for g, s in found["groups"].items()}


def _judged_apart(differ: Mapping[Path, Change]) -> tuple[list[Change], list[Change]]:
    """Inputs that differ: those that are judged, and those that are told."""
    judged: list[Change] = []
    told: list[Change] = []
    for path, c in differ.items():
        own = _setting(path)
        is_told = path == ("model", "dtype") or own in ENVIRONMENT or (own in SUMS and _same_sum(c))
        (told if is_told else judged).append(c)
    return judged, told


def _setting(path: Path) -> Path:
    """What a path names within a method's settings, or within those of a part of it; () of other paths."""
    at = {"methods": 2, "captions": 3}.get(path[0], len(path))
    rest = path[at + 1 :] if path[at : at + 1] == ("settings",) else ()
    while len(rest) > 2 and rest[0] == "parts":
        rest = rest[2:]
    return rest


def _same_sum(c: Change) -> bool:
    """Whether a sum is the same but for its last digits."""
    return isinstance(c.before, float) and isinstance(c.now, float) and math.isclose(c.before, c.now, rel_tol=1e-9)


def _other_values(
    before: Mapping[str, np.ndarray], now: Mapping[str, Attribution], *, coarse: bool = False
) -> tuple[Change, ...]:
    """Arrays of values.npz that are not what is computed now, within the tolerance of nats, or for other units, of
    their largest value; whole numbers must be the same. coarse: as in `_moved`."""
    out = []
    arrays = {f"{m}/{key}": (b, a.unit) for m, a in now.items() for key, b in a.arrays().items()}
    for name in dict.fromkeys([*before, *arrays]):
        a, (b, unit) = before.get(name), arrays.get(name, (None, ""))
        if a is None or b is None or a.shape != b.shape:
            then, today = (MISSING if x is None else str(x.shape) for x in (a, b))
            out.append(Change(f"{VALUES}/{name}", then, today))
        elif not _close(a, b, unit, coarse=coarse):
            at = np.unravel_index(np.abs(a - b).argmax(), a.shape)
            out.append(Change(f"{VALUES}/{name}", float(a[at]), float(b[at])))
    return tuple(out)


def _close(a: np.ndarray, b: np.ndarray, unit: str, *, coarse: bool) -> bool:
    if np.issubdtype(b.dtype, np.integer):
        return np.array_equal(a, b)
    size = 1.0 if unit == "nats" else float(np.abs(b).max(initial=0.0))
    relative = COARSE_RELATIVE if coarse and unit != "cosine" else RELATIVE
    return np.allclose(a, b, rtol=relative, atol=relative * size)


def recorded(methods: Mapping[str, Any], version: str = __version__) -> Recorded:
    """How a report was computed. methods: of its record; version: that made it. Reports of before races name none, and
    all draws are made again. Those of before intervals held the error of the offsets name the offsets alone."""
    settings = [f["settings"] for f in methods.values()]
    paths = flat({m: _made_with(f) for m, f in methods.items()}, ("methods",))
    raced = any(_setting(p)[:2] == ("budget", "race") for p in paths)
    draws = {}
    for m, found in methods.items():
        if s := found["sampling"]:
            draws[m] = {g: s.get("fewer", {}).get(g, s["draws"]) for g in found["groups"]}
    without_error = any(s.get("offset") and "offset_se" not in s for s in settings)
    return Recorded(raced, draws, not (without_error and version.startswith(NO_OFFSET_ERROR)))


def _check_known(asked: Sequence[str], service: Service) -> None:
    """Raises OptionError for a method that this installation does not have, and says where such a one comes from."""
    known = {*service.methods(), *service.provenance().not_offered}
    if unknown := [m for m in dict.fromkeys(asked) if m not in known]:
        raise OptionError(
            f"This report has answers of {', '.join(unknown)}, unknown here: from another version of guda, or from a "
            "package that adds methods to it. Install that on this machine, then replay the report."
        )


def replay(report: Report, service: Service) -> Iterator[Doing | Verdict]:
    """Compute a report's answer again with this service: yields what it is at, then the Verdict.

    Raises:
        ReportError: its picture is not the one that it names, its picture or prompt is refused, or it is of a
            computation that was stopped.
        OptionError: it asks for a method or an effort that is unknown or not offered here.
    """
    record = report.record
    parts = [*record["methods"].values(), *(t["answer"] for t in record.get("captions", ()))]
    unfinished = [m for m in record["settings"]["methods"] if m not in record["methods"]]
    if unfinished or any(found["progress"] < 1 for found in parts):
        raise ReportError("This report is of a computation that was stopped early, which cannot be repeated.")
    asked = [*record["settings"]["methods"], *(t["method"] for t in record.get("captions", ()))]
    _check_known(asked, service)
    check_methods(asked, service.methods(), service.provenance().not_offered)
    pixels(report)  # so that the picture that is scored is the one that is shown
    try:
        query = service.prepare(report.picture, prompt=record["picture"]["prompt"])
    except (ImageError, PromptError) as e:
        raise ReportError(f"The report's picture or prompt is refused. {e}") from e
    coarse = is_coarse(record["model"]["dtype"], service.provenance().dtype)
    for_people = _page(report, service)
    sources, beside = from_file(report, service)
    sources += yield from drawn_again(report, service, coarse=coarse)
    settings = {k: record["settings"][k] for k in ("effort", "methods")}
    made_by, final = record["versions"]["guda_core"], dict[str, Attribution]()
    for a in service.attribute(query, **settings, recorded=recorded(record["methods"], made_by)):
        final[a.method] = a
        yield Doing(service.methods()[a.method].name, a.progress, a.method)
    now = to_json(query, list(final.values()), service.group_set, provenance=service.provenance(), settings=settings)
    verdict = _also(compare(record, json.loads(json.dumps(now)), final), inputs=sources, environment=beside)
    verdict = _also(verdict, **for_people)
    if report.is_bare:
        names = [VALUES, *{PAGE} & set(record["files"])]
        verdict = _also(verdict, environment=tuple(Change(n, "not there", "not looked at") for n in names))
    else:
        verdict = _also(verdict, scores=_other_values(report.values, final, coarse=coarse))
    captions = yield from _captions(report, service, query, coarse=coarse)
    verdict = _also(verdict, **captions)
    if record["scope"] is not None or "drawn" not in record["picture"]:
        verdict = _also(verdict, **of_scope(record, scope_or_why(service, query), coarse=coarse))
    yield verdict


def _page(report: Report, service: Service) -> dict[str, tuple[Change, ...]]:
    """Whether the page for people is the one that the record gives, by its kind. That of another version is not drawn
    here. One that may say the same in other words - of a version in the making, or with methods of other packages,
    whose names no record holds - is told, not judged."""
    there, version = report.more.get(PAGE), report.record["versions"]["guda_core"]
    if there is None:
        return {}
    if version != __version__:
        return {"environment": (Change(PAGE, f"a page of guda_core {version}", "not checked"),)}
    told = tell(report.record, attributions(report), service.methods(), shown(report))
    same = is_same_page(there, page(told, pixels(report)))
    certain = ".dev" not in version and report.record["methods"].keys() <= METHODS.own
    change = Change(PAGE, f"not what {RECORD} says", "drawn from it")
    return {} if same else {"scores" if certain else "environment": (change,)}


def _also(
    verdict: Verdict,
    *,
    inputs: tuple[Change, ...] = (),
    scores: tuple[Change, ...] = (),
    scope: tuple[Change, ...] = (),
    environment: tuple[Change, ...] = (),
) -> Verdict:
    """The verdict with changes more: inputs and scores are judged, scope and environment are told."""
    outcome: Outcome = verdict.outcome
    if any(not c.within for c in (*inputs, *scores)):
        outcome = "different"
    elif (inputs or scores) and outcome == "equal":
        outcome = "within tolerance"
    more = {"inputs": inputs, "scores": scores, "scope": scope, "environment": environment}
    return Verdict(outcome, **{kind: (*getattr(verdict, kind), *changes) for kind, changes in more.items()})


def _captions(
    report: Report, service: Service, query: Query, *, coarse: bool
) -> Generator[Doing, None, dict[str, tuple[Change, ...]]]:
    """Score the picture again under the other captions of a report; returns what differs, by its kind.

    Raises:
        ReportError: a caption is refused.
    """
    effort, made_by = report.record["settings"]["effort"], report.record["versions"]["guda_core"]
    scores, narrower = list[Change](), list[Change]()
    differ = dict[Path, Change]()
    for told in report.record.get("captions", ()):
        method, before, path = told["method"], told["answer"], ("captions", told["label"], told["method"])
        try:
            other = service.with_prompt(query, told["prompt"])
        except PromptError as e:
            raise ReportError(f"A caption of the report is refused. {e}") from e
        if told["label"] == BEST and (best := service.best_caption(query)) != told["prompt"]:
            differ[path[:2]] = Change(f"captions/{BEST}", told["prompt"], best or MISSING)
        last, how = None, recorded({method: before}, made_by)
        narrower += _narrower("/".join((*path, "intervals")), how)
        for last in service.attribute(other, methods=[method], effort=effort, recorded=how):
            yield Doing(f"{service.methods()[method].name}, {told['label']}", last.progress, method)
        assert last is not None
        now = json.loads(json.dumps(method_record(last)))
        scores += _moved("/".join(path), before, now, last, coarse=coarse)
        differ |= differing(*(flat(_made_with(r), path) for r in (before, now)))
    judged, told_only = _judged_apart(differ)
    return {"scores": tuple(scores), "inputs": tuple(judged), "environment": (*narrower, *told_only)}
