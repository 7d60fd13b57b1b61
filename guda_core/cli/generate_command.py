"""`guda generate`: draws a picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import typer

from guda_core.cli.loading import service_of
from guda_core.cli.terminal import HomeOption, LoraOption, ModelOption, SetOption, note, progress_bar, say


def generate(
    prompt: Annotated[str, typer.Option(help='For example "rocket, artistic style featuring thick black outline".')],
    out_file: Annotated[Path, typer.Option("--out", help="The PNG file to write.")],
    seed: Annotated[int, typer.Option(help="0 to 4294967295. The same seed gives the same picture.")] = 0,
    steps: Annotated[int, typer.Option(help="Number of DDIM steps, 1 to 200.")] = 25,
    guidance: Annotated[float, typer.Option(help="Weight of classifier-free guidance, 1 to 20.")] = 2.5,
    model: ModelOption = None,
    lora: LoraOption = None,
    group_set: SetOption = None,
    home: HomeOption = None,
) -> None:
    """Generate a picture."""
    from PIL import Image

    from guda_core.records import Query
    from guda_core.reports import bundle
    from guda_core.service import Step

    service = service_of(model, group_set)
    with progress_bar() as bar:
        task = bar.add_task("generate", note="", total=steps)
        for item in service.generate(prompt=prompt, seed=seed, steps=steps, guidance=guidance):
            if isinstance(item, Step):
                bar.update(task, completed=item.done)
            elif isinstance(item, Query):
                data = io.BytesIO()
                Image.fromarray(item.pixels).save(data, format="PNG")
                bundle.write(out_file, data.getvalue())
                for sentence in item.preparation:
                    note(sentence)
    say(f"Written: {out_file}")
