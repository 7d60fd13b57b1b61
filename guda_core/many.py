"""Many pictures from Python: what `guda attribute --table` does."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from multiprocessing import spawn
from pathlib import Path

from guda_core import api, given
from guda_core.attribution import METHODS
from guda_core.data import groups as group_sets
from guda_core.data.prompts import check_prompt
from guda_core.diffusion import cards
from guda_core.diffusion.base_model import BaseModel
from guda_core.errors import OptionError
from guda_core.jobs.chosen_pool import opened
from guda_core.named import Named
from guda_core.python_words import speaks_python
from guda_core.records import GroupSet
from guda_core.scoring import summary_page
from guda_core.scoring.asking import Results, all_there
from guda_core.scoring.part_jobs import by_pool
from guda_core.scoring.summary import silent_said
from guda_core.scoring.table_run import Options, Table, Total
from guda_core.service import Service

log = logging.getLogger(__name__)


@speaks_python
def attribute_many(
    pictures: str | Path | Iterable[str | Path],
    out: str | Path,
    prompt: str = "",
    model: BaseModel | str | Path | None = None,
    groups: GroupSet | str | None = None,
    methods: Sequence[str] = (),
    effort: str = "standard",
    *,
    workers: int | None = None,
    ray: str | None = None,
) -> Results:
    """Score any number of pictures into a table of Parquet parts. A call that was stopped goes on. Progress is logged.

    Args:
        pictures: what `guda attribute --table` takes: a folder, pictures, URLs, a data set (hub:USER/NAME), or a CSV
            or Parquet table with the columns file and text (or caption, prompt), where each picture has a caption of
            its own.
        out: the folder, or URL, of the results.
        prompt: of every picture, where a table has none; "" asks the unconditional model.
        model, groups: names, or what is loaded already; with workers or ray, names alone.
        methods: ids; () for `guda` and `clip`, where the model has them.
        effort: as of `attribute`.
        workers: worker processes of this machine, a GPU each where there are GPUs. They import the main program again,
            so a script's own call stands below `if __name__ == "__main__":`.
        ray: the same on a Ray cluster: HOST:PORT, "auto" or "local".

    Returns:
        The results, to be asked: `summary()`, `find(group="...")`, `caveats()`. A picture without scores is a row that
        says why. What has to be said beside the scores is also a warning, as is that some could not be scored.

    Raises:
        OptionError: a name or an option is refused, or the results were begun with something else.
        ReportError: the results cannot be written, or some pictures have no rows, because their workers ended.
        GudaError: any other, such as a model or a data set that cannot be loaded.
    """
    sources = _sources(pictures)
    if not isinstance(groups, GroupSet):
        given.set_name(groups)
    check_prompt(prompt)
    given.check_texts({"effort": effort, "ray": ray})
    workers, place = given.count(workers, "workers"), given.place_of(out, "out")
    options = Options(effort, tuple(given.names(methods, "methods")), prompt)
    several = workers is not None or ray is not None
    base = api._model(model)
    make_service = _maker(base, groups, several=several)
    _check_names(base, groups, options.methods)
    if several:
        _check_known(options.methods, on_ray=ray is not None)
    table = Table(sources, place, make_service, options)
    if passed := str(table.listing.passed):
        log.info("%s", passed)
    for said in table.said_before():
        log.warning("%s", said)
    if several:
        with opened(workers, ray, lasting=True) as pool:
            log.info("score on %s", pool.about)
            total = _run(table, partial(by_pool, pool=pool))
    else:
        total = _run(table)
    results = all_there(table.out, total.done)
    if total.why:
        picture, why = next(iter(total.why.items()))
        n = f"{total.refused:,} of {total.pictures:,} pictures"
        log.warning("%s could not be scored, such as '%s': %s", n, picture, why)
    whole = results.summary()
    for said in (*whole.caveats, *silent_said(whole.silent)):
        log.warning("%s", said)
    summary_page.write(results, summary=whole)
    return results


def _sources(pictures: str | Path | Iterable[str | Path]) -> list[str]:
    """Their places. Raises OptionError for what has none."""
    if isinstance(pictures, Mapping) or hasattr(pictures, "__dataframe__"):
        raise OptionError(
            "Captions of single pictures come from a table: write a CSV or Parquet file with the columns file and "
            "prompt, and give its path."
        )
    found: list[object] = [pictures]
    if isinstance(pictures, Iterable) and not isinstance(pictures, str | os.PathLike):
        found = list(pictures)
    places = [s for s in found if isinstance(s, str | os.PathLike)]
    if len(places) < len(found):
        raise OptionError(
            "Pictures are a folder, paths, URLs, a table or a data set: texts or paths, or a list of them. For a "
            "picture in memory, use attribute."
        )
    return [given.place_of(p, "pictures") for p in places]


def _check_names(model: BaseModel | str | None, groups: GroupSet | str | None, methods: Sequence[str]) -> None:
    """Raises an error for a name that stands for nothing, before a folder is made or a model loaded."""
    for method in methods:
        METHODS.find(method)
    card = model.card if isinstance(model, BaseModel) else cards.chosen_card(model)
    if not isinstance(groups, GroupSet):
        group_sets.load_group_set(group_sets.chosen_set(groups, card.group_set))


def _check_known(methods: Sequence[str], *, on_ray: bool) -> None:
    """Raises OptionError for a method that workers do not have: on a Ray cluster one that this program added; here that
    alone where they cannot run its script again, such as that of a notebook."""
    if not on_ray and any(k.startswith("init_main") for k in spawn.get_preparation_data("worker")):
        return  # they begin with the main script
    if unknown := [m for m in methods if m in METHODS.added]:
        raise OptionError(
            f"Workers do not know '{unknown[0]}', which was added in this session. Make it an entry point of a package"
            + (" that is installed on all machines." if on_ray else ", or add it in a script and call this from there.")
        )


def _maker(model: BaseModel | str | None, groups: GroupSet | str | None, *, several: bool) -> Callable[[], Service]:
    if not isinstance(model, BaseModel) and not isinstance(groups, GroupSet):
        return Named(model, groups)
    if several:
        raise OptionError("With workers or ray, give model and groups by their names: each process loads its own.")
    return partial(api._service, model, groups)


def _run(table: Table, *work: Callable) -> Total:
    total = Total(len(table.listing))
    for total in table.run(*work):
        without = total.refused + total.no_score
        log.info("scored %d of %d, without scores %d", total.scored + total.kept, total.pictures, without)
    return total
