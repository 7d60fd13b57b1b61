"""Computes a report's answer again and says whether it is the same.

    equal             every score, interval, rank and status is bitwise the same
    within tolerance  every number a, now b, has |a - b| <= max(1e-3 max(|a|, |b|), 1e-3 for nats, 1e-3 of the largest
                      score for units without an absolute size); no status differs
    different         anything else, or another picture, prompt, model, adapter, CLIP, group set or setting than the
                      report names, even if no number moved: then the report's account of itself is wrong

    in half precision (bfloat16 or float16, then or now) a number of a method in nats may also move by a sixth of its
    interval's width

Why 1e-3: on the same machine and versions all is deterministic. Other hardware sums float32 in another order, which
moves each KL (hundreds of nats) by about 1e-6 of itself and a score, a difference of such sums, by up to about 1e-3
nats; that is far below any interval. In half precision a KL moves by some 1e-3 of itself, and a score by up to a third
of its standard error (assets/benchmarks/engine.json). Versions, hardware and dtype that differ are told and judged by
the numbers.

Where groups stopped early, the report's draws of each group are made again. The rule itself decides, as it did then;
the report's draws decide only where a value is too close to the rule's threshold to tell on other hardware.

The verdict on scope is made again where the report has one, and so are the scores under other captions. A picture that
the model drew is drawn again, and an uploaded file that is in the report is prepared again (`sources`). Not looked at:
bars.png and report.html (drawings of scores.csv and of the record), without.png and where.png (strip and maps), health
and validation, which were measured once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from guda_core.answers.other_captions import BEST
from guda_core.errors import ImageError, OptionError, PromptError, ReportError, ScoreError
from guda_core.records import Attribution, Query, Scope
from guda_core.reports.bundle import VALUES
from guda_core.reports.findings import MISSING, Change, Doing, Outcome, Verdict
from guda_core.reports.read import Report
from guda_core.reports.record import method_record, to_json
from guda_core.reports.restore import pixels
from guda_core.reports.sources import drawn_again, from_file
from guda_core.service import Recorded, check_methods

if TYPE_CHECKING:
    from guda_core.service import Service

RELATIVE = 1e-3
ABSOLUTE = {"nats": 1e-3}
SCOPE = 1e-3  # of the statistic of scope, which is a logarithm of odds
NUMBERS = ("score", "low", "high")
COARSE = ("bfloat16", "float16")  # types of models
COARSE_SHARE = 1 / 3  # of an interval's half-width that a number of such a model may move by
COARSE_RELATIVE = 0.05  # and a KL value, of itself, or in nats
SUMS = ("lam",)  # inputs that are sums in float64, whose last digits are the processor's: close is the same
ENVIRONMENT = ("dtype", "device", "batch", "switching")  # told, not judged, wherever they stand


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Leaves of nested objects by their path; a list is one leaf."""
    if not isinstance(value, Mapping):
        return {path: value}
    return {p: v for k, x in value.items() for p, v in _flat(x, f"{path}/{k}" if path else str(k)).items()}


def _inputs(record: Mapping[str, Any]) -> dict[str, Any]:
    """Path -> value of everything that decides an answer, and of the dtypes and devices that it names."""
    picture = {k: record["picture"][k] for k in ("pixels_sha256", "prompt")}
    kept = {k: record[k] for k in ("model", "clip", "adapters", "seed", "settings", "group_set")}
    settings = {m: {"settings": found["settings"]} for m, found in record["methods"].items()}
    return _flat({"picture": picture, **kept, "methods": settings})


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    paths = list(dict.fromkeys([*before, *now]))
    pairs = [(p, before.get(p, MISSING), now.get(p, MISSING)) for p in paths]
    return [Change(p, a, b) for p, a, b in pairs if a != b]


def is_close(a: float, b: float, unit: str, *, scale: float = 0.0, width: float = 0.0) -> bool:
    """Are two numbers of a unit the same within what other hardware does to them?

    scale: the largest score beside them, for units without an absolute size: a kernel's sums cancel. width: of the
    interval, where the model ran in half precision (`is_coarse`).
    """
    coarse = COARSE_SHARE * width / 2 if unit == "nats" else 0.0
    return abs(a - b) <= max(RELATIVE * max(abs(a), abs(b)), ABSOLUTE.get(unit, RELATIVE * scale), coarse)


def _scale(found: Mapping[str, Any]) -> float:
    """The largest score of a method in a unit of no absolute size; 0 for cosines, which have one."""
    scores = [abs(s["score"]) for s in found["groups"].values() if s["score"] is not None]
    return 0.0 if found["unit"] == "cosine" else max(scores, default=0.0)


def is_coarse(*dtypes: str) -> bool:
    """Whether a model of one of these types ran in half precision."""
    return any(t in COARSE for t in dtypes)


def _is_coarse(*records: Mapping[str, Any]) -> bool:
    return is_coarse(*(r["model"]["dtype"] for r in records))


