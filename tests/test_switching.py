"""Switching models: the same values as W + (alpha / r) B A written out, nothing of the network is touched, kept weights
are of the right adapter and network."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from guda_core.errors import AdapterError
from guda_core.unlearning import delta
from guda_core.unlearning.adapters import Adapter
from guda_core.unlearning.student import Student
from guda_core.unlearning.switching import Switching


def network(dtype=torch.float32, seed=0) -> Any:
    torch.manual_seed(seed)
    net: Any = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(32, 5)).to(dtype)
    conv: Any = net[0]
    conv.weight.data = conv.weight.detach().contiguous(memory_format=torch.channels_last)  # as models on a CPU have
    return net


def adapter(group="a", seed=1, scale=0.75):
    g = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (8, 3, 3, 3), "2.weight": (5, 32)}
    factors = {
        n: (torch.randn(s[0], 2, generator=g), torch.randn(2, torch.Size(s[1:]).numel(), generator=g), s)
        for n, s in shapes.items()
    }
    return Adapter(group, {}, scale, factors)


def expected(net, a):
    """Weight by weight, in float32, then the network's type."""
    own = net.state_dict()
    out = {}
    for n, (b, f, shape) in a.factors.items():
        out[n] = (own[n].float() + a.scale * (b @ f).reshape(shape)).to(own[n].dtype)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept", [0, 10**6])
def test_the_weights_are_the_sum_and_the_own_ones_stay_where_they_are(dtype, kept):
    net = network(dtype)
    switching, before = Switching(net, kept=kept), {n: (p.data_ptr(), p.clone()) for n, p in net.named_parameters()}
    some = [adapter(g, seed) for seed, g in enumerate("abc")]
    for a in [*some, *some]:
        told = expected(net, a)
        with switching.applied(a):
            assert all(torch.equal(net.state_dict()[n], w) for n, w in told.items())
        assert all(p.data_ptr() == before[n][0] and torch.equal(p, before[n][1]) for n, p in net.named_parameters())
    with pytest.raises(RuntimeError, match="stop"), switching.applied(some[0]):
        raise RuntimeError("stop")
    assert all(p.data_ptr() == before[n][0] for n, p in net.named_parameters())


def test_kept_weights_are_used_again_and_only_as_many_as_there_is_room_for():
    net, some = network(), [adapter(g, seed) for seed, g in enumerate("abcd")]
    switching, places = Switching(net, kept=2 * 4 * (8 * 27 + 5 * 32)), []
    for a in [*some, *some]:
        with switching.applied(a):
            places.append(net[2].weight.data_ptr())
    assert places[:4] == places[4:] and len(set(places)) == 3 and places[2] == places[3]  # a, b, and the spare copy


def test_what_is_kept_is_not_used_for_another_adapter_or_other_weights():
    net = network()
    switching, old, new = Switching(net), adapter("a", 1), adapter("a", 2)
    with switching.applied(old):
        pass
    with switching.applied(new):
        assert torch.equal(net[2].weight, expected_with(network(), new))
    with torch.no_grad():
        net[2].weight.add_(1)
    with switching.applied(new):
        assert torch.equal(net[2].weight, expected_with(net_plus_one(), new))
    net.to(torch.bfloat16)
    with switching.applied(new):
        assert net[2].weight.dtype == torch.bfloat16


def net_plus_one():
    net = network()
    with torch.no_grad():
        net[2].weight.add_(1)
    return net


def expected_with(net, a):
    return expected(net, a)["2.weight"]


def test_a_live_branch_gives_the_same_outputs_and_leaves_no_hook():
    net, a, x = network(), adapter(), torch.randn(4, 3, 4, 4)
    switching = Switching(net)
    with torch.no_grad():
        plain = net(x)
        with switching.applied(a, live=False):
            merged = net(x)
        with switching.applied(a, live=True):
            live = net(x)
    torch.testing.assert_close(live, merged, atol=1e-4, rtol=1e-4)
    assert (live - plain).abs().max() > 0.1 and torch.equal(net(x), plain)


def test_ctrl_c_while_a_live_branch_is_taken_away_leaves_nothing_that_answers(monkeypatch):
    def interrupted(handle):
        raise KeyboardInterrupt

    net, x = network(), torch.randn(4, 3, 4, 4)
    with torch.no_grad():
        plain = net(x)
        monkeypatch.setattr(torch.utils.hooks.RemovableHandle, "remove", interrupted)
        with pytest.raises(KeyboardInterrupt), Switching(net).applied(adapter(), live=True):
            assert not torch.equal(net(x), plain)
        assert torch.equal(net(x), plain)


