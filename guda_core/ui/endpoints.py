"""The app for programs: named endpoints that answer with the same records as the command line, also as MCP tools.

Whatever computes is a generator that tells of its progress first, so that a caller who goes away stops it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, replace
from functools import wraps
from typing import Any, cast

import gradio as gr
import numpy as np

from guda_core.data.images import read_file
from guda_core.errors import ReportError
from guda_core.records import Query
from guda_core.reports import restore
from guda_core.reports.findings import Verdict, differences
from guda_core.reports.read import read_report
from guda_core.reports.replay import replay
from guda_core.reports.two_reports import compare
from guda_core.service import Service, Step, check_ids, main_first
from guda_core.ui import words
from guda_core.ui.answer import Answer
from guda_core.ui.callbacks import explained, refusal, scope_of, whole
from guda_core.ui.connect import COMPUTE
from guda_core.ui.layout import Screen
from guda_core.ui.report_screens import report_name
from guda_core.ui.uploads import offered, only_keep_the_path, uploaded

Json = dict[str, Any]


def _refused(run: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Make every error of a call a plain sentence; texts from outside are escaped."""

    @wraps(run)
    def told(*args: Any) -> Iterator[Any]:
        try:
            yield from run(*args)
        except Exception as e:
            raise refusal(explained(e)) from None

    return told


def _read_whole(run: Callable[..., Any]) -> Callable[..., Any]:
    """A run whose docstring gradio tells whole: of an argument it reads one line, and it ends each line of what is
    returned with a comma."""
    about, _, returns = inspect.cleandoc(run.__doc__ or "").partition("Returns:\n")
    run.__doc__ = re.sub(r"\n {8}", " ", about) + "Returns:\n    " + " ".join(returns.split())
    return run


