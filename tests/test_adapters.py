"""Adapters: what is stored is what peft computes, nothing foreign or damaged is used, the model is restored exactly."""

from __future__ import annotations

import copy
import json
import os
import warnings

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from guda_core.attribution.guda import Guda
from guda_core.attribution.method import Budget
from guda_core.data.groups import load_group_set
from guda_core.diffusion.cards import find_card, load_model
from guda_core.errors import AdapterError
from guda_core.paths import SHIPPED_RUN
from guda_core.records import Query
from guda_core.unlearning import adapter_files, adapters, delta, switching
from guda_core.unlearning.adapter_files import LORA, LORA_CONFIG, META, OLD_META, OLD_WEIGHTS, PREFIX
from tests.tiny import save_tiny

SPEC = adapters.LoraSpec(rank=2, alpha=4)


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(card):
    return load_model(card)


def make(model, folder, group="a", seed=0, **meta):
    """A random adapter, and the peft module it came from."""
    student = copy.deepcopy(model.network)
    params = adapters.attach(student, SPEC, seed)
    with torch.no_grad():
        for p in params:
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed + p.numel())))
    adapters.save(student, folder, spec=SPEC, meta={"group": group, "base_sha256": model.sha256, **meta})
    return student


def old_layout(folder):
    """The same adapter as version 0.1 wrote it."""
    state = {n.removeprefix(PREFIX): t for n, t in load_file(folder / LORA).items()}
    meta = json.loads((folder / META).read_text())
    for name in (LORA, LORA_CONFIG, META):
        (folder / name).unlink()
    save_file(state, folder / OLD_WEIGHTS)
    meta["sha256"] = adapter_files.hash_file(folder / OLD_WEIGHTS)
    (folder / OLD_META).write_text(json.dumps(meta))


def test_applied_equals_peft_and_restores_bit_by_bit(model, tmp_path):
    student = make(model, tmp_path)
    adapter = adapters.load(tmp_path, model=model, group="a")
    x, t, cond = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), model.embed(["a", ""])
    before = {n: p.clone() for n, p in model.network.named_parameters()}
    with torch.no_grad():
        plain = model.predict_eps(x, t, cond)
        with switching.applied(model.network, adapter):
            ours = model.predict_eps(x, t, cond)
        theirs = model.predict_eps(x, t, cond, student)
    assert torch.allclose(ours, theirs, atol=2e-3) and (ours - plain).abs().max() > 0.05
    with pytest.raises(RuntimeError, match="stop"), switching.applied(model.network, adapter):
        raise RuntimeError("stop")
    assert all(torch.equal(p, before[n]) for n, p in model.network.named_parameters())


def test_peft_and_diffusers_read_the_same_folder_to_the_same_output(model, tmp_path):
    make(model, tmp_path)
    x, t, cond = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), model.embed(["a", ""])
    by_peft = PeftModel.from_pretrained(copy.deepcopy(model.network), tmp_path)
    by_diffusers = copy.deepcopy(model.network)
    by_diffusers.load_lora_adapter(tmp_path, weight_name=LORA, prefix=PREFIX.rstrip("."))
    with torch.no_grad():
        with switching.applied(model.network, adapters.load(tmp_path, model=model, group="a")):
            ours = model.predict_eps(x, t, cond)
        for theirs in (by_peft, by_diffusers):
            torch.testing.assert_close(model.predict_eps(x, t, cond, theirs), ours, atol=1e-5, rtol=1e-4)
    assert (ours - model.predict_eps(x, t, cond)).abs().max() > 0.05


def test_the_old_layout_is_read_to_the_same_factors(model, tmp_path):
    make(model, tmp_path)
    new = adapters.load(tmp_path, model=model, group="a")
    old_layout(tmp_path)
    old = adapters.load(tmp_path, model=model, group="a")
    assert old.scale == new.scale == 2 and old.factors.keys() == new.factors.keys()
    assert all(
        torch.equal(p, q) for n in old.factors for p, q in zip(old.factors[n][:2], new.factors[n][:2], strict=True)
    )
    make(model, tmp_path)  # made again in the same folder
    assert {f.name for f in tmp_path.iterdir()} == {META, LORA, LORA_CONFIG}


