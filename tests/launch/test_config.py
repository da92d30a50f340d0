"""Typed configuration: what a file and settings say becomes an object, anything else one clear line."""

import enum
from dataclasses import dataclass, field, replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import ConfigError
from launch.config import as_mapping, load, to_yaml
from launch.fields import field_docs
from launch.files import did_you_mean, find_file


class Shade(enum.Enum):
    DARK = 1
    LIGHT = 2


@dataclass(frozen=True)
class Signal:
    path: str
    """where the series lies in the file"""
    scale: float = 1.0


@dataclass(frozen=True)
class Small:
    name: str = "small"
    depth: int = 2
    rates: list[float] = field(default_factory=lambda: [0.1, 0.2])


@dataclass(frozen=True)
class Large:  # stores no name: the choice's key alone selects it
    width: int = 512
    depth: int = 24


MODELS = {"small": Small, "large": Large}


@dataclass(frozen=True)
class Augment:
    least: int = 10
    mode: Literal["beta", "flat"] = "beta"


@dataclass(frozen=True)
class Run:
    output: str = "runs/one"
    """folder of the run"""
    steps: int = 100
    lr: float = 1e-3
    fast: bool = False
    note: str | None = None
    scale: str | float = "recipe"
    shade: Shade = Shade.DARK
    files: str | list[str] = ""
    sessions: tuple[str, ...] = ("*",)
    weights: dict[str, float] = field(default_factory=lambda: {"hold": 0.1})
    grid: list[list[int]] = field(default_factory=list)
    model: Small | Large = field(default_factory=lambda: Small(depth=3), metadata={"choices": MODELS})
    augment: Augment | None = None
    signals: dict[str, Signal] = field(default_factory=dict)
    """series by name"""
    extra: list[Signal] = field(default_factory=list)


@dataclass(frozen=True)
class Needs:
    signal: Signal
    output: str


