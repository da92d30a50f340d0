"""A Session -> the numbers that its picture and its tables are made of; spikes are read part by part."""

import numpy as np

from data_prep.session import Intervals, Session

STRETCH_S, SHORTEST_S = 20.0, 8.0
TICKS_A_ROW = 300  # spikes of a usual unit that its row in the raster can show apart
INTERVALS_OF = 2_000_000  # spikes whose intervals are counted


def count_in_domain(session: Session) -> np.ndarray:
    """Spikes (U,) of each unit inside the domain, part by part."""
    count = np.zeros(len(session.units), dtype=np.int64)
    for time, unit in session.spikes.parts():
        count += np.bincount(unit[session.domain.contains(time)], minlength=len(count))
    return count


def rates(session: Session) -> np.ndarray:
    """Mean rate (U,) of each unit inside the domain, Hz."""
    return count_in_domain(session) / max(session.domain.seconds, 1e-9)


def extent(session: Session) -> tuple[float, float]:
    """First and last second that anything is known of."""
    first, last = float(session.domain.start.min()), float(session.domain.stop.max())
    if not len(session.spikes):
        return first, last
    begin, end = session.spikes.extent
    return min(first, begin), max(last, end)


def representative(session: Session) -> tuple[float, float]:
    """Start and stop of the seconds to show: inside the domain, with a valid primary signal, trials and usual firing."""
    first, last = extent(session)
    usual = len(session.spikes) / max(len(session.units) * (last - first), 1e-9)
    length = min(float(np.clip(round(TICKS_A_ROW / max(usual, 1e-9)), SHORTEST_S, STRETCH_S)), last - first)
    starts = session.trials.start - 0.5 if len(session.trials) > 4 else session.domain.start
    starts = np.concatenate([starts, np.linspace(first, last - length, 60)])
    starts = np.unique(np.clip(starts, first, last - length))
    starts = starts[np.linspace(0, len(starts) - 1, min(len(starts), 300)).astype(int)]
    quarters = session.spikes.before((starts[:, None] + length * np.linspace(0, 1, 5)).ravel()).reshape(-1, 5)
    rate = np.diff(quarters, axis=1)
    score = -0.5 * np.mean(np.abs(rate - np.median(rate)), axis=1) / max(np.median(rate), 1e-9)
    score -= 0.05 * np.abs(starts - (first + last) / 2) / max(last - first, 1e-9)
    signal = next(iter(session.signals.values()), None)
    for k, start in enumerate(starts):
        window = Intervals.of([(start, start + length)])
        score[k] += 2 * session.domain.intersection(window).seconds / max(length, 1e-9)
        if signal is not None:
            a, b = np.searchsorted(signal.time, (start, start + length))
            usual_count = length * (len(signal.time) / max(signal.time[-1] - signal.time[0], 1e-9))
            score[k] += min(float(signal.valid[a:b].sum()) / max(usual_count, 1.0), 1.5)
    best = starts[int(np.argmax(score))]
    return float(best), float(best + length)


def regions(session: Session) -> list[str]:
    """Regions, the commonest first."""
    return sorted(set(session.units.region), key=lambda r: (-session.units.region.count(r), r))


def raster_order(session: Session, rate: np.ndarray) -> list[int]:
    """Units from top to bottom: by region, then from the fastest to the slowest."""
    rank = {name: k for k, name in enumerate(regions(session))}
    return sorted(range(len(rate)), key=lambda u: (rank[session.units.region[u]], -rate[u]))


def between(session: Session, start: float, stop: float) -> tuple[np.ndarray, np.ndarray]:
    """Spikes of a stretch of time: (time (s,), unit (s,)); no others are read."""
    first, last = (int(k) for k in session.spikes.before(np.array([start, stop])))
    return np.asarray(session.spikes.time[first:last]), np.asarray(session.spikes.unit[first:last]).astype(np.int64)


def intervals_of(session: Session) -> tuple[np.ndarray, np.ndarray, float]:
    """Histogram (60,) of the intervals between spikes of a unit, its edges (61,) in seconds, and the share under 1 ms."""
    count, edges, done, short, every = np.zeros(60), np.geomspace(1e-4, 10.0, 61), 0, 0, 0
    last = np.full(len(session.units), np.nan)  # of each unit, in the parts before
    for time, unit in session.spikes.parts(1 << 19):
        order = np.lexsort((time, unit))
        t, u = np.asarray(time)[order], np.asarray(unit)[order]
        first = np.append(True, u[1:] != u[:-1])
        gap = np.append(np.nan, np.diff(t))
        gap[first] = t[first] - last[u[first]]
        final = np.append(first[1:], True)
        last[u[final]] = t[final]
        gap = gap[np.isfinite(gap)]
        count += np.histogram(np.maximum(gap, edges[0]), edges)[0]
        short, every, done = short + int(np.sum(gap < 0.001)), every + len(gap), done + len(time)
        if done >= INTERVALS_OF:
            break
    return count, edges, short / max(every, 1)
