"""Replay: equal, within tolerance, different and where; and every way in which a report can be broken is refused."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import json
import pickle
import re
import shutil
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from guda_core.cli import app
from guda_core.data.images import hash_pixels
from guda_core.diffusion.cards import DEFAULT_MODEL
from guda_core.errors import OptionError, ReportError, ScoreError
from guda_core.records import Attribution, GroupScore, Scope
from guda_core.reports import bundle
from guda_core.reports.findings import MOST, Change, Verdict, differences, differing, flat
from guda_core.reports.opened import tell
from guda_core.reports.page import page
from guda_core.reports.read import MAX_ZIP, Report, read_report
from guda_core.reports.record import NOT_ASSESSED
from guda_core.reports.replay import _inputs, _is_close_call, _other_values, compare, is_close, replay
from guda_core.reports.restore import attributions, pixels
from guda_core.reports.unzip import unzip
from tests.light import MISSING, SETTINGS, LightService, draw, in_order, sha


@pytest.fixture
def service():
    return LightService()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> bytes:
    """A report as it is written."""
    service, folder = LightService(), tmp_path_factory.mktemp("report")
    query = service.prepare(draw(folder / "p.png", side=32).read_bytes(), prompt="cat, flat colours")
    answers = list({a.method: a for a in service.attribute(query, **SETTINGS)}.values())
    scope = dataclasses.asdict(service.scope(query))
    about = {"provenance": service.provenance(), "settings": SETTINGS, "scope": scope}
    bundle.write(folder / "r.zip", bundle.make(query, answers, service.group_set, **about))
    return (folder / "r.zip").read_bytes()


@pytest.fixture
def path(made, tmp_path):
    """The report on the disk, beside its picture."""
    draw(tmp_path / "p.png", side=32)
    (tmp_path / "r.zip").write_bytes(made)
    return tmp_path / "r.zip"


def files_of(path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as z:
        return {n: z.read(n) for n in z.namelist()}


def put(path, files: dict[str, bytes], *, rehash: bool = True) -> None:
    """Write a zip of the files; rehash: as a careful forger, who also corrects the hashes in report.json, and leaves
    the page out, which says what it said."""
    if rehash:
        files = {n: data for n, data in files.items() if n != "report.html"}
        record = json.loads(files["report.json"])
        record["files"] = {n: hashlib.sha256(files[n]).hexdigest() for n in files if n != "report.json"}
        files = {**files, "report.json": json.dumps(record).encode()}
    path.write_bytes(bundle.zipped(files))


def verdict(report: Report, service) -> Verdict:
    *answers, last = replay(report, service)
    assert all(a.progress <= 1 for a in answers) and isinstance(last, Verdict)
    return last


def changed(path, *keys: str, to: object) -> None:
    """Set one value of report.json, as a careful forger: in the table too."""
    files = files_of(path)
    record = json.loads(files["report.json"])
    at = record
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = to
    if keys[-1] == "score":
        in_order(record["methods"][keys[1]])
    files["report.json"] = json.dumps(record).encode()
    if keys[0] == "methods":
        files["scores.csv"] = bundle.csv_text(bundle.COLUMNS, bundle.score_rows(record)).encode()
    put(path, files)


def where(changes: tuple[Change, ...]) -> set[str]:
    return {c.where for c in changes}


def test_a_report_replayed_is_equal(service, path):
    assert verdict(read_report(path), service) == Verdict("equal")


def test_a_record_with_its_picture_beside_it_is_replayed(service, path, tmp_path):
    files = files_of(path)
    (tmp_path / "report.json").write_bytes(files["report.json"])
    with pytest.raises(ReportError, match=r"no picture\.png beside report\.json"):
        read_report(tmp_path / "report.json")
    (tmp_path / "picture.png").write_bytes(files["picture.png"])
    assert verdict(read_report(tmp_path / "report.json"), service).outcome == "equal"
    shutil.copy(draw(tmp_path / "other.png", seed=7), tmp_path / "picture.png")
    with pytest.raises(ReportError, match=r"picture\.png is not the file that the report names"):
        read_report(tmp_path / "report.json")


def test_other_hardware_is_within_tolerance(service, path):
    service.nudge = 1 + 1e-5
    service.change(device="cuda:0 (a GPU)", dtype="float16", threads=8)
    v = verdict(read_report(path), service)
    assert v.outcome == "within tolerance" and not v.inputs
    assert all(c.within for c in v.scores) and "guda/twemoji/score" in where(v.scores)
    assert {"hardware/device", "hardware/threads", "model/dtype"} <= where(v.environment)
    assert "within tolerance" in v.scores[0].sentence()


def test_other_scores_are_different_and_named(service, path):
    service.salt = "other weights, same hash"
    v = verdict(read_report(path), service)
    assert v.outcome == "different" and not v.inputs
    assert {"guda/twemoji/score", "clip/noto/score"} <= where(v.scores)
    first = next(c for c in v.scores if c.where == "guda/twemoji/score")
    assert f"{first.now - first.before:+.3g}" in first.sentence()


def test_a_forged_score_is_found(service, path):
    changed(path, "methods", "guda", "groups", "twemoji", "score", to=999.0)
    v = verdict(read_report(path), service)
    assert v.outcome == "different" and v.scores[0].before == 999
    assert {c.where for c in v.scores if c.where.endswith("score")} == {"guda/twemoji/score"}


@pytest.mark.parametrize(
    ("keys", "to", "found"),
    [
        (("separable",), True, "guda/separable"),
        (("separable",), None, "guda/separable"),
        (("runner_up",), None, "guda/runner_up"),
        (("unit",), "cosine", "guda/unit"),
    ],
)
@pytest.mark.parametrize("moved", [False, True])
def test_a_forged_order_is_found_though_no_score_moved_by_much(service, path, keys, to, found, moved):
    if moved:
        score = read_report(path).record["methods"]["guda"]["groups"]["twemoji"]["score"]
        changed(path, "methods", "guda", "groups", "twemoji", "score", to=score * (1 + 1e-12))
    changed(path, "methods", "guda", *keys, to=to)
    v = verdict(read_report(path), service)
    assert v.outcome == "different" and found in {c.where for c in v.scores if not c.within}


@pytest.mark.parametrize("forged", [{"rank": 77}, {"rank": 1}, {"score": 1e6}])
@pytest.mark.parametrize("of", ["guda", "clip"])
def test_an_order_that_is_not_that_of_the_scores_is_refused(path, of, forged):
    groups = read_report(path).record["methods"][of]["groups"]
    last = max((g for g, s in groups.items() if s["rank"]), key=lambda g: groups[g]["rank"])
    changed(path, "methods", of, "groups", last, to={**groups[last], **forged})
    with pytest.raises(ReportError, match="ranks groups otherwise than by their scores"):
        read_report(path)


def test_a_second_group_that_is_another_is_refused(path):
    groups = read_report(path).record["methods"]["guda"]["groups"]
    changed(path, "methods", "guda", "runner_up", to=next(g for g in groups if groups[g]["rank"] == 3))
    with pytest.raises(ReportError, match="ranks groups otherwise than by their scores"):
        read_report(path)


@pytest.mark.parametrize(("lead", "outcome"), [(1e-7, "within tolerance"), (1.0, "different")])
def test_what_is_separable_may_change_only_where_its_interval_ends_near_0(service, path, monkeypatch, lead, outcome):
    """The lower end of the first's lead over the second is `lead`, now; then, numbers moved a little."""
    monkeypatch.setattr("guda_core.attribution.counterfactual.ahead", lambda *a: SimpleNamespace(low=lead))
    changed(path, "methods", "guda", "separable", to=True)
    service.nudge = 1 + 1e-9
    v = verdict(read_report(path), service)
    assert v.outcome == outcome and "guda/separable" in where(v.scores)


