"""A stored session comes back bit by bit; a file that is not a whole one is refused in one line."""

import dataclasses
import pickle
from dataclasses import replace

import h5py
import numpy as np
import pytest

from data_prep.assembly import read_session
from data_prep.checks import check_session
from data_prep.errors import SessionError
from data_prep.session import Intervals, Session, Signal, Spikes
from data_prep.store import describe, list_sessions, load_session, opened_session, save_session, session_path


@pytest.fixture
def session(nwb, recipe) -> Session:
    made = read_session(nwb(), recipe)
    return replace(
        made,
        trial_columns={**made.trial_columns, "a/b": np.array(["é"] * 48)},
        eval_phases=("reach",),
        loss_weights={"hold": 0.1},
        target_scale={"cursor_vel": 20.0},
    )


def assert_equal(one, other) -> None:
    assert type(one) is type(other)
    if dataclasses.is_dataclass(one):
        for item in dataclasses.fields(one):
            assert_equal(getattr(one, item.name), getattr(other, item.name))
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype and np.array_equal(one, other)
    else:
        assert one == other


def test_round_trip(session, tmp_path):
    path = save_session(session, tmp_path / ".")
    assert_equal(load_session(path), session)
    assert list_sessions(tmp_path) == [path]
    told = describe(path)
    assert (told.id, told.units, told.spikes) == ("small/Ada_day1", 5, 1000) and told.provenance == session.provenance


def test_an_opened_session_reads_its_spikes_when_they_are_sliced(session, tmp_path):
    path = save_session(session, tmp_path)
    with opened_session(path) as opened:
        assert_equal(dataclasses.replace(opened, spikes=session.spikes), session)
        assert len(opened.spikes) == 1000 and opened.spikes.extent == session.spikes.extent
        assert not isinstance(opened.spikes.time, np.ndarray)
        for one, other in zip(opened.spikes.parts(300), session.spikes.parts(300), strict=True):
            assert np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])
        at = session.spikes.time[::100]
        assert np.array_equal(opened.spikes.before(at), session.spikes.before(at))
    with pytest.raises(ZeroDivisionError), opened_session(path):  # what goes wrong inside is not the file's fault
        raise ZeroDivisionError
    with pytest.raises(KeyError), opened_session(path):
        raise KeyError("mine")
    with pytest.raises(SessionError, match="no such file"), opened_session(tmp_path / "none.h5"):
        pass


def test_storing_twice_gives_the_same_bytes(session, tmp_path):
    first = save_session(session, tmp_path).read_bytes()
    assert save_session(session, tmp_path).read_bytes() == first


def test_errors_cross_a_process_unchanged():
    error = pickle.loads(pickle.dumps(SessionError("a", "b", "c")))
    assert str(error) == "a: b; c" and error.exit_code == 1


@pytest.mark.parametrize("name", ["../../etc/passwd", "/absolute", "a b\n;c", "..", "ünï"])
def test_no_id_leads_out_of_the_folder(name, tmp_path):
    path = session_path(f"x/{name}", tmp_path)
    assert path.parent == tmp_path and path.name.startswith("x__") and path.suffix == ".h5"


