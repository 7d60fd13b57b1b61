"""What a report says of where its picture comes from, and of other captions: kept, shown, and computed again."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from guda_core.answers.other_captions import BEST
from guda_core.cli import app, attribute_command
from guda_core.errors import OptionError, ReportError
from guda_core.picture_records import Near, Shown
from guda_core.records import Tried
from guda_core.reports import bundle, sources
from guda_core.reports.findings import Doing, Verdict
from guda_core.reports.opened import tell
from guda_core.reports.page import NOT_TOLD, OWN_PICTURE
from guda_core.reports.read import read_report
from guda_core.reports.replay import replay
from guda_core.reports.restore import attributions
from guda_core.ui import words
from guda_core.ui.answer import Answer
from tests.light import SETTINGS, LightService, draw, in_order


@pytest.fixture
def service():
    return LightService()


def answers(service, query) -> dict:
    return {a.method: a for a in service.attribute(query, **SETTINGS)}


def write(path, service, query, **more):
    """A report of a picture, read again."""
    scope = asdict(service.scope(query)) if query.file_hash else None
    about = {"provenance": service.provenance(), "settings": SETTINGS, "scope": scope, **more}
    path.write_bytes(bundle.make(query, list(answers(service, query).values()), service.group_set, **about))
    return read_report(path)


def verdict(report, service) -> Verdict:
    *doing, last = replay(report, service)
    assert all(isinstance(d, Doing) and 0 <= d.progress <= 1 and d.what for d in doing)
    return last


def altered(path, change, files=None) -> None:
    """As a careful forger: the record changed, other files put in, all hashes corrected, and the page left out."""
    with zipfile.ZipFile(path) as z:
        found = {n: z.read(n) for n in z.namelist() if n != "report.html"} | (files or {})
    record = json.loads(found["report.json"])
    change(record)
    record["files"] = {n: hashlib.sha256(found[n]).hexdigest() for n in found if n != "report.json"}
    path.write_bytes(bundle.zipped({**found, "report.json": json.dumps(record).encode()}))


def drawn(service, seed=7):
    *_, query = service.generate(prompt="cat", seed=seed, steps=5, guidance=3.0)
    return query


def page(path) -> str:
    with zipfile.ZipFile(path) as z:
        return z.read("report.html").decode()


# -- a picture that the model drew ------------------------------------------------------------------------------------


def test_how_a_picture_was_drawn_is_told_and_drawn_again(service, tmp_path):
    report = write(tmp_path / "r.zip", service, drawn(service))
    assert report.record["picture"]["drawn"] == {"seed": 7, "steps": 5, "guidance": 3.0}
    assert "picture/drawn" not in report.record["absent"]
    assert "seed 7, 5 steps, guidance 3" in page(tmp_path / "r.zip")
    assert verdict(report, service) == Verdict("equal")


@pytest.mark.parametrize(("key", "value"), [("seed", 8), ("steps", 6), ("guidance", 2.0)])
def test_a_picture_that_was_drawn_otherwise_than_it_says_is_found(service, tmp_path, key, value):
    write(tmp_path / "r.zip", service, drawn(service))
    altered(tmp_path / "r.zip", lambda r: r["picture"]["drawn"].update({key: value}))
    found = verdict(read_report(tmp_path / "r.zip"), service)
    assert found.outcome == "different" and [c.where for c in found.inputs] == ["picture drawn again"]
    assert "of 255 away" in found.inputs[0].sentence()


def test_an_upload_that_is_said_to_be_drawn_is_found(service, tmp_path):
    """So the check of scope, which drawn pictures do not get, cannot be evaded."""
    query = service.prepare(draw(tmp_path / "p.png").read_bytes(), prompt="cat")
    write(tmp_path / "r.zip", service, query)

    def forge(record):
        record["picture"] |= {"file_sha256": None, "drawn": {"seed": 7, "steps": 5, "guidance": 3.0}}

    altered(tmp_path / "r.zip", forge)
    assert verdict(read_report(tmp_path / "r.zip"), service).outcome == "different"


def test_a_picture_drawn_on_other_hardware_is_within_tolerance(service, tmp_path):
    report = write(tmp_path / "r.zip", service, drawn(service))
    service.nudge = 1 + 1e-7
    found = verdict(report, service)
    assert found.outcome == "within tolerance" and [c.where for c in found.inputs] == ["picture drawn again"]
    assert (
        "1 of 255 away from it (root mean square), 1 where most" in found.inputs[0].sentence()
        and "within tolerance" in found.inputs[0].sentence()
    )


def test_a_small_thing_that_was_painted_in_is_found():
    """As a whole it is near: a corner of 8 by 8 pixels in a picture of 512."""
    before = np.full((512, 512, 3), 128, np.uint8)
    now = before.copy()
    now[:8, :8] += 100
    (change,) = sources._differ("it", before, now, sources.NEAR)
    assert "1.6 of 255" in change.now and "1e+02 where most" in change.now and not change.within
    now = before.copy()
    now[::2] += 2
    (change,) = sources._differ("it", before, now, sources.NEAR)
    assert change.within and sources._differ("it", before, before, sources.NEAR) == ()
    now = before[:500, :509].copy()  # the last blocks are smaller
    (change,) = sources._differ("it", np.pad(now[:-1], ((0, 1), (0, 0), (0, 0))), now, sources.NEAR)
    assert "64 where most" in change.now  # a row of 128 in a block of 4


def test_a_picture_from_nowhere_is_told_with_its_scope(service, tmp_path):
    """Whoever takes both away, the file and how it was drawn, evades no check unseen."""
    query = service.prepare(draw(tmp_path / "p.png").read_bytes(), prompt="cat")
    write(tmp_path / "r.zip", service, replace(query, file_hash=None))
    found = verdict(read_report(tmp_path / "r.zip"), service)
    assert found.outcome == "equal"  # as reports of before, which did not say how a picture was drawn
    assert [c.sentence() for c in found.scope] == [
        "picture: from no file, and not said how it was drawn in the report, in scope now."
    ]
    assert NOT_TOLD in page(tmp_path / "r.zip").replace("&#x27;", "'") and OWN_PICTURE not in page(tmp_path / "r.zip")
    write(tmp_path / "s.zip", service, drawn(service))
    assert OWN_PICTURE in page(tmp_path / "s.zip")


def test_what_no_model_draws_with_is_refused(service, tmp_path):
    write(tmp_path / "r.zip", service, drawn(service))
    altered(tmp_path / "r.zip", lambda r: r["picture"]["drawn"].update(steps=10**6))
    with pytest.raises(ReportError, match="drawn with is refused"):
        list(replay(read_report(tmp_path / "r.zip"), service))


def test_an_upload_was_not_drawn(service, tmp_path):
    query = service.prepare(draw(tmp_path / "p.png").read_bytes())
    absent = write(tmp_path / "r.zip", service, query).record["absent"]
    assert absent["picture/drawn"] == "It came from a file." and "not asked for" in absent["files/original"]
    absent = write(tmp_path / "r.zip", service, replace(query, file_hash=None)).record["absent"]
    assert "not known how" in absent["picture/drawn"] and "files/original" not in absent


def test_what_is_not_seen_in_pictures_is_absent_with_its_reason(service, tmp_path):
    query = service.prepare(draw(tmp_path / "p.png").read_bytes())
    absent = write(tmp_path / "r.zip", service, query).record["absent"]
    assert all("not" in absent[f"pictures/{part}"] for part in ("without", "where", "near"))
    absent = write(tmp_path / "r.zip", service, query, shown=Shown(missing="Too long here.")).record["absent"]
    assert absent["pictures/without"] == absent["pictures/where"] == "Too long here." != absent["pictures/near"]
    shown = Shown(near=(Near("twemoji", 0.5),))
    assert "pictures/near" not in write(tmp_path / "r.zip", service, query, shown=shown).record["absent"]


# -- the uploaded file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), bundle.ORIGINALS.items())
def test_the_uploaded_file_is_put_in_and_prepared_again(service, tmp_path, kind, name):
    if kind == "HEIC":
        pytest.importorskip("pillow_heif").register_heif_opener()
    with Image.open(draw(tmp_path / "p.png", side=40)) as im:
        im.save(tmp_path / "p", format={"HEIC": "HEIF"}.get(kind, kind))
    data = (tmp_path / "p").read_bytes()
    report = write(tmp_path / "r.zip", service, service.prepare(data), original=data)
    with zipfile.ZipFile(tmp_path / "r.zip") as z:
        assert z.read(name) == data
    assert report.original == data and "files/original" not in report.record["absent"]
    assert report.record["files"][name] == report.record["picture"]["file_sha256"]
    assert verdict(report, service) == Verdict("equal")


def test_a_picture_that_does_not_come_from_the_file_is_found(service, tmp_path):
    """The forger scores one picture, and puts another file in, with its hash."""
    query = service.prepare(draw(tmp_path / "p.png", side=40).read_bytes())
    other = draw(tmp_path / "q.png", seed=1, side=40).read_bytes()
    write(tmp_path / "r.zip", service, query)
    sha256 = hashlib.sha256(other).hexdigest()
    altered(tmp_path / "r.zip", lambda r: r["picture"].update(file_sha256=sha256), {"original.png": other})
    found = verdict(read_report(tmp_path / "r.zip"), service)
    assert found.outcome == "different"
    assert [c.where for c in found.inputs] == ["picture made from the original file"]


@pytest.mark.parametrize("said", [[], ["It was drawn by hand."]])
def test_what_was_done_to_the_file_is_compared(service, tmp_path, said):
    data = draw(tmp_path / "p.png", side=40).read_bytes()
    report = write(tmp_path / "r.zip", service, service.prepare(data), original=data)
    assert report.record["picture"]["preparation"]
    altered(tmp_path / "r.zip", lambda r: r["picture"].update(preparation=said))
    found = verdict(read_report(tmp_path / "r.zip"), service)
    assert found.outcome == "different" and {c.where for c in found.inputs} == {"what was done to the file"}
    altered(tmp_path / "r.zip", lambda r: r["versions"].update(guda_core="0.0"))  # whose words may be others
    found = verdict(read_report(tmp_path / "r.zip"), service)
    assert found.outcome == "equal" and "what was done to the file" in {c.where for c in found.environment}


def test_a_file_beside_a_bare_record_is_looked_at_too(service, tmp_path):
    data = draw(tmp_path / "p.png", side=40).read_bytes()
    write(tmp_path / "r.zip", service, service.prepare(data), original=data)
    with zipfile.ZipFile(tmp_path / "r.zip") as z:
        z.extractall(tmp_path / "out")
    place = tmp_path / "out"
    assert read_report(place / "report.json").original == data
    (place / "original.png").write_bytes(b"another")
    with pytest.raises(ReportError, match=r"original\.png is not the file"):
        read_report(place / "report.json")
    (place / "original.png").unlink()
    found = verdict(read_report(place / "report.json"), service)
    assert found.outcome == "equal" and "not looked at" in found.environment[0].sentence()


def test_a_file_of_a_kind_that_cannot_be_read_here_is_told(service, tmp_path, monkeypatch):
    data = draw(tmp_path / "p.png", side=40).read_bytes()
    report = write(tmp_path / "r.zip", service, service.prepare(data), original=data)
    monkeypatch.setattr(sources, "kind_of", lambda _: "HEIC")
    monkeypatch.setattr(sources, "can_read", lambda _: False)
    found = verdict(report, service)
    assert found.outcome == "equal" and "pillow-heif" in found.environment[0].sentence()


def test_a_file_that_is_no_picture_or_not_the_scored_one_is_named(service, tmp_path):
    data = draw(tmp_path / "p.png", side=40).read_bytes()
    write(tmp_path / "r.zip", service, service.prepare(data))
    shutil.copy(tmp_path / "r.zip", tmp_path / "s.zip")
    altered(tmp_path / "r.zip", lambda r: None, {"original.png": b"another"})
    with pytest.raises(ReportError, match="not the file that was scored"):
        read_report(tmp_path / "r.zip")
    sha256 = hashlib.sha256(b"no picture").hexdigest()
    altered(tmp_path / "s.zip", lambda r: r["picture"].update(file_sha256=sha256), {"original.png": b"no picture"})
    found = verdict(read_report(tmp_path / "s.zip"), service)
    assert found.outcome == "different" and "no picture that can be read" in found.inputs[0].sentence()


def test_another_file_is_not_put_in_nor_a_large_one(service, tmp_path, monkeypatch):
    data = draw(tmp_path / "p.png", side=40).read_bytes()
    with pytest.raises(ReportError, match="not the one that was scored"):
        write(tmp_path / "r.zip", service, service.prepare(data), original=data + b"\n")
    with pytest.raises(ReportError, match="not the one that was scored"):
        write(tmp_path / "r.zip", service, drawn(service), original=data)  # which came from no file
    monkeypatch.setattr(bundle, "MAX_ZIP", bundle.SPARE + len(data))
    with pytest.raises(ReportError, match="larger than"):
        write(tmp_path / "r.zip", service, service.prepare(data), original=data)
    monkeypatch.setattr(attribute_command, "service_of", lambda *_: service)
    asked = ["attribute", str(tmp_path / "p.png"), "--report", str(tmp_path / "r.zip"), "--original"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0 and "made without it." in " ".join(done.output.split())
    assert read_report(tmp_path / "r.zip").original is None


def test_the_page_puts_the_upload_in_while_it_is_there(service, tmp_path):
    path = draw(tmp_path / "p.png", side=40)
    query = service.prepare(path.read_bytes())
    answer = Answer(query, ("guda", "clip"), "quick", answers(service, query), file=path)
    (tmp_path / "r.zip").write_bytes(answer.report(service, with_file=True))
    assert read_report(tmp_path / "r.zip").original == path.read_bytes()
    (tmp_path / "r.zip").write_bytes(answer.report(service))
    assert read_report(tmp_path / "r.zip").original is None
    draw(path, seed=3)
    with pytest.raises(ReportError) as e:
        answer.report(service, with_file=True)
    assert str(e.value) == words.FILE_GONE
    path.unlink()
    with pytest.raises(ReportError):
        answer.report(service, with_file=True)
    own = Answer(drawn(service), ("guda", "clip"), "quick", answers(service, drawn(service)))
    assert own.report(service, with_file=True)  # there is none to put in


def test_when_it_was_taken_is_in_a_report_only_with_the_file(service, tmp_path):
    path, exif, taken = tmp_path / "p.jpg", Image.Exif(), b"2019:08:07 06:05:04"
    exif[0x0132] = taken.decode()
    Image.open(draw(tmp_path / "p.png", side=40)).convert("RGB").save(path, exif=exif)
    query = service.prepare(path.read_bytes())
    answer = Answer(query, ("guda", "clip"), "quick", answers(service, query), file=path)
    for with_file in (False, True):
        with zipfile.ZipFile(io.BytesIO(answer.report(service, with_file=with_file))) as z:
            assert any(taken in z.read(name) for name in z.namelist()) == with_file


def test_the_command_puts_the_file_in(service, tmp_path, monkeypatch):
    monkeypatch.setattr(attribute_command, "service_of", lambda *_: service)
    path, out = draw(tmp_path / "p.png", side=40), tmp_path / "r.zip"
    done = CliRunner().invoke(app, ["attribute", str(path), "--report", str(out), "--original"])
    assert done.exit_code == 0, done.output
    assert read_report(out).original == path.read_bytes()
    done = CliRunner().invoke(app, ["attribute", str(path), "--original"])
    assert done.exit_code == 2 and "--report" in done.output


# -- other captions ---------------------------------------------------------------------------------------------------


@pytest.fixture
def tried(service, tmp_path):
    """A report of a picture with a caption, and what two others gave."""
    query = service.prepare(draw(tmp_path / "p.png", side=32).read_bytes(), prompt="cat")
    all_of_them = [Tried("the caption given", "cat", answers(service, query)["guda"])]
    for label, caption in (("the best caption that CLIP finds", "bird"), ("no caption", "")):
        other = answers(service, service.with_prompt(query, caption))["guda"]
        all_of_them.append(Tried(label, caption, other))
    write(tmp_path / "r.zip", service, query, tried=all_of_them)
    return tmp_path / "r.zip"


def test_other_captions_are_kept_told_and_computed_again(service, tried):
    report = read_report(tried)
    assert [t["prompt"] for t in report.record["captions"]] == ["bird", ""]
    told = tell(report.record, attributions(report), service.methods())
    assert [(t.label, t.caption) for t in told.tried] == [
        ("the caption given", "cat"), ("the best caption that CLIP finds", "bird"), ("no caption", ""),
    ]  # fmt: skip
    firsts = {t.answer.ranked()[0] for t in told.tried}
    assert len(firsts) > 1 and "captions disagree" in page(tried)
    assert verdict(report, service) == Verdict("equal")
    names = [service.group_set.groups[g].name for g in firsts]
    assert all(name in page(tried) for name in names) and "the best caption that CLIP finds" in page(tried)


def test_a_forged_caption_is_found(service, tried):
    def forge(record):
        score = record["captions"][0]["answer"]["groups"]["twemoji"]
        score.update({k: score[k] + 5.0 for k in ("score", "low", "high")})
        in_order(record["captions"][0]["answer"])

    altered(tried, forge)
    found = verdict(read_report(tried), service)
    assert found.outcome == "different"
    assert found.scores[0].where == "captions/the best caption that CLIP finds/guda/twemoji/score"


def test_no_other_caption_is_said_to_be_absent(service, tmp_path):
    query = service.prepare(draw(tmp_path / "p.png", side=32).read_bytes(), prompt="cat")
    own = [Tried("the caption given", "cat", answers(service, query)["guda"])]
    report = write(tmp_path / "r.zip", service, query, tried=own)
    assert "captions" not in report.record and report.record["absent"]["captions"].endswith("tried.")
    assert "Other captions" not in page(tmp_path / "r.zip")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c[0].update(method="nobody"), "another method"),
        (lambda c: c[0].update(method="clip"), "another method"),
        (lambda c: c[0].update(prompt="cat"), "caption twice"),
        (lambda c: c.append({**c[0]}), "caption twice"),
        (lambda c: c[1].update(label=BEST), "what it is not"),
        (lambda c: c[0].update(label="the caption given"), "schema"),
    ],
)
def test_captions_that_no_report_has_are_refused(tried, change, sentence):
    altered(tried, lambda r: change(r["captions"]))
    with pytest.raises(ReportError, match=sentence):
        read_report(tried)


def test_settings_and_draws_of_a_caption_are_compared_too(service, tried):
    """An offset beyond all scores would make the page say that no group stands out."""
    altered(tried, lambda r: r["captions"][0]["answer"]["settings"].update(offset={"twemoji": 1e6}))
    found = verdict(read_report(tried), service)
    assert found.outcome == "different"
    assert found.inputs[0].where == f"captions/{BEST}/guda/settings/offset/twemoji"
    altered(tried, lambda r: r["captions"][1]["answer"].update(sampling=None))
    assert any("no caption/guda/sampling" in c.where for c in verdict(read_report(tried), service).inputs)


def test_a_caption_that_is_not_the_best_one_is_found(service, tried, monkeypatch):
    monkeypatch.setattr(service, "best_caption", lambda _: "fish")
    found = verdict(read_report(tried), service)
    assert found.outcome == "different" and found.inputs[0].sentence() == (
        "captions/the best caption that CLIP finds: bird in the report, fish now."
    )


def test_methods_that_are_not_here_are_refused_before_anything_is_computed(service, tried, monkeypatch):
    monkeypatch.setattr(service, "methods", lambda: {"guda": service.__class__.methods(service)["guda"]})
    before = list(service.scored)
    with pytest.raises(OptionError, match="clip"):
        list(replay(read_report(tried), service))
    assert service.scored == before


def test_the_pixels_are_compared_as_they_are(service, tmp_path):
    with Image.open(io.BytesIO(write(tmp_path / "r.zip", service, drawn(service)).picture)) as im:
        assert (np.asarray(im) == drawn(service).pixels).all()
