"""The library: its functions and their records, light to import, and the README's lines as they are printed."""

from __future__ import annotations

import copy
import io
import json
import pickle
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import guda_core
from guda_core import api, errors, given, kept_services, opened_reports
from guda_core.data import encoders
from guda_core.data.captions import captioner_of
from guda_core.data.encoders import ClipTower
from guda_core.data.images import MAX_BYTES, UPLOADS, read_picture
from guda_core.diffusion import cards
from guda_core.errors import GudaError, ImageError, ModelError, OptionError, ReportError, UnreadError
from guda_core.picture_records import Drawing
from guda_core.records import VERDICTS, Attribution, GroupScore, Scope
from guda_core.reports.read import read_report
from guda_core.service import EFFORTS, NO_MAPS, NO_NEAR, NO_STRIP, Beside
from guda_core.unlearning.forget import config_of
from tests.light import draw
from tests.test_colour import profile
from tests.test_pipeline import MISSING, service  # noqa: F401  (a fixture)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def tiny(service, monkeypatch):  # noqa: F811
    """The tiny real model in place of the included one."""
    monkeypatch.setattr(api, "_service", lambda model, groups: service)
    return service


def test_importing_the_package_loads_nothing_and_changes_nothing():
    code = (
        "import os, sys, time\nbefore = dict(os.environ)\nbegan = time.process_time()\nimport guda_core\n"
        "took = time.process_time() - began\n"
        "heavy = {'torch', 'diffusers', 'gradio', 'transformers', 'numpy', 'PIL', 'typer'} & set(sys.modules)\n"
        "assert not heavy, heavy\nassert dict(os.environ) == before\nassert took < 0.3, took\n"
        "assert 'attribute' in dir(guda_core)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_app_and_the_scripts_for_a_gpu_import_no_library_that_they_do_not_need():
    """The app none that only later work needs, the scripts none that a GPU machine lacks. What both need is imported
    once, before the process becomes two."""
    lacking = ("gradio", "plotly", "duckdb", "resvg_py", "ray", "jsonschema", "cryptography")
    code = (
        f"import os, sys\nlacking = {lacking!r}\nsys.modules.update(dict.fromkeys(lacking))\nimport guda_core.local\n"
        "if not (script := os.fork()):\n"
        "    import experiments.gpu_check, experiments.memory.__main__, experiments.second.__main__\n"
        "    import experiments.second.in_order, experiments.second.second_trial, experiments.second.second_assets\n"
        "    import experiments.seeds.__main__, experiments.seeds.seed_trainings\n    os._exit(7)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(script, 0)[1]) == 7, 'the scripts'\n"
        "for name in lacking:\n    del sys.modules[name]\n"
        "import guda_core.cli.start, guda_core.zero_gpu, guda_core.ui.serve\n"
        "from guda_core.attribution import METHODS\nfor m in list(METHODS): METHODS[m]\n"
        "late = {'matplotlib', 'sklearn', 'datasets'} & set(sys.modules)\n"
        "late |= {m for m in sys.modules if m.startswith('guda_core.attribution.scope_fit')}\n"
        "assert 'torch' in sys.modules and not late, late\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def errors_named(public) -> list[str]:
    """The errors that the docstrings of a public name and of its own methods name."""
    parts = [public, *vars(public).values()] if isinstance(public, type) else [public]
    return re.findall(r"\b[A-Z][a-z]+(?:[A-Z][a-z]+)?Error\b", "\n".join(p.__doc__ or "" for p in parts))


def test_the_names_are_those_of_the_stub_and_all_are_there():
    stub = (ROOT / "guda_core" / "__init__.pyi").read_text(encoding="utf-8")
    assert set(re.findall(r" as (\w+)$", stub, re.MULTILINE)) == set(guda_core.__all__) - {"__version__"}
    assert all(getattr(guda_core, name) is not None for name in guda_core.__all__)
    named = {m for name in guda_core.__all__ for m in errors_named(getattr(guda_core, name))}
    assert named & set(vars(errors)) <= set(guda_core.__all__) and named
    with pytest.raises(AttributeError, match="no attribute 'atribute'"):
        guda_core.atribute  # noqa: B018


def test_an_answer_holds_scores_scope_and_record(tiny, tmp_path):
    draw(tmp_path / "p.png", side=32)
    answer = guda_core.attribute(tmp_path / "p.png", "cat, flat colours", methods=("guda", "clip"), effort="quick")
    assert list(answer.methods) == ["guda", "clip"] and answer.groups is tiny.group_set
    assert answer == answer and answer != replace(answer) and len({answer, answer}) == 1  # it holds arrays
    guda = answer.methods["guda"]
    assert answer.best == guda.ranked()[0] and guda.groups[MISSING].status == "unavailable"
    record = json.loads(json.dumps(answer.record()))
    assert record["settings"] == {"effort": "quick", "methods": ["guda", "clip"]} and record["scope"] is None
    assert record["methods"]["guda"]["groups"][answer.best]["rank"] == 1
    read = read_report(answer.report(tmp_path / "r.zip"))
    assert read.record["methods"] == record["methods"]
    assert repr(answer).startswith(f"Answer(best='{answer.best}', methods=['guda', 'clip'], scope='")
    assert len(repr(answer)) < 200 and "array" not in repr(answer.methods["guda"]) + repr(answer.query)


def test_a_picture_is_drawn_as_the_service_draws_it(tiny):
    *_, query = tiny.generate(prompt="cat", seed=3, steps=2, guidance=1.5)
    drawn = guda_core.generate("cat", seed=np.int64(3), steps=2, guidance=1.5)
    np.testing.assert_array_equal(np.asarray(drawn), query.pixels)
    with pytest.raises(OptionError, match="steps"):
        guda_core.generate("cat", steps=0)


def test_a_picture_that_the_model_drew_is_known_as_its_own_while_it_is_in_memory(tiny, tmp_path, monkeypatch):
    *_, query = tiny.generate(prompt="cat", seed=3, steps=2, guidance=1.5)
    drawn = guda_core.generate(" cat ", seed=3, steps=2, guidance=1.5)

    def asked(picture, prompt="cat", **more):
        return guda_core.attribute(picture, prompt, methods=["clip"], effort="quick", **more)

    answer = asked(drawn.copy())
    own = answer.query
    assert own.drawn == query.drawn == Drawing(3, 2, 1.5)
    assert (own.image_hash, own.file_hash, own.preparation) == (query.image_hash, None, query.preparation)
    told = guda_core.read_report(str(answer.report(tmp_path / "r.zip"))).record["picture"]
    assert told["drawn"] == {"seed": 3, "steps": 2, "guidance": 1.5}
    drawn.save(tmp_path / "p.png")
    changed = drawn.copy()
    changed.putpixel((0, 0), (1, 2, 3))
    uploads = [(tmp_path / "p.png",), (Image.open(tmp_path / "p.png"),), (changed,), (drawn, "dog")]
    with monkeypatch.context() as other:
        other.setattr(tiny.model, "sha256", "0" * 64)
        found = [asked(drawn)]
    for answer in (*found, *(asked(*upload) for upload in uploads)):
        assert answer.query.drawn is None and answer.query.file_hash is not None


def test_reports_are_read_replayed_and_compared(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(opened_reports, "_service", lambda model, groups: tiny)
    monkeypatch.setattr(opened_reports.cards, "as_made", lambda given, id, what: given or id)
    draw(tmp_path / "p.png", side=32)
    for name, effort in (("a", "quick"), ("b", "standard")):
        guda_core.attribute(tmp_path / "p.png", "cat", methods=["guda"], effort=effort).report(tmp_path / f"{name}.zip")
    a, b = (str(tmp_path / f"{name}.zip") for name in "ab")
    report, heard = guda_core.read_report(a), []
    assert report.record["settings"]["effort"] == "quick" and isinstance(report, guda_core.Report)
    for one in (a, report):
        assert guda_core.replay(one, progress=heard.append) == guda_core.Verdict("equal")
    assert heard[0].what and heard[-1].progress == 1
    found = guda_core.compare_reports(a, b)
    assert (
        not found.same["effort"]
        and found.same["model"]
        and found.plain()["methods"]["guda"]
        and len(repr(found)) < 2000
    )
    assert guda_core.compare_reports(report, a).said[-1] == "Every score is the same to the last bit."
    with pytest.raises(ReportError, match=r"There is no file 'nowhere\.zip'"):
        guda_core.replay("nowhere.zip")
    with pytest.raises(OptionError, match="path must be a path; got NoneType"):
        guda_core.read_report(None)


def test_a_report_of_a_model_without_a_card_names_the_argument(tiny, tmp_path):
    draw(tmp_path / "p.png", side=32)
    path = guda_core.attribute(tmp_path / "p.png", methods=["clip"], effort="quick").report(tmp_path / "r.zip")
    with pytest.raises(OptionError, match=r"which has no card here\. If you trust that model, name it with `model`"):
        guda_core.replay(path)


def test_the_methods_of_a_model_are_told_with_their_times(tiny):
    found = guda_core.methods()
    assert list(found.offered) == list(tiny.offered) and found.offered["guda"].main
    assert "There are no retrained models" in found.not_offered["logo"] and len(repr(found)) < 4000
    assert found.seconds["guda"] == {e: tiny.estimate(["guda"], e) for e in EFFORTS}
    assert found.seconds["guda"]["full"] > found.seconds["guda"]["quick"] > 0


def test_a_group_that_is_not_there_and_a_name_alone(tiny):
    score = GroupScore(1.0, 0.5, 1.5)
    a = Attribution("guda", "nats", {"noto": score, "blob": score}, settings={"offset": {"noto": 2}})
    assert (a.offset("noto"), a.offset("blob"), a.offset_se("noto")) == (2.0, 0.0, 0.0)
    for ask in (a.offset, a.offset_se, a.stands_out):
        with pytest.raises(KeyError):
            ask("nope")
    assert tiny.group_set.ids("noto") == ["noto"]
    with pytest.raises(OptionError, match="There is no group 'nope'"):
        tiny.group_set.ids("nope")


def test_a_model_is_loaded_without_a_mark_on_torch_and_sent_nowhere():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    model = guda_core.load_model("emoji", device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert copy.copy(model).network is model.network
    for send in (pickle.dumps, copy.deepcopy):
        with pytest.raises(ModelError, match="Give its name: 'emoji'"):
            send(model)


def test_a_picture_that_the_model_could_not_have_made_is_said(tiny, tmp_path, monkeypatch, caplog):
    draw(tmp_path / "p.png", side=32)
    monkeypatch.setattr(tiny, "scope", lambda query: Scope("out of scope", 1.0, 0.5, "x", "It is far off.", {"a": 1}))
    answer = guda_core.attribute(tmp_path / "p.png", methods=["clip"], effort="quick")
    assert answer.best is None and answer.limits[0] == VERDICTS["out of scope"] and answer.limits[0] in caplog.text
    assert "settings" not in repr(answer.scope)


def test_nearest_pictures_and_the_best_caption_are_those_of_the_service(tiny, tmp_path):
    draw(tmp_path / "p.png", side=32)
    plain, asked = (
        guda_core.attribute(tmp_path / "p.png", methods=["clip"], effort="quick", nearest=n) for n in (False, True)
    )
    found = tiny.nearest(asked.query)
    assert [(n.group, n.name, n.cosine) for n in asked.nearest] == [(n.group, n.name, n.cosine) for n in found] != []
    assert plain.nearest == () and plain.record() == asked.record()
    told = read_report(asked.report(tmp_path / "r.zip")).record["pictures"]["near"]
    assert told == [{"group": n.group, "name": n.name, "cosine": n.cosine} for n in found]
    caption = guda_core.best_caption(tmp_path / "p.png")
    assert caption in captioner_of(tiny.group_set).examples() and caption == tiny.best_caption(asked.query)


def test_what_a_newcomer_gets_wrong_is_said_with_what_was_given(tiny, tmp_path, caplog):
    for wrong, sentence in ((tmp_path / "no.png", f"no picture {tmp_path / 'no.png'}"), (tmp_path, "attribute_many")):
        with pytest.raises(ImageError) as said:
            guda_core.attribute(wrong)
        assert sentence in str(said.value)
    with pytest.raises(OptionError, match="give its name, such as model='"):
        guda_core.unlearn(tiny.group_set, model=tiny.model)
    with pytest.raises(OptionError, match="by its name, or as load_model gives it; got GroupSet"):
        guda_core.unlearn(model=tiny.group_set)
    draw(tmp_path / "p.png", side=32)
    tiny.told.clear()
    answer = guda_core.attribute(tmp_path / "p.png", methods=["guda", "clip"], effort="quick")
    assert answer.limits == [VERDICTS["not assessed"], *answer.record()["limits"]]
    missing = f"1 of {len(tiny.group_set.groups)} groups has no score, because there is no model"
    assert answer.limits[1].startswith(missing) and missing in caplog.text and "No group" not in caplog.text
    assert guda_core.attribute(tmp_path / "p.png", effort="quick").limits[1] == answer.limits[1]
    assert caplog.text.count(missing) == 1  # said of the model, not of each picture
    guda = tiny.offered["guda"]
    kept, guda.adapters = guda.adapters, {}
    missing, guda.unavailable = guda.unavailable, dict.fromkeys(kept, "There is no adapter.") | guda.unavailable
    try:
        answer = [guda_core.attribute(tmp_path / "p.png", effort="quick") for _ in range(2)][1]  # said of each picture
    finally:
        guda.adapters, guda.unavailable = kept, missing
    assert answer.best is None
    assert caplog.text.count(f"No group of '{tiny.group_set.id}' has a score by guda. There is no") == 2


def test_scores_are_told_as_they_refine_and_whoever_hears_them_may_end_the_work(tiny, tmp_path):
    draw(tmp_path / "p.png", side=32)
    heard: list = []
    answer = guda_core.attribute(tmp_path / "p.png", methods=["clip", "guda"], effort="full", progress=heard.append)
    of_guda = [a for a in heard if a.method == "guda"]
    shares = [a.progress for a in of_guda]
    assert len(shares) > 1 and shares == sorted(shares) and shares[-1] == 1
    assert {a.method for a in heard} == {"clip", "guda"} and of_guda[-1].groups == answer.methods["guda"].groups

    def spoil(a):
        for values in a.arrays().values():
            values.fill(0)
        a.settings.clear()

    spoilt = guda_core.attribute(tmp_path / "p.png", methods=["clip", "guda"], effort="full", progress=spoil)
    assert spoilt.record()["methods"] == answer.record()["methods"]

    class EnoughError(Exception): ...

    def stop(a):
        raise EnoughError

    with pytest.raises(EnoughError):
        guda_core.attribute(tmp_path / "p.png", methods=["guda"], effort="full", progress=stop)
    again = guda_core.attribute(tmp_path / "p.png", methods=["clip", "guda"], effort="full")
    assert again.record()["methods"] == answer.record()["methods"]  # the model is as it was


def test_a_path_bytes_and_a_picture_in_memory_are_one(tiny, tmp_path):
    path = tmp_path / "p.png"
    draw(path, side=32)
    found = [
        guda_core.attribute(p, methods="clip") for p in (path, str(path), path.read_bytes(), Image.open(path))
    ]  # fmt: skip
    assert len({f.query.image_hash for f in found}) == 1
    assert len({json.dumps(f.record()["methods"]) for f in found}) == 1


@pytest.mark.parametrize("mode", ["CMYK", "F", "YCbCr", "HSV", "I", "LA", "P", "RGBA", "1"])
def test_pictures_of_every_mode_are_taken(tiny, tmp_path, mode):
    draw(tmp_path / "p.png", side=32)
    with Image.open(tmp_path / "p.png") as im:
        picture = im.convert("L").convert(mode) if mode in "FI" else im.convert(mode)
        answer = guda_core.attribute(picture, methods="clip")
    seen = np.asarray(answer.query.pixels).astype(int)
    expected = np.asarray(picture.convert("L").convert("RGB") if mode in "FI" else picture.convert("RGB")).astype(int)
    assert seen.ndim == 3 and seen.shape[2] == 3
    assert abs(seen.mean() - expected.mean()) < 6  # the same picture, whatever it was stored as


def test_numbers_that_are_not_those_of_8_bits_are_refused_and_clear_parts_stay_clear(tiny):
    rng = np.random.default_rng(0)
    for array in (
        rng.random((32, 32), np.float32),
        rng.integers(0, 65536, (32, 32), np.int32),
        np.full((32, 32), -1.0),
    ):
        with pytest.raises(ImageError, match="an array of uint8, 0 to 255"):
            guda_core.attribute(Image.fromarray(array.astype("f" if array.dtype != np.int32 else "i")), methods="clip")
    for mode in ("F", "I"):
        with pytest.raises(ImageError):
            guda_core.attribute(Image.new(mode, (0, 0)), methods="clip")
    clear = Image.fromarray(rng.integers(0, 256, (32, 32, 4), np.uint8), "RGBA")
    clear.putalpha(Image.new("L", (32, 32)))
    a, b = (guda_core.attribute(clear.convert(m), methods="clip").query for m in ("RGBa", "RGBA"))
    assert a.pixels.mean() == b.pixels.mean() == 255
    grey = Image.fromarray(rng.integers(0, 256, (32, 32), np.uint8))
    grey.putalpha(Image.new("L", (32, 32), 255))
    assert given.picture_bytes(grey.convert("La")) == given.picture_bytes(grey)


def test_a_picture_in_memory_keeps_its_orientation(tiny, tmp_path):
    """What a camera turned is turned back, as for the file itself."""
    draw(tmp_path / "p.png", side=32)
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    with Image.open(tmp_path / "p.png") as im:
        im.crop((0, 0, 32, 20)).convert("RGB").save(out, format="JPEG", exif=exif)
    a, b = (guda_core.attribute(p, methods="clip") for p in (out.getvalue(), Image.open(out)))
    assert a.query.image_hash == b.query.image_hash


CLOSED = Image.new("RGB", (32, 32))
CLOSED.close()


@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        ({"picture": b"no picture"}, ImageError, "Only PNG"),
        ({"picture": 7}, OptionError, "a path, bytes or a PIL image; got int"),
        ({"methods": ("magic",)}, OptionError, "Methods must be some of .*; got magic"),
        ({"methods": ()}, OptionError, "got none"),
        ({"methods": ("logo",)}, OptionError, r"got logo\. There are no retrained models"),
        ({"effort": "huge"}, OptionError, "There is no effort 'huge'"),
        ({"effort": ["quick"]}, OptionError, "effort must be a text; got list"),
        ({"progress": 3}, OptionError, "progress must be a function; got int"),
        ({"methods": 3}, OptionError, "methods must be a list of texts; got int"),
        ({"methods": ["clip", 3]}, OptionError, "methods must be a list of texts; it holds a value of type int"),
        ({"methods": [None]}, OptionError, "it holds a value of type NoneType"),
        ({"picture": CLOSED}, ImageError, "This PIL image cannot be read"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_sentence(tiny, tmp_path, given, error, sentence):
    draw(tmp_path / "p.png", side=32)
    with pytest.raises(error, match=sentence):
        guda_core.attribute(**{"picture": tmp_path / "p.png", "methods": ("clip",), **given})


@pytest.mark.parametrize(
    ("call", "wrong", "sentence"),
    [
        ("unlearn", {"operator": ["x"]}, "operator must be a text; got list"),
        ("unlearn", {"workers": "2"}, "workers must be a whole number; got '2'"),
        ("unlearn", {"workers": True}, "workers must be a whole number"),
        ("unlearn", {"workers": 0}, "There must be at least one worker; got 0"),
        ("unlearn", {"ray": 3}, "ray must be a text; got int"),
        ("unlearn", {"folder": ""}, "folder must be a path; got an empty text"),
        ("attribute_many", {"out": " "}, "out must be a path; got an empty text"),
        ("attribute_many", {"out": None}, "out must be a path; got NoneType"),
        ("attribute_many", {"out": "o", "workers": 1.5}, "workers must be a whole number"),
        ("attribute_many", {"out": "o", "effort": 3}, "effort must be a text; got int"),
        ("load_model", {"name": Path("nowhere/at/all")}, "There is no model nowhere/at/all: there is nothing at /"),
        ("load_model", {"name": "./nowhere"}, "There is no model './nowhere'. There is nothing at /"),
        ("load_model", {"name": 3}, "A model is given by its name, or as load_model gives it; got int"),
    ],
)
def test_an_argument_of_another_kind_is_refused_in_one_sentence(call, wrong, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"pictures": "p", **wrong} if call == "attribute_many" else wrong
    with pytest.raises(GudaError) as said:
        getattr(guda_core, call)(**given)
    assert sentence in str(said.value) and not list(tmp_path.iterdir())


def test_a_group_set_is_named_by_text():
    with pytest.raises(OptionError, match=r"A group set is given by its name.*got int"):
        guda_core.load_groups(5)


def test_a_named_group_set_needs_no_model(monkeypatch):
    monkeypatch.setenv("GUDA_MODEL", "nowhere")
    assert guda_core.load_groups("emoji").id == "emoji"
    with pytest.raises(ModelError, match="no model 'nowhere'"):
        guda_core.load_groups()


def test_a_path_never_names_a_card(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "emoji").mkdir()
    with pytest.raises(ModelError, match=r"is no model in diffusers' layout"):
        guda_core.load_model(Path("emoji"))


@pytest.mark.parametrize("path", ["", ".", "/", None])
def test_a_report_needs_a_file(tiny, tmp_path, path):
    draw(tmp_path / "p.png", side=32)
    answer = guda_core.attribute(tmp_path / "p.png", methods=["clip"], effort="quick")
    with pytest.raises(OptionError, match="path must "):
        answer.report(path)


def test_sixteen_bits_in_another_order_are_the_same_picture():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    pictures = [Image.fromarray(ramp), Image.frombytes("I;16B", (16, 16), ramp.astype(">u2").tobytes())]
    assert [p.mode for p in pictures] == ["I;16", "I;16B"]
    assert given.picture_bytes(pictures[0]) == given.picture_bytes(pictures[1])


def test_a_picture_without_metadata_is_not_said_to_have_lost_some():
    plain, other = Image.new("RGB", (8, 8), "teal"), Image.new("RGB", (8, 8), "teal")
    other.getexif()[271] = "a maker"
    assert [b"eXIf" in given.picture_bytes(p) for p in (plain, other)] == [False, True]


def test_a_path_of_any_kind_is_one(tmp_path):
    class Place:
        def __fspath__(self) -> str:
            return str(tmp_path / "p.png")

    draw(tmp_path / "p.png", side=8)
    assert given.path_of(Place(), "path") == tmp_path / "p.png"
    assert given.picture_bytes(Place()) == (tmp_path / "p.png").read_bytes()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("https://example.org/a.png", "https://example.org/a.png is a URL, and one picture is read from files alone"),
        (Path("S3://pictures/a.png"), "attribute_many reads URLs"),
        ("", "The picture must be a path; got an empty text"),
        ("no.png", "There is no picture no.png: there is nothing at {here}."),
        (np.zeros((8, 8, 3), np.uint8), "got ndarray. Of a NumPy array, give PIL.Image.fromarray(ARRAY)"),
        (io.BytesIO(b"x"), "got BytesIO. Of a NumPy array, give PIL.Image.fromarray(ARRAY); of a file that is open"),
    ],
)
def test_what_is_no_picture_says_what_to_give(wrong, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GudaError) as said:
        given.picture_bytes(wrong)
    assert sentence.format(here=tmp_path / "no.png") in str(said.value)


def test_a_whole_path_is_said_once(tmp_path):
    with pytest.raises(ImageError) as said:
        given.picture_bytes(tmp_path / "no.png")
    assert str(said.value) == f"There is no picture {tmp_path / 'no.png'}."


def test_the_original_of_a_report_is_named_where_it_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnreadError) as said:
        given.original_bytes("nnn.png")
    assert str(said.value) == f"original: there is no file {tmp_path / 'nnn.png'}."
    draw(tmp_path / "p.png", side=8)
    assert (
        given.original_bytes("p.png")
        == (tmp_path / "p.png").read_bytes()
        == given.original_bytes((tmp_path / "p.png").read_bytes())
    )
    assert given.original_bytes(None) is None


@pytest.mark.parametrize("mode", ["CMYK", "RGB"])
@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_a_picture_of_a_camera_is_the_same_from_its_file_and_from_memory(mode, kind):
    """A TIFF is turned by Pillow itself; a JPEG's EXIF tells the width and height that it had before it was shrunk."""
    array, exif, out = np.zeros((40, 64, 4), np.uint8), Image.Exif(), io.BytesIO()
    array[:20, :, 1] = array[20:, :, 0] = 255
    exif.update({0x0112: 6} if kind == "TIFF" else {0x0112: 6, 0x0100: 64, 0x0101: 40})
    Image.fromarray(array, "CMYK").convert(mode).save(out, format=kind, exif=exif)
    picture = Image.open(out)
    if kind == "JPEG":
        picture.thumbnail((32, 32))
    wanted = read_picture(out.getvalue(), size=32).pixels.astype(int)
    assert abs(read_picture(given.picture_bytes(picture), size=32).pixels - wanted).max() < 8


@pytest.mark.parametrize("mode", ["PA", "RGBa", "La", "YCbCr"])
def test_a_mode_that_no_png_holds_keeps_clear_parts_and_profile(mode):
    grey, clear = mode == "La", Image.linear_gradient("L").resize((32, 32)).point([0] * 128 + [255] * 128)
    picture = Image.new("L" if grey else "RGB", (32, 32), 90)
    if mode == "PA":
        picture = picture.convert("P").convert("PA")
    if mode != "YCbCr":
        picture.putalpha(clear)
    picture = picture.convert(mode)
    picture.info["icc_profile"] = wanted = profile(gamma=1.0, kind=b"GRAY" if grey else b"RGB ")
    data = given.picture_bytes(picture)
    assert Image.open(io.BytesIO(data)).info["icc_profile"] == wanted
    seen = read_picture(data, size=32)
    assert (seen.pixels[0] == 255).all() == (mode != "YCbCr") and not (seen.pixels[-1] == 255).all()
    assert any("colour profile says" in s for s in seen.preparation)
    hue = Image.new("HSV", (32, 32))
    hue.info["icc_profile"] = wanted
    assert "icc_profile" not in Image.open(io.BytesIO(given.picture_bytes(hue))).info


def test_a_picture_in_memory_has_no_largest_file():
    """As a PNG, a photo takes several times the bytes of its JPEG."""
    picture, few = Image.effect_noise((64, 64), 90), replace(UPLOADS, bytes=100)
    data = given.picture_bytes(picture)
    assert (read_picture(data, size=64, limits=few).pixels == np.asarray(picture)[:, :, None]).all()
    with pytest.raises(ImageError, match="larger than"):
        read_picture(bytes(data), size=64, limits=few)


def test_a_large_cmyk_picture_is_no_larger_than_its_pixels_need():
    picture = Image.linear_gradient("L").resize((3000, 2200))
    assert len(given.picture_bytes(Image.merge("CMYK", [picture] * 4))) < MAX_BYTES


def test_a_broken_exif_loses_no_picture():
    picture = Image.new("RGB", (8, 8), "teal")
    picture.getexif()[274] = "no number"
    assert Image.open(io.BytesIO(given.picture_bytes(picture))).getpixel((0, 0)) == (0, 128, 128)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"lora": "x.safetensors"}, "lora is a LoraSpec here"),
        ({"loop": {"steps": 3}}, "has no setting loop"),
        ({"step": 3}, r"has no setting step\. Is 'steps' meant\? Known: batch, beta, .*, rank, .*, steps, .*, whole\."),
        ({"learning": 3}, r"has no setting learning\. Known: batch, beta, .*, rank, .*, steps, .*, whole\."),
        ({"empty_share": "0.5"}, "empty_share must be a number from 0 up; got '0.5'"),
        ({"beta": "x"}, "beta must be a number"),
        ({"steps": np.float64(2.5)}, "steps must be a whole number, at least 1; got 2.5"),
        ({"esd_strength": "much"}, "esd_strength must be a number from 0 up"),
        ({"lam": True}, "lam must be a number from 0 up; got True"),
        ({"whole": "no"}, "whole must be True or False; got 'no'"),
        ({"targets": "to_q"}, "targets must be a list of layers' names"),
        ({"targets": 5}, "targets must be a list of layers' names"),
    ],
)
def test_a_setting_of_unlearning_that_is_no_good_is_one_sentence(wrong, sentence):
    with pytest.raises(OptionError, match=sentence):
        config_of("guda_c", **{k: given.plain(v) for k, v in wrong.items()})
    assert config_of("guda_c", steps=given.plain(np.int64(5))).loop.steps == 5


