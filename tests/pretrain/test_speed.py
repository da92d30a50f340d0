"""Speed: FLOPs are those that torch counts, rates are over the time of steps alone, tokens survive a resume."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pretrain.models.poyo import PoyoConfig
from pretrain.ranks import ALONE, Ranks
from pretrain.speed import STEP_PASSES, Meter, flops, named_peak
from pretrain.train import chosen_sessions, untrained
from sharding.loader import train_loader
from tests.pretrain.conftest import tiny_config, tiny_model


@pytest.mark.parametrize("model", [tiny_model(), PoyoConfig(depth=2)], ids=["tiny", "paper's widths"])
def test_flops_are_those_that_torch_counts(shards, tmp_path, model):
    """Exactly, but for the projections of latents and sessions, which repeat; dropout keeps attention in counted products."""
    config = tiny_config(shards, tmp_path, model=model)
    index = chosen_sessions(str(shards), config.sessions)
    poyo, task, sampling = untrained(model, config.task, config.window_s, index, config)
    batch = next(iter(train_loader(index, sampling, config.loader, seed=1, total_batches=1)))
    with FlopCounterMode(display=False) as forward:
        value_QK = task.readout(poyo(batch))
    with FlopCounterMode(display=False) as step:
        task.loss(task.readout(poyo(batch)), batch).backward()
    pairs = len(torch.unique(batch.token_unit_S * 4 + batch.token_kind_S))
    rows = model.latents_per_step + len(torch.unique(batch.query_session_Q))
    repeated = rows * 2 * model.width * model.cross_heads * model.head_width
    counts = dict(windows=4, tokens=len(batch.token_time_S), queries=len(batch.query_time_Q), window_s=1.0)
    expected = flops(model, **counts, dims=value_QK.shape[1], pairs=pairs)
    assert forward.get_total_flops() == expected + repeated
    assert step.get_total_flops() == STEP_PASSES * forward.get_total_flops()
    assert flops(model, **counts, dims=value_QK.shape[1]) > 0.98 * expected  # what a meter does not know of


@pytest.fixture
def clock(monkeypatch):
    """A clock to be set: clock.now."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("pretrain.speed.time.perf_counter", lambda: clock.now)
    return clock


class Sized:
    """What a Meter reads of a Batch."""

    window_s, query_time_Q = 1.0, range(30)

    def __init__(self, tokens: int, windows: int = 2, idle: bool = False):
        self.token_time_S, self.windows, self.idle = range(tokens), windows, idle

    def __len__(self) -> int:
        return self.windows


def test_a_row_is_of_the_time_of_steps_alone(clock):
    meter = Meter(ALONE, lambda **counts: 10.0 * counts["tokens"], peak=1e5)
    clock.now += 50  # before the first step
    meter.start()
    for tokens in (600, 400):
        meter.begin(waited_s=0.5)
        clock.now += 1.0
        meter.note(Sized(tokens))
    with meter.paused():
        clock.now += 1000  # a validation
    row = meter.row()
    assert row["speed/windows_s"] == 2 and row["speed/tokens_s"] == 500 and row["speed/step_s"] == 1
    assert row["speed/wait_share"] == 0.25  # the first batch was there before the first step
    assert row["speed/tflops"] == pytest.approx(3 * 10 * 1000 / 2 / 1e12)
    assert row["speed/mfu"] == pytest.approx(3 * 10 * 1000 / 2 / 1e5)
    assert row["tokens"] == 1000 and 0.01 < row["memory/host_gb"] < 100
    meter.begin(waited_s=0.5)
    clock.now += 1.0
    meter.note(Sized(100))
    row = meter.row()
    assert row["speed/tokens_s"] == 100 and row["speed/wait_share"] == 0.5 and row["tokens"] == 1100


def test_parts_are_of_one_step_and_idle_ones_of_none(clock):
    meter = Meter(ALONE)
    meter.begin(0.0)
    for part in (Sized(300, 1), Sized(200, 1), Sized(50, 1, idle=True)):
        meter.note(part)
    clock.now += 2.0
    row = meter.row()
    assert row["speed/step_s"] == 2 and row["speed/windows_s"] == 1 and row["tokens"] == 500
    assert not {"speed/tflops", "speed/mfu"} & row.keys()  # of a model whose FLOPs nobody counted


def test_tokens_since_the_last_row_are_in_a_save(clock):
    meter = Meter(ALONE)
    for tokens in (10, 20):
        meter.begin(0.0)
        meter.note(Sized(tokens))
    meter.row()
    meter.note(Sized(5))
    saved = meter.state_dict()
    again = Meter(ALONE)
    again.load_state_dict(saved)
    again.note(Sized(7))
    meter.note(Sized(7))
    clock.now += 1
    assert saved == {"tokens": 35} and again.row()["tokens"] == meter.row()["tokens"] == 42


def test_ranks_add_up_but_their_time_does_not(clock):
    class Two(Ranks):
        """As if another rank had the same numbers; the real exchange is tested in test_ranks."""

        def sums(self, *values):
            return [2.0 * value for value in values]

        def most(self, *values):
            return list(values)

    meter = Meter(Two(0, 2, 0, 2), lambda **counts: 10.0 * counts["tokens"], peak=1e5)
    meter.start()
    meter.begin(0.0)
    meter.begin(0.5)
    meter.note(Sized(1000))
    clock.now += 2.0
    row = meter.row()
    assert row["speed/tokens_s"] == 1000 and row["speed/step_s"] == 1 and row["speed/wait_share"] == 0.25
    assert row["speed/mfu"] == pytest.approx(3 * 10 * 1000 / 2 / 1e5)  # of two devices' peak


@pytest.mark.parametrize(
    "name, peak",
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", None),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
    ],
)
def test_a_peak_is_that_of_the_very_device(name, peak):
    assert named_peak(name, "bf16-mixed") == (peak and pytest.approx(peak))


def test_float32_counts_as_tf32_only_where_torch_may_round():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert named_peak("NVIDIA H200", "32-true") == pytest.approx(66.9e12)
        torch.set_float32_matmul_precision("high")
        assert named_peak("NVIDIA H200", "32-true") == pytest.approx(494.7e12)
    finally:
        torch.set_float32_matmul_precision(before)
