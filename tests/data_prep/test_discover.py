"""What discover proposes for an unknown file is read by prepare unchanged, and says of the file what is true of it."""

from importlib import import_module
from pathlib import Path

import h5py
import numpy as np
import pytest
from pynwb import TimeSeries

from data_prep.assembly import read_session
from data_prep.discover import Proposal, discover
from data_prep.errors import SessionError
from data_prep.prepare import PrepareConfig, prepare
from data_prep.recipe import Recipe
from data_prep.session import SPLITS, Session
from data_prep.store import list_sessions, load_session
from data_prep.synthetic import SyntheticConfig, write_sessions
from launch.cli import main
from launch.config import load

REAL = {  # file -> primary signal and its unit of measure; None: no behaviour in the file
    "myow_perich/sub-Chewie_ses-CO-20131003.nwb": ("cursor_vel", "cm/s"),
    "nstat_hc/sub-nSTAT1_ses-PlaceCell1.nwb": ("position", "normalized"),
    "original/sub-anm369963_ses-20170228.nwb": None,
    "original/A8604-211122.nwb": None,
}
SLOW_REAL = {
    "degenhart_bci/sub-Degenhart2020_ses-20160325.nwb": ("cursor_vel", "mm/s"),
    "dynconstr_bci/sub-MonkeyE_ses-20181004.nwb": ("cursor_vel", "mm/s"),
    "limblab_co/*": ("cursor_vel", "cm/s"),
    "limblab_wf/*": ("cursor_vel", "cm/s"),
    "nelpy_hc/*": ("position", "pixels"),
    "vdm_hc/*": ("position", "cm"),
}
LAYOUTS = {  # module -> layout -> the same
    "perich": {"perich_co": ("cursor_vel", "cm/s"), "perich_rt": ("cursor_vel", "cm/s")},
    "churchland": {f"churchland_{k}": ("cursor_vel", "mm/s") for k in (1, 2, 3, 4, 5, "reset")},
    "even_chen": {"even_chen": ("cursor_vel", "mm/s")},
    "nlb": {
        "nlb_maze": ("hand_vel", "mm/s"),
        "nlb_rtt": ("finger_vel", "mm/s"),
        "nlb_bump": ("hand_vel", "cm/s"),
        "nlb_rsg": None,
        "nlb_maze_test": None,
        "nlb_rsg_test": None,
    },
    "link": {"link": ("finger_vel", "flexion units/s"), "link_old": ("finger_vel", "flexion units/s")},
    "falcon": {
        "falcon_m1": ("emg", "mV"),
        "falcon_m2": ("finger_vel", "AU"),
        "falcon_h1": ("open_loop_kinematics_velocity", "arbitrary/s"),
        "falcon_h2": None,
    },
}
QUICK_LAYOUTS = ("perich_rt", "churchland_reset", "nlb_maze", "link", "falcon_h1")


def proposed(path: Path, folder: Path, expected: tuple[str, str] | None) -> tuple[Proposal, Session]:
    """The proposal and the session that `prepare` makes by the printed text, once all that must hold of both does."""
    found = discover(path)
    assert found.refusal == "" and not found.text().startswith("# REFUSED")
    text = folder / "proposed.yaml"
    text.write_text(found.text(), encoding="utf-8")
    recipe = load(Recipe, str(text), [])
    assert recipe == found.recipe, "what is printed is what was tried"
    report = prepare(PrepareConfig(recipe=recipe, source=str(path), output=str(folder / "out"), workers=0))
    assert report.exit_code == 0, report.lines()
    session = load_session(list_sessions(folder / "out")[0])
    assert len(session.spikes) > 0
    assert all(session.splits[name].seconds > 0 for name in SPLITS)
    primary = next(iter(session.signals.values()), None)
    assert (primary and (primary.name, primary.unit_of_measure)) == expected
    return found, session


@pytest.mark.parametrize("file", REAL)
def test_a_real_file_is_read_by_what_is_proposed_for_it(real_data, tmp_path, file):
    proposed(real_data / file, tmp_path, REAL[file])


@pytest.mark.slow
@pytest.mark.parametrize("pattern", SLOW_REAL)
def test_every_real_file_is_read_by_what_is_proposed_for_it(real_data, tmp_path, pattern):
    for path in sorted(real_data.glob(pattern)):
        (tmp_path / path.stem).mkdir()
        proposed(path, tmp_path / path.stem, SLOW_REAL[pattern])


def layouts(quick: bool) -> list:
    return [(m, name) for m, kinds in LAYOUTS.items() for name in kinds if (name in QUICK_LAYOUTS) == quick]


