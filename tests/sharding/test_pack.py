"""Packing: windows end to end, each the same whatever stands beside it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sharding.errors import ConfigError
from sharding.pack import pack
from sharding.plan import TrainPlan
from sharding.sampling import Sampling, SessionTables
from sharding.statistics import target_statistics
from sharding.tokens import SPIKE
from sharding.vocabulary import Vocabulary
from sharding.window import Reader


@pytest.fixture(scope="module")
def sampling(index):
    units = Vocabulary(tuple(u for name in reversed(index.session_ids) for u in index.unit_ids(name)))
    statistics = target_statistics(index, "cursor_vel", True, "robust")
    return Sampling("cursor_vel", 1.0, units, Vocabulary(index.session_ids[::-1]), statistics)


@pytest.fixture(scope="module")
def windows(index):
    reader, table = Reader(index, "cursor_vel"), TrainPlan(index, 1.0, 0).table(np.arange(20))
    return [reader.window(int(s), int(t), 1_000_000) for s, t in zip(table.segment, table.start_us)]


def tensors(batch):
    return {name: tensor for name, tensor in batch.tensors().items() if name != "place_B"}


def test_a_batch_is_its_windows_packed_alone_end_to_end(index, sampling, windows):
    tables = SessionTables.of(index, sampling)
    whole, alone = pack(windows, tables), [pack([window], tables) for window in windows]
    for name, tensor in tensors(whole).items():
        assert torch.equal(tensor, torch.cat([tensors(one)[name] for one in alone])), name
    assert whole.window_s == 1.0 and len(whole) == 20
    placed = pack(windows, tables, np.arange(20) + 2**40, number=7, stop=60)
    assert placed.place_B.tolist() == list(range(2**40, 2**40 + 20)) and (placed.number, placed.stop) == (7, 60)
    assert whole.token_length_B.sum() == len(whole.token_time_S) and whole.query_length_B.sum() == len(
        whole.query_time_Q
    )
    assert {
        t.dtype for n, t in tensors(whole).items() if n.endswith(("unit_S", "kind_S", "_B", "session_Q", "stamp_Q"))
    } == {torch.int64}
    assert {whole.token_time_S.dtype, whole.query_time_Q.dtype, whole.target_QK.dtype, whole.weight_Q.dtype} == {
        torch.float32
    }


def test_numbers_are_those_of_the_session_named_by_the_vocabularies(index, sessions, sampling, windows):
    batch = pack(windows, SessionTables.of(index, sampling))
    at = 0
    for b, window in enumerate(windows):
        session = sessions[window.session]
        row = sampling.sessions.rows([session.id])[0]
        signal, q = session.signals["cursor_vel"], slice(at, at + int(batch.query_length_B[b]))
        assert set(batch.query_session_Q[q].tolist()) == {row} and batch.session_B[b] == row
        stamp = batch.stamp_Q[q].numpy()
        source = np.searchsorted(np.rint(signal.time * 1e6), stamp)
        np.testing.assert_array_equal(np.rint(signal.time * 1e6)[source], stamp)
        np.testing.assert_array_equal(batch.query_time_Q[q], ((stamp - window.start_us) / 1e6).astype(np.float32))
        mean, scale = sampling.statistics[session.id]
        np.testing.assert_allclose(batch.target_QK[q], (signal.value[source] - mean) / scale, rtol=1e-6)
        phases = [
            next(
                (n for n in ("outlier", "reach", "hold") if session.phases[n].contains(np.array([t / 1e6]))[0]),
                "random",
            )
            for t in stamp
        ]
        np.testing.assert_allclose(batch.weight_Q[q], [session.loss_weights.get(phase, 1.0) for phase in phases])
        assert batch.evaluated_Q[q].tolist() == [phase == "reach" for phase in phases]
        at = q.stop
    s = slice(0, int(batch.token_length_B[0]))
    spikes = batch.token_kind_S[s] == SPIKE
    names = [sampling.units.ids[row - 1] for row in batch.token_unit_S[s][spikes].tolist()]
    first = sessions[windows[0].session]
    assert names == [f"{first.id}/{first.units.id[u]}" for u in windows[0].spike_unit]


def test_the_task_has_the_last_word_on_weights_and_evaluation(index, sampling, windows):
    plain = pack(windows, SessionTables.of(index, sampling))
    own = replace(sampling, phase_weights={"reach": 2.0, "random": 3.0}, eval_phases=("hold", "random"))
    batch = pack(windows, SessionTables.of(index, own))
    assert set(plain.weight_Q.tolist()) == {1.0, 5.0, 0.0, float(np.float32(0.1))}
    assert set(batch.weight_Q.tolist()) == {3.0, 2.0, 0.0, float(np.float32(0.1))}
    assert torch.equal(batch.weight_Q == 2.0, plain.evaluated_Q)
    assert not (batch.evaluated_Q & plain.evaluated_Q).any() and batch.evaluated_Q.any()
    unweighted = pack(windows, SessionTables.of(index, replace(sampling, use_recipe_weights=False)))
    assert set(unweighted.weight_Q.tolist()) == {1.0}


def test_a_window_without_samples_or_without_units_packs_too(index, sampling, windows):
    tables = SessionTables.of(index, sampling)
    empty = replace(
        windows[0], sample_time=windows[0].sample_time[:0], value=windows[0].value[:0], phase=windows[0].phase[:0]
    ).keeping(np.zeros(0, int))
    batch = pack([windows[0], empty, windows[1]], tables)
    assert batch.query_length_B[1] == 0 and batch.token_length_B[1] == 0
    assert torch.equal(batch.target_QK, pack(windows[:2], tables).target_QK)


def test_what_vocabulary_or_statistics_lack_is_told(index, sampling, session_maker, root_writer, tmp_path):
    with pytest.raises(ConfigError, match="is not among its 1 names"):
        SessionTables.of(index, replace(sampling, units=Vocabulary(("x",))))
    with pytest.raises(ConfigError, match="is not among its 1 names"):
        SessionTables.of(index, replace(sampling, sessions=Vocabulary(("x",))))
    mixed = root_writer(tmp_path, [session_maker(0), session_maker(1, dims=3)])
    told = target_statistics(mixed, "cursor_vel", False, 1.0)
    units = Vocabulary(tuple(u for name in mixed.session_ids for u in mixed.unit_ids(name)))
    both = Sampling("cursor_vel", 1.0, units, Vocabulary(mixed.session_ids), told)
    with pytest.raises(ConfigError, match="has 2 and 3 dimensions"):
        SessionTables.of(mixed, both)
    with pytest.raises(ConfigError, match="statistics of 2 dimensions, cursor_vel has 3"):
        SessionTables.of(
            mixed.select(["made/m_1"]), replace(both, statistics=target_statistics(index, "cursor_vel", False, 1))
        )
