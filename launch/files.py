"""The YAML file that a path means, and what else a mistyped word may have meant."""

import difflib
from pathlib import Path
from typing import NoReturn

from data_prep.errors import ConfigError

COMMAND_LINE = ""  # the source of settings that came from no file


def did_you_mean(word: str, options) -> str:
    """What to do about a wrong word: the nearest of the options, or all of them where none is near."""
    options = sorted(map(str, options))
    near = difflib.get_close_matches(word, options, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(near) + "?"
    return "use one of: " + ", ".join(options) if options else "leave it out"


def config_folders() -> list[Path]:
    """Where YAML lies: in configs/ of the working directory, then in the one shipped beside this package."""
    return [folder for folder in (Path.cwd() / "configs", Path(__file__).parents[1] / "configs") if folder.is_dir()]


def find_file(path: str, source: str) -> Path:
    """The YAML file of that path: on the command line as it stands, else from configs/, else beside `source`.

    A path that a file names stays below those folders; only the command line may point anywhere. Raises ConfigError.
    """
    if source != COMMAND_LINE and (Path(path).is_absolute() or ".." in Path(path).parts):
        found, do = f"it names {path!r}, outside of its folders", "name a path from configs/, without '..'"
        raise ConfigError(source, found, do)
    below = path.removeprefix("configs/")  # configs/model/x.yaml is found from any working directory
    candidates = [folder / below for folder in config_folders()]
    candidates = [Path(path), *candidates] if source == COMMAND_LINE else [*candidates, Path(source).parent / path]
    for candidate in candidates:
        if candidate.suffix in (".yaml", ".yml") and candidate.is_file():
            return candidate
    return _refuse_file(path, source)


def _refuse_file(path: str, source: str) -> NoReturn:
    where = f"{source}: {path}" if source else path
    if Path(path).suffix not in (".yaml", ".yml"):
        raise ConfigError(where, "not the path of a YAML file", "give a file that ends in .yaml")
    shipped = sorted({file.relative_to(root).as_posix() for root in config_folders() for file in root.rglob("*.yaml")})
    near = difflib.get_close_matches(Path(path).stem, {Path(name).stem for name in shipped}, n=1, cutoff=0.7)
    found = [f"configs/{name}" for name in shipped if Path(name).stem in near]
    raise ConfigError(where, "no such file", f"did you mean {' or '.join(found)}?" if found else "check the path")
