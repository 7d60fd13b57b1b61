"""Pictures for the app's first screen, drawn by the model itself: `python -m experiments.drawn [--model M] [--set S]`.

Writes into runs/<model>/<set>/drawn/ one picture a group (one object in the group's words), one an example of the first
screen, and drawn.json with the hash of the model: the app shows them for this very model only.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image

from experiments.commands import drawn
from guda_core import paths
from guda_core.cli.terminal import say
from guda_core.data.captions import captioner_of
from guda_core.data.dataset import described
from guda_core.local import LocalService, load_service
from guda_core.ui.examples import EXAMPLES
from guda_core.ui.seen import LIST, group_file

STEPS, GUIDANCE, SEED = 25, 2.5, 1
OBJECT = "rocket"


def draw_all(service: LocalService, folder: Path) -> list[Path]:
    """Every picture of a model and its set; their paths."""
    sets, folder = service.group_set, folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    thing = OBJECT if OBJECT in sets.train_objects else next(iter(sets.train_objects), "")
    wanted = [
        (group_file(g), captioner_of(sets).prompt(described(g, thing)), SEED, STEPS, GUIDANCE) for g in sets.groups
    ]
    wanted += [(e.file(), e.prompt(sets), e.seed, e.steps, e.guidance) for e in EXAMPLES if e.fits(sets)]
    for name, prompt, seed, steps, guidance in wanted:
        pixels = drawn(service, prompt, seed=seed, steps=steps, guidance=guidance).pixels
        Image.fromarray(pixels).save(folder / name, optimize=True)  # a PNG without anything but its pixels
    made = {"base_sha256": service.model.sha256, "pictures": {name: prompt for name, prompt, *_ in wanted}}
    (folder / LIST).write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return [folder / name for name, *_ in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--set", dest="group_set")
    options = parser.parse_args()
    service = load_service(options.model, group_set=options.group_set, fall_back=False)
    run = paths.run(service.model.card.id, service.group_set.id)
    for path in draw_all(service, run.own / "drawn"):
        say(str(path))


if __name__ == "__main__":
    main()
