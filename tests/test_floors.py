"""The architecture, held: who may import whom, which library has which door, and the house rules of a file.

Every import is read with `ast`, wherever it stands. A failure says file:line, what stands there, and what to do.
The tables below are the design; changing one is a decision about the architecture, to be told in its commit.
"""

import ast
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("data_prep", "sharding", "pretrain", "launch")
LIMIT = 400  # lines of a file; aim at 300

# What a file may import of our own: the first pattern that fits the file, besides its own floor.
SHARDING_PRODUCTS = (
    "errors",
    "tokens",
    "vocabulary",
    "batch",
    "index",
    "statistics",
    "plan",
    "window",
    "augment",
    "sampling",
    "loader",
    "batches",
    "cache",
)
OURS = {
    "data_prep/*": (),
    "sharding/*": ("data_prep.session", "data_prep.store", "data_prep.errors", "data_prep.part"),
    "pretrain/*": tuple(f"sharding.{name}" for name in SHARDING_PRODUCTS),
    # The hands: entry files of every floor, and the types they return.
    "launch/submit*.py": ("data_prep.errors", "sharding.index", "pretrain.train", "pretrain.run"),
    "launch/doctor*.py": (
        "data_prep.errors",
        "sharding.*",
        "pretrain.*",  # it looks at everything that could fail
    ),
    "launch/local_ranks.py": ("data_prep.errors", "pretrain.ranks", "pretrain.errors"),
    "launch/verb_*.py": (
        "sharding.shard",
        "pretrain.train",
        "pretrain.finetune",
        "pretrain.evaluate",
        "pretrain.export",
        "pretrain.replay",
        "data_prep.errors",
        "data_prep.prepare",
        "data_prep.corpus",
        "data_prep.discover",
        "data_prep.assembly",
        "data_prep.recipe",
        "data_prep.session",
        "data_prep.store",
        "sharding.check",
        "sharding.merge",
    ),
    "launch/figures_session*.py": ("data_prep.session",),
    "launch/demo*.py": (
        "data_prep.errors",
        "data_prep.prepare",
        "data_prep.synthetic",
        "data_prep.recipe",
        "sharding.shard",
        "sharding.index",
        "pretrain.train",
        "pretrain.finetune",
        "pretrain.evaluate",
    ),
    "launch/show*.py": (
        "data_prep.errors",
        "data_prep.prepare",
        "data_prep.session",
        "data_prep.store",
        "sharding.index",
        "pretrain.checkpoint",
    ),
    "launch/bench*.py": (
        "data_prep.errors",
        "data_prep.prepare",
        "data_prep.synthetic",
        "data_prep.nwb_bulk",  # files for measurements, and yardsticks
        "data_prep.recipe",
        "sharding.*",  # floors and corpora are built from its parts
        "pretrain.train",
        "pretrain.models.poyo",
        "pretrain.optim",
        "pretrain.evaluate",
        "pretrain.diagnose",
    ),
    "launch/figures_diagnose.py": ("pretrain.diagnose",),
    "launch/*": ("data_prep.errors",),
}

# Doors: the files that may import a library. One that is not named here may be imported by no file.
DOORS = {
    "numpy": ("*",),
    "rich": ("*",),
    "pynwb": ("data_prep/nwb*.py", "data_prep/synthetic.py"),
    "hdmf": ("data_prep/nwb*.py",),
    "hdmf_zarr": ("data_prep/nwb*.py",),
    "scipy": ("data_prep/matlab*.py",),
    "dandi": ("data_prep/archive*.py",),
    "requests": ("data_prep/archive*.py",),
    "remfile": ("data_prep/archive*.py",),
    "dandischema": ("data_prep/archive*.py",),  # comes with dandi: its etags
    "zarr_checksum": ("data_prep/archive*.py",),  # comes with dandi: its checksums of zarr
    "h5py": tuple(f"data_prep/{name}.py" for name in ("nwb*", "synthetic", "store", "matlab*")),
    "pyarrow": tuple(f"sharding/{name}.py" for name in ("index*", "tables*", "writer*", "merge"))
    + ("launch/bench_supply*.py",),
    "webdataset": ("sharding/stream.py", "launch/bench*.py"),
    "fsspec": ("sharding/cache*.py",),
    "aiohttp": ("sharding/cache*.py",),  # comes with fsspec[http]: its time limits
    "filelock": ("sharding/cache*.py", "sharding/files.py", "sharding/root_lock.py"),
    "numba": ("sharding/kernel*.py",),
    "torch_brain": ("launch/bench*.py",),
    "temporaldata": ("launch/bench*.py",),
    "torch": (
        "pretrain/*",
        *(f"sharding/{name}.py" for name in ("batch", "pack", "maker", "loader*", "prefetch", "stream")),
        "launch/bench*.py",
        "launch/local_ranks.py",  # its starter of processes
        "launch/doctor*.py",
    ),
    "safetensors": ("pretrain/checkpoint.py", "pretrain/saves.py"),
    "lightning": tuple(
        f"pretrain/{name}.py"
        for name in (
            "module",
            "datamodule",
            "ranks",
            "strategy*",
            "trainer",
            "keeper",
            "replay",  # watches a training's steps
            "checkpoint",
            "tracking",
            "train",
            "finetune",
            "evaluate",
        )
    ),
    "deepspeed": ("pretrain/strategy*.py", "launch/doctor*.py"),
    "psutil": ("pretrain/speed.py", "launch/doctor*.py", "launch/bench*.py"),
    "wandb": ("pretrain/tracking.py", "launch/scaling.py", "launch/doctor*.py"),
    "omegaconf": ("launch/config.py",),
    "yaml": ("launch/config.py", "pretrain/run.py"),
    "matplotlib": ("launch/report*.py", "launch/figures*.py", "pretrain/traces.py"),
    "jinja2": ("launch/report*.py",),
}
# What a file may import inside a function: a module with a costly library that most runs do not need.
LATE = {
    "data_prep/open_source.py": ("data_prep.archive",),  # dandi: half a second
    "data_prep/nwb.py": ("data_prep.nwb_objects",),  # pynwb: a second
    "pretrain/spread.py": ("pretrain.strategy_zero",),  # DeepSpeed: two seconds
    "pretrain/tracking.py": ("pretrain.traces",),  # matplotlib
    "sharding/files.py": ("sharding.cache_remote",),  # fsspec and aiohttp: a third of a second
}
DRAWERS = ("utils", "common", "helpers", "base")


