"""Arguments: of the named endpoints of the app, and of the command line. hypothesis draws them."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from experiments.fuzz.mutations import drawn
from experiments.fuzz.set_door import laid_out, picture
from experiments.fuzz.trial import Door, is_fit
from guda_core.errors import OptionError

PICTURE, REPORT, FOLDER, PLACE = "@picture@", "@report@", "@folder@", "@place@"  # stand for files that are there
numbers = st.one_of(st.integers(), st.floats(), st.sampled_from((2**32, 10**400, -1, 5, 25, 1.5)))
texts = st.one_of(
    st.text(st.characters(), max_size=400),
    st.sampled_from(("", "a cat", "a" * 301, "(rocket:1.3)", "<|endoftext|>", "\ud800", "[/b]", "\0", "(" * 300, "猫")),
)
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)), max_leaves=8,
)  # fmt: skip


def mostly(*usual: Any) -> st.SearchStrategy[Any]:
    """Often one of the usual values, else anything."""
    return st.one_of(*[st.sampled_from(usual)] * 3, anything)


METHODS = mostly(
    ["clip"], ["guda"], ["clip", "guda"], ["magic"], [], "clip", ["clip", "clip"], [1], [None], {"clip": 1}
)
EFFORT = mostly("quick", "standard", "every", "huge", "", 3)
DRAW = {"prompt": st.one_of(mostly("a cat"), texts), "seed": mostly(0, 1, 2.0), "steps": mostly(1, 2, 5, 2.0)}
DRAW |= {"guidance": mostly(1.0, 2.5, 8)}
PATHS = st.one_of(
    st.sampled_from((PICTURE, PICTURE, PICTURE, REPORT, None, "", "/etc/passwd", "https://example.org/a.png")),
    st.sampled_from(("data:image/png;base64,AAAA", "..", "a" * 300, "\0", "~nobody/x", f"{PICTURE}/x", FOLDER)), texts,
)  # fmt: skip
PUT_IN = {"picture": PATHS, "caption": st.one_of(mostly("", "a cat", None), texts)}
ASKED = {"methods": METHODS, "effort": EFFORT}
ENDPOINTS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "generate": DRAW,
    "attribute": {**PUT_IN, **ASKED},
    "generate_and_attribute": {**DRAW, **ASKED},
    "report": {**PUT_IN, **ASKED},
    "replay": {"report": PATHS},
}
CALLS = st.one_of(
    [st.fixed_dictionaries({"name": st.just(n), "args": st.fixed_dictionaries(args)}) for n, args in ENDPOINTS.items()]
)


def api_inputs(seed: int) -> Iterator[bytes]:
    """Calls as JSON: the endpoint's name and its arguments."""
    return (json.dumps(call).encode() for call in drawn(CALLS, seed))


def _put(value: Any, places: dict[str, Path]) -> Any:
    if isinstance(value, str):
        for mark, path in places.items():
            value = value.replace(mark, str(path))
    return value


def start_api(folder: Path) -> Callable[[bytes], None]:
    """The functions behind the endpoints, with a tiny real model and few draws."""
    uploads = folder / "uploads"
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    from dataclasses import replace

    from experiments.fuzz import report_door
    from guda_core.service import EFFORTS
    from guda_core.ui.endpoints import Endpoints
    from tests.tiny import tiny_service

    EFFORTS.update({k: replace(e, draws=2, per_pass=1, race=None) for k, e in EFFORTS.items()})
    endpoints = Endpoints(tiny_service(folder / "service"))
    uploads.mkdir(parents=True, exist_ok=True)
    places = {PICTURE: uploads / "a.png", REPORT: uploads / "a.zip", FOLDER: uploads}
    places[PICTURE].write_bytes(picture(0))
    places[REPORT].write_bytes(next(report_door.inputs(0)))

    def tried(data: bytes) -> None:
        call = json.loads(data)
        args = {k: _put(v, places) for k, v in call["args"].items()}
        for _ in getattr(endpoints, call["name"])(**args):
            pass

    return tried


API = Door("api", api_inputs, start_api, memory_mb=400)

USUAL = (
    PICTURE, PICTURE, REPORT, FOLDER, PLACE, "", "-", "--", "..", "~nobody/x", "a" * 300, "emoji", "no-set", "hub:a/b",
    "a/b", "x.ckpt", "x.safetensors", "x.yaml", "[/b]", "quick", "clip", "0", "-1", "1e999", "nan", "9" * 30, "é", "猫",
)  # fmt: skip
WORDS = st.one_of(st.sampled_from(USUAL), st.text(st.characters(exclude_characters="\0"), max_size=30))
OF_ATTRIBUTE = "--prompt --effort --methods --json --report --out --prompts --model --lora --dtype --set --home"
OF_NEW = "--name --held-out --seed --phrase --fit --resolution --broken --folder --split --image-column --again --home"
OPTIONS = {
    ("attribute",): OF_ATTRIBUTE.split(),
    ("generate",): ["--prompt", "--out", "--seed", "--steps", "--guidance", "--model", "--lora", "--set", "--home"],
    ("replay",): ["--model", "--set", "--home"],
    ("groups", "check"): ["--set", "--sheet", "--model", "--home"],
    ("groups", "new"): OF_NEW.split(),
    ("assets",): ["--help"],
    (): ["--version", "--help", "--nothing"],
}


@st.composite
def _lines(draw: st.DrawFn) -> list[str]:
    command = draw(st.sampled_from(sorted(OPTIONS)))
    words = [*command, *draw(st.lists(WORDS, max_size=2))]
    for option in draw(st.lists(st.sampled_from(OPTIONS[command]), max_size=4)):
        words += [option, draw(WORDS)] if draw(st.integers(0, 9)) else [option]
    return words


def line_inputs(seed: int) -> Iterator[bytes]:
    """Words of a command as JSON."""
    return (json.dumps(words).encode() for words in drawn(_lines(), seed))


def start_line(folder: Path) -> Callable[[bytes], None]:
    """The commands that neither train nor serve, in this process; what they load is a service without a model where
    the model's name is a good one."""
    from experiments.fuzz import report_door
    from guda_core.cli import app, attribute_command, generate_command, replay_command
    from guda_core.data.groups import chosen_set, load_group_set
    from guda_core.diffusion.cards import chosen_card
    from tests.fakes import FakeService

    def service_of(model: str | None, group_set: str | None = None) -> FakeService:
        card = chosen_card(model)
        return FakeService(group_set=load_group_set(chosen_set(group_set, card.group_set)))

    for module in (attribute_command, generate_command, replay_command):
        vars(module)["service_of"] = service_of
    sound, place = folder / "sound", folder / "place"
    laid_out(sound)
    place.mkdir()
    os.chdir(place)
    places = {PICTURE: folder / "a b [c].png", REPORT: folder / "a.zip", FOLDER: sound, PLACE: place / "written"}
    places[PICTURE].write_bytes(picture(0))
    places[REPORT].write_bytes(next(report_door.inputs(0)))
    kept = dict(os.environ)

    def tried(data: bytes) -> None:
        os.environ.clear()
        os.environ.update(kept)
        words = [_put(w, places) for w in json.loads(data)]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = app(words, standalone_mode=False)
        text = err.getvalue()
        said = text[text.rindex("Error: ") :].strip() if "Error: " in text else ""
        if code == 2 and said:
            if not is_fit(said):
                raise AssertionError(f"An unfit text on the terminal: {said[:2000]!r}")
            raise OptionError(said)

    return tried


COMMAND_LINE = Door("command_line", line_inputs, start_line, memory_mb=400)
