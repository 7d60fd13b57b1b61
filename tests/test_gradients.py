"""Gradient features: their projection, what they depend on, and their cache."""

from __future__ import annotations

import dataclasses
import gc
import json
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments.baselines.instance import Instance, InstanceConfig
from guda_core.attribution.gradient.dtrak import Dtrak
from guda_core.attribution.gradient.features import FeatureBank, FeatureConfig, Gradients
from guda_core.attribution.gradient.kernel import KernelConfig
from guda_core.attribution.gradient.projection import Projection
from guda_core.attribution.gradient.store import Store
from guda_core.attribution.gradient.trak import Trak
from guda_core.attribution.method import Budget
from guda_core.diffusion.cards import load_model
from guda_core.errors import CacheError, NoMemoryError, ScoreError
from tests.linear import GROUPS, D, K, Linear, linear_world
from tests.test_baselines import config, last
from tests.tiny import save_tiny


@pytest.fixture
def linear():
    return linear_world()


# Projection ----------------------------------------------------------------------------------------------------------


def test_the_projection_is_seeded_keeps_inner_products_and_does_not_depend_on_the_batch(monkeypatch):
    monkeypatch.setattr("guda_core.attribution.gradient.projection.BLOCK", 1000)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3500)).astype(np.float32)
    s = Projection(3500, 64, seed=3)
    assert np.allclose(s(x)[:1], s(x[:1])) and np.array_equal(s(x), Projection(3500, 64, seed=3)(x))
    matrix = np.hstack([s.block(i).toarray() for i in range(4)])
    assert ((matrix != 0).sum(axis=0) == 4).all() and np.allclose((matrix**2).sum(axis=0), 1)
    np.testing.assert_allclose(s(x), x @ matrix.T, rtol=1e-3, atol=1e-3)
    found = [np.prod(Projection(3500, 64, seed=i)(x), axis=0).sum() for i in range(200)]
    truth = float(x[0] @ x[1])
    sd = np.linalg.norm(x[0]) * np.linalg.norm(x[1]) / 8  # of a dense +-1 matrix with 64 rows
    assert abs(np.mean(found) - truth) < 4 * sd / 200**0.5 and np.std(found) < 1.3 * sd
    assert Projection(3500, 0, 0)(x) is x


@pytest.mark.parametrize("dim", [4, 8, 12, 64, 4096])
def test_the_projection_is_the_one_that_version_0_1_drew(dim, monkeypatch):
    """Written down once more by numpy's `integers`; with any number of threads, for one picture and for several."""
    monkeypatch.setattr("guda_core.attribution.gradient.projection.BLOCK", 1001)
    x = np.random.default_rng(0).standard_normal((3, 7500)).astype(np.float32)
    found, s, wanted = [], Projection(7500, dim, seed=5), np.zeros((dim, 3), np.float32)
    for i in range(8):
        n, part = min(1001, 7500 - 1001 * i), dim // 4
        rng = np.random.Generator(np.random.Philox(key=np.array([5, i], np.uint64)))
        rows = rng.integers(0, part, (n, 4), dtype=np.int32) + part * np.arange(4, dtype=np.int32)
        signs = rng.integers(0, 2, (n, 4), dtype=np.int8) * 2.0 - 1
        matrix = np.zeros((dim, n), np.float32)
        np.put_along_axis(matrix, rows.T, (signs.T / 2).astype(np.float32), axis=0)
        assert np.array_equal(s.block(i).toarray(), matrix)
        wanted += s.block(i) @ x[:, 1001 * i : 1001 * i + n].T
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        found += [s(x), np.concatenate([s(x[i : i + 1]) for i in range(3)])]
    assert all(np.array_equal(f, wanted.T) for f in found)


# Half precision ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("half"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("output", ["loss", "mean_square", "mean"])
def test_gradients_of_a_model_in_half_precision_are_those_of_one_in_full(card, dtype, output):
    of = FeatureConfig(output=output, timesteps=2)
    full, half = (Gradients(load_model(card, device="cpu", dtype=d), of) for d in (torch.float32, dtype))
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    a, b = (g.at(z, "cat", "a hash") for g in (full, half))
    assert b.vector.dtype == torch.float32 and all(p.dtype == torch.float32 for p in half.parameters.values())
    assert torch.cosine_similarity(a.vector, b.vector, dim=0) > 0.99
    assert float(b.vector.norm() / a.vector.norm()) == pytest.approx(1, rel=0.05)
    assert b.residual == pytest.approx(a.residual, rel=0.02)


