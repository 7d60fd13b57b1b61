"""A planted truth: `python -m experiments.planted`. Does GUDA name the style that a picture was made from?

Four styles that share nothing but what they show: a small model in the layout of Stable Diffusion 1 learns them from
drawn pictures, and a caption says which ("cross, in the striped style"). A picture that the model generates from such a
caption can have its style from one group alone. So the right first group is known without any oracle. The oracle is
trained too, and everything is compared with it, by the same code as for a model of one's own (`experiments.logo`).

The autoencoder and the text encoder are the embedded model's; the network is new and trained as a whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from experiments.benchmark.own_run import SCORES, TABLE
from experiments.benchmark.queries import QueryConfig
from experiments.benchmark.scores import ScoreConfig
from experiments.commands import differences, program, write_record
from experiments.logo.fine_tuning import settings_for
from experiments.logo.own_models import OwnOracle
from experiments.logo.whole_way import Way, everything, own_set
from experiments.train.unet import make_scheduler
from guda_core import paths
from guda_core.cli.terminal import follow, say
from guda_core.data.own.new_set import NewSet
from guda_core.errors import DataError
from guda_core.libraries import set_up_libraries
from guda_core.paths import ASSETS, BENCHMARKS, cache_dir
from guda_core.unlearning.health import HealthConfig
from guda_core.unlearning.run import Forgetting

SIDE, FILE, SETTINGS = 32, "planted.json", "settings.json"
COMMAND = "python -m experiments.planted"
SET, MODEL = "planted-styles", "planted"
Field = tuple[np.ndarray, np.ndarray]  # y and x in -1 .. 1, (SIDE, SIDE) each
# style -> (texture in 0 .. 1, the two colours of what is shown, colour of what is behind it)
STYLES: Mapping[str, tuple[Callable[[Field], np.ndarray], tuple[Any, Any], Any]] = {
    "striped": (lambda f: np.sin(12 * f[0]), ((215, 40, 40), (255, 190, 120)), (70, 20, 60)),
    "dotted": (lambda f: np.sin(11 * f[0]) * np.sin(11 * f[1]), ((30, 60, 200), (150, 230, 250)), (240, 240, 225)),
    "glowing": (lambda f: 1 - 2 * np.hypot(*f), ((20, 120, 40), (190, 255, 90)), (10, 40, 20)),
    "slanted": (lambda f: np.sin(9 * (f[0] + f[1])), ((120, 120, 120), (245, 245, 245)), (250, 205, 30)),
}
OBJECTS: Mapping[str, Callable[[Field], np.ndarray]] = {
    "circle": lambda f: np.hypot(*f) < 0.7,
    "square": lambda f: np.maximum(abs(f[0]), abs(f[1])) < 0.62,
    "cross": lambda f: (np.minimum(abs(f[0]), abs(f[1])) < 0.25) & (np.maximum(abs(f[0]), abs(f[1])) < 0.8),
    "triangle": lambda f: (f[0] < 0.6) & (abs(f[1]) < (f[0] + 0.8) / 1.6),
}


@dataclass(frozen=True)
class PlantedConfig:
    """pictures: of each style and object. channels: of the network's two resolutions. steps, batch, lr: of each
    training. unlearn_steps, unlearn_batch: of each adapter. asked: generated pictures a style. draw_steps: of sampling.
    strata: of timesteps, four draws in each. seed: of the pictures."""

    pictures: int = 12
    channels: tuple[int, int] = (32, 64)
    steps: int = 600
    batch: int = 16
    lr: float = 2e-3
    unlearn_steps: int = 80
    unlearn_batch: int = 16
    asked: int = 10
    draw_steps: int = 25
    strata: int = 16
    seed: int = 7


def paint(style: str, shown: str, rng: np.random.Generator) -> np.ndarray:
    """A picture, (SIDE, SIDE, 3) uint8: a shape of the style's colours and texture, moved and scaled at random."""
    texture, (dark, light), behind = STYLES[style]
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1) * 2 - 1
    size, dy, dx = rng.uniform(0.75, 1.15), *rng.uniform(-0.2, 0.2, 2)
    moved = ((y - dy) / size, (x - dx) / size)
    w = (np.clip(texture((y + rng.uniform(-0.3, 0.3), x)), -1, 1)[..., None] + 1) / 2
    inside = OBJECTS[shown](moved)[..., None]
    return np.where(inside, (1 - w) * np.array(dark) + w * np.array(light), np.array(behind)).round().astype(np.uint8)


def write_pictures(folder: Path, config: PlantedConfig) -> None:
    """folder/<style>/<object>/<n>.png"""
    rng = np.random.default_rng(config.seed)
    for style in STYLES:
        for shown in OBJECTS:
            (folder / style / shown).mkdir(parents=True, exist_ok=True)
            for n in range(config.pictures):
                Image.fromarray(paint(style, shown, rng)).save(folder / style / shown / f"{n}.png")


