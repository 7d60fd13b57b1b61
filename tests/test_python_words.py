"""Errors of the library name arguments, those of the command line options; what is to be typed stays."""

from __future__ import annotations

import pytest

import guda_core
from guda_core.errors import OptionError
from guda_core.python_words import in_python, speaks_python


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Name another folder with --out.", "Name another folder with out."),
        ("The fit (--fit) is one of crop, pad.", "The fit (fit) is one of crop, pad."),
        ("To leave them out, add --broken 0.05.", "To leave them out, add broken=0.05."),
        ("Write it anew: add --again.", "Write it anew: add again=True."),
        ("Use --fit crop or --fit pad.", "Use fit='crop' or fit='pad'."),
        ("Name them with --groups, a set with --set.", "Name them with only, a set with groups."),
        ("Take it with --image-column, or use --home FOLDER.", "Take it with image_column, or use GUDA_HOME FOLDER."),
        (
            "Run `guda unlearn --groups a --again` or add --again",
            "Run `guda unlearn --groups a --again` or add again=True",
        ),
        ("A dash -- or a--b or ---x is no option.", "A dash -- or a--b or ---x is no option."),
    ],
)
def test_options_become_arguments(said, told):
    assert in_python(said) == told


def test_a_function_that_speaks_python_gives_what_it_gave_and_raises_what_it_raised():
    @speaks_python
    def divided(a: int, by: int = 1) -> float:
        """Its words."""
        if not by:
            raise OptionError("Add --by 2.")
        return a / by

    assert divided(4, by=2) == 2 and divided.__doc__ == "Its words."
    with pytest.raises(OptionError, match=r"^Add by=2\.$"):
        divided(1, 0)
    with pytest.raises(ZeroDivisionError):
        speaks_python(lambda: 1 / 0)()


def test_the_librarys_functions_do(home):
    with pytest.raises(OptionError) as said:
        guda_core.make_groups(home, held_out=2)
    assert "held_out" in str(said.value) and "--" not in str(said.value)
