"""`guda attribute --table`: any number of pictures into Parquet parts, here, by worker processes or on Ray."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import typer

from guda_core.amounts import time_said
from guda_core.cli.terminal import note, progress_bar, say

if TYPE_CHECKING:
    from guda_core.named import Named
    from guda_core.scoring.table_run import Options, Table, Total, Work

SHOWN = 20  # reasons why pictures have no scores
PACE_OF, PACE_S = 3, 10.0  # pictures whose scoring tells the pace; fewer are enough where they took so many seconds


def make_table(
    sources: Sequence[str], out: str, make_service: Named, options: Options, *, workers: int | None, ray: str | None
) -> None:
    """Score the pictures, write the summary page, and say what came of it. workers, ray: None for this process."""
    from guda_core.scoring import places, summary_page
    from guda_core.scoring.asking import all_there
    from guda_core.scoring.summary import no_score_said, silent_said
    from guda_core.scoring.table_run import Table

    table = Table(sources, out, make_service, options)
    if passed := str(table.listing.passed):
        note(passed)
    for said in table.said_before():
        note(said)
    try:
        with _working(workers, ray) as work:
            total = _followed(table, work)
    except (KeyboardInterrupt, SystemExit):
        note("What was scored is kept. The same command goes on.")
        raise
    kept = f" ({total.kept:,} of them kept from an earlier run)" if total.kept else ""
    say(f"Scored: {total.scored + total.kept:,}{kept}. Without scores: {total.refused + total.no_score:,}.")
    for picture, why in list(total.why.items())[:SHOWN]:
        note(f"{picture}: {why}")
    results = all_there(table.out, total.done)
    whole = results.summary()
    for said in filter(None, (no_score_said(total.no_score), *whole.caveats, *silent_said(whole.silent))):
        note(said)
    page = summary_page.write(results, summary=whole)
    say(f"Written: {places.joined(table.out, 'parts')} and {page}. Ask them with `guda results {out}`.")
    if total.refused or total.no_score or any(s.lacked for s in whole.silent.values()):
        raise typer.Exit(1)


@contextmanager
def _working(workers: int | None, ray: str | None) -> Iterator[Work]:
    """Who does the parts."""
    from guda_core.scoring.part_jobs import by_pool, here

    if workers is None and ray is None:
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # as Ctrl-C, in order
        try:
            yield here
        finally:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
        return
    from guda_core.jobs.chosen_pool import opened

    with opened(workers, ray, lasting=True) as pool:
        note(f"Working on {pool.about}.")
        yield partial(by_pool, pool=pool)


class _Expected:
    """What the rest will take, said once. The first picture is not counted: models are loaded before it is there.
    Where rows of an earlier run are kept, some of the rest may be, too."""

    def __init__(self) -> None:
        self.since: tuple[float, Total] | None = None
        self.told = False

    def hear(self, total: Total) -> None:
        """On stderr, as soon as the pace is known."""
        if self.told or not total.scored:
            return
        now = time.monotonic()
        if self.since is None:
            self.since = now, total
            return
        took, first = now - self.since[0], self.since[1]
        n, done = total.scored - first.scored, total.done - first.done
        if n >= PACE_OF or (n and took >= PACE_S):
            self.told = True
            each = f" ({took / n:.2g} s each)" if not total.kept else ""
            if left := total.pictures - total.done:
                note(
                    f"At the pace of the first pictures{each}, the other {left:,} will take about "
                    f"{time_said(left * took / max(n, done))}. Ctrl-C stops; the same command goes on."
                )


def _followed(table: Table, work: Work) -> Total:
    """Do the work with a bar; at the beginning, what it will take is said."""
    from guda_core.scoring.table_run import Total

    total, expected = Total(len(table.listing)), _Expected()
    with progress_bar() as bar:
        task = bar.add_task("pictures", note="", total=total.pictures)
        for total in table.run(work):
            bar.update(task, completed=total.done, note=f"{total.done:,} of {total.pictures:,}")
            expected.hear(total)
    return total
