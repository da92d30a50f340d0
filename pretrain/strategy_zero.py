"""DeepSpeed's ZeRO as one more strategy: what it has cut, put together and given back.

Its stages share out optimiser state (1), gradients (2) and parameters (3) over the ranks. Every tensor having a parameter
group of its own (pretrain.optim.build_optimizer), a rank holds of each the same contiguous slice of the flattened tensor,
zero-padded: elements [rank * n, (rank + 1) * n). Everything here rests on that.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.zero import unwrap_model_for_generation
from deepspeed.utils import groups
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn

from pretrain.average import WeightAverage
from pretrain.errors import ConfigError, ToldElsewhere
from pretrain.optim import Shards
from pretrain.ranks import Ranks
from pretrain.strategy import BUCKET, WAIT, Spread, State, StrategyConfig, placed

# DeepSpeed would compile its collective over shared memory with g++ at the first use on a CPU: 50 s for what gloo does
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def spread_zero(config: StrategyConfig, ranks: Ranks, accelerator: str, precision: str) -> Spread:
    """ZeRO of a config for these ranks; `accelerator` is "cpu" or "cuda"."""
    settings = _settings(config, accelerator, precision)
    plugins = [_Precision(precision, accelerator), ranks.environment]
    spread_by = _SpreadParameters if config.name == "zero3" else _SpreadState
    return spread_by(config.name, _Strategy(accelerator, settings), plugins, ranks)


def _settings(config: StrategyConfig, accelerator: str, precision: str) -> dict:
    """What DeepSpeed is told; accumulation and clipping are added by Lightning."""
    zero = {"stage": int(config.name[-1]), "reduce_bucket_size": BUCKET}
    host = {"device": "cpu", "pin_memory": accelerator == "cuda"}
    if config.offload_optimizer:
        zero["offload_optimizer"] = host
    if config.offload_parameters:
        zero["offload_param"] = host
    if config.name == "zero3":
        zero["memory_efficient_linear"] = False  # it would replace torch's linear in the whole process
    return {
        "train_micro_batch_size_per_gpu": 1,  # said to be; batches differ in size, and nothing is derived from it
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # tested in tests/pretrain/test_strategy.py
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": False},  # bf16-mixed is autocast around float32 weights here, as it is elsewhere
        "torch_autocast": {
            "enabled": precision == "bf16-mixed",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],  # no module's gradients travel in bfloat16
        },
    }


class _Precision(DeepSpeedPrecision):
    """Autocast and nothing else: no part of a batch or of a module changes its type."""

    def __init__(self, precision: str, accelerator: str):
        super().__init__(precision)
        self._accelerator = accelerator

    def convert_module(self, module: nn.Module) -> nn.Module:
        return module

    def convert_input(self, data):
        return data

    def forward_context(self):
        return torch.autocast(self._accelerator, torch.bfloat16, enabled=self.precision == "bf16-mixed")

    def backward(self, tensor, model, optimizer, *args, **kwargs) -> None:
        # Lightning has divided the loss by the parts of a step; DeepSpeed would do so again
        model.trainer.model.backward(tensor, *args, scale_wrt_gas=False, **kwargs)

    def optimizer_step(self, optimizer, model, closure, **kwargs):
        result = super().optimizer_step(optimizer, model, closure, **kwargs)
        if model.trainer.model.optimizer.overflow:  # it has left out the step, on all ranks, and would go on in silence
            where, do = f"step {model.global_step + 1}", "lower optim.lr, or set optim.clip_norm"
            error = ConfigError(where, "the gradient is not finite", do)
            raise error if model.trainer.is_global_zero else ToldElsewhere(str(error), error.exit_code)
        return result


class _Strategy(DeepSpeedStrategy):
    """Lightning's, on a CPU too (it asks for CUDA and for a device's number), and for one rank alone."""

    def __init__(self, accelerator: str, settings: dict):
        backend = "nccl" if accelerator == "cuda" else "gloo"
        quiet = logging.ERROR  # it warns of optimisers that it does not know
        super().__init__(config=settings, timeout=WAIT, process_group_backend=backend, logging_level=quiet)

    def setup_environment(self) -> None:
        super(DeepSpeedStrategy, self).setup_environment()  # without the question for CUDA

    def setup_distributed(self) -> None:
        # DeepSpeed 0.19 with torch 2.13: `torch.distributed.reduce_scatter_tensor` has a new name
        warnings.filterwarnings("ignore", message="`torch.distributed.*` is deprecated", category=FutureWarning)
        reset_seed()
        self.set_world_ranks()
        if not dist.is_initialized():  # one rank alone; left standing, as DeepSpeed keeps groups made of it
            dist.init_process_group(self._process_group_backend, store=dist.HashStore(), rank=0, world_size=1)
        groups._WORLD_GROUP = None  # of an earlier training in this process, maybe of other ranks
        self._init_deepspeed_distributed()

    def _setup_model_and_optimizer(self, model, optimizer, lr_scheduler=None):
        """As Lightning's, which tells DeepSpeed the device a second time by an argument that must not be None."""
        engine, wrapped, _, _ = deepspeed.initialize(
            config=self.config,
            model=model,
            model_parameters=[weight for weight in model.parameters() if weight.requires_grad],
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            dist_init_required=False,
        )
        if self.zero_stage_3:
            _want_until_the_end(model)
        return engine, wrapped


