"""What is wanted next, got ahead: batches by a thread, while one is learned from; shards by the root that holds them."""

import atexit
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import itemgetter
from queue import SimpleQueue

import torch

from sharding.batch import Batch
from sharding.batches import Span
from sharding.files import RootFiles
from sharding.plan import TrainPlan

PATIENCE_S = 10.0  # that ending waits for a batch being made; the thread ends by itself after it


def pinned(batch: Batch) -> Batch:
    """The batch in page-locked memory where there is a CUDA device, so that it is copied while the device computes."""
    return batch.pin_memory() if torch.cuda.is_available() else batch


def in_turn(make: Callable[[Span], Batch], spans: Iterable[Span]) -> Iterator[Batch]:
    """Each batch made when it is asked for."""
    for span in spans:
        yield pinned(make(span))


def ahead(make: Callable[[Span], Batch], spans: Iterable[Span], depth: int) -> Iterator[Batch]:
    """The same batches with up to `depth` of them made before they are asked for; what fails there is raised here.

    The thread ends when this ends, is closed or forgotten, and before the interpreter does.
    """
    line = _Line(depth)
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    thread = threading.Thread(target=_work, args=(line, make, spans, device), name="batches ahead", daemon=True)
    end = partial(_end, line, thread)
    atexit.register(end)
    thread.start()
    try:
        while (made := line.taken()) is not None:
            if isinstance(made, BaseException):
                raise made
            yield made
    finally:
        atexit.unregister(end)
        end()


class _Line:
    """What stands between the thread and its consumer; the thread knows nothing else of the consumer."""

    def __init__(self, depth: int):
        self.room, self.made, self.stopped = threading.Semaphore(depth), SimpleQueue(), False

    def taken(self) -> Batch | BaseException | None:
        """The next thing made: a batch, an error, or None for the end; there is room for one more then."""
        made = self.made.get()
        self.room.release()
        return made


def _work(line: _Line, make: Callable[[Span], Batch], spans: Iterable[Span], device: int | None) -> None:
    try:
        if device is not None:
            torch.cuda.set_device(device)  # a thread begins on device 0, and pinning would make a context there
        for span in spans:
            line.room.acquire()
            if line.stopped:
                return
            line.made.put(pinned(make(span)))
        line.made.put(None)
    except BaseException as error:  # whatever it is, the consumer is told; else it would wait for ever
        line.made.put(error)


def _end(line: _Line, thread: threading.Thread) -> None:
    line.stopped = True
    line.room.release()
    if thread is not threading.current_thread():  # where the garbage collector calls from the thread itself
        thread.join(PATIENCE_S)


class Announced:
    """Tells the root, as batches go by, the shards of the block of the plan they come from and of the next one."""

    def __init__(self, plan: TrainPlan, files: RootFiles, shards: list[dict]):
        """`shards` are the entries of the index, in its order."""
        self._plan, self._files, self._shards = plan, files, shards

    def check_room(self, place: int) -> None:
        """Raise ConfigError where the shards of two blocks that follow each other, from the epoch of a place on, cannot
        lie on the local disk together: each would be fetched again and again."""
        blocks = self._blocks(place // self._plan.windows)
        pairs = zip(blocks, blocks[1:])
        self._files.check_room(max(sum(e["bytes"] for e in self._entries(a[1] + b[1])) for a, b in pairs))

    def passing(self, spans: Iterable[Span], place: int) -> Iterator[Span]:
        """The spans as they come, from a place on; the root is told when one begins in another block than the last.

        It is told of the first block before the first span is asked for, since that may have to read shards.
        """
        until = self._announce(place)
        for span in spans:
            if span.first >= until:
                until = self._announce(span.first)
            yield span

    def _announce(self, place: int) -> int:
        """Tell the root of the block of a place and of the next; returns the place at which that begins."""
        blocks = self._blocks(place // self._plan.windows)
        at = bisect_right(blocks, place, key=itemgetter(0)) - 1
        self._files.prefetch(self._entries(blocks[at][1] + blocks[at + 1][1]))
        return blocks[at + 1][0]

    def _blocks(self, epoch: int) -> list[tuple[int, tuple[int, ...]]]:
        """Those of an epoch and the first of the next."""
        return self._plan.blocks(epoch) + self._plan.blocks(epoch + 1)[:1]

    def _entries(self, shards: Iterable[int]) -> list[dict]:
        return [self._shards[number] for number in dict.fromkeys(shards)]
