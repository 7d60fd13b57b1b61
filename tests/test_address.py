"""The address fills the form with what is sound in it, and with nothing else."""

from __future__ import annotations

import pytest

from guda_core.ui import address


def test_what_is_sound_is_read():
    given = {"prompt": " a  cat", "seed": "7", "steps": "30", "guidance": "4.5", "effort": "full", "__theme": "dark"}
    read = address.read(given)
    assert read == {"prompt": "a cat", "seed": 7, "steps": 30, "guidance": 4.5, "effort": "full"}
    assert tuple(read) == address.FIELDS and all(f'"{name}"' in address.WRITE for name in address.FIELDS)


@pytest.mark.parametrize(
    ("name", "value"),
    [("prompt", "x" * 301), ("prompt", "a\0b"), ("seed", "-1"), ("seed", "1.5"), ("steps", "0"), ("steps", "many"),
     ("guidance", "nan"), ("guidance", "99"), ("effort", "endless")],
)  # fmt: skip
def test_what_is_not_is_left_out(name, value):
    assert address.read({name: value, "seed" if name != "seed" else "steps": "9"}) == {
        "seed" if name != "seed" else "steps": 9
    }


def test_values_stay_within_the_sliders():
    assert address.read({"steps": "200", "guidance": "20"}) == {"steps": 50, "guidance": 8.0}