def faults(name: str, source: str) -> list[str]:
    """What is wrong with a file, one line each: "name:line: what stands there; what to do"."""
    tree = ast.parse(source)
    out = [*_import_faults(name, tree), *_trust_faults(name, tree)]
    if Path(name).name == "__init__.py":
        return out + ([f"{name}:1: it is not empty; keep __init__.py empty"] if source.strip() else [])
    if ast.get_docstring(tree) is None:
        out.append(f"{name}:1: no opening sentence; say what the file turns into what")
    if Path(name).stem.strip("_") in DRAWERS:
        out.append(f"{name}:1: a drawer; name the concept that lives here")
    if len(source.splitlines()) > LIMIT:
        out.append(f"{name}:{LIMIT}: {len(source.splitlines())} lines; split it by concept (aim at 300)")
    return out


def _import_faults(name: str, tree: ast.Module):
    floor = name.split("/")[0]
    for node, inside in _imports(tree):
        where = f"{name}:{node.lineno}"
        allowed_late = floor == "launch" or getattr(node, "module", None) in LATE.get(name, ())
        if inside and not (inside == "function" and allowed_late):
            yield f"{where}: an import inside a {inside}; move it to the top of the file"
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"{where}: a relative import; write the module's full name"
            continue
        for module in _modules(node):
            fault = _own_fault(name, floor, module) or _door_fault(name, module)
            if fault:
                yield f"{where}: {fault}"


def _imports(tree: ast.Module):
    """Every import with what it stands in: "", "function" or "class"."""

    def walk(node, inside):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                yield child, inside
            kind = {
                ast.FunctionDef: "function",
                ast.AsyncFunctionDef: "function",
                ast.Lambda: "function",
                ast.ClassDef: "class",
            }.get(type(child), inside)
            yield from walk(child, kind)

    return walk(tree, "")


def _modules(node) -> list[str]:
    """The modules an import names; `from package import module` names the module, as far as it is one of ours."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    inner = [f"{node.module}.{alias.name}" for alias in node.names]
    is_package = (ROOT / node.module.replace(".", "/")).is_dir() and node.module.split(".")[0] in FLOORS
    return inner if is_package else [node.module]


def _own_fault(name: str, floor: str, module: str) -> str | None:
    if module.split(".")[0] == "tests":
        return f"imports {module}; tests are known by none"
    if module.split(".")[0] not in FLOORS or module.split(".")[0] == floor:
        return None
    allowed = next(allowed for pattern, allowed in OURS.items() if fnmatch(name, pattern))
    if any(fnmatch(module, pattern) for pattern in allowed):
        return None
    return f"imports {module}; here only {', '.join(allowed) or 'its own floor'} may be used (design, section 2)"


def _door_fault(name: str, module: str) -> str | None:
    library = module.split(".")[0]
    if library in FLOORS or library in sys.stdlib_module_names:
        return None
    doors = DOORS.get(library)
    if doors is None:
        return f"imports {library}, which has no door; do without it, or add its door to tests/test_floors.py"
    if any(fnmatch(name, door) for door in doors):
        return None
    return f"imports {library}, whose doors are {', '.join(doors)}; go through one of them (design, section 6)"


def _trust_faults(name: str, tree: ast.Module):
    """Section 9 as far as syntax can show it: nothing is unpickled, evaluated or imported by a name in the data."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for module in _modules(node) if not getattr(node, "level", 0) else []:
                if module.split(".")[0] in ("pickle", "dill", "marshal", "shelve"):
                    yield f"{name}:{node.lineno}: imports {module}; nothing is ever unpickled"
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if call in ("eval", "exec", "__import__", "importlib.import_module", "import_module"):
            yield f"{name}:{node.lineno}: calls {call}; name what may be used in a table instead"
        if call == "torch.load" and given.get("weights_only") != "True":
            yield f"{name}:{node.lineno}: torch.load without weights_only=True; add it"
        if given.get("allow_pickle") == "True":
            yield f"{name}:{node.lineno}: allow_pickle=True; store plain arrays"