def _moved(method: str, before: Mapping[str, Any], now: Mapping[str, Any], *, coarse: bool = False) -> list[Change]:
    """What differs in one method's answer; order and separation may follow numbers that moved within tolerance.

    coarse: the model ran in half precision."""
    if before["unit"] != now["unit"]:
        return [Change(f"{method}/unit", before["unit"], now["unit"])]
    out, follows, scale = [], [], _scale(before)
    for g in dict.fromkeys([*before["groups"], *now["groups"]]):
        a, b = before["groups"].get(g), now["groups"].get(g)
        if a is None or b is None or a["status"] != b["status"]:
            out.append(Change(f"{method}/{g}", (a and a["status"]) or MISSING, (b and b["status"]) or MISSING))
            continue
        for key in NUMBERS:
            x, y = a[key], b[key]
            if x is not None and y is not None and float(x) != float(y):
                width = a["high"] - a["low"] if coarse and before["unit"] == "nats" else 0.0
                within = is_close(float(x), float(y), before["unit"], scale=scale, width=width)
                out.append(Change(f"{method}/{g}/{key}", float(x), float(y), within))
        if a["rank"] != b["rank"]:
            follows.append(Change(f"{method}/{g}/rank", a["rank"], b["rank"], True))
    follows += [
        Change(f"{method}/{key}", before[key], now[key], True)
        for key in ("separable", "runner_up")
        if before[key] != now[key]
    ]
    explained = bool(out) and all(c.within for c in out)
    return out + [Change(c.where, c.before, c.now, explained) for c in follows]


def compare(report: Mapping[str, Any], now: Mapping[str, Any]) -> Verdict:
    """Compare two records of format `record.FORMAT`: one from a report and one computed now."""
    scores: list[Change] = []
    for m in dict.fromkeys([*report["methods"], *now["methods"]]):
        if m in report["methods"] and m in now["methods"]:
            scores += _moved(m, report["methods"][m], now["methods"][m], coarse=_is_coarse(report, now))
        else:
            before, after = ("an answer" if m in r["methods"] else MISSING for r in (report, now))
            scores.append(Change(m, before, after))
    inputs, more = _judged_apart(_changes(_inputs(report), _inputs(now)))
    told = [*_changes(*(_flat({k: r[k] for k in ("versions", "hardware")}) for r in (report, now))), *more]
    return _also(Verdict("equal"), inputs=tuple(inputs), scores=tuple(scores), environment=tuple(told))


def _judged_apart(differ: Sequence[Change]) -> tuple[list[Change], list[Change]]:
    """Inputs that differ: those that are judged, and those that are told."""
    judged: list[Change] = []
    told: list[Change] = []
    for c in differ:
        is_told = c.where.rpartition("/")[2] in ENVIRONMENT or _same_sum(c)
        (told if is_told else judged).append(c)
    return judged, told


def _same_sum(c: Change) -> bool:
    """Whether an input is one of the sums, and is the same but for its last digits."""
    numbers = isinstance(c.before, float) and isinstance(c.now, float)
    return c.where.rpartition("/")[2] in SUMS and numbers and math.isclose(c.before, c.now, rel_tol=1e-9)


def _other_values(
    before: Mapping[str, np.ndarray], now: Mapping[str, Attribution], *, coarse: bool = False
) -> tuple[Change, ...]:
    """Arrays of values.npz that are not what is computed now, within the tolerance of nats, or for units without an
    absolute size, of their largest value; whole numbers must be the same. coarse: as in `_moved`."""
    out = []
    arrays = {m: a.arrays() for m, a in now.items()}
    for name, a in before.items():
        method, _, key = name.partition("/")
        b = arrays.get(method, {}).get(key)
        if b is None or a.shape != b.shape:
            out.append(Change(f"{VALUES}/{name}", str(a.shape), str(b.shape) if b is not None else MISSING))
        elif not _close(a, b, now[method].unit, coarse=coarse):
            at = np.unravel_index(np.abs(a - b).argmax(), a.shape)
            out.append(Change(f"{VALUES}/{name}", float(a[at]), float(b[at])))
    return tuple(out)


def _close(a: np.ndarray, b: np.ndarray, unit: str, *, coarse: bool) -> bool:
    if coarse and unit == "nats" and not np.issubdtype(b.dtype, np.integer):
        return np.allclose(a, b, rtol=COARSE_RELATIVE, atol=COARSE_RELATIVE)
    if np.issubdtype(b.dtype, np.integer):
        return np.array_equal(a, b)
    size = float(np.abs(b).max(initial=0.0))
    return np.allclose(a, b, rtol=RELATIVE, atol=ABSOLUTE.get(unit, RELATIVE * size))


def _scoped(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Change, ...]:
    """Where the verdict on scope and its statistic are not what a report says; a verdict may follow from a statistic
    that moved within tolerance."""
    a, b = ({f"scope/{k}": s.get(k) for k in ("verdict", "value")} for s in (before, now))
    numbers = [v for s in (a, b) if isinstance(v := s["scope/value"], int | float)]
    close = len(numbers) == 2 and numbers[0] != numbers[1] and math.isclose(*numbers, rel_tol=RELATIVE, abs_tol=SCOPE)
    return tuple(replace(c, within=close) for c in _changes(a, b))


