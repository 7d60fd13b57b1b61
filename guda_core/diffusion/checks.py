"""Models that cannot be scored are told apart when they are loaded, each by one sentence.

What the card says counts where the model's files are silent; a contradiction is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from guda_core.diffusion.base_model import Card
from guda_core.diffusion.finite import check_finite
from guda_core.diffusion.model_files import INDEX, read_json
from guda_core.diffusion.prediction import Prediction
from guda_core.diffusion.schedule import Schedule
from guda_core.errors import ModelError

NO_LIKELIHOOD = (  # the end of a caveat
    "so it is no likelihood model: its scores compare how well two networks remove noise and are not differences of "
    "log-likelihood."
)
LARGEST, MOST_STEPS, MOST_LAYERS = 10_000_000, 100_000, 1000  # whole numbers in settings, far above any known model's


def check_numbers(card: Card, folder: Path) -> None:
    """No setting of a part is so large that building the part would take all memory, or no end.

    Raises:
        ModelError: one is, or a file of settings cannot be read.
    """
    for path in sorted([*folder.glob("*/config.json"), *folder.glob("*/scheduler_config.json")]):
        for name, value in _numbers(read_json(path)):
            most = MOST_LAYERS if "layers" in name else MOST_STEPS if "timesteps" in name else LARGEST
            if most < abs(value) < math.inf:  # diffusers itself writes -Infinity
                raise ModelError(
                    f"The model '{card.id}' says in {path.parent.name}/{path.name} that its {name[:80]} is beyond "
                    f"{most:,}, which no model's is. The file is damaged; download it again."
                )


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """(its setting, number) of every number within settings."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, name)
    elif isinstance(value, int | float):
        yield name, value


def check_layout(card: Card, folder: Path, layouts: tuple[str, ...]) -> None:
    """The folder holds one of a family's pipelines, with settings that can be. Raises ModelError when not."""
    layout = read_json(folder / INDEX).get("_class_name")
    if layout not in layouts:
        raise ModelError(
            f"The model '{card.id}' in {folder} is a {layout}, which a card of kind '{card.kind}' does not read "
            f"({', '.join(layouts)})."
        )
    check_numbers(card, folder)


def ddim_of(card: Card, scheduler: Any, said: Mapping[str, Any], **changes: Any) -> DDIMScheduler:
    """The model's schedule of noise as diffusers' DDIM, which draws its pictures.

    scheduler: as loaded from the model's files; said: the settings that stand in them.

    Raises:
        ModelError: it is no schedule of a DDPM, or the card contradicts it.
    """
    name, kind = card.id, type(scheduler).__name__
    flow = [k for k, v in scheduler.config.items() if k.startswith("use_flow") and v]
    if "FlowMatch" in kind or flow or not hasattr(scheduler, "alphas_cumprod"):
        raise ModelError(
            f"The model '{name}' has the scheduler {kind}{' with ' + flow[0] if flow else ''}, which is not one of "
            f"a DDPM's noise: a card of kind '{card.kind}' cannot score it."
        )
    predicts = said.get("prediction_type")
    if None not in (predicts, card.prediction_type) and predicts != card.prediction_type:
        raise ModelError(
            f"The card '{name}' says that the model predicts '{card.prediction_type}', its files say '{predicts}'. "
            "Correct or remove `prediction_type` in the card."
        )
    predicts = predicts or card.prediction_type or scheduler.config.prediction_type
    own: Tensor = scheduler.alphas_cumprod
    try:
        ddim: Any = DDIMScheduler.from_config(scheduler.config, prediction_type=predicts, **changes)
    except NotImplementedError as e:
        raise ModelError(f"The model '{name}' has a schedule of noise that diffusers' DDIM does not know: {e}") from e
    if own.shape != ddim.alphas_cumprod.shape or not torch.allclose(own, ddim.alphas_cumprod, atol=1e-6):
        raise ModelError(
            f"The model '{name}' has a schedule of noise ({kind}) that diffusers' DDIM does not reproduce."
        )
    return ddim


def prediction_of(card: Card, ddim: DDIMScheduler) -> Prediction:
    """What the network predicts, on its schedule. Raises ModelError when that cannot be scored."""
    if ddim.config.prediction_type == "flow":
        raise ModelError(
            f"The card '{card.id}' says that the model predicts 'flow', but its schedule is a DDPM's: there a model "
            "predicts 'epsilon' or 'v_prediction'."
        )
    try:
        return Prediction(str(ddim.config.prediction_type), Schedule.ddpm(ddim.alphas_cumprod))
    except ModelError as e:
        raise ModelError(f"The model '{card.id}' cannot be scored. {e}") from e


def check_size(card: Card, sample_size: Any, *, scale: int, where: str) -> None:
    """The network's size is a number and the card's. scale: pixels of a picture a latent's row stands for.

    Raises:
        ModelError: otherwise. `where`: the file that says the size.
    """
    if sample_size is None:
        return
    if isinstance(sample_size, bool) or not isinstance(sample_size, int):
        raise ModelError(
            f"The model '{card.id}' says its size as {sample_size}. Only square pictures can be scored: write "
            f"`sample_size` as one number in {where}."
        )
    if sample_size * scale != card.resolution:
        raise ModelError(
            f"The model '{card.id}' is made for {sample_size * scale} pixels, its card says {card.resolution}. Set "
            f"`resolution: {sample_size * scale}` in the card, or correct `sample_size` in {where} where the model was "
            f"trained at {card.resolution} pixels."
        )


def check_weights(card: Card, parts: Mapping[str, nn.Module]) -> None:
    """No weight is infinite in the type that the model runs in. Raises ModelError otherwise."""
    for part, module in parts.items():
        for name, p in module.named_parameters():
            check_finite(p, f"The weight {name} of the {part} of the model '{card.id}'")
