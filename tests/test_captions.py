"""Every kind of captions against what it must say, and today's draws against an independent copy of them."""

from __future__ import annotations

import unicodedata

import pytest
import torch

from guda_core.data.captions import NoCaptions, PhraseCaptions, StyleCaptions, captioner_of, drop
from guda_core.data.dataset import Item, described
from guda_core.data.groups import load_group_set
from guda_core.records import Group, GroupSet

EMOJI = load_group_set("emoji")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def words(caption: str) -> list[str]:
    return caption.split("featuring ")[1].split(", ")


def test_style_captions_draw_as_all_published_adapters_were_trained():
    """One randperm of the group's descriptors a caption, its first three: byte-identical adapters depend on it."""
    own, a, b = captioner_of(EMOJI), rng(3), rng(3)
    for gid in EMOJI.groups:
        of = EMOJI.groups[gid].descriptors
        expected = ", ".join(of[i] for i in torch.randperm(len(of), generator=b)[:3].tolist())
        assert own.caption(described(gid, "cat-face"), a) == f"cat face, artistic style featuring {expected}"
    assert torch.equal(a.get_state(), b.get_state())


def test_blends_draw_as_the_benchmarks_prompts_were():
    """One randperm of each group's descriptors, then taken in turn without doubles."""
    own, a, b, pair = captioner_of(EMOJI), rng(5), rng(5), ("twemoji", "fluent-emoji-flat")
    for _ in range(20):
        lists = [[d[i] for i in torch.randperm(len(d), generator=b).tolist()] for d in map(own.phrases, pair)]
        expected: list[str] = []
        for n in range(3):
            expected.append(next(d for d in lists[n % 2] if d not in expected))
        assert words(own.blend(described(pair[0], "rocket"), pair, a)) == expected


def test_a_style_anchor_keeps_the_object_and_takes_the_other_groups_words():
    own, item = captioner_of(EMOJI), described("noto", "red-apple")
    text = own.anchor(item, "openmoji", rng())
    assert text.startswith("red apple, ") and set(words(text)) <= set(EMOJI.groups["openmoji"].descriptors)
    assert own.content(item) == "red apple"
    assert isinstance(own, StyleCaptions) and own.phrases("noto") == EMOJI.groups["noto"].descriptors


def test_style_examples_are_one_a_trained_object_and_group_with_the_first_words():
    own = captioner_of(EMOJI)
    found = own.examples()
    assert len(found) == len(set(found)) == len(EMOJI.train_objects) * len(EMOJI.groups)
    assert found[0] == "airplane, artistic style featuring flat colours, no outlines, crimson accents"
    assert own.prompt(described("twemoji", "airplane")) == found[0]


def test_a_style_without_an_object_is_its_words_alone():
    prompt = captioner_of(EMOJI).prompt(described("twemoji", ""))
    assert prompt == "artistic style featuring flat colours, no outlines, crimson accents"


def phrased(template: str = "{content}, {phrase}", **phrases: str) -> PhraseCaptions:
    groups = {k: Group(k, k, phrase=p) for k, p in phrases.items()}
    own = captioner_of(GroupSet("own", "Own", groups, caption=template))
    assert isinstance(own, PhraseCaptions)
    return own


ARTISTS = {"ann": "by Ann Lee", "bob": "in the (Bob+) style"}


@pytest.mark.parametrize(
    ("caption", "concept", "said", "content", "anchor"),
    [
        ("a cat", "", "a cat, by Ann Lee", "a cat", "a cat, in the (Bob+) style"),
        ("", "red-car", "red car, by Ann Lee", "red car", "red car, in the (Bob+) style"),
        ("", "", "by Ann Lee", "", "in the (Bob+) style"),
        ("a cat by ann lee, at night", "", "a cat by Ann Lee, at night", "a cat, at night",
         "a cat in the (Bob+) style, at night"),
        ("by Ann Lee", "cat", "by Ann Lee", "", "in the (Bob+) style"),
        ("a cat by Ann Leeds", "", "a cat by Ann Leeds, by Ann Lee", "a cat by Ann Leeds",
         "a cat by Ann Leeds, in the (Bob+) style"),
    ],
)  # fmt: skip
def test_a_phrase_is_exchanged_where_it_stands_and_added_where_it_does_not(caption, concept, said, content, anchor):
    own, item, g = phrased(**ARTISTS), Item("ann/1", "ann", caption, concept), rng()
    before = g.get_state()
    assert own.caption(item, g) == own.prompt(item) == said
    assert own.content(item) == content
    assert own.anchor(item, "bob", g) == anchor
    assert torch.equal(g.get_state(), before)  # nothing is drawn


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_a_phrase_is_found_whichever_way_its_accents_are_spelled(forms):
    """A set of an earlier version, or written by hand, may name a group as macOS does; captions are read as NFC."""
    phrase, caption = map(unicodedata.normalize, forms, ("by José", "a cat by josé, at night"))
    own, item = phrased(jose=phrase, bob="by Bob"), Item("jose/1", "jose", caption)
    assert own.prompt(item) == f"a cat {phrase}, at night" and own.content(item) == "a cat, at night"
    assert own.anchor(item, "bob", rng()) == "a cat by Bob, at night"


def test_phrases_blend_and_serve_as_examples():
    own = phrased("{phrase}: {content}", **ARTISTS)
    assert own.blend(Item("ann/1", "ann", "a cat"), ("bob", "ann"), rng()) == "in the (Bob+) style, by Ann Lee: a cat"
    assert own.examples() == ["by Ann Lee", "in the (Bob+) style"] and own.phrases("ann") == ("by Ann Lee",)


def test_classes_have_no_captions():
    groups = {k: Group(k, k) for k in "01"}
    own, item, g = captioner_of(GroupSet("d", "D", groups)), described("0", "x"), rng()
    before = g.get_state()
    assert isinstance(own, NoCaptions) and own.phrases("0") == () and own.examples() == []
    made = own.caption(item, g), own.anchor(item, "1", g), own.content(item), own.prompt(item)
    assert {*made, own.blend(item, "01", g)} == {""}
    assert torch.equal(g.get_state(), before)


def test_captions_are_dropped_at_random():
    kept = drop(["a"] * 4000, 0.25, rng())
    assert kept == drop(["a"] * 4000, 0.25, rng()) and set(kept) == {"a", ""}
    assert abs(kept.count("") / 4000 - 0.25) < 0.03