def write_model(folder: Path, config: PlantedConfig) -> None:
    """A new network beside the embedded model's autoencoder and text encoder, in diffusers' layout."""
    torch.manual_seed(config.seed)
    text = CLIPTextModel.from_pretrained(ASSETS / "model" / "text_encoder", dtype=torch.float32)
    unet = UNet2DConditionModel(
        sample_size=SIDE // 4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), block_out_channels=config.channels, layers_per_block=1,
        norm_num_groups=8, cross_attention_dim=text.config.hidden_size, attention_head_dim=4,
        addition_embed_type="text", addition_embed_type_num_heads=4,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(ASSETS / "model" / "vae", torch_dtype=torch.float32), text_encoder=text,
        tokenizer=CLIPTokenizer.from_pretrained(ASSETS / "model" / "tokenizer"), unet=unet, scheduler=make_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,  # type: ignore[arg-type]
    ).save_pretrained(folder)  # fmt: skip


def begin(home: Path, config: PlantedConfig) -> None:
    """Draw the pictures and make the model, unless they are there; a call that was stopped is gone on with.

    Raises:
        DataError: what is there was made with other settings.
    """
    note, pictures = home / SETTINGS, home / "pictures"
    asked = {"pictures": config.pictures, "channels": list(config.channels), "seed": config.seed}
    before = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    if (before or pictures.exists()) and (changed := differences(before, asked)):
        raise DataError(
            f"{pictures} was made with other settings: {changed}. Delete {home} to make it anew, or choose another "
            "folder: --folder."
        )
    if before.get("done"):
        return
    home.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(asked), encoding="utf-8")
    write_pictures(pictures, config)
    write_model(home / "model", config)
    note.write_text(json.dumps({**asked, "done": True}), encoding="utf-8")


def prepare(home: Path, config: PlantedConfig, *, held_out: float = 0.25) -> OwnOracle:
    """Pictures, group set and model in the workspace; returns the trainings. held_out: share of each style."""
    begin(home, config)
    asked = NewSet(name=SET, phrase="in the {name} style", resolution=SIDE, held_out=held_out)
    base = Forgetting(own_set(home / "pictures", asked), model=str(home / "model"))
    settings = settings_for(base.model, whole=True, steps=config.steps, batch=config.batch, lr=config.lr)
    return OwnOracle(base, settings, name=MODEL)


def way_of(config: PlantedConfig) -> Way:
    """What follows the trainings."""
    return Way(
        COMMAND,
        {"steps": config.unlearn_steps, "batch": config.unlearn_batch},
        HealthConfig(pictures=4, held_out=24, strata=config.strata),
        QueryConfig(objects=config.asked, blend_objects=0, real=6, steps=config.draw_steps),
        ScoreConfig(strata=config.strata),
    )


def figures(config: PlantedConfig) -> dict[str, Any]:
    """What was found: how often each method's first group is the planted one, and agreement with the oracle."""
    folder = paths.run(MODEL, SET).own / "logo"
    table = json.loads((folder / TABLE).read_text(encoding="utf-8"))
    items = json.loads((folder / "queries.json").read_text(encoding="utf-8"))["items"]
    groups, first = table["groups"], {}
    with np.load(folder / SCORES, allow_pickle=False) as z:
        for name in z.files:
            hits = [
                (i["set"], groups[int(np.nanargmax(row))] == i["groups"][0])
                for i, row in zip(items, z[name], strict=True)
            ]
            first[name] = {s: {"right": sum(h for t, h in hits if t == s), "of": sum(t == s for t, _ in hits)}
                           for s in dict.fromkeys(t for t, _ in hits)}  # fmt: skip
    kept = ("method", "query_set", "n", "top1", "mrr", "variation")
    rows = [{k: r[k] for k in kept} for r in table["rows"]]
    more = {"calibration": table["calibration"]}
    return {"command": COMMAND, "config": asdict(config), "groups": groups, "first": first, "rows": rows, **more}


def planted(
    folder: Annotated[Path | None, typer.Option(help="The workspace. Default: planted in GUDA_CACHE.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where planted.json goes. Default: assets/benchmarks.")] = None,
) -> None:
    """Train a small model on four drawn styles and see whether GUDA names the style that a picture was made from."""
    set_up_libraries()
    torch.set_flush_denormal(True)
    home, config = folder or cache_dir() / "planted", PlantedConfig()
    os.environ["GUDA_HOME"] = str(home.absolute())
    follow(everything(prepare(home, config), way_of(config)))
    found = figures(config)
    for name in ("guda", "logo"):
        of = found["first"][name]["generated"]
        say(f"{name}: the planted style comes first on {of['right']} of {of['of']} generated pictures.")
    write_record((out or BENCHMARKS) / FILE, found)


main = program(planted)

if __name__ == "__main__":
    main()
