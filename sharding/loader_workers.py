"""Batches made by worker processes: a big index crosses to them once, and a worker that dies loses and doubles nothing."""

import io
import logging
import multiprocessing
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from multiprocessing import forkserver, resource_tracker
from multiprocessing.reduction import ForkingPickler

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from sharding.batch import Batch
from sharding.batches import Span
from sharding.errors import MendableError, ShardError
from sharding.loader_slots import Laid, Slots, Taken

LOG = logging.getLogger("spikeloom")
DEATHS = 3  # of workers, one after another without a batch between, before we give up
LARGE = 1 << 16  # bytes from which an array goes through shared memory
ALIGNED = 64  # bytes; arrays begin at multiples of it there
# A terminal's Ctrl-C, and SLURM's signals, come to every process of a training; only the one that trains is to answer.
ASKING = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGUSR1))
LINGER_S = 20.0  # that a worker goes on after SIGTERM: enough for a training that got it too to reach its next step
DEATH = re.compile(r"DataLoader worker \(pid")
BROKEN = ConnectionError, EOFError, FileNotFoundError  # a batch that lay in a worker when it died cannot be fetched


class Workers:
    """Processes that make batches, started when first asked; `keep` leaves them running for the next iteration."""

    def __init__(self, make: Callable[[Span], Batch], count: int, depth: int, keep: bool = False):
        self._make, self._count, self._depth, self._keep = make, count, depth, keep
        self._given = _Given()
        self._loader = self._making = None
        self._taken = Taken()

    def batches(self, spans: Iterator[Span]) -> Iterator[Batch]:
        """The batches of the spans, in order; what fails in a worker is raised here.

        Where a worker dies, all are started again at the first batch that was not handed over. Raises ShardError where
        they die again and again before there is one.
        """
        deaths, sent, finished = 0, deque(), False
        try:
            while not finished:
                try:
                    made = self._next(spans, sent)
                except (RuntimeError, *BROKEN) as error:
                    if not _tells_a_death(error):
                        raise
                    deaths += 1
                    _tell(deaths, error)
                    self.close()
                    spans, sent = chain(tuple(sent), spans), deque()
                    continue
                if isinstance(made, MendableError):
                    raise made
                finished = made is None
                if not finished:
                    deaths = 0
                    sent.popleft()
                    yield self._taken.batch(made) if isinstance(made, Laid) else made
        finally:
            self._making = None if finished else self._making
            if not (finished and self._keep):
                self.close()

    def _next(self, spans: Iterator[Span], sent: deque[Span]) -> Laid | MendableError | None:
        """What the workers hand over next, None at the end; `sent` notes the spans that they were given."""
        if self._making is None:
            self._given.spans = _noted(spans, sent)
            self._loader = self._started() if self._loader is None else self._loader
            self._making = iter(self._loader)
        return next(self._making, None)

    def _started(self) -> DataLoader:
        self._taken = Taken()
        return DataLoader(
            Handed(_Served(self._make, max(self._depth, 1) + 2)),
            batch_size=None,
            sampler=self._given,
            num_workers=self._count,
            prefetch_factor=max(self._depth, 1),
            persistent_workers=self._keep,
            multiprocessing_context=_process_context(),
            worker_init_fn=_stay,
            generator=torch.Generator().manual_seed(0),  # its own, to leave the model's random stream alone
        )

    def close(self) -> None:
        """End the processes now: an error on its way to the user would keep them for as long as it is looked at."""
        making = self._loader._iterator if self._making is None and self._loader is not None else self._making
        self._making = self._loader = None
        if making is not None:
            making._shutdown_workers()


class Handed:
    """Something whose large arrays cross to other processes once, in shared memory, however many take it.

    The rest crosses as everything does that multiprocessing hands to a process it started.
    """

    def __init__(self, thing):
        raws: list[memoryview] = []

        def stays(buffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes >= LARGE:
                raws.append(raw)
            return raw.nbytes < LARGE

        stream = io.BytesIO()
        ForkingPickler(stream, 5, True, stays).dump(thing)
        self.pickled = stream.getvalue()
        stops = np.cumsum([0] + [-(-raw.nbytes // ALIGNED) * ALIGNED for raw in raws]).tolist()
        # where each array lies, and whether it may be written to: compiled code knows the two apart
        self.layout = tuple((at, raw.nbytes, raw.readonly) for at, raw in zip(stops, raws))
        self.shared = torch.empty(stops[-1], dtype=torch.uint8).share_memory_()
        for (at, size, _), raw in zip(self.layout, raws):
            self.shared.numpy()[at : at + size] = np.frombuffer(raw, np.uint8)

    def __reduce__(self):
        return _taken, (self.pickled, self.layout, self.shared)


def _taken(pickled: bytes, layout: tuple, shared: torch.Tensor):
    raw = memoryview(shared.numpy())
    parts = (raw[at : at + size] for at, size, _ in layout)
    return ForkingPickler.loads(pickled, buffers=[p.toreadonly() if entry[2] else p for p, entry in zip(parts, layout)])


class _Served(Dataset):
    """What a worker runs; an error that the user can mend is handed over whole, not as torch would tell it."""

    def __init__(self, make: Callable[[Span], Batch], slots: int):
        self._make, self._count, self._slots = make, slots, None

    def __getitem__(self, span: Span) -> Laid | MendableError:
        try:
            made = self._make(span)
        except MendableError as error:
            return error
        if not isinstance(made, Batch):
            return made
        if self._slots is None:
            self._slots = Slots(get_worker_info().id, self._count)
        return self._slots.laid(made)


class _Given:
    """The spans that the workers of one iteration are given.

    It does not know its Workers: in a circle of references torch's queues would be gone before torch's loader, which
    then waits five seconds for each worker to hear that it may end.
    """

    def __init__(self):
        self.spans: Iterator[Span] = iter(())

    def __iter__(self) -> Iterator[Span]:
        return self.spans


def _noted(spans: Iterator[Span], sent: deque[Span]) -> Iterator[Span]:
    for span in spans:
        sent.append(span)
        yield span


def _tells_a_death(error: Exception) -> bool:
    """Whether torch says that a worker is gone, rather than what went wrong inside one ("Caught ...")."""
    return bool(DEATH.match(str(error))) or (isinstance(error, BROKEN) and not str(error).startswith("Caught "))


def _tell(deaths: int, error: Exception) -> None:
    found = str(error).partition("\n")[0] or type(error).__name__
    if deaths == DEATHS:
        raise ShardError(
            "loader.workers",
            f"{DEATHS} times in a row a worker died before it made a batch ({found})",
            "look for a lack of memory, take smaller batches or fewer loader.workers",
        ) from None
    LOG.warning("a loader worker died (%s); starting the workers again at the batch that is due", found)


def _process_context():
    """How workers start: not by fork, which would copy the locks of torch's threads; torch is imported once for all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sharding.loader"])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)  # those started now are deaf for good
    try:
        resource_tracker.ensure_running()  # which lets some through again
        signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _stay(worker: int) -> None:
    """Make a worker outlive what asks the training to stop, but not for ever: torch ends one that hangs by SIGTERM."""

    def end_later(number: int, frame: object) -> None:
        timer = threading.Timer(LINGER_S, os._exit, (0,))
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGTERM, end_later)
    signal.pthread_sigmask(signal.SIG_SETMASK, ASKING - {signal.SIGTERM})
