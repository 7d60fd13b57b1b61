"""The stages of the second edition before the oracle: vae, clip, the full UNet, the model in its layout, its queries.

Each is a job: it says how far it is, goes on where it was stopped, and is skipped once its record is there. Results lie
where `experiments.train.stages` has them, below the folder of work, rounded to float16 as they are stored.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from experiments.benchmark import fresh, queries
from experiments.second import fast_trainings as training
from experiments.second import one_file
from experiments.second.edition import MODEL, Asked, at, place, plain, the_set
from experiments.seeds import packed
from experiments.train import stages
from experiments.train import vae as vae_training
from guda_core.data.sources.source import load_pictures
from guda_core.diffusion.base_model import BaseModel, Card
from guda_core.diffusion.cards import load_model
from guda_core.diffusion.opening import quieten_libraries
from guda_core.errors import TrainingError
from guda_core.jobs.job import Job, Steps

PACKED = "packed.npz"  # latents and queries of the finished model, as the oracle's trainings read them
FIGURES = "figures"


def started(asked: Asked, work: Path) -> None:
    """What every stage begins with, in whichever process it runs."""
    at(work)
    logging.basicConfig()
    logging.getLogger("guda_core.jobs").setLevel(logging.INFO)  # why something broke, in full
    quieten_libraries()
    asked.how.settle()


def followed(name: str, steps: Any, told: dict[str, Any]) -> Steps:
    """Pass a training's steps on as a job's; gives the last of what they yield. told: gets the loss, the rate and how
    steps were taken."""
    last: tuple[Any, ...] = ()
    for last in stages.timed(name, steps):
        p = last[0]
        if p.loss == p.loss:
            told.update(loss=p.loss, pictures_per_second=round(p.rate, 1), steps=p.note)
        yield p.step / p.steps, f"{p.step}/{p.steps}  loss {told.get('loss', 0):.4f}  {p.rate:.0f} pictures/s"
    return last[1:]


def pictures(asked: Asked, work: Path, file: Path) -> Steps:
    """The packed pictures, unpacked."""
    at(work)
    for fraction in one_file.unpack(file, the_set(asked.group_set)):
        yield fraction, "unpacking the pictures"


def vae(asked: Asked, work: Path) -> Steps:
    """Train the autoencoder, and measure it on held-out pictures."""
    started(asked, work)
    own, how, told = asked.edition.vae, asked.how, {}
    seen, held = (load_pictures(the_set(asked.group_set), s) for s in ("pretrain", "held_out"))
    (model,) = yield from followed("vae", training.train_vae(seen, own, how, stages.work_dir() / "vae.pt"), told)
    stages.round_to_half(model)
    quality = vae_training.psnr(vae_training.reconstruct(model, held.pixels), held.pixels)
    model.to("cpu").half().save_pretrained(stages.work_dir() / "vae")
    more = {"data_sha256": seen.sha256(), "held_out_psnr_db": round(quality, 2), **plain(asked), **told}
    stages.finish(stages.work_dir() / "vae", own, "vae", **more)


def clip(asked: Asked, work: Path) -> Steps:
    """Train the CLIP."""
    started(asked, work)
    own, how, gs, told = asked.edition.clip, asked.how, the_set(asked.group_set), {}
    seen = load_pictures(gs, "pretrain")
    steps = training.train_clip(seen, gs, own, how, stages.work_dir() / "clip.pt")
    model, tokenizer = yield from followed("clip", steps, told)
    stages.round_to_half(model)
    model.to("cpu").half().save_pretrained(stages.work_dir() / "clip")
    tokenizer.save_pretrained(stages.work_dir() / "clip")
    more = {"data_sha256": seen.sha256(), **plain(asked), **told}
    stages.finish(stages.work_dir() / "clip", own, "clip", **more)


def files_of(name: str) -> list[Path]:
    """What a trained part consists of, its record last."""
    record = stages.work_dir() / name / "stage.json"
    return [*sorted(p for p in record.parent.iterdir() if p.is_file() and p != record), record]


def is_there(name: str) -> bool:
    """Whether a part's record and weights are there."""
    return stages.is_done(name) and any(p.suffix == ".safetensors" for p in files_of(name))


def check_settings(asked: Asked, name: str) -> None:
    """Raises TrainingError: a part was trained with other settings than those asked for."""
    edition, record = asked.edition, stages.work_dir() / name / "stage.json"
    wanted = {"vae": edition.vae, "clip": edition.clip}.get(name, edition.unet_of(edition.seeds[0]))
    if not stages.has_settings(name, wanted):
        raise TrainingError(
            f"'{name}' was trained with other settings (see {record}): take the same `--scale` in every call, or a new "
            "folder with `--work`."
        )


def need(*names: str) -> None:
    """Raises TrainingError: one of these stages is not done (another edition's must not stand in for it)."""
    for name in names:
        if not is_there(name):
            raise TrainingError(f"The stage '{name}' comes first. Run `python -m experiments.second all`.")


