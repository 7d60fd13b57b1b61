"""What unlearning starts from where nobody chooses: the forget loss's own settings, changed by the model's size, then
by its card (`unlearning` there).

The forget losses' own defaults were tuned on the embedded model, at 64 px. Those of large models are starting points in
the order of what others use (ESD on Stable Diffusion and XL: 200 steps of one picture; erasers of FLUX: LoRAs of rank
8); nothing has been tuned or measured on a real one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from guda_core.diffusion.base_model import BaseModel, Card
from guda_core.errors import ModelError
from guda_core.unlearning.config import MemorySettings
from guda_core.unlearning.forget import FORGET_LOSSES, LOOP_SETTINGS, config_of

LARGE = 256  # pixels; a latent model from there on is none that the tuned settings are for
CHECKPOINTED = 512  # pixels; from there on blocks are computed again for their gradients
OF_LARGE: Mapping[str, Mapping[str, Any]] = {
    "stable_diffusion": {"steps": 200, "batch": 4, "lr": 3e-4, "rank": 8},
    "stable_diffusion_xl": {"steps": 200, "batch": 2, "lr": 1e-4, "rank": 8},
    "stable_diffusion_3": {"steps": 200, "batch": 2, "lr": 1e-4, "rank": 8},
    "flux": {"steps": 200, "batch": 1, "lr": 1e-4, "rank": 8},
}
MEMORY = ("pictures", "checkpointing")
KNOWN = (*sorted(LOOP_SETTINGS), "rank", "lam", "empty_share", "selection", *MEMORY)


def _of_card(card: Card) -> Mapping[str, Any]:
    unknown = sorted(set(card.unlearning) - set(KNOWN))
    if unknown:
        raise ModelError(f"The card '{card.id}' has under unlearning: {', '.join(unknown)}. Known: {', '.join(KNOWN)}.")
    return card.unlearning


def starting_settings(card: Card) -> dict[str, Any]:
    """Changes of a forget loss's defaults for a model, as `forget.config_of` takes them; {} for a small model.

    Raises:
        ModelError: its card names a setting that there is not.
    """
    own = OF_LARGE.get(card.kind, {}) if card.resolution >= LARGE else {}
    return {k: v for k, v in {**own, **_of_card(card)}.items() if k not in MEMORY}


def settings_of(model: BaseModel, operator: str | None = None, **changes: Any) -> Any:
    """The settings that unlearning a model has where nobody chooses, with changes (`forget.config_of`); a change that
    is None is left out. operator: id of the forget loss; None: GUDA-C's for a model that reads prompts, ReTrack's for
    another.

    Raises:
        ModelError: the model's card names a setting that there is not. OptionError: as `config_of`.
    """
    operator = operator or ("guda_c" if model.tokens("")[1] > 0 else "retrack")
    given = {k: v for k, v in changes.items() if v is not None}
    start = starting_settings(model.card)
    if given.get("whole") or FORGET_LOSSES.find(operator).settings().lora is None:
        start.pop("rank", None)
    return config_of(operator, **{"targets": model.lora_targets, **start, **given})


def memory_settings(
    model: BaseModel, *, pictures: int | None = None, checkpointing: bool | None = None
) -> MemorySettings:
    """How this model's unlearning is made to fit into memory: what is given, else what its card says, else by its size.
    On a GPU a large model's other parts leave the device meanwhile.

    Raises:
        ModelError: as above. OptionError: fewer than one picture a pass.
    """
    said = _of_card(model.card)
    if checkpointing is None:
        checkpointing = bool(said.get("checkpointing", model.card.resolution >= CHECKPOINTED))
    unload = torch.device(model.device).type == "cuda" and model.card.resolution >= LARGE
    return MemorySettings(pictures or said.get("pictures"), checkpointing, unload)