def test_ids_may_come_alone_or_from_a_generator():
    assert given.names("ann", "only") == ["ann"] == given.names((n for n in ["ann"]), "only")


def test_the_last_service_is_kept_and_another_model_takes_its_place(monkeypatch, tmp_path):
    made: list[str] = []
    monkeypatch.setattr(kept_services, "_kept", [])
    monkeypatch.setattr(api.cards, "load_model", lambda card: made.append(card.id) or card)
    monkeypatch.setattr(api, "service_for", lambda base, groups: object())
    first = api._service(None, None)
    assert api._service("emoji", "emoji") is first and made == ["emoji"]
    assert api._service("sd15", "emoji") is not first and made == ["emoji", "sd15"]
    assert api._service("sd15", "emoji") is not first and len(kept_services._kept) == 1
    monkeypatch.setenv("GUDA_HOME", str(tmp_path / "another"))
    assert api._service("sd15", "emoji") and made == ["emoji", "sd15", "sd15"]


def test_threads_load_a_service_once_and_wait_for_it(monkeypatch):
    made: list[str] = []
    inside = threading.Lock()

    def load(card):
        assert inside.acquire(blocking=False)  # the libraries change torch for the whole process while they load
        time.sleep(0.3)
        inside.release()
        made.append(card.id)
        return card

    monkeypatch.setattr(kept_services, "_kept", [])
    monkeypatch.setattr(api.cards, "load_model", load)
    monkeypatch.setattr(api, "service_for", lambda base, groups: object())
    with ThreadPoolExecutor(3) as pool:
        found = [f.result() for f in [pool.submit(api._service, m, "emoji") for m in ("emoji", "emoji", "emoji")]]
        assert len(set(map(id, found))) == 1 and made == ["emoji"]
        assert all(f.result() for f in [pool.submit(api._service, m, "emoji") for m in ("emoji", "sd15")])