def test_a_group_that_was_scored_and_is_not_now_is_named(service, path):
    service.change_models(unavailable={MISSING: "x", "twemoji": "gone"})
    v = verdict(read_report(path), service)
    assert v.outcome == "different" and {"guda/twemoji"} <= where(v.scores)


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({"adapters": {"twemoji": sha("another")}}, "adapters/twemoji"),
        ({"sha256": sha("another")}, "model/sha256"),
        ({"clip_sha256": sha("another")}, "clip/sha256"),
        ({"bank_sha256": sha("another")}, "clip/bank_sha256"),
    ],
)
def test_another_model_adapter_or_clip_is_found_even_when_no_score_moved(service, path, more, found):
    if "adapters" in more:
        service.change_models(hashes={**service.made_with.unlearned.hashes, **more["adapters"]})
    else:
        service.change(**more)
    v = verdict(read_report(path), service)
    assert v.outcome == "different" and found in where(v.inputs) and not v.scores
    said = next(c for c in v.inputs if c.where == found).sentence()
    assert sha("another")[:12] in said and sha("another") not in said


def test_a_forged_adapter_hash_is_found(service, path):
    changed(path, "adapters", "openmoji", to="0" * 64)
    v = verdict(read_report(path), service)
    assert v.outcome == "different" and where(v.inputs) == {"adapters/openmoji"}


def test_a_sum_may_end_in_other_digits_on_another_processor_and_no_more(service, path):
    record = read_report(path).record
    for by, outcome in ((1 + 1e-15, "equal"), (1.001, "different")):
        before, now = copy.deepcopy(record), copy.deepcopy(record)
        for r, lam in ((before, 0.7), (now, 0.7 * by)):
            r["methods"]["clip"]["settings"] = {**r["methods"]["clip"]["settings"], "lam": lam}
        v = compare(before, now)
        assert v.outcome == outcome and "methods/clip/settings/lam" in where((*v.inputs, *v.environment))


def test_another_picture_is_found_even_with_its_hash_corrected(service, path, tmp_path):
    other = draw(tmp_path / "other.png", seed=9).read_bytes()
    put(path, {**files_of(path), "picture.png": other})
    with pytest.raises(ReportError, match=r"picture\.png is not the picture that the report names"):
        list(replay(read_report(path), service))
    changed(path, "picture", "pixels_sha256", to=hash_pixels(np.asarray(Image.open(io.BytesIO(other)))))
    v = verdict(read_report(path), service)
    assert v.outcome == "different" and "seed/picture" in where(v.inputs)


def clear(im: Image.Image) -> Image.Image:
    im.putalpha(0)
    return im


@pytest.mark.parametrize(
    ("change", "more"),
    [
        (clear, {}),
        (lambda im: im.convert("P"), {}),
        (lambda im: im, {"transparency": (255, 255, 255)}),
        (
            lambda im: im,
            {"exif": b"Exif\0\0MM\0*\0\0\0\b\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"},
        ),  # turned by 90 degrees
        (lambda im: im, {"icc_profile": b"of other colours"}),
        (lambda im: im, {"save_all": True, "append_images": [Image.new("RGB", (16, 16))]}),
    ],
)
def test_a_picture_that_a_viewer_shows_otherwise_is_refused(service, path, change, more):
    """Its pixels, as they are shown, are those that are named; what is scored is another picture."""
    files, out = files_of(path), io.BytesIO()
    im = change(Image.open(io.BytesIO(files["picture.png"])))
    im.save(out, format="PNG", **more)
    put(path, {**files, "picture.png": out.getvalue()})
    changed(path, "picture", "pixels_sha256", to=hash_pixels(np.asarray(im.convert("RGB"))))
    for ask in (pixels, lambda report: list(replay(report, service))):
        with pytest.raises(ReportError, match=r"picture\.png is not the picture that the report names"):
            ask(read_report(path))


