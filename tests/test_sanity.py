"""The figures of the README: counted rightly, on planted cases."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments import sanity
from guda_core.data.dataset import Pictures
from guda_core.data.sources.iconify import Iconify
from guda_core.errors import OptionError
from guda_core.records import Attribution, Group, GroupScore, GroupSet, Query
from guda_core.unlearning.loop import LoopConfig

STYLES = {"red": (220, 30, 30), "blue": (30, 30, 220)}
OBJECTS = ("bar", "box", "cross", "dot", "frame", "gap", "hook")
SET = GroupSet(
    "toy", "Toy", {k: Group(k, k, descriptors=(f"{k} ink",)) for k in STYLES}, source="npm-iconify", resolution=64,
    caption="{object}, {descriptors}", descriptors_per_caption=1, train_objects=OBJECTS,
    held_out_objects=("fox", "owl"),
)  # fmt: skip


def drawing(style: str, object_name: str) -> np.ndarray:
    """A picture of the style's colour; where the ink is says the object."""
    out = np.full((64, 64, 3), 255, np.uint8)
    i = (*OBJECTS, "fox", "owl").index(object_name)
    out[16 * (i // 3) + 4 : 16 * (i // 3) + 18, 16 * (i % 3) + 4 : 16 * (i % 3) + 18] = STYLES[style]
    return out


def pictures(objects) -> Pictures:
    pairs = [(g, o) for g in STYLES for o in objects]
    return Pictures(np.stack([drawing(*p) for p in pairs]), *(tuple(x) for x in zip(*pairs, strict=True)))


@pytest.fixture(autouse=True)
def splits(monkeypatch):
    by_split = {"train": pictures(OBJECTS), "held_out": pictures(("fox", "owl")), "pretrain": pictures(OBJECTS)}
    monkeypatch.setattr(Iconify, "split", lambda self, split: by_split[split])


def test_share_has_wilsons_interval():
    s = sanity.share([True] * 8 + [False] * 2)
    z, p, n = 1.959964, 0.8, 10
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (s["value"], s["n"]) == (0.8, 10)
    assert s["low"] == pytest.approx((p + z * z / (2 * n) - half) / (1 + z * z / n), abs=1e-6)
    assert s["high"] == pytest.approx((p + z * z / (2 * n) + half) / (1 + z * z / n), abs=1e-6)


def test_the_classifier_learns_what_is_planted_and_recognition_counts_it():
    config = LoopConfig(steps=60, batch=16, lr=2e-3, warmup=5, seed=1)
    *_, (_, net) = sanity.train_classifier(SET, config)
    right = pictures(OBJECTS)
    made = sanity.Generated(right.pixels, list(right.groups), list(right.names), [""] * len(right))
    found = sanity.recognition(net, made, SET)
    assert found["style_top1"]["value"] == 1.0 and found["object_top5"]["value"] >= 0.85
    assert found["real_held_out_style_top1"]["n"] == 4
    swapped = sanity.Generated(right.pixels, list(right.groups[::-1]), list(right.names), made.prompts)
    assert sanity.recognition(net, swapped, SET)["style_top1"]["value"] == 0.0
    assert sanity.recognition(net, swapped, SET)["style_top1_by_group"] == {"red": 0.0, "blue": 0.0}


class Planted:
    """A service whose answers are given: GUDA's first group is in the prompt, CLIP always says red."""

    def methods(self):
        return {"clip": "CLIP", "guda": "GUDA"}

    def query(self, pixels, prompt):
        return Query(pixels, None, prompt, "hash")

    def attribute(self, query, *, methods, effort):
        for method in methods:
            first = query.prompt.split()[0] if method == "guda" else "red"
            scores = {g: GroupScore(float(g == first), 0.0, 1.0) for g in STYLES}
            yield Attribution(method, "nats", {}, 0.5)
            yield Attribution(method, "nats", scores, 1.0, separable=query.prompt.endswith("sure"))


def test_first_group_counts_hits_and_those_that_were_sure():
    service = Planted()
    prompts = ["red sure", "blue sure", "red maybe", "blue sure"]
    queries = [service.query(np.zeros(1), p) for p in prompts]
    *_, (_, found) = sanity.first_group(service, queries, ["red", "blue", "blue", "red"], "quick")
    assert found["guda"]["value"] == 0.5 and found["clip"]["value"] == 0.5
    assert found["guda_separable"]["value"] == 0.75 and found["guda_when_separable"]["value"] == pytest.approx(2 / 3)


def test_real_queries_are_spread_evenly_and_have_no_prompt():
    queries, truth = sanity.real_queries(Planted(), SET, 4, seed=1)
    assert sorted(truth) == ["blue", "blue", "red", "red"] and {q.prompt for q in queries} == {""}
    for q, t in zip(queries, truth, strict=True):
        assert any((q.pixels == drawing(t, o)).all() for o in ("fox", "owl"))


def test_every_style_draws_every_object_with_words_of_its_own():
    asked = []

    def generate(prompts, *, seeds, steps, guidance):
        asked.extend(zip(prompts, seeds, strict=True))
        return np.zeros((len(prompts), 64, 64, 3), np.uint8)

    config = sanity.SanityConfig()
    *_, (_, made) = sanity.generated(SimpleNamespace(generate=generate), SET, OBJECTS[:5], config, batch=4)
    assert len(made.pixels) == 10 and len({s for _, s in asked}) == 10
    assert [p for p, _ in asked] == made.prompts
    assert all(f"{g} ink" in p and o in p for p, g, o in zip(made.prompts, made.groups, made.objects, strict=True))


def test_the_contact_sheet_has_styles_as_rows_and_objects_as_columns():
    right = pictures(OBJECTS[:3])
    made = sanity.Generated(right.pixels, list(right.groups), list(right.names), [""] * 6)
    sheet = np.asarray(sanity.contact_sheet(made, SET, ["box", "bar"], scale=1))
    assert sheet.shape == (128, 128, 3)
    assert (sheet[:64, :64] == drawing("red", "box")).all() and (sheet[64:, 64:] == drawing("blue", "bar")).all()


def test_shifted_pictures_stay_pictures_on_white():
    x = torch.ones(2, 3, 64, 64)
    y = sanity._shifted(x, torch.Generator().manual_seed(0))
    assert y.shape == x.shape and y.min() > 0.6 and y.max() <= 1


def test_findings_add_up_only_for_the_same_model_and_settings(tmp_path):
    path, head = tmp_path / "sanity.json", {"base_sha256": "b", "adapters": {"red": "1"}, "config": {"steps": (1, 2)}}
    sanity._note(path, head, {"recognition": 1})
    sanity._note(path, head, {"real": 2})
    found = json.loads(path.read_text())
    assert (found["recognition"], found["real"]) == (1, 2)
    sanity._note(path, {**head, "adapters": {"red": "2"}}, {"real": 3})
    found = json.loads(path.read_text())
    assert found["real"] == 3 and "recognition" not in found
    for dtype, parts in (("float32", {"real", "generated"}), ("bfloat16", {"generated"})):  # it named none
        sanity._note(path, {**head, "adapters": {"red": "2"}, "dtype": dtype}, {"generated": 4})
        assert {"real", "generated"} & set(json.loads(path.read_text())) == parts


def test_unknown_parts_are_refused(tmp_path):
    with pytest.raises(OptionError, match="recognition, generated, real; got magic"):
        list(sanity.run_all(Planted(), sanity.SanityConfig(), tmp_path, tmp_path / "s.png", ["real", "magic"]))