def test_a_gpu_without_room_for_a_copy_gets_the_branch_and_only_of_a_lora(monkeypatch):
    net, a = network(), adapter()
    monkeypatch.setattr("guda_core.unlearning.switching._free", lambda device: 4 * (8 * 27 + 5 * 32))
    whole = Adapter("w", {}, 1.0, {}, {n: p.detach() + 1 for n, p in net.named_parameters()})
    own = net[2].weight.data_ptr()
    with Switching(net).applied(a):
        assert net[2].weight.data_ptr() == own and len(net[2]._forward_hooks) == 1
    with Switching(net).applied(whole):
        assert net[2].weight.data_ptr() != own
    monkeypatch.setattr("guda_core.unlearning.switching._free", lambda device: 8 * (8 * 27 + 5 * 32))
    with Switching(net).applied(a):
        assert net[2].weight.data_ptr() != own


def test_whether_a_lora_is_merged_is_asked_once(monkeypatch):
    """In half precision the two round differently, and other programs on the GPU must not move a score."""
    net, size, free = network(), 4 * (8 * 27 + 5 * 32), []
    monkeypatch.setattr("guda_core.unlearning.switching._free", lambda device: free[0])

    def is_live(switching, group):
        with switching.applied(adapter(group=group)):
            return any(m._forward_hooks for m in net.modules())

    for at_first in (size, 20 * size):
        free[:] = [at_first]
        switching, live = Switching(net, kept=size), at_first == size
        assert switching.any_live([adapter()]) == is_live(switching, "g") == live
        free[:] = [21 * size - at_first - 1]
        assert is_live(switching, "g") == is_live(switching, "h") == switching.any_live([adapter()]) == live
    assert not switching.any_live([]) and len(switching._spare) == 2 and not switching._kept  # no room: "g" gave way


def test_whole_and_coded_models_are_switched_too_and_a_foreign_one_is_refused():
    net = network()
    codes = {"2.weight": delta.Codes(torch.ones(5, 32, dtype=torch.int8), 0.5)}
    before, coded = net[2].weight.clone(), Adapter("c", {}, 1.0, {}, {"2.bias": torch.full((5,), 9.0)}, codes)
    with Switching(net).applied(coded):
        assert torch.equal(net[2].weight, before + 0.5) and net[2].bias.eq(9).all()
    assert torch.equal(net[2].weight, before)
    foreign = Adapter("f", {}, 1.0, {}, {"9.weight": torch.zeros(1)})
    with pytest.raises(AdapterError, match=r"does not fit this network \(9.weight\)"), Switching(net).applied(foreign):
        pass


@pytest.mark.parametrize(("dtype", "size", "live"), [
    (torch.bfloat16, 3e-4, True), (torch.bfloat16, 2e-3, True), (torch.bfloat16, 2e-2, False),
    (torch.float16, 1e-4, True), (torch.float16, 5e-4, True), (torch.float16, 1e-3, False),
    (torch.float32, 1e-6, False),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_no_part_of_a_small_change_is_lost_in_half_precision(kind, dtype, size, live):
    torch.manual_seed(0)
    layer: Any = nn.Linear(64, 64) if kind == "linear" else nn.Conv2d(16, 32, 3, padding=1)
    net, x = nn.Sequential(layer.to(dtype)), torch.randn((2000, 64) if kind == "linear" else (40, 16, 9, 9)).to(dtype)
    shape = tuple(layer.weight.shape)
    b, a = torch.randn(shape[0], 4), torch.randn(4, layer.weight[0].numel())
    small = Adapter(
        "g", {}, size * float(layer.weight.detach().float().norm() / (b @ a).norm()), {"0.weight": (b, a, shape)}
    )
    switching = Switching(net)
    with torch.no_grad():
        plain = net(x)
        with switching.applied(small):
            moved = (net(x).double() - plain.double()).flatten()
            assert bool(layer._forward_hooks) == live == switching.any_live([small])
        assert torch.equal(net(x), plain)
        wide = copy.deepcopy(net).double()
        before = wide(x.double())
        wide[0].weight += small.delta("0.weight", x.device)
        true = (wide(x.double()) - before).flatten()
    assert float(moved @ true / (true @ true)) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("dtype", "stored", "least", "most"), [
    (torch.bfloat16, torch.float32, 0, 0.5), (torch.float16, torch.float32, 0.5, 0.999),
    (torch.float16, torch.float16, 0.5, 0.999), (torch.float32, torch.float32, 1, 1),
])  # fmt: skip
def test_what_is_left_of_a_whole_networks_change_is_told(dtype, stored, least, most):
    net, g = network(dtype), torch.Generator().manual_seed(0)
    student = cast(Any, Student)(SimpleNamespace(network=net), None, None)
    student.network = copy.deepcopy(net).float()
    assert student.kept(stored) == 1  # nothing was changed
    with torch.no_grad():
        for w in student.network.parameters():
            w += 5e-4 * w.std() * torch.randn(w.shape, generator=g)
    assert least <= student.kept(stored) <= most
    with torch.no_grad():
        for w in student.network.parameters():
            w *= 2
    assert student.kept(stored) > 0.999
