"""Windows -> Batch: laid end to end, looked up in the vocabularies, normalised and weighted, without padding."""

from collections.abc import Sequence

import numpy as np
import torch

from sharding.batch import Batch
from sharding.sampling import SessionTables
from sharding.window import Window


def pack(
    windows: Sequence[Window], tables: SessionTables, place: np.ndarray | None = None, number: int = 0, stop: int = 0
) -> Batch:
    """The packed batch of windows of equal length; a window's part is the same whatever windows stand beside it.

    `place` (n,) int64 are the windows' places in their plan; 0, 1, ... where none are given.
    """
    tokens = [window.tokens for window in windows]
    session = np.array([window.session for window in windows], np.int64)
    token_length = np.array([len(t.time) for t in tokens], np.int64)
    query_length = np.array([len(window.sample_time) for window in windows], np.int64)
    unit = np.concatenate([t.unit for t in tokens]).astype(np.int64)
    unit += np.repeat(tables.first_unit[session], token_length)
    session_Q = np.repeat(session, query_length)
    sample_time = np.concatenate([window.sample_time for window in windows])
    phase = np.concatenate([window.phase for window in windows])
    value = np.concatenate([window.value for window in windows])
    start = np.array([window.start_us for window in windows], np.int64)
    return Batch(
        token_time_S=torch.from_numpy(np.concatenate([t.time for t in tokens])),
        token_unit_S=torch.from_numpy(tables.unit_row[unit]),
        token_kind_S=torch.from_numpy(np.concatenate([t.kind for t in tokens])),
        token_length_B=torch.from_numpy(token_length),
        query_time_Q=torch.from_numpy((sample_time * 1e-6).astype(np.float32)),
        query_session_Q=torch.from_numpy(tables.session_row[session_Q]),
        query_length_B=torch.from_numpy(query_length),
        target_QK=torch.from_numpy(((value - tables.mean[session_Q]) / tables.scale[session_Q]).astype(np.float32)),
        weight_Q=torch.from_numpy(tables.weight[session_Q, phase]),
        evaluated_Q=torch.from_numpy(tables.evaluated[session_Q, phase]),
        stamp_Q=torch.from_numpy(sample_time + np.repeat(start, query_length)),
        session_B=torch.from_numpy(tables.session_row[session]),
        place_B=torch.from_numpy(np.arange(len(windows)) if place is None else place.astype(np.int64)),
        window_s=windows[0].length_us / 1e6,
        number=number,
        stop=stop,
        windows=len(windows),
    )
