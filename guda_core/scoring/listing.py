"""Which pictures are asked about: the files of folders, single files, or the rows of a table, kept without pixels.

Every picture belongs to one part of the results: md5(name) mod parts. So it is found again when others come or go, and
a run that goes on, with any number of workers, works on the same parts. The list is one file in the results, called by
what is in it (`Listing.name`), of which a worker reads what belongs to its part.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from guda_core.data.left_behind import PassedOver, is_left_behind, is_no_picture
from guda_core.data.own.data_sets import TEXTS
from guda_core.data.own.tables import csv_rows
from guda_core.errors import DataError, OptionError, ReportError
from guda_core.scoring import data_set_rows, places

ASKED = "asked"  # how the names of lists begin
LIST = re.compile(rf"{ASKED}-\d+-\d+\.parquet")
PARQUET = ".parquet"
TABLES = (".csv", PARQUET)
NO_TABLES = (".json", ".jsonl", ".tsv", ".xlsx")
SMALLEST, LARGEST, PARTS = 4, 256, 256  # pictures of a part, and so many parts before parts grow
EMPTY, FLOATS = '"NULL"', ("DOUBLE", "FLOAT")  # types of DuckDB; pandas writes texts of which there are none as floats
TEXT = re.compile(rf"VARCHAR|{EMPTY}|ENUM\(.*\)|[A-Z]*INT(EGER)?", re.S)  # those that a caption may have
COLUMNS = {"picture": "VARCHAR", "place": "VARCHAR", "prompt": "VARCHAR"}
_shared: dict[int, Any] = {}  # process -> its connection


@dataclass(frozen=True)
class Wanted:
    """A picture that is asked about. picture: its name in the table. place: where its file is. prompt: "" for none."""

    picture: str
    place: str
    prompt: str


def parts_for(pictures: int) -> int:
    """How many parts so many pictures are split into."""
    size = min(max(pictures // PARTS, SMALLEST), LARGEST)
    return max(1, -(-pictures // size))


def connect() -> Any:
    """A DuckDB connection that loads nothing from elsewhere."""
    import duckdb

    return duckdb.connect(config={"autoinstall_known_extensions": "false"})


def shared() -> Any:
    """A cursor of this process's one connection, for questions that make no tables: beginning anew takes 50 ms."""
    if os.getpid() not in _shared:  # a forked process must not use its parent's
        _shared[os.getpid()] = connect()
    return _shared[os.getpid()].cursor()


