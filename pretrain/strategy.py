"""How a training is spread over devices."""

from dataclasses import dataclass

from pretrain.errors import ConfigError

NAMES = ("auto", "ddp", "zero1", "zero2", "zero3")


@dataclass(frozen=True)
class StrategyConfig:
    name: str = "auto"
    "auto (one device alone, DDP over several), ddp, or DeepSpeed's zero1, zero2, zero3"
    offload_optimizer: bool = False
    "keep optimiser state in host memory (zero1, zero2, zero3)"
    offload_parameters: bool = False
    "keep parameters in host memory (zero3)"

    def __post_init__(self):
        if self.name not in NAMES:
            raise ConfigError(
                "trainer.strategy.name", f"{self.name!r} is no strategy", f"take one of {', '.join(NAMES)}"
            )
        if self.offload_optimizer and not self.name.startswith("zero"):
            raise ConfigError("trainer.strategy.offload_optimizer", f"needs DeepSpeed, not {self.name}", "take zero1")
        if self.offload_parameters and self.name != "zero3":
            raise ConfigError("trainer.strategy.offload_parameters", f"needs zero3, not {self.name}", "take zero3")
