"""Where a model runs and what is said of it; GPUs that cannot compute, and memory that runs out, on a CPU alone."""

from __future__ import annotations

import errno
import math
import os
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, StableDiffusionPipeline
from torch import nn
from transformers import CLIPModel, Dinov2Model
from typer.testing import CliRunner

from guda_core import __version__
from guda_core.cli.terminal import commands
from guda_core.data.embeddings import Clip
from guda_core.data.encoders import Dino
from guda_core.diffusion import cards, merging, weights
from guda_core.diffusion.cards import load_model, resolve_card
from guda_core.diffusion.condition import Condition
from guda_core.diffusion.devices import VARIABLE, chosen_device, slow_type, where_it_runs
from guda_core.diffusion.finite import check_finite, is_finite
from guda_core.diffusion.likelihood import Noised, kl_of
from guda_core.diffusion.memory import MEND, is_out_of_memory, lacked_memory
from guda_core.errors import ModelError, NoMemoryError, NoRoomError, OptionError, ScoreError, TrainingError
from guda_core.jobs.environ import apply, settings
from guda_core.jobs.local_pool import DEVICE, GPUS, LocalPool, gpus
from guda_core.local import load_service
from guda_core.paths import ASSETS
from guda_core.unlearning.loop import LoopConfig
from guda_core.unlearning.loop import run as run_loop
from tests.own_pictures import guda
from tests.own_workspace import own_workspace
from tests.test_cli import run  # noqa: F401  (a fixture)
from tests.test_pipeline import service  # noqa: F401  (a fixture)
from tests.tiny import save_tiny, save_tiny_unconditional
from tests.tiny_single_file import save_single

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
NO_KERNEL = "CUDA error: no kernel image is available for execution on the device\nCompile with `TORCH_USE_CUDA_DSA`."
SHORT = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    for name in (VARIABLE, GPUS, "SPACES_ZERO_GPU"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def gpu(monkeypatch):
    """As if there were one GPU; gives what sets how its first sum fails."""
    found = {
        "is_available": True, "device_count": 1, "current_device": 0, "get_device_name": "Tesla P100",
        "get_device_capability": (6, 0), "get_arch_list": ["sm_75", "sm_80"],
    }  # fmt: skip
    for name, value in found.items():
        monkeypatch.setattr(torch.cuda, name, lambda device=None, value=value: value)
    ones = torch.ones

    def fails(message: str) -> None:
        def made(*size, device=None, **more):
            if torch.device(device or "cpu").type == "cuda":
                raise RuntimeError(message)
            return ones(*size, device=device, **more)

        monkeypatch.setattr(torch, "ones", made)

    return fails


# Which device --------------------------------------------------------------------------------------------------------


def test_a_gpu_that_torch_is_not_built_for_is_told_before_the_model_is_loaded(gpu, tmp_path, monkeypatch):
    card = save_tiny(tmp_path / "model")
    gpu(NO_KERNEL)
    with pytest.raises(OptionError) as found:
        load_model(card)
    assert str(found.value) == (
        "cuda:0 (Tesla P100), of compute capability 6.0, cannot compute (CUDA error: no kernel image is available for "
        "execution on the device); this torch is built for sm_75, sm_80. Install a torch that is built for this GPU, "
        "or set GUDA_DEVICE=cpu to use the CPU."
    )
    monkeypatch.setenv(VARIABLE, "cpu")
    assert load_model(card).device == CPU


def test_a_gpu_without_memory_and_one_that_is_lent_later(gpu, monkeypatch):
    gpu("CUDA error: out of memory")
    monkeypatch.setenv(VARIABLE, "cpu")
    for asked in ("cuda", 0):
        with pytest.raises(OptionError, match=r"^cuda:0 \(Tesla P100\) has no memory left\. .*GUDA_DEVICE=cpu"):
            chosen_device(asked)
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("SPACES_ZERO_GPU", "1")
    assert chosen_device() == torch.device("cuda")


def test_what_is_asked_for_comes_before_the_variable_and_the_variable_before_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen_device() == CPU
    monkeypatch.setenv(VARIABLE, "banana")
    assert chosen_device("cpu") == CPU
    with pytest.raises(OptionError, match=r"There is no device 'banana' here\. There is: cpu.* Correct GUDA_DEVICE\."):
        chosen_device()
    with pytest.raises(OptionError, match="There is no device 'cuda:99' here") as found:
        chosen_device("cuda:99")
    with pytest.raises(OptionError, match="or by a GPU's number; got True"):
        chosen_device(True)
    assert VARIABLE not in str(found.value)


@pytest.mark.parametrize("name", ["mps", "mps:0", "meta"])
def test_other_types_of_device_are_refused_before_a_model_is_loaded(monkeypatch, name):
    """Apple's GPUs have no float64: a score would fail late."""
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *size, device=None, **more: ones(*size, **more))  # as where it is there
    monkeypatch.setenv(VARIABLE, name)
    with pytest.raises(
        OptionError, match=r"run on 'cpu' or 'cuda'; Apple's GPUs .* are not used\. Correct GUDA_DEVICE"
    ):
        chosen_device()


