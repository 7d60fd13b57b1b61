"""Adapters: what is stored is what peft computes, nothing foreign or damaged is used, the model is restored exactly."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from guda_core.attribution.base import Budget
from guda_core.attribution.guda import Guda
from guda_core.data.groups import load_group_set
from guda_core.diffusion.cards import load_model
from guda_core.errors import AdapterError
from guda_core.records import Query
from guda_core.unlearning import adapters
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(save_tiny(tmp_path_factory.mktemp("tiny")))


def make(model, folder, group="a", base=None, seed=0):
    """A random adapter, and the peft module it came from."""
    student = copy.deepcopy(model.network)
    params = adapters.attach(student, adapters.LoraSpec(rank=2, alpha=4), seed)
    with torch.no_grad():
        for p in params:
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed + p.numel())))
    meta = {"group": group, "base_sha256": base or model.sha256}
    adapters.save(student, folder, spec=adapters.LoraSpec(rank=2, alpha=4), meta=meta)
    return student


def test_applied_equals_peft_and_restores_bit_by_bit(model, tmp_path):
    student = make(model, tmp_path)
    adapter = adapters.load(tmp_path, base_sha256=model.sha256, group="a")
    x, t, cond = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), model.embed(["a", ""])
    before = {n: p.clone() for n, p in model.network.named_parameters()}
    with torch.no_grad():
        plain = model.predict_eps(x, t, cond)
        with adapters.applied(model.network, adapter):
            ours = model.predict_eps(x, t, cond)
        theirs = model.predict_eps(x, t, cond, student)
    assert torch.allclose(ours, theirs, atol=2e-3) and (ours - plain).abs().max() > 0.05
    with pytest.raises(RuntimeError, match="stop"), adapters.applied(model.network, adapter):
        raise RuntimeError("stop")
    assert all(torch.equal(p, before[n]) for n, p in model.network.named_parameters())


def _damage(folder):
    path = folder / "adapter.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def _not_finite(folder):
    path, meta = folder / "adapter.safetensors", json.loads((folder / "adapter.json").read_text())
    state = load_file(path)
    next(iter(state.values())).fill_(float("nan"))
    save_file(state, path)
    meta["sha256"] = adapters.hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "adapter.json").write_text(json.dumps(meta))


def _pickle(folder):
    (folder / "adapter.safetensors").rename(folder / "adapter.bin")


BAD = {
    "damaged": (_damage, "damaged"),
    "not finite": (_not_finite, "not finite"),
    "pickle": (_pickle, "never pickles"),
    "unfinished": (lambda f: (f / "adapter.json").unlink(), "no finished adapter"),
    "metadata": (lambda f: (f / "adapter.json").write_text("{"), "damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_adapters_are_refused(model, tmp_path, name):
    spoil, sentence = BAD[name]
    make(model, tmp_path)
    spoil(tmp_path)
    with pytest.raises(AdapterError, match=sentence):
        adapters.load(tmp_path, base_sha256=model.sha256, group="a")


def test_foreign_adapters_are_refused(model, tmp_path):
    make(model, tmp_path, base="0" * 64)
    with pytest.raises(AdapterError, match="another base model"):
        adapters.load(tmp_path, base_sha256=model.sha256, group="a")
    make(model, tmp_path)
    with pytest.raises(AdapterError, match="of group 'a', not 'b'"):
        adapters.load(tmp_path, base_sha256=model.sha256, group="b")


def test_one_bad_adapter_leaves_the_rest(model, tmp_path):
    group_set = load_group_set("emoji")
    ids = list(group_set.groups)
    for i, g in enumerate(ids[:3]):
        make(model, tmp_path / g, g, seed=i)
    _damage(tmp_path / ids[1])
    guda = Guda(model, group_set, tmp_path)
    latent = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(5))
    query = Query(pixels=torch.zeros(1).numpy(), latent=latent, prompt="", image_hash="x")
    *_, last = guda.attribute(query, Budget(draws=2, per_pass=1, strata=8))
    states = {g: s.status for g, s in last.groups.items()}
    assert [states[g] for g in ids[:3]] == ["ok", "unavailable", "ok"] and last.progress == 1.0
    assert "damaged" in last.groups[ids[1]].reason and last.groups[ids[1]].score is None
    assert set(last.ranked()) == {ids[0], ids[2]}
    assert last.kl is not None and last.kl.full.shape == (8, 2) and ids[0] in last.kl.without
