"""Unlearning on a tiny real model: a planted group comes first, and every setting matters."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from guda_core.attribution.guda import Guda
from guda_core.attribution.method import Budget
from guda_core.data.captions import captioner_of
from guda_core.data.dataset import Pictures
from guda_core.diffusion.cards import load_model
from guda_core.errors import OptionError, TrainingError
from guda_core.paths import ASSETS, SHIPPED_RUN
from guda_core.records import Group, GroupSet, Query
from guda_core.unlearning import adapter_files, adapters, switching
from guda_core.unlearning import one_group as unlearning
from guda_core.unlearning.config import UnconditionalConfig, UnlearnConfig
from guda_core.unlearning.forget import FORGET_LOSSES, ForgetLoss, Task, config_of, read_config
from guda_core.unlearning.guda_c import anchor_odds
from guda_core.unlearning.loop import LoopConfig, run
from guda_core.unlearning.one_group import unlearn
from tests.once import kept
from tests.tiny import save_tiny

WEIGHTS = "unet.safetensors"
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
    unet = model.network.requires_grad_(True)
    made = kept("planted-unet", lambda folder: save_file(trained(model, pictures, z), folder / WEIGHTS))
    unet.load_state_dict(load_file(made / WEIGHTS))
    unet.requires_grad_(False).eval()
    return SimpleNamespace(model=model, group_set=group_set, pictures=pictures, z=z)


def trained(model, pictures, z) -> dict[str, torch.Tensor]:
    """The weights of the model's network after a training on the groups."""
    unet = model.network.train()

    def loss_of(step: int, g: torch.Generator) -> torch.Tensor:
        at = torch.randint(len(z), (8,), generator=g)
        texts = [f"{WORDS[pictures.groups[i]]}{step % 5}" if i % 3 else "" for i in at.tolist()]
        t = torch.randint(1000, (8,), generator=g)
        eps = torch.randn(8, 4, 8, 8, generator=g)
        x_t = model.schedule.add_noise(z[at], eps, t)
        return (model.predict_eps(x_t, t, model.embed(texts)) - eps).square().mean()

    for _ in run(unet, loss_of, LoopConfig(steps=300, batch=8, lr=4e-3, warmup=10)):
        pass
    return {n: p.contiguous() for n, p in unet.state_dict().items()}


def task_of(world, group="a") -> Task:
    return Task(world.model, world.pictures, world.z, group, captioner_of(world.group_set), features)


def forget(world, group, folder, config_of=config_of, checkpoint=None, **changes):
    given = {"steps": 2, "batch": 4, "lr": 1e-2, "warmup": 1, "seed": 0, "selection": "weighted", **changes}
    lora = given.pop("lora", adapters.LoraSpec(rank=2, alpha=2))
    config = dataclasses.replace(config_of(**{"operator": "guda_c", **given}), lora=lora)
    for _ in unlearn(task_of(world, group), config=config, folder=folder, meta={"note": "kept"}, checkpoint=checkpoint):
        pass
    return adapters.read_meta(folder)


def test_the_planted_group_comes_first(world, tmp_path):
    before = {n: p.clone() for n, p in world.model.network.named_parameters()}
    for g in WORDS:
        meta = forget(world, g, tmp_path / g, steps=16, batch=8)
        assert meta["note"] == "kept" and meta["group"] == g and meta["base_sha256"] == world.model.sha256
    assert all(torch.equal(p, before[n]) for n, p in world.model.network.named_parameters())
    guda = Guda(world.model, world.group_set, tmp_path)
    gen, right = torch.Generator().manual_seed(99), []
    cases = [(g, i) for g in WORDS for i in range(2)]
    for g, i in cases:
        latent = drawing(g, gen)[None]
        for prompt in (f"{WORDS[g]}1", ""):
            query = Query(np.zeros(1), latent, prompt, f"{g}{i}")
            *_, last = guda.attribute(query, Budget(draws=2, per_pass=2, strata=12))
            right.append(last.ranked()[0] == g)
    assert sum(right) >= 9 and len(right) == 12, right  # by chance: once in 250


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory):
    return forget(world, "a", tmp_path_factory.mktemp("plain"), beta=50.0, eta=0.0)["sha256"]


CHANGES = [
    {"operator": "esd"},
    {"forget_weight": 3.0},
    {"selection": "removed"},
    {"selection": "uniform", "beta": 2.0},
    {"lam": 0.1},
    {"empty_share": 0.0},
    {"lr": 1e-3},
    {"steps": 3},
    {"seed": 1},
    {"lora": adapters.LoraSpec(rank=3, alpha=3)},
    {"lora": adapters.LoraSpec(rank=2, alpha=8)},
    {"lora": adapters.LoraSpec(rank=2, alpha=2, targets=("to_q",))},
]


