"""Unlearn with settings that were tried and not adopted: `python -m experiments.unlearn --with NAME=VALUE ...`.

    python -m experiments.unlearn --with selection=posterior --with temperature=100 --folder FOLDER

NAME is any setting of a forget loss: of the product's (`guda unlearn --help`) or of `experiments.ablations.members`;
`operator` is the loss itself. VALUE is as in JSON, or a word; "all" stands for no limit. What `python -m
experiments.styles` finds below `GUDA_CACHE/adapters/ROW/` becomes the row guda-ROW of its table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.ablations.members import config_of
from guda_core.cli.loading import group_set_of
from guda_core.cli.terminal import listed
from guda_core.errors import OptionError
from guda_core.unlearning.config import Settings
from guda_core.unlearning.run import Forgetting


def value_of(text: str) -> Any:
    """A number, true, false or null as JSON has them; else the word itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def settings(given: Sequence[str]) -> Settings:
    """["selection=posterior", "steps=40"] -> settings.

    Raises:
        OptionError: a part is no NAME=VALUE, or there is no such setting or value.
    """
    changes, unlimited = {}, []
    for part in given:
        name, equals, text = part.partition("=")
        if not name or not equals:
            raise OptionError(f"'{part}' is no setting. Write --with NAME=VALUE, for example --with steps=40.")
        if text == "all":
            unlimited.append(name)
        else:
            changes[name] = value_of(text)
    config = config_of(**{"operator": "guda_c", **changes})
    return type(config)(**{**vars(config), **dict.fromkeys(unlimited)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--with", dest="given", metavar="NAME=VALUE", action="append", default=[])
    parser.add_argument("--groups", help="comma-separated group ids; default all")
    parser.add_argument("--set", dest="name", help="group set; default: GUDA_GROUP_SET, else the model card's")
    parser.add_argument("--model", help="model card; default: GUDA_MODEL, else emoji")
    parser.add_argument("--folder", type=Path, required=True, help="where the adapters go")
    parser.add_argument("--again", action="store_true", help="also make adapters again that are there and fit")
    args = parser.parse_args()
    config, wanted = settings(args.given), listed("--groups", args.groups)
    job = Forgetting(group_set_of(args.name, model=args.model), model=args.model, folder=args.folder)
    pending = job.pending(wanted, config=config, again=args.again)
    if not args.again:
        job.check_others(pending)
    for group in pending:
        for p in job.unlearn(group, config):
            if p.step in (1, p.steps) or p.step % 20 == 0:
                print(f"{group} {p.step}/{p.steps} loss {p.loss:.4f} {p.note}", flush=True)


if __name__ == "__main__":
    main()
