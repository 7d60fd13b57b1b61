"""A method from outside the package: one class and one registry line. It is offered, shown and replayed everywhere."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest
from gradio_client import Client
from PIL import Image
from typer.testing import CliRunner

from guda_core import local
from guda_core.attribution import METHODS, others
from guda_core.attribution.method import (
    Budget,
    Combination,
    Context,
    Method,
    Unavailable,
    answers,
    load_methods,
    total_cost,
    with_needs,
)
from guda_core.cli import app
from guda_core.data.groups import load_group_set
from guda_core.diffusion.base_model import Card
from guda_core.diffusion.cards import called, find_card
from guda_core.errors import CacheError, OptionError, ScoreError
from guda_core.local import LocalService
from guda_core.records import Attribution, Cost, GroupScore, Query
from guda_core.reports import bundle
from guda_core.reports.findings import Verdict
from guda_core.reports.read import read_report
from guda_core.reports.replay import replay
from guda_core.reports.restore import attributions
from guda_core.service import default_methods, main_first
from guda_core.ui import about, compare, inspect
from guda_core.ui.answer import Answer
from guda_core.zero_gpu import ZeroGpu
from tests.light import fake_provenance, sha
from tests.tiny import tiny_service

NOTE = "How bright the picture is, shifted by the group's place <b>in the list</b>. The interval is one level."
REASON = "It needs a table of colours, which nobody has made. Make it with `make colours`."


class Brightness(Method):
    """score_k = mean of the pixels + place of the group: no influence, but every number is known beforehand."""

    id, name, unit, note = "brightness", "Brightness <&>", "levels", NOTE
    default = True

    def __init__(self, groups: list[str]) -> None:
        self.groups = groups

    @classmethod
    def load(cls, context: Context) -> Brightness:
        return cls(context.groups)

    def cost(self, budget: Budget) -> Cost:
        return Cost(forward=100 * budget.draws, gradients=20, seconds=3.0)

    def provenance(self) -> dict[str, Any]:
        return {"table_sha256": sha("table")}

    def attribute(self, query: Query, budget: Budget) -> Iterator[Attribution]:
        yield Attribution(self.id, self.unit, {}, 0.5)
        level = float(query.pixels.mean())
        scores = {g: GroupScore(level + i, level + i - 0.5, level + i + 0.5) for i, g in enumerate(self.groups)}
        values = {"pixels": query.pixels.astype(np.float64).ravel()[:5]}
        more = {"separable": True, "runner_up": self.groups[-2], "settings": self.provenance()}
        yield Attribution(self.id, self.unit, scores, values=values, **more)


class Darkness(Combination):
    """score_k = -brightness_k."""

    id, name, unit, note = "darkness", "Darkness", "levels", "The opposite of brightness. The interval is its interval."
    needs: ClassVar = ("brightness",)

    def combine(self, parts: dict[str, Attribution]) -> Attribution:
        (of,) = (parts[m] for m in self.needs)
        groups = {g: GroupScore(-s.score, -s.high, -s.low) for g, s in of.groups.items()}
        return Attribution(self.id, self.unit, groups, of.progress, settings={"parts": {of.method: dict(of.settings)}})


class Colours(Method):
    """One that cannot be loaded here."""

    id, name, unit, note = "colours", "Colours", "levels", "Colours. The interval is none."

    @classmethod
    def load(cls, context: Context) -> Unavailable:
        return Unavailable(REASON)

    def cost(self, budget: Budget) -> Cost:
        return Cost()

    def attribute(self, query: Query, budget: Budget) -> Iterator[Attribution]:
        yield from ()


@contextmanager
def registered(members: Mapping[str, Any]) -> Iterator[None]:
    """Within the block these are lines of METHODS."""
    for m, member in members.items():
        METHODS.add(m, member)
    try:
        yield
    finally:
        for m in members:
            METHODS.remove(m)


OUTSIDE = (Darkness, Brightness, Colours)  # what is made from another may stand before it


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Iterator[LocalService]:
    with registered({kind.id: kind for kind in OUTSIDE}):
        yield tiny_service(tmp_path_factory.mktemp("service"))


@pytest.fixture
def query(service) -> Query:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return service.query(pixels, "cat, flat colours")


def ask(service, query, *methods: str) -> dict[str, Attribution]:
    return {a.method: a for a in service.attribute(query, methods=methods, effort="quick")}


def test_it_is_offered_and_answers(service, query):
    known = service.methods()
    assert list(known) == ["clip", "guda", "darkness", "brightness"] and known["brightness"].name == Brightness.name
    assert main_first(known)[0] == "guda" and default_methods(known) == ["guda", "clip", "brightness"]
    assert service.not_offered["colours"] == REASON and "trak" in service.not_offered
    found = ask(service, query, "brightness")
    level = float(query.pixels.mean())
    assert [s.score for s in found["brightness"].groups.values()] == [level + i for i in range(8)]
    with pytest.raises(OptionError, match="clip, guda, darkness, brightness; got colours"):
        ask(service, query, "colours")


def test_what_is_made_from_another_runs_it_once_and_hides_it_unless_asked(service, query, monkeypatch):
    runs = []
    plain = Brightness.attribute
    monkeypatch.setattr(Brightness, "attribute", lambda *a: runs.append(1) or plain(*a))
    both, alone = ask(service, query, "darkness", "brightness"), ask(service, query, "darkness")
    assert list(both) == ["brightness", "darkness"] and list(alone) == ["darkness"] and len(runs) == 2
    assert alone["darkness"].groups == both["darkness"].groups
    assert alone["darkness"].ranked() == both["brightness"].ranked()[::-1]
    *_, direct = service.offered["darkness"].attribute(query, Budget())
    assert asdict(direct) == asdict(alone["darkness"])


def test_its_cost_is_the_expected_time_and_zero_gpus_seconds(service):
    cost = Cost(forward=200, gradients=20, seconds=3.0)
    assert service.cost(["brightness"], "quick") == cost == service.cost(["darkness", "brightness"], "quick")
    guda = service.cost(["guda"], "quick")
    assert guda == Cost(forward=9 * 24 * 2) and service.cost(["guda", "brightness"], "quick") == guda + cost
    service.pace.__dict__ |= {"forward_s": 0.01, "gradient_s": 0.1}
    assert service.estimate(["brightness"], "quick") == pytest.approx(local.START_S + 2 + 2 + 3)
    gpu = ZeroGpu(service, lambda duration: lambda call: call)
    gpu._timed_s = 0.001  # no slower than the included model
    assert gpu.seconds(["brightness"], "quick") == round(10 + 200 / 216 + 20 / 20 + 3)
    assert gpu.seconds(["brightness"], "full") > gpu.seconds(["brightness"], "quick") > gpu.seconds(["clip"], "quick")


def test_passes_are_timed_and_leave_the_model_as_it_was(service):
    service.pace.__dict__.pop("forward_s", None), service.pace.__dict__.pop("gradient_s", None)
    before = [p.requires_grad for p in service.model.network.parameters()]
    assert service.pace.seconds(Cost(seconds=2)) == 2 and not {"forward_s", "gradient_s"} & set(service.pace.__dict__)
    one, three = (service.pace.seconds(Cost(forward=n, gradients=n)) for n in (1, 3))
    assert one > 0 and three == pytest.approx(3 * one)
    assert [p.requires_grad for p in service.model.network.parameters()] == before
    assert all(p.grad is None for p in service.model.network.parameters())


def test_progress_counts_the_passes_that_the_cost_names(service, query):
    budget = Budget(draws=3, per_pass=2, strata=8)  # a pass of two draws, then one of one
    method = service.offered["guda"]
    made = [a.progress for a in method.attribute(query, budget)]
    assert method.cost(budget).forward == 9 * 8 * 3
    assert made[0] == 16 / 216 and made[8] == 144 / 216 and made[-1] == 1.0 and made == sorted(made)


def test_the_report_holds_it_and_is_replayed(service, query, tmp_path):
    final = ask(service, query, "brightness", "darkness", "clip")
    settings = {"effort": "quick", "methods": ["brightness", "darkness", "clip"]}
    answers, made_with = list(final.values()), service.provenance()
    made = bundle.make(query, answers, service.group_set, provenance=made_with, settings=settings)
    (tmp_path / "r.zip").write_bytes(made)
    report = read_report(tmp_path / "r.zip")
    method = report.record["methods"]["brightness"]
    assert method["unit"] == "levels" and method["settings"]["table_sha256"] == sha("table")
    assert method["settings"] == made_with.made_from["brightness"] and len(method["settings"]["code_sha256"]) == 64
    limits, absent = report.record["limits"], report.record["absent"]
    assert f"{Brightness.name}: {NOTE}" in limits and not any("LOGO" in s for s in limits)
    assert REASON in absent["methods/colours"] and "not asked" in absent["methods/guda"]
    np.testing.assert_array_equal(report.values["brightness/pixels"], final["brightness"].values["pixels"])
    assert [a.groups for a in attributions(report)] == [final[a.method].groups for a in attributions(report)]
    *_, verdict = replay(report, service)
    assert isinstance(verdict, Verdict) and verdict.outcome == "equal"


def test_a_method_is_made_from_the_version_of_its_package_and_from_the_classes_behind_it(monkeypatch):
    class Base(Brightness):
        def level(self) -> int:
            return 1

    class Other(Brightness):
        def level(self) -> int:
            return 2

    def made(base: type[Brightness], version: str) -> dict[str, Any]:
        class Kind(base):
            pass

        points = [SimpleNamespace(name="brightness", module="tests.x", dist=SimpleNamespace(version=version))]
        monkeypatch.setattr(others, "entry_points", lambda group: points)
        return others.made_from(Kind(["noto"]))

    first = made(Base, "1")
    assert first == made(Base, "1") and first["package_version"] == "1" and len(first["code_sha256"]) == 64
    assert first != made(Base, "2") and first["code_sha256"] != made(Other, "1")["code_sha256"]


def test_another_table_makes_a_finished_report_of_it_out_of_date(service, query):
    from guda_core.reports.batch import _used

    record = {
        "methods": {m: {"settings": a.settings} for m, a in ask(service, query, "brightness", "darkness").items()}
    }
    here = service.provenance()
    assert _used(record, here)
    record["methods"]["darkness"]["settings"]["parts"]["brightness"]["table_sha256"] = sha("another")
    assert not _used(record, here)


def test_the_command_line_takes_it_and_says_what_its_score_means(service, query, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "load_service", lambda *a, **k: service)
    Image.fromarray(query.pixels).save(tmp_path / "p.png")
    options = ["attribute", str(tmp_path / "p.png"), "--effort", "quick", "--json", str(tmp_path / "r.json")]
    done = CliRunner().invoke(app, [*options, "--methods", "brightness"])
    assert done.exit_code == 0, done.output
    assert Brightness.name in done.output and NOTE in " ".join(done.output.split())
    record = json.loads((tmp_path / "r.json").read_text())
    assert list(record["methods"]) == ["brightness"] and record["settings"]["methods"] == ["brightness"]
    assert CliRunner().invoke(app, options).exit_code == 0  # the default methods, of which it is one
    assert json.loads((tmp_path / "r.json").read_text())["settings"]["methods"] == ["guda", "clip", "brightness"]


@pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # gradio's use of pandas 3
def test_the_page_offers_it_draws_its_bars_and_says_its_note(service, query, tmp_path, monkeypatch):
    from tests.fakes import serving

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    with serving(service) as url:
        parts = httpx.get(f"{url}config", timeout=20).json()["components"]
        (asked,) = (p["props"] for p in parts if p["props"].get("label") == "Methods")
        assert [Brightness.name, "brightness"] in [list(c) for c in asked["choices"]]
        pages = " ".join(str(p["props"].get("value")) for p in parts if p["type"] == "html")
        assert (
            "Brightness &lt;&amp;&gt;" in pages and "&lt;b&gt;in the list&lt;/b&gt;" in pages and "<b>in" not in pages
        )
        client = Client(url, verbose=False, download_files=tempfile.mkdtemp())
        out = client.predict("a cat", 1, 5, 3.0, ["brightness"], "quick", api_name="/page_generate")
        assert "First: " in out[0] and "Brightness &lt;&amp;&gt; puts this group first" in out[0]
        assert any('aria-label="Scores by Brightness &lt;&amp;&gt;' in str(v) for v in out)
        record = client.predict("a cat", 1, 5, 3.0, ["brightness"], "quick", api_name="/generate_and_attribute")
        assert list(record["methods"]) == ["brightness"] and f"{Brightness.name}: {NOTE}" in record["limits"]


def test_the_other_screens_know_it(service, query):
    found = ask(service, query, "brightness", "darkness")
    answer = Answer(query, ("brightness", "darkness"), "quick", found)
    beside = compare.shown(answer, service)
    assert "Rank: Brightness &lt;&amp;&gt;" in beside and "Darkness" in beside
    hashes = inspect.hashes(service, service.provenance(), answer)
    assert sha("table") in hashes and "Brightness &lt;&amp;&gt;: table<" in hashes


def test_what_a_class_must_say_and_does_not_is_why_it_is_not_offered(service, caplog):
    class Mute(Brightness):
        id = "mute"
        note = None  # type: ignore[assignment]

    class Damaged(Brightness):
        id = "damaged"

        @classmethod
        def load(cls, context: Context) -> Brightness:
            raise CacheError("Its table is damaged.")

    class Orphan(Darkness):
        id, needs = "orphan", ("colours",)

    class Chicken(Darkness):
        id, needs = "chicken", ("egg",)

    class Egg(Darkness):
        id, needs = "egg", ("chicken",)

    added = {"mute": Mute, "absent": "no_such_module:x", "damaged": Damaged, "orphan": Orphan}
    added |= {"chicken": Chicken, "egg": Egg, "named": f"{__name__}:Brightness"}
    with registered(added):
        loaded, refused = load_methods(Context(service.model, service.group_set))
    assert set(loaded) == {"brightness", "darkness"}  # there is no CLIP, no adapter and nothing else in this context
    said = {
        "mute": "does not say its note", "absent": "cannot be imported",
        "damaged": "Its table is damaged.", "orphan": "made from colours, which cannot be offered",
        "chicken": "made from egg", "egg": "made from chicken", "named": "calls itself 'brightness'",
        "clip": "no CLIP", "guda": "no adapters", "das": "gradient features", "logo": "no retrained models",
        "combined": "made from guda, das",
    }  # fmt: skip
    assert all(part in refused[m] for m, part in said.items()), refused
    own = f"--set {service.group_set.id} {called(service.model.card)}"
    assert f"`guda assets features --methods das {own}`" in refused["das"]
    assert f"`guda assets introstyle {own}`" in refused["introstyle"] and "own-oracle.md" in refused["logo"]
    assert "Brightness <&> is not offered. Its table is damaged." in caplog.text


class Odd(Brightness):
    """A method whose answers, or whose error, are what a test wants."""

    id, default, gives = "odd", False, None

    def attribute(self, query: Query, budget: Budget) -> Iterator[Attribution]:
        *_, whole = super().attribute(query, budget)
        yield from type(self).gives(replace(whole, method="odd"))  # type: ignore[misc]


def odd(service, query, gives) -> Attribution:
    Odd.gives = staticmethod(gives)
    service.offered["odd"] = Odd(list(service.group_set.groups))
    try:
        return ask(service, query, "odd")["odd"]
    finally:
        del service.offered["odd"]


def nested(depth: int) -> dict[str, Any]:
    return {"in": nested(depth - 1)} if depth else {}


def scored(a: Attribution, *numbers: Any) -> list[Attribution]:
    return [replace(a, groups=dict.fromkeys(a.groups, GroupScore(*numbers)), runner_up=None)]


@pytest.mark.parametrize(
    ("gives", "why"),
    [
        (lambda a: scored(a, float("nan"), 0.0, 1.0), "no score for 'twemoji' that can be used: nan"),
        (lambda a: scored(a, float("inf"), 0.0, 1.0), "that can be used: inf"),
        (lambda a: scored(a, 1.0, 5.0, -2.0), "from 5.0 to -2.0"),
        (lambda a: scored(a, 9.0, 0.0, 2.0), "9.0, from 0.0 to 2.0"),
        (lambda a: scored(a, float("nan"), None, None, "no_score"), "nan, from None"),
        (lambda a: scored(a, 1.0, 0.0, 2.0, "fine"), r"\(fine\)"),
        (lambda a: [replace(a, progress=float("nan"))], "progress that is not between 0 and 1: nan"),
        (lambda a: [replace(a, progress="1")], "progress that is not between 0 and 1: 1"),
        (lambda a: scored(a, "1", 0.0, 1.0), "that can be used: 1"),
        (lambda a: scored(a, None, None, None), 'the status is "no_score"'),
        (lambda a: [replace(a, groups=dict.fromkeys(a.groups, 1.0))], "gave float for 'twemoji'"),
        (lambda a: [replace(a, groups=dict(list(a.groups.items())[:3]))], "for each group of the set"),
        (lambda a: [replace(a, groups={**a.groups, "zzz": GroupScore(1.0, 1.0, 1.0)})], "for each group of the set"),
        (lambda a: [replace(a, progress=0.5)], "ended before its answer was whole"),
        (lambda a: [], "ended before its answer was whole"),
        (lambda a: [replace(a, method="clip")], "gave no answer of its own"),
        (lambda a: [dict(a.groups)], "gave no answer of its own, but dict"),
        (lambda a: 1 / 0, r"failed \(ZeroDivisionError: division by zero\)"),
        (lambda a: None, r"failed \(TypeError"),
        (lambda a: [replace(a, settings={"at": Path("/x")})], r"a report cannot hold: \w+Path\('/x'\)"),
        (lambda a: [replace(a, settings={"of": [np.float32("nan")]})], "a report cannot hold: nan"),
        (lambda a: [replace(a, settings={1: "x"})], "a report cannot hold: {1: 'x'}"),
        (lambda a: [replace(a, settings={"of": np.longdouble(1.5)})], "a report cannot hold: "),
        (lambda a: [replace(a, settings=nested(50))], "no more than 20 deep"),
        (lambda a: [replace(a, settings={"n": 10**400})], "a report cannot hold: 1000"),
        (lambda a: [replace(a, values={"map": np.zeros((2, 2))})], "with values = "),
        (lambda a: [replace(a, values={"../x": np.zeros(2)})], "with values = "),
        (lambda a: [replace(a, values={"x": np.array([np.nan])})], "with values = "),
        (lambda a: [replace(a, values={"x": np.array([None])})], "with values = "),
        (lambda a: [replace(a, separable="yes")], "with separable = 'yes'"),
        (lambda a: [replace(a, runner_up=["x"])], "with runner_up = "),
        (lambda a: [replace(a, runner_up="nobody")], "names a second group that is not the second by its scores: 'nob"),
        (lambda a: [replace(a, runner_up=a.ranked()[2])], "names a second group that is not the second by its scores"),
        (lambda a: [replace(a, settings={"offset": 0.5})], "an offset that names no number for each group"),
        (lambda a: [replace(a, settings={"offset": {"noto": None}})], "an offset that names no number"),
        (lambda a: [replace(a, unit=3)], "with unit = 3"),
        (lambda a: [replace(a, kl="x")], "with kl = 'x'"),
        (lambda a: scored(a, 1e308, 0.0, 1.5e308), r"that can be used: 1e\+308"),
        (lambda a: sys.exit("enough"), r"failed \(SystemExit: enough"),
    ],
)
def test_what_a_method_of_others_gives_wrong_is_said_and_names_it(service, query, gives, why):
    with pytest.raises(ScoreError, match=f"[Tt]he .*'odd' .*{why}"):
        odd(service, query, gives)


def test_a_method_of_others_that_fails_before_its_first_answer_is_said_too(service, query):
    class AtOnce(Odd):
        def attribute(self, query: Query, budget: Budget) -> Iterator[Attribution]:
            raise ValueError("no driver")  # no generator: this is raised when it is called

    service.offered["odd"] = AtOnce(list(service.group_set.groups))
    try:
        with pytest.raises(ScoreError, match=r"The method 'odd' failed \(ValueError: no driver"):
            ask(service, query, "odd")
    finally:
        del service.offered["odd"]


@pytest.mark.parametrize(
    ("combine", "why"),
    [
        (lambda a: scored(a, float("nan"), 0.0, 1.0)[0], "that can be used: nan"),
        (lambda a: None, "gave no answer of its own, but NoneType"),
        (lambda a: 1 / 0, r"failed \(ZeroDivisionError"),
        (lambda a: replace(a, progress=0.5), "ended before its answer was whole"),
    ],
)
def test_what_a_combination_of_others_gives_wrong_is_said_too(service, query, combine, why):
    class Mixed(Darkness):
        id = "mixed"

        def combine(self, parts: dict[str, Attribution]) -> Attribution:
            a = super().combine(parts)
            return combine(replace(a, method="mixed")) if a.progress == 1 else replace(a, method="mixed")

    mixed = Mixed({"brightness": service.offered["brightness"]})
    with pytest.raises(ScoreError, match=f"The method 'mixed' .*{why}"):
        list(answers({**mixed.parts, "mixed": mixed}, ["mixed"], query, Budget()))


def test_numpys_numbers_become_plain_ones_and_a_missing_score_is_taken(service, query):
    found = odd(service, query, lambda a: scored(a, np.float32(0.5), np.int64(0), 1))
    assert {type(x) for s in found.groups.values() for x in (s.score, s.low, s.high)} == {float}
    assert found.groups["twemoji"] == GroupScore(0.5, 0.0, 1.0)
    settings = {"k": np.float32(0.5), "of": [np.int64(1), {"array": np.arange(2)}]}
    told = odd(service, query, lambda a: [replace(a, settings=settings, progress=np.float64(1))])
    said = json.loads(json.dumps(told.settings))
    assert said.pop("code_sha256") and said == {"k": 0.5, "of": [1, {"array": [0, 1]}]}
    assert type(told.progress) is float
    none = odd(service, query, lambda a: scored(a, None, None, None, "no_score", "It has none."))
    assert none.ranked() == []


def test_what_a_method_of_others_no_longer_says_loses_no_answer_of_another(service, query, monkeypatch):
    """All methods are asked about themselves when an answer is written down, also those that nobody asked."""

    class Fickle(Brightness):
        id, default, __module__ = "fickle", False, "plug.in"

    method = Fickle(list(service.group_set.groups))
    monkeypatch.setitem(service.offered, "fickle", method)
    for part in ("caveat", "provenance", "models", "info", "cost"):
        monkeypatch.setattr(method, part, lambda *given: 1 / 0, raising=False)
    said = service.provenance()
    assert said.made_from["fickle"] == {"error": "The method 'fickle' failed (ZeroDivisionError: division by zero)."}
    assert "The method 'fickle' failed" in said.caveat and "fickle" not in said.models
    assert service.methods()["fickle"].name == Fickle.name
    assert ask(service, query, "clip")["clip"].ranked() and service.cost(["clip"], "quick") is not None
    with pytest.raises(ScoreError, match="The method 'fickle' failed"):
        service.cost(["fickle"], "quick")


def test_a_method_of_others_that_breaks_takes_no_other_with_it(service, caplog, tmp_path, monkeypatch):
    def broken(error: Exception):
        def load(cls, context: Context) -> Brightness:
            raise error

        return classmethod(load)

    def kind(m: str, **parts: Any) -> type:
        return type(m, (Brightness,), {"id": m, "__module__": "plug.in", **parts})

    (tmp_path / "broken_plug.py").write_text("raise RuntimeError('no driver')")
    (tmp_path / "unread_plug.py").write_text("def :")
    (tmp_path / "leaving_plug.py").write_text("import sys\nsys.exit('no licence key')")
    monkeypatch.syspath_prepend(tmp_path)
    added = {
        "broken": "broken_plug:x", "unread": "unread_plug:x", "leaving": "leaving_plug:x", "function": lambda: None,
        "text": kind("text", needs="clip"), "value": kind("value", load=broken(ValueError("no table"))),
        "nothing": kind("nothing", load=classmethod(lambda cls, context: None)),
        "unsaid": kind("unsaid", provenance=lambda self: 1 / 0),
        "unheld": kind("unheld", provenance=lambda self: {"at": {1, 2}}),
        "list": kind("list", provenance=lambda self: [1]), "none": kind("none", needs=None),
        "numbers": kind("numbers", needs=(3,)), "my_method": kind("my_method"), "a" * 61: kind("a" * 61),
        "three": kind("three", caveat=lambda self: 3), "mute": kind("mute", info=lambda self: None),
        "reason": kind("reason", load=classmethod(lambda cls, context: Unavailable(None))),
        "nowhere": type("nowhere", (Brightness,), {"id": "nowhere", "__module__": None, "caveat": lambda self: 1 / 0}),
        "greedy": kind("greedy", load=classmethod(lambda cls, context: context.loaded.clear())),
    }  # fmt: skip
    with registered(added):
        loaded, refused = load_methods(Context(service.model, service.group_set))
    assert set(loaded) == {"brightness", "darkness"}
    said = {
        "broken": "cannot be imported (RuntimeError: no driver)", "unread": "cannot be imported (SyntaxError",
        "leaving": "cannot be imported (SystemExit: no licence key)",
        "function": "no class made from Method", "text": "no tuple of ids, such as ('clip',): 'clip'",
        "value": "cannot be loaded (ValueError: no table)", "nothing": "its load gives NoneType",
        "unsaid": "cannot be loaded (ZeroDivisionError", "unheld": "what a report cannot hold: {1, 2}",
        "list": "is list, not a mapping", "none": "no tuple of ids", "numbers": "no tuple of ids",
        "my_method": "An id has a-z and 0-9", "a" * 61: "at most 60 letters", "three": "its caveat gives int",
        "mute": "its info gives NoneType", "reason": "is no text", "nowhere": "ZeroDivisionError",
        "greedy": "AttributeError",
    }  # fmt: skip
    assert {m: refused[m] for m, part in said.items() if part not in refused[m]} == {}
    assert "of plug.in cannot be loaded" in caplog.text
    assert caplog.text.count("Traceback") == 8  # of what failed in its own methods
    assert "the package 'broken_plug'" in refused["broken"] and "the package 'plug'" in refused["value"]

    class Ours(Brightness):
        id, __module__ = "ours", "guda_core.somewhere"
        load = broken(ValueError("a fault of ours is seen"))

    with registered({"ours": Ours}), pytest.raises(ValueError, match="a fault of ours is seen"):
        load_methods(Context(service.model, service.group_set))


def test_a_command_names_model_lora_and_set():
    """Where a model of somebody's own lies is private: MODEL stands for it."""

    def command(card: Card, group_set: str) -> str:
        return Context(SimpleNamespace(card=card), SimpleNamespace(id=group_set)).command("assets features")

    emoji = find_card("emoji")
    own = replace(emoji, id="brush", path="/home/ann/brush", source="folder")
    hub = replace(own, path="ann/brush", source="hub")
    assert command(emoji, "emoji") == "guda assets features --set emoji --model emoji"
    assert command(own, "artists") == "guda assets features --set artists --model MODEL"
    assert command(hub, "artists") == "guda assets features --set artists --model ann/brush"
    assert command(replace(hub, lora="/x/f.safetensors"), "a").endswith("--model ann/brush --lora FILE")


