"""Recipe: what a folder of NWB files keeps where, and how its sessions are to be cut; one YAML file is one Recipe."""

import hashlib
import json
from dataclasses import asdict, dataclass, field

FORMAT = 2  # part of every hash: raise it when the same recipe would read the same file differently

_UNREAD = ("description", "dandiset", "version", "files")  # words that do not change what is made of a file


@dataclass(frozen=True)
class Moment:
    """A time within a trial."""

    column: str = "start_time"
    "Trial column that holds the time, in seconds on the file's clock; `column[k]` is part k of one with several a trial."
    next: bool = False
    "Whether the column is read from the following trial that has a value there (the last trial: see `last_trial_s`)."
    offset_s: float = 0.0
    "Seconds added to it."


@dataclass(frozen=True)
class UnitsRecipe:
    """Which units are kept, and how they are named."""

    source: list[str] = field(default_factory=lambda: ["units", "ThresholdCrossings", "binned_spikes"])
    "Where spikes are, first hit wins: `units` (the units table) or a series of counts, bins x units (full path or last parts)."
    bin_time: str = "start"
    "What the times of a series of counts mark: start, centre or stop of the bin. Spikes are spread evenly inside it."
    id_column: str = "id"
    "Column that names a unit; names must differ within a session."
    quality_column: str = "quality"
    "Column stored as the unit's quality, where the file has it."
    region: list[str] = field(default_factory=lambda: ["electrodes", "electrode_group", "location"])
    "Where to look for the brain region, first answer wins: `electrodes`, `electrode_group`, `id`, or a column of the units."
    region_map: dict[str, str] = field(default_factory=dict)
    "Regular expression -> region; the first expression found in the file's text renames it."
    keep: str = ""
    "Condition on unit columns (data_prep/expression.py), such as quality == 'good'; others are left out. Empty: all kept."
    held_out: str = ""
    "Boolean column of the units the dandiset withholds in its test files (NLB: heldout); empty or absent: none."
    roster: str = ""
    "Pattern of the file beside this one whose unit table, in its order, this one takes; units it lacks are missing."
    min_spikes: int = 0
    "Units with fewer spikes are left out; 0 keeps silent ones too."


@dataclass(frozen=True)
class SignalRecipe:
    """One behaviour series, read or derived."""

    path: list[str] = field(default_factory=list)
    "Places to look in, first hit wins: a full path (processing/behavior/Velocity/cursor_vel) or its last parts."
    columns: list[int] = field(default_factory=list)
    "Columns taken, in this order, counted from 0; empty takes all."
    unit: str = ""
    "Unit of measure handed on (cm/s); the values are converted to it. Empty: as the file has it."
    stated_unit: str = ""
    "Unit of measure to believe instead of the file's attribute, where that is wrong or missing."
    factor: float = 1.0
    "Number the values are multiplied with first (50 for something stated per 20-ms bin)."
    conversion: bool = True
    "Whether the file's conversion and offset are applied to the values."
    clock: str = ""
    "`period`: the file misuses rate for the period and offset for the start, t = offset + i * rate (FALCON H1)."
    rated_hz: float = 0.0
    "Sampling rate the file must have, Hz: refused where its median interval differs by more than 1 %; 0 asks nothing."
    derive_from: str = ""
    "Signal whose rate of change this one is, taken when no place of `path` exists."
    hz: float = 0.0
    "Rate to resample to, stretch by stretch, in Hz; 0 keeps the file's own samples."
    gap: float = 1.5
    "A pause longer than this many median sample intervals ends a stretch; nothing is computed across it."
    required: bool = True
    "Whether a file without it is refused; else the session simply lacks it."
    plausible: list[float] = field(default_factory=list)
    "[low, high] for the 99.9 percentile of the norm, in `unit`; outside, the file is refused. Empty: no check."


@dataclass(frozen=True)
class TrialsRecipe:
    """Which trials there are, and which of them are good."""

    table: str = "trials"
    "Name of the table under intervals/; empty means no trials. A file without it has none."
    start: Moment = field(default_factory=Moment)
    "Where a trial starts."
    stop: Moment = field(default_factory=lambda: Moment("stop_time"))
    "Where a trial stops."
    last_trial_s: float = 1.0
    "Where a Moment asks for the next trial and there is none: seconds after the file's own stop_time."
    valid: str = ""
    "Condition a good trial meets, such as result == 'R' and 0.5 < duration < 6; only good ones become valid and test."
    factors: dict[str, float] = field(default_factory=dict)
    "Column -> factor it is multiplied with first (0.001 for a column in ms); columns a file lacks are passed over."


@dataclass(frozen=True)
class PhaseRecipe:
    """A named part of every trial."""

    start: Moment = field(default_factory=Moment)
    "Where it starts."
    stop: Moment = field(default_factory=lambda: Moment("stop_time"))
    "Where it stops; a trial where start or stop is missing has no such phase."
    trials: str = "valid"
    "Which trials have it: valid, invalid or all."
    optional: bool = False
    "Whether a file that lacks the columns is read without this phase; else it is refused."
    mask: list[str] = field(default_factory=list)
    "Places of a true/false series, first hit wins: the phase is where it is true, and trials do not count."
    invert: bool = False
    "Whether the phase is where the mask is false."
    clock: str = ""
    "`period`: the mask misuses rate for the period and offset for the start, as `clock` of a signal says."


