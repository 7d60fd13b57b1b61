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

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from guda_core.cli import app
from guda_core.data.images import hash_pixels
from guda_core.diffusion.cards import DEFAULT_MODEL
from guda_core.errors import OptionError, ReportError, ScoreError
from guda_core.records import Attribution, Scope
from guda_core.reports import bundle
from guda_core.reports.findings import MOST, Change, Verdict, differences
from guda_core.reports.read import MAX_ZIP, Report, read_report
from guda_core.reports.replay import _inputs, _other_values, compare, is_close, replay
from guda_core.reports.restore import pixels
from guda_core.reports.unzip import unzip
from tests.light import MISSING, SETTINGS, LightService, draw, sha


@pytest.fixture
def service():
    return LightService()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> bytes:
    """A report as it is written."""
    service, folder = LightService(), tmp_path_factory.mktemp("report")
    query = service.prepare(draw(folder / "p.png", side=32).read_bytes(), prompt="cat, flat colours")
    answers = list({a.method: a for a in service.attribute(query, **SETTINGS)}.values())
    about = {"provenance": service.provenance(), "settings": SETTINGS}
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
    """Write a zip of the files; rehash: as a careful forger, who also corrects the hashes in report.json."""
    if rehash:
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
    changed(path, "methods", "guda", "groups", "twemoji", "score", to=99.0)
    v = verdict(read_report(path), service)
    assert v.outcome == "different" and where(v.scores) == {"guda/twemoji/score"} and v.scores[0].before == 99


@pytest.mark.parametrize(
    ("keys", "to", "found"),
    [
        (("methods", "guda", "separable"), True, "guda/separable"),
        (("methods", "guda", "groups", "twemoji", "rank"), 77, "guda/twemoji/rank"),
        (("methods", "guda", "unit"), "cosine", "guda/unit"),
    ],
)
def test_a_forged_order_is_found_though_no_score_moved(service, path, keys, to, found):
    changed(path, *keys, to=to)
    v = verdict(read_report(path), service)
    assert v.outcome == "different" and where(v.scores) == {found}


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

    def found(values):
        return [c.where for c in _other_values({f"das/{k}": v for k, v in values.items()}, now)]

    assert found({"pictures": tiny * (1 + 1e-6), "t": t}) == []
    assert found({"pictures": np.zeros(2)}) == ["values.npz/das/pictures"]
    assert found({"t": t - np.array([[0, 0], [0, 1]])}) == [
        "values.npz/das/t"
    ]  # 1 in 999 is another timestep all the same


@pytest.mark.parametrize("place", [("group_set", "groups", "noto", "author"), ("group_set", "name")])
def test_forged_credits_are_found_though_no_score_moved(service, path, place):
    changed(path, *place, to="somebody else")
    v = verdict(read_report(path), service)
    assert v.outcome == "different" and where(v.inputs) == {"/".join(place)}


def test_a_forged_verdict_on_scope_is_found(service, tmp_path, monkeypatch):
    query = service.prepare(draw(tmp_path / "p.png").read_bytes())
    answers = list({a.method: a for a in service.attribute(query, **SETTINGS)}.values())
    scope = dataclasses.asdict(measured := service.scope(query))
    about = {"provenance": service.provenance(), "settings": SETTINGS, "scope": scope}
    path = tmp_path / "r.zip"
    bundle.write(path, bundle.make(query, answers, service.group_set, **about))
    assert verdict(read_report(path), service) == Verdict("equal")
    changed(path, "scope", "reason", to="The rule was measured again since.")
    assert verdict(read_report(path), service) == Verdict("equal")
    changed(path, "scope", "verdict", to="out of scope")
    v = verdict(read_report(path), service)
    assert v.outcome == "different" and where(v.scores) == {"scope/verdict"}
    changed(path, "scope", "value", to=2.0001)  # on the threshold, and moved a little
    v = verdict(read_report(path), service)
    assert v.outcome == "within tolerance" and where(v.scores) == {"scope/verdict", "scope/value"}
    for value, outcome in ((0.0004, "within tolerance"), (0.004, "different")):  # a logarithm of odds near 0
        changed(path, "scope", "value", to=value)
        monkeypatch.setattr(service, "scope", lambda query: dataclasses.replace(measured, value=0.0001))
        assert verdict(read_report(path), service).outcome == outcome
    changed(path, "scope", "settings", to={"sha256": "of another rule"})
    v = verdict(read_report(path), service)
    assert v.outcome == "equal" and where(v.environment) == {"scope/rule", "scope/verdict", "scope/value"}


@pytest.mark.parametrize("gone", ["no rule", "no memory"])
def test_a_scope_that_cannot_be_looked_at_is_told_and_not_judged(service, path, monkeypatch, gone):
    def scope(query):
        if gone == "no memory":
            raise ScoreError("There is not enough memory.")
        return Scope("not assessed", None, None, "", "There is no rule.")

    changed(path, "scope", to=dataclasses.asdict(service.scope(None)))
    monkeypatch.setattr(service, "scope", scope)
    v = verdict(read_report(path), service)
    assert v.outcome == "equal" and where(v.environment) == {"scope/verdict", "scope/value"}


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


def test_versions_are_told_and_not_judged(service, path):
    changed(path, "versions", "torch", to="0.1")
    v = verdict(read_report(path), service)
    assert v.outcome == "equal" and where(v.environment) == {"versions/torch"}


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