def test_in_float16_a_gradient_that_overflows_is_taken_again_and_small_ones_do_not_vanish(card):
    gradients = Gradients(load_model(card, device="cpu", dtype=torch.float16), FeatureConfig("mean", timesteps=1))
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    usual = gradients.at(z, "cat", "a hash").vector
    again = gradients.at(z, "cat", "a hash", scale=2.0**60)
    assert 1 < again.scale < 2.0**40 and torch.cosine_similarity(usual, again.vector, dim=0) > 0.99
    unscaled = gradients.at(z, "cat", "a hash", scale=1.0).vector
    assert (unscaled == 0).sum() > (usual == 0).sum()
    with pytest.raises(ScoreError, match="not finite"):
        gradients.at(z * 1e5, "cat", "another")
    assert torch.equal(gradients.at(z, "cat", "a hash").vector, usual)  # whatever pictures came before


@pytest.mark.parametrize(("output", "normalise"), [("loss", False), ("mean_square", False), ("mean", True)])
def test_timesteps_that_do_not_fit_together_go_in_parts(card, monkeypatch, output, normalise):
    model = load_model(card)
    z, of, sizes = torch.randn(1, 4, 8, 8), FeatureConfig(output, timesteps=10, normalise=normalise), list[int]()
    whole, real = Gradients(model, of).at(z, "cat", "a hash"), model.predict_eps

    def short(x_t, *more):
        sizes.append(len(x_t))
        if len(x_t) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return real(x_t, *more)

    monkeypatch.setattr(model, "predict_eps", short)
    most, gradients = 4, Gradients(model, of)
    parts, _ = (gradients.at(z, "cat", "a hash") for _ in "ab")
    assert sizes == ([1] * 20 if normalise else [10, 5, *[2] * 10])  # what did not fit is not tried again
    assert float((parts.vector - whole.vector).norm() / whole.vector.norm()) < 1e-5
    assert parts.residual == pytest.approx(whole.residual)
    most = 0
    with pytest.raises(NoMemoryError):
        gradients.at(z, "cat", "a hash")


def test_what_a_query_is_said_to_cost_counts_the_chosen_parts_alone(card, monkeypatch):
    monkeypatch.setattr("guda_core.attribution.gradient.kernel.blocks_seconds", lambda p: float(p.size))
    model = load_model(card)
    for parts in ((), ("attn2.to_k",)):
        trak = Trak.__new__(Trak)
        trak._use(SimpleNamespace(model=model), KernelConfig(FeatureConfig(dim=8, parts=parts)), [])  # type: ignore[arg-type]
        assert trak.cost(Budget()).seconds == Gradients(model, FeatureConfig(parts=parts)).size > 0


# Cache and settings --------------------------------------------------------------------------------------------------


def folders(tmp_path):
    return sorted(p.name for p in (tmp_path / "cache" / "features").iterdir())


def test_the_second_run_reads_the_cache(linear, tmp_path):
    first = Trak(linear.model, linear.examples, GROUPS, config())
    steps = [a.progress for a in first.attribute(linear.query)]
    assert steps == [0.0, 0.99, 1.0]
    second = Trak(linear.model, linear.examples, GROUPS, config())
    began, answer = second.attribute(linear.query)  # no progress: nothing is made
    assert (began.progress, began.groups) == (0.0, {})
    np.testing.assert_array_equal(answer.values["pictures"], last(first, linear.query).values["pictures"])
    assert len(folders(tmp_path)) == 1
    record = json.loads((first.bank.store.folder / "settings.json").read_text())
    assert record["settings"]["base_sha256"] == linear.model.sha256 and set(record["files"]) == {
        "phi.npy",
        "residual.npy",
    }
    assert isinstance(second.features.phi, np.memmap) and not second.features.phi.flags.writeable


FEATURE_CHANGES = [
    {"output": "mean"},
    {"timesteps": 2},
    {"normalise": True},
    {"dim": 8},
    {"dim": 8, "seed": 1},
    {"parts": ("denoiser.weight", "weight")},
]


@pytest.mark.parametrize("change", FEATURE_CHANGES, ids=str)
def test_other_settings_are_other_features(linear, tmp_path, change):
    base = {"timesteps": K, "dim": 8 if "seed" in change else 0}
    found = []
    for more in ({}, change):
        bank = FeatureBank(linear.model, linear.examples, FeatureConfig(**{**base, **more}))
        assert list(bank.prepare())[-1:] == [1.0] and list(bank.prepare()) == []
        found.append(bank.load().phi)
    assert len(folders(tmp_path)) == 2
    if "parts" not in change:
        assert found[0].shape != found[1].shape or not np.allclose(*found)


def test_features_of_half_precision_are_others(card):
    examples = linear_world().examples
    banks = [
        FeatureBank(load_model(card, dtype=d), examples, config().features) for d in (torch.float32, torch.bfloat16)
    ]
    assert banks[0].store.folder != banks[1].store.folder and "dtype" not in banks[0].store.settings


def test_a_gradient_that_is_not_finite_is_told_with_its_picture(linear):
    e = linear.examples
    spoiled = dataclasses.replace(e, latents=torch.cat([e.latents[:5], e.latents[5:] * 1e30]))
    bank = FeatureBank(linear.model, spoiled, config().features)
    with pytest.raises(ScoreError, match=rf"at training picture 6 of 9 \(group '{e.groups[5]}', .*\) is not finite"):
        list(bank.prepare())