def test_threads_that_load_models_or_a_text_tower_wait_for_each_other(monkeypatch, tmp_path):
    inside, entered = threading.Lock(), []

    def load(*args, **more):
        assert inside.acquire(blocking=False)
        time.sleep(0.2)
        inside.release()
        entered.append(1)
        raise ModelError("enough")

    def tower():
        with pytest.raises(ModelError, match="enough"):
            _ = object.__new__(ClipTower)._text

    def model():
        with pytest.raises(ModelError, match="enough"):
            guda_core.load_model("emoji", device="cpu")

    monkeypatch.setattr(ClipTower, "folder", tmp_path, raising=False)
    monkeypatch.setattr(encoders.CLIPTextModelWithProjection, "from_pretrained", load)
    monkeypatch.setattr(cards.FAMILIES.find(cards.find_card("emoji").kind), "load", load)
    with ThreadPoolExecutor(4) as pool:
        assert [f.result() for f in [pool.submit(w) for w in (model, tower, model, tower)]] == [None] * 4
    assert len(entered) == 4


def test_unlearn_refuses_before_a_model_is_loaded():
    with pytest.raises(OptionError, match="magic"):
        guda_core.unlearn(operator="magic")


def test_the_lines_of_the_readme_run_as_they_are_printed(tmp_path, monkeypatch, capsys):
    lines = re.search(r"```python\n(import guda_core.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert lines is not None and len([line for line in lines[1].splitlines() if line]) == 10
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kept_services, "_kept", [])
    monkeypatch.setitem(EFFORTS, "quick", replace(EFFORTS["quick"], draws=1))
    exec(compile(lines[1], "README.md", "exec"), {})
    told = capsys.readouterr().out.splitlines()
    assert (
        told[0] == "in scope"
        and len([line for line in told if line.endswith(" nats")]) == 8
        and (tmp_path / "rocket.zip").is_file()
    )


