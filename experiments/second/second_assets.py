"""The second edition's assets, built from what came back: a workspace of their own, outside `assets/`.

    model/, clip/, training.json    as `experiments.train` assembles them
    models/emoji-second.yaml        the card; sets/emoji-eleven/: the group set
    runs/emoji-second/emoji-eleven/oracle/<group>/     the live oracle
    benchmarks/                     quality.json, queries, and seeds/seed-<s>.npz of every complete seed

`guda ... --home FOLDER --model emoji-second` works on it. Adapters, features and tables are made on it here, by the
same commands as the first edition's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml

from experiments.benchmark.strata import make_strata
from experiments.second import parcels, second_oracle, second_quality, second_stages
from experiments.second.edition import HOME, MODEL, Asked, at, the_set
from experiments.seeds import collected
from experiments.train import stages
from experiments.train.unet import make_scheduler
from guda_core.diffusion.schedule import Schedule
from guda_core.errors import OptionError
from guda_core.paths import ASSETS


def allowed(to: Path) -> None:
    """Raises OptionError: the folder is the first edition's, or holds something already."""
    if to.resolve() == ASSETS or to.resolve().is_relative_to(ASSETS):
        raise OptionError(f"{to} belongs to the first edition. Name a new folder outside {ASSETS}.")
    if to.is_dir() and any(to.iterdir()):
        raise OptionError(f"{to} is not empty. Name a new folder, or delete it first.")


def build(asked: Asked, came_back: Path, work: Path, to: Path) -> Iterator[str]:
    """Build the folder; yields what was done, in words.

    Raises:
        OptionError: the folder is taken. TrainingError: the model is not among what came back. DataError: a parcel is
            damaged.
    """
    allowed(to)
    at(work)
    yield from parcels.take_back(came_back, work)
    gs, name = the_set(asked.group_set), stages.unet_name(None, asked.edition.seeds[0])
    second_stages.need("vae", "clip", name)
    stages.assemble(to, name)
    yield f"The model is in {to / 'model'}."
    _card(asked, to)
    shutil.copytree(HOME / "sets" / gs.id, to / "sets" / gs.id)
    coded = [t for t in second_oracle.trainings(asked) if second_oracle.is_coded(asked, t)]
    whole = [str(t.exclude) for t in coded if second_oracle.is_there(asked, t)]
    for group in whole:
        shutil.copytree(work / "live" / group, to / "runs" / MODEL / gs.id / "oracle" / group)
    yield f"The live oracle has {len(whole)} of {len(coded)} groups."
    figures = to / "benchmarks"
    figures.mkdir(parents=True)
    for file in (second_quality.FILE, second_quality.SHEET, "trial.json"):
        if (work / file).is_file():
            shutil.copyfile(work / file, figures / file)
            yield f"{file} is in {figures}."
    if (work / second_stages.FIGURES).is_dir():
        shutil.copytree(work / second_stages.FIGURES, figures, dirs_exist_ok=True)
    seeds = list(_seeds(asked, work, figures / collected.FOLDER))
    yield f"Complete seeds of the oracle: {', '.join(map(str, seeds)) or 'none'}."


def _card(asked: Asked, to: Path) -> None:
    card = second_stages.card(asked, Path("..") / "model")
    fields = {"kind": card.kind, "name": card.name, "source": "folder", "path": "../model"}
    fields |= {"resolution": card.resolution, "group_set": card.group_set, "licence": card.licence}
    fields["encoder"] = "clip:../clip"
    prepared = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": card.resolution}  # as it was trained
    (to / "clip" / "preprocessor_config.json").write_text(json.dumps(prepared), encoding="utf-8")
    (to / "models").mkdir(parents=True)
    (to / "models" / f"{MODEL}.yaml").write_text(yaml.safe_dump({MODEL: fields}), encoding="utf-8")


def _seeds(asked: Asked, work: Path, to: Path) -> Iterator[int]:
    """Write the file of every seed all of whose trainings came back, of one model; gives the seeds."""
    gs, scores = the_set(asked.group_set), asked.edition.scores
    strata = make_strata(Schedule.ddpm(make_scheduler().alphas_cumprod), scores.strata, scores.rule)
    for seed in asked.edition.seeds:
        of = [t for t in second_oracle.trainings(asked) if t.seed == seed]
        there = [t for t in of if second_oracle.is_there(asked, t)]
        records = {t.name: r for t in there if (r := second_oracle.record_of(t)) is not None}
        if len(records) < len(of) or len({r["key"]["base_sha256"] for r in records.values()}) > 1:
            continue
        arrays = []
        for t in of:
            with np.load(work / "logo" / t.name / second_oracle.VALUES) as z:
                arrays.append({k: z[k] for k in z.files})
        scored = {d: collected.drops(arrays[0][d], [a[d] for a in arrays[1:]], strata) for d in arrays[0]}
        keys = records[of[0].name]["key"]["queries"]
        collected.write(to, scored, seed=seed, groups=list(gs.groups), trainings=records, queries=keys)
        yield seed
