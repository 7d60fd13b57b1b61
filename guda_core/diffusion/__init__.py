"""Base models under one contract (`base.BaseModel`), named by cards (`cards.yaml`).

FAMILIES: a card's `kind` -> the class that loads it, with two class methods:

    load(card, *, device, dtype) -> BaseModel
    describe(folder) -> the fields of a card for a folder in diffusers' layout, None for another family's

One file and one line here add a family; an installed package adds one by an entry point of the group
"guda_core.families", a program by `FAMILIES.add`.
"""

import logging

from guda_core.registry import Registry


def _is_wanted(record: logging.LogRecord) -> bool:
    """Nothing here needs torchvision, so `transformers` does not advise to install it; all else that it says stays."""
    return "requires torchvision" not in record.getMessage()


logging.getLogger("transformers.utils.import_utils").addFilter(_is_wanted)
FAMILIES = Registry(
    "family of models",
    "guda_core.families",
    {
        "stable_diffusion": "guda_core.diffusion.unet_family:StableDiffusion",
        "stable_diffusion_xl": "guda_core.diffusion.unet_family:StableDiffusionXL",
        "stable_diffusion_3": "guda_core.diffusion.flow_family:StableDiffusion3",
        "flux": "guda_core.diffusion.flow_family:Flux",
        "unconditional": "guda_core.diffusion.unconditional:Unconditional",
    },
)