def assert_layout(module: str, name: str, folder: Path) -> tuple[Proposal, Session]:
    write = import_module(f"tests.data_prep.layouts.{module}").LAYOUTS[name]
    return proposed(write(folder / f"{name}.nwb"), folder, LAYOUTS[module][name])


@pytest.mark.slow
@pytest.mark.parametrize("module, name", layouts(quick=False))
def test_a_layout_is_read_by_what_is_proposed_for_it(tmp_path, module, name):
    assert_layout(module, name, tmp_path)


def test_every_layout_of_nwb_files_is_tried():
    there = {path.stem for path in (Path(__file__).parent / "layouts").glob("*.py")} - {"reaching", "everything"}
    assert there - {"makin", "flint"} == set(LAYOUTS), "the two are MATLAB files, which discover does not read"
    for module, kinds in LAYOUTS.items():
        assert set(import_module(f"tests.data_prep.layouts.{module}").LAYOUTS) == set(kinds)


def test_repeated_times_of_perich_are_mended_and_phases_found(tmp_path):
    found, session = assert_layout("perich", "perich_rt", tmp_path)
    assert found.recipe.repairs == ["drop_repeated_timestamps"]
    assert found.recipe.trials.valid == "result == 'R'"
    assert found.recipe.phases["reach"].start.column == "go_cue_time_array.0"
    assert set(session.units.region) == {"M1", "PMd"}


def test_a_reset_clock_is_seen_and_metres_are_not_believed(tmp_path):
    found, session = assert_layout("churchland", "churchland_reset", tmp_path)
    assert found.recipe.repairs[0] == "clock_reset"
    assert found.recipe.signals["cursor_pos"].stated_unit == "mm"
    assert "meters" in found.text() and "unsure" in found.text()
    assert session.signals["cursor_vel"].derived_from == "cursor_pos"


def test_what_the_neural_latents_benchmark_marks_is_found(tmp_path):
    found, session = assert_layout("nlb", "nlb_maze", tmp_path)
    assert found.recipe.units.held_out == "heldout" and sum(session.units.held_out) > 0
    assert found.recipe.splits.by == "column" and found.recipe.splits.values == {"train": ["train"], "test": ["val"]}
    assert found.recipe.trials.factors == {"rt": 0.001, "delay": 0.001}


def test_counts_are_found_where_there_is_no_units_table(tmp_path):
    found, session = assert_layout("link", "link", tmp_path)
    assert "ThresholdCrossings" in found.recipe.units.source[0]
    assert found.recipe.signals["finger_vel"].factor == pytest.approx(50), "it is stated per bin of 20 ms"
    assert session.signals["finger_vel"].value.shape[1] == 2


def test_a_rate_that_is_a_period_is_seen(tmp_path):
    found, session = assert_layout("falcon", "falcon_h1", tmp_path)
    velocity = session.signals["open_loop_kinematics_velocity"]
    assert found.recipe.signals[velocity.name].clock == "period"
    assert np.median(np.diff(velocity.time)) == pytest.approx(0.02)
    assert found.recipe.phases["eval"].mask == ["acquisition/eval_mask"]


# ---------------------------------------------------------------------------------- one thing at a time


def test_synthetic_sessions_come_out_in_the_unit_of_their_file(tmp_path):
    """The eight differ in rate, unit, gaps and clock; one has no velocity. Speeds of all agree in cm/s."""
    speeds = []
    for path in write_sessions(tmp_path, SyntheticConfig(minutes=1.0)):
        found = discover(path)
        primary = next(iter(read_session(path, found.recipe).signals.values()))
        assert found.outcome.primary == ("cursor_vel", primary.unit_of_measure, 2) and found.refusal == ""
        assert set(found.outcome.phases) == {"hold", "reach"}
        speeds.append(float(np.std(primary.value)) * {"cm/s": 1.0, "mm/s": 0.1}[primary.unit_of_measure])
    assert len(speeds) == 8 and max(speeds) < 2 * min(speeds)
    first = discover(tmp_path / "sub-Ada_ses-CO-01.nwb").recipe
    report = prepare(PrepareConfig(recipe=first, source=str(tmp_path), output=str(tmp_path / "all"), workers=0))
    assert report.exit_code == 0 and len(report.rows) == 8, "a velocity in mm/s is converted, a missing one is derived"


@pytest.mark.parametrize("size, unit", [(0.5, "m/s"), (50.0, "cm/s"), (500.0, "mm/s")])
def test_the_speed_decides_where_the_file_names_no_unit(nwb, size, unit):
    time = np.arange(5000) / 50
    velocity = size * np.stack([np.sin(time), np.cos(time)], axis=1)
    found = discover(nwb(velocity=velocity, position=False, unit="unknown"))
    signal = found.recipe.signals["cursor_vel"]
    assert (signal.unit, signal.stated_unit) == (unit, unit)
    assert any("unsure" in text for text in found.remarks["signals.cursor_vel.stated_unit"])


