"""How names of series are understood, and how a proposed recipe is written: any text survives, remarks stand in place."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.discover_text import as_yaml
from data_prep.discover_words import meaning, signal_name, words
from data_prep.recipe import Moment, PhaseRecipe, Recipe, SignalRecipe, TrialsRecipe
from launch.config import load


@pytest.mark.parametrize(
    "place, quantity, effector, neural",
    [
        ("processing/behavior/Velocity/cursor_vel", "velocity", "cursor", False),
        ("processing/behavior/Position/Hand", "position", "hand", False),
        ("acquisition/OpenLoopKinematicsVelocity", "velocity", "", False),
        ("analysis/ThresholdCrossings", "", "", True),
        ("analysis/SpikingBandPower", "", "", True),
        ("analysis/mrs_position", "position", "finger", False),
        ("processing/ecephys/LFP/LFP", "", "", True),
        ("acquisition/preprocessed_emg/ECRB", "emg", "muscle", False),
    ],
)
def test_words_of_a_place(place, quantity, effector, neural):
    found = meaning(place)
    assert (found.quantity, found.effector, found.neural) == (quantity, effector, neural)


def test_names_of_signals_are_words_and_differ():
    assert words("OpenLoopKinematics") == ["open", "loop", "kinematics"]
    hand = meaning("processing/behavior/Position/Hand")
    assert signal_name(["processing/behavior/Position/Hand"], hand, set()) == "hand_pos"
    fingers = ["analysis/index_velocity", "analysis/mrs_velocity"]
    assert signal_name(fingers, meaning(fingers[0]), set()) == "finger_vel"
    taken = {"cursor_vel", "other_cursor_vel"}
    assert signal_name(["other/cursor_vel"], meaning("other/cursor_vel"), taken) == "other_cursor_vel_2"


# what a configuration cannot say (see _sayable of discover) is no text of a recipe
TEXT = st.text(min_size=1, max_size=30).filter(lambda text: "${" not in text and text != "???")


@settings(max_examples=40)
@given(description=TEXT, subject=TEXT, column=TEXT, remark=TEXT, factor=st.floats(1e-6, 1e6))
def test_any_text_survives_the_yaml(tmp_path_factory, description, subject, column, remark, factor):
    recipe = Recipe(
        name="any",
        description=description,
        subject=subject,
        signals={"a": SignalRecipe(path=[column, "b/c"], factor=factor), "b": SignalRecipe(derive_from="a")},
        trials=TrialsRecipe(factors={"ts": 0.001}, valid="result == 'R'"),
        phases={"hold": PhaseRecipe(Moment(column), Moment("stop_time", next=True))},
    )
    remarks = {"subject": [remark], "signals.a.factor": [remark, remark], "signals.a": [remark], "domain": [remark]}
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(as_yaml(recipe, remarks, [remark]), encoding="utf-8")
    assert load(Recipe, str(file), []) == recipe


def test_a_remark_stands_beside_its_line():
    recipe = replace(Recipe(name="x"), signals={"v": SignalRecipe(path=["a/v"], unit="cm/s")})
    text = as_yaml(recipe, {"signals.v.unit": ["as of a hand"], "units.region": ["nothing names one"]}, ["Head."])
    assert text == (
        "# Head.\nname: x\n\n# units.region: nothing names one\n\nsignals:\n  v:\n    path: [a/v]\n"
        "    unit: cm/s # as of a hand\n"
    )
