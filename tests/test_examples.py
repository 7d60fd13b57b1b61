"""Kept examples: what comes back is the picture as it was drawn, so that it can be drawn again."""

from __future__ import annotations

from dataclasses import replace

from guda_core.picture_records import Drawing
from guda_core.records import Query
from guda_core.ui import examples
from guda_core.ui.answer import Answer
from tests.fakes import FakeService

EXAMPLE = examples.Example("rocket", "openmoji", 7, steps=9, guidance=3.5)


def answered(service: FakeService, example: examples.Example = EXAMPLE) -> Answer:
    made = {"seed": example.seed, "steps": example.steps, "guidance": example.guidance}
    *_, query = service.generate(prompt=example.prompt(service.group_set), **made)
    assert isinstance(query, Query)
    found = {a.method: a for a in service.attribute(query, methods=["guda"], effort="quick")}
    return Answer(query, ("guda",), "quick", found)


def test_a_kept_example_knows_how_it_was_drawn():
    service = FakeService()
    answer = answered(service)
    examples.keep(service, EXAMPLE, answer)
    kept = examples.kept(service, EXAMPLE, ("guda",))
    assert kept is not None and kept.query.drawn == answer.query.drawn == Drawing(7, 9, 3.5)
    assert (kept.query.pixels == answer.query.pixels).all() and kept.query.file_hash is None
    assert examples.kept(service, replace(EXAMPLE, seed=8), ("guda",)) is None