class Endpoints:
    """The functions behind the endpoints, for one service. Their docstrings are what programs and agents are told."""

    def __init__(self, service: Service) -> None:
        self.service = service

    @_read_whole
    def groups(self) -> Json:
        """Lists the groups of training pictures that attributions are about, with authors, licences and links.

        Returns:
            {"id", "name", "model", "methods": {id: name}, "groups": {id: {"name", "author", "licence", "licence_link",
            "link", "descriptors"}}}.
        """
        sets, shown = self.service.group_set, ("name", "author", "licence", "licence_link", "link", "descriptors")
        groups = {g: {k: getattr(group, k) for k in shown} for g, group in sets.groups.items()}
        methods = {m: info.name for m, info in self.service.methods().items()}
        known = {"id": sets.id, "name": sets.name, "model": self.service.model_name, "methods": methods}
        return {**known, "groups": {g: {**v, "descriptors": list(v["descriptors"])} for g, v in groups.items()}}

    @_read_whole
    def generate(self, prompt: str, seed: int, steps: int, guidance: float) -> Iterator[tuple[np.ndarray | None, Json]]:
        """Lets the model draw a picture. Nothing is scored yet.

        Args:
            prompt: What to draw, for example "rocket, artistic style featuring thick black outline, flat colours". At
                most 2,000 characters.
            seed: 0 to 4294967295. The same seed and options give the same picture.
            steps: Denoising steps, 5 to 50; 25 is enough.
            guidance: Classifier-free guidance, 1 to 8; 2.5 is usual.

        Returns:
            The picture, and {"progress": 0 to 1}, with "pixels_sha256" and "prompt" once it is finished.
        """
        for item in self._drawn(prompt, seed, steps, guidance):
            if isinstance(item, Step):
                yield None, {"progress": item.done / item.steps}
            else:
                yield item.pixels, {"progress": 1.0, "pixels_sha256": item.image_hash, "prompt": item.prompt}

    @_read_whole
    def attribute(self, picture: str, caption: str, methods: list[str], effort: str) -> Iterator[Json]:
        """Asks which groups of training pictures made the model able to make a picture, by a counterfactual.

        A positive score in nats means: without the group, the model explains the picture worse. It holds the group's
        offset where the method has one, the same for every picture (settings.offset, nats). "limits" says what each
        method's score means. Scores are no shares, do not sum to anything and are no legal finding.

        Args:
            picture: An uploaded PNG, JPEG, WebP, AVIF, TIFF or HEIC, up to 25 MB. No web address, no server path.
            caption: What the picture shows; empty asks the model without a caption.
            methods: Ids of methods, as `groups` lists them.
            effort: "quick", "standard" or "full": more effort, narrower intervals; or "every": no early stop.

        Returns:
            {"progress": 0 to 1} while it computes, and the record at the end: {"methods": {id: {"unit", "separable",
            "groups": {id: {"score", "low", "high", "rank", "status", "reason"}}}}, "scope", "limits", ...}; see
            guda_core/reports/report.schema.json.
        """
        query = self.service.prepare(read_file(uploaded(picture)), prompt=caption or "")
        yield from self._record(query, methods, effort)

    @_read_whole
    def generate_and_attribute(
        self, prompt: str, seed: int, steps: int, guidance: float, methods: list[str], effort: str
    ) -> Iterator[Json]:
        """Lets the model draw a picture and asks which groups of training pictures it needed for that.

        Args:
            prompt: What to draw, at most 2,000 characters.
            seed: 0 to 4294967295.
            steps: Denoising steps, 5 to 50.
            guidance: Classifier-free guidance, 1 to 8.
            methods: Ids of methods, as `groups` lists them.
            effort: "quick", "standard", "full" or "every".

        Returns:
            {"progress": 0 to 1} while it computes, and the record at the end, as of `attribute`.
        """
        query = None
        for item in self._drawn(prompt, seed, steps, guidance):
            if isinstance(item, Query):
                query = item
            else:
                yield {"progress": 0.0, "drawn": item.done / item.steps}
        assert query is not None
        yield from self._record(query, methods, effort)

    @_read_whole
    def report(self, picture: str, caption: str, methods: list[str], effort: str) -> Iterator[str | None]:
        """Attributes a picture and gives the report: one zip with figures, hashes and the values behind GUDA's scores.

        Args:
            picture: An uploaded PNG, JPEG, WebP, AVIF, TIFF or HEIC, up to 25 MB.
            caption: What the picture shows; empty asks the model without a caption.
            methods: Ids of methods, as `groups` lists them.
            effort: "quick", "standard", "full" or "every".

        Returns:
            The report's zip, which `replay` and `python -m guda_core replay` compute again. It holds no strip, no maps
            and no training pictures that look alike.
        """
        query = self.service.prepare(read_file(uploaded(picture)), prompt=caption or "")
        answers = []
        for answer in self._scored(query, methods, effort):
            answers = [answer]
            yield None
        yield offered(report_name(answers[0]), answers[0].report(self.service))

    @_read_whole
    def replay(self, report: str) -> Iterator[Json]:
        """Computes a report's answer again and says whether it is the same.

        Args:
            report: The zip of a report.

        Returns:
            {"progress": 0 to 1, "method", "what"} while it computes, and at the end {"outcome": "equal", "within
            tolerance" or "different", "scores", "inputs", "scope", "environment": lists of sentences that say what
            differs; of more than 200, the first 200 and how many more there are}.
        """
        read = read_report(uploaded(report, missing=ReportError(words.NO_REPORT)))
        for item in replay(read, self.service):
            if isinstance(item, Verdict):
                kinds = ("scores", "inputs", "scope", "environment")
                yield {"outcome": item.outcome, **{k: differences(getattr(item, k)) for k in kinds}}
            else:
                yield {"progress": item.progress, "method": item.method, "what": item.what}

    @_read_whole
    def compare(self, first: str, second: str) -> Iterator[Json]:
        """Sets two reports side by side: the same picture, model, groups, settings? Which groups and scores differ?

        Nothing is computed again: `replay` does that. Scores are only subtracted where that means something.

        Args:
            first: The zip of a report.
            second: The zip of another report.

        Returns:
            {"said": sentences, "same": {part: whether both say the same}, "methods": {id: rows of a group each, with
            ranks, scores and "difference" (second minus first)}, "units", "only": {id: "a" or "b"}}, as `guda compare
            --json` writes it.
        """
        missing = ReportError(words.NO_REPORT)
        a, b = (restore.told(read_report(uploaded(path, missing=missing))) for path in (first, second))
        yield compare(a, b).plain()

    def _drawn(self, prompt: str, seed: Any, steps: Any, guidance: float) -> Iterator[Step | Query]:
        made = self.service.generate(prompt=prompt, seed=whole(seed), steps=whole(steps), guidance=guidance)
        with closing(cast(Any, made)):
            yield from made

    def _scored(self, query: Query, methods: list[str], effort: str) -> Iterator[Answer]:
        """The answer as it refines, with its scope from the first one on."""
        check_ids(methods)
        asked = tuple(m for m in main_first(self.service.methods()) if m in methods)
        answer = Answer(query, asked, effort)
        stream = self.service.attribute(query, methods=methods, effort=effort)
        with closing(cast(Any, stream)):
            for a in stream:
                scope = answer.scope or scope_of(self.service, query)
                answer = replace(answer, scope=scope, found={**answer.found, a.method: a})
                yield answer

    def _record(self, query: Query, methods: list[str], effort: str) -> Iterator[Json]:
        answer = None
        for answer in self._scored(query, methods, effort):
            done = [answer.found[m].progress if m in answer.found else 0.0 for m in answer.methods]
            yield {"progress": min(done)}
        assert answer is not None
        scope = asdict(answer.scope) if answer.scope is not None else None
        yield {**answer.record(self.service), "scope": scope, "progress": 1.0}


def connect(s: Screen, service: Service) -> None:
    """Name the endpoints. Inputs are the page's own components, so that types, choices and defaults are the same."""
    e = Endpoints(service)
    drawing, options = [s.prompt, s.seed, s.steps, s.guidance], [s.methods, s.effort]
    with gr.Column(visible=False):
        start = gr.Button()
        picture, record = gr.Image(label="picture", format="png"), gr.JSON(label="record")
        file, zipped = gr.File(label="report"), gr.File(label="report", type="filepath")
        other = gr.File(label="another report", type="filepath")
        for part in (zipped, other):
            only_keep_the_path(part)
    asked = (
        (e.generate, drawing, [picture, record]),
        (e.attribute, [s.upload, s.caption, *options], record),
        (e.generate_and_attribute, [*drawing, *options], record),
        (e.report, [s.upload, s.caption, *options], file),
        (e.replay, zipped, record),
    )
    for run, inputs, outputs in asked:
        start.click(_refused(run), inputs, outputs, api_name=run.__name__, api_visibility="public", **COMPUTE)
    reading: dict[str, Any] = {"concurrency_id": "reading", "concurrency_limit": 2}
    start.click(
        _refused(e.compare), [zipped, other], record, api_name="compare", api_visibility="public", **reading
    )  # fmt: skip
    start.click(e.groups, None, record, api_name="groups", api_visibility="public", concurrency_limit=4)
