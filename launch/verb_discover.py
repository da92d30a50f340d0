"""`discover` and `inspect`: an unknown file into a proposed recipe; a session into its facts and a picture."""

from dataclasses import dataclass
from pathlib import Path

from launch.verb import Verb


@dataclass(frozen=True)
class DiscoverConfig:
    """Which file to look into, and where the proposal goes."""

    file: str = ""
    "The NWB file that nobody has described."
    output: str = ""
    "YAML file to write the recipe to; its name names the recipe. Empty prints it."
    name: str = ""
    "Name of the recipe; empty: after `output`, else after the file."
    overwrite: bool = False
    "Whether an `output` that is there already is replaced."


def _discover(config: DiscoverConfig) -> int:
    from data_prep.discover import discover
    from data_prep.errors import ConfigError
    from data_prep.store import atomic

    output = Path(config.output) if config.output else None
    if output and output.suffix not in (".yaml", ".yml"):
        raise ConfigError("output", f"{output} is no YAML file", "give a name that ends in .yaml")
    if output and output.exists() and not config.overwrite:
        raise ConfigError("output", f"{output} is there already", "choose another name, or say overwrite=true")
    if output and not output.parent.is_dir():
        raise ConfigError("output", f"there is no folder {output.parent}", "make it first")
    found = discover(Path(config.file), config.name or (output.stem if output else ""))
    if output is None:
        print(found.text(), end="")
    else:
        with atomic(output, output.name) as stream:
            stream.write(found.text().encode())
        print(f"wrote {output}: {found.told}")
    return 0 if found.outcome else 1


def _plan_discover(config: DiscoverConfig) -> list[str]:
    return [f"would look into {config.file} and " + (f"write {config.output}" if config.output else "print a recipe")]


def _inspect_schema() -> type:
    from launch.verb_inspect import InspectConfig

    return InspectConfig


def _inspect(config) -> int:
    from launch.verb_inspect import inspect

    inspect(config)
    return 0


def _plan_inspect(config) -> list[str]:
    from launch.verb_inspect import picture_path

    return [f"would read {config.path}, print its facts and write {picture_path(config)}"]


DISCOVER = Verb(
    "propose a recipe for an NWB file nobody has described, tried on that file",
    "spikeloom discover sub-X_ses-1.nwb output=mylab.yaml",
    lambda: DiscoverConfig,
    _discover,
    _plan_discover,
    word="FILE",
    positional="file",
    needs="an NWB file",
)
INSPECT = Verb(
    "print the facts of a session, and save a picture of it",
    "spikeloom inspect sessions/synthetic__Ada_CO-01.h5",
    _inspect_schema,
    _inspect,
    _plan_inspect,
    word="PATH",
    positional="path",
    needs="a stored session, or an NWB file and recipe=",
)
