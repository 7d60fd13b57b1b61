"""The screens that explain: the groups and how to make one's own set; what a score means and where it ends."""

from __future__ import annotations

from guda_core.reports.record import LIMITS
from guda_core.service import Service
from guda_core.ui.markup import Html, block, code, heading, link, listed, note, table, text

OWN_SET = (
    (
        (
            "Copy the folder style_groups/emoji to style_groups/NAME and change its group_set.yaml: each group's name, "
            "author, licence with link, source, and five or more descriptors of its look, never its name. Pictures "
            "come from Iconify packages on npm, by name and version; other sources need code."
        ),
        "",
    ),
    ("Check it:", "python -m guda_core groups check --set NAME"),
    (
        "Fetch and render the pictures (only those whose licence allows it):",
        "python -m guda_core groups fetch --set NAME",
    ),
    (
        (
            "Train a model on them (in a copy of the repository, with a GUDA_CACHE of its own: training replaces the "
            "model in assets), or name one of yours by a card in guda_core/diffusion/cards.yaml:"
        ),
        "python -m experiments.train --set NAME",
    ),
    ("Unlearn each group once:", "python -m guda_core unlearn --set NAME"),
    ("Start the app with it:", "GUDA_GROUP_SET=NAME python app.py"),
)
MEANS = (
    "Positive: the model without the group explains the picture worse, so the group contributed.",
    "Near 0: the group made no difference that can be seen. Negative: the model does better without it.",
    (
        "A score may hold the group's offset: what the group gives to any picture, measured on held-out pictures of "
        "the other groups. It is the same for every picture. The Evidence tab shows both parts; where a group gives "
        "no more than that, the sentence above the bars says that no group stands out. Where it was not measured, the "
        "score is the fall alone."
    ),
    (
        "A score in nats is a difference of ELBOs. Pictures differ in how hard they are to explain at all, so compare "
        "the groups of one picture, not one picture's scores with another's."
    ),
    (
        "The interval tells how far other draws of noise could have moved the score. It does not cover the error of "
        "the offset (the Evidence tab tells it), nor the gap between unlearning a group and never having trained "
        "on it; the Benchmarks tab tells of that."
    ),
)
ABSTAINS = (
    ("The first two are not separable", "The 95% interval of their difference includes 0. More effort may help."),
    (
        "No group stands out",
        (
            "The interval of the first group reaches down to 0, or to what the group gives to any picture, and no "
            "other group's lies above both."
        ),
    ),
    (
        "This picture does not look like something this model made",
        (
            "Uploads are checked by a measured rule. The warning stands above the bars, because a counterfactual says "
            "little about a picture that the model could not have made. The rule catches photographs and noise and "
            "lets most drawings by others pass (figures on the Benchmarks tab): no warning does not mean that the "
            "model made it."
        ),
    ),
    ("Unavailable", "A group's adapter is missing, damaged or of another model; the others are scored."),
    ("No score", "A value was not finite, or memory ran out. It is never shown as 0."),
    ("The captions disagree", "Asked for with an upload: other captions lead to another first group."),
)
NOT = (
    "It does not say who owns a picture, nor how much of it comes from whom, nor whether anything was copied.",
    "It speaks of this one model. Another model trained on the same pictures may answer differently.",
    "It compares the groups that are listed here; pictures from elsewhere are not considered.",
)


def draw_groups(service: Service) -> None:
    """What is in, from whom, under which licence, and how to make one's own set."""
    sets = service.group_set
    trained, held = len(sets.train_objects), len(sets.held_out_objects)
    block(
        heading(sets.name)
        + text(
            f"{len(sets.groups)} groups drew the same {trained} objects; the model was trained on those. {held} more "
            "objects are held out for tests and were never trained on. The pictures belong to their authors and are "
            "not part of this app; they were fetched from the packages below."
        )
    )
    rows = [
        (link(g.link, g.name), g.author, link(g.licence_link, g.licence), ", ".join(g.descriptors),
         code("@".join(g.source.values()) or sets.source))
        for g in sets.groups.values()
    ]  # fmt: skip
    head = ("Group", "Drawn by", "Licence", "Words for its look", "Source")
    block(table("Groups, authors and licences", head, rows, css="guda-groups"))
    steps = [Html(f"{text_of} {code(command) if command else ''}") for text_of, command in OWN_SET]
    block(heading("Make your own group set") + listed(steps, "ol"))


def draw_limits(service: Service) -> None:
    """What a score means, what it is not, and when the tool abstains."""
    block(heading("What a score means") + listed(MEANS))
    block(heading("What each method's score means") + listed(f"{m.name}: {m.note}" for m in service.methods().values()))
    block(heading("What it is not") + listed(NOT))
    block(heading("When the tool abstains") + table("When the tool abstains", ("It says", "When"), ABSTAINS))
    block(heading("Written into every report") + listed(LIMITS))
    if service.banner:
        block(note(service.banner))
