"""Records and tables -> the parquet files of a shard root, named by what they hold."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from sharding.index import ShardIndex
from sharding.tables_stored import ROWS, StoredTable
from sharding.writer import AtomicFile, WrittenFile

_FRESH = 1 << 13  # records that wait to become a table


def write_table(root: Path, name: str, tables: Iterable[pa.Table], schema: pa.Schema) -> WrittenFile:
    """Tables end to end -> the parquet file <name>-<digest>.parquet, atomically.

    Equal rows give equal bytes, however they are dealt over the tables. A reader of another index never meets them.
    """
    out = AtomicFile(root / f"{name}.parquet")
    sink = _Sink(out)
    try:
        with parquet.ParquetWriter(sink, schema, compression="zstd") as writer:
            for table in _regrouped(tables, schema):
                writer.write_table(table, row_group_size=ROWS)
        return out.commit(lambda digest: f"{name}-{digest[:8]}.parquet")
    except BaseException:
        sink.failed = True
        out.discard()
        raise


class _Sink(io.RawIOBase):
    """What pyarrow writes into: an AtomicFile; after an error nothing more, so that the error is what is told."""

    def __init__(self, out: AtomicFile):
        self.out, self.failed = out, False

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        if not self.failed:
            self.failed = True
            self.out.write(bytes(data))
            self.failed = False
        return len(data)


def standing(index: ShardIndex | None, name: str, schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of a table of a root that is there already; nothing where there is none."""
    if index:
        stored = StoredTable.open(index.files, index.meta["tables"][name], schema)
        yield from (table for _, table in stored.parts(schema.names))


def _regrouped(tables: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """The same rows in tables of tables_stored.ROWS rows, the last one shorter."""
    left, count = [schema.empty_table()], 0
    for table in tables:
        left, count = [*left, table], count + len(table)
        while count >= ROWS:
            whole = pa.concat_tables(left)
            yield _joined(whole.slice(0, ROWS))
            left, count = [whole.slice(ROWS)], count - ROWS
    if count:
        yield _joined(pa.concat_tables(left))


def _joined(table: pa.Table) -> pa.Table:
    """The table with each column in one piece; codes of texts are told anew, as they first come."""
    plain = pa.schema([pa.field(column.name, _plain(column.type)) for column in table.schema])
    return table.cast(plain).combine_chunks().cast(table.schema)


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    return kind.value_type if pa.types.is_dictionary(kind) else kind


class Records:
    """Records of a table of a root as they come -> tables, so that few of them are Python objects at a time."""

    def __init__(self, schema: pa.Schema):
        self.schema, self.count = schema, 0
        self._tables: list[pa.Table] = []
        self._fresh: list[dict] = []

    def add(self, records: list[dict]) -> None:
        self._fresh += records
        self.count += len(records)
        if len(self._fresh) >= _FRESH:
            self._flush()

    def tables(self) -> list[pa.Table]:
        self._flush()
        return self._tables

    def _flush(self) -> None:
        self._tables.append(pa.Table.from_pylist(self._fresh, schema=self.schema))
        self._fresh = []
