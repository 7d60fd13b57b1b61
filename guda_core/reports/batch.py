"""Attributes many pictures: a report for each, one table of all scores, and one record of the batch.

    reports/<name>-<hash>.zip  the report of one picture
    scores.csv                 a row per picture, method and group
    batch.json                 hashes, settings, refused files and why; written last, so its presence means "complete"

A batch that was interrupted goes on: a picture whose report is whole, and names the same bytes, prompt, settings,
model, adapters, CLIP, scope, versions and hardware, is finished. One bad picture never stops the rest.
"""

from __future__ import annotations

import hashlib
import json
import logging
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from guda_core.data.images import MAX_BYTES, read_file
from guda_core.data.left_behind import PassedOver, is_left_behind, is_no_picture
from guda_core.data.own.tables import csv_rows
from guda_core.errors import DataError, GudaError, OptionError, ReportError, lacked
from guda_core.held_files import remove_file
from guda_core.paths import is_there
from guda_core.records import Attribution, Provenance, Query, Scope
from guda_core.reports import bundle
from guda_core.reports.bundle import COLUMNS, SCORES
from guda_core.reports.read import read_report
from guda_core.reports.record import circumstances, context, limits
from guda_core.service import Service, check_methods, default_methods, find_effort, scope_or_why
from guda_core.versions import today

log = logging.getLogger(__name__)
FORMAT = 1
BATCH, REPORTS, PROMPTS = "batch.json", "reports", "prompts.csv"
MAX_PROMPTS = 10_000_000  # bytes
FAULT = "An unexpected fault; see the log."


@dataclass(frozen=True)
class Progress:
    """The file at work, its own fraction done in [0, 1], and `done` of `files`. state: one word of what happened."""

    file: str
    fraction: float
    done: int
    files: int
    state: str  # "working", "finished", "kept" (from an earlier run) or "refused"


@dataclass(frozen=True)
class Summary:
    """How a batch ended. refused: file -> why."""

    finished: int
    kept: int
    refused: Mapping[str, str]


@dataclass(frozen=True)
class BatchConfig:
    """effort and methods of every picture, () for the default methods. prompts: a CSV with the columns file and prompt;
    where there is none, prompt is that of every picture."""

    effort: str = "standard"
    methods: tuple[str, ...] = ()
    prompts: Path | None = None
    prompt: str = ""


def shown(path: Path) -> str:
    """A file's name as text; bytes that are no text are escaped."""
    return path.name.encode("utf-8", "backslashreplace").decode()


def pictures(sources: Sequence[Path], prompts: Path | None, passed: PassedOver) -> list[Path]:
    """The files that are named, and those of the folders that are named, by name; without the prompts, hidden ones and
    what systems leave behind. Folders within a folder are not entered. These, and files in a folder that are no
    pictures by their endings, are counted in `passed`.

    Raises:
        OptionError: there is no such file or folder, nothing in it, or two files have one name: rows and reports are
            named after it.
    """
    given = prompts.resolve() if prompts is not None else None
    files: dict[Path, Path] = {}
    for source in sources:
        if not is_there(source):
            raise OptionError(f"There is no folder '{source}'.")
        inside = sorted(source.iterdir()) if source.is_dir() else [source]
        seen = [p for p in inside if p == source or not is_left_behind(p.name)]
        there = [p for p in seen if p.is_file() and p.resolve() != given]
        kept = [p for p in there if p == source or not is_no_picture(p.name)]
        passed.files += len(there) - len(kept)
        passed.folders += sum(p.is_dir() for p in seen)
        files |= {p.resolve(): p for p in kept}
        if not kept:
            raise OptionError(f"There are no pictures in '{source}'. {passed}".rstrip())
    if not files:
        raise OptionError(f"There are no pictures in '{sources[0]}'.")
    named: dict[str, Path] = {}
    for path in files.values():
        if path.name in named:
            raise OptionError(f"Two pictures are called '{path.name}': {named[path.name]} and {path}. Rename one.")
        named[path.name] = path
    return [named[name] for name in sorted(named)]


