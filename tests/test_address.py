"""The address fills the form with what is sound in it, and with nothing else."""

from __future__ import annotations

import gradio as gr
import pytest

from guda_core.ui import address

KNOWN = ("guda", "clip", "logo")


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
    assert address.left_out(some, KNOWN) == address.LEFT_OUT.format(ids="removed")
    assert address.left_out(none, KNOWN) == address.NONE_LEFT.format(ids="removed, <b>")
    for sound in ({}, {"methods": ""}, {"methods": "clip,logo"}, {"seed": "1"}):
        assert address.left_out(sound, KNOWN) == ""
    many = address.left_out({"methods": ",".join(f"{i}{'x' * 500}" for i in range(500))}, KNOWN)
    assert len(many) < 600 and many.count("xxx...") == address.MOST_NAMED
    assert address.filled(none, KNOWN) == [gr.skip()] * len(address.FIELDS)


@pytest.mark.parametrize(
    ("name", "value"),
    [("prompt", "x" * 301), ("prompt", "a\0b"), ("seed", "-1"), ("seed", "1.5"), ("steps", "0"), ("steps", "many"),
     ("guidance", "nan"), ("guidance", "99"), ("effort", "endless"),
     ("methods", ""), ("methods", ",,"), ("methods", "nobody"), ("captions", ""), ("captions", "true")],
)  # fmt: skip
def test_what_is_not_is_left_out(name, value):
    other = "seed" if name != "seed" else "steps"
    assert address.read({name: value, other: "9"}, KNOWN) == {other: 9}


def test_values_stay_within_the_sliders():
    assert address.read({"steps": "200", "guidance": "20"}, KNOWN) == {"steps": 50, "guidance": 8.0}