def test_what_fails_beside_the_scores_leaves_them(tiny, tmp_path, monkeypatch, caplog):
    def fails(*_, **__):
        raise ModelError("The drawing is not finite.")

    for name in ("scope", "pictures", "maps", "nearest"):
        monkeypatch.setattr(tiny, name, fails)
    draw(tmp_path / "p.png", side=32)
    asked = {"methods": ("guda",), "effort": "quick", "pictures": True, "maps": True, "nearest": True}
    answer = guda_core.attribute(tmp_path / "p.png", **asked)
    assert (
        answer.best and answer.scope.verdict == "not assessed" and answer.scope.reason == "The drawing is not finite."
    )
    assert (answer.pictures, answer.maps, answer.nearest) == ({}, {}, ()) and answer.limits[-1] == answer.missing
    assert answer.missing == f"{NO_STRIP} {NO_MAPS} {NO_NEAR} The drawing is not finite."
    assert all(f"{said} The drawing is not finite." in caplog.text for said in (NO_STRIP, NO_MAPS, NO_NEAR))
    absent = read_report(answer.report(tmp_path / "r.zip")).record["absent"]
    assert absent["pictures/without"] == absent["pictures/where"] == answer.missing


def test_what_fails_of_several_methods_is_said_once_with_their_names():
    def fails():
        raise ModelError("The drawing is not finite.")

    said: list[str] = []
    beside = Beside(said.append)
    for name in ("GUDA", "LOGO"):
        beside.made(fails, None, NO_STRIP, name)
    assert beside.made(fails, 0, NO_MAPS, "LOGO") == 0 and beside.made(lambda: 1, 0, NO_MAPS, "GUDA") == 1
    assert said[1] == "The drawings without a group are missing (LOGO). The drawing is not finite."
    assert beside.missing == (
        "The drawings without a group are missing (GUDA, LOGO). The maps are missing (LOGO). The drawing is not finite."
    )