def test_another_prompt_is_found(service, path):
    changed(path, "picture", "prompt", to="dog")
    assert verdict(read_report(path), service).outcome == "different"


def test_forged_values_are_found_though_every_hash_is_corrected(service, path):
    files = files_of(path)
    with zipfile.ZipFile(io.BytesIO(files["values.npz"])) as z:
        arrays = {n: z.read(n) for n in z.namelist()}
    full = read_report(path).values["guda/kl_full"].copy()
    full[1, 2] += 5
    put(path, {**files, "values.npz": bundle.zipped({**arrays, "guda/kl_full.npy": array(full)})})
    v = verdict(read_report(path), service)
    assert v.outcome == "different" and where(v.scores) == {"values.npz/guda/kl_full"}
    assert "-5" in v.scores[0].sentence()


def test_values_are_judged_by_the_size_that_they_have():
    tiny, t = np.array([1e-5, -3e-5]), np.array([[1, 20], [300, 999]])
    now = {"das": Attribution("das", "kernel", {}, values={"pictures": tiny, "t": t})}

    def found(coarse=False, **values):
        values = {f"das/{k}": v for k, v in {"pictures": tiny, "t": t, **values}.items() if v is not None}
        return [c.where for c in _other_values(values, now, coarse=coarse)]

    assert found(pictures=tiny * (1 + 1e-6)) == []
    assert found(pictures=np.zeros(2)) == found(pictures=None) == ["values.npz/das/pictures"]
    assert found(t=t - np.array([[0, 0], [0, 1]])) == ["values.npz/das/t"]  # 1 in 999 is another timestep all the same
    moved = tiny + np.array([1e-6, 0.0])  # a thirtieth of the largest
    assert found(pictures=moved) == ["values.npz/das/pictures"] and found(coarse=True, pictures=moved) == []


@pytest.mark.parametrize("place", [("group_set", "groups", "noto", "author"), ("group_set", "name")])
def test_forged_credits_are_found_though_no_score_moved(service, path, place):
    changed(path, *place, to="somebody else")
    v = verdict(read_report(path), service)
    assert v.outcome == "different" and where(v.inputs) == {"/".join(place)}


MEASURED = Scope(
    "in scope", 2.0, 3.0, "log-odds", "Of 99 pictures, 20 look as foreign (p = 0.210).", {"sha256": sha("rule")}, 0.21
)


def scoped(path, service, monkeypatch, now: Scope = MEASURED, **then: object) -> Verdict:
    """What a replay finds where the rule gives `now`. then: of the report's verdict, what is otherwise."""
    monkeypatch.setattr(service, "scope", lambda query: now)
    changed(path, "scope", to={**dataclasses.asdict(MEASURED), **then})
    return verdict(read_report(path), service)


@pytest.mark.parametrize(
    ("then", "found"),
    [
        ({}, ()),
        ({"verdict": "out of scope"}, ("verdict",)),
        ({"verdict": "out of scope", "value": 2.0 + 1e-9}, ("verdict",)),  # far from the threshold
        ({"value": 2.1}, ("value",)),
        ({"value": None}, ("value",)),
        ({"threshold": 9.0}, ("threshold",)),
        ({"p_value": 0.9}, ("p_value",)),
        ({"p_value": 0.9, "value": 2.0 + 1e-9}, ("p_value",)),
        ({"reason": "It is fine."}, ("reason",)),
        ({"reason": "It is fine.", "value": 2.0 + 1e-9}, ("reason",)),
        ({"settings": {"sha256": sha("rule"), "kinds": {"a": 1}}}, ("settings/kinds/a",)),
    ],
)
def test_a_forged_verdict_on_scope_is_found(service, path, monkeypatch, then, found):
    v = scoped(path, service, monkeypatch, **then)
    assert {c.where for c in v.scores if not c.within} == {f"scope/{f}" for f in found} and not v.scope
    assert v.outcome == ("different" if found else "equal")


def test_a_verdict_on_scope_follows_a_statistic_that_moved_within_tolerance(service, path, monkeypatch):
    now = dataclasses.replace(MEASURED, verdict="out of scope", value=3.0, threshold=3.0, p_value=0.05)
    words = "Of 99 pictures, none looks as foreign (p = 0.050)."
    then = {"value": 2.999, "threshold": 3.0, "p_value": 0.06, "reason": words}
    v = scoped(path, service, monkeypatch, now, **then)
    places = ("verdict", "value", "p_value", "reason")
    assert v.outcome == "within tolerance" and where(v.scores) == {f"scope/{k}" for k in places}
    for value, outcome in ((0.0004, "within tolerance"), (0.004, "different")):  # a logarithm of odds near 0
        now = dataclasses.replace(MEASURED, value=0.0001)
        assert scoped(path, service, monkeypatch, now, value=value).outcome == outcome


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_statistic_of_half_precision_may_move_further(service, path, monkeypatch, dtype):
    changed(path, "model", "dtype", to=dtype)
    at = dataclasses.replace(MEASURED, verdict="out of scope", value=3.05)
    for now, moved, outcome in ((MEASURED, 0.15, "within tolerance"), (MEASURED, 0.3, "different"),
                                (at, -0.1, "within tolerance"), (at, -0.3, "different")):  # fmt: skip
        v = scoped(path, service, monkeypatch, now, verdict="in scope", value=now.value + moved)
        assert v.outcome == outcome and where(v.scores) >= {"scope/value"}