def _judged(verdict: Verdict, before: Mapping[str, Any], now: Scope) -> Verdict:
    """The verdict with what the scope adds to it. Where the rule is another than the report's, or there is none, it is
    told and not judged."""
    found = _scoped(before, asdict(now))
    rule = {k: s.get("settings", {}).get("sha256") for k, s in (("then", before), ("now", asdict(now)))}
    if now.verdict == "not assessed":
        return _also(verdict, environment=found)
    if rule["then"] != rule["now"]:  # another rule made that verdict
        return _also(verdict, environment=(Change("scope/rule", rule["then"], rule["now"]), *found))
    return _also(verdict, scores=found)


def recorded(methods: Mapping[str, Any]) -> Recorded:
    """How a report was computed. methods: of its record. Reports of before races name none, and all draws are made
    again. Reports of before intervals held the error of the offsets name the offsets alone."""
    raced = any("/budget/race/" in f"/{path}" for path in _flat({m: f["settings"] for m, f in methods.items()}))
    draws = {}
    for m, found in methods.items():
        if s := found["sampling"]:
            draws[m] = {g: s.get("fewer", {}).get(g, s["draws"]) for g in found["groups"]}
    settings = [f["settings"] for f in methods.values()]
    return Recorded(raced, draws, not any("offset" in s and "offset_se" not in s for s in settings))


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
    sources, beside = from_file(report, service)
    sources += yield from drawn_again(report, service, coarse=coarse)
    settings = {k: record["settings"][k] for k in ("effort", "methods")}
    final: dict[str, Attribution] = {}
    for a in service.attribute(query, **settings, recorded=recorded(record["methods"])):
        final[a.method] = a
        yield Doing(service.methods()[a.method].name, a.progress, a.method)
    now = to_json(query, list(final.values()), service.group_set, provenance=service.provenance(), settings=settings)
    verdict = _also(compare(record, json.loads(json.dumps(now))), inputs=sources, environment=beside)
    verdict = _also(verdict, scores=_other_values(report.values, final, coarse=coarse))
    captions = yield from _captions(report, service, query, coarse=coarse)
    verdict = _also(verdict, **captions)
    from_nowhere = record["picture"]["file_sha256"] is None and "drawn" not in record["picture"]
    if record["scope"] is not None or from_nowhere:
        try:
            scope = service.scope(query)
        except ScoreError as e:
            scope = Scope("not assessed", None, None, "", str(e))
        if record["scope"] is not None:
            verdict = _judged(verdict, record["scope"], scope)
        if from_nowhere:
            said = (Change("picture", "from no file, and not said how it was drawn", scope.verdict),)
            verdict = _also(verdict, environment=said)
    yield verdict


def _also(
    verdict: Verdict,
    *,
    inputs: tuple[Change, ...] = (),
    scores: tuple[Change, ...] = (),
    environment: tuple[Change, ...] = (),
) -> Verdict:
    """The verdict with changes more: inputs and scores are judged, the environment is told."""
    outcome: Outcome = verdict.outcome
    if any(not c.within for c in (*inputs, *scores)):
        outcome = "different"
    elif (inputs or scores) and outcome == "equal":
        outcome = "within tolerance"
    all_of_them = [
        (*a, *b) for a, b in ((verdict.scores, scores), (verdict.inputs, inputs), (verdict.environment, environment))
    ]
    return Verdict(outcome, *all_of_them)


def _captions(
    report: Report, service: Service, query: Query, *, coarse: bool
) -> Generator[Doing, None, dict[str, tuple[Change, ...]]]:
    """Score the picture again under the other captions of a report; returns what differs, by its kind.

    Raises:
        ReportError: a caption is refused.
    """
    effort, scores, differ = report.record["settings"]["effort"], [], []
    for told in report.record.get("captions", ()):
        method, before, path = told["method"], told["answer"], f"captions/{told['label']}/{told['method']}"
        try:
            other = service.with_prompt(query, told["prompt"])
        except PromptError as e:
            raise ReportError(f"A caption of the report is refused. {e}") from e
        if told["label"] == BEST and (best := service.best_caption(query)) != told["prompt"]:
            differ.append(Change(f"captions/{BEST}", told["prompt"], best or MISSING))
        last = None
        for last in service.attribute(other, methods=[method], effort=effort, recorded=recorded({method: before})):
            yield Doing(f"{service.methods()[method].name}, {told['label']}", last.progress, method)
        assert last is not None
        now = json.loads(json.dumps(method_record(last)))
        scores += _moved(path, before, now, coarse=coarse)
        parts = ({f"{path}/{k}": r[k] for k in ("settings", "sampling")} for r in (before, now))
        differ += _changes(*map(_flat, parts))
    judged, told_only = _judged_apart(differ)
    return {"scores": tuple(scores), "inputs": tuple(judged), "environment": tuple(told_only)}
