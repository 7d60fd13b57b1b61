"""Memory that runs out: what fitted is remembered, a GPU's batch is near what was measured, and the rest is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import nn

from guda_core.attribution import scope_material
from guda_core.attribution.counterfactual import FullModel
from guda_core.attribution.method import Budget
from guda_core.data.groups import load_group_set
from guda_core.diffusion import batches
from guda_core.diffusion.batches import at_most, fitting_batch
from guda_core.diffusion.cards import load_model
from guda_core.diffusion.memory import Fitting, free_bytes, in_batches
from guda_core.diffusion.pace import Pace
from guda_core.errors import NoMemoryError, ScoreError, TrainingError
from guda_core.jobs.job import Job, perform
from guda_core.paths import ASSETS
from guda_core.records import Query
from guda_core.unlearning import loop, switching
from tests.tiny import save_tiny

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(save_tiny(tmp_path_factory.mktemp("tiny")))


def short_of_memory(patch: pytest.MonkeyPatch, model: Any, name: str, most: int) -> list[int]:
    """From now on the model's method has room for so many pictures at once; how many it is asked for, in order."""
    method, asked = getattr(model, name), []

    def counted(first, *more):
        asked.append(len(first))
        if len(first) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return method(first, *more)

    patch.setattr(model, name, counted)
    return asked


def test_what_fitted_once_is_kept_for_later_calls():
    fits, asked = Fitting(32), []

    def run(part):
        asked.append(len(part))
        if len(part) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [i * i for i in part]

    for _ in range(3):
        assert in_batches(run, range(24), fits) == [i * i for i in range(24)]
    assert asked == [24, 12, 6, *[3] * 24] and fits.size == 3
    asked.clear()
    in_batches(run, range(24), 32)  # a number is tried anew
    assert asked[:3] == [24, 12, 6]


def test_the_pace_is_measured_with_as_many_pictures_as_fit(model, monkeypatch):
    asked = short_of_memory(monkeypatch, model, "predict", 6)
    pace = Pace(model)
    assert 0 < pace.forward_s < 60 and asked == [24, 12, 6, 6]
    short_of_memory(monkeypatch, model, "predict", 0)
    with pytest.raises(NoMemoryError, match="not enough memory"):
        Pace(model).gradient_s  # noqa: B018
    assert not any(p.requires_grad for p in model.network.parameters())


def test_all_models_of_a_picture_know_what_fitted(model, monkeypatch):
    query = Query(np.zeros(1), torch.zeros(1, *model.latent_shape), "", "x")
    full = FullModel(model, query, Budget(draws=2, per_pass=1))
    asked = short_of_memory(monkeypatch, model, "predict", 3)
    for columns in (range(1), range(1, 2)):
        full.extend(full.inputs(columns), columns)
    assert asked == [24, 12, 6, *[3] * 16] and full.kl.shape == (24, 2)


def sd15():
    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


def sdxl():
    return UNet2DConditionModel(
        sample_size=128, cross_attention_dim=2048, block_out_channels=(320, 640, 1280), use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20),
    )  # fmt: skip


def sd3():
    return SD3Transformer2DModel(num_layers=1)


def flux():
    return FluxTransformer2DModel(num_layers=1, num_single_layers=1)


@pytest.mark.parametrize(
    ("make", "latent", "free_gib", "batch"),
    [
        (sd15, (4, 64, 64), 24, 38),  # 0.16 GiB each, where 0.06 was measured
        (sdxl, (4, 128, 128), 8, 3),  # 0.6 GiB each, where 0.16 was measured
        (sdxl, (4, 128, 128), 2, 1),
        (sd3, (16, 128, 128), 24, 10),  # 18 x 64 channels, 64 x 64 tokens
        (flux, (16, 128, 128), 80, 13),  # 24 x 128 channels, 64 x 64 tokens
    ],
)
def test_a_gpus_batch_is_of_the_size_that_was_measured(monkeypatch, make, latent, free_gib, batch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free_gib * 2**30, 80 * 2**30))
    with torch.device("meta"):
        network = make()
    like: Any = SimpleNamespace(network=network, latent_shape=latent, dtype=torch.float16, device=GPU)
    assert fitting_batch(like) == batch