def test_another_model_or_other_data_is_another_cache(linear, tmp_path):
    e = linear.examples
    for model, examples in (
        (linear.model, e),
        (Linear(torch.eye(D)), e),
        (linear.model, dataclasses.replace(e, latents=e.latents + 1)),
    ):
        last(Trak(model, examples, GROUPS, config()), linear.query)
    assert len(folders(tmp_path)) == 3
    last(Trak(linear.model, dataclasses.replace(e, groups=("b",) * 9), GROUPS, config()), linear.query)
    assert len(folders(tmp_path)) == 3  # groups only sum


def test_an_adapter_that_is_switched_in_does_not_get_into_the_copy(linear):
    model, weights = linear.model, next(linear.model.network.parameters())
    own, made = weights.detach().clone(), []
    with model.lock, torch.no_grad():  # as another visitor's run, one of whose adapters is on
        weights.add_(1.0)
        other = threading.Thread(target=lambda: made.append(Gradients(model, config().features)))
        other.start()
        other.join(0.2)
        weights.copy_(own)
    other.join()
    assert torch.equal(next(made[0].network.parameters()).detach(), own)


def test_one_copy_serves_all_methods_and_goes_with_them(linear):
    """Of a large model, each copy takes gigabytes."""
    trak, dtrak = (kind(linear.model, linear.examples, GROUPS, config()) for kind in (Trak, Dtrak))
    network = trak.bank.gradients.network
    assert dtrak.bank.gradients.network is network is not linear.model.network
    some = Gradients(linear.model, FeatureConfig(parts=("weight",)))
    other = Gradients(Linear(torch.eye(D)), config().features)
    assert some.network is not network is not other.network
    own = Gradients(linear.model, config().features, own=True)
    assert own.network is not network and own.size == trak.bank.gradients.size
    gone = weakref.ref(network)
    del trak, network
    gc.collect()
    assert gone() is dtrak.bank.gradients.network
    del dtrak
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("change", [{"ridge": 1.0}, {"aggregate": "mean"}], ids=str)
def test_kernel_settings_matter(linear, change):
    one, two = (last(Trak(linear.model, linear.examples, GROUPS, config(**c)), linear.query) for c in ({}, change))
    assert one.groups["a"].score != two.groups["a"].score


INSTANCE_CHANGES = [{"timesteps": 2}, {"eta": 2.0}, {"rise": 0.1}, {"damping": 1.0}, {"aggregate": "sum"}]


@pytest.mark.parametrize("change", INSTANCE_CHANGES, ids=str)
def test_instance_settings_matter(linear, change):
    base = {"timesteps": K, "parts": ("weight",)}
    one, two = (
        last(Instance(linear.model, linear.examples, GROUPS, InstanceConfig(**{**base, **c})), linear.query)
        for c in ({}, change)
    )
    assert one.groups["a"].score != two.groups["a"].score


def test_fields_are_all_tried():
    tried = {k for c in FEATURE_CHANGES for k in c}
    assert {f.name for f in dataclasses.fields(FeatureConfig)} <= tried
    assert {f.name for f in dataclasses.fields(KernelConfig)} <= {"ridge", "aggregate", "features"}
    assert {f.name for f in dataclasses.fields(InstanceConfig)} <= {k for c in INSTANCE_CHANGES for k in c} | {"parts"}


def _flip(path):
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


DAMAGE = {
    "a bit": lambda f: _flip(f / "phi.npy"),
    "a file": lambda f: (f / "residual.npy").unlink(),
    "the record": lambda f: (f / "settings.json").write_text("{"),
    "no files": lambda f: (f / "settings.json").write_text("{}"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_cache_says_what_to_do(linear, name):
    last(Trak(linear.model, linear.examples, GROUPS, config()), linear.query)
    method = Trak(linear.model, linear.examples, GROUPS, config())
    DAMAGE[name](method.bank.store.folder)
    with pytest.raises(CacheError, match=r"Delete .*trak|Delete .*gradients-"):
        last(method, linear.query)


def test_an_interrupted_computation_leaves_no_cache(linear):
    method = Trak(linear.model, linear.examples, GROUPS, config())
    method.bank.store.create("phi", (2, 2))
    assert not method.bank.store.complete
    with pytest.raises(CacheError, match="computed first"):
        method.bank.load()
    assert last(method, linear.query).ranked()


def test_two_makers_of_one_store_agree(tmp_path):
    one, two = (Store("x", {"n": 1}) for _ in range(2))
    two._aside = two._aside.with_name("other")
    for s in (one, two):
        s.create("v", (2,))[:] = [1, 2]
    one.finish()
    two.finish()
    assert two.open()["v"].tolist() == [1, 2] and len(folders(tmp_path)) == 1
