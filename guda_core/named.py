"""The service of a model and a group set that are known by name: what travels to another process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guda_core.diffusion.base_model import Card
    from guda_core.records import GroupSet
    from guda_core.service import Service


@dataclass(frozen=True)
class Named:
    """What makes the service there; equal ones make it once in a process. None: the default ones. On its way to another
    process, which may work in another folder, a path is written out."""

    model: str | None
    group_set: str | None

    def __reduce__(self) -> tuple[type[Named], tuple[str | None, str | None]]:
        from guda_core.diffusion.cards import absolute

        return Named, (self.model and absolute(self.model), self.group_set)

    def resolved(self) -> tuple[Card, GroupSet]:
        """The card and the group set that these names stand for now."""
        from guda_core.data.groups import chosen_set, load_group_set
        from guda_core.diffusion.cards import chosen_card

        card = chosen_card(self.model)
        return card, load_group_set(chosen_set(self.group_set, card.group_set))

    def __call__(self) -> Service:
        from guda_core.libraries import set_up_libraries

        set_up_libraries()
        from guda_core import local

        return local.load_service(self.model, group_set=self.group_set, fall_back=False)