@pytest.mark.parametrize(("available_gib", "batch"), [(20, 16), (8, 6), (1, 1), (0, 1), (2000, 64)])
def test_a_cpus_batch_is_no_more_than_a_quarter_of_the_free_memory_holds(monkeypatch, available_gib, batch):
    """SD 1.5 in float32 at 512 px: 0.31 GiB each, where 0.28 was measured. Linux would end a process that takes more
    than there is."""
    monkeypatch.setattr(batches, "memory_left", lambda: available_gib * 2**30)
    with torch.device("meta"):
        network = sd15()
    like: Any = SimpleNamespace(network=network, latent_shape=(4, 64, 64), dtype=torch.float32, device=CPU)
    assert fitting_batch(like) == batch and at_most(24, like) == min(24, batch)


def test_the_included_models_batch_does_not_depend_on_the_memory(monkeypatch):
    """Its scores are the same bits on every machine, and so its batches are."""
    monkeypatch.setattr(batches, "memory_left", lambda: 0)
    network = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(ASSETS / "model" / "unet"))
    for dtype, batch in ((torch.float32, 64), (torch.bfloat16, 144)):
        like: Any = SimpleNamespace(network=network, latent_shape=(4, 16, 16), dtype=dtype, device=CPU)
        assert fitting_batch(like) == batch and at_most(32, like) == 32


def test_the_pace_is_measured_with_no_more_than_the_memory_holds(model, monkeypatch):
    asked = short_of_memory(monkeypatch, model, "predict", 99)
    monkeypatch.setattr(batches, "UNASKED", 1)
    monkeypatch.setattr(batches, "memory_left", lambda: 1)
    assert Pace(model).forward_s > 0 and asked == [1, 1]


def test_what_torch_keeps_and_does_not_use_counts_as_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2, 24))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 10)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 4)
    assert free_bytes(GPU) == switching._free(GPU) == 8 and switching._free(torch.device("cpu")) is None


def test_a_scopes_own_pictures_are_drawn_by_as_many_as_fit(model, monkeypatch):
    monkeypatch.setattr(scope_material, "STEPS", 2)
    group_set = load_group_set("emoji")
    with pytest.MonkeyPatch.context() as patch:
        decoded = short_of_memory(patch, model, "decode", 99)
        *_, plain = scope_material.own(model, group_set, 20, seed=1)
        assert decoded == [16, 4]
    decoded = short_of_memory(monkeypatch, model, "decode", 3)
    asked = short_of_memory(monkeypatch, model, "predict", 8)  # with the prompt and without: four pictures
    *_, few = scope_material.own(model, group_set, 20, seed=1)
    assert asked == [32, 16, *[8] * 10] and decoded == [4, 2, 2] * 5
    assert few.sources == plain.sources and np.abs(few.pixels.astype(int) - plain.pixels).max() <= 1


def test_no_room_for_what_adamw_keeps_is_told_and_no_piece_is_made_smaller(monkeypatch):
    class Full(torch.optim.AdamW):
        def step(self, closure=None):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(torch.optim, "AdamW", Full)
    module, config, shrunk = nn.Linear(2, 1), loop.LoopConfig(steps=2, batch=1, lr=0.1), []
    steps = loop.run(module, lambda step, rng: module(torch.ones(2)).sum(), config, shrink=lambda: not shrunk.append(1))
    with pytest.raises(
        TrainingError, match=r"what AdamW keeps of each weight \(.*Tried to allocate 2 GiB.* Close other"
    ):
        next(steps)
    assert not shrunk


def test_a_job_that_had_too_little_memory_is_tried_again_and_one_that_is_refused_is_not(tmp_path):
    def work(error):
        yield 0.0, ""
        raise error

    for error, kind in (
        (NoMemoryError("Full."), "broke"),
        (TrainingError("No."), "refused"),
        (ScoreError("No."), "refused"),
    ):
        told = perform(Job("a", work, tmp_path / "a", arguments=(error,)), lambda told: None)
        assert (told.kind, told.note) == (kind, str(error))
