"""Two processes that add their numbers over a backend of torch.distributed: does what all ranks rest on work here?

Run as `python -m launch.doctor_pair gloo` (or nccl, which takes two GPUs); exit code 0 where the sum was right.
"""

import multiprocessing
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

WAIT = timedelta(seconds=20)


def add(backend: str, rank: int, meeting: Path) -> None:
    """Be one of the two; raises what torch raises."""
    dist.init_process_group(backend, store=dist.FileStore(str(meeting), 2), rank=rank, world_size=2, timeout=WAIT)
    number = torch.tensor([rank + 1.0], device=f"cuda:{rank}" if backend == "nccl" else "cpu")
    dist.all_reduce(number)
    dist.destroy_process_group()
    if number.item() != 3.0:
        raise ArithmeticError(f"1 + 2 was {number.item()}")


def main(backend: str) -> int:
    """Start the two, wait for both, and give the worse exit code."""
    forked = multiprocessing.get_context("fork")  # torch is loaded once, and nothing of it runs yet
    with tempfile.TemporaryDirectory() as folder:
        pair = [forked.Process(target=add, args=(backend, rank, Path(folder) / "meeting")) for rank in (0, 1)]
        for process in pair:
            process.start()
        for process in pair:
            process.join()
    return max(abs(process.exitcode) for process in pair)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