def test_a_position_of_known_unit_decides_before_the_speed_does(nwb):
    """0.3 m/s could be 30 cm/s or 300 mm/s by its size alone; beside a position in m the numbers tell."""
    time = np.arange(5000) / 50
    position = 0.3 * np.stack([np.sin(time), np.cos(time)], axis=1)
    velocity = 30 * np.stack([np.cos(time), -np.sin(time)], axis=1) * 10  # mm/s
    path = nwb(velocity=velocity, position=position, unit="unknown")
    with h5py.File(path, "r+") as file:
        file["processing/behavior/Position/cursor_pos/data"].attrs["unit"] = "m"
    assert discover(path).recipe.signals["cursor_vel"].stated_unit == "mm/s"


def test_a_stated_unit_is_kept_and_doubted_when_no_hand_moves_so(nwb):
    time = np.arange(5000) / 50
    found = discover(nwb(velocity=1000 * np.stack([np.sin(time), np.cos(time)], axis=1), position=False, unit="cm/s"))
    signal = found.recipe.signals["cursor_vel"]
    assert (signal.unit, signal.stated_unit, signal.plausible) == ("cm/s", "", [])
    assert any("unsure" in text and "10 m/s" in text for text in found.remarks["signals.cursor_vel.unit"])


def test_the_limits_it_proposes_refuse_a_swap_of_cm_and_mm(nwb, tmp_path):
    time = np.arange(5000) / 50
    wave = np.stack([np.sin(time), np.cos(time)], axis=1)
    recipe = discover(nwb(velocity=40 * wave)).recipe
    swapped = nwb("swapped.nwb", velocity=400 * wave)
    report = prepare(PrepareConfig(recipe=recipe, source=str(swapped), output=str(tmp_path / "out"), workers=0))
    assert report.exit_code == 1 and "99.9 percentile is 400 cm/s" in report.rows[0].message


def test_lost_frames_are_let_pass_and_long_gaps_are_not(nwb):
    random = np.random.default_rng(0)
    time = np.arange(5000) / 50
    lost = np.zeros(5000, dtype=bool)
    for start in random.choice(4990, 100, replace=False):
        lost[start : start + 2] = True
    lost[2000:2500] = True
    time = time[~lost]
    found = discover(nwb(time=time, velocity=40 * np.stack([np.sin(time), np.cos(time)], axis=1), position=False))
    assert 1.5 < found.recipe.signals["cursor_vel"].gap <= 12
    assert found.outcome.stretches == 2


def test_unsorted_and_repeated_times_are_mended(nwb):
    time = np.arange(5000) / 50
    time[[100, 101]] = time[[101, 100]]
    time[300] = time[299]
    found = discover(nwb(time=time))
    assert found.recipe.repairs == ["sort_timestamps", "drop_repeated_timestamps"]
    assert found.outcome is not None


def test_good_trials_are_those_that_say_so(nwb):
    def flags(file):
        file.add_trial_column("is_good", "bad trials are not analysed", data=[True] * 40 + [False] * 8)
        file.add_trial_column("discarded", "set aside", data=[k % 10 == 0 for k in range(48)])

    found = discover(nwb(change=flags))
    assert found.recipe.trials.valid == "result == 'R' and is_good and not discarded"
    assert found.recipe.splits.by == "trial"


def test_few_trials_give_blocks_of_time(nwb):
    found = discover(nwb(trials=12))
    assert found.recipe.splits.by == "blocks"
    assert "where 20 would do" in found.text()


def test_epochs_of_the_task_are_kept_to(nwb):
    def epochs(file):
        for start, stop, tag in ((0, 20, "prerest"), (20, 80, "task"), (80, 100, "postrest")):
            file.add_epoch(start_time=float(start), stop_time=float(stop), tags=[tag])

    found = discover(nwb(change=epochs))
    assert found.recipe.domain.epochs == "'task' in tags"
    assert found.outcome.seconds == pytest.approx(60, abs=0.1)


