"""The live oracle: a coded LOGO model answers as the model itself, and what it lost is measured."""

from __future__ import annotations

import dataclasses
import json
import logging

import numpy as np
import pytest
import torch

from experiments.logo import retrained_delta, trainings
from experiments.logo.retrained_delta import LiveConfig
from experiments.train import stages
from experiments.train.unet import UnetConfig
from guda_core.attribution.guda import Guda
from guda_core.attribution.logo import Logo
from guda_core.attribution.method import Budget
from guda_core.data.dataset import Pictures
from guda_core.diffusion.cards import load_model
from guda_core.errors import OptionError
from guda_core.local import LocalService
from guda_core.records import Query
from guda_core.unlearning import adapter_files, adapters, switching
from guda_core.unlearning.loop import Progress
from guda_core.unlearning.run import Forgetting
from tests.test_pipeline import service  # noqa: F401  (a fixture)
from tests.test_unlearn import make_group_set
from tests.tiny import save_tiny

CONFIG = LiveConfig(megabytes=0.2, batches=2, batch=8)


def changed(model, by):
    """The denoiser's weights, each moved by a share of its spread."""
    g = torch.Generator().manual_seed(1)
    return {
        n: p + by * (p.std() if p.numel() > 1 else 0) * torch.randn(p.shape, generator=g)
        for n, p in model.network.state_dict().items()
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny model, weights "retrained" without a group, pictures of two groups and their latents, and queries."""
    model = load_model(save_tiny(tmp_path_factory.mktemp("tiny")))
    g = torch.Generator().manual_seed(0)
    pictures = Pictures(np.zeros((16, 16, 16, 3), np.uint8), tuple("ab" * 8), ("cat",) * 16)
    latents = torch.randn(16, *model.latent_shape, generator=g)
    queries = [Query(pictures.pixels[i], latents[i : i + 1], ["", "cat, red"][i % 2], f"h{i}") for i in range(12)]
    return model, changed(model, 0.5), make_group_set(), pictures, latents, queries


@pytest.fixture(scope="module")
def sensitive(world):
    model, _, group_set, pictures, latents, _ = world
    return retrained_delta.sensitivity(model, group_set, pictures, latents, CONFIG)


def lost(world, sensitive, folder, megabytes):
    model, state, *_, queries = world
    config = dataclasses.replace(CONFIG, megabytes=megabytes)
    coded = retrained_delta.compress(model, state, "a", sensitive, config=config, folder=folder, meta={})
    assert adapter_files.weights_file(folder).stat().st_size < 1e6 * megabytes + 60_000  # the names of the tensors
    *steps, (done, found) = retrained_delta.fidelity(model, state, coded, queries, config)
    assert done == 1 and steps == sorted(steps, key=lambda s: s[0]) and not any(f for _, f in steps)
    return found


def test_the_more_bytes_the_less_is_lost(world, sensitive, tmp_path):
    few, many = (lost(world, sensitive, tmp_path / f"{mb}", mb) for mb in (0.16, 0.24))
    assert few["rms"] > 4 * many["rms"] > 0 and many["spearman"] > 0.99
    assert many["rms"] < 0.02 * many["sd"] and many["pictures"] == 12


def test_what_is_lost_is_what_the_scores_say(world, sensitive, tmp_path):
    found = lost(world, sensitive, tmp_path / "a", 0.16)
    exact, coded = np.array(found["exact"]), np.array(found["live"])
    assert found["bias"] == pytest.approx((coded - exact).mean(), abs=0.01)
    assert found["rms"] == pytest.approx(np.sqrt(((coded - exact) ** 2).mean()), abs=0.01)
    ranks = exact.argsort().argsort(), coded.argsort().argsort()
    assert found["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-6)
    model, _, *_, queries = world
    again = Logo(model, make_group_set(), tmp_path)
    assert again.adapters["a"].meta["kind"] == adapters.CODED
    *_, a = again.attribute(queries[0], Budget(draws=1, per_pass=1))
    assert a.groups["a"].score == pytest.approx(coded[0], abs=0.01)  # the method's own answer, same draws


def test_sensitivity_is_the_mean_square_derivative(world):
    """Against finite differences of one tensor: how far the estimate moves when its weights are shaken."""
    model, _, group_set, pictures, latents, _ = world
    name = "conv_out.bias"
    found = retrained_delta.sensitivity(model, group_set, pictures, latents, dataclasses.replace(CONFIG, batches=40))[
        name
    ]
    elements = int(np.prod(model.latent_shape))
    channels = model.latent_shape[0]
    assert found == pytest.approx(elements / channels, rel=0.25)  # d eps / d bias = 1 at every place of its channel


def test_a_coded_model_leaves_the_full_one_bit_by_bit(world, sensitive, tmp_path):
    model, state, *_ = world
    before = {n: p.clone() for n, p in model.network.named_parameters()}
    coded = retrained_delta.compress(model, state, "a", sensitive, config=CONFIG, folder=tmp_path, meta={})
    with switching.applied(model.network, coded):
        off = {n: float((p - state[n]).abs().max()) for n, p in model.network.named_parameters()}
    assert 0 < max(off.values()) < 0.5
    assert all(torch.equal(p, before[n]) for n, p in model.network.named_parameters())


@pytest.fixture
def base(service, world, monkeypatch):  # noqa: F811
    """What `make_live` needs of a base model; trainings of two steps that write changed weights and are noted."""
    noted = []

    def stage_unet(group_set, config, exclude):
        yield Progress(1, 2, 0.5, 1.0)
        noted.append(exclude)
        name = stages.unet_name(exclude, config.loop.seed)
        denoiser = type(service.model.network).from_config(service.model.network.config)
        denoiser.load_state_dict(changed(service.model, 0.3))
        denoiser.save_pretrained(stages.work_dir() / name)
        stages.finish(stages.work_dir() / name, {}, name)
        yield Progress(2, 2, 0.5, 1.0)

    class Base:
        group_set, model, card = service.group_set, service.model, service.model.card
        known = Forgetting.known

        @staticmethod
        def training_pictures():
            groups = tuple(service.group_set.groups)
            objects = (service.group_set.train_objects[0],) * len(groups)
            pictures = Pictures(np.zeros((len(groups), 16, 16, 3), np.uint8), groups, objects)
            return pictures, torch.randn(len(groups), *service.model.latent_shape)

    monkeypatch.setattr(trainings.stages, "stage_unet", stage_unet)
    return Base(), noted


def test_models_are_trained_coded_and_measured_once(base, world, tmp_path):
    own, noted = base
    queries, config, ids = world[-1][:3], UnetConfig(), list(own.group_set.groups)
    with pytest.raises(OptionError, match="positive"):
        list(trainings.make_live(own, config, queries, folder=tmp_path, how=CONFIG, minutes=0))
    for _ in trainings.make_live(own, config, queries, folder=tmp_path, how=CONFIG, minutes=1e-9):
        pass
    assert not noted  # stopped within the first training
    with pytest.raises(OptionError, match="no group 'mosaic'"):
        list(trainings.make_live(own, config, queries, groups=["mosaic"], folder=tmp_path, how=CONFIG))
    list(trainings.make_live(own, config, queries, groups=ids[1:2], folder=tmp_path, how=CONFIG))
    assert noted == ids[1:2] and not trainings.is_live(own, ids[0], tmp_path)
    steps = list(trainings.make_live(own, config, queries, folder=tmp_path, how=CONFIG))
    assert sorted(noted) == sorted(ids) and all(trainings.is_live(own, g, tmp_path) for g in ids)
    new = [g for g in ids if g != ids[1]]
    assert [w for w, f in steps if f == 1 and w.startswith("live")] == [f"live {g}" for g in new]
    health = json.loads((tmp_path / ids[0] / adapters.HEALTH).read_text())
    assert health["pictures"] == 3 and health["rms"] > 0 and "--live" in health["command"]
    assert list(trainings.make_live(own, config, queries, folder=tmp_path, how=CONFIG)) == []
    (tmp_path / ids[2] / adapters.HEALTH).unlink()
    list(trainings.make_live(own, config, queries, folder=tmp_path, how=CONFIG))
    assert len(noted) == len(ids) and trainings.is_live(own, ids[2], tmp_path)  # its weights were still there


def test_the_service_offers_the_oracle_when_every_group_has_its_model(service, tmp_path, caplog):  # noqa: F811
    assert "logo" not in service.methods()
    with caplog.at_level(logging.INFO):
        some = LocalService(
            service.model,
            service.group_set,
            service.clip,
            service.method(Guda).folder,
            oracle=service.method(Guda).folder,
        )
    assert "logo" not in some.methods() and "own-oracle.md" in caplog.text and "1 of 8 groups" in caplog.text
    for g in service.group_set.groups:
        source = service.method(Guda).folder / (g if (service.method(Guda).folder / g).is_dir() else "twemoji")
        (tmp_path / g).mkdir()
        for f in source.iterdir():
            (tmp_path / g / f.name).write_bytes(f.read_bytes())
        meta = json.loads((tmp_path / g / adapters.META).read_text())
        (tmp_path / g / adapters.META).write_text(json.dumps({**meta, "group": g}))
    own = LocalService(service.model, service.group_set, service.clip, service.method(Guda).folder, oracle=tmp_path)
    assert list(own.methods())[-1] == "logo" and own.method(Logo).oracle
    made = own.provenance()
    assert made.models["logo"].hashes == own.method(Logo).hashes and len(made.models["logo"].hashes) == 8
    assert made.models["logo"].figures.keys() == made.models["logo"].hashes.keys()
    assert "logo" not in some.provenance().models and "8 groups" in some.provenance().not_offered["logo"]
    assert own.estimate(["logo", "guda"], "quick") > own.estimate(["guda"], "quick")
    z = torch.zeros(1, *own.model.latent_shape)
    query = Query(np.zeros((16, 16, 3), np.uint8), z, "", "h")
    *_, a = own.method(Logo).attribute(query, Budget(draws=2))
    assert a.method == "logo" and a.unit == "nats" and all(s.score is not None for s in a.groups.values())