def full(asked: Asked, work: Path) -> Steps:
    """Train the full UNet of the embedded model, and put the model together."""
    started(asked, work)
    need("vae", "clip")
    edition, how, gs, told = asked.edition, asked.how, the_set(asked.group_set), {}
    seed, seen = edition.seeds[0], load_pictures(gs, "train")
    name = stages.unet_name(None, seed)
    latents = vae_training.latents(stages.autoencoder().to(how.device), seen.pixels)
    yield 0.0, "captions"
    bank = training.bank_of(seen, gs, stages.text_encoder(how.device), edition.captions, seed, how)
    steps = training.train_unet(
        latents, seen.groups, bank, edition.unet_of(seed), how, stages.work_dir() / f"{name}.pt"
    )
    (unet,) = yield from followed(name, steps, told)
    stages.round_to_half(unet)
    unet.to("cpu").half().save_pretrained(stages.work_dir() / name)
    more = {"data_sha256": seen.sha256(), "exclude": None, **plain(asked), **told}
    stages.finish(stages.work_dir() / name, edition.unet_of(seed), name, **more)


def assembled(asked: Asked, work: Path) -> Path:
    """The finished parts in Stable Diffusion's layout, below `assets/` of the work; made where they are not there."""
    name, own = stages.unet_name(None, asked.edition.seeds[0]), place("assets")
    need("vae", "clip", name)
    if not (own / "training.json").is_file():
        stages.assemble(own, name)
    return own / "model"


def card(asked: Asked, folder: Path) -> Card:
    """A card of the model in that folder."""
    gs = the_set(asked.group_set)
    name = f"Emoji diffusion (second edition, {gs.resolution} px)"
    return Card(MODEL, name, "folder", str(folder), gs.resolution, "epsilon", "float32", gs.id, "MIT")


@lru_cache(maxsize=1)
def model_of(asked: Asked, work: Path) -> BaseModel:
    """The assembled model on the device, in float32; loaded once in each process."""
    return load_model(card(asked, assembled(asked, work)), device=asked.how.device, dtype=torch.float32)


def query_folders() -> tuple[Path, Path]:
    """Of the first draw of the queries and of the fresh one."""
    return place(FIGURES), place(FIGURES) / fresh.NAME


def query_files(folder: Path) -> list[Path]:
    """What a draw of the queries consists of, its record last."""
    return [folder / queries.PICTURES, folder / queries.RECORD]


def _are_of(folder: Path, sha256: str) -> bool:
    """Whether a draw of the queries is there whole, of the model of that hash."""
    files = query_files(folder)
    return (
        all(p.is_file() for p in files) and json.loads(files[-1].read_text(encoding="utf-8"))["base_sha256"] == sha256
    )


def drawn(asked: Asked, work: Path) -> Steps:
    """Draw both draws of the fixed queries that are not there, and pack latents and queries for the oracle's trainings.

    A draw that came back from another machine stays: everything that was scored belongs to it."""
    started(asked, work)
    gs, model, (folder, again) = the_set(asked.group_set), model_of(asked, work), query_folders()
    more: dict[str, Any] = {"batch": 100, "command": "python -m experiments.second all"}
    if not _are_of(folder, model.sha256):
        for fraction in queries.write(model, gs, asked.edition.first, folder, **more):
            yield 0.3 * fraction, "queries"
    if not _are_of(again, model.sha256):
        more |= {"apart": fresh.looked_at(gs, folder / queries.RECORD), "name": fresh.NAME}
        for fraction in queries.write(model, gs, asked.edition.fresh, again, **more):
            yield 0.3 + 0.5 * fraction, "fresh queries"
    pack(asked, work)
    yield 1.0, "packed"


def pack(asked: Asked, work: Path) -> None:
    """Pack latents and queries for the oracle's trainings."""
    gs, model = the_set(asked.group_set), model_of(asked, work)
    packed.write(place(PACKED), model, gs, place(FIGURES), asked.how.device, small=True)


def have_queries(asked: Asked, work: Path) -> bool:
    """Whether both draws of the queries are there, of the finished model."""
    at(work)
    model = model_of(asked, work).sha256
    return all(_are_of(f, model) for f in query_folders())


def are_drawn(asked: Asked, work: Path) -> bool:
    """Whether they are there and packed."""
    at(work)
    return place(PACKED).is_file() and have_queries(asked, work)


def is_done(asked: Asked, work: Path, name: str) -> bool:
    """Whether a part is trained. Raises TrainingError: with other settings."""
    at(work)
    if not is_there(name):
        return False
    check_settings(asked, name)
    return True


vae_done, clip_done = partial(is_done, name="vae"), partial(is_done, name="clip")


def full_done(asked: Asked, work: Path) -> bool:
    return is_done(asked, work, stages.unet_name(None, asked.edition.seeds[0]))


STAGES: dict[str, tuple[Callable[..., Steps], Callable[..., bool]]] = {
    "vae": (vae, vae_done),
    "clip": (clip, clip_done),
    "unet": (full, full_done),
    "queries": (drawn, are_drawn),
}


def job(name: str, asked: Asked, work: Path) -> Job:
    """A stage as a job."""
    run, done = STAGES[name]
    return Job(name, run, work / "claims" / name, done, (asked, work))


def taken(job: Job) -> Iterator[tuple[float, str]]:
    """The steps of a job in this process; none where it is done."""
    if job.done is not None and job.done(*job.arguments):
        return
    with closing(job.work(*job.arguments)) as steps:
        for fraction, note, *_ in steps:
            yield fraction, note
