"""The prompt that a program wrote into the picture that it made: what may be offered as the picture's caption.

    A1111 and its relatives   "parameters": the prompt, then "Negative prompt: ..." and "Steps: ..."
    Fooocus                   the same, or JSON with "prompt"
    ComfyUI                   "prompt": the graph of nodes as JSON; the prompt is the text behind a sampler's "positive"
    InvokeAI                  "invokeai_metadata": JSON with "positive_prompt"; before that "sd-metadata"

PNG keeps these as text chunks; JPEG and WebP as Exif (UserComment; ComfyUI: Make and Model). A UserComment of another
form is none: phones and people write into it too. The text is anybody's: it is only ever offered, never taken without
being shown.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from guda_core.data.apart import HERE
from guda_core.data.containers import is_crowded
from guda_core.data.decoding import kind_of
from guda_core.data.exif import is_heavy
from guda_core.data.prompts import MAX_PROMPT

MOST = 200_000  # characters that are looked at
EXIF, USER_COMMENT, MAKE, MODEL, SOFTWARE = 0x8769, 0x9286, 0x010F, 0x0110, 0x0131
A1111, COMFY, FOOOCUS, INVOKE = "A1111", "ComfyUI", "Fooocus", "InvokeAI"
ENDS = re.compile(r"^(Negative prompt: |Steps: \d+, )", re.MULTILINE)
STEPS = re.compile(r"^Steps: \d+, ", re.MULTILINE)  # what these programs write, and others do not
TEXTS = ("text", "text_g", "clip_l", "t5xxl", "prompt", "string", "value")  # of a node that holds or passes on words
LINKS = (*TEXTS, "positive", "conditioning", "conditioning_1", "conditioning_to")


@dataclass(frozen=True)
class Written:
    """A prompt as it may be offered, at most `MAX_PROMPT` characters, and the program whose form it has. cut: whether
    it was longer."""

    prompt: str
    program: str
    cut: bool = False


def written_prompt(data: bytes) -> Written | None:
    """The prompt in a file's bytes; None where there is none that can be read. No pixel is decoded."""
    if is_crowded(data, kind_of(data)):
        return None
    try:
        with Image.open(io.BytesIO(data), formats=HERE) as im:
            texts = _texts(im)
    except Exception:  # a broken file is refused by the door, in a sentence; here it only has no prompt
        return None
    for program, found in _candidates(texts):
        prompt = " ".join("".join(c if c.isprintable() else " " for c in found).split())
        if prompt:
            short = prompt if len(prompt) <= MAX_PROMPT else prompt[: MAX_PROMPT + 1].rsplit(" ", 1)[0][:MAX_PROMPT]
            return Written(short, program, short != prompt)
    return None


def _texts(im: Image.Image) -> dict[str, str]:
    """Everything that may hold a prompt, by the name that PNG gives it."""
    texts = {str(k): v[:MOST] for k, v in im.info.items() if isinstance(v, str)}
    if "exif" in im.info and not is_heavy(im.info["exif"]):
        tags = im.getexif()
        for tag in (MAKE, MODEL):
            name, _, rest = str(tags.get(tag, "")).partition(":")
            texts.setdefault(name.lower(), rest[:MOST])
        texts["software"] = str(tags.get(SOFTWARE, ""))
        comment = _comment(tags.get_ifd(EXIF).get(USER_COMMENT))[:MOST]
        if STEPS.search(comment) or _json(comment):
            texts.setdefault("parameters", comment)
    return texts


def _comment(value: Any) -> str:
    """An Exif UserComment: 8 bytes that name its letters, then the text."""
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        return ""
    if not value.startswith(b"UNICODE\0"):
        return value.removeprefix(b"ASCII\0\0\0").decode("utf-8", "replace")
    ways = [value[8:].decode(f"utf-16-{order}", "replace") for order in ("be", "le")]  # each program has its own
    return max(ways, key=lambda text: sum(" " <= c <= "~" for c in text)).removeprefix("\ufeff")


def _candidates(texts: Mapping[str, str]) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    if (meta := _json(texts.get("invokeai_metadata"))) and isinstance(meta.get("positive_prompt"), str):
        out.append((INVOKE, meta["positive_prompt"]))
    if old := _json(texts.get("sd-metadata")):
        image = old.get("image")
        found = image.get("prompt") if isinstance(image, dict) else None
        found = found[0] if isinstance(found, list) and found else found
        found = found.get("prompt") if isinstance(found, dict) else found
        if isinstance(found, str):
            out.append((INVOKE, found))
    if parameters := texts.get("parameters"):
        fields, fooocus = _json(parameters), "fooocus_scheme" in texts or texts.get("software", "").startswith(FOOOCUS)
        if fields is None:
            out.append((FOOOCUS if fooocus else A1111, ENDS.split(parameters, maxsplit=1)[0]))
        elif isinstance(fields.get("prompt"), str):
            out.append((FOOOCUS, fields["prompt"]))
    if graph := _json(texts.get("prompt")):
        out.append((COMFY, _of_graph(graph)))
    return out


def _json(text: str | None) -> dict[str, Any] | None:
    """The object in a text; None where there is no such."""
    if not text or not text.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _of_graph(graph: Mapping[str, Any]) -> str:
    """The text that a sampler of a graph is told to draw; "" where none is found."""
    nodes = {str(k): n["inputs"] for k, n in graph.items() if isinstance(n, dict) and isinstance(n.get("inputs"), dict)}
    seen: set[str] = set()
    for start in ("positive", "conditioning"):
        for inputs in nodes.values():
            if found := _behind(inputs.get(start), nodes, seen):
                return found
    return ""


def _behind(link: Any, nodes: Mapping[str, Mapping[str, Any]], seen: set[str]) -> str:
    """The first text that is reached through a link, [id of a node, number of its output].

    seen: nodes with nothing behind them, grows: none is looked at twice, so a graph takes no longer than its size.
    """
    ahead = [link] if isinstance(link, list) else []  # what is next comes last
    while ahead:
        value = ahead.pop()
        if isinstance(value, str):
            if value.strip():
                return value
        elif isinstance(value, list) and value and isinstance(value[0], str | int):
            id = str(value[0])
            inputs = nodes.get(id, {}) if id not in seen else {}
            seen.add(id)
            values = ((name, inputs.get(name)) for name in reversed(LINKS)) if inputs else ()
            ahead += [v for name, v in values if name in TEXTS or not isinstance(v, str)]
    return ""
