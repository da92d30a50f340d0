"""A pinned version of a dandiset on any DANDI instance -> a source: its assets as listed, each fetched or streamed."""

import contextlib
import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from dandi import dandiarchive
from dandi.consts import DRAFT, DandiInstance
from dandi.dandiapi import AssetType, BaseRemoteAsset, DandiAPIClient, RemoteAsset, RemoteDandiset, VersionInfo
from dandi.dandiarchive import ParsedDandiURL
from dandi.exceptions import HTTP404Error, NotFoundError

from data_prep.archive_fetch import fetch_blob, held, is_verified, remove
from data_prep.archive_http import Trouble, connect, find_instance, parse_url, patiently, told_of
from data_prep.archive_lock import freeze, lock_path, moved_on, read_lock
from data_prep.archive_stream import streamed
from data_prep.archive_zarr import fetch_zarr
from data_prep.errors import ConfigError, SessionError
from data_prep.recipe import Recipe
from data_prep.source import ArchiveConfig, Asset, RemoteFile, Source, Wanted

DIGESTS = {
    "dandi:sha2-256": "sha256",
    "dandi:dandi-etag": "dandi-etag",
    "dandi:dandi-zarr-checksum": "dandi-zarr-checksum",
}
NAMING = (  # kinds of addresses that name a version, or assets of it
    dandiarchive.DandisetURL,
    dandiarchive.AssetIDURL,
    dandiarchive.AssetItemURL,
    dandiarchive.AssetFolderURL,
    dandiarchive.AssetPathPrefixURL,
    dandiarchive.AssetGlobURL,
)


@dataclass(frozen=True)
class Place:
    """A version of a dandiset."""

    instance: str
    api: str
    dandiset: str
    version: str

    @property
    def name(self) -> str:
        return f"{self.instance}:{self.dandiset}/{self.version}"


@dataclass
class ArchiveSource(Source):
    """Assets of one version of a dandiset."""

    place: Place
    assets: tuple[Asset, ...]
    near: tuple[Asset, ...]  # all assets in their folders
    config: ArchiveConfig
    cache: str  # folder of this version's downloads
    notes: tuple[str, ...] = ()
    learnt: dict[str, dict[str, str]] = field(default_factory=dict)  # asset id -> what its opening told

    @property
    def name(self) -> str:
        return self.place.name

    def siblings(self, asset: Asset) -> tuple[Asset, ...]:
        folder = PurePosixPath(asset.path).parent
        return tuple(one for one in self.near if PurePosixPath(one.path).parent == folder)

    @contextlib.contextmanager
    def opened(self, asset: Asset) -> Iterator[Path | RemoteFile]:
        with self._streamed(asset) if self.config.stream and not asset.zarr else self._fetched(asset) as file:
            yield file

    @contextlib.contextmanager
    def _streamed(self, asset: Asset) -> Iterator[RemoteFile]:
        with self._remote(asset) as (client, remote):
            self._learn(asset, streamed="yes", digest_checked="not verified: streamed")
            with streamed(client.session, remote.base_download_url, asset, self.config) as (file, ranges):
                try:
                    yield file
                finally:
                    self._learn(asset, bytes_fetched=str(ranges.fetched))

    @contextlib.contextmanager
    def _fetched(self, asset: Asset) -> Iterator[Path]:
        path = Path(self.cache) / asset.path

        def fetch(owner: str) -> None:
            with self._remote(asset) as (client, remote):
                if asset.zarr:
                    fetch_zarr(remote, asset, path, self.config, owner)
                else:
                    fetch_blob(client.session, remote.base_download_url, asset, path, self.config, owner)

        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(
                    held(path, lambda: is_verified(path, asset), fetch, lambda: self.config.keep_files or remove(path))
                )
            except OSError as error:
                raise SessionError(
                    asset.path, f"{path.parent} cannot be written ({error.strerror})", "choose another archive.cache"
                ) from error
            self._learn(asset, streamed="no", digest_checked="yes")
            yield path

    def provenance(self, asset: Asset) -> dict[str, str]:
        place = self.place
        told = {"collection": f"{place.api}/dandisets/{place.dandiset}", "instance": place.api}
        told |= {"dandiset": place.dandiset, "version": place.version, "asset": asset.id, "path": asset.path}
        return told | {"digest": asset.digest, "modified": asset.modified} | self.learnt.get(asset.id, {})

    def _learn(self, asset: Asset, **facts: str) -> None:
        self.learnt.setdefault(asset.id, {}).update(facts)

    @contextlib.contextmanager
    def _remote(self, asset: Asset) -> Iterator[tuple[DandiAPIClient, BaseRemoteAsset]]:
        """The asset as the archive has it now; one that is no longer what was listed is refused, or told."""
        with connect(DandiInstance(self.place.instance, None, self.place.api), self.config) as client:
            yield client, self._unchanged(client, asset)

    def _unchanged(self, client: DandiAPIClient, asset: Asset) -> BaseRemoteAsset:
        dandiset = client.get_dandiset(self.place.dandiset, self.place.version)
        with told_of(f"{self.name}/{asset.path}", client):
            try:
                remote = dandiset.get_asset(asset.id)
            except NotFoundError:  # one that a draft no longer has can still be had by its id
                remote = client.get_asset(asset.id)
                self._learn(asset, outdated=f"replaced in or removed from {self.place.version} since it was listed")
            now = _asset(remote, remote.get_raw_metadata(), like=asset.digest)
        if not asset.digest:
            raise SessionError(asset.path, "the archive states no digest of it", "wait until it has computed one")
        if (now.size, now.digest) != (asset.size, asset.digest):
            raise SessionError(
                asset.path, f"was replaced on the archive since it was listed: {asset.digest} became {now.digest}",
                "run it again to list it anew"
            )  # fmt: skip
        return remote