def _want_until_the_end(model: nn.Module) -> None:
    """Have parameters that stand beside a module's children gathered for the whole backward pass.

    DeepSpeed gathers a module's own for it where it meets the tensors that the module gave out; what the model gives out
    (Encoded) hides them from it. Those of modules without children are met, as these give out tensors.
    """
    for module in model.modules():
        if module is not model and next(module.children(), None):
            for weight in module.parameters(recurse=False):
                deepspeed.zero.register_external_parameter(model, weight)


class _SpreadState(Spread):
    """Stages 1 and 2: every rank has all weights, and a slice of all else."""

    def __init__(self, name: str, lightning: DeepSpeedStrategy, plugins: list, ranks: Ranks):
        super().__init__(name, lightning, plugins, ranks)
        self.shards = Shards(ranks.rank, ranks.world, ranks.control)

    @property
    def _zero(self):
        return self.lightning.deepspeed_engine.optimizer

    def _slices(self, module: nn.Module) -> list[tuple[str, nn.Parameter, Tensor]]:
        """Name, parameter, and the slice that the optimiser knows of it, in the optimiser's order."""
        names = {id(weight): name for name, weight in module.named_parameters()}
        return [
            (names[id(weight)], weight, mine) for (weight,), mine in zip(*self._parameters_and_slices(), strict=True)
        ]

    def _parameters_and_slices(self) -> tuple[list[list[nn.Parameter]], list[Tensor]]:
        return self._zero.bit16_groups, self._zero.single_partition_of_fp32_groups

    def whole_optimizer(self, module: nn.Module) -> State | None:
        state, out = self._zero.optimizer.state, {}
        for name, weight, mine in self._slices(module):
            if state.get(mine):
                out[name] = {
                    key: value.clone() if key == "step" else self._together(value, _shape(weight))
                    for key, value in state[mine].items()
                }
        return out if self.ranks.leader else None

    def take_optimizer(self, module: nn.Module, state: State) -> None:
        for name, _, mine in self._slices(module):
            if name in state:
                self._zero.optimizer.state[mine] = {
                    key: placed(key, value if key == "step" else self._slice(value, mine), mine)
                    for key, value in state[name].items()
                }

    def note_gradients(self, module: nn.Module) -> None:
        """DeepSpeed notes them at every step."""

    def gradient_norm(self, module: nn.Module) -> float:
        return float(self.lightning.deepspeed_engine.get_global_grad_norm())

    def _together(self, mine: Tensor, shape: torch.Size) -> Tensor | None:
        """A tensor of this shape, of all ranks' slices, in host memory of the leader; None elsewhere."""
        mine = mine.detach().to("cpu", torch.float32)
        slices = [mine]
        if self.ranks.world > 1:
            slices = [torch.empty_like(mine) for _ in range(self.ranks.world)] if self.ranks.leader else None
            dist.gather(mine, slices, dst=0, group=self.ranks.control)
        return torch.cat(slices)[: shape.numel()].view(shape) if self.ranks.leader else None

    def _slice(self, whole: Tensor, like: Tensor) -> Tensor:
        """This rank's slice, as long as `like`, of a whole tensor."""
        first, n = self.shards.held(whole.numel(), like.numel())
        out = torch.zeros(like.numel(), dtype=whole.dtype)
        out[:n] = whole.reshape(-1)[first : first + n]
        return out


class _SpreadParameters(_SpreadState):
    """Stage 3: a rank has a slice of the weights too; they are put together where they are used."""

    def _parameters_and_slices(self) -> tuple[list[list[nn.Parameter]], list[Tensor]]:
        return self._zero.fp16_groups, self._zero.fp32_partitioned_groups_flat

    def own_tensors(self, module: nn.Module) -> list[Tensor]:
        return [weight.ds_tensor for weight in module.parameters()]

    def whole(self, module: nn.Module, tensors: list[Tensor]) -> dict[str, Tensor] | None:
        out = {
            name: self._together(tensor, _shape(weight))
            for (name, weight), tensor in zip(module.named_parameters(), tensors, strict=True)
        }
        return out if self.ranks.leader else None

    @torch.no_grad()
    def fill(self, module: nn.Module, tensors: list[Tensor], whole: dict[str, Tensor]) -> None:
        for (name, _), tensor in zip(module.named_parameters(), tensors, strict=True):
            tensor.copy_(self._slice(whole[name], tensor))

    def weight_norms(self, module: nn.Module) -> dict[str, float]:
        names, squares = [], []
        for name, weight in module.named_parameters():
            _, n = self.shards.held(weight.ds_numel, weight.ds_tensor.numel())
            names.append(name)
            squares.append(weight.ds_tensor[:n].norm(dtype=torch.float64).square())
        return {name: square**0.5 for name, square in zip(names, self.ranks.sums(*torch.stack(squares).tolist()))}

    @contextmanager
    def reading(self, module: nn.Module, average: WeightAverage | None = None) -> Iterator[None]:
        """As a Spread's; for that time every rank has memory for all weights."""
        with super().reading(module, average):
            self._let_go(module)
            with unwrap_model_for_generation(self.lightning.deepspeed_engine):
                yield
        lasting = self._zero.persistent_parameters
        if lasting:
            lasting[0].all_gather(lasting)

    def _let_go(self, module: nn.Module) -> None:
        """Forget what this rank has gathered, also of the small parameters that always stay: slices may have changed."""
        weights = list(module.parameters())
        weights[0].partition(weights)


def _shape(weight: nn.Parameter) -> torch.Size:
    return getattr(weight, "ds_shape", weight.shape)  # of a parameter that is cut the shape is 0
