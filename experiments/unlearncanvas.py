"""The paper's second experiment, as one command: `python -m experiments.unlearncanvas --data FOLDER --model M`.

UnlearnCanvas (arXiv 2402.11846) has the same contents painted in many styles: `Style/Object/id.jpg`, 60 styles of 20
objects. Stable Diffusion 1.5 is fine-tuned on all of it, and again without each of 16 styles. GUDA unlearns the same
styles. Both are asked about 320 generated pictures. All of it is the code of `experiments.logo`.

Of the paper (arXiv 2601.22651): 16 styles, 20 generated pictures each; the whole UNet; unlearning with WSS (beta 2.0,
eta 0.3), lambda 1, 2,000 steps of 4 at 2e-6, no pictures under the empty prompt; the score without an offset.
Our own, since we do not know the paper's: which 16 styles (spread evenly over the alphabet), fine-tuning (10,000 steps
of 4 at 1e-5), how pictures are drawn, and a tenth of them held out for real queries. Otherwise than the paper: strata
of timesteps in place of t = 10, 20 .. 990; learning rates that fall to zero; a phrase ("in the Cubism style") in place
of three descriptors; and the CLIP of the model's card compares the phrases.

Nobody has run it on Stable Diffusion yet: there are no figures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from experiments.commands import MinutesOption, program
from guda_core.cli.terminal import HomeOption, follow, listed, say, show
from guda_core.errors import DataError
from guda_core.libraries import set_up_libraries
from guda_core.work_queue import deadline

COMMAND = "python -m experiments.unlearncanvas --data FOLDER --model M"
SET, PHRASE = "unlearncanvas", "in the {name} style"
STYLES = 16  # of the paper
UNLEARNING = {"operator": "guda_c", "selection": "weighted", "whole": True, "lam": 1.0, "empty_share": 0.0, "lr": 2e-6}
FINE_TUNING = {"whole": True, "lr": 1e-5}
StepsOption = Annotated[int, typer.Option(min=1, help="Steps of each fine-tuning.")]


def spread(ids: list[str], count: int) -> list[str]:
    """So many of the ids, at even distances, in their order.

    Raises:
        DataError: there are fewer.
    """
    if len(ids) < count:
        raise DataError(f"There are {len(ids)} styles, and {count} are asked for. Use --styles {len(ids)}.")
    return [ids[i * len(ids) // count] for i in range(count)]


def unlearncanvas(
    data: Annotated[Path, typer.Option(help="The folder with Style/Object/id.jpg.")],
    model: Annotated[str, typer.Option(help="The model to fine-tune: a card, folder, file or Hub id.")] = "sd15",
    styles: Annotated[int, typer.Option(min=2, help="How many styles are left out and unlearned.")] = STYLES,
    groups: Annotated[
        str | None, typer.Option(help="These styles, by id and with commas, in place of a number.")
    ] = None,
    resolution: Annotated[int, typer.Option(min=8, help="Side of the pictures, in pixels.")] = 512,
    steps: StepsOption = 10_000,
    batch: Annotated[int, typer.Option(min=1, help="Pictures of a step, of every training.")] = 4,
    unlearn_steps: Annotated[int, typer.Option(min=1, help="Steps of each unlearning.")] = 2_000,
    asked: Annotated[int, typer.Option(min=1, help="Generated pictures of each style.")] = 20,
    draw_steps: Annotated[int, typer.Option(min=1, help="Steps to draw a picture in.")] = 50,
    seed: Annotated[int, typer.Option(help="Of all trainings.")] = 3,
    home: HomeOption = None,
    minutes: MinutesOption = None,
    plan: Annotated[bool, typer.Option("--plan", help="Make one step, say what all will take, and stop.")] = False,
) -> None:
    """Fine-tune, unlearn, retrain without each style, and compare: the paper's UnlearnCanvas experiment.

    Stop and start again as you like. Processes that are started side by side share the work out.
    """
    set_up_libraries()
    deadline(minutes)  # refuses what is no time before anything is begun

    from experiments.benchmark.own_run import LARGE_GUIDANCE, TABLE
    from experiments.benchmark.queries import QueryConfig
    from experiments.benchmark.scores import ScoreConfig
    from experiments.logo.fine_tuning import settings_for
    from experiments.logo.own_command import status, tell
    from experiments.logo.own_models import OwnOracle
    from experiments.logo.own_plan import make_plan, plan_table
    from experiments.logo.whole_way import Way, everything, own_set
    from guda_core.data.own.new_set import NewSet
    from guda_core.unlearning.run import Forgetting

    gs = own_set(data, NewSet(name=SET, phrase=PHRASE, resolution=resolution))
    base = Forgetting(gs, model=model)
    settings = settings_for(base.model, steps=steps, batch=batch, seed=seed, **FINE_TUNING)  # type: ignore[arg-type]
    wanted = listed("--groups", groups) or spread(list(gs.groups), styles)
    own = OwnOracle(base, settings, groups=wanted)
    queries = QueryConfig(asked, blend_objects=0, real=20, steps=draw_steps, guidance=LARGE_GUIDANCE)
    way = Way(COMMAND, {**UNLEARNING, "steps": unlearn_steps, "batch": batch}, queries=queries)
    if plan:
        show(plan_table(make_plan(own, way, queries, ScoreConfig())))
        return
    follow(everything(own, way, minutes))
    if own.missing():
        status(own)
        say("Run the same command again to go on. Other processes may have trainings in hand.")
        return
    tell(own, own.folder / TABLE)


main = program(unlearncanvas)

if __name__ == "__main__":
    main()