def test_the_committed_adapters_and_retrained_models_are_read():
    model, group_set = load_model(find_card("emoji")), load_group_set("emoji")
    for g in group_set.groups:
        lora = adapters.load(SHIPPED_RUN / "adapters" / g, model=model, group=g, group_set="emoji")
        coded = adapters.load(SHIPPED_RUN / "oracle" / g, model=model, group=g, group_set="emoji")
        assert len(lora.factors) == 92 and set(coded.shapes) == set(model.network.state_dict())


def test_factors_are_float32_on_a_network_in_half_precision(card):
    half = load_model(card, dtype=torch.float16)
    student = copy.deepcopy(half.network)
    params = adapters.attach(student, SPEC, 0)
    assert {p.dtype for p in params} == {torch.float32} and next(half.network.parameters()).dtype == torch.float16
    with torch.no_grad():
        out = half.predict_eps(torch.randn(1, 4, 8, 8), torch.tensor([5]), half.embed(["a"]), student)
    assert torch.isfinite(out).all()


def change(folder, edit=None, **meta):
    """Edit the tensors, with the hash made right again, and the metadata."""
    path = adapter_files.weights_file(folder)
    state = load_file(path)
    if edit is not None:
        edit(state)
        save_file(state, path)
    record = {
        **json.loads(adapter_files.meta_file(folder).read_text()),
        "sha256": adapter_files.hash_file(path),
        **meta,
    }
    adapter_files.meta_file(folder).write_text(json.dumps(record))


def one(state, ending):
    return next(n for n in sorted(state) if n.endswith(ending))


def _damage(folder):
    path = adapter_files.weights_file(folder)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def _half_missing(state):
    for n in [n for n in sorted(state) if ".lora_A." in n][::2]:
        del state[n]


def _dora(state):
    name = one(state, ".lora_B.weight")
    state[name.replace(".lora_B.weight", ".lora_magnitude_vector")] = torch.ones(len(state[name]))


def _retype(dtype):
    def edit(state):
        state.update({n: t.to(dtype) for n, t in state.items()})

    return edit


def _set(ending, value):
    return lambda state: state[one(state, ending)].fill_(value)


def _ranks_differ(state):
    name = one(state, ".lora_B.weight")
    state[name] = torch.cat([state[name]] * 2, dim=1)


def _all_of_rank_4(state):
    for n, t in state.items():
        state[n] = torch.cat([t, t], dim=0 if ".lora_A." in n else 1).contiguous()


def _huge_product(state):
    a = one(state, ".lora_A.weight")
    for n in (a, a.replace(".lora_A.", ".lora_B.")):
        state[n].fill_(6e4)


