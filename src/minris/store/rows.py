"""Rows by plain SQL, and the answers of a search, in slices."""

import secrets
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import peewee

from minris.dataset.elements import ElementIndex
from minris.dataset.search import Search
from minris.recent import Recent, size_of
from minris.standard.status import Message, Refusal, Status
from minris.store.models import Stored, database

# Plain SQL on hot paths: peewee takes ten times longer to build a query than to execute it.

Candidates = list[tuple[int, int]]  # id and version of each row that may match
SLICE = 250  # rows read at once


def fetch_rows(model: type[Stored], where: str, *values: Any, columns: str = "*") -> list[Any]:
    """The rows of a model that meet a condition, as plain objects with columns as fields."""
    table = model._meta.table_name
    cursor = database.execute_sql(f"SELECT {columns} FROM {table} WHERE {where}", values)
    names = [column[0] for column in cursor.description]
    return [types.SimpleNamespace(**dict(zip(names, row, strict=True))) for row in cursor]


def first_row(model: type[Stored], where: str, *values: Any, columns: str = "*") -> Any | None:
    """The first row of a model that meets a condition, None if there is none."""
    return next(iter(fetch_rows(model, where, *values, columns=columns)), None)


def known_row(row: Any | None, words: Message) -> Any:
    """The row that was looked for. Refuses 0112 with these words if it was not found."""
    if not row:
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, words)
    return row


def matching_rows(
    model: type[Stored], rows_: Candidates, search: Search
) -> Iterator[tuple[int, ElementIndex]]:
    """Id and data set of each row that matches, in the given order, read in slices."""
    for start in range(0, len(rows_), SLICE):
        chunk = [row_id for row_id, _ in rows_[start : start + SLICE]]
        cursor = database.execute_sql(
            f"SELECT id, data FROM {model._meta.table_name}"
            f" WHERE id IN ({','.join(map(str, chunk))})"
        )
        data = {row_id: bytes(one) for row_id, one in cursor}
        for row_id in filter(data.__contains__, chunk):
            index = ElementIndex(data[row_id])
            if search.matches(index):
                yield row_id, index


def insert_row(model: type[Stored], **columns: Any) -> int:
    """Insert a row; return its id."""
    table, places = model._meta.table_name, ", ".join("?" * len(columns))
    sql = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places}) RETURNING id"
    row_id: int = database.execute_sql(sql, tuple(columns.values())).fetchone()[0]
    return row_id


def first_version() -> int:
    """A random version for a new row, unlike those of a purged row with the same id.

    Answers are cached by id and version, and SQLite reuses ids.
    """
    return secrets.randbits(48)


def insert_rows(what: str, values: Iterable[tuple[Any, ...]]) -> None:
    """Insert many rows; `what` is the table with its columns, and the clause after VALUES."""
    head, _, tail = what.partition(" VALUES")
    places = ", ".join("?" * (head.count(",") + 1))
    with peewee.__exception_wrapper__:  # type: ignore[attr-defined]  # sqlite3 would go through
        database.connection().executemany(f"INSERT INTO {head} VALUES ({places}){tail}", values)


def update_row(model: type[Stored], row_id: int, **columns: Any) -> None:
    """Change columns of a row."""
    table, places = model._meta.table_name, ", ".join(f"{name} = ?" for name in columns)
    database.execute_sql(f"UPDATE {table} SET {places} WHERE id = ?", (*columns.values(), row_id))


def get_mark(name: str) -> str:
    """The value of a mark in the database, empty if it was never set."""
    row = database.execute_sql("SELECT value FROM mark WHERE name = ?", (name,)).fetchone()
    return row[0] if row else ""


def set_mark(name: str, value: str) -> None:
    """Set a mark in the database."""
    columns = "mark (name, value) VALUES ON CONFLICT (name) DO UPDATE SET value = excluded.value"
    insert_rows(columns, [(name, value)])


def erase(what: str, *values: Any) -> int:
    """Delete rows; `what` is a table and a condition. Return the number of rows."""
    count: int = database.execute_sql(f"DELETE FROM {what}", values).rowcount
    return count


def row_exists(model: type[Stored], column: str, value: str) -> bool:
    """Whether a row of a model has this value in the column."""
    sql = f"SELECT 1 FROM {model._meta.table_name} WHERE {column} = ? LIMIT 1"
    return database.execute_sql(sql, (value,)).fetchone() is not None


# The cached answers of a search: version and answer by row id, None for no match.
Answers = dict[int, tuple[int, bytes | None]]


class AnswerCache:
    """Encoded answers by search and row version; the least recently used searches are dropped first.

    Modalities repeat the same query every few seconds; a changed row has a new version.
    """

    # bytes of a search without answers and of a row without its answer, as Python keeps them
    NO_ANSWERS, ROW = 1000, 250

    def __init__(self, limit: int = 16 << 20) -> None:
        self.searches: Recent[object, Answers] = Recent(limit)
        self.lock = threading.Lock()

    def of(self, key: object) -> Answers:
        """The cached answers of a search, for the caller to add to."""
        with self.lock:
            answers = self.searches.get(key)
            if answers is None:
                return {}
            self.searches.keep(key, answers, self.searches.sizes[key])
            return answers

    def grown(self, key: object, answers: Answers, added: int) -> None:
        """Keep a search with the bytes it has added, and drop other searches until all fit."""
        with self.lock:
            known = self.searches.get(key) is answers
            size = self.searches.sizes[key] if known else self.NO_ANSWERS + size_of(key)
            self.searches.keep(key, answers, size + added)


def answer_slices(
    search: Search,
    model: type[Stored],
    found: Candidates,
    left: int,
    cache: AnswerCache | None,
    key: object,
    seen: Callable[[Candidates], None] | None = None,
) -> Iterator[list[bytes]]:
    """The answers of candidate rows, in slices. Refuses A700 after `left` answers."""
    known, limit = cache.of(key) if cache else {}, left
    for start in range(0, len(found), SLICE):
        chunk = found[start : start + SLICE]
        missing = [i for i, version in chunk if known.get(i, (0,))[0] != version]
        if missing:
            added = _answer_rows(search, model, known, missing)
            if cache:
                cache.grown(key, known, added)
        told = [(row, known[row[0]][1]) for row in chunk if row[0] in known]
        answers = [answer for _, answer in told if answer is not None]
        if seen:
            seen([row for row, answer in told if answer is not None][:left])
        if not cache:
            known.clear()
        if len(answers) > left:
            yield answers[:left]
            words = Message("more than {limit} matches", limit=limit)
            raise Refusal(Status.OUT_OF_RESOURCES, words)
        left -= len(answers)
        yield answers


def page_of_matches(
    search: Search, shape: Search, model: type[Stored], rows_: Candidates, offset: int, limit: int
) -> tuple[list[bytes], int]:
    """One page of the matches of a search, encoded by `shape`, and the total number of matches."""
    found, count = [], 0
    for count, (_, index) in enumerate(matching_rows(model, rows_, search), 1):
        if offset < count <= offset + limit:
            found.append(shape.select(index))
    return found, count


def _answer_rows(search: Search, model: type[Stored], known: Answers, missing: list[int]) -> int:
    """Add the answers of some rows to `known`; return the number of bytes added."""
    added = 0
    cursor = database.execute_sql(
        f"SELECT id, version, data FROM {model._meta.table_name}"
        f" WHERE id IN ({','.join(map(str, missing))})"
    )
    for row_id, version, data in cursor:
        answer = search.answer(bytes(data))
        known[row_id] = version, answer
        added += AnswerCache.ROW + len(answer or b"")
    return added
