"""`python -m experiments.train [STAGE]`: trains the embedded model, stage by stage; resumable."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.commands import program
from guda_core.cli.loading import group_set_of
from guda_core.cli.terminal import HomeOption, SetOption, follow_steps, say
from guda_core.errors import OptionError
from guda_core.libraries import set_up_libraries
from guda_core.paths import ASSETS


def train(
    stage: Annotated[str, typer.Argument(help="clip, vae, unet, assemble, bank, or all (in that order).")] = "all",
    name: SetOption = None,
    home: HomeOption = None,
    without: Annotated[str | None, typer.Option(help="Only for unet: leave this group out (a LOGO model).")] = None,
    seed: Annotated[int | None, typer.Option(help="Only for unet: a seed other than the full model's.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda: where clip, vae and unet are trained.")] = "cpu",
    assets: Annotated[
        Path | None, typer.Option(help="assemble, bank: where the finished model goes. Default: assets.")
    ] = None,
) -> None:
    """Train the embedded model. Every stage saves checkpoints and resumes. Finished stages are skipped."""
    set_up_libraries()

    import torch

    from experiments.train import clip as clip_training
    from experiments.train import stages
    from experiments.train import unet as unet_training
    from experiments.train import vae as vae_training

    gs, where = group_set_of(name), assets or ASSETS
    torch.set_flush_denormal(True)
    config = unet_training.UnetConfig()
    if seed is not None:
        config = dataclasses.replace(config, loop=dataclasses.replace(config.loop, seed=seed))
    unet = stages.unet_name(without, config.loop.seed)
    clip, vae = clip_training.ClipConfig(), vae_training.VaeConfig()
    trainings: dict[str, tuple[str, Any, Callable[[], Iterator[Any]]]] = {
        "clip": ("clip", clip, lambda: stages.stage_clip(gs, clip, device)),
        "vae": ("vae", vae, lambda: stages.stage_vae(gs, vae, device)),
        "unet": (unet, config, lambda: stages.stage_unet(gs, config, without, device)),
    }
    wanted = [*trainings, "assemble", "bank"] if stage == "all" else [stage]
    for s in wanted:
        if s in trainings:
            folder, own, start = trainings[s]
            if stages.is_done(folder):
                stages.check(folder, own, gs)
                say(f"{folder}: already done ({stages.work_dir() / folder})")
            else:
                follow_steps(folder, start())
        elif s == "assemble":
            say(f"Written: {stages.assemble(where, unet)}")
        elif s == "bank":
            stages.write_bank(gs, where)
        else:
            raise OptionError(f"There is no stage '{s}'. Known: {', '.join(trainings)}, assemble, bank, all.")


main = program(train)

if __name__ == "__main__":
    main()
