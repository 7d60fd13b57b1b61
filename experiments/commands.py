"""What the laboratory's commands share: each is a small program of its own, with the product's bars and errors."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from guda_core.cli.loading import service_of
from guda_core.cli.terminal import Command, HomeOption, ModelOption, SetOption, follow, say
from guda_core.paths import BENCHMARKS, cache_dir

if TYPE_CHECKING:
    from guda_core.local import LocalService
    from guda_core.records import GroupSet, Query

MinutesOption = Annotated[
    float | None, typer.Option(help="Stop after this many minutes; the next call goes on from there.")
]
FolderOption = Annotated[
    Path | None, typer.Option(help="Where queries, arrays and figures go. Default: assets/benchmarks.")
]
TableOption = Annotated[bool, typer.Option("--table", help="Only make the table from the committed arrays.")]


def program(function: Callable[..., Any], *, cls: type[Command] = Command) -> Callable[[], None]:
    """The function as a program: its options are those of the command line, its docstring the help."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(cls=cls)(function)
    return app


def measuring(module: str, doc: str) -> Callable[[], None]:
    """The program of a module of `experiments.benchmark` that measures a service: `run(service, folder)`, into `FILE`.
    doc: its help."""

    def measure(
        model: ModelOption = None, group_set: SetOption = None, home: HomeOption = None, folder: FolderOption = None
    ) -> None:
        benchmark, where = import_module(f"experiments.benchmark.{module}"), folder or BENCHMARKS
        follow(benchmark.run(service_of(model, group_set), where))
        say(f"Written: {where / benchmark.FILE}")

    measure.__doc__ = doc
    return program(measure)


def keep_record(path: Path, record: Mapping[str, Any], **more: Any) -> None:
    """Write what a command measured, with the date and the versions of the libraries and of what `more` names. A file
    that is there is replaced in one go."""
    from guda_core.reports import bundle
    from guda_core.versions import today, versions

    text = json.dumps({**record, "versions": {**versions(), **more}, "date": today()}, indent=1)
    bundle.write(path, (text + "\n").encode())


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """`keep_record`, and say so."""
    keep_record(path, record)
    say(f"Written: {path}")


def differences(before: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """What is asked for and was otherwise, for a message: "steps was 25 and is 50"; "" where all is the same."""
    return ", ".join(f"{k} was {before.get(k, 'not told')} and is {v}" for k, v in asked.items() if before.get(k) != v)


def prompted(group_set: GroupSet, n: int, seed: int) -> tuple[str, str, str]:
    """The group, the object and the prompt of picture n that a command draws: every group in turn."""
    from guda_core.data.captions import captioner_of
    from guda_core.data.dataset import described

    group = list(group_set.groups)[n % len(group_set.groups)]
    thing = str(np.random.default_rng(seed + n).choice(group_set.train_objects))
    return group, thing, captioner_of(group_set).prompt(described(group, thing))


def drawn(service: LocalService, prompt: str, *, seed: int, steps: int, guidance: float) -> Query:
    """The picture that a service's model draws."""
    from guda_core.records import Query

    *_, last = service.generate(prompt=prompt, seed=seed, steps=steps, guidance=guidance)
    assert isinstance(last, Query)
    return last


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, what it gave)."""
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def adapters_of(service: LocalService, method: str) -> dict[str, str]:
    """Group -> hash of the method's model without it; {} where the method is not offered."""
    from guda_core.attribution.others import provenance_of

    return provenance_of(service.offered[method])["adapters"] if method in service.offered else {}


def measured_in(name: str, service: LocalService, methods: Sequence[str], **settings: Any) -> Path:
    """Where a command keeps what it measured of a service: a folder of the cache that is named by the model, its group
    set, the methods' adapters and the settings. What was measured with others is not taken up."""
    from guda_core.data.captions import words_sha256

    gs, model = service.group_set, service.model
    of = {
        "model": [model.sha256, str(model.dtype), str(model.device)],
        "group_set": [gs.id, words_sha256(gs), gs.train_objects],
        "adapters": {m: adapters_of(service, m) for m in methods},
        "settings": settings,
    }
    return cache_dir() / name / hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16]
