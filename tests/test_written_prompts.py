"""Prompts that four programs write into their pictures are found, in PNG, JPEG and WebP; nothing else is."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from guda_core.data.prompts import MAX_PROMPT
from guda_core.data.written_prompts import LINKS, _of_graph, written_prompt

PROMPT = "house with garden, (flat colours:1.2)"
WEBUI = f"{PROMPT}\nNegative prompt: photo\nSteps: 20, Sampler: DDIM, CFG scale: 5, Seed: 77"
GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {"positive": ["8", 0], "negative": ["7", 0]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "photo", "clip": ["4", 1]}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["9", 0]}},
    "8": {"class_type": "ControlNetApply", "inputs": {"conditioning": ["6", 0], "strength": 1.0}},
    "9": {"class_type": "PrimitiveString", "inputs": {"value": PROMPT}},
}
LOOP = {"1": {"inputs": {"positive": ["2", 0]}}, "2": {"inputs": {"conditioning": ["2", 0]}}}
IMAGE = Image.new("RGB", (16, 16), "teal")


def png(**texts: str) -> bytes:
    info, out = PngInfo(), io.BytesIO()
    for key, text in texts.items():
        info.add_itxt(key.replace("_dash_", "-"), text)
    IMAGE.save(out, "PNG", pnginfo=info)
    return out.getvalue()


def with_exif(kind: str, tags: dict[int, str] | None = None, comment: bytes | None = None) -> bytes:
    exif, out = Image.Exif(), io.BytesIO()
    for tag, text in (tags or {}).items():
        exif[tag] = text
    if comment is not None:
        exif.get_ifd(0x8769)[0x9286] = comment
    IMAGE.save(out, kind, exif=exif.tobytes())
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "program"),
    [
        (png(parameters=WEBUI), "A1111"),
        (png(parameters=f"{PROMPT}\nSteps: 20, Sampler: DDIM"), "A1111"),
        (png(parameters=json.dumps({"prompt": PROMPT, "steps": 30}), fooocus_scheme="fooocus"), "Fooocus"),
        (png(parameters=WEBUI, fooocus_scheme="a1111"), "Fooocus"),
        (png(prompt=json.dumps(GRAPH)), "ComfyUI"),
        (png(invokeai_metadata=json.dumps({"positive_prompt": PROMPT, "negative_prompt": "photo"})), "InvokeAI"),
        (png(sd_dash_metadata=json.dumps({"image": {"prompt": [{"prompt": PROMPT, "weight": 1}]}})), "InvokeAI"),
        (with_exif("JPEG", comment=b"UNICODE\0" + WEBUI.encode("utf-16-be")), "A1111"),
        (with_exif("WEBP", comment=b"UNICODE\0" + WEBUI.encode("utf-16-le")), "A1111"),
        (with_exif("JPEG", comment=b"ASCII\0\0\0" + WEBUI.encode()), "A1111"),
        (with_exif("WEBP", {0x0131: "Fooocus v2.5"}, comment=b"UNICODE\0" + WEBUI.encode("utf-16-be")), "Fooocus"),
        (with_exif("WEBP", {0x0110: f"prompt:{json.dumps(GRAPH)}", 0x010F: "workflow:{}"}), "ComfyUI"),
    ],
)
def test_the_prompt_of_a_program_is_found(data, program):
    found = written_prompt(data)
    assert found is not None and (found.prompt, found.program, found.cut) == (PROMPT, program, False)


@pytest.mark.parametrize("order", ["utf-16-be", "utf-16-le"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("prompt", ["一个女孩站在一座一层的房子前", "一一一", "丂丄 a"])
def test_letters_of_other_scripts_do_not_hide_the_order_of_bytes(prompt, mark, order):
    """In U+4E00, the Chinese one, the byte that is empty is the other one."""
    for text in (f"{mark}{prompt}\nSteps: 9, Sampler: DDIM", mark + json.dumps({"prompt": prompt}, ensure_ascii=False)):
        found = written_prompt(with_exif("JPEG", comment=b"UNICODE\0" + text.encode(order)))
        assert found is not None and found.prompt == prompt


def test_a_comment_that_a_phone_or_a_person_wrote_is_no_prompt():
    steps = ("my holiday Steps: 3 to the beach", "Lunch\nSteps: 3 of 5")
    for text in ("oplus_1048608", "Screenshot", "My dog, Berlin", "Negative prompt: none", '{"a": 1}', *steps):
        for head in (b"ASCII\0\0\0" + text.encode(), b"UNICODE\0" + text.encode("utf-16-be")):
            assert written_prompt(with_exif("JPEG", comment=head)) is None


@pytest.mark.parametrize(
    "data",
    [
        png(), png(Comment="a holiday"), png(parameters=" \n"), png(prompt="{broken"), png(prompt=json.dumps(LOOP)),
        png(prompt="[" * 5000), png(prompt=json.dumps({"1": 3, "2": {"inputs": []}})), png(parameters="{}"),
        png(sd_dash_metadata=json.dumps({"image": {"prompt": 3}})), b"", b"no picture", png(parameters=WEBUI)[:40],
        with_exif("JPEG", {0x010F: "A camera", 0x0110: "Its model"}),
    ],
)  # fmt: skip
def test_where_there_is_none_nothing_is_offered(data):
    assert written_prompt(data) is None


def test_a_long_prompt_is_cut_at_a_word_and_control_characters_are_left_out():
    found = written_prompt(png(parameters="garden\x07 " * 400))
    assert (
        found is not None
        and found.cut
        and MAX_PROMPT - 8 < len(found.prompt) <= MAX_PROMPT
        and found.prompt.endswith("garden")
    )
    assert "\x07" not in found.prompt


class Counted(dict):
    """Inputs of a node. Looking at any of them too often fails, in place of taking forever."""

    looks, most = 0, 0

    def get(self, *a):
        Counted.looks += 1
        assert Counted.looks <= Counted.most
        return super().get(*a)


def graph_of(links: dict[str, list[str]]) -> dict[str, dict]:
    """A graph in which every input of a node is a link to one of its own; a short list is repeated."""
    wide = {k: Counted({name: [to[i % len(to)], 0] for i, name in enumerate(LINKS)}) for k, to in links.items()}
    return {k: {"inputs": inputs} for k, inputs in wide.items()}


@pytest.mark.parametrize(
    "links",
    [{"1": ["1"]}, {"1": ["2"], "2": ["1"]}, {str(i): [str((i + j) % 400) for j in range(1, 12)] for i in range(400)}],
)
def test_no_node_of_a_graph_is_looked_at_twice(links):
    graph = graph_of(links)
    Counted.looks, Counted.most = 0, len(links) * (len(LINKS) + 2)  # its inputs once, and as two kinds of start
    assert _of_graph(graph) == "" and Counted.looks
    graph["last"] = {"inputs": {"text": PROMPT}}  # and what is there is still found, however far away
    graph[list(links)[-1]]["inputs"]["conditioning_to"] = ["last", 0]
    Counted.looks = 0
    assert _of_graph(graph) == PROMPT


def test_a_long_chain_and_a_link_that_is_none_are_no_trouble():
    chain = {str(i): {"inputs": {"positive": [i + 1, 0]}} for i in range(3000)}
    assert _of_graph(chain) == "" and _of_graph({**chain, "3000": {"inputs": {"text": PROMPT}}}) == PROMPT
    assert written_prompt(png(prompt=json.dumps({"1": {"inputs": {"positive": [[["2"]], 0]}}}))) is None
