"""The screens that explain: the groups and how to make one's own set; what a score means and where it ends."""

from __future__ import annotations

import gradio as gr

from guda_core.answers.markup import Html, code, heading, link, listed, note, table, text
from guda_core.records import Group
from guda_core.reports.record import FROM_NPM, LIMITS
from guda_core.service import Service
from guda_core.ui.blocks import QUICK, block
from guda_core.ui.samples import Samples

OWN_SET = (
    (
        "Put the pictures of each group into a folder of its own, and make a group set of them:",
        "guda groups new FOLDER --name NAME",
    ),
    (
        "Write down whose pictures they are, in the file that it names. Check what will be learned:",
        "guda groups check NAME",
    ),
    ("Unlearn each group once, from the model that was trained on them:", "guda unlearn --set NAME --model MODEL"),
    ("Start the app with them:", "guda app --set NAME --model MODEL"),
    ("Publish the adapters, without the pictures. A Space then needs one variable:", "GUDA_HOME=hub:USER/NAME"),
)
MEANS = (
    "Positive: the model without the group explains the picture worse, so the group contributed.",
    "Near 0: the group made no difference that can be seen. Negative: the model does better without it.",
    (
        "A score has one part or two. The drop is measured on this picture. The offset, if it is known, is added for "
        "every picture: a correction learned from the drops on held-out pictures of the other groups. It is their "
        "mean, times a weight. So it may come mostly from one group that looks alike."
    ),
    (
        "The drop already holds some of what the group gives in general: it is often above 0 on other groups' pictures "
        "too. So a drop above 0 alone does not say that this picture needs the group in particular."
    ),
    (
        "With an offset, a score may be above 0 though the drop is not. A group stands out if both are clearly above "
        "0. The bars and the table show both parts. Without an offset, the score is the drop."
    ),
    (
        "A score in nats is a difference of ELBOs, to the model that unlearned the group. One that was trained again "
        "without it loses more: trust the order, not the size. Some pictures are harder to explain than others. So "
        "compare the groups of one picture. Do not compare the scores of two pictures."
    ),
    (
        "The interval says how far other draws of noise could have moved the score, and how sure the offset is. It "
        "does not cover the gap between unlearning a group and never having trained on it (see the Benchmarks tab)."
    ),
)
ABSTAINS = (
    ("Two groups cannot be told apart", "The 95% interval of their difference includes 0. More effort may help."),
    (
        "No group stands out",
        "The drop of the first group, or its whole score, is not clearly above 0, and no other group stands out.",
    ),
    (
        "This model could not have made this picture: no attribution",
        (
            "Where a rule was measured for the model, uploads are checked by it. A score says little about a picture "
            "that the model could not have made. How often the rule errs, the Benchmarks tab shows. No warning does "
            "not mean that the model made the picture. Without a rule, the page says that it was not checked."
        ),
    ),
    ("Unavailable", "A group's adapter is missing, damaged or of another model. The other groups are scored."),
    ("No score", "A value was not finite, or memory ran out. It is never shown as 0."),
    ("The captions disagree", "For uploads, when asked for: another caption gives another first group."),
)
NOT = (
    "It does not say who owns a picture, how much of it comes from whom, or whether anything was copied.",
    "It is about this one model. Another model that was trained on the same pictures may answer differently.",
    "It compares the groups that are listed here. It does not consider pictures from elsewhere.",
)


def draw_groups(service: Service, tab: gr.Tab) -> None:
    """What is in, with a few pictures, from whom, under which licence, and how to make one's own set. tab: of this
    screen; the pictures are read when it is opened."""
    sets = service.group_set
    trained, held = len(sets.train_objects), len(sets.held_out_objects)
    said = f"{len(sets.groups)} groups of training pictures."
    if trained:
        said = (
            f"{len(sets.groups)} groups drew the same {trained} objects; the model was trained on those. {held} more "
            "objects are held out for tests and were never trained on."
        )
    block(heading(sets.name) + text(f"{said} The pictures belong to their authors and are not part of this app."))
    packages = any(_package(g) for g in sets.groups.values())
    pictures = block(elem_classes="guda-maybe")
    tab.select(Samples(service).html, None, pictures, **QUICK)
    rows = [
        (
            link(g.link, g.name),
            g.author,
            link(g.licence_link, g.licence),
            ", ".join(g.descriptors) or g.phrase or "-",
            *((code(_package(g)),) if packages else ()),
        )
        for g in sets.groups.values()
    ]
    head = ("Group", "Pictures by", "Licence", "Words in captions", *(("Package",) if packages else ()))
    block(table("Groups, authors and licences", head, rows, css="guda-groups"))
    steps = [Html(f"{text_of} {code(command) if command else ''}") for text_of, command in OWN_SET]
    block(heading("Make your own group set") + listed(steps, "ol"))


def _package(group: Group) -> str:
    """Where everybody can fetch the group's pictures, "" where nobody can: a folder's name is private."""
    return "@".join(str(group.source[k]) for k in FROM_NPM if k in group.source)


def draw_limits(service: Service) -> None:
    """What a score means, what it is not, and when the tool abstains."""
    block(heading("What a score means") + listed(MEANS))
    block(heading("What each method's score means") + listed(f"{m.name}: {m.note}" for m in service.methods().values()))
    block(heading("What it is not") + listed(NOT))
    block(heading("When the tool abstains") + table("When the tool abstains", ("It says", "When"), ABSTAINS))
    block(heading("Written into every report") + listed(LIMITS))
    if service.banner:
        block(note(service.banner))