def _text_encoder(state):
    state["text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(2, 16, dtype=torch.float16)


def _config(**changes):
    def spoil(folder):
        path = folder / LORA_CONFIG
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def _lora(**changes):
    return lambda f: change(f, lora={**json.loads((f / META).read_text())["lora"], **changes})


def _swap_names(state):
    names = [n for n in sorted(state) if n.endswith("to_q.lora_A.weight") and "attn1" in n][:2]
    state[names[0] + "x"] = state.pop(names[0])


def _oversize(folder):
    with (folder / LORA).open("r+b") as f:
        f.truncate(200_000_000)  # sparse


BAD = {
    "damaged": (_damage, "do not have the hash"),
    "not finite": (lambda f: change(f, _set("lora_A.weight", float("nan"))), "not finite"),
    "infinite": (lambda f: change(f, _set("lora_B.weight", float("inf"))), "not finite"),
    "pickle": (lambda f: (f / LORA).rename(f / "adapter_model.bin"), "never pickles"),
    "unfinished": (lambda f: (f / META).unlink(), "no finished adapter"),
    "metadata": (lambda f: (f / META).write_text("{"), "metadata guda.json in .* is damaged"),
    "metadata nested deeply": (lambda f: (f / META).write_text("[" * 100_000), "is damaged"),
    "metadata without end": (lambda f: os.truncate(f / META, 10_000_000), "larger than"),
    "a base model by no hash": (lambda f: change(f, base_sha256="0" * 12 + "`<b>`"), "base_sha256 is no SHA-256"),
    "a base model by a number": (lambda f: change(f, base_sha256=int("1" * 64)), "base_sha256 is no SHA-256"),
    "no base model": (lambda f: change(f, base_sha256=None), "base_sha256 is no SHA-256"),
    "half of the factors": (lambda f: change(f, _half_missing), "tensors are missing"),
    "magnitudes of DoRA": (lambda f: change(f, _dora), "have no place in the network"),
    "the text encoder's": (lambda f: change(f, _text_encoder), "have no place in the network"),
    "renamed": (lambda f: change(f, _swap_names), "1 of .* tensors are missing"),
    "empty": (lambda f: change(f, lambda state: state.clear()), "tensors are missing"),
    "another rank than it says": (lambda f: change(f, _all_of_rank_4), r"the network asks for \(2,"),
    "ranks that differ": (lambda f: change(f, _ranks_differ), "has shape"),
    "float8": (lambda f: change(f, _retype(torch.float8_e4m3fn)), "is float8_e4m3fn"),
    "whole numbers": (lambda f: change(f, _retype(torch.int8)), "is int8"),
    "float64": (lambda f: change(f, _retype(torch.float64)), "is float64"),
    "a product beyond float16": (lambda f: change(f, _huge_product), "too large"),
    "alpha NaN": (_lora(alpha=float("nan")), "alpha is nan"),
    "alpha infinite": (_lora(alpha=float("inf")), "alpha is inf"),
    "alpha 0": (_lora(alpha=0), "alpha is 0"),
    "alpha below 0": (_lora(alpha=-4), "alpha is -4"),
    "alpha a word": (_lora(alpha="4"), "alpha is '4'"),
    "rank true": (_lora(rank=True), "rank is True"),
    "no targets": (_lora(targets=[]), "targets are not"),
    "foreign targets": (_lora(targets=["q_proj"]), "says otherwise"),
    "no settings": (lambda f: change(f, lora=None), "no complete 'lora'"),
    "of an unknown kind": (lambda f: change(f, kind="delta"), "its kind is 'delta'"),
    "a LoRA that says whole": (lambda f: change(f, kind="whole"), "tensors are missing"),
    "PEFT's file gone": (lambda f: (f / LORA_CONFIG).unlink(), "adapter_config.json cannot be read"),
    "PEFT's file of another rank": (_config(r=3), "says otherwise than its metadata: r"),
    "PEFT's file says DoRA": (_config(use_dora=True), "use_dora"),
    "PEFT's file scales otherwise": (_config(use_rslora=True), "use_rslora"),
    "a file without end": (_oversize, "takes 200,000,000 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_adapters_are_refused(model, tmp_path, name):
    spoil, sentence = BAD[name]
    make(model, tmp_path)
    spoil(tmp_path)
    with pytest.raises(AdapterError, match=sentence):
        adapters.load(tmp_path, model=model, group="a")


@pytest.mark.parametrize("name", ["half of the factors", "ranks that differ", "alpha NaN", "empty", "not finite"])
def test_bad_adapters_of_the_old_layout_are_refused_too(model, tmp_path, name):
    spoil, sentence = BAD[name]
    make(model, tmp_path)
    spoil(tmp_path)
    old_layout(tmp_path)
    with pytest.raises(AdapterError, match=sentence):
        adapters.load(tmp_path, model=model, group="a")


def test_an_adapter_in_other_float_types_is_read(model, tmp_path):
    make(model, tmp_path)
    first = adapters.load(tmp_path, model=model, group="a")
    change(tmp_path, _retype(torch.float32))
    again = adapters.load(tmp_path, model=model, group="a")
    assert all(torch.equal(first.factors[n][0], again.factors[n][0]) for n in first.factors)


def test_foreign_adapters_are_refused(model, tmp_path):
    make(model, tmp_path, base_sha256="0" * 64)
    with pytest.raises(AdapterError, match="another base model"):
        adapters.load(tmp_path, model=model, group="a")
    make(model, tmp_path, group_set="emoji")
    with pytest.raises(AdapterError, match="of group 'a', not 'b'"):
        adapters.load(tmp_path, model=model, group="b")
    with pytest.raises(AdapterError, match="made for the group set 'emoji', not 'artists'"):
        adapters.load(tmp_path, model=model, group="a", group_set="artists")
    assert adapters.load(tmp_path, model=model, group="a", group_set="emoji").group == "a"
    make(model, tmp_path)  # of version 0.1, which did not always name the set
    assert adapters.load(tmp_path, model=model, group="a", group_set="artists").group == "a"


def whole(model, folder):
    adapters.save_whole(model.network, folder, meta={"group": "a", "base_sha256": model.sha256})


def coded(model, folder):
    base = {n: p.detach() for n, p in model.network.state_dict().items()}
    stored = delta.encode(base, {n: p + 0.01 for n, p in base.items()}, dict.fromkeys(base, 1.0), 0.01)
    adapters.save_coded(stored, folder, meta={"group": "a", "base_sha256": model.sha256})


def _drop(ending):
    return lambda state: state.pop(one(state, ending))


def _reshape(state):
    name = one(state, delta.SHAPE)
    state[name] = state[name].flip(0).contiguous()


def _vast(state):
    name = one(state, delta.SHAPE)
    state[name] = torch.full_like(state[name], 2**20)


BAD_NETWORKS = {
    "a weight missing": (whole, _drop("conv_in.weight"), "1 of .* tensors are missing"),
    "a weight more": (whole, lambda s: s.update(x=torch.zeros(1)), "no place in the network"),
    "another shape": (whole, lambda s: s.update({"conv_in.bias": torch.zeros(3)}), "has shape"),
    "float8": (whole, _retype(torch.float8_e5m2), "float8_e5m2"),
    "beyond float16": (whole, lambda s: s.update({"conv_in.bias": torch.full((16,), 1e30)}), "beyond what float16"),
    "a bias missing": (coded, _drop("conv_in.bias"), "tensors are missing"),
    "a step missing": (coded, _drop(delta.STEP), "tensors are missing"),
    "a step not finite": (coded, _set(delta.STEP, float("nan")), "not finite"),
    "a step below 0": (coded, _set(delta.STEP, -1.0), "step out of range"),
    "turned round": (coded, _reshape, "another shape"),
    "vast": (coded, _vast, "another shape"),
    "codes that are none": (coded, lambda s: s.update({"mid_block.resnets.0.conv1.weight": torch.ones(9)}), "no codes"),
    "codes cut off": (
        coded,
        lambda s: s.update({(n := "mid_block.resnets.0.conv1.weight"): s[n][:50].clone()}),
        "are coded",
    ),
}


@pytest.mark.parametrize("name", BAD_NETWORKS)
def test_bad_networks_are_refused(model, tmp_path, name):
    make_it, edit, sentence = BAD_NETWORKS[name]
    make_it(model, tmp_path)
    adapters.load(tmp_path, model=model, group="a")  # sound before
    change(tmp_path, edit)
    with pytest.raises(AdapterError, match=sentence):
        adapters.load(tmp_path, model=model, group="a")


def test_one_bad_adapter_leaves_the_rest(model, tmp_path):
    group_set = load_group_set("emoji")
    ids = list(group_set.groups)
    for i, g in enumerate(ids[:5]):
        make(model, tmp_path / g, g, seed=i, group_set="artists" if i == 3 else "emoji")
    _damage(tmp_path / ids[1])
    change(tmp_path / ids[4], _retype(torch.float8_e4m3fn))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guda = Guda(model, group_set, tmp_path)
    latent = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(5))
    query = Query(pixels=torch.zeros(1).numpy(), latent=latent, prompt="", image_hash="x")
    *_, last = guda.attribute(query, Budget(draws=2, per_pass=1, strata=8))
    states = {g: s.status for g, s in last.groups.items()}
    assert [states[g] for g in ids[:5]] == ["ok", "unavailable", "ok", "unavailable", "unavailable"]
    assert "hash" in last.groups[ids[1]].reason and last.groups[ids[1]].score is None and last.progress == 1.0
    assert "group set 'artists'" in last.groups[ids[3]].reason and "float8" in last.groups[ids[4]].reason
    assert set(last.ranked()) == {ids[0], ids[2]}
    assert last.kl is not None and last.kl.full.shape == (8, 2) and ids[0] in last.kl.without