def open_archive(where: str, wanted: Wanted, config: ArchiveConfig, recipe: Recipe, output: Path) -> ArchiveSource:
    """The source of an archive's address, or of the recipe's dandiset for `dandi`; see `open_source`."""
    place, url = find_place(where, config, recipe)
    with connect(DandiInstance(place.instance, None, place.api), config, check_token=True) as client:
        listing, notes = _listing(client, place, config, output)
    there = {asset.path: asset for asset in listing if url is None or _names(url, asset)}
    one = isinstance(url, dandiarchive.SingleAssetURL) and len(there) == 1
    if url is not None and not there:
        raise ConfigError(where, f"{place.name} has no such asset", "check the path")
    assets = tuple(there[path] for path in (there if one else wanted.of(place.name, there)))
    folders = {PurePosixPath(asset.path).parent for asset in assets}
    near = tuple(asset for asset in listing if PurePosixPath(asset.path).parent in folders)
    root = Path(config.cache).expanduser() if config.cache else output.with_name(f"{output.name}.downloads")
    instance = "" if place.instance == "dandi" else place.instance.replace(":", "_")
    return ArchiveSource(place, assets, near, config, str(root / instance / place.dandiset / place.version), notes)


def find_place(where: str, config: ArchiveConfig, recipe: Recipe) -> tuple[Place, ParsedDandiURL | None]:
    """The version an address means, and what of it; raises ConfigError for a draft nobody allowed, or for none."""
    if where == "dandi":
        if not recipe.dandiset:
            raise ConfigError(f"recipe {recipe.name}", "names no dandiset", "add dandiset and version, or give a URL")
        _check_version(f"dandiset {recipe.dandiset} of recipe {recipe.name}", recipe.version, config)
        instance, url, dandiset, version = find_instance(config.instance, config), None, recipe.dandiset, recipe.version
    else:
        # the client knows a version behind "@" only, and takes one behind "/" for a folder
        url = parse_url(re.sub(r"^(dandi://[^/]+/\d{6})/(draft|\d+\.\d+\.\d+)(?=/|$)", r"\1@\2", where), config)
        if not isinstance(url, NAMING):
            raise ConfigError(
                where, "the address of no version of a dandiset", "give that of a version or of its files"
            )
        _check_version(where, url.version_id, config)
        instance, dandiset, version = url.instance, url.dandiset_id, url.version_id
    return Place(instance.name, instance.api.rstrip("/"), dandiset, version or DRAFT), url


def _check_version(where: str, version: str | None, config: ArchiveConfig) -> None:
    """Refuse what may be another list of files tomorrow: with no version given, the client takes the newest."""
    if version in ("", None, DRAFT) and not config.allow_draft:
        raise ConfigError(
            where, "is a draft, which changes" if version else "no version is pinned",
            "give a published version, or set archive.allow_draft=true to freeze the draft's list of files"
        )  # fmt: skip


