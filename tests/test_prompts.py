"""Prompts and options of a generation: what passes, what is tidied, what is refused."""

from __future__ import annotations

import pytest

from guda_core.data.images import check_options, check_prompt
from guda_core.errors import OptionError, PromptError


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("  a cat  ", "a cat"),
        ("", ""),
        ("a\ncat\tand\r\n a   dog", "a cat and a dog"),
        ("Schwäbisch 日本 👩‍🎨", "Schwäbisch 日本 👩‍🎨"),
        (" " + "x" * 300 + " ", "x" * 300),
    ],
)
def test_prompts_are_tidied(prompt, expected):
    assert check_prompt(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("x" * 301, "301 characters; at most 300"),
        ("a\0b", r"U\+0000"),
        ("a\x1b[31mb", r"U\+001B"),
        ("a\x7fb", r"U\+007F"),
        ("a\x85b", r"U\+0085"),
        ("a\x1fb", r"U\+001F"),
        ("a\ud800b", r"U\+D800"),
        (None, "must be text"),
    ],
)
def test_prompts_are_refused(prompt, words):
    with pytest.raises(PromptError, match=words):
        check_prompt(prompt)


GOOD = {"seed": 0, "steps": 25, "guidance": 2.5}


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 0), ("seed", 2**32 - 1), ("steps", 1), ("steps", 200), ("guidance", 1), ("guidance", 20.0)],
)
def test_options_at_the_edge_pass(name, value):
    check_options(**{**GOOD, name: value})


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", v) for v in (-1, 2**32, 1.5, NAN, "7", True, None)]
    + [("steps", v) for v in (0, 201, 2.0, NAN, INF, "25", True)]
    + [("guidance", v) for v in (0.99, 20.01, NAN, INF, -INF, "3", True, None)],
)
def test_options_out_of_range_are_refused(name, value):
    with pytest.raises(OptionError, match=f"{name}|number of {name}"):
        check_options(**{**GOOD, name: value})