@dataclass(frozen=True)
class OutlierRecipe:
    """Samples nobody should learn from; they become the phase `outlier`, which outranks all others."""

    signal: str = ""
    "Signal the rule looks at."
    derivative: int = 0
    "How often it is differentiated first (1 makes an acceleration of a velocity)."
    norm_above: float | None = None
    "Samples whose norm over columns exceeds this are outliers, in the signal's unit per s^derivative."
    any_above: float | None = None
    "Samples with any |column| beyond this are outliers, same unit."
    dilate: int = 0
    "Width in samples by which each run grows in all, half on either side."
    erode: int = 0
    "Width in samples by which each run then shrinks in all."


@dataclass(frozen=True)
class StillRecipe:
    """Rest, left out of the domain."""

    signal: str = ""
    "Signal that tells rest (a speed); empty means that rest stays in."
    below: float = 0.0
    "Norm below which the animal is at rest, in the signal's unit."
    longer_than_s: float = 10.0
    "Rest shorter than this many seconds stays in."


@dataclass(frozen=True)
class DomainRecipe:
    """Where recording and behaviour are real and contiguous."""

    observed: bool = True
    "Whether to keep to the obs_intervals that all units share, where the file has them."
    signals: list[str] = field(default_factory=list)
    "Signals that must be there without a gap; empty means the first signal of the recipe."
    invalid_times: bool = True
    "Whether the file's table of invalid times is left out."
    epochs_table: str = ""
    "Table of epochs to keep to, under intervals/; empty means no such limit."
    epochs: str = ""
    "Condition an epoch of that table meets, such as 'task' in tags."
    still: StillRecipe = field(default_factory=StillRecipe)
    "Rest to leave out."
    min_s: float = 1.0
    "Shorter stretches, of the domain and of a split, are dropped, seconds (the window is the shortest useful one)."


@dataclass(frozen=True)
class SplitsRecipe:
    """How a session is cut into train, valid and test."""

    by: str = "blocks"
    "`trial`: whole trials are drawn; `blocks`: equal blocks of time; `column`: as a trial column says."
    train: float = 0.7
    "Share of trials or blocks."
    valid: float = 0.1
    "Share of trials or blocks."
    test: float = 0.2
    "Share of trials or blocks."
    run: int = 1
    "So many trials that follow each other are drawn together, where one alone is shorter than a window; shares count runs."
    blocks: int = 20
    "Number of equal blocks the domain is cut into, for `by: blocks`."
    column: str = ""
    "Trial column that names the split, for `by: column`."
    values: dict[str, list[str]] = field(default_factory=dict)
    "Split -> values of that column. A split that is not named is drawn out of train by its share."
    rest: str = "train"
    "What becomes of time outside the drawn trials: `train`, or `drop`."
    seed: int = 42
    "Seed of the draw."
    guard_s: float = 1.0
    "Seconds kept free between two splits; valid yields to test, train to both."
    guard: str = "any"
    "Between which: `any` two of them, or only between `train` and the others, while valid and test may touch (POYO)."


@dataclass(frozen=True)
class Recipe:
    """Everything that differs between dandisets, and nothing else."""

    name: str = ""
    "Name of the group its sessions belong to; starts every session id."
    description: str = ""
    "One sentence for people."
    dandiset: str = ""
    "DANDI identifier (000688), where it has one."
    version: str = ""
    "Pinned version of the dandiset."
    paradigm: str = ""
    "Task of the animal, as a short name."
    subject: str = ""
    "Subject to state where the file names none."
    reader: str = "nwb"
    "What the files are: `nwb`, or MATLAB files of `makin` (O'Doherty, Makin, Sabes) or `flint` (Flint, Slutzky)."
    files: list[str] = field(default_factory=lambda: ["**/*.nwb", "**/*.nwb.zarr"])
    "Patterns of the files that are sessions, below their source."
    part: int = 0
    "Which recording of a file that holds several, counted from 0 (flint)."
    session: str = "session_id"
    "What names a session: `session_id` (identifier where blank), `identifier`, or `file`."
    units: UnitsRecipe = field(default_factory=UnitsRecipe)
    "Which units, and their regions."
    signals: dict[str, SignalRecipe] = field(default_factory=dict)
    "Name -> series; the first is the primary one. Empty: sessions of spikes only."
    repairs: list[str] = field(default_factory=list)
    "Named mends of data_prep/repairs.py, in order."
    trials: TrialsRecipe = field(default_factory=TrialsRecipe)
    "The trial table."
    phases: dict[str, PhaseRecipe] = field(default_factory=dict)
    "Name -> part of a trial, in rising precedence where they overlap. Time in no phase is called `random`."
    outliers: list[OutlierRecipe] = field(default_factory=list)
    "Rules that mark outliers."
    domain: DomainRecipe = field(default_factory=DomainRecipe)
    "Where data count at all."
    splits: SplitsRecipe = field(default_factory=SplitsRecipe)
    "Train, valid and test."
    loss_weights: dict[str, float] = field(default_factory=dict)
    "Phase -> weight of its samples in the loss (1 if absent); `random` and `outlier` may be named."
    eval_phases: list[str] = field(default_factory=list)
    "Phases on which decoding is judged; empty means everywhere."
    target_scale: dict[str, float] = field(default_factory=dict)
    "Signal -> divisor the literature uses for targets, in the signal's unit."
    min_train_s: float = 30.0
    "A session with less training time is refused, seconds."

    def hash(self) -> str:
        """16 hex digits that change whenever the recipe would make other sessions."""
        content = {key: value for key, value in asdict(self).items() if key not in _UNREAD}
        text = json.dumps([FORMAT, content], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
