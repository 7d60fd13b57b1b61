"""The embedded model's trainings as stages: clip, vae, unet (full, or without a group), assemble, bank.

Each stage keeps its checkpoint and result under `GUDA_CACHE/train/`, resumes where it stopped, and is skipped when its
`stage.json` (settings, data hash, versions, seconds; written last) says that it is complete.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from experiments.train import clip as clip_training
from experiments.train import unet as unet_training
from experiments.train import vae as vae_training
from guda_core import paths
from guda_core.data.embeddings import BANK, Clip, make_bank
from guda_core.data.sources.source import load_pictures, open_dataset
from guda_core.diffusion.cards import DEFAULT_MODEL
from guda_core.errors import TrainingError
from guda_core.paths import ASSETS
from guda_core.records import GroupSet
from guda_core.unlearning.loop import Progress
from guda_core.versions import today, versions
from guda_core.work_queue import claimed


def work_dir() -> Path:
    """Where checkpoints and results of trainings are kept."""
    return paths.cache_dir() / "train"


def round_to_half(module: nn.Module) -> None:
    """Round the weights to float16 in place (kept as float32), so that what is used is what is stored."""
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(p.half().float())


def finish(folder: Path, config: Any, name: str, **more: Any) -> None:
    """Write `stage.json`, last: its existence means that the stage is complete. name: of its `timed` steps."""
    seconds = _spent(name)
    record = {
        "config": asdict(config) if is_dataclass(config) and not isinstance(config, type) else config,
        "seconds": round(seconds["wall"], 1),
        "cpu_seconds": round(seconds["cpu"], 1),
        "date": today(),
        "versions": versions(),
        **more,
    }
    (folder / "stage.json").write_text(json.dumps(record, indent=1, default=str), encoding="utf-8")
    (work_dir() / f"{name}.seconds").unlink(missing_ok=True)  # another training of this name begins at none


def is_done(name: str) -> bool:
    return (work_dir() / name / "stage.json").is_file()


def record_of(name: str) -> dict[str, Any]:
    """What a finished stage noted."""
    return json.loads((work_dir() / name / "stage.json").read_text(encoding="utf-8"))


def has_settings(name: str, config: Any) -> bool:
    """Whether a finished stage was trained with these settings; how often checkpoints are kept changes nothing."""
    plain = [json.loads(json.dumps(c)) for c in (record_of(name)["config"], asdict(config))]
    for c in plain:
        c["loop"].pop("checkpoint_s", None)
    return plain[0] == plain[1]


def check(name: str, config: Any, group_set: GroupSet) -> None:
    """Raises TrainingError: a finished stage was trained with other settings, or on another group set (older ones, that
    name none, on the emoji)."""
    if not has_settings(name, config) or record_of(name).get("group_set", "emoji") != group_set.id:
        raise TrainingError(
            f"'{name}' was trained with other settings or on another group set (see "
            f"{work_dir() / name / 'stage.json'}). Move its folder away, or set GUDA_CACHE to another one."
        )


def in_hand(name: str) -> AbstractContextManager[bool]:
    """Within the block no other process takes this training up; False where one has it already."""
    return claimed(work_dir() / name)


def _spent(name: str) -> dict[str, float]:
    path = work_dir() / f"{name}.seconds"
    return json.loads(path.read_text()) if path.is_file() else {"wall": 0.0, "cpu": 0.0}


def timed(name: str, steps: Generator[Any, None, None]) -> Iterator[Any]:
    """Pass steps on; the seconds that they take, by the clock ("wall") and of all threads of this process ("cpu"), are
    added up over interruptions in a side file. Closing this closes the training."""
    before, wall, cpu, noted = _spent(name), time.monotonic(), time.process_time(), 0.0
    work_dir().mkdir(parents=True, exist_ok=True)

    def note() -> None:
        now = {"wall": before["wall"] + time.monotonic() - wall, "cpu": before["cpu"] + time.process_time() - cpu}
        (work_dir() / f"{name}.seconds").write_text(json.dumps(now))

    try:
        with closing(steps):
            for step in steps:
                if time.monotonic() - wall - noted > 30:
                    noted = time.monotonic() - wall
                    note()
                yield step
    finally:
        note()


def stage_clip(group_set: GroupSet, config: clip_training.ClipConfig, device: str = "cpu") -> Iterator[Progress]:
    pictures = load_pictures(group_set, "pretrain")
    folder = work_dir() / "clip"
    model = tokenizer = None
    steps = clip_training.train(pictures, group_set, config, work_dir() / "clip.pt", device)
    for progress, model, tokenizer in timed("clip", steps):  # noqa: B007
        yield progress
    assert model is not None and tokenizer is not None
    round_to_half(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    finish(folder, config, "clip", data_sha256=pictures.sha256(), group_set=group_set.id)


def stage_vae(group_set: GroupSet, config: vae_training.VaeConfig, device: str = "cpu") -> Iterator[Progress]:
    pictures, held_out = load_pictures(group_set, "pretrain"), load_pictures(group_set, "held_out")
    folder = work_dir() / "vae"
    vae = None
    steps = vae_training.train(pictures, config, work_dir() / "vae.pt", device)
    for progress, vae in timed("vae", steps):  # noqa: B007
        yield progress
    assert vae is not None
    round_to_half(vae)
    vae.save_pretrained(folder)
    quality = vae_training.psnr(vae_training.reconstruct(vae, held_out.pixels), held_out.pixels)
    more = {"data_sha256": pictures.sha256(), "group_set": group_set.id, "held_out_psnr_db": round(quality, 2)}
    finish(folder, config, "vae", **more)


class TextEncoder:
    """The CLIP's text tower as Stable Diffusion uses it: all hidden states of the padded prompt."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        model = CLIPTextModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
        self.model = model.to(device)  # pyright: ignore[reportArgumentType]  (transformers' own wrapper of torch's method)
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)

    def __call__(self, prompts: list[str]) -> Tensor:
        """Prompts -> (B, L, D), on the device."""
        length = self.tokenizer.model_max_length
        ids = self.tokenizer(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        with torch.no_grad():
            return self.model(ids.input_ids.to(self.model.device)).last_hidden_state


def unet_name(exclude: str | None, seed: int) -> str:
    """Folder name of a UNet: unet-full-s3, unet-without-noto-s3."""
    return f"unet-{'full' if exclude is None else f'without-{exclude}'}-s{seed}"


def _finished(name: str) -> Path:
    """The folder of the trained "vae" or "clip": in the cache, else the committed one (the same weights, float16).

    Raises:
        TrainingError: there is neither.
    """
    committed = {"vae": ASSETS / "model" / "vae", "clip": ASSETS / "clip"}[name]
    if is_done(name):
        return work_dir() / name
    if (committed / "config.json").is_file():
        return committed
    raise TrainingError(f"The UNet needs the {name} first. Run `python -m experiments.train {name}`.")


def autoencoder() -> AutoencoderKL:
    """The finished VAE. Raises TrainingError: there is none."""
    return AutoencoderKL.from_pretrained(_finished("vae"), torch_dtype=torch.float32).eval()


def text_encoder(device: str = "cpu") -> TextEncoder:
    """The finished CLIP's text tower. Raises TrainingError: there is none."""
    return TextEncoder(_finished("clip"), device)


def unet_steps(
    group_set: GroupSet,
    config: unet_training.UnetConfig,
    exclude: str | None,
    checkpoint: Path | None,
    device: str = "cpu",
) -> Generator[tuple[Progress, UNet2DConditionModel], None, None]:
    """The steps of a training on the finished VAE and CLIP. checkpoint: None = none is kept."""
    pictures = load_pictures(group_set, "train")
    latents = vae_training.latents(autoencoder(), pictures.pixels)
    embed = text_encoder(device)
    return unet_training.train(latents, pictures, group_set, embed, config, checkpoint, exclude, device)


def stage_unet(
    group_set: GroupSet, config: unet_training.UnetConfig, exclude: str | None = None, device: str = "cpu"
) -> Iterator[Progress]:
    """Train the full UNet, or with `exclude` a LOGO model: the same but for one group's pictures."""
    name = unet_name(exclude, config.loop.seed)
    unet = None
    steps = unet_steps(group_set, config, exclude, work_dir() / f"{name}.pt", device)
    for progress, unet in timed(name, steps):  # noqa: B007
        yield progress
    assert unet is not None
    unet.to("cpu")  # pyright: ignore[reportArgumentType]
    round_to_half(unet)
    unet.save_pretrained(work_dir() / name)
    kept = load_pictures(group_set, "train").where(lambda g, o: g != exclude)
    more = {"data_sha256": kept.sha256(), "group_set": group_set.id, "exclude": exclude}
    finish(work_dir() / name, config, name, **more)


def assemble(assets: Path, full: str) -> Path:
    """Write the Stable Diffusion layout and the CLIP below assets/, float16, files under 10 MB; returns the folder."""
    from diffusers import StableDiffusionPipeline

    work = work_dir()
    unet = UNet2DConditionModel.from_pretrained(work / full)
    vae = AutoencoderKL.from_pretrained(work / "vae")
    text = CLIPTextModel.from_pretrained(work / "clip", dtype=torch.float32)
    for part in (unet, vae):
        part.register_to_config(_name_or_path="")  # a folder of this machine, which is nobody's concern
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=CLIPTokenizer.from_pretrained(work / "clip"),
        unet=unet,
        scheduler=unet_training.make_scheduler(),
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    ).to(torch.float16)
    pipe.save_pretrained(assets / "model", max_shard_size="9MB")
    stages = {n: json.loads((work / n / "stage.json").read_text()) for n in ("clip", "vae", full)}
    clip = Clip(work / "clip")
    clip.model.half().save_pretrained(assets / "clip")
    clip.tokenizer.save_pretrained(assets / "clip")
    (assets / "training.json").write_text(json.dumps(stages, indent=1), encoding="utf-8")
    return assets / "model"


def write_bank(group_set: GroupSet, assets: Path) -> None:
    """CLIP features of every training picture, group by group, into the embedded model's run."""
    bank = assets / "runs" / DEFAULT_MODEL / group_set.id / BANK
    make_bank(Clip(assets / "clip", bank), open_dataset(group_set))