@pytest.fixture
def written(tmp_path, monkeypatch):
    """write(name, text) puts a file below configs/ of a fresh working directory, and returns its path."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> str:
        path = tmp_path / "configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write


def refused(*args, **kwargs) -> str:
    with pytest.raises(ConfigError) as error:
        load(*args, **kwargs)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_no_file_and_no_settings_give_the_defaults():
    assert load(Run, None, []) == Run()


def test_a_file_then_settings(written):
    text = "steps: 7\nsessions: [a, b]\nweights: {reach: 5}\nmodel: {depth: 9}\ngrid: [[1], [2, 3]]\n"
    path = written("run.yaml", text)
    got = load(Run, path, ["lr=3e-4", "fast=yes", "note=10 Hz", "weights.hold=0.5", "shade=LIGHT", "scale=2"])
    assert got == Run(
        steps=7,
        sessions=("a", "b"),
        weights={"reach": 5.0, "hold": 0.5},
        model=Small(depth=9),
        lr=3e-4,
        fast=True,
        note="10 Hz",
        shade=Shade.LIGHT,
        scale=2.0,
        grid=[[1], [2, 3]],
    )


def test_a_mapping_keeps_what_it_does_not_say_and_a_path_swaps_the_whole_section(written):
    written("model/large.yaml", "name: large\nwidth: 64\n")
    assert load(Run, None, ["model.rates=[1]"]).model == Small(depth=3, rates=[1.0])
    assert load(Run, None, ["model=model/large.yaml"]).model == Large(width=64)
    run = written("run.yaml", "model: model/large.yaml\n")
    assert load(Run, run, ["model.depth=8"]).model == Large(width=64, depth=8)


def test_a_swap_comes_before_the_keys_set_in_it_in_any_order(written):
    written("model/large.yaml", "name: large\n")
    assert load(Run, None, ["model.depth=8", "model=model/large.yaml"]).model == Large(depth=8)


def test_choosing_by_name_starts_from_the_choice_s_own_defaults(written):
    assert load(Run, None, ["model.name=large"]).model == Large()
    assert load(Run, None, ["model={name: large, width: 8}"]).model == Large(width=8)
    assert load(Run, written("run.yaml", "model: {name: large}\n"), ["model.depth=1"]).model == Large(depth=1)


def test_an_optional_section_appears_when_a_key_of_it_is_set_and_goes_with_null(written):
    assert load(Run, None, ["augment.least=5"]).augment == Augment(least=5)
    assert load(Run, written("run.yaml", "augment: {least: 5}\n"), ["augment=null"]).augment is None


def test_sections_in_lists_and_mappings(written):
    path = written("run.yaml", "signals: {vel: {path: /a, scale: 2}}\nextra: [{path: /b}]\n")
    got = load(Run, path, ["signals.vel.scale=3", "signals.pos={path: /c}"])
    assert got.signals == {"vel": Signal("/a", 3.0), "pos": Signal("/c")} and got.extra == [Signal("/b")]
    assert "signals.vel.path: it is not set" in refused(Run, None, ["signals.vel.scale=3"])
    assert "extra[0].paht: no such key; did you mean path?" in refused(Run, None, ["extra=[{paht: /b}]"])


def test_the_file_may_hold_one_section(written):
    path = written("signal.yaml", "path: /units\n")
    got = load(Needs, path, ["output=out", "signal.scale=4"], positional="signal")
    assert got == Needs(Signal("/units", 4.0), "out")


def test_a_section_s_file_is_found_from_configs_and_beside_the_file_that_names_it(written, tmp_path):
    beside = tmp_path / "own"
    beside.mkdir()
    (beside / "signal.yaml").write_text("path: /beside\n")
    (beside / "needs.yaml").write_text("signal: signal.yaml\noutput: out\n")
    assert load(Needs, str(beside / "needs.yaml"), []).signal == Signal("/beside")


def test_a_setting_that_is_text_or_a_list_takes_either(written):
    assert load(Run, None, ["files=a"]).files == "a" and load(Run, None, ["files=012"]).files == "012"
    assert load(Run, None, ["files=[a, b]"]).files == ["a", "b"]
    assert load(Run, written("run.yaml", "files: [a, b]"), []).files == ["a", "b"]
    assert refused(Run, None, ["files={a: 1}"]).startswith("files: {'a': 1} is not text or a list, each text")


def test_a_list_of_texts_may_be_typed_bare_and_begin_with_a_star():
    for text, wanted in (
        ("*0822", ("*0822",)),
        ("[*0822, b*]", ("*0822", "b*")),
        ("a,b", ("a", "b")),
        ("[1]", ("1",)),
        ("['a,b', c]", ("a,b", "c")),
        ("[]", ()),
    ):
        assert load(Run, None, [f"sessions={text}"]).sessions == wanted


def test_text_stays_as_it_was_typed():
    for text in ("010", "1e3", "on", "null", "2012-08-22", "a: b", "[x", "a=b", ""):
        assert load(Run, None, [f"output={text}"]).output == text
    assert load(Run, None, ["note=null"]).note is None


@pytest.mark.parametrize(
    "settings, line",
    [
        (["stesp=3"], "stesp: no such key; did you mean steps?"),
        (["depth=3"], "depth: no such key; did you mean model.depth?"),
        (["model.dept=3"], "model.dept: no such key; did you mean depth?"),
        (["steps=many"], "steps: 'many' is not a whole number; give a whole number"),
        (["steps=2.5"], "steps: 2.5 is not a whole number; give a whole number"),
        (["steps=true"], "steps: True is not a whole number; give a whole number"),
        (["steps=null"], "steps: None is not a whole number; give a whole number"),
        (["lr=[1]"], "lr: [1] is not a number; give a number"),
        (["fast=perhaps"], "fast: 'perhaps' is not true or false; give true or false"),
        (["sessions={a: 1}"], "sessions: {'a': 1} is not a list, each text; give a list, each text"),
        (["weights.hold=x"], "weights.hold: 'x' is not a number; give a number"),
        (["augment.mode=round"], "augment.mode: 'round' is not 'beta' or 'flat'; give 'beta' or 'flat'"),
        (["model.name=smal"], "model.name: there is no 'smal'; did you mean small?"),
        (["model=3"], "model: 3 is not a section; give a mapping or the path of a YAML file"),
        (["steps.x=3"], "steps.x: steps has no keys of its own; give a whole number"),
        (["steps"], "steps: not a setting; write key=value, for example batch=32"),
        (["=3"], "=3: not a setting; write key=value, for example batch=32"),
        (["steps=[1,"], "steps: '[1,' cannot be read; give a whole number"),
        (
            ["note=${oc.env:HOME}"],
            "note: '${oc.env:HOME}' holds ${...}; write the value itself: nothing is interpolated",
        ),
    ],
)
def test_what_is_wrong_is_one_line(settings, line):
    assert refused(Run, None, settings) == line


def test_a_file_s_error_names_the_file(written):
    path = written("run.yaml", "steps: many\n")
    assert refused(Run, path, []) == f"{path}: steps: 'many' is not a whole number; give a whole number"
    path = written("two.yaml", "model: {name: small, dpeth: 1}\n")
    assert refused(Run, path, []) == f"{path}: model.dpeth: no such key; did you mean depth?"


def test_what_must_be_given_is_asked_for():
    assert refused(Needs, None, []) == "signal: it is not set; give signal=..., a mapping or the path of a YAML file"
    assert refused(Needs, None, ["signal.path=/a"]) == "output: it is not set; give output=..., text"


def test_a_missing_file_suggests_its_neighbour(written):
    written("model/poyo_tiny.yaml", "")
    assert refused(Run, "configs/model/poyo_tyni.yaml", []) == (
        "configs/model/poyo_tyni.yaml: no such file; did you mean configs/model/poyo_tiny.yaml?"
    )
    assert "not the path of a YAML file" in refused(Run, "configs/model", [])


@pytest.mark.parametrize(
    "text",
    [
        "output: !!python/object/apply:os.system ['touch HACKED']",
        "output: !!python/name:os.system",
        "output: !!python/object/apply:pathlib.Path ['x']",
        "output: !!binary aGVsbG8=",
        "output: ${oc.env:HOME}",
        "output: ${",
        "steps: [1",
        "- 1",
        "steps: 1\nsteps: 2",
        "1: 2",
        "output: 12",
    ],
)
def test_a_file_that_builds_objects_or_is_no_mapping_is_refused(written, tmp_path, text):
    assert "run.yaml" in refused(Run, written("run.yaml", text), [])
    assert not (tmp_path / "HACKED").exists()


def test_a_binary_file_is_refused(written, tmp_path):
    path = written("run.yaml", "")
    (tmp_path / "configs" / "run.yaml").write_bytes(b"\x89HDF\r\n\x1a\n\xff\xfe")
    assert "run.yaml" in refused(Run, path, [])


@pytest.mark.parametrize("path", ["/etc/secret.yaml", "../outside.yaml", "model/../../outside.yaml"])
def test_a_file_names_no_path_outside_its_folders(written, tmp_path, path):
    (tmp_path / "outside.yaml").write_text("name: small\n")
    assert "outside of its folders" in refused(Run, written("run.yaml", f"model: {path}\n"), [])


plain = st.text(max_size=12).filter(lambda text: "${" not in text and text != "???" and "\x85" not in text)
number = st.floats(allow_nan=False)
signal = st.builds(Signal, path=plain, scale=number)


small = st.builds(Small, depth=st.integers(), rates=st.lists(number, max_size=3))
models = small | st.builds(Large, width=st.integers())


@given(
    st.builds(
        Run,
        output=plain,
        steps=st.integers(),
        lr=number,
        fast=st.booleans(),
        note=st.none() | plain,
        scale=plain | number,
        files=plain | st.lists(plain),
        shade=st.sampled_from(Shade),
        sessions=st.lists(plain).map(tuple),
        weights=st.dictionaries(plain, number, max_size=3),
        grid=st.lists(st.lists(st.integers(), max_size=3), max_size=3),
        model=models,
        signals=st.dictionaries(plain, signal, max_size=2),
        extra=st.lists(signal, max_size=2),
        augment=st.none() | st.builds(Augment, least=st.integers(), mode=st.sampled_from(["beta", "flat"])),
    )
)
def test_yaml_loads_back_to_an_equal_object(tmp_path_factory, config):
    path = tmp_path_factory.getbasetemp() / "back.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load(Run, str(path), []) == config


def test_a_mapping_names_the_choice():
    assert as_mapping(replace(Run(), model=Large()))["model"] == {"name": "large", "width": 512, "depth": 24}


def test_did_you_mean_lists_what_there_is_when_nothing_is_near():
    assert did_you_mean("zzz", ["prepare", "shard"]) == "use one of: prepare, shard"


def test_docs_are_the_literals_under_the_fields():
    assert field_docs(Run) == {"output": "folder of the run", "signals": "series by name"}


def test_a_shipped_file_is_found_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("configs/model/poyo_1m.yaml", "model/poyo_1m.yaml"):
        assert find_file(path, "").is_file()