def test_the_same_settings_make_the_same_adapter(world, plain, tmp_path):
    assert forget(world, "a", tmp_path, beta=50.0, eta=0.0)["sha256"] == plain


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_setting_changes_the_adapter(world, plain, tmp_path, change):
    assert forget(world, "a", tmp_path, **{"beta": 50.0, "eta": 0.0, **change})["sha256"] != plain


def test_the_whole_model_can_be_unlearned_and_read_again(world, tmp_path):
    before = {n: p.clone() for n, p in world.model.network.state_dict().items()}
    meta = forget(world, "a", tmp_path, lora=None)
    adapter = adapters.load(tmp_path, model=world.model, group="a")
    assert meta["kind"] == "whole" and meta["parameters"] == sum(p.numel() for p in before.values())
    with switching.applied(world.model.network, adapter):
        state = {n: p.clone() for n, p in world.model.network.state_dict().items()}
    assert state.keys() == before.keys() and any(not torch.allclose(state[n], before[n], atol=1e-3) for n in before)
    assert all(torch.equal(p, before[n]) for n, p in world.model.network.state_dict().items())


def test_changes_by_name_reach_the_settings():
    config = config_of("esd", rank=3, lr=0.1, steps=7, lam=None, empty_share=0.25, seed=9)
    assert (config.operator, config.lora, config.empty_share) == ("esd", adapters.LoraSpec(rank=3, alpha=3), 0.25)
    assert (config.loop.lr, config.loop.steps, config.loop.seed, config.lam) == (0.1, 7, 9, UnlearnConfig().lam)
    assert config_of(whole=True).lora is None and config_of() == UnlearnConfig()
    assert config_of("retrack") == UnconditionalConfig() and config_of("retrack", rank=2).lora.rank == 2
    with pytest.raises(OptionError, match="has no setting push"):
        config_of(push=0.5)


def test_settings_are_read_back_also_those_of_version_0_1():
    committed = adapters.read_meta(SHIPPED_RUN / "adapters" / "noto")["config"]
    assert "blend_share" in committed and read_config(committed) == config_of()
    with pytest.raises(OptionError, match=r"push = 0.5, which was tried and not adopted"):
        read_config({**committed, "push": 0.5})
    table = json.loads((ASSETS / "benchmarks" / "digits.json").read_text())["config"]["unlearning"]
    names = [read_config(c).operator for c in table.values()]
    assert names == ["retrack", "retrack", "esd_fine_tuned"]
    for config in (config_of(lr=1), config_of("esd_fine_tuned", whole=True)):
        again = read_config(json.loads(json.dumps(dataclasses.asdict(config))))
        assert again == config and again.sha256() == config.sha256()


def test_the_hash_of_settings_is_of_what_changes_something():
    own = config_of()
    seldom = dataclasses.replace(own, loop=dataclasses.replace(own.loop, checkpoint_s=5.0))
    assert seldom.sha256() == own.sha256() == dataclasses.replace(own, lam=1).sha256() and seldom == own
    assert len({own.sha256(), config_of(lam=2).sha256(), config_of(seed=1).sha256(), config_of("esd").sha256()}) == 4


def test_esds_strength_matters(world, tmp_path):
    one, two = (forget(world, "a", tmp_path / str(s), operator="esd", esd_strength=s)["sha256"] for s in (1.0, 3.0))
    assert one != two


def test_beta_eta_and_selection_set_the_styles():
    gs = make_group_set()

    def odds(**changes):
        return anchor_odds(captioner_of(gs), "a", features, UnlearnConfig(**changes))

    pi = odds(selection="weighted", beta=2.0, eta=0.0)
    assert pi[0] == 0 and float(pi[1]) == pytest.approx(np.exp(1.6) / (np.exp(1.6) + 1), rel=1e-5)
    assert odds(selection="weighted", beta=9.0, eta=0.0)[1] > pi[1]
    assert odds(selection="weighted", beta=2.0, eta=0.5)[1] < pi[1]
    flat = odds(selection="uniform")
    assert flat.tolist() == pytest.approx([0, 0.5, 0.5])
    with pytest.raises(OptionError, match="no text features"):
        anchor_odds(captioner_of(gs), "a", None, UnlearnConfig(selection="weighted"))


WRONG = [
    {"steps": 0}, {"steps": "six"}, {"steps": 2.5}, {"batch": -1}, {"rank": 0}, {"rank": True}, {"lr": float("nan")},
    {"lr": -1.0}, {"lam": float("inf")}, {"lam": "1"}, {"seed": "x"},
]  # fmt: skip


@pytest.mark.parametrize("bad", [{"operator": "x"}, {"selection": "posterior"}, {"empty_share": 1.5}, {"x": 1}, *WRONG])
def test_unknown_settings_are_refused(bad):
    with pytest.raises(OptionError):
        config_of(**bad)


