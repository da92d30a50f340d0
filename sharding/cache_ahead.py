"""Files that will be wanted -> fetched by threads in the background, the newest list first."""

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable

from sharding.cache_fetch import Stopped
from sharding.cache_room import NoRoom, kept_name
from sharding.cache_turn import Busy
from sharding.errors import MendableError

THREADS = 2  # transfers at once
_END_S = 2.0  # an ending process waits so long for transfers to clean up


class Ahead:
    """The prefetching of one root in one process; its threads end when nothing is left to do."""

    def __init__(self, fetch: Callable[[dict, Callable[[], bool]], None]):
        """`fetch(entry, stop)` gets a file; it raises Stopped soon after `stop()` has become true."""
        self._fetch = fetch
        self._work = _Work()
        weakref.finalize(self, self._work.close)  # also when the process ends

    def wish(self, name: str) -> int:
        """How much a file in the cache is wanted: 2 by the newest list, 1 by the one before, 0 by neither."""
        return 2 if name in self._work.newest else 1 if name in self._work.previous else 0

    def want(self, entries: list[dict]) -> None:
        """Fetch these, in this order, instead of what was asked for before."""
        work = self._work
        with work.lock:
            if work.closing:
                return
            work.previous, work.newest = work.newest, frozenset(map(kept_name, entries))
            work.queue = deque(entries)
            work.threads = {thread for thread in work.threads if thread.is_alive()}
            for _ in range(min(len(entries), THREADS - work.running)):
                work.running += 1
                thread = threading.Thread(target=self._run, name="spikeloom-prefetch", daemon=True)
                work.threads.add(thread)
                thread.start()

    def failure(self, entry: dict, within_s: float) -> MendableError | None:
        """Why a file could not be fetched lately; told once."""
        with self._work.lock:
            at, error = self._work.failures.pop(kept_name(entry), (0.0, None))
        return error if error and time.monotonic() - at < within_s else None

    def _run(self) -> None:
        work = self._work
        while (entry := work.next()) is not None:
            name = kept_name(entry)
            try:
                self._fetch(entry, lambda name=name: work.closing or not self.wish(name))
            except (Busy, Stopped):  # another process does it; or it is no longer wanted
                pass
            except NoRoom:  # until what is wanted earlier was used
                with work.lock:
                    work.queue.clear()
            except MendableError as error:
                with work.lock:
                    work.failures[name] = (time.monotonic(), error)


class _Work:
    def __init__(self):
        self.lock = threading.Lock()
        self.queue: deque[dict] = deque()
        self.newest: frozenset[str] = frozenset()
        self.previous: frozenset[str] = frozenset()
        self.failures: dict[str, tuple[float, MendableError]] = {}
        self.threads: set[threading.Thread] = set()
        self.running, self.closing = 0, False

    def next(self) -> dict | None:
        """What to fetch now; None ends the thread that asks."""
        with self.lock:
            if self.queue and not self.closing:
                return self.queue.popleft()
            self.running -= 1
            return None

    def close(self) -> None:
        self.closing = True
        for thread in self.threads - {threading.current_thread()}:
            thread.join(_END_S)
