"""Questions to a table of results, by DuckDB: only the columns that a question needs are read."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import TYPE_CHECKING, Any, Self, TypeVar

from guda_core.errors import GudaError, OptionError, ReportError
from guda_core.given import check_texts, count, place_of
from guda_core.scoring import caveats, places
from guda_core.scoring.listing import as_text, connect, exact, quoted
from guda_core.scoring.own_parts import NothingYetError, OwnParts
from guda_core.scoring.scorer import MADE_FROM, made_from_in
from guda_core.scoring.summary import Silent, Summary, offsets, silent_of, summary_of
from guda_core.scoring.table_rows import COLUMNS, FAILED, REFUSED, Row
from guda_core.scoring.table_run import begun

if TYPE_CHECKING:
    import pandas

log = logging.getLogger(__name__)
T = TypeVar("T")
STATUSES = ("ok", "unavailable", "no_score", REFUSED, FAILED)
SCOPES = ("in scope", "out of scope", "not assessed")
ORDERS = {  # name -> how rows are sorted
    "score": "score DESC NULLS LAST, picture, method, rank",
    "lowest score": "score ASC NULLS LAST, picture, method, rank",
    "picture": "picture, method, rank NULLS LAST, group_id",
}
UNNAMED = {"rank": None, "group_name": None, "score": None, "low": None, "high": None}
LATE_S, LOOK_S = 60.0, 2.0
SEEN_LATE = "This disk shows the others late. `guda results FOLDER --page PAGE` writes the summary again."
FIRST = (
    "(rank = 1 OR method IS NULL OR (rank IS NULL AND (picture, method) NOT IN "
    "(SELECT (picture, method) FROM scores WHERE rank = 1)))"
)


@dataclass(frozen=True)
class Asked:
    """Which rows are wanted. None, False and "" leave nothing out.

    group: id or name. text: part of the picture's name. first: only those of rank 1, and of a picture without a score
    by a method all that say why.
    """

    group: str = ""
    method: str = ""
    status: str = ""
    scope: str = ""
    picture: str = ""
    text: str = ""
    first: bool = False

    def unasked(self, row: Row) -> Row:
        """The row as people are shown it: the first group of a picture that is out of scope is not named."""
        return {**row, **UNNAMED} if self.first and row["scope"] == "out of scope" else row

    @property
    def order(self) -> str:
        """How these rows are best sorted, of ORDERS."""
        return "score" if self.group and not self.picture else "picture"

    @property
    def names_some(self) -> bool:
        """Whether rows are left out."""
        return self != Asked()

    def where(self) -> tuple[str, list[Any]]:
        """(condition, its values) of a query."""
        found: list[tuple[str, list[Any]]] = [
            ("(group_id = ? OR group_name = ?)", [self.group, self.group] if self.group else []),
            ("method = ?", [self.method] if self.method else []),
            ("status = ?", [self.status] if self.status else []),
            ("scope = ?", [self.scope] if self.scope else []),
            ("picture = ?", [self.picture] if self.picture else []),
            _holds(self.text),
        ]
        used = [(part, values) for part, values in found if values]
        parts_ = [part for part, _ in used] + ([FIRST] if self.first else [])
        return " AND ".join(parts_) or "true", [as_text(v) for _, values in used for v in values]


def _holds(text: str) -> tuple[str, list[Any]]:
    """(condition, its values) of names that hold a text, in either spelling of accents (`Results.spelled`)."""
    plain = "contains(lower(picture), lower(?))"
    if not text:
        return plain, []
    if text.isascii():
        return plain, [text]
    return f"({plain} OR contains(lower(nfc_normalize(picture)), lower(nfc_normalize(?))))", [text, text]


def all_there(folder: str, pictures: int) -> Results:
    """The results of a run, once so many pictures have rows in them. A shared disk shows what other machines wrote up
    to a minute late; after that, what lacks is said.

    Raises:
        OptionError: nothing is there then either, or the results are damaged.
        ReportError: they cannot be read then either.
    """
    until = time.monotonic() + LATE_S
    while True:
        late = time.monotonic() >= until
        try:
            with ExitStack() as stack:
                found = stack.enter_context(Results(folder))
                there = found.query("SELECT count(DISTINCT picture) FROM scores")[0][0]
                if there >= pictures or late:
                    stack.pop_all()
                    break
        except (NothingYetError, ReportError):
            if late:
                raise
        time.sleep(LOOK_S)
    if there < pictures:
        log.warning("Rows of %d pictures are seen, of %d that were made. %s", there, pictures, SEEN_LATE)
    return found


class Results:
    """The folder of a table, to be asked. Parts that are not whole, or not of this table, are left out and counted in
    `cut`. Answers are of the files as they are when it is asked. The end of a `with` closes them."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """folder: its path or URL. Raises OptionError: it holds no results, none yet, or those of a newer version."""
        named = place_of(folder, "folder")
        self.folder = places.absolute(named)
        if begun(self.folder) is None:
            raise OptionError(
                f"There are no results in '{named}'. Make some with `guda attribute FOLDER --table --out {named}` (in "
                "Python: guda_core.attribute_many)."
            )
        self._connection = connect()
        places.register(self._connection, self.folder)
        self._parts = OwnParts(self.folder, self._connection, self.made_from)
        self._looking, self._held, self._closed = RLock(), 0, False
        self._look()

    def __repr__(self) -> str:
        return f"Results({self.folder!r})"

    @property
    def cut(self) -> int:
        """Parts that are left out."""
        return self._parts.cut

    def _look(self) -> None:
        """Find the parts, again where files of the table changed: it may go on, or be made anew.

        Raises:
            OptionError: there is no table any more, or nothing of it is finished yet.
        """
        with self._looking:
            if self._closed:
                raise OptionError(f"These results are closed. Open them again: Results({self.folder!r}).")
            if self._held:
                return
            with self._told():
                if not self._parts.look():
                    return
            listed = ", ".join(quoted(exact(p)) for p in self._parts.good)
            view = f"CREATE OR REPLACE VIEW scores AS SELECT {', '.join(COLUMNS)} FROM read_parquet([{listed}])"
            try:
                with self._told():
                    self._connection.cursor().execute(view)
            except BaseException:
                self._parts.forget()  # else the next question would be answered from the view of before
                raise

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block no parts come or go: all answers are of those of its beginning. A part that a run writes
        anew meanwhile shows its new rows. Threads wait for each other."""
        with self._looking:
            self._look()
            self._held += 1
            try:
                yield
            finally:
                self._held -= 1

    def close(self) -> None:
        """Let go of the files. Nothing can be asked afterwards."""
        self._closed = True
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def query(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of one SELECT in DuckDB's SQL of the view `scores`, whose columns are `table_rows.COLUMNS`.

        values: those of each ? in turn, or name -> value of each $name.

        Raises:
            OptionError: it is no SELECT, cannot be answered, or the values are others than it asks for.
            ReportError: the results cannot be read.
        """
        return self._asked(sql, values, lambda found: found.fetchall())

    def frame(
        self, sql: str = "SELECT * FROM scores", values: Sequence[Any] | Mapping[str, Any] = ()
    ) -> pandas.DataFrame:
        """The same as a DataFrame of pandas, with the columns' names. Raises as `query` does."""
        return self._asked(sql, values, lambda found: found.df())

    def _asked(self, sql: str, values: Sequence[Any] | Mapping[str, Any], take: Callable[[Any], T]) -> T:
        import duckdb

        if not isinstance(sql, str):
            raise OptionError(f"A query is a text; got {type(sql).__name__}.")
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            raise OptionError(f"values must be a list, or a mapping of names; got {type(values).__name__}.")
        given = dict(values) if isinstance(values, Mapping) else list(values)
        self._look()
        with self._told():
            try:
                cursor = self._connection.cursor()
                found = cursor.extract_statements(as_text(sql))
                if [s.type for s in found] != [duckdb.StatementType.SELECT]:
                    raise OptionError(
                        "A table of scores is asked by one SELECT, and by nothing else. (A PIVOT must name its values: "
                        "PIVOT scores ON method IN ('guda', 'clip') ...)"
                    )
                return take(cursor.execute(found[0], given))
            except duckdb.Error as e:
                is_theirs = isinstance(e, duckdb.ProgrammingError | duckdb.DataError | duckdb.NotSupportedError)
                if not is_theirs and "No files found" not in str(e):
                    raise
                if any(places.name_of(p) in str(e) for p in self._parts.good):  # one was damaged since the look
                    raise
                raise OptionError(f"This cannot be asked of a table of scores: {e}") from e

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What DuckDB, a disk or a store says within the block becomes a sentence."""
        import duckdb

        try:
            yield
        except GudaError:
            raise
        except Exception as e:
            if not isinstance(e, duckdb.Error | OSError) and not places.is_url(self.folder):
                raise  # libraries of stores raise kinds of their own where a connection is lost
            raise ReportError(
                f"The results in '{self.folder}' cannot be read: run the command that made them again, which mends "
                f"them. {e}"
            ) from e

    def made_from(self) -> dict[str, Any]:
        """All that decides the scores: model, adapters, settings, versions. Raises ReportError: it is damaged."""
        try:
            return made_from_in(places.read(places.joined(self.folder, MADE_FROM)))
        except (OSError, ValueError) as e:
            raise ReportError(f"'{self.folder}' lacks a whole {MADE_FROM}. Run the command that made it again.") from e

    def caveats(self) -> list[str]:
        """What has to be said beside these scores, such as that adapters were older than the pictures."""
        return caveats.read(self.folder)

    def find(
        self,
        *,
        group: str = "",
        method: str = "",
        status: str = "",
        scope: str = "",
        picture: str = "",
        text: str = "",
        first: bool = False,
        order: str = "",
        limit: int | None = None,
    ) -> list[Row]:
        """The wanted rows; what is not named leaves nothing out.

        Args:
            group: id or name. method: id. status: one of STATUSES. scope: one of SCOPES. picture: its name.
            text: part of the picture's name.
            first: only those of rank 1, and of a picture without a score by a method all that say why.
            order: one of ORDERS; default: "score" where a group is named, else "picture".
            limit: at most so many rows.

        Returns:
            Dicts of the columns (`table_rows.COLUMNS`).

        Raises:
            OptionError: these results have no such picture, group or method, or there is no such status, scope or
                order.
        """
        texts = {"group": group, "method": method, "status": status, "scope": scope, "picture": picture, "text": text}
        check_texts({**texts, "order": order})
        if (most := count(limit, "limit")) is not None and most < 0:
            raise OptionError(f"limit must be at least 0; got {most}.")
        with self.at_once():
            name = self.spelled(picture) if picture else ""
            asked = Asked(group, method, status, scope, name, text, first)
            self.check(asked)
            return self.rows(asked, order=order or asked.order, limit=most)

    def check(self, asked: Asked) -> None:
        """Raises OptionError: these results have no such picture, group or method, or there is no such status or scope,
        so that there can be no rows."""
        if asked.picture and not self.count(Asked(picture=asked.picture)):
            raise OptionError(f"There is no picture '{asked.picture}' in these results.")
        groups = self.groups() if asked.group else {}
        methods = self.methods() if asked.method else []
        for what, given, known, shown in (
            ("status", asked.status, STATUSES, STATUSES),
            ("scope", asked.scope, SCOPES, SCOPES),
            ("group", asked.group, {*groups, *groups.values()}, list(groups)),
            ("method", asked.method, methods, methods),
        ):
            if given and given not in known:
                listed = ", ".join(shown) or "none: nothing has scores"
                raise OptionError(f"There is no {what} '{given}' in these results. Known: {listed}.")

    def count(self, asked: Asked) -> int:
        """How many rows are wanted."""
        where, values = asked.where()
        return self.query(f"SELECT count(*) FROM scores WHERE {where}", values)[0][0]

    def rows(self, asked: Asked, *, order: str = "picture", limit: int | None = None, start: int = 0) -> list[Row]:
        """Wanted rows from `start` on, at most `limit`. order: one of ORDERS. Raises OptionError: there is no such."""
        if order not in ORDERS:
            raise OptionError(f"There is no order '{order}'. Known: {', '.join(ORDERS)}.")
        where, values = asked.where()
        cut = ("" if limit is None else f" LIMIT {int(limit)}") + f" OFFSET {int(start)}"
        found = self.query(f"SELECT * FROM scores WHERE {where} ORDER BY {ORDERS[order]}{cut}", values)
        return [dict(zip(COLUMNS, row, strict=True)) for row in found]

    def all_rows(self, asked: Asked, *, order: str = "picture", chunk: int = 10_000) -> Iterator[list[Row]]:
        """Every wanted row, in an order of ORDERS, in lists of at most `chunk`: no more are held at once."""
        where, values = asked.where()
        query = f"SELECT * FROM scores WHERE {where} ORDER BY {ORDERS[order]}"
        self._look()
        with self._told():
            found = self._connection.cursor().execute(query, values)
        while True:
            with self._told():
                rows = found.fetchmany(chunk)
            if not rows:
                return
            yield [dict(zip(COLUMNS, row, strict=True)) for row in rows]

    def spelled(self, picture: str) -> str:
        """A picture's name as it stands in these results. Systems write a letter with an accent as one character or as
        two (Unicode's NFC and NFD). A name that is not there either way is given as it is."""
        if self.count(Asked(picture=picture)):
            return picture
        query = "SELECT picture FROM scores WHERE nfc_normalize(picture) = nfc_normalize(?) ORDER BY 1 LIMIT 1"
        found = self.query(query, [as_text(picture)])
        return found[0][0] if found else picture

    def of_picture(self, picture: str) -> list[Row]:
        """All rows of a picture, whose name may be spelled otherwise (`spelled`)."""
        return self.rows(Asked(picture=picture)) or self.rows(Asked(picture=self.spelled(picture)))

    def groups(self) -> dict[str, str]:
        """Group id -> name, of all groups that have rows."""
        query = "SELECT DISTINCT group_id, group_name FROM scores WHERE group_id IS NOT NULL ORDER BY 1"
        return {str(g): str(name) for g, name in self.query(query)}

    def methods(self) -> list[str]:
        """Ids of the methods that have rows, as they were asked for."""
        found = [m for (m,) in self.query("SELECT DISTINCT method FROM scores WHERE method IS NOT NULL ORDER BY 1")]
        asked = self.made_from()["settings"]["methods"]
        return sorted(found, key=lambda m: asked.index(m) if m in asked else len(asked))

    def silent(self) -> dict[str, Silent]:
        """Method -> how many pictures lack scores by it, and why; one that has all is left out."""
        return silent_of(self.query)

    def summary(self) -> Summary:
        """What the table says as a whole."""
        with self.at_once():
            made, told = self.made_from(), self.caveats()
            return summary_of(self.query, self.methods(), made, cut=self.cut, caveats=told)

    def offsets(self) -> dict[str, dict[str, float]]:
        """Method -> group id -> its offset in nats, of what the table was made from."""
        out: dict[str, dict[str, float]] = {}
        for m, g, value in offsets(self.made_from()):
            out.setdefault(m, {})[g] = value
        return out