def test_what_another_rule_or_version_says_of_scope_is_told_apart(service, path, monkeypatch):
    then = {"value": 4.0, "threshold": 3.5, "p_value": 0.0, "reason": "It is fine."}
    v = scoped(path, service, monkeypatch, verdict="out of scope", settings={"sha256": sha("another")}, **then)
    assert v.outcome == "equal" and where(v.scope) == {f"scope/{k}" for k in ("settings/sha256", "verdict", *then)}
    changed(path, "versions", "guda_core", to="0.0")
    v = scoped(path, service, monkeypatch, reason="In other words.")
    assert v.outcome == "equal" and where(v.scope) == {"scope/reason"}


@pytest.mark.parametrize("said", [None, "The model could have made it."])
def test_a_verdict_on_scope_that_was_taken_out_is_told(service, path, monkeypatch, said):
    changed(path, "absent", "scope", to=said or NOT_ASSESSED)
    changed(path, "scope", to=None)
    monkeypatch.setattr(service, "scope", lambda query: dataclasses.replace(MEASURED, verdict="out of scope"))
    read = read_report(path)
    v = verdict(read, service)
    assert [c.sentence() for c in v.scope] == ["scope/verdict: nothing in the report, out of scope now."]
    shown = page(tell(read.record, attributions(read), service.methods()), pixels(read)).decode()
    assert NOT_ASSESSED in shown and (said is None or said not in shown)


@pytest.mark.parametrize("gone", ["no rule", "no memory"])
def test_a_scope_that_cannot_be_looked_at_is_told_and_not_judged(service, path, monkeypatch, gone):
    def scope(query):
        if gone == "no memory":
            raise ScoreError("There is not enough memory.")
        return Scope("not assessed", None, None, "", "There is no rule.")

    monkeypatch.setattr(service, "scope", scope)
    v = verdict(read_report(path), service)
    assert v.outcome == "equal" and where(v.scope) == {
        f"scope/{k}" for k in ("verdict", "value", "threshold", "reason")
    }


def test_a_forged_table_is_refused_though_every_hash_is_corrected(path):
    files = files_of(path)
    put(path, {**files, "scores.csv": files["scores.csv"].replace(b"Twemoji", b"Nobody!")})
    with pytest.raises(ReportError, match=r"scores\.csv does not say what report\.json says"):
        read_report(path)


def test_what_is_said_of_a_report_cannot_steer_the_terminal(service, path):
    changed(path, "settings", "\x1b[2J", to="\x1b[31m\u202e")
    (change,) = verdict(read_report(path), service).inputs
    assert change.sentence().isprintable()
    put(path, {**files_of(path), "\x1b[2J": b""})
    with pytest.raises(ReportError, match=r"u001b\[2J', which is no part") as e:
        read_report(path)
    assert str(e.value).isprintable()


def test_what_is_said_beside_the_scores_is_told_where_it_is_forged(service, path):
    record = json.loads(files_of(path)["report.json"])
    method, group = next(iter(record["methods"])), next(iter(record["group_set"]["groups"]))
    changed(path, "limits", to=["All is well.", *record["limits"][1:]])
    changed(path, "health", group, to={"own": {"mean": 99.0}})
    changed(path, "methods", method, "groups", group, "reason", to="Nothing to see here.")
    v = verdict(read_report(path), service)
    told = list(differences(v.environment))
    assert v.outcome == "equal" and f"health/{group}/own/mean" in where(v.environment)
    assert any("All is well." in d for d in told) and any("Nothing to see here." in d for d in told)
    assert where(v.environment) >= {"limits", f"{method}/{group}/reason"}
    assert v.environment[0].where == "limits"  # before figures, of which a forger may add as many as are told
    changed(path, "versions", "guda_core", to="0.1.0")  # another version says such things in its own words
    told = differences(verdict(read_report(path), service).environment)
    assert "limits, reasons: words of guda_core 0.1.0 (not checked) in the report, other words now." in told
    assert not any("All is well." in d or "Nothing to see" in d for d in told)


@pytest.mark.parametrize("empty", [{}, "nothing", {"a": {}}])
def test_what_no_report_says_is_found_though_it_is_empty(service, path, empty):
    changed(path, "settings", "certified", to=empty)
    v = verdict(read_report(path), service)
    assert v.outcome == "different" and len(v.inputs) == 1 and "settings/certified" in v.inputs[0].where


def test_an_empty_object_that_came_or_became_full_says_nothing_more():
    before, now = {"a": 1, "full": {}, "was": {"x": 1}}, {"a": 1, "came": {}, "full": {"x": 1}, "was": {}}
    assert set(differing(flat(before), flat(now))) == {("full", "x"), ("was", "x")}


def test_versions_are_told_and_not_judged(service, path):
    changed(path, "versions", "torch", to="0.1")
    v = verdict(read_report(path), service)
    assert v.outcome == "equal" and where(v.environment) == {"versions/torch"}


@pytest.mark.parametrize(
    ("forged", "found"),
    [
        ({"adapters": {"device": "another"}}, "adapters/device"),  # ids of groups
        ({"adapters": {"batch": "another"}}, "adapters/batch"),
        ({"offset": {"lam": 1.0 + 1e-12}}, "offset/lam"),
        ({"adapters": {"noto": "another"}, "adapters/noto": "own"}, "adapters/noto"),  # one path in two ways
        ({"dtype": "float16", "budget": {"batch": 8}, "parts": {"guda": {"device": "cuda:0"}}}, None),
    ],
)
def test_settings_are_known_by_their_whole_path(path, forged, found):
    before, now = (copy.deepcopy(dict(read_report(path).record)) for _ in range(2))
    now["methods"]["guda"]["settings"] |= {"adapters": {"noto": "own", "device": "own", "batch": "own"}}
    now["methods"]["guda"]["settings"] |= {"offset": {"lam": 1.0}, "budget": {"batch": 1}}
    settings = now["methods"]["guda"]["settings"]
    settings_then = {k: {**settings[k], **v} if isinstance(v, dict) and k in settings else v for k, v in forged.items()}
    before["methods"]["guda"]["settings"] = {**settings, **settings_then}
    v = compare(before, now)
    assert v.outcome == ("different" if found else "equal")
    assert found is None or f"methods/guda/settings/{found}" in where(v.inputs)