def read_prompts(path: Path, files: Sequence[Path]) -> dict[str, str]:
    """File name -> prompt from a CSV with the columns file and prompt; files that it does not name have none.
    A letter with an accent may be one character in it and two on the disk, or the other way (Unicode's NFC and NFD).

    Raises:
        OptionError: it cannot be read, lacks a column, names a file twice or one that is not in the folder.
    """
    try:
        if path.stat().st_size > MAX_PROMPTS:
            raise OptionError(f"{path.name} is larger than {MAX_PROMPTS // 10**6} MB.")
        with path.open(encoding="utf-8-sig") as f:
            separator, rows = csv_rows(f, path.name)
            _, columns = next(rows, (0, []))
            listed = [(line, row) for line, row in rows if row]
    except OSError as e:
        raise OptionError(f"{path} cannot be read ({e.strerror}).") from e
    except ValueError as e:
        raise OptionError(f"{path.name} is no CSV in UTF-8: {e}.") from e
    except DataError as e:
        raise OptionError(str(e)) from e
    if not columns.count("file") == columns.count("prompt") == 1:
        raise OptionError(f"{path.name} must begin with a line that names the columns file and prompt, once each.")
    known, out = {shown(p) for p in files}, {}
    same = {unicodedata.normalize("NFC", name): name for name in known}
    for line, row in listed:
        if len(row) > len(columns):
            raise OptionError(
                f"{path.name}, line {line} has more columns than the first line. Put a prompt that holds '{separator}' "
                "in double quotes."
            )
        said = dict(zip(columns, row, strict=False))
        name, prompt = said.get("file"), said.get("prompt")
        if name is None or prompt is None:
            raise OptionError(f"{path.name}, line {line}: a file and a prompt are needed.")
        name = name if name in known else same.get(unicodedata.normalize("NFC", name), name)
        if name in out or name not in known:
            why = "is named twice" if name in out else "is not in the folder"
            raise OptionError(f"{path.name}, line {line}: '{name}' {why}.")
        out[name] = prompt
    return out


def report_path(out: Path, name: str) -> Path:
    """Where the report of a file goes."""
    return out / REPORTS / report_name(name)


def report_name(name: str) -> str:
    """What the report of a file is called: readable, short, and another for every name, whatever its letters' case."""
    return f"{name[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.zip"


def _kept(
    path: Path, wanted: Mapping[str, Any], provenance: Provenance, scope: Callable[[], Scope]
) -> dict[str, Any] | None:
    """The record of a finished report that has this context and was computed from the same things; None when it must be
    made (again). scope: judges the picture now; asked only where a rule is here and the report has no verdict."""
    if not path.is_file():
        return None
    try:
        record = dict(read_report(path).record)
    except ReportError as e:
        log.warning("%s is made again. %s", path.name, e)
        return None
    found = [record["methods"].get(m, {}) for m in wanted["settings"]["methods"]]
    whole = all(a.get("progress") == 1 and not _lacks(a) for a in found)
    same = whole and {k: record[k] for k in wanted} == wanted and _used(record, provenance)
    if not same or (rule := _judged_by(record)) == provenance.scope_sha256:
        return record if same else None
    # the rule may have none to give on this picture, then as now
    return record if not rule and scope().verdict == "not assessed" else None


def _lacks(answer: Mapping[str, Any]) -> bool:
    """Whether a group has no score for too little memory, of which there may be enough now."""
    return any(lacked(g.get("reason") or "") for g in answer.get("groups", {}).values())


def _judged_by(record: Mapping[str, Any]) -> str:
    """The hash of the scope's rule that the verdict is by; "" where nothing was assessed."""
    return str(((record["scope"] or {}).get("settings") or {}).get("sha256") or "")


def _used(record: Mapping[str, Any], provenance: Provenance) -> bool:
    """Whether its methods' answers are computed from just what is here now."""
    found = record["methods"]
    return all(_same(found[m]["settings"], provenance.made_from.get(m, {})) for m in found)


def _same(settings: Mapping[str, Any], made_from: Mapping[str, Any]) -> bool:
    """Whether settings name all of `made_from`. What is empty may be left out; of parts, each is looked into."""
    for key, now in made_from.items():
        then = settings.get(key)
        if isinstance(now, Mapping) and any(isinstance(v, Mapping) for v in now.values()):
            if not all(_same((then or {}).get(k, {}), v) for k, v in now.items()):
                return False
        elif (then or None) != (now or None):
            return False
    return True