def test_pictures_and_maps_come_with_the_answer_and_go_into_the_report(tiny, tmp_path):
    draw(tmp_path / "p.png", side=32)
    answer = guda_core.attribute(tmp_path / "p.png", methods=("guda",), effort="quick", pictures=True, maps=True)
    groups = set(tiny.group_set.groups) - {MISSING}
    assert set(answer.pictures["guda"].pictures) == groups == set(answer.maps["guda"])
    report = read_report(answer.report(tmp_path / "r.zip"))
    assert [m["group"] for m in report.record["pictures"]["where"]["maps"]] == answer.methods["guda"].ranked()
    with pytest.raises(OptionError, match="Ask for guda too"):
        guda_core.attribute(tmp_path / "p.png", methods="clip", maps=True)
    guda, strip, first = answer.methods["guda"], answer.pictures["guda"], answer.maps["guda"][answer.best]
    with_arrays = [guda, guda.kl, answer.query, strip, first, answer.shown, answer.shown.where[0], report]
    for told in (*with_arrays, answer.provenance, tiny.group_set, tiny.model):
        assert len(repr(told)) < 2000 and "array" not in repr(told) and "object at 0x" not in repr(told), told
    for told in with_arrays:
        assert told == told and told != replace(told) and replace(told) not in with_arrays  # no NumPy error
    assert {tiny.group_set: 1}[replace(tiny.group_set)] == 1
