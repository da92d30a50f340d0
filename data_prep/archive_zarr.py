"""A zarr asset of an archive -> a folder in the cache, each entry checked by its md5 and the whole by its checksum."""

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from dandi.dandiapi import BaseRemoteZarrAsset, RemoteZarrEntry
from zarr_checksum.tree import ZarrChecksumTree

from data_prep.archive_fetch import check_status, disk_told, partial_path, read_mark, write_mark
from data_prep.archive_http import Trouble, as_trouble, patiently, told_of
from data_prep.errors import SessionError
from data_prep.source import ArchiveConfig, Asset

AT_ONCE = 8  # entries fetched at a time: they are many and small, so that waiting is what takes time


def fetch_zarr(remote: BaseRemoteZarrAsset, asset: Asset, path: Path, config: ArchiveConfig, owner: str = "") -> None:
    """Bring a zarr asset to its final name; entries that an earlier run fetched stay. Raises SessionError."""
    with told_of(asset.path, remote.client):
        entries = list(remote.iterfiles())
    partial = partial_path(path, asset, owner)
    size, found = sum(entry.size for entry in entries), _checksum(entries)
    if (size, found) != (asset.size, asset.digest):
        raise SessionError(
            asset.path, f"its entries have {size} bytes and {found}, not {asset.size} bytes and {asset.digest}",
            "the archive is at work on it or it was replaced: list it again later"
        )  # fmt: skip
    with disk_told(asset, path):
        if path.is_dir() and all(_is_whole(path, entry) for entry in entries):
            return write_mark(path, asset, fetched=bool(read_mark(path).get("fetched")))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for done in [pool.submit(_fetch_entry, entry, asset, partial, config) for entry in entries]:
                done.result()
        if path.exists():  # of another version, or damaged
            shutil.rmtree(path)
        os.replace(partial, path)
        write_mark(path, asset, fetched=True)


def _checksum(entries: list[RemoteZarrEntry]) -> str:
    """The checksum of a zarr as the archive states it, out of those of its entries."""
    tree = ZarrChecksumTree()
    for entry in entries:
        tree.add_leaf(Path(str(entry)), entry.size, entry.digest.value)
    return f"dandi-zarr-checksum:{tree.process()}"


def _fetch_entry(entry: RemoteZarrEntry, asset: Asset, folder: Path, config: ArchiveConfig) -> None:
    if ".." in entry.parts or PurePosixPath(str(entry)).is_absolute():
        raise SessionError(asset.path, f"names an entry {entry}, outside itself", "tell the archive")
    target = folder / str(entry)
    if _is_whole(folder, entry):
        return
    target.parent.mkdir(parents=True, exist_ok=True)

    def attempt() -> None:
        with as_trouble(), entry.client.session.get(entry.download_url, stream=True) as answer:
            check_status(answer, asset)
            with open(target, "wb") as stream:
                for chunk in answer.iter_content(1 << 20):
                    stream.write(chunk)
        if not _is_whole(folder, entry):
            target.unlink()
            raise Trouble("came with another md5 than the archive states")

    patiently(f"{asset.path}/{entry}", config, attempt)


def _is_whole(folder: Path, entry: RemoteZarrEntry) -> bool:
    """Whether an entry is there with its size and md5; of one uploaded in parts the md5 is of parts unknown."""
    path = folder / str(entry)
    if not path.is_file() or path.stat().st_size != entry.size:
        return False
    if "-" in entry.digest.value:
        return True
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest() == entry.digest.value
