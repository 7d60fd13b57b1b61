"""What `guda unlearn` and `guda assets card` say of the folder that they made for the hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guda_core.diffusion.base_model import Card
    from guda_core.records import GroupSet

FEW = 5  # groups that are named
STAYS = "That stays when the folder is made again."
LEAVE = (
    "Adapters, features and a LoRA are made from the pictures and tell about them. Publish them only if you may: with "
    "the authors' leave, or under a licence that allows it. What was uploaded once stays in the repository's history."
)
NO_LICENCE = "README.md gives no licence in your name. To give one: `guda assets card {of} --licence NAME`"


def publish_lines(
    card: Card,
    group_set: GroupSet,
    model: str | None,
    *,
    with_model: bool | None = None,
    on_hub: str = "",
    licence: str = "",
) -> Iterator[str]:
    """Make the folder and say in lines what is in it and what is not. model: as it was given."""
    from guda_core.diffusion.cards import in_quotes, typed
    from guda_core.publishing.published import publish
    from guda_core.records import NOT_STATED

    of = f"--set {group_set.id} {typed(model)}"
    made = publish(card, group_set, with_model=with_model, on_hub=on_hub, licence=licence)
    yield f"Ready to publish: {made.folder}"
    for gid, why in made.missing.items():
        yield f"Without '{gid}': {why}"
    for name, why in made.left_out.items():
        yield f"Without {name}: {why}"
    if made.with_model:
        yield f"The model's own files are in it. {STAYS} To take them out: `guda assets card {of} --without-model`"
    elif made.on_hub:
        layout = "" if card.source != "file" else " It must be there as a folder in diffusers' layout, not as one file."
        yield f"Its card says that the model is on the Hub: {made.on_hub}.{layout} {STAYS}"
    elif not made.model_inside:
        yield (
            f"The model itself is not in it. `guda assets card {of} --with-model` puts it in; --model-on-hub "
            "USER/MODEL names the repository where it is."
        )
    unknown = [g.id for g in group_set.groups.values() if NOT_STATED in (g.author, g.licence)]
    if unknown:
        few = ", ".join(unknown[:FEW]) + (f" and {len(unknown) - FEW} more" if len(unknown) > FEW else "")
        yield f"Of these groups, author or licence is not stated: {few}."
    yield LEAVE
    if not made.licence:
        yield NO_LICENCE.format(of=of)
    yield f'Look at its README.md, then: hf upload USER/NAME {in_quotes(str(made.folder))} --delete "*"'