@pytest.mark.parametrize(
    ("visible", "count", "asked", "found"),
    [
        ("0,-1,1", 1, "", ["0"]),
        ("0,9", 1, "", ["0"]),
        ("3,5", 2, "", ["3", "5"]),
        ("", 2, "", ["0", "1"]),
        ("3,5", 2, "cuda", ["3", "5"]),
        ("3,5", 2, "cuda:1", ["5"]),
        ("3,5", 2, "cuda:7", []),
        ("3,5", 2, "cpu", []),
    ],
)
def test_workers_get_the_gpus_that_are_there(monkeypatch, visible, count, asked, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    for name, value in ((GPUS, visible), (DEVICE, asked)):
        if value:
            monkeypatch.setenv(name, value)
    assert gpus() == found
    environs = LocalPool(2)._environs
    assert [e.get(GPUS) for e in environs] == ([*found, *found] if found else [None, None])[:2]
    assert {e.get(DEVICE) for e in environs} == {"cuda" if asked == "cuda:1" else None}  # the one that a worker sees


def test_a_worker_elsewhere_takes_its_own_gpu_for_the_drivers(monkeypatch):
    monkeypatch.setenv(VARIABLE, "cuda:1")
    told = settings()
    assert told[VARIABLE] == "cuda:1"
    apply(told, __version__)
    assert os.environ[VARIABLE] == "cuda"


# What is said --------------------------------------------------------------------------------------------------------


def model(device=CPU, dtype=torch.float32, source="folder", resolution=512) -> Any:
    return SimpleNamespace(device=device, dtype=dtype, card=SimpleNamespace(source=source, resolution=resolution))


def test_where_a_model_runs_and_why_not_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert where_it_runs(model(source="assets")) == []
    assert where_it_runs(model(resolution=64, dtype=torch.bfloat16)) == ["On cpu, bfloat16."]
    first, why = where_it_runs(model())
    assert first == "On cpu, float32." and "built without GPU support" in why
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert "driver is new enough" in where_it_runs(model())[1]
    for name, value in ((VARIABLE, "cpu"), (GPUS, "")):  # so somebody wants it
        monkeypatch.setenv(name, value)
        assert where_it_runs(model()) == ["On cpu, float32."]
        monkeypatch.delenv(name)


def test_a_gpu_is_named(gpu):
    for device in (GPU, torch.device("cuda")):
        assert where_it_runs(model(device, torch.float16, "assets")) == ["On cuda:0 (Tesla P100), float16."]


def test_the_program_says_once_where_its_model_runs(run, service, tmp_path, monkeypatch):  # noqa: F811
    asked = ("generate", "--prompt", "cat", "--steps", 1, "--out", tmp_path / "cat.png")
    done = run(*asked)
    assert done.stderr.count("On cpu, float32.") == 1 and "On cpu" not in done.stdout
    monkeypatch.setattr(service.model, "card", replace(service.model.card, source="assets"))  # as the included one
    assert "On cpu" not in run(*asked).output


def test_unlearning_says_once_where_it_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("GUDA_HOME", str(own_workspace(tmp_path / "home")))
    assert guda("unlearn", "--draft").count("On cpu, float32.") == 1


def test_bfloat16_on_a_gpu_that_emulates_it_is_told_at_load(gpu, monkeypatch, caplog):
    said = "bfloat16 is emulated on cuda:0 (Tesla P100), so this is slow. GUDA_DTYPE=float16 may be faster."
    assert slow_type(GPU, torch.bfloat16) == said
    assert slow_type(GPU, torch.float16) == slow_type(CPU, torch.bfloat16) == ""
    made = SimpleNamespace(dtype=torch.bfloat16)
    monkeypatch.setattr(cards, "chosen_device", lambda asked: GPU)
    monkeypatch.setattr(cards.FAMILIES, "find", lambda kind: SimpleNamespace(load=lambda *a, **k: made))
    assert load_model(cards.find_card("emoji")) is made and caplog.messages == [said]
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert slow_type(GPU, torch.bfloat16) == ""
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert slow_type(GPU, torch.bfloat16) == ""


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn])
@pytest.mark.parametrize("size", [1, 7, 64, 1000])  # with and without what a vector instruction leaves over
def test_finite_is_what_torch_calls_finite(dtype, size):
    values = torch.linspace(-300, 300, size).to(dtype).requires_grad_(dtype.itemsize > 1)
    assert is_finite(values) and is_finite(values[:0]) and is_finite(torch.arange(3))
    odd = [math.nan] if dtype is torch.float8_e4m3fn else [math.nan, math.inf, -math.inf]
    for value in odd:
        for at in (0, size // 2, size - 1):
            broken = values.detach().clone()
            broken[at] = value
            assert not torch.isfinite(broken.float()).all() and not is_finite(broken)
            assert not is_finite(broken.expand(3, size).T)
    biggest = torch.full((size,), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(biggest) and is_finite((-biggest.double()).to(dtype))


def test_values_that_are_not_finite_name_the_variable_that_mends_them():
    with pytest.raises(ModelError, match="set GUDA_DTYPE=float32"):
        check_finite(torch.tensor([math.inf]), "The picture")
    broken: Any = SimpleNamespace(predict=lambda x_t, t, condition: x_t / 0)
    one = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ScoreError, match="set GUDA_DTYPE=float32"):
        kl_of(broken, Condition({}, 1), Noised(one, one, torch.zeros(1).long(), torch.ones(1).double(), 1))
    net, config = nn.Linear(1, 1), LoopConfig(steps=1, batch=1, lr=0.1)
    for scaler in (None, torch.amp.GradScaler("cpu")):
        with pytest.raises(TrainingError, match=r"nan at step 0\. .*A smaller learning rate than 0\.1") as found:
            list(run_loop(net, lambda step, g: net(torch.full((1, 1), math.nan)).sum(), config, scaler=scaler))
        assert ("float16 overflows on some GPUs: set GUDA_DTYPE=float32." in str(found.value)) == (scaler is not None)


# Memory that runs out ------------------------------------------------------------------------------------------------


def windows(code: int) -> OSError:
    error = OSError(errno.EINVAL, "localised")
    error.winerror = code  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("HIP error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
        OSError("The paging file is too small for this operation to complete. (os error 1455)"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        windows(1455),
    ],
    ids=lambda e: str(e)[:30],
)
def test_a_lack_of_memory_is_known_whoever_tells_it(error):
    assert is_out_of_memory(error) and lacked_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: an illegal access"), FileNotFoundError(2, "No such file", "out of memory")]
)
def test_other_errors_are_none_of_memory(error):
    assert not is_out_of_memory(error) and not lacked_memory(error)


