"""Forget losses that were tried and not adopted, as members from outside: they do what their settings say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from experiments import unlearn as laboratory
from experiments.ablations import members
from experiments.ablations.members import TriedConfig, TriedGudaC, config_of
from experiments.ablations.posterior import style_posterior, style_surprise
from guda_core.data.captions import captioner_of
from guda_core.data.dataset import Pictures
from guda_core.diffusion import likelihood
from guda_core.errors import OptionError
from guda_core.unlearning import adapters
from guda_core.unlearning.config import UnlearnConfig
from guda_core.unlearning.forget import FORGET_LOSSES, Half, Task, hide, read_config
from tests.test_unlearn import WORDS, drawing, features, forget, task_of, world  # noqa: F401


@pytest.fixture(autouse=True)
def registered():
    members.register()


def test_the_products_list_can_be_what_it_was_again():
    members.forget()
    members.forget()
    assert not set(members.MEMBERS) & set(FORGET_LOSSES) and {"guda_c", "esd", "retrack"} <= set(FORGET_LOSSES)
    members.register()
    assert set(members.MEMBERS) <= set(FORGET_LOSSES)


def half_of(task, at, t=None, prompts=(), hidden=(), g=None):
    at = torch.tensor(at)
    n, shape = len(at), task.latents.shape[1:]
    x_t, eps = (torch.randn(n, *shape, generator=g or torch.Generator().manual_seed(1)) for _ in range(2))
    prompts, hidden = list(prompts) or [""] * n, list(hidden) or [False] * n
    t = torch.zeros(n, dtype=torch.int64) if t is None else torch.tensor(t)
    return Half(at, task.latents[at], eps, x_t, t, prompts, hidden, hide(prompts, hidden))


def loss_of(world, odds=None, **changes):  # noqa: F811
    """The member with these settings, its odds planted."""
    loss = TriedGudaC.__new__(TriedGudaC)
    loss.task, loss.config, loss.ids = task_of(world), TriedConfig(**changes), list(world.group_set.groups)
    loss.odds = torch.ones(3) if odds is None else odds
    return loss


def test_the_posterior_tells_which_other_style_explains_a_picture(world):  # noqa: F811
    """Of pictures of "a" that also have the spot of "b" or of "c"; less the more noise there is."""
    gen = torch.Generator().manual_seed(5)
    z = torch.stack([(drawing("a", gen) + drawing(g, gen)) for g in "bc"])
    pictures = Pictures(np.zeros((2, 1, 1, 3), np.uint8), ("a", "a"), ("o", "p"))
    strata = likelihood.make_strata(world.model.schedule, 8)
    surprise = style_surprise(world.model, captioner_of(world.group_set), list(pictures), z, "a", strata)
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


def test_anchor_groups_follow_the_picture_and_the_timestep(world):  # noqa: F811
    pi = torch.tensor([[[0, 1, 0], [0, 0, 1]], [[0, 0, 1], [0, 1, 0]]]).float()  # by forgotten picture and stratum
    pictures = Pictures(np.zeros((4, 1, 1, 3), np.uint8), ("b", "a", "c", "a"), ("o",) * 4)
    loss = loss_of(world, pi, selection="posterior")
    loss.task = Task(world.model, pictures, world.z[:4], "a", loss.task.captioner)
    loss.strata = likelihood.make_strata(world.model.schedule, 2)
    edge, g = loss.strata.edges[1], torch.Generator()
    half = half_of(loss.task, [1, 1, 3, 3, 3], [edge - 1, edge, edge - 1, edge, 999])
    assert loss.draw_groups(half, g) == ["b", "c", "c", "b", "b"]
    assert loss.draw_groups(half_of(loss.task, [1], [0]), g) == ["b"]  # t = 0 is in no stratum


def test_under_the_empty_prompt_the_anchor_is_drawn_by_the_words(world, monkeypatch):  # noqa: F811
    monkeypatch.setattr(members, "anchor_odds", lambda *a: torch.tensor([0.0, 0.0, 1.0]))
    for selection, groups in (("posterior_captions", ["c", "b", "c"]), ("posterior", ["b", "b", "b"])):
        loss = loss_of(world, selection=selection)
        half = half_of(loss.task, [0, 1, 2], prompts=["aa1"] * 3, hidden=[True, False, True])
        half.notes = {"groups": ["b"] * 3, "anchors": ["as it was"] * 3}
        loss.revise(half, half_of(loss.task, [30]), torch.Generator().manual_seed(3))
        assert half.notes["groups"] == groups and half.notes["anchors"][1] == "as it was"
        assert [WORDS["c"] in a for a in half.notes["anchors"]] == [g == "c" for g in groups]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_captions_mixes_the_forgotten_style_with_the_given_one(world, share):  # noqa: F811
    loss = loss_of(world, blend_share=share)
    group_set = dataclasses.replace(world.group_set, descriptors_per_caption=2)
    loss.task = dataclasses.replace(loss.task, captioner=captioner_of(group_set))
    half, styles = half_of(loss.task, range(24, 72), prompts=["as it was"] * 48), ["b", "c"] * 24
    out, again = (loss._blended(half, styles, torch.Generator().manual_seed(3)) for _ in range(2))
    mixed = [(text, s) for text, s in zip(out, styles, strict=True) if text != "as it was"]
    assert out == again and abs(len(mixed) / 48 - share) < 0.15
    assert all("aa" in text and WORDS[s] in text for text, s in mixed)
    if share:
        assert {text.index("aa") < text.index(WORDS[s]) for text, s in mixed} == {True, False}  # either style begins


def test_targets_are_what_their_formulas_say(world):  # noqa: F811
    prompts, anchors, hidden = ["aa1", "aa2", "aa3"], ["bb1", "cc2", "bb3"], [False, True, False]
    half = half_of(task_of(world), [0, 1, 2], [10, 300, 700], prompts, hidden)
    half.notes["anchors"] = anchors

    def eps(captions):
        return task_of(world).eps(half.x_t, half.t, captions)

    with torch.no_grad():
        own, other, empty = eps(prompts), eps(anchors), eps([""] * 3)
        assert not torch.allclose(own, other, atol=1e-3)
        beyond = other - 0.5 * (own - other)
        expected = {
            (("push", 0.5),): beyond,
            (("operator", "esd"), ("esd_strength", 2.0)): empty - 2 * (own - empty),
            (("operator", "ascent"), ("ascent_strength", 2.0)): 3 * eps(["aa1", "", "aa3"]) - 2 * half.eps,
            (("empty_target", "shift"), ("push", 0.5)): torch.stack(
                [beyond[0], (empty - 1.5 * (own - other))[1], beyond[2]]
            ),
            (("empty_target", "between"),): torch.stack(
                [other[0], (empty + (other - empty) / 3 + (other - own) / 3)[1], other[2]]
            ),
        }
        for changes, target in expected.items():
            config = config_of(**{"operator": "guda_c", **dict(changes)})
            loss = FORGET_LOSSES[config.operator](task_of(world), config)
            out = loss.target(half, eps(loss.asked(half)))
            np.testing.assert_allclose(out, target, atol=2e-5)


CHANGES = [
    {"operator": "ascent"},
    {"operator": "ascent", "ascent_strength": 3.0},
    {"blend_share": 1.0},
    {"push": 0.5},
    {"empty_target": "shift"},
    {"empty_target": "shift", "push": 0.5},
    {"empty_target": "between"},
    {"selection": "posterior"},
    {"selection": "posterior", "temperature": 1e6},
    {"selection": "posterior_captions"},
]


def test_every_setting_changes_the_adapter_and_is_read_back(world, tmp_path):  # noqa: F811
    seen = {forget(world, "a", tmp_path / "plain", steps=2)["sha256"]}
    same = forget(world, "a", tmp_path / "same", steps=2, config_of=members.of_product, operator="guda_c_tried")
    assert same["sha256"] in seen  # with its defaults it is GUDA-C
    for i, change in enumerate(CHANGES):
        meta = forget(world, "a", tmp_path / str(i), steps=2, config_of=config_of, **change)
        assert meta["sha256"] not in seen, change
        seen.add(meta["sha256"])
        assert adapters.load(tmp_path / str(i), model=world.model, group="a").meta == meta
        assert {k: getattr(read_config(meta["config"]), k) for k in change if k != "operator"} == {
            k: v for k, v in change.items() if k != "operator"
        }


BAD = [{"temperature": 0.0}, {"blend_share": 2.0}, {"empty_target": "x"}, {"selection": "x"}, {"magic": 1}]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(OptionError):
        config_of("guda_c", **bad)
    with pytest.raises(OptionError):
        config_of("retrack_capped", kl_cap=0.0)


def test_settings_of_the_product_alone_stay_the_products():
    assert config_of("guda_c", steps=3, selection="removed") == members.of_product(
        "guda_c", steps=3, selection="removed"
    )
    assert type(config_of("guda_c", steps=3)) is UnlearnConfig and type(config_of("guda_c", push=0.0)) is TriedConfig


def test_the_laboratorys_command_takes_settings_by_name():
    config = laboratory.settings(["selection=posterior", "temperature=100", "blend_share=0.3", "rank=4"])
    assert isinstance(config, TriedConfig) and (config.selection, config.temperature) == ("posterior", 100)
    assert config.blend_share == 0.3 and config.lora.rank == 4
    assert laboratory.settings(["operator=ascent", "steps=3"]).operator == "ascent"
    assert laboratory.settings(["operator=retrack", "neighbours=all"]).neighbours is None
    with pytest.raises(OptionError, match="--with NAME=VALUE"):
        laboratory.settings(["selection"])
