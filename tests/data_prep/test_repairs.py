"""Each named mend brings a spoiled recording back to the sound one, and leaves a sound one as it is."""

from dataclasses import replace

import numpy as np
import pytest

from data_prep.errors import SessionError
from data_prep.recording import Recording, Series, SpikeTrains
from data_prep.repairs import PAUSE_S, REPAIRS, clock_reset, drop_overlapping_trials, repair
from data_prep.session import Intervals


def recording(spikes: list, series: np.ndarray, starts, stops, observed=()) -> Recording:
    starts, stops = np.asarray(starts, float), np.asarray(stops, float)
    return Recording(
        name="x.nwb",
        subject="",
        session_id="",
        identifier="",
        unit_columns={"id": np.array([str(k) for k in range(len(spikes))])},
        region=("M1",) * len(spikes),
        spikes=SpikeTrains.of(
            np.concatenate([np.asarray(s, float) for s in spikes]), np.array([len(s) for s in spikes])
        ),
        observed=tuple(np.asarray(o, float).reshape(-1, 2) for o in observed),
        series={"v": Series("v", np.asarray(series, float), np.asarray(series, float)[:, None], "cm/s")},
        tables={"trials": {"start_time": starts, "stop_time": stops, "go_time": starts + 0.5, "rt": stops - starts}},
    )


SOUND = recording([[1.0, 5.0], [2.0, 3.0]], [0, 1, 2, 3, 4, 5], [0, 3], [2, 5])


@pytest.mark.parametrize("name", list(REPAIRS))
def test_a_sound_recording_is_left_alone(name):
    assert repair(SOUND, [name]) == SOUND


def test_samples_are_sorted_and_repeats_dropped():
    spoiled = replace(SOUND, series={"v": Series("v", np.array([0.0, 2, 1, 1, 3]), np.arange(5.0)[:, None], "cm/s")})
    mended = repair(spoiled, ["sort_timestamps", "drop_repeated_timestamps"])
    assert mended.series["v"].time.tolist() == [0, 1, 2, 3]
    assert mended.series["v"].value[:, 0].tolist() == [0, 2, 1, 4]  # the first of the two at 1 s stays
    assert len(mended.notes) == 2


def test_trials_that_overlap_an_earlier_one_are_dropped():
    spoiled = recording([[1.0]], [0, 1], [0, 1, 5, 6, 8], [4, 3, 7, 9, 9])
    assert drop_overlapping_trials(spoiled).tables["trials"]["start_time"].tolist() == [0, 5, 8]


def test_a_clock_reset_is_undone():
    """A recording of one true clock, its second block told from zero again, comes back but for the pause between."""
    true_spikes = [np.array([1.0, 5, 9, 11, 19]), np.array([2.0, 8, 12, 18])]
    true_series, true_starts = np.arange(0, 20, 0.5), np.array([0.0, 5, 10, 15])

    def reset(time: np.ndarray) -> np.ndarray:
        return np.where(time >= 10, time - 10 + 0.25, time)

    spoiled = recording(
        [*(reset(s) for s in true_spikes), [3.0, 4.0], []],
        reset(true_series),
        reset(true_starts),
        reset(true_starts + 4),
        observed=[[[0, 10], [0.25, 10.25]]] * 2 + [[[0, 10]], []],
    )
    mended = clock_reset(spoiled)
    end, begin = 9.5, 10.0  # last and first time that anything was seen before and after the reset

    def moved(time: np.ndarray) -> np.ndarray:
        return np.where(time >= 10, time - begin + end + PAUSE_S, time)

    assert np.allclose(mended.spikes.read(0, 3), np.concatenate([moved(s) for s in true_spikes]))
    assert mended.spikes.count.tolist() == [5, 4, 0]  # the unit that never falls back is dropped, the silent one kept
    assert mended.unit_columns["id"].tolist() == ["0", "1", "3"] and len(mended.region) == 3
    assert np.allclose(mended.series["v"].time, moved(true_series))
    trials = mended.tables["trials"]
    assert np.allclose(trials["start_time"], moved(true_starts)) and np.allclose(
        trials["go_time"], moved(true_starts) + 0.5
    )
    assert np.allclose(trials["rt"], 4)  # not a time, so not moved
    shift = end + PAUSE_S - 0.25  # what the told times of block 2 are moved by
    assert np.allclose(mended.observed[0], [[0, 10], [0.25 + shift, 10.25 + shift]]) and len(mended.observed) == 3
    assert any("clock reset 1 times" in note for note in mended.notes)
    assert any("1 units without matching resets" in note for note in mended.notes)


def test_other_tables_follow_the_reset_or_go():
    spoiled = recording([[1.0, 9, 1, 9]], [0, 5, 9, 0, 5, 9], [0, 5, 0, 5], [4, 9, 4, 9])
    shown = {"start_time": np.array([0.0, 0.0]), "stop_time": np.array([9.0, 9.0]), "tags": np.array(["a", "b"])}
    unclear = {"start_time": np.array([3.0]), "stop_time": np.array([4.0])}
    tables = {**spoiled.tables, "epochs": shown, "invalid_times": unclear}
    mended = clock_reset(replace(spoiled, tables=tables, masks={"good": Intervals.of([(0, 9)])}))
    assert mended.tables["epochs"]["start_time"].tolist() == [0, 9 + PAUSE_S]
    assert set(mended.tables) == {"trials", "epochs"} and mended.masks == {}
    assert mended.notes[-1].endswith("left out: good, invalid_times")


def test_a_series_without_the_reset_is_refused():
    spoiled = recording([[1.0, 0.5]], [0, 1, 2], [0, 5, 0], [4, 9, 4])
    with pytest.raises(SessionError, match="trials show 1 clock resets, the times of v 0"):
        clock_reset(spoiled)