@pytest.mark.parametrize("key", ["timesteps", "edges", "reached", "sampling"])
def test_another_sampling_is_found(service, path, key):
    found = read_report(path).record["methods"]["guda"]["sampling"]
    forged = {"timesteps": {"timesteps": [1, 9]}, "edges": {"edges": [1, 2]}, "reached": {"reached": "width"}}.get(key)
    if forged is None:  # and its values taken out
        put(path, {**files_of(path), "values.npz": bundle.zipped({})})
    changed(path, "methods", "guda", "sampling", to={**found, **forged} if forged else None)
    v = verdict(read_report(path), service)
    assert v.outcome == "different"
    if key == "reached":
        assert where(v.scores) == {"guda/reached"}
    elif forged:
        assert where(v.inputs) == {f"methods/guda/sampling/{key}"}
    else:
        assert "methods/guda/sampling" in where(v.inputs) and "values.npz/guda/kl_full" in where(v.scores)


def test_what_ended_an_answer_may_change_only_where_its_interval_is_near_the_width_that_was_asked():
    for half, near in ((1.0, True), (2.0, False)):
        groups = {"a": GroupScore(10.0, 10.0 - half, 10.0 + half), "b": GroupScore(5.0, 4.9, 5.1)}
        a = Attribution("x", "nats", groups, settings={"budget": {"race": {"width": 0.1}}})
        assert _is_close_call(a, "reached", 0.0, coarse=False) == near
        assert not _is_close_call(a, "separable", 0.0, coarse=False)
    a = Attribution("x", "nats", {"a": GroupScore(5.0, 2.0, 8.0), "b": GroupScore(0.0, -4.0, 4.0)})
    assert _is_close_call(a, "separable", 0.0, coarse=False)


def test_that_weights_were_switched_live_is_told_and_not_judged(path):
    record = read_report(path).record
    live = copy.deepcopy(dict(record))
    live["methods"]["guda"]["settings"]["switching"] = "live"
    for pair in ((record, live), (live, record)):
        v = compare(*pair)
        assert v.outcome == "equal" and where(v.environment) == {"methods/guda/settings/switching"}


def test_compare_is_pure_and_sees_missing_methods_and_groups(path):
    record = read_report(path).record
    assert compare(record, copy.deepcopy(record)) == Verdict("equal")
    less = copy.deepcopy(dict(record))
    del less["methods"]["clip"], less["methods"]["guda"]["groups"]["twemoji"]
    before = copy.deepcopy(less)
    v = compare(record, less)
    assert v.outcome == "different" and {"clip", "guda/twemoji"} <= where(v.scores) and less == before


@pytest.mark.parametrize(
    ("a", "b", "unit", "close"),
    [
        (100.0, 100.1, "nats", True),
        (100.0, 100.2, "nats", False),
        (0.0, 0.001, "nats", True),
        (0.0, 0.0011, "nats", False),
        (0.5, 0.5004, "cosine", True),
        (0.0, 0.0009, "cosine", False),
    ],
)
def test_the_tolerance(a, b, unit, close):
    assert is_close(a, b, unit) == is_close(b, a, unit) == close


def test_in_half_precision_units_without_a_size_have_the_tolerance_of_nats():
    for unit in ("nats", "kernel", "standard scores"):
        assert is_close(0.0, 0.16, unit, width=1.0) and not is_close(0.0, 0.17, unit, width=1.0)
    assert not is_close(0.0, 0.16, "cosine", width=1.0)


def test_a_stopped_computation_and_unknown_settings_are_refused(service, path):
    changed(path, "methods", "guda", "progress", to=0.5)
    with pytest.raises(ReportError, match="stopped early"):
        list(replay(read_report(path), service))
    changed(path, "methods", "guda", "progress", to=1.0)
    changed(path, "settings", "methods", to=["guda", "clip", "das"])  # stopped before the third had a score
    with pytest.raises(ReportError, match="stopped early"):
        list(replay(read_report(path), service))
    changed(path, "settings", "methods", to=SETTINGS["methods"])
    changed(path, "settings", "effort", to="huge")
    with pytest.raises(OptionError, match="huge"):
        list(replay(read_report(path), service))
    changed(path, "picture", "prompt", to="a\0b")
    with pytest.raises(ReportError, match="control character"):
        list(replay(read_report(path), service))


def test_a_method_that_is_unknown_here_is_said_to_be_of_a_package(service, path):
    found = read_report(path).record["methods"]
    changed(path, "methods", to={**found, "theirs": found["clip"]})
    changed(path, "settings", "methods", to=["guda", "theirs"])
    with pytest.raises(OptionError, match=r"answers of theirs, unknown here.* a package that adds methods"):
        list(replay(read_report(path), service))


def test_a_picture_that_is_none_is_refused(service, path):
    put(path, {**files_of(path), "picture.png": b"<svg/>"})
    with pytest.raises(ReportError, match=r"picture\.png is not the picture"):
        list(replay(read_report(path), service))


def without(name: str):
    return lambda files: {k: v for k, v in files.items() if k != name}


