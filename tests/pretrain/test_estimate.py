"""Estimates of memory against what torch counts: parameters, optimiser state and saves exactly, activations closely."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save

from launch.config import load as load_config
from pretrain.estimate import WIDE, Load, Setup, memory, parameters
from pretrain.models.poyo import Poyo, PoyoConfig
from pretrain.module import DecodingModule
from pretrain.optim import OptimConfig
from pretrain.strategy import BUCKET, StrategyConfig
from pretrain.tasks.regression import Regression, RegressionConfig
from sharding.batch import Batch
from sharding.vocabulary import Vocabulary

UNITS, SESSIONS = Vocabulary(tuple(f"u{i}" for i in range(100))), Vocabulary(("a", "b"))
LAMB, ADAMW = OptimConfig(name="lamb"), OptimConfig(name="adamw")
NO_DROPOUT = dict(attention_dropout=0.0, ff_dropout=0.0, residual_dropout=0.0)
SMALL = PoyoConfig(width=32, depth=1, latents_per_step=4, cross_heads=2, self_heads=2, head_width=16, **NO_DROPOUT)
LAYERLESS = replace(SMALL, depth=0, latents_per_step=1)
LOADS = {  # what most of the bytes belong to
    "nothing": (SMALL, Load(windows=4, tokens=4000, queries=200)),
    "tokens": (LAYERLESS, Load(4, 12000, 100)),
    "latents": (replace(SMALL, latents_per_step=24), Load(4, 100, 100)),
    "queries": (LAYERLESS, Load(4, 100, 3000)),
}
MIXED = LOADS["nothing"][1]
EACH_LOAD = pytest.mark.parametrize("dominant", list(LOADS))
BOTH_PRECISIONS = pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
EITHER_DROPOUT = pytest.mark.parametrize("dropout", [0.0, 0.2], ids=["dry", "dropout"])


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made_batch(load: Load) -> Batch:
    """Windows of nearly equal numbers of tokens and queries, of units and sessions at random."""
    random = torch.Generator().manual_seed(0)
    batch = Batch.blank(load.windows, load.tokens, load.queries, load.dims, load.window_s)
    for tensor in batch.tensors().values():
        tensor.zero_()
    for length, total in ((batch.token_length_B, load.tokens), (batch.query_length_B, load.queries)):
        length += total // load.windows
        length[0] -= 1
        length[-1] += total - int(length.sum())
    batch.token_unit_S.random_(1, len(UNITS), generator=random)
    batch.token_time_S.uniform_(generator=random)
    batch.query_time_Q.uniform_(generator=random)
    batch.query_session_Q.random_(1, len(SESSIONS), generator=random)
    batch.weight_Q.fill_(1.0)
    return batch


def module_of(model: PoyoConfig, optim: OptimConfig = ADAMW) -> DecodingModule:
    torch.manual_seed(0)
    task = Regression(RegressionConfig(), model.width, 2)
    return DecodingModule(Poyo(model, UNITS, SESSIONS), task, optim, 10, seed=0)


def estimate(model: PoyoConfig, load: Load, setup: Setup):
    shapes = parameters(model, RegressionConfig(), UNITS, SESSIONS, 2)
    return memory(model, shapes, load, setup)


def loss_of(module: DecodingModule, batch: Batch, setup: Setup) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=setup.number == 2):
        return module.losses(batch)[0]


def kept_bytes(model: PoyoConfig, load: Load, setup: Setup) -> int:
    """Bytes that autograd keeps of a forward pass, each storage once; not parameters, and not the batch itself."""
    module, batch, kept = module_of(model), made_batch(load), {}
    known = {tensor.untyped_storage().data_ptr() for tensor in [*module.parameters(), *batch.tensors().values()]}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage  # held, so that no other can come to lie at its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_of(module, batch, setup)
    return sum(storage.nbytes() for storage in kept.values())


def peak_bytes(model: PoyoConfig, load: Load, setup: Setup) -> int:
    """The most that torch had allocated in a step at a time, beside what it held before."""
    module, batch = module_of(model), made_batch(load)
    loss_of(module, batch, setup).backward()  # what is made once is made
    module.zero_grad()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        loss_of(module, batch, setup).backward()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("optim", [LAMB, ADAMW, replace(LAMB, average=0.9)], ids=["lamb", "adamw", "average"])
def test_weights_optimiser_and_a_save_are_counted_exactly(optim):
    module, batch = module_of(SMALL, optim), made_batch(MIXED)
    optimizer = module.configure_optimizers()["optimizer"]
    loss_of(module, batch, Setup()).backward()
    optimizer.step()
    told = estimate(SMALL, MIXED, Setup(optim=optim))
    weights = dict(module.named_parameters())
    states = {
        f"{name}/{key}": value for name, weight in weights.items() for key, value in optimizer.state[weight].items()
    }
    assert told.weights == told.gradients == told.checkpoint == sum(w.nbytes for w in weights.values())
    assert told.optimizer == sum(value.nbytes for value in states.values())
    average = {f"average/{name}": w.detach().clone() for name, w in weights.items()} if optim.average else {}
    assert told.average == sum(value.nbytes for value in average.values())
    file = save({name: w.detach() for name, w in weights.items()} | states | average)
    header = 8 + int.from_bytes(file[:8], "little")
    assert told.save == len(file) - header
    assert header < 200 * (len(weights) + len(states) + len(average))


@BOTH_PRECISIONS
@EITHER_DROPOUT
@EACH_LOAD
def test_what_is_kept_for_the_backward_pass_is_counted_to_two_hundredths(dominant, dropout, precision):
    model, load = LOADS[dominant]
    model, setup = replace(model, ff_dropout=dropout, residual_dropout=dropout), Setup(precision=precision)
    assert estimate(model, load, setup).activations == pytest.approx(kept_bytes(model, load, setup), rel=0.02)


@BOTH_PRECISIONS
@EACH_LOAD
def test_probabilities_that_a_cpu_keeps_under_attention_dropout_are_counted(dominant, precision):
    model, load = LOADS[dominant]
    model, setup = replace(model, attention_dropout=0.2), Setup(precision=precision)
    assert estimate(model, load, setup).activations == pytest.approx(kept_bytes(model, load, setup), rel=0.02)
    assert estimate(model, load, replace(setup, device="cuda")).activations < estimate(model, load, setup).activations


@pytest.mark.parametrize("dropout, precision", [(0.0, "32-true"), (0.2, "bf16-mixed")])
@EACH_LOAD
def test_the_peak_of_a_step_is_near_the_estimate(dominant, dropout, precision):
    model, load = LOADS[dominant]
    model = replace(model, attention_dropout=dropout, ff_dropout=dropout, residual_dropout=dropout)
    setup = Setup(precision=precision)
    told, measured = estimate(model, load, setup), peak_bytes(model, load, setup)
    assert 0.95 < (told.activations + told.working) / measured < 1.4


def test_each_strategy_spreads_what_the_table_says():
    one = estimate(SMALL, MIXED, Setup(optim=LAMB))
    whole, ranks = one.weights, 4

    def told(name: str, **offloads):
        setup = Setup(StrategyConfig(name, **offloads), ranks, LAMB)
        return memory(SMALL, parameters(SMALL, RegressionConfig(), UNITS, SESSIONS, 2), MIXED, setup)

    part = pytest.approx(whole / ranks, rel=0.01)  # tensors that four do not divide are filled up
    assert (told("ddp").weights, told("ddp").gradients, told("ddp").optimizer) == (whole, 2 * whole, 2 * whole)
    for name in ("zero1", "zero2", "zero3"):
        assert told(name).optimizer / 2 == part
        assert told(name).save == one.save and told(name).checkpoint == one.checkpoint
    assert told("zero1").weights - whole == told("zero2").weights - whole == told("zero3").weights / 2 == part
    bucket = WIDE * BUCKET
    assert told("zero1").gradients - bucket - whole == told("zero2").gradients - bucket == part
    assert told("zero3").working - one.working == whole
    away = told("zero1", offload_optimizer=True)
    assert (away.weights, away.optimizer) == (whole, 0) and away.host / 3 == part
    all_away = told("zero3", offload_optimizer=True, offload_parameters=True)
    assert all_away.weights == 0 and all_away.host / 4 == part


def test_the_presets_have_the_published_numbers_of_parameters(repository):
    for name, millions in (("poyo_1m", 1.3), ("poyo_12m", 11.8)):
        model = load_config(PoyoConfig, str(repository / f"configs/model/{name}.yaml"), [])
        shapes = parameters(model, RegressionConfig(), Vocabulary(), Vocabulary(), 2)
        assert sum(shape.numel() for shape in shapes.values()) == pytest.approx(millions * 1e6, rel=0.04)
