"""Unlearning on a tiny real model: a planted group comes first, and every setting matters."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from guda_core.attribution.base import Budget
from guda_core.attribution.guda import Guda
from guda_core.data.dataset import Pictures
from guda_core.diffusion import likelihood
from guda_core.diffusion.cards import load_model
from guda_core.errors import AdapterError, OptionError
from guda_core.records import Group, GroupSet, Query
from guda_core.unlearning import adapters
from guda_core.unlearning import guda_c as unlearning
from guda_core.unlearning.guda_c import (
    UnlearnConfig,
    _Sampler,
    _targets,
    style_posterior,
    style_probabilities,
    style_surprise,
    unlearn,
)
from guda_core.unlearning.loop import LoopConfig, run
from guda_core.unlearning.run import config_of
from tests.tiny import save_tiny

WORDS = {"a": "aa", "b": "bb", "c": "cc"}
SPOTS = {"a": (0, 0), "b": (0, 5), "c": (5, 2)}  # row and column of each group's bright spot


def make_group_set() -> GroupSet:
    groups = {k: Group(k, k, descriptors=tuple(f"{w}{i}" for i in range(5))) for k, w in WORDS.items()}
    return GroupSet("toy", "Toy", groups, caption="{descriptors}", descriptors_per_caption=1)


def drawing(group: str, g: torch.Generator) -> torch.Tensor:
    """A latent (4, 8, 8) of faint noise and the group's spot."""
    z = 0.3 * torch.randn(4, 8, 8, generator=g)
    y, x = SPOTS[group]
    z[:, y : y + 3, x : x + 3] += 2
    return z


def planted(n: int = 24) -> tuple[Pictures, torch.Tensor]:
    """Latents of each group have their spot at another place, so that who made a picture is plain to see."""
    g = torch.Generator().manual_seed(0)
    ids = tuple(k for k in SPOTS for _ in range(n))
    z = torch.stack([drawing(k, g) for k in ids])
    return Pictures(np.zeros((len(ids), 1, 1, 3), np.uint8), ids, ("o",) * len(ids)), z