def array(values, **more) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, values, version=(1, 0), **more)
    return out.getvalue()


def header(text: str) -> bytes:
    raw = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw


class Evil:
    """Unpickling this would fail the test."""

    def __reduce__(self):
        return exec, ("raise AssertionError('a pickle was read')",)


NPZ = {
    "a pickle instead": (pickle.dumps(Evil()), "zip is damaged"),
    "objects": (bundle.zipped({"guda/t.npy": array(np.array([Evil()], dtype=object), allow_pickle=True)}), "pickle"),
    "no array": (bundle.zipped({"guda/t.npy": b"no"}), "no array of a report"),
    "a huge claim": (
        bundle.zipped({"guda/t.npy": header("{'descr':'<f8','fortran_order':False,'shape':(10**15,)}")}),
        "no array of a report",
    ),
    "a huge shape": (
        bundle.zipped({"guda/t.npy": header("{'descr':'<f8','fortran_order':False,'shape':(999999999999,)}")}),
        "not of the type or size",
    ),
    "nothing": (bundle.zipped({"guda/t.npy": array(np.zeros((0, 3)))}), "not of the type or size"),
    "a negative shape": (
        bundle.zipped({"guda/t.npy": header("{'descr':'<f8','fortran_order':False,'shape':(-1,-1)}") + bytes(8)}),
        "not of the type or size",
    ),
    "many axes": (
        bundle.zipped(
            {"guda/t.npy": header(f"{{'descr':'<f8','fortran_order':False,'shape':({'1,' * 70})}}") + bytes(8)}
        ),
        "not of the type or size",
    ),
    "text": (bundle.zipped({"guda/t.npy": array(np.array(["x"]))}), "not of the type or size"),
    "nan": (bundle.zipped({"guda/t.npy": array(np.array([np.nan]))}), "not finite"),
    "other arrays": (bundle.zipped({"guda/t.npy": array(np.zeros(3))}), "does not contain the values"),
    "none": (bundle.zipped({}), "does not contain the values"),
}


@pytest.mark.parametrize("what", NPZ)
def test_bad_values_are_refused(path, what):
    data, sentence = NPZ[what]
    put(path, {**files_of(path), "values.npz": data})
    with pytest.raises(ReportError, match=sentence):
        read_report(path)


