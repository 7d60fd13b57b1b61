"""What the commands load: the service of a model, and group sets. Imports of the libraries wait until then."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from guda_core.cli.terminal import ERR, note
from guda_core.libraries import set_up_libraries

if TYPE_CHECKING:
    from guda_core.diffusion.base_model import BaseModel
    from guda_core.local import LocalService
    from guda_core.records import GroupSet


@contextmanager
def uncollected() -> Iterator[None]:
    """Within the block no garbage is looked for. What is loaded there stays: a walk through it would find nothing, and
    many of them take a second."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def service_of(model: str | None, group_set: str | None = None) -> LocalService:
    """The service that the commands ask. Raises ModelError: that model cannot be loaded; no other stands in for it."""
    with ERR.status("Loading the model"), uncollected():
        set_up_libraries()

        from guda_core import local

        service = local.load_service(model, group_set=group_set, fall_back=False)
    say_where(service.model)
    return service


def service_as_made(model: str | None, id: str, group_set: str, what: str, *, device: str, dtype: str) -> LocalService:
    """The service that a report or results were made with, see `diffusion.cards.as_made`: what ran on a CPU, in its own
    type. A type that is unknown here is passed over, as by `guda_core.replay`: what is found says that it differs.

    Raises:
        OptionError: no such card is here, and the user named no model. ModelError: it cannot be loaded.
    """
    from guda_core.diffusion.cards import as_made
    from guda_core.diffusion.precision import DTYPES, VARIABLE

    if device == "cpu" and dtype in DTYPES:
        os.environ[VARIABLE] = dtype
    return service_of(as_made(model, id, what), group_set)


def say_where(model: BaseModel) -> None:
    """On stderr: where a model runs and in which type. Nothing of the included model on a CPU."""
    from guda_core.diffusion.devices import where_it_runs

    for sentence in where_it_runs(model):
        note(sentence)


def group_set_of(name: str | None, *, model: str | None = None) -> GroupSet:
    """The group set of that name, else GUDA_GROUP_SET's, else that of the model's card.

    Raises:
        GroupSetError: there is no such set. ModelError: there is no such model.
    """
    from guda_core.data.groups import chosen_set, load_group_set

    if name or os.environ.get("GUDA_GROUP_SET"):
        return load_group_set(chosen_set(name))

    from guda_core.diffusion.cards import chosen_card

    return load_group_set(chosen_set(None, chosen_card(model).group_set))