def test_needs_are_counted_once_and_in_order(service):
    offered = service.offered
    assert with_needs(offered, ["darkness"]) == ["darkness", "brightness"]
    assert total_cost(offered, ["darkness", "brightness"], Budget(draws=1)).forward == 100
    assert list(answers(offered, [], None, Budget())) == []  # type: ignore[arg-type]


def test_no_method_is_named_outside_its_room():
    """Ids as string constants in the product's code, beside the room of methods and texts about the laboratory."""
    import ast

    allowed = {
        "__main__.py": {"guda"},  # the name of the command
        "api.py": {"guda"},  # the default that the function's signature shows
        "paths.py": {"guda"},  # a folder
        "cli/assets_command.py": {"clip", "introstyle"},  # that of the CLIP
        "local.py": {"clip"},
        "data/embeddings.py": {"clip"},  # a kind of encoder
        "data/encoders.py": {"clip"},
        "publishing/hub_card.py": {"guda"},  # a tag
        "scoring/parts.py": {"guda"},  # the key of what a Parquet file tells of itself
        "unlearning/group_jobs.py": {"logo"},  # the folder of an own oracle
        "unlearning/run.py": {"clip"},
        "reports/record.py": {"clip"},  # the key of the CLIP's hashes in a record
        "reports/replay.py": {"clip"},
        "reports/page_tables.py": {"clip"},
        "reports/two_reports.py": {"clip"},
        "ui/benchmarks.py": {"guda", "clip", "logo"},  # keys of the laboratory's sanity.json and costs.json
    }
    root = Path(local.__file__).parent
    found: dict[str, set[str]] = {}
    ids = {"clip", "introstyle", "trak", "dtrak", "das", "guda", "combined", "logo"}
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        if name.startswith("attribution/"):
            continue
        named = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)} & ids
        if named - allowed.get(name, set()):
            found[name] = named
    assert found == {}


def test_what_the_methods_mean_stands_on_the_limits_page(service, monkeypatch):
    drawn: list[str] = []
    monkeypatch.setattr(about, "block", lambda value, **more: drawn.append(value))
    about.draw_limits(service)
    assert "&lt;b&gt;in the list&lt;/b&gt;" in " ".join(drawn)


def test_what_has_to_be_said_of_a_methods_parts_is_said_beside_it_once():
    methods = {m: METHODS[m].info() for m in ("clip", "guda", "das", "combined")}
    told = {"": "A flow.", "guda": "Drafts.", "das": "Older.", "clip": "Likeness."}
    made = replace(fake_provenance(load_group_set("emoji"), {}), methods=methods, caveats=told)
    assert made.said_of(["combined"]) == made.said_of(["guda", "combined", "das"]) == ["A flow.", "Drafts.", "Older."]
    assert made.said_of(["clip"]) == ["A flow.", "Likeness."] and made.said_of(["unknown"]) == ["A flow."]
