"""What commands with `--workers` and `--ray` share: the options, and bars of all jobs and of each that runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from math import inf
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guda_core.cli.terminal import Command, note, progress_bar

if TYPE_CHECKING:
    from guda_core.jobs.driver import Event, Pool
    from guda_core.jobs.job import Job

AUTO = "auto"
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="So many jobs at once, in processes of this machine, a GPU each."),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="On a Ray cluster: HOST:PORT, auto (your own here, else local; also without a word) or local.",
    ),
]


class CommandOnRay(Command):
    """A command whose `--ray` may stand without an address."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        bare = [i for i, a in enumerate(args) if a == "--ray" and (args[i + 1 :] or ["-"])[0].startswith("-")]
        return super().parse_args(ctx, [f"--ray={AUTO}" if i in bare else a for i, a in enumerate(args)])


def clock(seconds: float) -> str:
    """The time of day so many seconds from now, with the date where it is not today's."""
    now, then = time.time(), time.localtime(time.time() + seconds)
    today = time.strftime("%Y-%m-%d", time.localtime(now)) == time.strftime("%Y-%m-%d", then)
    return time.strftime("%H:%M" if today else "%Y-%m-%d %H:%M", then)


def follow_jobs(title: str, count: int, events: Iterator[Event]) -> Iterator[Event]:
    """Bars of all jobs together, with their expected end, and of each that runs; passes on the events at which a job
    ends."""
    with progress_bar() as bar:
        everything = bar.add_task(title, note=f"0 of {count}", total=1.0)
        tasks: dict[str, Any] = {}
        held: set[str] = set()
        ended = failed = 0
        for e in events:
            name = e.job.name
            if e.kind in ("done", "found", "failed"):
                ended, failed = ended + 1, failed + (e.kind == "failed")
                if name in tasks:
                    bar.remove_task(tasks.pop(name))
                yield e
            elif e.kind == "progress":
                if name not in tasks:
                    tasks[name] = bar.add_task(name, note="", total=1.0)
                bar.update(tasks[name], completed=e.fraction, note=e.note)
            elif name in tasks:
                bar.remove_task(tasks.pop(name))
            if e.kind == "retried":
                note(f"{name} begins again. {e.note}")
            elif e.kind == "held" and name not in held:
                held.add(name)
                lock = e.note or f"{e.job.claim}.lock"
                note(f"{name} is in hand in another process, and is waited for. Its claim: {lock}")
            said = f"{ended - failed} of {count}" + (f", {failed} failed" if failed else "")
            said += f", ends about {clock(e.left_s)}" if e.left_s and ended < count else ""
            bar.update(everything, completed=e.all_done, note=said)


def done_by(pool: Pool, jobs: Sequence[Job], *, title: str, until: float = inf) -> list[Event]:
    """Do the jobs with bars, until a moment of `time.monotonic` at most; what became of each.

    Raises:
        TrainingError: some failed; the others are done.
    """
    from guda_core.jobs.driver import failure, work_through

    ended = list(follow_jobs(title, len(jobs), work_through(jobs, pool, until=until))) if jobs else []
    if failed := failure(ended):
        raise failed
    return ended
