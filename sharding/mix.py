"""MixConfig + the windows that sessions have -> how many windows of each session an epoch holds."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import translate

import numpy as np

from sharding.errors import ConfigError

MIXED_BY = ("id", "dandiset", "subject")  # what a mix needs to know of a session
GROUPS = {"session": (0,), "subject": (1, 2), "dandiset": (1,)}  # which of it names the group
SLACK = 1e-9  # of a window: what a float may be off


@dataclass
class MixConfig:
    """How an epoch is shared out: a group's share is proportional to factor * windows ** (1 / temperature), cut by two
    caps; what they cut off goes to the others in proportion. Within a group sessions share by factor * windows."""

    by: str = "session"
    "what is weighed as one: session, subject (of a dandiset) or dandiset"
    temperature: float = 1.0
    "1 shares by windows, larger numbers make small groups count more; very large ones make all groups equal"
    weights: dict[str, float] = field(default_factory=dict)
    "glob pattern of session ids -> factor; 0 leaves sessions out, factors of several fitting patterns multiply"
    max_share: float = 1.0
    "no group is more than this part of an epoch"
    max_passes: float = 0.0
    "no session is gone through more often than this in an epoch; 0 sets no bound"

    def __post_init__(self):
        """Raises ConfigError for numbers that make no sense."""
        if self.by not in GROUPS:
            raise ConfigError("mix.by", f"is {self.by!r}", f"choose among {', '.join(GROUPS)}")
        if not 0 < self.temperature < np.inf:
            raise ConfigError("mix.temperature", f"is {self.temperature}", "give a positive number")
        if not 0 < self.max_share <= 1:
            raise ConfigError("mix.max_share", f"is {self.max_share}", "give a number above 0 and up to 1")
        if not (self.max_passes == 0 or 1 <= self.max_passes < np.inf):
            raise ConfigError("mix.max_passes", f"is {self.max_passes}", "give at least 1, or 0 for no bound")
        for pattern, factor in self.weights.items():
            if not 0 <= factor < np.inf:
                raise ConfigError(f"mix.weights[{pattern!r}]", f"is {factor}", "give 0 or a positive number")


def quotas(sessions: Iterable[tuple[str, str, str]], windows: np.ndarray, mix: MixConfig) -> np.ndarray:
    """Windows (n,) int64 that each session gets of an epoch, given those that a pass over it has (n,).

    sessions: id, dandiset and subject of each, n of them. The quotas sum to windows.sum(); caps hold to the whole window
    above. Raises ConfigError where the caps leave an epoch without enough windows, where a pattern fits no session, and
    where the factors leave nothing.
    """
    sessions = list(sessions)
    total, wanted = int(windows.sum()), _factors([session[0] for session in sessions], mix) * windows
    if not total:
        return np.zeros(len(windows), np.int64)
    if not wanted.any():
        raise ConfigError("mix.weights", "leave no window of any session", "give some session a factor above 0")
    name = [tuple(session[part] for part in GROUPS[mix.by]) for session in sessions]
    row = {group: number for number, group in enumerate(dict.fromkeys(name))}
    group = np.array([row[group] for group in name])
    most = np.ceil(mix.max_passes * windows - SLACK) if mix.max_passes else np.full(len(windows), float(total))
    most = np.where(wanted > 0, most, 0.0)

    size, weight, cap = (np.bincount(group, part, len(row)) for part in (windows, wanted, most))
    # Of a group whose sessions have different factors the mean over its windows counts.
    size = np.maximum(size, 1)
    weight = weight / size * (size / size.max()) ** (1 / mix.temperature)
    cap = np.where(weight > 0, np.minimum(cap, np.ceil(mix.max_share * total - SLACK)), 0.0)
    if cap.sum() < total:
        raise ConfigError(
            "mix",
            f"allows {int(cap.sum())} of an epoch's {total} windows: {int((weight > 0).sum())} groups by {mix.by}, "
            f"max_share {mix.max_share}, max_passes {mix.max_passes}",
            "raise max_share or max_passes, or give more groups a factor above 0",
        )
    share = _whole(_filled(weight, cap, total), np.zeros(len(row), np.int64), np.array([total]))
    return _whole(_within(share, group, wanted, most), group, share)


def _factors(ids: list[str], mix: MixConfig) -> np.ndarray:
    """The product of the factors of the patterns that fit, of each session."""
    factor = np.ones(len(ids))
    for pattern, number in mix.weights.items():
        fits = re.compile(translate(pattern)).match
        hit = np.array([fits(name) is not None for name in ids], bool)
        if not hit.any():
            near = get_close_matches(pattern, ids[:2000], 3, 0.5) or ids[:5]
            more = f" and {len(ids) - len(near)} more" if len(ids) > len(near) else ""
            raise ConfigError(
                "mix.weights", f"no session fits {pattern!r}", f"choose among {', '.join(near)}{more}, or use *"
            )
        factor[hit] *= number
    return factor


def _filled(weight: np.ndarray, cap: np.ndarray, total: float) -> np.ndarray:
    """Shares (n,) of a total in proportion to the weights, none above its cap; the caps can hold the total."""
    rising = np.argsort(np.divide(cap, weight, out=np.full(len(cap), np.inf), where=weight > 0), kind="stable")
    w, c = weight[rising], cap[rising]
    # With the first i at their caps the others share what is left in proportion: the first i where that keeps the caps.
    left, heavy = total - (np.cumsum(c) - c), np.cumsum(w[::-1])[::-1]
    fits = np.flatnonzero(c * heavy >= w * left)
    level = left[fits[0]] / heavy[fits[0]] if len(fits) and heavy[fits[0]] > 0 else np.inf
    return np.minimum(cap, np.multiply(weight, level, out=np.zeros(len(cap)), where=weight > 0))


def _within(share: np.ndarray, group: np.ndarray, wanted: np.ndarray, most: np.ndarray) -> np.ndarray:
    """The part (n,) of each session in its group's whole share, in proportion to `wanted`, none above its `most`."""
    part = wanted * (share / np.maximum(np.bincount(group, wanted, len(share)), SLACK))[group]
    for full in np.unique(group[part > most]):
        mine = group == full
        part[mine] = _filled(wanted[mine], most[mine], share[full])
    return part


def _whole(part: np.ndarray, group: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Whole numbers (n,) int64 for parts, summing to each group's total: by largest remainder."""
    whole = np.floor(part).astype(np.int64)
    short = total - np.bincount(group, whole, len(total)).astype(np.int64)
    order, count = np.lexsort((whole - part, group)), np.bincount(group, minlength=len(total))
    rank = np.arange(len(part)) - (np.cumsum(count) - count)[group[order]]  # within its group, largest remainder first
    whole[order] += rank < short[group[order]]
    return whole