class Batch:
    """Some pictures and what one service says of them."""

    def __init__(self, service: Service, sources: Path | Sequence[Path], out: Path, config: BatchConfig) -> None:
        """Check everything that could stop the batch before the first picture is scored.

        sources: a folder of pictures, or several files and folders.

        Raises:
            OptionError: no such file, folder, method or effort, or the prompts are wrong.
        """
        self.service, self.out, self.config = service, out, config
        named = [sources] if isinstance(sources, Path) else list(sources)
        self.methods = list(config.methods) or default_methods(service.methods())
        self.provenance = service.provenance()
        check_methods(self.methods, service.methods(), self.provenance.not_offered)
        find_effort(config.effort)
        if out.resolve() in [p.resolve() for p in named if p.is_dir()]:
            raise OptionError("The results must go into another folder than that of the pictures.")
        self.passed = PassedOver()
        self.files = pictures(named, config.prompts, self.passed)
        self.prompts = read_prompts(config.prompts, self.files) if config.prompts is not None else {}
        data = config.prompts.read_bytes() if config.prompts is not None else None
        self.prompts_sha256 = hashlib.sha256(data).hexdigest() if data is not None else None
        self.settings: dict[str, Any] = {"effort": config.effort, "methods": self.methods}

    def run(self) -> Iterator[Progress | Summary]:
        """Work through the folder; yields progress, and the Summary last."""
        entries: list[dict[str, Any]] = []
        rows: list[dict[str, Any]] = []
        refused: list[dict[str, Any]] = []
        kept = 0
        bundle.write(self.out / BATCH, b"")  # also tells a place that cannot be written to before anything is scored
        remove_file(self.out / BATCH)
        for i, path in enumerate(self.files):
            name, record, state = shown(path), None, "finished"
            at = (i, len(self.files))
            yield Progress(name, 0.0, *at, "working")
            try:
                query = self.service.prepare(read_file(path), prompt=self.prompts.get(name, self.config.prompt))
                wanted = self._context(query)
                judge = partial(scope_or_why, self.service, query)
                record = _kept(report_path(self.out, name), wanted, self.provenance, judge)
                if record is not None:
                    state, kept = "kept", kept + 1
                else:
                    for item in self._score(query, report_path(self.out, name)):
                        yield Progress(name, item.progress, *at, "working")
                    record = dict(read_report(report_path(self.out, name)).record)
            except ReportError:
                raise  # nothing can be written any more
            except GudaError as e:
                refused.append(self._refusal(path, str(e)))
            except Exception as e:  # whatever one picture does to the libraries, the others are still wanted
                log.exception("%s failed", name)
                refused.append(self._refusal(path, f"{FAULT} ({type(e).__name__})"))
            if record is None:
                yield Progress(name, 1.0, i + 1, len(self.files), "refused")
                continue
            entries.append(self._entry(name, record))
            rows += [{"file": name, **r} for r in bundle.score_rows(record)]
            yield Progress(name, 1.0, i + 1, len(self.files), state)
        self._finish(entries, rows, refused)
        yield Summary(len(entries), kept, {r["file"]: r["reason"] for r in refused})

    def _context(self, query: Query) -> dict[str, Any]:
        made = context(query, self.service.group_set, provenance=self.provenance, settings=self.settings)
        return json.loads(json.dumps(made))

    def _score(self, query: Query, path: Path) -> Iterator[Attribution]:
        """Score one picture, yielding as it refines, and write its report."""
        final: dict[str, Attribution] = {}
        for a in self.service.attribute(query, **self.settings):
            final[a.method] = a
            yield a
        made = bundle.make(
            query,
            list(final.values()),
            self.service.group_set,
            provenance=self.provenance,
            settings=self.settings,
            scope=scope_or_why(self.service, query).plain(),
        )
        bundle.write(path, made)

    def _refusal(self, path: Path, reason: str) -> dict[str, Any]:
        """A refused file, its hash when it is small enough to be read, and why."""
        try:
            small = path.stat().st_size <= MAX_BYTES
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if small else None
        except OSError:
            sha256 = None
        return {"file": shown(path), "file_sha256": sha256, "reason": reason}

    def _entry(self, name: str, record: Mapping[str, Any]) -> dict[str, Any]:
        path = report_path(self.out, name)
        return {
            "file": name,
            "file_sha256": record["picture"]["file_sha256"],
            "pixels_sha256": record["picture"]["pixels_sha256"],
            "prompt": record["picture"]["prompt"],
            "scope": (record["scope"] or {}).get("verdict", "not assessed"),
            "report": path.relative_to(self.out).as_posix(),
            "report_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }

    def _folder(self) -> str | None:
        """Name of the folder that holds all pictures; None when they come from several."""
        folders = {p.parent.resolve() for p in self.files}
        return shown(folders.pop()) if len(folders) == 1 else None

    def _finish(self, entries: list[dict[str, Any]], rows: list[dict[str, Any]], refused: list[dict[str, Any]]) -> None:
        table = bundle.csv_text(("file", *COLUMNS), rows).encode()
        bundle.write(self.out / SCORES, table)
        shared = circumstances(self.service.group_set, provenance=self.provenance, settings=self.settings)
        record = {
            "format": FORMAT,
            "date": today(),
            "folder": self._folder(),
            "prompts_sha256": self.prompts_sha256,
            **shared,
            "pictures": entries,
            "refused": refused,
            "files": {SCORES: hashlib.sha256(table).hexdigest()},
            "limits": limits(self.methods, self.provenance),
        }
        bundle.write(self.out / BATCH, bundle.json_text(record).encode())