RECORDS = {
    "NaN": (lambda s: s.replace('"progress": 1.0', '"progress": NaN'), "holds NaN"),
    "infinity": (lambda s: s.replace('"progress": 1.0', '"progress": 1e999'), "holds 1e999"),
    "a long number": (lambda s: s.replace('"threads": 1', '"threads": ' + "1" * 5000), "larger than any"),
    "a huge number": (lambda s: s.replace('"progress": 1.0', '"progress": 1.7e308'), "1.7e308, larger than any"),
    "half of it": (lambda s: s[: len(s) // 2], "not the JSON of a report"),
    "a list": (lambda s: "[]", "schema"),
    "deep": (lambda s: "[" * 200_000, "not the JSON of a report"),
    "twice": (lambda s: s.replace("{", '{"format": 3, ', 1), "same thing twice"),
    "a later version": (lambda s: s.replace('"format": 3', '"format": 4'), "format 4; this version"),
    "an earlier version": (
        lambda s: s.replace('"format": 3', '"format": 1'),
        "format 1; this version",
    ),
    "wrong type": (lambda s: s.replace('"progress": 1.0', '"progress": "1"'), r"schema \(methods/"),
    "no hash": (lambda s: s.replace(sha("model"), "abc"), r"schema \(model/sha256"),
    "a group's id": (lambda s: s.replace('"twemoji"', '"../x"'), "schema"),
    "a word too many": (lambda s: s.replace("{", '{"more": 1, ', 1), "schema"),
    "ok without a score": (lambda s: s.replace('"score": 0', '"score": null, "x": 0'), "schema"),
}


def within(n: int) -> dict:
    """Objects within each other, n of them."""
    return {"a": within(n - 1)} if n else {}


LARGE = {
    "a long name": (lambda: {"n" * 301: {str(i): 0 for i in range(9)}}, "name of more than 300"),
    "deep": (lambda: within(48), "far more parts"),
    "many": (lambda: dict.fromkeys(map(str, range(200_001)), 0), "far more parts"),
    "a list": (lambda: {"a": [0] * 200_001}, "far more parts"),
    "long paths": (lambda: {"n" * 300: {"m" * 300: {str(i): 0 for i in range(30_000)}}}, "far more parts"),
}


@pytest.mark.parametrize("what", LARGE)
def test_a_record_of_too_many_parts_is_refused_before_work_on_it(path, what, monkeypatch):
    more, sentence = LARGE[what]
    monkeypatch.setattr("guda_core.reports.read.upgraded", lambda record: pytest.fail("it was worked on"))
    changed(path, "settings", to={**SETTINGS, "more": more()})
    with pytest.raises(ReportError, match=sentence):
        read_report(path)


def test_a_record_as_large_as_any_is_read_and_its_paths_can_be_made(path):
    named = {"n" * 300: within(46), "list": [{"a": 1}], **dict.fromkeys(map(str, range(100_000)), 0)}
    changed(path, "settings", to={**SETTINGS, "more": named})
    record = read_report(path).record
    assert record["settings"]["more"] == named and len(_inputs(record)) > 100_000


def test_settings_of_thousands_of_keys_are_judged_once_each_and_told_in_few_lines(service, path, monkeypatch):
    more = {f"k{i}": 0 for i in range(3000)}
    changed(path, "methods", "guda", "settings", to={**read_report(path).record["methods"]["guda"]["settings"], **more})
    with monkeypatch.context() as m:
        m.setattr(Change, "__eq__", lambda a, b: pytest.fail("changes were compared with each other"))
        v = verdict(read_report(path), service)
    assert v.outcome == "different" and where(v.inputs) == {f"methods/guda/settings/{k}" for k in more}
    assert len(said := differences(v.inputs)) == MOST + 1 and said[-1] == "And 2,800 more."


def test_what_is_beyond_the_tolerance_is_told_first():
    small = [Change(f"guda/g{i}/score", 1.0, 1.0001, True) for i in range(MOST)]
    assert differences(small) == [c.sentence() for c in small] and differences(()) == []
    large = Change("guda/last/score", 1.0, 9.0)
    assert differences([*small, large]) == [large.sentence(), *(c.sentence() for c in small[:-1]), "And 1 more."]


@pytest.mark.parametrize("what", RECORDS)
def test_bad_records_are_refused(path, what):
    change, sentence = RECORDS[what]
    files = files_of(path)
    text = change(files["report.json"].decode())
    assert text != files["report.json"].decode()
    put(path, {**files, "report.json": text.encode()}, rehash=False)
    with pytest.raises(ReportError, match=sentence):
        read_report(path)


@pytest.mark.parametrize(
    "status", [{"status": "ok", "score": None}, {"status": "unavailable"}, {"status": "fine"}, {"rank": 0}]
)
def test_scores_that_contradict_their_status_are_refused(path, status):
    score = json.loads(files_of(path)["report.json"])["methods"]["guda"]["groups"]["twemoji"]
    changed(path, "methods", "guda", "groups", "twemoji", to={**score, **status})
    with pytest.raises(ReportError, match=r"schema \(methods/guda/groups/twemoji"):
        read_report(path)


@pytest.mark.parametrize("name", ["../evil.py", "/etc/passwd", "a/../../b", "..\\x", "C:x", "\\\\host\\x"])
def test_paths_out_of_the_zip_are_refused(path, name):
    files = files_of(path)
    put(path, {**files, name: b"x"})
    with pytest.raises(ReportError, match="leads out of it"):
        read_report(path)
    put(path, {**files, "values.npz": bundle.zipped({name: b"x"})})
    with pytest.raises(ReportError, match="leads out of it"):
        read_report(path)


@pytest.mark.parametrize("name", bundle.FILES)
def test_missing_and_altered_files_are_named(path, name):
    files = files_of(path)
    put(path, without(name)(files), rehash=False)
    with pytest.raises(ReportError, match=f"holds no {name}"):
        read_report(path)
    if name != "report.json":
        put(path, {**files, name: files[name] + b"x"}, rehash=False)
        with pytest.raises(ReportError, match=f"{name} is not the file that the report names"):
            read_report(path)


def test_a_table_that_is_not_the_record_s_is_not_made_beyond_its_first_difference(path, monkeypatch):
    files, cells = files_of(path), []
    monkeypatch.setattr(bundle, "cell", lambda value: cells.append(value) or "x")
    for table, rows in ((b"", 0), (files["scores.csv"], 1), (b",".join([b"x"] * 9), 0)):
        cells.clear()
        put(path, {**files, "scores.csv": table})
        with pytest.raises(ReportError, match=r"scores\.csv does not say what report\.json says"):
            read_report(path)
        assert len(cells) <= rows * len(bundle.COLUMNS)


def test_a_table_that_goes_on_or_ends_early_is_refused(path):
    files = files_of(path)
    rows = files["scores.csv"].splitlines(keepends=True)
    for table in (rows[:-1], [*rows, rows[-1]], [*rows[:-1], rows[-1][:-1]]):
        put(path, {**files, "scores.csv": b"".join(table)})
        with pytest.raises(ReportError, match=r"scores\.csv does not say what report\.json says"):
            read_report(path)


@pytest.mark.parametrize("most", [2000, 2001])
def test_names_that_are_repeated_are_bounded(path, most):
    named = ("group_set", "groups", "twemoji", "name")
    files = files_of(path)
    guda = json.loads(files["report.json"])["methods"]["guda"]
    if most == 2000:
        changed(path, *named, to="n" * most)
        changed(path, "methods", "guda", "unit", to="u" * 200)
        assert read_report(path).record["methods"]["guda"]["unit"] == "u" * 200
        return
    changed(path, *named, to="n" * most)
    with pytest.raises(ReportError, match=r"schema \(group_set/groups/twemoji/name"):
        read_report(path)
    changed(path, *named, to="n")
    changed(path, "methods", "guda", "unit", to="u" * 201)
    with pytest.raises(ReportError, match=r"schema \(methods/guda/unit"):
        read_report(path)
    changed(path, "methods", "guda", to=guda)
    changed(path, "methods", to={f"m{i}": guda for i in range(201)})
    with pytest.raises(ReportError, match=r"schema \(methods\)"):
        read_report(path)


SYSTEM_FILES = (
    "__MACOSX/", "__MACOSX/._report", "__MACOSX/report/._report.json", ".DS_Store", "report/.DS_Store", "Thumbs.db",
    "report/Thumbs.db", "report/desktop.ini", "report/Desktop.ini", ".Spotlight-V100/store.db", "report/._values.npz",
)  # fmt: skip


@pytest.mark.parametrize("where", ["", "report/", "./", "my report (1)/", "a/b/", "report\\"])
def test_a_report_that_a_file_manager_packed_again_is_read(where, path, service):
    files, seen = files_of(path), read_report(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        if where:
            z.writestr(where.replace("\\", "/"), b"")
        for name in reversed(files):
            z.writestr(where + name, files[name])
        for name in SYSTEM_FILES:
            z.writestr(name, b"" if name.endswith("/") else b"what the system knows")
    again = read_report(path)
    assert again.record == seen.record and again.picture == seen.picture and again.sha256 != seen.sha256
    assert verdict(again, service).outcome == "equal"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"report/readme.txt": b"x"}, "'report/readme.txt', which is no part"),
        ({"readme.txt": b"x"}, "'readme.txt', which is no part"),
        ({"other/report.json": b"{}"}, "'other/report.json', which is no part"),
        ({"report.json": b"{}"}, "'report.json', which is no part"),
        ({"report/./report.json": b"{}"}, "'report/./report.json' twice"),
        ({"report/inner/values.npz": b"x"}, "which is no part"),
        ({"__MACOSX/../../evil": b"x"}, "leads out of it"),
        ({"/__MACOSX/evil": b"x"}, "leads out of it"),
        ({f".hidden{i}": b"" for i in range(5000)}, "far more data"),
        ({".DS_Store": bytes(MAX_ZIP)}, "far more data"),
    ],
)
def test_a_folder_around_the_files_lets_nothing_else_in(more, sentence, path):
    files = {f"report/{name}": data for name, data in files_of(path).items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in {**files, **more}.items():
            z.writestr(name, data)
    with pytest.raises(ReportError, match=re.escape(sentence)):
        read_report(path)


def test_a_file_too_many_and_one_twice_are_refused(path):
    files = files_of(path)
    put(path, {**files, "readme.txt": b"x"})
    with pytest.raises(ReportError, match=r"'readme.txt', which is no part"):
        read_report(path)
    put(path, files)
    with zipfile.ZipFile(path, "a") as z, pytest.warns(UserWarning, match="Duplicate"):
        z.writestr("scores.csv", b"x")
    with pytest.raises(ReportError, match=r"'scores.csv' twice"):
        read_report(path)


def test_bombs_are_refused_without_being_unpacked(path):
    files = files_of(path)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("guda/t.npy", b"\0" * (MAX_ZIP + 1))
    put(path, {**files, "values.npz": bomb.getvalue()})
    with pytest.raises(ReportError, match="unpacks to far more"):
        read_report(path)
    path.write_bytes(bomb.getvalue())
    with pytest.raises(ReportError, match="unpacks to far more"):
        read_report(path)


def test_the_files_of_a_zip_are_counted_before_it_is_opened(path, monkeypatch):
    most = bundle.zipped({"values.npz": bundle.zipped({f"guda/{i}.npy": b"" for i in range(4096)})})
    assert list(unzip(most)) == ["values.npz"] and len(unzip(unzip(most)["values.npz"])) == 4096
    crowd = bundle.zipped({f"{i}": b"" for i in range(8193)})
    monkeypatch.setattr(zipfile, "ZipFile", lambda *a: pytest.fail("it was opened"))
    with pytest.raises(ReportError, match="unpacks to far more"):
        unzip(crowd)


def test_a_size_that_lies_is_found(path):
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x01\x02")  # the last file's entry in the directory; its size stands 24 bytes on
    size = int.from_bytes(data[at + 24 : at + 28], "little")
    for lie in (size + 1000, size - 10):
        data[at + 24 : at + 28] = lie.to_bytes(4, "little")
        path.write_bytes(data)
        with pytest.raises(ReportError, match=r"damaged|unpacks"):
            read_report(path)


def test_torn_empty_large_and_missing_files_are_refused(path, tmp_path):
    whole = path.read_bytes()
    for n in (0, 2, 100, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:n])
        with pytest.raises(ReportError, match=r"damaged|not the JSON"):
            read_report(path)
    with path.open("wb") as f:
        f.truncate(MAX_ZIP + 1)
    with pytest.raises(ReportError, match="too large to be part"):
        read_report(path)
    for missing in (tmp_path / "no.zip", tmp_path):
        with pytest.raises(ReportError, match="There is no file"):
            read_report(missing)