def json_rows(connection: Any, columns: dict[str, str], rows: Iterator[dict[str, Any]], then: str) -> None:
    """Run a statement in which `given` stands for rows of plain values, in these columns. Numbers stay exact."""
    with tempfile.TemporaryDirectory(prefix="guda-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "rows.jsonl"
        with path.open("w", encoding="utf-8") as f:
            f.writelines(json.dumps(row) + "\n" for row in rows)
        typed = ", ".join(f"'{name}': '{kind}'" for name, kind in columns.items())
        given = f"read_json({quoted(exact(str(path)))}, format='newline_delimited', columns={{{typed}}})"
        connection.execute(then.replace("given", given, 1))


def quoted(text: str) -> str:
    """A text as a statement holds it."""
    return "'" + text.replace("'", "''") + "'"


def exact(place: str) -> str:
    """A place whose name is not taken for a pattern."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in place)


def asked(out: str, part: int, name: str) -> list[Wanted]:
    """The pictures of a part, by name, as `Listing.write` wrote them. name: of the list.

    Raises:
        ReportError: the list is not there, or not whole.
    """
    import duckdb

    place = places.joined(out, name)
    try:
        with shared() as connection:
            places.register(connection, place)
            query = "SELECT picture, place, prompt FROM read_parquet(?) WHERE part = ? ORDER BY picture"
            found = connection.execute(query, [exact(place), part]).fetchall()
    except (OSError, duckdb.Error) as e:
        raise ReportError(f"'{place}' cannot be read. Run the same command again. {e}") from e
    return [Wanted(*row) for row in found]


class Listing:
    """The pictures of some sources.

    sources: folders (and what is below them), pictures, one table with the columns `file` and, if it has prompts of
    its own, `text` (or `caption`, `prompt`), or one data set (`data_set_rows`). passed: counts files in folders that
    are no pictures.
    """

    def __init__(self, sources: Sequence[str], prompt: str = "") -> None:
        """Raises OptionError: there is no such source, nothing in it, or two pictures have one name; DataError: a data
        set cannot be read."""
        self._sources, self._prompt, self.passed = list(sources), prompt, PassedOver()
        self.nameless = 0  # rows of a table that name no file, and are left out
        self.captions = ""  # the column of a table or data set that they come from
        self.textless = list[str]()  # columns of a data set that are called as those of captions, and hold no texts
        if not sources:
            raise OptionError("There is nothing to score: no folder, picture, table or data set is named.")
        if not all(sources):
            raise OptionError("One of the names is empty. Name a folder, a picture, a table or a data set.")
        if as_text(prompt) != prompt:
            raise OptionError("The prompt holds bytes that are no text. Write it in UTF-8.")
        self._connection = connect()
        rows_alone = [s for s in sources if s.lower().endswith(TABLES) or data_set_rows.is_rows(s)]
        if rows_alone and len(sources) > 1:
            raise OptionError(f"'{rows_alone[0]}' stands alone: name no other pictures beside a table or a data set.")
        if rows_alone and rows_alone[0].lower().endswith(PARQUET) and not data_set_rows.is_rows(rows_alone[0]):
            self._read_parquet()
        else:
            as_csv = bool(rows_alone) and not data_set_rows.is_rows(rows_alone[0])
            rows = (asdict(w) for w in (self._csv() if as_csv else self._walk()))
            json_rows(self._connection, COLUMNS, rows, "CREATE TABLE listed AS SELECT * FROM given")
        self._check()

    def __len__(self) -> int:
        return self._one("SELECT count(*) FROM listed")[0]

    @property
    def name(self) -> str:
        """Of the list in the results: by a digest of the names, places and prompts in it, in any order. So runs of
        other pictures have lists of their own."""
        of = "md5_number_lower(concat_ws(chr(0), picture, place, prompt))"
        digest = self._one(f"SELECT count(*) || chr(45) || CAST(bit_xor({of}) AS VARCHAR) FROM listed")[0]
        return f"{ASKED}-{digest}{PARQUET}"

    def write(self, out: str, parts: int) -> dict[int, int]:
        """Write the list into the results; gives part -> its number of pictures, of so many parts.

        Raises:
            ReportError: it cannot be written.
        """
        import duckdb

        split = f"SELECT CAST(md5_number_lower(picture) % {int(parts)} AS INTEGER) AS part, * FROM listed"
        options = "FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 4096"
        try:
            with tempfile.TemporaryDirectory(prefix="guda-", ignore_cleanup_errors=True) as folder:
                path = Path(folder) / f"{ASKED}{PARQUET}"
                into = f"COPY ({split} ORDER BY part, picture) TO {quoted(str(path))} ({options})"
                self._connection.execute(into)
                data = path.read_bytes()
        except (OSError, duckdb.Error) as e:
            raise places.no_room(e) from e
        places.write(places.joined(out, self.name), data)
        return dict(self._connection.execute(f"SELECT part, count(*) FROM ({split}) GROUP BY 1 ORDER BY 1").fetchall())

    def prompted_otherwise(self, parts: Sequence[str]) -> int:
        """How many of the pictures have rows in these parts under another prompt."""
        import duckdb

        if not parts:
            return 0
        rows = f"read_parquet([{', '.join(quoted(exact(p)) for p in parts)}])"
        both = f"listed JOIN {rows} AS before USING (picture) WHERE listed.prompt <> before.prompt"
        try:
            places.register(self._connection, parts[0])
            return self._one(f"SELECT count(DISTINCT picture) FROM {both}")[0]
        except (OSError, duckdb.Error):  # it is damaged, and written anew
            return 0

    def _one(self, query: str) -> Any:
        return self._connection.execute(query).fetchone()

    def _check(self) -> None:
        if not len(self):
            raise OptionError(f"There are no pictures in '{self._sources[0]}'. {self.passed}".rstrip())
        if twice := self._one("SELECT picture FROM listed GROUP BY picture HAVING count(*) > 1 ORDER BY 1 LIMIT 1"):
            (one,), (other,) = self._connection.execute(
                "SELECT place FROM listed WHERE picture = ? ORDER BY 1 LIMIT 2", [twice[0]]
            ).fetchall()
            if one == other:
                raise OptionError(f"Two pictures are called '{twice[0]}'. Rename one, or name it once.")
            raise OptionError(
                f"Two pictures are called '{twice[0]}': {one} and {other}. Rename one, or name the folder that holds "
                "them all."
            )

    def _table(self) -> tuple[str, str]:
        """(the table, the folder that it is in)."""
        (table,) = self._sources
        if not places.is_file(table):
            raise OptionError(f"There is no table '{table}'.")
        return table, places.parent_of(table)

    def _read_parquet(self) -> None:
        import duckdb

        table, folder = self._table()
        places.register(self._connection, table)
        whole = table if places.is_url(table) else str(places.as_path(table))
        try:
            self._connection.execute(f"CREATE VIEW given AS SELECT * FROM read_parquet({quoted(exact(whole))})")
            schema = "SELECT name, num_children FROM parquet_schema(?)"
            _named(table, _top(self._connection.execute(schema, [exact(whole)]).fetchall()))
            kinds = {row[0]: row[1] for row in self._connection.execute("DESCRIBE given").fetchall()}
            file = _identifier(next(c for c in kinds if _plain([c]) == ["file"]))
            kinds |= {c: EMPTY for c, kind in kinds.items() if kind in FLOATS and _captions([c]) and self._is_empty(c)}
            said = _texts(table, kinds)
            self.captions = said.strip().lower()
            texts = "''" if kinds.get(said) == EMPTY else f"coalesce(CAST({_identifier(said)} AS VARCHAR), '')"
            prompt = texts if said else "?"
            values = [places.begin_of(folder), *([] if said else [self._prompt])]
            own = "contains(picture, '://') OR starts_with(picture, '/')"
            if places.on_windows():
                own += r" OR regexp_matches(picture, '^([A-Za-z]:)?[\\/]')"
            rows = (
                f"SELECT CAST({file} AS VARCHAR) AS picture, {prompt} AS prompt FROM given"  # no other column of theirs
            )
            self._connection.execute(
                f"CREATE TABLE listed AS SELECT picture, CASE WHEN {own} THEN picture ELSE concat(?, picture) END AS "
                f"place, prompt FROM ({rows}) WHERE picture <> ''",
                values,
            )
            self.nameless = self._one("SELECT count(*) FROM given")[0] - len(self)
        except duckdb.Error as e:
            raise OptionError(f"'{table}' cannot be read as a table. {e}") from e

    def _is_empty(self, column: str) -> bool:
        """Whether a column of floats has no number."""
        return not self._one(f"SELECT count(*) FROM given WHERE NOT isnan({_identifier(column)})")[0]

    def _csv(self) -> Iterator[Wanted]:
        """The rows of a CSV. A row may lack columns, but not have more than its first line names."""
        table, folder = self._table()
        try:
            with places.text_of(table) as f:
                separator, rows = csv_rows(f, f"'{table}'")
                _, columns = next(rows, (0, []))
                _named(table, columns)
                self.captions = next(iter(_captions(_plain(columns))), "")
                for line, row in rows:
                    if len(row) > len(columns):
                        raise OptionError(
                            f"Line {line} of '{table}' has {len(row)} columns, and the first line has "
                            f"{len(columns)}. Put a text that holds '{separator}' in double quotes."
                        )
                    said = dict(zip(_plain(columns), row, strict=False))
                    if name := said.get("file"):
                        prompt = said.get(self.captions, "") if self.captions else self._prompt
                        yield Wanted(name, places.joined(folder, name), prompt)
                    elif row:
                        self.nameless += 1
        except UnicodeDecodeError as e:
            raise OptionError(f"'{table}' is not in UTF-8. Save it as a CSV in UTF-8.") from e
        except OSError as e:
            raise OptionError(f"'{table}' cannot be read as a table. {e}") from e
        except DataError as e:
            raise OptionError(str(e)) from e

    def _walk(self) -> Iterator[Wanted]:
        """Every file but those that are no pictures by their endings, with a name below its source; where there are
        several folders, with the folder's own name."""
        if data_set_rows.is_rows(self._sources[0]):
            self.captions, self.textless, rows = data_set_rows.listed(self._sources[0], self._prompt)
            yield from (Wanted(*row) for row in rows)
            return
        folders = [s for s in self._sources if places.is_folder(s)]
        for source in self._sources:
            if source in folders:
                before = f"{_last(source)}/" if len(self._sources) > 1 else ""
                for name, place in _below(source):
                    if is_no_picture(name):
                        self.passed.files += 1
                        continue
                    yield Wanted(before + name, place, self._prompt)
            elif places.is_file(source):
                if source.lower().endswith(NO_TABLES):
                    raise OptionError(f"'{source}' is no table that can be read. Save it as CSV or Parquet.")
                yield Wanted(_last(source), as_text(places.absolute(source)), self._prompt)
            else:
                pattern = " Patterns are not read: name a folder, or each picture." if set(source) & set("*?") else ""
                raise OptionError(f"There is no folder or picture '{source}'.{pattern}")


def _plain(columns: Sequence[str]) -> list[str]:
    """Names of columns as they are compared."""
    return [c.strip().lower() for c in columns]


def _captions(columns: Iterable[str]) -> list[str]:
    """The columns of captions, the one that is taken first."""
    found = [c for c in columns if _plain([c])[0] in TEXTS]
    return sorted(found, key=lambda c: TEXTS.index(_plain([c])[0]))


def _top(schema: Sequence[tuple[str, int | None]]) -> list[str]:
    """The columns of a Parquet file as it names them; DuckDB gives the second of two equal ones another name. schema:
    (name, number of columns in it) of the whole and all that is in it."""
    found, inner = list[str](), 0
    for name, more in schema[1:]:
        found += [] if inner else [name]
        inner = max(inner - 1, 0) + (more or 0)
    return found


def _texts(table: str, kinds: Mapping[str, str]) -> str:
    """The column of captions of a Parquet table; "" where there is none. kinds: column -> DuckDB's type.

    Raises:
        OptionError: there are such columns, and none holds texts.
    """
    found = _captions(kinds)
    texts = sorted((c for c in found if TEXT.fullmatch(kinds[c])), key=lambda c: kinds[c] == EMPTY)
    if found and not texts:
        raise OptionError(
            f"The column '{found[0]}' of '{table}' holds no texts ({kinds[found[0]]}). Write one caption, as a text, "
            "into each row, or give the column another name."
        )
    return texts[0] if texts else ""


def _identifier(column: str) -> str:
    """A column as a statement names it."""
    return '"' + column.replace('"', '""') + '"'


def _named(table: str, columns: Sequence[str]) -> None:
    """Raises OptionError: there is no column of files, or several, or two columns of captions with one name."""
    if _plain(columns).count("file") != 1:
        found = ", ".join(f"'{c}'" for c in columns) or "nothing"
        raise OptionError(
            f"'{table}' must have one column 'file', and may have a column 'text'. It has the columns {found}."
        )
    if twice := next((c for c in TEXTS if _plain(columns).count(c) > 1), ""):
        raise OptionError(f"'{table}' has two columns '{twice}'. Take one out.")


def _last(place: str) -> str:
    return as_text(places.name_of(places.absolute(place)))


def as_text(name: str) -> str:
    """A name as text; bytes that are no text are escaped, and such a file is refused when it is read."""
    return name.encode("utf-8", "backslashreplace").decode()


def _below(folder: str) -> Iterator[tuple[str, str]]:
    """(name below the folder, place) of the files in it and in what it holds, without hidden ones and what systems
    leave behind. Links to folders are not followed; a link to nothing is a file that cannot be read.

    Raises:
        OptionError: a folder in it cannot be read, so that nobody knows what is missing.
    """
    if places.is_url(folder):
        fs, path = places.opened(folder)
        for found in fs.find(path):
            name = found.removeprefix(path).lstrip("/")
            if not any(is_left_behind(part) for part in name.split("/")):
                yield name, fs.unstrip_protocol(found)
        return
    top = places.absolute(folder)
    for at, inner, names in os.walk(top, onerror=_unread):
        inner[:] = sorted(n for n in inner if not is_left_behind(n))
        for name in sorted(n for n in names if not is_left_behind(n)):
            place = Path(at) / name
            if place.is_file() or (place.is_symlink() and not place.exists()):
                yield as_text(place.relative_to(top).as_posix()), as_text(str(place))


def _unread(e: OSError) -> None:
    raise OptionError(f"The folder '{e.filename}' cannot be read ({e.strerror}).") from e