def features(texts: list[str]) -> torch.Tensor:
    """A vector a first letter; to "a", "b" is nearer than "c"."""
    vectors = {"a": [1.0, 0.0, 0.0], "b": [0.8, 0.6, 0.0], "c": [0.0, 0.0, 1.0]}
    return torch.tensor([vectors[t[0]] for t in texts])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny model trained on the planted groups, with and without captions."""
    model = load_model(save_tiny(tmp_path_factory.mktemp("tiny"), tokens=6, pooled=True))
    group_set = make_group_set()
    pictures, z = planted()
    unet = model.network.requires_grad_(True).train()

    def loss_of(step: int, g: torch.Generator) -> torch.Tensor:
        at = torch.randint(len(z), (16,), generator=g)
        texts = [f"{WORDS[pictures.groups[i]]}{step % 5}" if i % 3 else "" for i in at.tolist()]
        t = torch.randint(1000, (16,), generator=g)
        eps = torch.randn(16, 4, 8, 8, generator=g)
        x_t = model.schedule.add_noise(z[at], eps, t)
        return (model.predict_eps(x_t, t, model.embed(texts)) - eps).square().mean()

    for _ in run(unet, loss_of, LoopConfig(steps=300, batch=16, lr=4e-3, warmup=10)):
        pass
    unet.requires_grad_(False).eval()
    return SimpleNamespace(model=model, group_set=group_set, pictures=pictures, z=z)


def forget(world, group, folder, **changes):
    loop = LoopConfig(
        steps=changes.pop("steps", 2), batch=8, lr=changes.pop("lr", 1e-2), warmup=1, seed=changes.pop("seed", 0)
    )
    config = UnlearnConfig(
        **{"lora": adapters.LoraSpec(rank=2, alpha=2), "selection": "weighted", "loop": loop, **changes}
    )
    for _ in unlearn(
        world.model, world.group_set, world.pictures, world.z, group,
        text_features=features, config=config, folder=folder, meta={"note": "kept"},
    ):  # fmt: skip
        pass
    return adapters.read_meta(folder)


def test_the_planted_group_comes_first(world, tmp_path):
    before = {n: p.clone() for n, p in world.model.network.named_parameters()}
    for g in WORDS:
        meta = forget(world, g, tmp_path / g, steps=30)
        assert meta["note"] == "kept" and meta["group"] == g and meta["base_sha256"] == world.model.sha256
    assert all(torch.equal(p, before[n]) for n, p in world.model.network.named_parameters())
    guda = Guda(world.model, world.group_set, tmp_path)
    gen, right = torch.Generator().manual_seed(99), {"prompt": 0, "empty": 0}
    cases = [(g, i) for g in WORDS for i in range(3)]
    for g, i in cases:
        latent = drawing(g, gen)[None]
        for kind, prompt in (("prompt", f"{WORDS[g]}1"), ("empty", "")):
            query = Query(np.zeros(1), latent, prompt, f"{g}{i}")
            *_, last = guda.attribute(query, Budget(draws=4, per_pass=2))
            right[kind] += last.ranked()[0] == g
    assert right["prompt"] >= 8 and right["empty"] >= 8, right


def test_the_posterior_tells_which_other_style_explains_a_picture(world):
    """Of pictures of "a" that also have the spot of "b" or of "c"; less the more noise there is."""
    gen = torch.Generator().manual_seed(5)
    z = torch.stack([(drawing("a", gen) + drawing(g, gen)) for g in "bc"])
    pictures = Pictures(np.zeros((2, 1, 1, 3), np.uint8), ("a", "a"), ("o", "p"))
    strata = likelihood.make_strata(world.model.schedule, 8)
    surprise = style_surprise(world.model, world.group_set, pictures, z, "a", strata)
    found = style_posterior(surprise, 1.0)
    assert found.shape == (2, 8, 3) and torch.allclose(found.sum(dim=2), torch.ones(2, 8))
    assert not found[:, :, 0].any()
    assert found[0, 0, 1] > 0.9 and found[1, 0, 2] > 0.9
    entropy = -(found * found.clamp_min(1e-30).log()).sum(dim=2)
    assert (entropy[:, -1] > entropy[:, 0]).all()
    blunt = style_posterior(surprise, 1e9)  # hardly told by the picture any more
    np.testing.assert_allclose(blunt, torch.tensor([0, 0.5, 0.5]).expand(2, 8, 3), atol=1e-5)
    tempered = style_posterior(surprise, 7.0)[1, 0]
    odds = float((surprise[1, 0, 1] - surprise[1, 0, 2]) / 7.0)  # log p(c) / p(b)
    assert float(torch.log(tempered[2] / tempered[1])) == pytest.approx(odds, rel=1e-3)
    draws = likelihood.draw_times("a/p", strata, 1)
    kl = np.stack([
        likelihood.kl_values(world.model, z[1:], world.model.embed([f"{WORDS[s]}0"]), draws, range(1))[-1, 0]
        for s in "bc"
    ]) * strata.sizes[-1]  # fmt: skip
    expected = np.exp(-kl / 2) / np.exp(-kl / 2).sum()  # of the noisiest stratum half of its own terms are left
    np.testing.assert_allclose(found[1, -1, 1:], expected, atol=0.1)  # the words of a style are drawn


def test_anchor_styles_follow_the_picture_and_the_timestep(world):
    strata = likelihood.make_strata(world.model.schedule, 2)
    pictures = Pictures(np.zeros((4, 1, 1, 3), np.uint8), ("b", "a", "c", "a"), ("o",) * 4)
    pi = torch.tensor([[[0, 1, 0], [0, 0, 1]], [[0, 0, 1], [0, 1, 0]]]).float()  # by forgotten picture and stratum
    sampler = _Sampler(pictures, world.group_set, "a", pi, UnlearnConfig(selection="posterior"), strata)
    edge = strata.edges[1]
    at, t = torch.tensor([1, 1, 3, 3, 3]), torch.tensor([edge - 1, edge, edge - 1, edge, 999])
    assert sampler.anchor_styles(at, t, torch.Generator()) == ["b", "c", "c", "b", "b"]
    assert sampler.anchor_styles(at[:1], torch.tensor([0]), torch.Generator()) == ["b"]  # t = 0 is in no stratum


def test_under_the_empty_prompt_the_anchor_may_be_drawn_by_other_odds(world):
    at, gone, g = torch.tensor([0, 1, 2]), [True, False, True], torch.Generator().manual_seed(3)
    styles, anchors = ["b"] * 3, ["as it was"] * 3
    config = UnlearnConfig(selection="posterior_captions")
    sampler = _Sampler(world.pictures, world.group_set, "a", torch.ones(3), config)
    assert sampler.for_the_empty(at, gone, styles, anchors, g) == (styles, anchors)
    sampler.empty_pi = torch.tensor([0.0, 0.0, 1.0])
    drawn, found = sampler.for_the_empty(at, gone, styles, anchors, g)
    assert drawn == ["c", "b", "c"] and found[1] == "as it was" and all(WORDS["c"] in found[i] for i in (0, 2))


def test_both_kinds_of_odds_are_used_where_captions_alone_follow_the_posterior(world, tmp_path, monkeypatch):
    """The anchors that the full model is asked about: by WSS under the empty prompt, else by the posterior."""
    seen: list[tuple[list[bool], list[str]]] = []

    def targets(model, config, x_t, t, prompts, anchors, gone, kept, eps):
        seen.append((gone, anchors))
        return _targets(model, config, x_t, t, prompts, anchors, gone, kept, eps)

    monkeypatch.setattr(unlearning, "_targets", targets)
    monkeypatch.setattr(unlearning, "style_surprise", lambda *a: None)
    monkeypatch.setattr(unlearning, "style_posterior", lambda *a: torch.tensor([0.0, 1.0, 0.0]).expand(24, 8, 3))
    monkeypatch.setattr(unlearning, "style_probabilities", lambda *a: torch.tensor([0.0, 0.0, 1.0]))
    forget(world, "a", tmp_path / "a", steps=4, selection="posterior_captions")
    pairs = [(e, WORDS["c"] in a) for gone, anchors in seen for e, a in zip(gone, anchors, strict=True)]
    assert {e for e, _ in pairs} == {True, False} and all(e == by_wss for e, by_wss in pairs)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_captions_mixes_the_forgotten_style_with_the_given_one(world, share):
    group_set = dataclasses.replace(world.group_set, descriptors_per_caption=2)
    sampler = _Sampler(world.pictures, group_set, "a", torch.ones(3), UnlearnConfig(blend_share=share))
    at, styles = torch.arange(24, 72), ["b", "c"] * 24
    plain = ["as it was"] * 48
    out, again = (sampler.blended(plain, at, styles, torch.Generator().manual_seed(3)) for _ in range(2))
    mixed = [(text, s) for text, s in zip(out, styles, strict=True) if text != "as it was"]
    assert out == again and abs(len(mixed) / 48 - share) < 0.15
    assert all("aa" in text and WORDS[s] in text for text, s in mixed)
    if share:
        firsts = {text.index("aa") < text.index(WORDS[s]) for text, s in mixed}
        assert firsts == {True, False}  # either style begins


def test_targets_are_what_their_formulas_say(world):
    g = torch.Generator().manual_seed(1)
    x, t = torch.randn(5, 4, 8, 8, generator=g), torch.tensor([10, 300, 700, 50, 900])
    prompts, anchors, gone, kept = ["aa1", "aa2", "aa3"], ["bb1", "cc2", "bb3"], [False, True, False], ["cc1", ""]
    noise = torch.randn(5, 4, 8, 8, generator=g)

    def eps(captions: list[str]) -> torch.Tensor:
        return world.model.predict_eps(x[: len(captions)], t[: len(captions)], world.model.embed(captions))

    def targets(**changes) -> torch.Tensor:
        return _targets(world.model, UnlearnConfig(**changes), x, t, prompts, anchors, gone, kept, noise)

    with torch.no_grad():
        own, other, empty = eps(prompts), eps(anchors), eps([""] * 3)
        assert not torch.allclose(own, other, atol=1e-3)
        expected = {
            (): other,
            (("push", 0.5),): other - 0.5 * (own - other),
            (("operator", "esd"), ("esd_strength", 2.0)): empty - 2 * (own - empty),
            (("operator", "ascent"), ("ascent_strength", 2.0)): 3 * eps(["aa1", "", "aa3"]) - 2 * noise[:3],
            (("empty_target", "shift"), ("push", 0.5)): torch.stack(
                [(other - 0.5 * (own - other))[0], (empty - 1.5 * (own - other))[1], (other - 0.5 * (own - other))[2]]
            ),
            (("empty_target", "between"),): torch.stack(
                [other[0], (empty + (other - empty) / 3 + (other - own) / 3)[1], other[2]]
            ),
        }
        for changes, forgotten in expected.items():
            out = targets(**dict(changes))
            np.testing.assert_allclose(out[:3], forgotten, atol=2e-5)
            np.testing.assert_allclose(out[3:], eps([*anchors, *kept])[3:], atol=2e-5)


CHANGES = [
    {"operator": "esd"},
    {"operator": "ascent"},
    {"selection": "removed"},
    {"selection": "uniform", "beta": 2.0},
    {"lam": 0.1},
    {"empty_share": 0.0},
    {"blend_share": 1.0},
    {"push": 0.5},
    {"empty_target": "shift"},
    {"empty_target": "shift", "push": 0.5},
    {"empty_target": "between"},
    {"selection": "posterior"},
    {"lr": 1e-3},
    {"steps": 3},
    {"seed": 1},
    {"lora": adapters.LoraSpec(rank=3, alpha=3)},
    {"lora": adapters.LoraSpec(rank=2, alpha=8)},
    {"lora": adapters.LoraSpec(rank=2, alpha=2, targets=("to_q",))},
]


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory):
    return forget(world, "a", tmp_path_factory.mktemp("plain"), beta=50.0, eta=0.0)["sha256"]


def test_the_same_settings_make_the_same_adapter(world, plain, tmp_path):
    assert forget(world, "a", tmp_path, beta=50.0, eta=0.0)["sha256"] == plain


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_setting_changes_the_adapter(world, plain, tmp_path, change):
    assert forget(world, "a", tmp_path, **{"beta": 50.0, "eta": 0.0, **change})["sha256"] != plain


def test_the_posteriors_temperature_changes_the_adapter(world, tmp_path):
    one, two = (
        forget(world, "a", tmp_path / str(t), selection="posterior", temperature=t, steps=4)["sha256"]
        for t in (1.0, 1e6)
    )
    assert one != two


def test_the_whole_model_can_be_unlearned_and_read_again(world, tmp_path):
    before = {n: p.clone() for n, p in world.model.network.state_dict().items()}
    meta = forget(world, "a", tmp_path, lora=None)
    state = adapters.load_whole(tmp_path, base_sha256=world.model.sha256, group="a")
    assert meta["kind"] == "whole" and meta["parameters"] == sum(p.numel() for p in before.values())
    assert state.keys() == before.keys() and any(not torch.allclose(state[n], before[n], atol=1e-3) for n in before)
    with pytest.raises(AdapterError, match="for this base model"):
        adapters.load_whole(tmp_path, base_sha256="other", group="a")
    with pytest.raises(AdapterError, match="no whole model without 'b'"):
        adapters.load_whole(tmp_path, base_sha256=world.model.sha256, group="b")
    raw = bytearray((tmp_path / adapters.WEIGHTS).read_bytes())
    raw[-1] ^= 1
    (tmp_path / adapters.WEIGHTS).write_bytes(raw)
    with pytest.raises(AdapterError, match="do not have the hash"):
        adapters.load_whole(tmp_path, base_sha256=world.model.sha256, group="a")


def test_command_line_changes_reach_the_settings():
    config = config_of(operator="esd", rank=3, lr=0.1, steps=7, lam=None, empty_share=0.25, seed=9)
    assert (config.operator, config.lora, config.empty_share) == ("esd", adapters.LoraSpec(rank=3, alpha=3), 0.25)
    assert (config.loop.lr, config.loop.steps, config.loop.seed, config.lam) == (0.1, 7, 9, UnlearnConfig().lam)
    assert config_of(whole=True).lora is None and config_of() == UnlearnConfig()


@pytest.mark.parametrize("operator", ["esd", "ascent"])
def test_an_operators_strength_matters(world, tmp_path, operator):
    strength = f"{operator}_strength"
    one, two = (forget(world, "a", tmp_path / str(s), operator=operator, **{strength: s})["sha256"] for s in (1.0, 3.0))
    assert one != two


def test_beta_eta_and_selection_set_the_styles():
    gs = make_group_set()

    pi = style_probabilities(gs, "a", features, UnlearnConfig(selection="weighted", beta=2.0, eta=0.0))
    assert pi[0] == 0 and float(pi[1]) == pytest.approx(np.exp(1.6) / (np.exp(1.6) + 1), rel=1e-5)
    assert style_probabilities(gs, "a", features, UnlearnConfig(selection="weighted", beta=9.0, eta=0.0))[1] > pi[1]
    assert style_probabilities(gs, "a", features, UnlearnConfig(selection="weighted", beta=2.0, eta=0.5))[1] < pi[1]
    flat = style_probabilities(gs, "a", features, UnlearnConfig(selection="uniform"))
    assert flat.tolist() == pytest.approx([0, 0.5, 0.5])


@pytest.mark.parametrize("bad", [{"operator": "x"}, {"selection": "x"}, {"empty_share": 1.5}, {"temperature": 0.0}])
def test_unknown_settings_are_refused(bad):
    with pytest.raises(OptionError):
        UnlearnConfig(**bad)


def test_fields_are_all_tried():
    tried = {k for c in CHANGES for k in c} | {"beta", "eta", "esd_strength", "ascent_strength", "temperature", "loop"}
    assert {f.name for f in dataclasses.fields(UnlearnConfig)} <= tried