def test_fields_are_all_tried():
    tried = {k for c in CHANGES for k in c} | {"beta", "eta", "esd_strength", "loop"}
    assert {f.name for f in dataclasses.fields(UnlearnConfig)} <= tried


# One path: losses from outside, precision, checkpoints, the gate ------------------------------------------------------


class TowardsZero(ForgetLoss):
    """A member from outside: forgotten pictures are answered by 0, whatever is asked."""

    settings, needs_prompts = UnlearnConfig, True

    def target(self, forgotten, answer):
        assert answer is None and forgotten.seen != forgotten.prompts
        return torch.zeros_like(forgotten.x_t)

    def record(self):
        return {"towards": 0}


def test_a_forget_loss_from_outside_is_used_like_the_others(world, tmp_path):
    FORGET_LOSSES.add("zero", TowardsZero)
    try:
        config = config_of("zero", steps=20, batch=8, lr=1e-2, warmup=1, whole=True, lam=0.0)
        for p in unlearn(task_of(world), config=config, folder=tmp_path, meta={}):  # noqa: B007
            pass
        meta = adapters.read_meta(tmp_path)
        assert meta["towards"] == 0 and read_config(meta["config"]) == config and p.loss < 0.7, p.loss
    finally:
        FORGET_LOSSES.remove("zero")
    with pytest.raises(OptionError, match=r"no forget loss 'zero'. Known: guda_c, esd, retrack"):
        read_config(meta["config"])


def test_losses_of_the_other_kind_of_model_are_refused(world, tmp_path):
    with pytest.raises(OptionError, match=r"'retrack' is not for a model that reads prompts. Use .*guda_c"):
        list(unlearn(task_of(world), config=config_of("retrack"), folder=tmp_path, meta={}))


def test_a_group_without_pictures_is_refused(world):
    with pytest.raises(TrainingError, match="'z' needs pictures"):
        task_of(world, "z")


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("half"), tokens=6, pooled=True)


def test_a_whole_model_in_half_precision_is_unlearned_as_one_in_full(world, cards, tmp_path):
    """The same seed and four steps; LoRAs are compared in `test_unlearn_memory`."""
    largest = {}
    for dtype in (torch.float32, torch.float16):
        model = load_model(cards, dtype=dtype)
        task = dataclasses.replace(task_of(world), model=model)
        config = config_of(steps=4, batch=2, lr=1e-3, warmup=1, whole=True, seed=0)
        folder = tmp_path / str(dtype)
        for _ in unlearn(task, config=config, folder=folder, meta={}):
            pass
        adapter = adapters.load(folder, model=model, group="a")
        before = model.network.state_dict()
        largest[dtype] = max(float((w - before[n].float()).abs().max()) for n, w in adapter.whole.items())
        assert next(model.network.parameters()).dtype == dtype
    assert largest[torch.float16] == pytest.approx(largest[torch.float32], rel=0.25) and largest[torch.float32] > 1e-3


def test_a_run_that_is_killed_goes_on_and_makes_the_same_adapter(world, tmp_path):
    whole = forget(world, "a", tmp_path / "whole", steps=4, batch=8)
    checkpoint = tmp_path / "kept" / "a.pt"
    config = dataclasses.replace(
        config_of(steps=4, batch=8, lr=1e-2, warmup=1, seed=0, selection="weighted"),
        lora=adapters.LoraSpec(rank=2, alpha=2),
    )
    steps = unlearn(task_of(world), config=config, folder=tmp_path / "part", meta={}, checkpoint=checkpoint)
    for p in steps:
        if p.step == 2:
            break
    steps.close()
    assert checkpoint.is_file() and not (tmp_path / "part").exists()
    rest = [
        p.step for p in unlearn(task_of(world), config=config, folder=tmp_path / "part", meta={}, checkpoint=checkpoint)
    ]
    part = adapters.read_meta(tmp_path / "part")
    assert rest == [3, 4] and part["sha256"] == whole["sha256"] and not checkpoint.exists()
    assert part["loss"] == pytest.approx(whole["loss"])


def test_an_adapter_of_a_training_that_went_astray_does_not_count(world, tmp_path, monkeypatch):
    with pytest.raises(TrainingError, match=r"'a' does not count: it changes the weights .* rate than 10"):
        forget(world, "a", tmp_path, steps=8, lr=10.0)
    assert not adapter_files.meta_file(tmp_path).exists()

    def spoiled(student, *more, **others):
        for p in run(student, *more, **others):
            if p.step == p.steps:
                next(q for n, q in student.named_parameters() if "lora_B" in n).data.fill_(float("nan"))
            yield p

    monkeypatch.setattr(unlearning, "run", spoiled)
    with pytest.raises(TrainingError, match="1 of its weights are not finite"):
        forget(world, "a", tmp_path)
    assert not adapter_files.meta_file(tmp_path).exists()
