"""StoredTable: a parquet table of a root -> the columns and rows that are asked for, read then and not kept."""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from sharding.errors import ShardError
from sharding.files import AGAIN, RootFiles

ROWS = 1 << 14  # of a row group: what is read to look at one of them


@dataclass(frozen=True)
class StoredTable:
    """Some rows of a table of a root; crosses to other processes as the place where it can be read."""

    files: RootFiles
    entry: dict  # of index.json: file, bytes, sha256
    schema: pa.Schema
    edges: np.ndarray  # (groups + 1,) int64 row of the file at which each row group begins, and their number
    rows: np.ndarray | None = None  # (n,) int64 rows of the file, rising; None is all

    @staticmethod
    def open(files: RootFiles, entry: dict, schema: pa.Schema) -> "StoredTable":
        """All rows of a table, compared with its sha256; raises ShardError for one that is not what it should be."""
        table = StoredTable(files, entry, schema, np.zeros(1, np.int64))
        path = files.path(entry)
        _check_digest(path, entry)
        with table._opened() as file:
            if not file.schema_arrow.equals(schema):
                raise ShardError(path, "its columns are not those of this format", AGAIN)
            groups = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        return replace(table, edges=np.cumsum([0, *groups], dtype=np.int64))

    def __len__(self) -> int:
        return int(self.edges[-1]) if self.rows is None else len(self.rows)

    def take(self, rows: np.ndarray) -> "StoredTable":
        """Only these rows (m,) of this table, rising."""
        return replace(self, rows=rows.astype(np.int64) if self.rows is None else self.rows[rows])

    def parts(self, columns) -> Iterator[tuple[int, pa.Table]]:
        """(number of its first row, table) for runs of rows in order, so that never all are in memory."""
        bounds, done = self.edges if self.rows is None else np.searchsorted(self.rows, self.edges), 0
        with self._opened() as file:
            for group in np.flatnonzero(np.diff(bounds)).tolist():
                table, mine = (
                    file.read_row_group(group, columns=list(columns), use_threads=False),
                    slice(*bounds[group : group + 2]),
                )
                if mine.stop - mine.start < len(table):
                    table = table.take(pa.array(self.rows[mine] - self.edges[group]))
                yield done, table
                done += len(table)
                del table
        pa.default_memory_pool().release_unused()  # else what was needed for reading stays with the process

    def read(self, columns=None) -> pa.Table:
        """These columns, or all, of every row."""
        columns = list(columns or self.schema.names)
        empty = pa.schema([self.schema.field(name) for name in columns]).empty_table()
        return pa.concat_tables([empty, *(table.select(columns) for _, table in self.parts(columns))])

    def numbers(self, columns) -> dict[str, np.ndarray]:
        """Columns of numbers, (n,) each."""
        out = {name: np.empty(len(self), self.schema.field(name).type.to_pandas_dtype()) for name in columns}
        for at, table in self.parts(columns):
            for name, values in out.items():
                values[at : at + len(table)] = table.column(name).to_numpy()
        return out

    def codes(self, names: dict[str, tuple[dict[str, int], type]]) -> dict[str, np.ndarray]:
        """Columns of text (n,) as numbers: for each its number by text and a dtype; -1 where the text has none."""
        out = {column: np.empty(len(self), dtype) for column, (_, dtype) in names.items()}
        for at, table in self.parts(names):
            for column, (number, dtype) in names.items():
                text = table.column(column).combine_chunks()
                of_code = np.array([number.get(name, -1) for name in text.dictionary.to_pylist()], dtype)
                out[column][at : at + len(table)] = of_code[text.indices.to_numpy()]
        return out

    @contextlib.contextmanager
    def _opened(self) -> Iterator[parquet.ParquetFile]:
        path = self.files.path(self.entry)
        try:
            with parquet.ParquetFile(path) as file:
                yield file
        except (OSError, pa.ArrowException) as error:
            raise ShardError(path, f"cannot be read ({str(error).splitlines()[0]})", AGAIN) from None


def _check_digest(path: Path, entry: dict) -> None:
    """Raise ShardError where a file is not the one that index.json tells of."""
    try:
        with open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ShardError(path, f"cannot be read ({error.strerror})", AGAIN) from None
    if digest != entry["sha256"]:
        raise ShardError(path, "its sha256 is not what the index says", AGAIN)