def short(*given, **named):
    raise RuntimeError(SHORT)


def hidden(*given, **named):
    """As diffusers does."""
    try:
        short()
    except RuntimeError:
        raise OSError("Unable to load weights from checkpoint file") from None


@pytest.mark.parametrize("fails", [short, hidden])
@pytest.mark.parametrize("kind", ["folder", "file", "unconditional", "header", "lora"])
def test_a_model_that_does_not_fit_into_memory_is_not_called_damaged(kind, fails, tmp_path, monkeypatch):
    card = (save_tiny_unconditional if kind == "unconditional" else save_tiny)(tmp_path / "m")
    if kind == "file":
        save_single(tmp_path / "m", tmp_path / "one.safetensors")
        (tmp_path / "m").rename(tmp_path / "one")
        card = resolve_card(tmp_path / "one.safetensors")
    if kind == "lora":
        (tmp_path / "style.safetensors").touch()
        card = replace(card, lora=str(tmp_path / "style.safetensors"))
    of, name = {
        "folder": (StableDiffusionPipeline, "from_pretrained"),
        "file": (StableDiffusionPipeline, "from_single_file"),
        "unconditional": (DDPMPipeline, "from_pretrained"),
        "header": (weights, "safe_open"),
        "lora": (merging, "safe_open"),
    }[kind]
    monkeypatch.setattr(of, name, fails)
    with pytest.raises(ModelError) as found:
        load_model(card)
    assert str(found.value) == f"The model '{card.id}' cannot be loaded: there is not enough memory. {MEND}"
    assert isinstance(found.value, NoMemoryError)  # a worker tries again


@pytest.mark.parametrize("fails", [short, hidden])
def test_an_encoder_that_does_not_fit_into_memory_is_not_called_damaged(fails, tmp_path, monkeypatch):
    monkeypatch.setattr(CLIPModel, "from_pretrained", fails)
    monkeypatch.setattr(Dinov2Model, "from_pretrained", fails)
    for opened in (lambda: Clip(ASSETS / "clip"), lambda: Dino(tmp_path, tmp_path / "bank.safetensors")):
        with pytest.raises(NoRoomError, match=r"cannot be read: there is not enough memory\. Close") as found:
            opened()
        assert "damaged" not in str(found.value)


def test_the_included_model_stands_in_for_one_that_does_not_fit_into_memory(tmp_path, monkeypatch):
    save_tiny(tmp_path / "large")
    opened = StableDiffusionPipeline.from_pretrained

    def first(folder, **named):
        return short() if str(folder).endswith("large") else opened(folder, **named)

    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", first)
    found = load_service(str(tmp_path / "large"))
    assert found.model.card.id == "emoji" and "cannot be loaded: there is not enough memory" in found.banner


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(SHORT), MemoryError()])
def test_memory_that_runs_out_in_a_command_is_one_sentence(error):
    app = commands("Two commands.")
    app.command("hurt")(lambda: hurt(error))
    app.command("other")(lambda: hurt(KeyError("unforeseen")))
    done = CliRunner().invoke(app, ["hurt"])
    assert done.exit_code == 2 and done.output == f"Error: There is not enough memory. {MEND}\n"
    assert isinstance(CliRunner().invoke(app, ["other"]).exception, KeyError)


def hurt(error: Exception) -> None:
    raise error
