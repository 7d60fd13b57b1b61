"""The address fills the form with what is sound in it, and with nothing else."""

from __future__ import annotations

import gradio as gr
import pytest

from guda_core.ui import address

KNOWN = ("guda", "clip", "logo")
KEPT = "The form keeps its own."


def test_what_is_sound_is_read():
    drawn = {"prompt": " a  cat", "seed": "7", "steps": "30", "guidance": "4.5", "__theme": "dark"}
    read = address.read({**drawn, "effort": "full", "methods": "clip,guda", "captions": "1"}, KNOWN)
    settings = {"effort": "full", "methods": ["clip", "guda"], "captions": True}
    assert read == {"prompt": "a cat", "seed": 7, "steps": 30, "guidance": 4.5, **settings}
    assert tuple(read) == address.FIELDS and all(f'"{name}"' in address.WRITE for name in address.FIELDS)
    assert address.read({"captions": "0"}, KNOWN) == {"captions": False}


def test_methods_that_are_not_offered_are_left_out_with_a_sentence():
    some, none = {"methods": "removed, guda,guda"}, {"methods": "removed,<b>"}
    assert address.read(some, KNOWN) == {"methods": ["guda"]} and address.read(none, KNOWN) == {}
    for sound in ({}, {"methods": ""}, {"methods": "clip,logo"}, {"seed": "1"}):
        assert address.left_out(sound, KNOWN) == ""
    many = address.left_out({"methods": ",".join(f"id-{i}" for i in range(500))}, KNOWN)
    assert f"id-7 and 492 more. {KEPT}" in many and "id-8" not in many
    assert address.filled(none, KNOWN) == [gr.skip()] * len(address.FIELDS)


@pytest.mark.parametrize(
    ("methods", "said"),
    [("gone,guda", "The address asks for a method that is not offered here: gone. It is left out."),
     ("a,b,guda", "The address asks for 2 methods that are not offered here: a, b. They are left out."),
     ("gone", f"The address asks only for a method that is not offered here: gone. {KEPT}"),
     ("gone,Pay A!,b c", f"The address asks only for 3 methods that are not offered here: gone and 2 more. {KEPT}"),
     ("<b>", f"The address asks only for a method that is not offered here. {KEPT}"),
     ("x" * 41 + ",Y,guda", "The address asks for 2 methods that are not offered here. They are left out.")],
)  # fmt: skip
def test_only_what_looks_like_an_id_is_repeated(methods, said):
    assert address.left_out({"methods": methods}, KNOWN) == said


def test_where_no_method_is_ticked_the_address_brings_none():
    assert address.read({"methods": ""}, KNOWN) == {"methods": []} and address.left_out({"methods": ""}, KNOWN) == ""
    assert [] in address.filled({"methods": ""}, KNOWN)


@pytest.mark.parametrize(
    ("name", "value"),
    [("prompt", "x" * 2001), ("prompt", "a\0b"), ("seed", "-1"), ("seed", "1.5"), ("steps", "0"), ("steps", "many"),
     ("guidance", "nan"), ("guidance", "99"), ("effort", "endless"),
     ("methods", ",,"), ("methods", "nobody"), ("captions", ""), ("captions", "true")],
)  # fmt: skip
def test_what_is_not_is_left_out(name, value):
    other = "seed" if name != "seed" else "steps"
    assert address.read({name: value, other: "9"}, KNOWN) == {other: 9}


def test_values_stay_within_the_sliders():
    assert address.read({"steps": "200", "guidance": "20"}, KNOWN) == {"steps": 50, "guidance": 8.0}
