"""Registries: members by line, by program and by installed package; imported only when asked for."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import EntryPoint

import pytest

from guda_core import registry
from guda_core.errors import OptionError
from guda_core.registry import Registry

LINES = {"fraction": "fractions:Fraction", "absent": "no_such_module:x"}
OURS = {"moved": "guda_core.no_such_module:x", "renamed": "guda_core.errors:NoSuchError"}


def test_a_line_is_imported_when_asked_for_and_stands_in_order():
    of = Registry("number", "guda_core.nothing", LINES)
    assert list(of) == ["fraction", "absent"] and len(of) == 2 and "absent" in of
    import fractions

    assert of["fraction"] is fractions.Fraction and of.find("fraction") is fractions.Fraction
    for look in (of.find, of.__getitem__):
        with pytest.raises(
            OptionError, match=r"The number 'absent' cannot be imported \(ModuleNotFoundError: No module"
        ):
            look("absent")
    ours = Registry("number", "guda_core.nothing", OURS)
    for id, fault in (("moved", ModuleNotFoundError), ("renamed", AttributeError)):  # a fault of ours is seen
        with pytest.raises(fault):
            ours[id]


def test_members_from_outside_are_added_once_and_removed():
    of = Registry("number", "guda_core.nothing", LINES)
    of.add("whole", int)
    assert of["whole"] is int and list(of)[-1] == "whole"
    of.add("whole", int)  # as a package's own module does that an entry point names
    of.add("whole", "builtins:int")
    with pytest.raises(OptionError, match="There is a number 'whole' already"):
        of.add("whole", float)
    of.remove("whole")
    with pytest.raises(OptionError, match=r"There is no number 'whole'. Known: fraction, absent."):
        of.find("whole")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (3, 'A number is a class, or a line "module:attribute" that names one; got int.'),
        ("nothing", "that names one; got 'nothing'."),
        (type("Mine", (), {"id": "yours"}), "This number calls itself 'yours', so it cannot be added as 'mine'."),
    ],
)
def test_what_can_be_no_member_is_refused_when_it_is_added(wrong, sentence):
    of = Registry("number", "guda_core.nothing", LINES)
    with pytest.raises(OptionError) as said:
        of.add("mine", wrong)
    assert sentence in str(said.value) and "mine" not in of


def test_a_line_that_names_a_member_by_a_module_that_hands_it_on_may_be_added_again(tmp_path, monkeypatch):
    (tmp_path / "handed_on").mkdir()
    (tmp_path / "handed_on" / "within.py").write_text("class Mine: ...\nclass Other: ...\n")
    (tmp_path / "handed_on" / "__init__.py").write_text("from handed_on.within import Mine, Other\n")
    monkeypatch.syspath_prepend(tmp_path)
    of = Registry("number", "guda_core.nothing", LINES)
    of.add("mine", "handed_on:Mine")
    mine = of["mine"]
    for again in ("handed_on:Mine", "handed_on.within:Mine", mine):
        of.add("mine", again)
        assert of["mine"] is mine
    with pytest.raises(OptionError, match="There is a number 'mine' already"):
        of.add("mine", "handed_on:Other")


def test_a_member_may_be_added_beside_a_line_that_leads_to_it(tmp_path, monkeypatch):
    """As by a package with an entry point whose own module adds the class, too."""
    (tmp_path / "leads").mkdir()
    (tmp_path / "leads" / "within.py").write_text("class Mine: ...\nclass Other: ...\n")
    (tmp_path / "leads" / "__init__.py").write_text("from leads.within import Mine, Other\n")
    monkeypatch.syspath_prepend(tmp_path)
    mine, other = (getattr(importlib.import_module("leads"), n) for n in ("Mine", "Other"))
    for first, second in (("leads:Mine", mine), (mine, "leads:Mine")):
        of = Registry("number", "guda_core.nothing", LINES)
        of.add("mine", first)
        before = of.changes
        of.add("mine", second)
        assert of["mine"] is mine and list(of)[-1] == "mine"
        for wrong in (other, "leads:Other", "leads:Nothing"):
            with pytest.raises(OptionError, match="There is a number 'mine' already"):
                of.add("mine", wrong)
        changes = of.changes
        of.add("mine", second)
        assert changes == of.changes >= before
        of.remove("mine")
        assert of.changes > changes


def test_a_package_may_add_the_member_of_its_line_while_it_is_imported(tmp_path, monkeypatch):
    of = Registry("number", "guda_core.nothing", {**LINES, "mine": "begins:Mine", "other": "begins:Other"})
    monkeypatch.setattr(importlib.import_module("decimal"), "NUMBERS_OF_THE_TEST", of, raising=False)
    (tmp_path / "begins").mkdir()
    (tmp_path / "begins" / "within.py").write_text(
        "from decimal import NUMBERS_OF_THE_TEST as of\nclass Mine: ...\nof.add('mine', Mine)\n"
    )
    (tmp_path / "begins" / "__init__.py").write_text("from begins.within import Mine\nOther = Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert of["mine"] is importlib.import_module("begins").Mine
    with pytest.raises(OptionError, match="There is a number 'other' already"):
        of.add("other", type("Mine", (), {"__module__": "begins"}))


def test_an_installed_package_adds_members_but_replaces_none(monkeypatch, caplog):
    points = [EntryPoint("decimal", "decimal:Decimal", "x"), EntryPoint("fraction", "builtins:int", "x")]
    points += [
        EntryPoint("within", "decimal:Decimal.from_float", "x"),
        EntryPoint("spaced", "decimal : Context [y]", "x"),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "guda_core.numbers" else [])
    of = Registry("number", "guda_core.numbers", LINES)
    from decimal import Context, Decimal
    from fractions import Fraction

    assert of["decimal"] is Decimal and of["fraction"] is Fraction
    assert of["within"] == Decimal.from_float and of["spaced"] is Context
    assert caplog.messages == ["The number 'fraction' is fractions:Fraction; builtins:int is left out."]


def test_making_a_registry_imports_nothing():
    sys.modules.pop("this", None)
    assert "this" in Registry("poem", "guda_core.nothing", {"this": "this:s"}) and "this" not in sys.modules