def test_series_that_are_no_behaviour_are_passed_over_with_a_reason(nwb):
    time = np.arange(6000) / 50
    wave = np.stack([np.sin(time), np.cos(time)], axis=1)

    def oddities(file):
        def add(name, data, unit="cm", **clock):
            file.add_acquisition(TimeSeries(name=name, data=data, unit=unit, **(clock or {"rate": 50.0})))

        add("empty_pos", np.zeros((0, 2)))
        add("missing_vel", np.full((100, 2), np.nan))
        add("still_pos", np.ones((6000, 2)))
        add("slow_pos", wave[::500], rate=0.1)
        add("wide_pos", np.random.default_rng(0).normal(size=(100, 64)))
        add("words", ["a", "b"], timestamps=[0.0, 1.0])
        add("lost_time_pos", wave, timestamps=np.where(time == 0.1, np.nan, time))
        add("hand vel # 1", 30 * wave, unit="cm/s", timestamps=time)

    found = discover(nwb(change=oddities, position=False, velocity=False))
    assert found.outcome.primary == ("hand_vel", "cm/s", 2) and list(found.recipe.signals) == ["hand_vel"]
    assert found.recipe.signals["hand_vel"].path == ["acquisition/hand vel # 1"]
    told = next(line for line in found.head if line.startswith("Passed over"))
    for part in (
        "empty_pos",
        "missing_vel (every value is missing)",
        "it never changes",
        "0.1 Hz, behaviour is sampled",
        "64 columns",
        "words",
        "1 of its times are not finite",
    ):
        assert part in told


def test_times_that_only_fall_are_sorted(nwb):
    time = np.arange(5000) / 50
    found = discover(nwb(time=time[::-1], position=False))
    assert found.recipe.repairs[0] == "sort_timestamps" and found.outcome.primary[0] == "cursor_vel"


def test_a_recording_of_a_few_seconds_says_what_comes_out_empty(nwb):
    time = np.arange(200) / 50
    found = discover(nwb(time=time, trials=0, spikes=[np.linspace(0, 4, 100)]))
    assert found.outcome.splits["test"] == 0
    assert any("come out empty" in line for line in found.head)


def test_a_file_whose_behaviour_and_spikes_never_meet_is_refused_at_the_top(nwb, tmp_path, capsys):
    path = nwb(time=5000 + np.arange(5000) / 50, trials=0)
    assert discover(path).text().startswith("# REFUSED by its own file: small.nwb: nothing is left of observed")
    assert main(["discover", str(path), f"output={tmp_path / 'no.yaml'}"]) == 1
    assert "its own file refuses it" in capsys.readouterr().out


def test_a_nameless_file_is_named_after_itself(nwb):
    path = nwb("sub-Bo_ses-7.nwb", session_id=None, subject="")
    with h5py.File(path, "r+") as file:
        file["identifier"][()] = "0b5d2a8e-6c60-4c5e-9a6a-0c8d0e7a4b11"
    found = discover(path)
    assert (found.recipe.session, found.recipe.subject, found.recipe.name) == ("file", "Bo", "sub-Bo_ses-7")


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("absent.nwb", None, "no such file"),
        ("empty.nwb", b"", "empty"),
        ("text.nwb", b"not HDF5 at all", "not an HDF5 file"),
    ],
)
def test_a_file_that_cannot_be_opened_is_one_line(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SessionError, match=words) as caught:
        discover(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_one_line(nwb, tmp_path):
    whole = nwb().read_bytes()
    path = tmp_path / "cut.nwb"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SessionError, match="truncated") as caught:
        discover(path)
    assert "\n" not in str(caught.value)


def test_a_file_without_spikes_says_what_was_looked_at(nwb):
    path = nwb()
    with h5py.File(path, "r+") as file:
        del file["units"]
    with pytest.raises(SessionError, match="no spikes: no units table.*Velocity/cursor_vel"):
        discover(path)


def test_the_command_writes_a_recipe_and_never_over_another(nwb, tmp_path, capsys):
    path, out = nwb(), tmp_path / "mine.yaml"
    assert main(["discover", str(path), f"output={out}"]) == 0
    assert load(Recipe, str(out), []).name == "mine"
    before = out.read_bytes()
    assert main(["discover", str(path), f"output={out}", "name=other"]) == 2
    assert "is there already" in capsys.readouterr().err and out.read_bytes() == before
    assert main(["discover", str(path), f"output={out}", "name=other", "overwrite=true"]) == 0
    assert load(Recipe, str(out), []).name == "other"
    assert main(["discover", str(path)]) == 0
    printed = capsys.readouterr().out
    assert printed.split("\n", 1)[1].startswith("# Proposed from one file, small.nwb")


# ---------------------------------------------------------------------------------- words and text


@pytest.mark.parametrize("text, told", [("???", "Proposed from"), ("costs ${5} a day", "costs $ {5} a day")])
def test_a_description_that_no_configuration_can_hold(nwb, tmp_path, text, told):
    def describe(file) -> None:
        file.fields["session_description"] = text

    found = discover(nwb(change=describe))
    (tmp_path / "mine.yaml").write_text(found.text())
    assert told in load(Recipe, str(tmp_path / "mine.yaml"), []).description