def test_compressed_and_encrypted_zips(path, service):
    files = files_of(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in files.items():
            z.writestr(name, data)
    assert verdict(read_report(path), service).outcome == "equal"  # packed again by hand is fine
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as z:
        for name, data in files.items():
            z.writestr(name, data)
    with pytest.raises(ReportError, match="packed in a way"):
        read_report(path)
    put(path, files)
    data = bytearray(path.read_bytes())
    data[data.rfind(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(ReportError, match="encrypted"):
        read_report(path)


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n", b"SSHSIG"])
def test_a_file_that_is_no_report_is_named(tmp_path, data):
    (tmp_path / "cat.png").write_bytes(data)
    with pytest.raises(ReportError, match=r"'cat\.png' is no report"):
        read_report(tmp_path / "cat.png")


@pytest.mark.parametrize("name", ["attacker/any-repo", r"\\10.0.0.66\share\m", "FOLDER", "m.yaml", "m.safetensors"])
def test_a_report_leads_to_no_model_that_the_user_did_not_name(path, tmp_path, monkeypatch, name):
    asked: list[object] = []
    monkeypatch.setattr("guda_core.cli.loading.service_of", lambda model, *a: asked.append(model) or LightService())
    name = str(tmp_path) if name == "FOLDER" else name
    changed(path, "model", "id", to=name)
    said = CliRunner().invoke(app, ["replay", str(path)], env={"COLUMNS": "300"})
    assert said.exit_code == 2 and not asked and "If you trust that model, name it with --model" in said.output
    assert f"This report is of the model '{name[:120]}', which has no card here." in said.output
    CliRunner().invoke(app, ["replay", str(path), "--model", name])
    changed(path, "model", "id", to=DEFAULT_MODEL)
    CliRunner().invoke(app, ["replay", str(path)])
    assert asked == [name, DEFAULT_MODEL]