def _names(url: ParsedDandiURL, asset: Asset) -> bool:
    """Whether an asset is what the address names, or lies under it."""
    if isinstance(url, dandiarchive.AssetIDURL):
        return asset.id == url.asset_id
    if isinstance(url, dandiarchive.AssetGlobURL):
        return fnmatch.fnmatchcase(asset.path, url.path)
    if isinstance(url, dandiarchive.AssetPathPrefixURL):
        return asset.path.startswith(url.path)
    path = getattr(url, "path", "").rstrip("/")
    return not path or asset.path == path or asset.path.startswith(f"{path}/")


def _listing(
    client: DandiAPIClient, place: Place, config: ArchiveConfig, output: Path
) -> tuple[tuple[Asset, ...], tuple[str, ...]]:
    """All assets, of a draft those that were frozen, and what a person should know of them."""
    dandiset = client.get_dandiset(place.dandiset, place.version)
    if place.version != DRAFT:
        return list_assets(dandiset, place.name, config), ()
    path = lock_path(output, place.dandiset)
    lock = read_lock(path, place.api, place.dandiset)
    if lock is None:
        lock = freeze(path, place.api, place.dandiset, list_assets(dandiset, place.name, config))
        return lock.assets, (f"the draft of {place.dandiset} is frozen in {path}: later runs read the same files",)
    try:
        return lock.assets, tuple(moved_on(lock, list_assets(dandiset, place.name, config)))
    except SessionError as error:  # what is in the cache can be read without the archive
        return lock.assets, (f"whether the draft has moved on since {lock.frozen} is not known: {error}",)


def list_assets(dandiset: RemoteDandiset, name: str, config: ArchiveConfig) -> tuple[Asset, ...]:
    """All assets of a version by path, listed while nothing changed; raises SessionError."""
    client = dandiset.client

    def state() -> tuple:
        modified = _version(dandiset).modified
        return client.get(f"{dandiset.version_api_path}assets/", params={"page_size": 1})["count"], modified

    def attempt() -> tuple[Asset, ...]:
        # an asset added or removed between two pages makes others slip from page to page, and vanish from the list
        before, words = state(), {"order": "path", "metadata": "true"}
        try:
            rows = list(client.paginate(f"{dandiset.version_api_path}assets/", params=words))
        except HTTP404Error as error:
            raise Trouble("a page of its list is gone: it changed while it was read") from error
        remotes = [RemoteAsset.from_data(dandiset, row, row.pop("metadata", None)) for row in rows]
        assets = [_asset(remote, remote.get_raw_metadata()) for remote in remotes]
        ids, paths = {asset.id for asset in assets}, {asset.path for asset in assets}
        if state() != before or not len(ids) == len(paths) == len(assets) == before[0]:
            raise Trouble(f"its list changed while it was read ({len(paths)} of {before[0]} assets came)")
        return tuple(sorted(assets, key=lambda asset: asset.path))

    with told_of(name, client):
        return patiently(name, config, attempt)


def _version(dandiset: RemoteDandiset) -> VersionInfo:
    try:
        return dandiset.get_version(dandiset.version_id)
    except NotFoundError:
        known = ", ".join(version.identifier for version in dandiset.get_versions())
        raise ConfigError(
            f"{dandiset.identifier}/{dandiset.version_id}", "there is no such version", f"choose from {known}"
        ) from None


def _asset(remote: BaseRemoteAsset, metadata: dict, like: str = "") -> Asset:
    """What we keep of an asset; its digest is of the kind of `like`, else the strongest the archive has computed."""
    path = PurePosixPath(remote.path)
    if path.is_absolute() or ".." in path.parts or "\0" in remote.path or str(path) != remote.path:
        raise SessionError(remote.path, "a path that leaves its folder", "tell the archive")
    stated = metadata.get("digest") or {}
    known = [f"{ours}:{stated[theirs]}" for theirs, ours in DIGESTS.items() if stated.get(theirs)]
    alike = [digest for digest in known if digest.partition(":")[0] == like.partition(":")[0]]
    digest = next(iter(alike if like else known), "")
    zarr = remote.asset_type is AssetType.ZARR
    return Asset(remote.path, remote.size, digest, remote.identifier, remote.modified.isoformat(), zarr)
