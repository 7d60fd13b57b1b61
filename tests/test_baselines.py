"""Baselines against direct dense computations, a planted duplicate, and their cache."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from experiments.baselines.classifier_similarity import ClassifierSimilarity
from experiments.baselines.instance import CONVOLUTIONS, Instance, InstanceConfig
from experiments.train.classifier import ClassifierConfig, train
from guda_core.attribution.aggregate import errors_of_95, group_scores, lead
from guda_core.attribution.gradient import kernel, quantised
from guda_core.attribution.gradient.das import Das
from guda_core.attribution.gradient.dtrak import Dtrak
from guda_core.attribution.gradient.features import FeatureConfig, Gradients, timestep_grid
from guda_core.attribution.gradient.kernel import KernelConfig, Ridge
from guda_core.attribution.gradient.trak import Trak
from guda_core.data.captions import captioner_of
from guda_core.data.dataset import Pictures
from guda_core.data.encoded import examples_of
from guda_core.data.images import hash_pixels
from guda_core.diffusion.cards import load_model
from guda_core.errors import CacheError, DataError, ModelError, OptionError, ScoreError
from guda_core.records import GroupScore, Query
from guda_core.unlearning.loop import LoopConfig
from tests.linear import GROUPS, D, K, linear_world
from tests.test_unlearn import make_group_set
from tests.tiny import save_tiny, save_tiny_unconditional


@pytest.fixture
def linear():
    return linear_world()


def by_hand(linear, latent, image_hash):
    """x_t, eps and W as float64 arrays (K, D), (K, D), (D, D), with the noise the library draws."""
    model = linear.model
    gradients = Gradients(model, FeatureConfig(timesteps=K, dim=0))
    ab = model.schedule.alpha[timestep_grid(len(model.schedule), K)].square().numpy()[:, None]
    eps = gradients.noise(image_hash, (1, 2, 2)).flatten(1).double().numpy()
    x = np.sqrt(ab) * latent.flatten().double().numpy() + np.sqrt(1 - ab) * eps
    return x, eps, model.network.weight.detach().double().numpy()


def gradient(linear, latent, image_hash, output):
    """d/dW of the mean over timesteps of f, written out: (D D,). DAS: of unit length at every timestep."""
    x, eps, w = by_hand(linear, latent, image_hash)
    if output == "mean":
        each = [np.outer(np.full(D, 1 / D), xi) for xi in x]
        return np.mean([e / np.linalg.norm(e) for e in each], axis=0).ravel()
    r = x @ w.T - (eps if output == "loss" else 0)
    return (2 / D * r.T @ x / K).ravel()


def dense(linear, output):
    """Phi (N, D D) and phi of the query."""
    e, q = linear.examples, linear.query
    phi = np.stack([gradient(linear, z, h, output) for z, h in zip(e.latents, e.hashes, strict=True)])
    return phi, gradient(linear, q.latent, q.image_hash, output)


def config(**more):
    return KernelConfig(features=FeatureConfig(timesteps=K, dim=0), **more)


def last(method, query):
    *_, a = method.attribute(query)
    assert a.progress == 1.0
    return a


@pytest.mark.parametrize("method", [Trak, Dtrak])
def test_trak_and_dtrak_are_the_dense_kernel(linear, method):
    phi, q = dense(linear, method.output)
    for ridge in (0.1, 2.0):
        lam = ridge * np.trace(phi.T @ phi) / min(phi.shape)
        tau = phi @ np.linalg.inv(phi.T @ phi + lam * np.eye(D * D)) @ q
        for how in ("sum", "mean"):
            a = last(method(linear.model, linear.examples, GROUPS, config(ridge=ridge, aggregate=how)), linear.query)
            np.testing.assert_allclose(a.values["pictures"], tau, rtol=1e-4, atol=1e-6)
            for i, g in enumerate(GROUPS):
                own = tau[3 * i : 3 * i + 3]
                assert a.groups[g].score == pytest.approx(getattr(own, how)(), rel=1e-3, abs=1e-6)
                half = stats.t.ppf(0.975, 2) * own.std(ddof=1) * (3**0.5 if how == "sum" else 3**-0.5)
                assert a.groups[g].high - a.groups[g].score == pytest.approx(half, rel=1e-3)


def test_das_is_the_dense_change_of_the_estimate(linear):
    phi, q = dense(linear, "mean")
    inverse = np.linalg.inv(phi.T @ phi + 0.1 * np.trace(phi.T @ phi) / 9 * np.eye(D * D))
    h = np.einsum("ij,jk,ik->i", phi, inverse, phi)
    r = []
    for z, image in zip(linear.examples.latents, linear.examples.hashes, strict=True):
        x, eps, w = by_hand(linear, z, image)
        r.append(np.sqrt(((eps - x @ w.T) ** 2).mean(axis=1)).mean())
    tau = (phi @ inverse @ q * np.array(r) / (1 - h)) ** 2
    a = last(Das(linear.model, linear.examples, GROUPS, config()), linear.query)
    np.testing.assert_allclose(a.values["pictures"], tau, rtol=1e-3, atol=1e-8)


def test_leaving_a_picture_out_of_a_ridge_regression_is_what_das_computes():
    """y = Phi w: the prediction at q moves by q^T A^-1 phi_i r_i / (1 - h_i) when row i is left out, exactly."""
    rng = np.random.default_rng(0)
    phi, y, q = rng.standard_normal((12, 5)), rng.standard_normal(12), rng.standard_normal(5)
    ridge = Ridge(phi, 0.2)
    a = phi.T @ phi + ridge.lam * np.eye(5)
    w = np.linalg.solve(a, phi.T @ y)
    ours = ridge.kernel(q) * (y - phi @ w) / (1 - ridge.leverage())
    for i in range(12):
        p, t = np.delete(phi, i, axis=0), np.delete(y, i)
        without = np.linalg.solve(p.T @ p + ridge.lam * np.eye(5), p.T @ t)
        assert q @ (w - without) == pytest.approx(ours[i], rel=1e-8)


@pytest.mark.parametrize("held", [0, kernel.HELD])
def test_both_forms_of_the_ridge_agree(held, monkeypatch):
    monkeypatch.setattr(kernel, "HELD", held)
    rng = np.random.default_rng(1)
    phi, q = rng.standard_normal((7, 7)), rng.standard_normal(7)
    wide, tall = Ridge(np.hstack([phi, np.zeros((7, 3))]), 0.3), Ridge(np.vstack([phi, np.zeros((3, 7))]), 0.3)
    assert wide.dual and not tall.dual
    np.testing.assert_allclose(wide.kernel(np.r_[q, np.zeros(3)]), tall.kernel(q)[:7], rtol=1e-9)
    np.testing.assert_allclose(wide.leverage(), tall.leverage()[:7], rtol=1e-9)
    with pytest.raises(ScoreError, match="zero"):
        Ridge(np.zeros((3, 4)), 0.1)


def test_the_fisher_step_and_the_rises_are_the_dense_ones(linear):
    e, q, eta, damping = linear.examples, linear.query, 0.7, 0.2
    method = Instance(linear.model, e, GROUPS, InstanceConfig(timesteps=K, eta=eta, damping=damping, parts=("weight",)))
    a = last(method, q)
    g, g_q = dense(linear, "loss")
    fisher = (g**2).mean(axis=0)
    step = eta / 9 * g_q / (fisher + damping * fisher.mean())
    np.testing.assert_allclose(method.step(q)[0].numpy(), step, rtol=1e-3)

    def loss(w, z, image):
        x, eps, _ = by_hand(linear, z, image)
        return ((eps - x @ w.T) ** 2).mean()

    w = linear.model.network.weight.detach().double().numpy()
    after = w + step.reshape(D, D)
    rise = [loss(after, z, h) - loss(w, z, h) for z, h in zip(e.latents, e.hashes, strict=True)]
    np.testing.assert_allclose(a.values["pictures"], rise, rtol=1e-3, atol=1e-5)
    own = loss(after, q.latent, q.image_hash) - loss(w, q.latent, q.image_hash)
    assert a.values["query"][0] == pytest.approx(own, rel=1e-3) and own > 0
    assert a.groups["b"].score == pytest.approx(np.mean(rise[3:6]), rel=1e-2)
    assert np.array_equal(method.gradients.network.weight.detach().numpy(), w.astype(np.float32))
    settings = InstanceConfig(timesteps=K, rise=1e-3, damping=damping, parts=("weight",))
    small = Instance(linear.model, e, GROUPS, settings)
    assert last(small, q).values["query"][0] == pytest.approx(1e-3 * loss(w, q.latent, q.image_hash), rel=0.05)
    assert last(small, q).settings["eta"] < eta


# Tiny real models, a planted duplicate -------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["unconditional", "stable_diffusion"])
def world(request, tmp_path_factory):
    """A random tiny model of each kind and pictures of three groups."""
    folder = tmp_path_factory.mktemp(request.param)
    text = request.param == "stable_diffusion"
    model = load_model(save_tiny(folder, tokens=6) if text else save_tiny_unconditional(folder))
    size = model.card.resolution
    pixels = np.random.default_rng(0).integers(0, 256, (12, size, size, 3), dtype=np.uint8)
    pictures = Pictures(pixels, tuple("aaaabbbbcccc"), ("o",) * 12)
    examples = examples_of(model, pictures, captioner_of(make_group_set()) if text else None)
    return SimpleNamespace(model=model, pictures=pictures, examples=examples)


def query_of(world, i: int) -> Query:
    """The i-th training picture again, as a query."""
    e = world.examples
    pixels = world.pictures.pixels[i]
    return Query(pixels, world.model.encode(pixels), e.prompts[i], hash_pixels(pixels))


def make(name, world):
    features = FeatureConfig(timesteps=4, dim=256)
    if name == "classifier":
        settings = ClassifierConfig(width=16, channels=(8, 8), loop=LoopConfig(steps=20, batch=12, lr=3e-3, warmup=2))
        *_, (_, classifier) = train(world.pictures, settings)
        return ClassifierSimilarity(classifier, world.pictures, GROUPS, "max")
    method = {"trak": Trak, "dtrak": Dtrak, "das": Das, "instance": Instance}[name]
    settings = InstanceConfig(timesteps=4) if name == "instance" else KernelConfig(features=features)
    return method(world.model, world.examples, GROUPS, settings)


@pytest.mark.parametrize("name", ["trak", "dtrak", "das", "instance", "classifier"])
def test_the_group_of_a_duplicate_comes_first(world, name):
    before = {n: p.clone() for n, p in world.model.network.named_parameters()}
    method = make(name, world)
    for i, g in ((1, "a"), (6, "b"), (11, "c")):
        a = last(method, query_of(world, i))
        assert a.ranked()[0] == g and a.method == name == method.id
        assert all(s.low <= s.score <= s.high for s in a.groups.values())
        if "pictures" in a.values:
            assert int(np.argmax(a.values["pictures"])) == i
    assert all(torch.equal(p, before[n]) for n, p in world.model.network.named_parameters())
    assert not any(p.requires_grad for p in world.model.network.parameters())


def test_examples_are_encoded_once_and_captioned(world):
    e = world.examples
    assert e.latents.shape == (12, *world.model.latent_shape) and e.groups == world.pictures.groups
    text = world.model.card.kind == "stable_diffusion"
    assert all(p.startswith(g * 2) for p, g in zip(e.prompts, e.groups, strict=True)) if text else not any(e.prompts)
    again = examples_of(world.model, world.pictures, captioner_of(make_group_set()) if text else None)
    assert again.sha256() == e.sha256() != dataclasses.replace(e, hashes=("x", *e.hashes[1:])).sha256()
    with pytest.raises(DataError, match="as many"):
        dataclasses.replace(e, prompts=("",))


def test_parts_choose_the_weights(world):
    all_of, some = (Gradients(world.model, FeatureConfig(parts=p)) for p in ((), ("to_k", "to_v")))
    assert some.size < all_of.size and all("to_k" in n or "to_v" in n for n in some.parameters)
    kind = world.model.card.kind
    convolutions = Instance(world.model, world.examples, GROUPS, InstanceConfig(parts=CONVOLUTIONS)).gradients
    named = dict(convolutions.network.named_parameters())
    assert all(named[n].dim() == 4 for n in convolutions.parameters if n.endswith("weight"))
    found = sum(n.endswith("weight") for n in convolutions.parameters)
    assert found == sum(p.dim() == 4 for p in named.values()) or (kind == "stable_diffusion" and found > 5)
    own = set(Instance(world.model, world.examples, GROUPS).gradients.parameters)
    assert own and all(("attn2" in n) == (kind == "stable_diffusion") for n in own)


def test_the_authors_dimensions_are_the_defaults():
    assert [(m.defaults().features.dim, m.defaults().features.timesteps) for m in (Trak, Dtrak, Das)] == [
        (32768, 10), (32768, 10), (4096, 10)
    ]  # fmt: skip


def test_missing_parts_are_refused(world):
    with pytest.raises(ModelError, match="none of the parts nowhere"):
        Gradients(world.model, FeatureConfig(parts=("nowhere",)))


@pytest.mark.parametrize(
    "bad",
    [
        lambda: FeatureConfig(output="x"),
        lambda: FeatureConfig(timesteps=0),
        lambda: FeatureConfig(dim=6),
        lambda: KernelConfig(ridge=0.0),
        lambda: KernelConfig(aggregate="max"),
        lambda: InstanceConfig(eta=0.0),
        lambda: InstanceConfig(rise=0.0),
        lambda: InstanceConfig(aggregate="max"),
    ],
)
def test_unknown_settings_are_refused(bad):
    with pytest.raises(OptionError):
        bad()


def test_group_scores_of_missing_and_broken_groups():
    scores = group_scores(np.array([1.0, 3.0, np.nan]), ("a", "a", "b"), ("a", "b", "c"), "sum")
    assert scores["a"].score == 4 and scores["b"].status == "no_score" and scores["c"].status == "unavailable"
    assert scores["a"].high - 4 == pytest.approx(stats.t.ppf(0.975, 1) * 2**0.5 * 2**0.5)


def test_groups_of_few_pictures_are_no_more_often_ahead_by_chance_than_of_many():
    """Two equal groups: a 95% interval of their difference leaves out 0 once in twenty, or less often."""
    rng, of = np.random.default_rng(0), np.repeat(["a", "b"], 3)
    found = [lead(group_scores(rng.normal(size=6), of, ("a", "b"), "mean"))["separable"] for _ in range(2000)]
    assert 0 < np.mean(found) < 0.05 and errors_of_95(30) == errors_of_95(160) == 1.96
    alone = group_scores(np.array([1.0, 5.0, 6.0]), ("a", "b", "b"), ("a", "b"), "mean")
    assert alone["a"].low == alone["a"].high == 1.0
    assert lead(alone) == {"separable": None, "runner_up": "a"}


def test_classifier_learns_and_scores(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 60, (30, 8, 8, 3), dtype=np.uint8)
    groups = tuple(GROUPS[i % 3] for i in range(30))
    for i in range(30):
        pixels[i, 2 * (i % 3) : 2 * (i % 3) + 3] += 150
    settings = ClassifierConfig(loop=LoopConfig(steps=30, batch=30, lr=3e-3, warmup=2))
    *_, (_, classifier) = train(Pictures(pixels, groups, ("o",) * 30), settings)
    method = ClassifierSimilarity(classifier, Pictures(pixels[:20], groups[:20], ("o",) * 20), (*GROUPS, "z"))
    for i in range(20, 30):
        a = last(method, Query(pixels[i], None, "", ""))
        assert a.ranked()[0] == groups[i] and a.groups["z"].status == "unavailable"
        cosines = [float(c) for c in method.bank["a"] @ classifier.image_features(pixels[i : i + 1])[0]]
        assert a.groups["a"].score == pytest.approx(np.mean(cosines), abs=1e-5)
    with pytest.raises(OptionError, match="prototype"):
        ClassifierSimilarity(classifier, Pictures(pixels, groups, ("o",) * 30), GROUPS, "median")


def ship(method, folder):
    list(method.prepare())
    meta = {"base_sha256": method.bank.gradients.model.sha256, "config": dataclasses.asdict(method.config.features)}
    quantised.write(folder, method.features, method.bank.groups, meta)


@pytest.mark.parametrize("method", [Trak, Dtrak, Das])
def test_shipped_features_answer_without_the_pictures(linear, method, tmp_path):
    own = method(linear.model, linear.examples, GROUPS, config())
    ship(own, tmp_path / method.id)
    stored = method.on_quantised(linear.model, tmp_path / method.id, GROUPS)
    a, b = last(own, linear.query), last(stored, linear.query)
    assert a.ranked() == b.ranked() and b.settings["base_sha256"] == linear.model.sha256
    size = np.abs(a.values["pictures"]).max()
    np.testing.assert_allclose(b.values["pictures"], a.values["pictures"], atol=0.03 * size)


def test_shipped_features_of_anything_else_are_refused(linear, tmp_path):
    with pytest.raises(CacheError, match="features --methods trak"):
        Trak.on_quantised(linear.model, tmp_path / "trak", GROUPS)
    ship(Trak(linear.model, linear.examples, GROUPS, config()), tmp_path / "trak")
    (tmp_path / "trak").rename(tmp_path / "dtrak")
    with pytest.raises(CacheError, match="another method than dtrak"):
        Dtrak.on_quantised(linear.model, tmp_path / "dtrak", GROUPS)
    meta = tmp_path / "dtrak" / quantised.META
    record = json.loads(meta.read_text())
    meta.write_text(json.dumps({**record, "base_sha256": "0" * 64}))
    with pytest.raises(CacheError, match=r"another base model\. .*--again`, for this model"):
        Trak.on_quantised(linear.model, tmp_path / "dtrak", GROUPS)
    meta.write_text(json.dumps({**record, "sha256": "0" * 64}))
    with pytest.raises(CacheError, match="damaged"):
        Trak.on_quantised(linear.model, tmp_path / "dtrak", GROUPS)
    meta.write_text("{")
    with pytest.raises(CacheError, match="cannot be read"):
        Trak.on_quantised(linear.model, tmp_path / "dtrak", GROUPS)


def test_the_lead_is_that_of_independent_groups():
    def score(value, half):
        return GroupScore(value, value - half, value + half)

    assert lead({"a": score(5, 3), "b": score(0, 3.9)}) == {"separable": True, "runner_up": "b"}
    assert lead({"a": score(5, 3), "b": score(0, 4.1)}) == {"separable": False, "runner_up": "b"}
    assert lead({"a": score(5, 3), "b": GroupScore(None, None, None, "no_score", "x")}) == {}