def project_files() -> list[Path]:
    return sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))


def test_every_file_keeps_the_rules():
    found = [
        fault
        for path in project_files()
        for fault in faults(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n" + "\n".join(found)


def test_every_floor_is_there_and_read():
    assert {path.relative_to(ROOT).parts[0] for path in project_files()} == set(FLOORS)


@pytest.mark.parametrize(
    "name, source, fault",
    [
        ("data_prep/nwb.py", "from sharding.tokens import SPIKE", "imports sharding.tokens; here only its own floor"),
        ("sharding/cut.py", "from data_prep.nwb import read", "imports data_prep.nwb; here only data_prep.session"),
        ("sharding/cut.py", "from data_prep import nwb", "imports data_prep.nwb"),
        ("pretrain/train.py", "import data_prep.session", "imports data_prep.session"),
        ("pretrain/train.py", "from sharding.writer import write", "imports sharding.writer"),
        ("pretrain/train.py", "from launch.cli import main", "imports launch.cli"),
        ("launch/cli.py", "from pretrain.nn.attention import attend", "imports pretrain.nn.attention"),
        ("launch/slurm.py", "def go():\n    from pretrain.train import train", ":2: imports pretrain.train"),
        ("pretrain/train.py", "from tests.conftest import x", "tests are known by none"),
        ("pretrain/train.py", "import omegaconf", "imports omegaconf, whose doors are launch/config.py"),
        ("sharding/index.py", "import torch", "imports torch, whose doors are"),
        ("sharding/index.py", "from torch.utils import data", "imports torch, whose doors are"),
        ("launch/cli.py", "import pandas", "imports pandas, which has no door"),
        ("pretrain/nn/sdpa.py", "def f():\n    import torch", ":2: an import inside a function"),
        ("pretrain/nn/sdpa.py", "class A:\n    import torch", ":2: an import inside a class"),
        ("pretrain/train.py", "from .finetune import x", "a relative import"),
        ("pretrain/train.py", "from . import finetune", "a relative import"),
        ("pretrain/__init__.py", "x = 1", "it is not empty"),
        ("pretrain/utils.py", '"""One."""', "a drawer"),
        ("pretrain/train.py", "x = 1", "no opening sentence"),
        ("pretrain/train.py", '"""One."""\n' + "x = 1\n" * 400, "401 lines"),
        ("pretrain/train.py", "import pickle", "nothing is ever unpickled"),
        ("pretrain/train.py", "import torch\ntorch.load(path)", ":2: torch.load without weights_only=True"),
        ("sharding/segment.py", "import numpy\nnumpy.load(p, allow_pickle=True)", ":2: allow_pickle=True"),
        ("launch/cli.py", "import importlib\nimportlib.import_module(name)", "calls importlib.import_module"),
    ],
)
def test_the_reader_sees_each_kind_of_fault(name, source, fault):
    assert any(fault in found for found in faults(name, source)), faults(name, source)


@pytest.mark.parametrize(
    "name, source",
    [
        (
            "sharding/cut.py",
            '"""One."""\nimport numpy\nfrom data_prep.session import Session\nfrom sharding import tokens',
        ),
        ("launch/verb_train.py", '"""One."""\ndef run():\n    from pretrain.train import pretrain'),
        ("pretrain/checkpoint.py", '"""One."""\nimport torch\ntorch.load(path, weights_only=True)'),
        ("pretrain/nn/__init__.py", ""),
    ],
)
def test_the_reader_lets_good_files_pass(name, source):
    assert faults(name, source) == []


@pytest.mark.parametrize(
    "modules, without",
    [
        ("sharding.shard, sharding.index", "torch"),  # shards can be written on a machine without torch
        ("pretrain.train, pretrain.finetune, pretrain.evaluate", "pynwb"),  # a GPU node never loads pynwb
    ],
)
def test_a_floor_works_where_the_library_is_absent(modules, without):
    code = f"import sys; sys.modules[{without!r}] = None; import {modules}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