@pytest.mark.parametrize("part", [0.0, 0.2, 0.6, 0.99])
def test_a_truncated_store_is_refused(session, tmp_path, part):
    path = save_session(session, tmp_path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(SessionError, match="damaged or truncated; run prepare again"):
        load_session(path)


def test_other_files_and_formats_are_refused(session, tmp_path):
    with pytest.raises(SessionError, match="no such file"):
        load_session(tmp_path / "none.h5")
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["x"] = 1
    with pytest.raises(SessionError, match="not a stored session"):
        load_session(other)
    path = save_session(session, tmp_path)
    with h5py.File(path, "r+") as file:
        file.attrs["spikeloom_session"] = 99
    with pytest.raises(SessionError, match="stored in format 99, this version reads 1"):
        describe(path)


def test_two_files_cannot_claim_one_id(session, tmp_path):
    def source(file: str, digest: str) -> Session:
        return replace(session, provenance={**session.provenance, "file": file, "digest": digest})

    save_session(source("a.nwb", "1"), tmp_path)
    save_session(source("a.nwb", "2"), tmp_path)  # the file has changed
    save_session(source("moved.nwb", "2"), tmp_path)  # or moved
    with pytest.raises(SessionError, match="already stored from moved.nwb"):
        save_session(source("b.nwb", "3"), tmp_path)
    assert describe(list_sessions(tmp_path)[0]).provenance["digest"] == "2" and len(list(tmp_path.glob(".*"))) == 0


def spoiled(session: Session, what: str) -> Session:
    time, unit = session.spikes.time, session.spikes.unit
    signal, splits = session.signals["cursor_vel"], session.splits

    def with_signal(**changes) -> Session:
        return replace(session, signals={"cursor_vel": replace(signal, **changes)})

    return {
        "sorted": lambda: replace(session, spikes=Spikes(time[::-1], unit)),
        "not finite": lambda: replace(session, spikes=Spikes(np.append(time[1:], np.nan), unit)),
        "name unit 9": lambda: replace(session, spikes=Spikes(time, np.full_like(unit, 9))),
        "names a unit twice": lambda: replace(session, units=replace(session.units, id=("0",) * 5)),
        "repeated": lambda: with_signal(time=np.zeros_like(signal.time)),
        "back in time": lambda: with_signal(time=signal.time[::-1]),
        "none of its": lambda: with_signal(valid=np.zeros(len(signal.time), bool)),
        "marked valid": lambda: with_signal(value=np.full_like(signal.value, np.nan)),
        "values of shape": lambda: with_signal(value=signal.value[:-1]),
        "domain is empty": lambda: replace(session, domain=Intervals.of([])),
        "train reaches beyond": lambda: replace(session, splits={**splits, "train": Intervals.of([(0, 1e4)])}),
        "train and test overlap": lambda: replace(session, splits={**splits, "train": splits["test"]}),
        "of training time": lambda: replace(session, splits={**splits, "train": Intervals.of([])}),
        "splits are": lambda: replace(session, splits={"train": splits["train"]}),
        "trial column x": lambda: replace(session, trial_columns={"x": np.zeros(3)}),
    }[what]()


@pytest.mark.parametrize(
    "what",
    [
        "sorted",
        "not finite",
        "name unit 9",
        "names a unit twice",
        "repeated",
        "back in time",
        "none of its",
        "marked valid",
        "values of shape",
        "domain is empty",
        "train reaches beyond",
        "train and test overlap",
        "of training time",
        "splits are",
        "trial column x",
    ],
)
def test_checks_name_what_is_wrong(session, what):
    check_session(session)
    with pytest.raises(SessionError, match=what):
        check_session(spoiled(session, what))


def test_signal_type_is_what_the_session_promises(session):
    signal = session.signals["cursor_vel"]
    assert isinstance(signal, Signal) and signal.value.dtype == np.float32 and session.spikes.unit.dtype == np.uint32


def test_times_that_signals_share_are_stored_once(session, tmp_path):
    velocity = session.signals["cursor_vel"]
    late = replace(velocity, name="late", time=velocity.time + 1)
    twin = replace(velocity, name="twin", time=velocity.time.copy(), value=2 * velocity.value)
    signals = {"cursor_vel": velocity, "late": late, "twin": twin}
    path = save_session(replace(session, signals=signals), tmp_path)
    with h5py.File(path, "r") as file:
        assert file["signals/twin/time"] == file["signals/cursor_vel/time"] != file["signals/late/time"]
    for name, loaded in load_session(path).signals.items():
        assert np.array_equal(loaded.time, signals[name].time) and np.array_equal(loaded.value, signals[name].value)


def test_a_long_id_has_a_name_that_file_systems_take(tmp_path):
    one, other = (session_path(f"x/{'y' * 400}{end}", tmp_path) for end in "ab")
    assert one != other and len(one.name) < 200 and one == session_path(f"x/{'y' * 400}a", tmp_path)
    assert session_path("x/short", tmp_path).name == "x__short.h5"
