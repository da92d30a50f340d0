"""Packages, torch's build, GPUs, NCCL and DeepSpeed of this machine -> findings."""

import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import warnings
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from launch.doctor_case import Case, Finding, fault, fine, skipped, warning
from launch.doctor_machine import cores

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
NAMED = 4  # differences that are told
FLASH = ("flash_attn", "flash_attn_interface", "flash_attn.cute")


def packages(case: Case) -> list[Finding]:
    """Versions installed, against those that the project was tested with and those that packages ask of each other."""
    pins = dict(line.split("==") for line in _lines(CONSTRAINTS) if "==" in line and not line.startswith("#"))
    different = [
        f"{name} {found}, not {pin}" for name, pin in pins.items() if (found := _version(name)) not in (None, pin)
    ]
    found = f"Python {platform.python_version()}, torch {_version('torch')}, lightning {_version('lightning')}"
    out = [fine(found + (f", {len(pins)} pins compared" if pins and not different else ""))]
    if different:
        others = f" and {len(different) - NAMED} more" if len(different) > NAMED else ""
        do = "install with `-c constraints.txt`, or mind the difference"
        out.append(warning(f"other versions than tested: {', '.join(different[:NAMED])}{others}", do))
    code, told = _run([sys.executable, "-m", "pip", "check"], 25)
    if code == 1 and "No module named pip" not in told:
        out.append(warning(f"pip check: {told.splitlines()[0]}", "install the versions that it names"))
    return out


def torch_build(case: Case) -> list[Finding]:
    """torch's CUDA against the driver, and both against the device that is asked for."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sees = torch.cuda.is_available()
    built = f"torch {torch.__version__} built for {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPU alone'}"
    drivers = _drivers()
    if drivers:
        built += f", driver {drivers[0]}"
    if sees or case.config.trainer.device == "cpu":
        return [fine(built)]
    why = f" ({str(caught[0].message).splitlines()[0]})" if caught else ""
    if drivers:
        do = "install a torch of a CUDA that the driver knows, or a newer driver"
        return [fault(f"{built}, yet torch sees no GPU{why}", do)]
    if case.device == "cuda":  # a cluster's; without one, asking for the device has raised
        return [fine(f"{built}; no GPU here, the cluster's nodes have some")]
    return [fine(f"{built}; no GPU here, so trainings run on the CPU")]


def devices(case: Case) -> list[Finding]:
    """GPUs against ranks and precision, and cores."""
    trainer, here = case.config.trainer, cores()
    ranks = f"{case.world} rank{'s' * (case.world > 1)}"
    if case.device == "cpu":
        out = [fine(f"{ranks} on the CPU, {here} cores here")]
        if trainer.precision == "bf16-mixed":
            out.append(warning("bf16-mixed is slower than float32 on a CPU", "take trainer.precision=32-true"))
        if not case.config.cluster and case.local_world > here:
            out.append(warning(f"{case.local_world} ranks on {here} cores", "take fewer"))
        return out
    if case.device_here == "cpu":
        out = [fine(f"{ranks}, {case.gpus_per_node} GPUs a node by the cluster's file")]
        lacking = case.gpus_per_node < case.local_world
        do = "give cluster.gpus_per_node as many as cluster.tasks_per_node"
        return out + [fault(f"{case.local_world} ranks a node for {case.gpus_per_node} GPUs", do)] * lacking
    count = torch.cuda.device_count()
    told = [torch.cuda.get_device_properties(number) for number in range(count)]
    kinds = ", ".join(f"{gpu.name} with {gpu.total_memory / 2**30:.0f} GiB" for gpu in told)
    out = [fine(f"{ranks}, {count} GPUs: {kinds}")]
    if case.local_world > count:
        out.append(
            fault(f"{case.local_world} ranks on a machine with {count} GPUs", "take trainer.devices=0: one a GPU")
        )
    if trainer.precision == "bf16-mixed" and not torch.cuda.is_bf16_supported(including_emulation=False):
        out.append(fault("the GPU has no bfloat16 arithmetic", "take trainer.precision=32-true"))
    return out


def nccl(case: Case) -> list[Finding]:
    """Between two GPUs, where ranks are to have more than one."""
    if case.world == 1 or case.device == "cpu":
        return [skipped("one rank, or none on a GPU")]
    if case.device_here == "cpu" or torch.cuda.device_count() < 2:
        return [skipped("needs two GPUs: ask again on a node")]
    number = ".".join(map(str, torch.cuda.nccl.version()))
    return _pair("nccl", f"NCCL {number}", "set NCCL_DEBUG=INFO and look for the interface that it cannot use")


def processes(case: Case) -> list[Finding]:
    """Two real processes that add their numbers over gloo, which all ranks talk by."""
    return _pair("gloo", "gloo", "set GLOO_SOCKET_IFNAME to the interface that this machine's own name leads to")


def attention(case: Case) -> list[Finding]:
    """Whether flash-attention is there; what this version does with it."""
    there = [name for name in FLASH if _has(name)]
    return [
        fine(f"by torch's own kernels; {' and '.join(there) or 'no flash-attn'} installed, not used by this version")
    ]


def deepspeed(case: Case) -> list[Finding]:
    """Loaded as a training would, in a process of its own, where the strategy is one of its."""
    name, found = case.config.trainer.strategy.name, _version("deepspeed")
    if not name.startswith("zero"):
        return [skipped(f"not needed for the strategy {name}; {found or 'none'} installed")]
    code, told = _run([sys.executable, "-c", "import deepspeed"], 100)
    if code:
        do = "install it as pyproject.toml says, or take trainer.strategy.name=ddp"
        return [fault(f"cannot be loaded: {_last_line(told)}", do)]
    return [fine(f"DeepSpeed {found} loads")]


def _pair(backend: str, name: str, do: str) -> list[Finding]:
    code, told = _run([sys.executable, "-m", "launch.doctor_pair", backend], 55)
    if code:
        return [fault(f"two processes do not meet over {name}: {_last_line(told)}", do)]
    return [fine(f"two processes add their numbers over {name}")]


def _drivers() -> list[str]:
    """Versions of the NVIDIA driver, one a GPU; none where there is no GPU."""
    if shutil.which("nvidia-smi") is None:
        return []
    code, told = _run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], 20)
    return [] if code else told.split()


def _run(command: list[str], limit_s: float) -> tuple[int, str]:
    """Exit code and all output of a command; 124 where it took too long and was ended with all that it had started."""
    root = str(Path(__file__).parents[1])
    place = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with subprocess.Popen(command, env=place, start_new_session=True, **streams) as process:
        try:
            told, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return 124, f"no answer in {limit_s:g} s"
    return process.returncode, told


def _last_line(told: str) -> str:
    return next((line.strip() for line in reversed(told.splitlines()) if line.strip()), "it said nothing")


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package that is not there
        return False
