"""Errors of the library name arguments, those of the command line options; what is to be typed stays."""

from __future__ import annotations

import ast
import re

import pytest

import guda_core
from guda_core.errors import OptionError
from guda_core.python_words import in_python, speaks_python
from tests.test_architecture import ROOT


def function(out, groups=None, only=(), broken=None, fit="crop", image_column=None, ray=None, *, again=False):
    """With arguments of many kinds."""


def loads(name=None):
    """With few."""


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Name another folder with --out.", "Name another folder with `out`."),
        ("The fit (--fit) is one of crop, pad.", "The fit (`fit`) is one of crop, pad."),
        ("To leave them out, add --broken 0.05.", "To leave them out, add `broken=0.05`."),
        ("Write it anew: add --again.", "Write it anew: add `again=True`."),
        ("Use --fit crop or --fit pad.", "Use `fit='crop'` or `fit='pad'`."),
        (
            "Name it with --ray 10.0.0.1:6379. Else use --ray local.",
            "Name it with `ray='10.0.0.1:6379'`. Else use `ray='local'`.",
        ),
        ("Name them with --groups, a set with --set.", "Name them with `only`, a set with `groups`."),
        (
            "Take it with --image-column, or use --home FOLDER.",
            "Take it with `image_column`, or use `GUDA_HOME=FOLDER`.",
        ),
        ("A LoRA. Name it with --lora.", "A LoRA. Name it with `GUDA_LORA`."),
        (
            "Run `guda unlearn --groups a --again` or add --again",
            "Run `guda unlearn --groups a --again` or add `again=True`",
        ),
        ("There is no group set 'cats --groups'.", "There is no group set 'cats --groups'."),
        ("Use it without --draft.", "Use it without --draft."),
        (
            "The model's folder: name it with --out, not the set's.",
            "The model's folder: name it with `out`, not the set's.",
        ),
        ("A dash -- or a--b or ---x is no option.", "A dash -- or a--b or ---x is no option."),
    ],
)
def test_options_become_arguments(said, told):
    assert in_python(said, function) == told


def test_an_option_becomes_what_the_function_has():
    assert in_python("Name one with --set, or --model.", loads) == "Name one with `name`, or `name`."
    assert in_python("Name one with --out.", loads) == "Name one with --out."


def test_a_function_that_speaks_python_gives_what_it_gave_and_raises_what_it_raised():
    @speaks_python
    def divided(a: int, by: int = 1, of: str = "") -> float:
        """Its words."""
        if not by:
            raise OptionError(f"Add --by 2{of}.")
        return a / by

    assert divided(4, by=2) == 2 and divided.__doc__ == "Its words."
    with pytest.raises(OptionError, match=r"^Add `by=2`\.$"):
        divided(1, 0)
    with pytest.raises(OptionError, match=r"^Add `by=2` a --by file\.$"):
        divided(1, 0, of=" a --by file")
    for of in ([" a --by file"], (" a --by file",), {" a --by file": 1}, {"b": " a --by file"}):
        with pytest.raises(OptionError, match=r"^Add `by=2` a --by file\.$"):
            speaks_python(lambda by, of: _refuse())(0, of=of)
    with pytest.raises(ZeroDivisionError):
        speaks_python(lambda: 1 / 0)()


def _refuse():
    raise OptionError("Add --by 2 a --by file.")


def test_the_librarys_functions_do(home):
    with pytest.raises(OptionError) as said:
        guda_core.make_groups(home, held_out=2)
    assert "held_out" in str(said.value) and "--" not in str(said.value)


def test_commands_in_messages_stand_between_backticks():
    """Else their options would be taken for arguments. Texts that are commands and nothing else get them later."""
    found = []
    for path in sorted((ROOT / "guda_core").rglob("*.py")):
        if path.parent.name in ("cli", "ui"):
            continue
        tree = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        parts = {id(v) for node in tree if isinstance(node, ast.JoinedStr) for v in node.values}
        parts |= {id(node.value) for node in tree if isinstance(node, ast.Expr)}  # docstrings
        for node in tree:
            if isinstance(node, ast.JoinedStr | ast.Constant) and id(node) not in parts:
                said = re.sub(r"`[^`]*`", "", ast.unparse(node))
                whole = re.match(r"f?['\"]guda ", said)
                found += [f"{path.name}: {said}"] if re.search(r"guda [a-z]+[^.]* --", said) and not whole else []
    assert not found, found
