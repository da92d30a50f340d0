"""What goes wrong in a training, noticed: numbers that are not finite, weights that collapse or explode, sessions that are
never decoded.

    RUN/alarms.jsonl           a line an alarm, as they stand in the log
    RUN/alarms/step-N.json     where a step's loss was not finite: its windows and what was found, for `spikeloom replay`

Alarms travel in every save: a resumed run tells nothing twice.
"""

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pretrain.datamodule import ShardDataModule
from pretrain.errors import ConfigError
from pretrain.module import DecodingModule, norm_of, seed_step
from pretrain.ranks import Ranks
from pretrain.run import write_whole
from sharding.batch import Batch

LOG = logging.getLogger("spikeloom")
FELL, ROSE = 0.01, 100.0  # of a weight's norm: the share of its greatest, and the multiple of its first (1 at least)
BELOW_ZERO = 3  # validations in a row, in the second half of a training, that a session's R2 is below zero
NAMED = 8  # names that a line lists


@dataclass(frozen=True)
class Trained:
    """What is kept of a batch whose step is over, in place of all its tensors: enough to make it again."""

    number: int
    place_B: torch.Tensor
    idle: bool

    @staticmethod
    def of(batch: "Batch | Trained") -> "Trained":
        return Trained(batch.number, batch.place_B.clone(), batch.idle)


class Alarms:
    """Told what a training measures, says what is wrong with it, each thing once; the leader writes."""

    def __init__(self, folder: str | Path, data: ShardDataModule, ranks: Ranks):
        self.folder, self.data, self.ranks = Path(folder), data, ranks
        self.told: list[dict] = []
        self._norms: dict[str, list[float]] = {}  # first and greatest
        self._below: dict[str, int] = {}  # validations in a row
        self._write()

    # ------------------------------------------------------------------------------------------------ kinds

    def loss(self, step: int, value: float, batches: Sequence[Batch | Trained], module: DecodingModule) -> None:
        """The loss of a step was not finite: write what can be known of it, raise ConfigError. Asked by all ranks together.

        `batches` are this rank's parts of the step's global batch, or what is kept of them. Where the weights are still
        those from before the step and one process trains, the first output that is not finite is named; else what is left
        to see: tensors of the batch, weights, gradients.
        """
        self._spoiled(step, "loss", value, batches, module)

    def gradient(self, step: int, norm: float, batches: Sequence[Batch | Trained], module: DecodingModule) -> None:
        """As loss(), of a step whose gradient's norm was not finite: its loss may well have been."""
        self._spoiled(step, "gradient", norm, batches, module)

    def _spoiled(
        self, step: int, kind: str, value: float, batches: Sequence[Batch | Trained], module: DecodingModule
    ) -> None:
        found = found_in(step, batches, module)
        record = {
            "step": step,
            kind: str(value),
            "batch": batches[0].number,
            "seed": self.data.seed,
            "found": found,
            "windows": self._windows(batches),
        }
        where = self.folder / "alarms" / f"step-{step}.json"
        first = found[0] if found else "on this rank all is finite"

        def tell() -> None:
            where.parent.mkdir(exist_ok=True)
            write_whole(where, json.dumps(record, indent=1).encode())
            self._tell(kind, step, f"the {kind} is {value}; {first}", names=[first])
            raise ConfigError(
                f"step {step}",
                f"the {kind} is {value} ({first}; {where} names its windows)",
                f"look closer by `spikeloom replay run={self.folder}`; where the data are sound lower optim.lr or set "
                "optim.clip_norm",
            )

        self.ranks.by_leader(tell)

    def norms(self, step: int, norms: dict[str, float]) -> None:
        """Norms of the weights by name: one that fell below 1 % of its greatest, or rose a hundredfold, is told."""
        fallen, risen = [], []
        for name, norm in norms.items():
            first, greatest = self._norms.setdefault(name, [norm, norm])
            self._norms[name][1] = greatest = max(greatest, norm)
            if norm < FELL * greatest:
                fallen.append((name, greatest, norm))
            elif not norm <= ROSE * max(first, 1.0):  # NaN too
                risen.append((name, first, norm))
        cures = {
            "fall": "LAMB shrinks what has no gradient: begin again with optim.safe=true, or a lower optim.weight_decay",
            "rise": "lower optim.lr, or set optim.clip_norm",
        }
        for kind, found in (("fall", fallen), ("rise", risen)):
            new = [row for row in found if not self._known(kind, row[0])]
            if new:
                parts = [f"{name} from {before:.3g} to {now:.3g}" for name, before, now in new]
                self._tell(kind, step, f"weight norms {kind}: {_some(parts)}; {cures[kind]}", [row[0] for row in new])

    def scores(self, step: int, total_steps: int, scores: dict[str, float]) -> None:
        """R2 by session of a validation: sessions below zero in three in a row of the second half are told together.

        After the last step two in a row are enough.
        """
        if 2 * step < total_steps:
            return
        enough = 2 if step == total_steps else BELOW_ZERO
        for session, score in scores.items():
            self._below[session] = 0 if not score < 0 else self._below.get(session, 0) + 1
        new = [name for name in scores if self._below[name] >= enough and not self._known("below zero", name)]
        if new:
            found = f"{len(new)} of {len(scores)} sessions are decoded worse than by their mean: R2 stays below zero"
            self._tell(
                "below zero", step, f"{found} in {_some(new)}; look at their units and signals, or exclude them", new
            )

    # ------------------------------------------------------------------------------------------------ record

    def summary(self) -> list[dict]:
        """All alarms of the run, as in alarms.jsonl."""
        return self.told

    def state_dict(self) -> dict:
        return {"told": self.told, "norms": self._norms, "below": self._below}

    def load_state_dict(self, state: dict) -> None:
        self.told, self._norms, self._below = state["told"], state["norms"], state["below"]
        self._write()

    def _known(self, kind: str, name: str) -> bool:
        return any(alarm["kind"] == kind and name in alarm["names"] for alarm in self.told)

    def _tell(self, kind: str, step: int, line: str, names: list[str]) -> None:
        self.told.append({"step": step, "kind": kind, "names": names, "line": line})
        if self.ranks.leader:
            LOG.warning("step %d: %s", step, line)
        self._write()

    def _write(self) -> None:
        if self.ranks.leader:
            write_whole(self.folder / "alarms.jsonl", "".join(json.dumps(alarm) + "\n" for alarm in self.told).encode())

    def _windows(self, batches: Sequence[Batch | Trained]) -> list[dict]:
        """Place, session and start (microseconds) of every window of the global batch, on the leader."""
        real = [batch.place_B.cpu().numpy() for batch in batches if not batch.idle]
        places = self.ranks.gathered(np.concatenate([np.zeros(0, np.int64), *real]))
        if places is None:
            return []
        return windows_at(self.data, np.sort(np.concatenate(places)))


def windows_at(data: ShardDataModule, places: np.ndarray) -> list[dict]:
    """Place in the plan, session and start (microseconds on its clock) of training windows."""
    table = data.train.windows(places)
    sessions = data.index.segments.session[table.segment]
    ids = data.index.session_ids
    rows = zip(places.tolist(), sessions.tolist(), table.start_us.tolist())
    return [{"place": place, "session": ids[session], "start_us": start} for place, session, start in rows]


# ------------------------------------------------------------------------------------------------ what is not finite


@dataclass(frozen=True)
class Numbers:
    """What a tensor holds: how many numbers, how many that are not finite, the largest size of the others."""

    name: str
    size: int
    nan: int
    infinite: int
    largest: float

    @staticmethod
    def of(name: str, tensor: torch.Tensor) -> "Numbers":
        tensor = tensor.detach()
        nan, infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        largest = float(tensor.abs().nan_to_num(0.0, 0.0, 0.0).max()) if tensor.numel() else 0.0
        return Numbers(name, tensor.numel(), nan, infinite, largest)

    @property
    def finite(self) -> bool:
        return not self.nan + self.infinite

    def __str__(self) -> str:
        return f"{self.name} has {self.nan} NaN and {self.infinite} infinite of {self.size}"


def found_in(step: int, batches: Sequence[Batch | Trained], module: DecodingModule) -> list[str]:
    """What is not finite, a line each, the likeliest cause first: tensors of the batch, weights (of an earlier step's
    gradient), the first output when the batch is run through again (by one process, while the weights are finite),
    gradients, those nearest the loss first."""
    weights = not_finite(module.named_parameters())
    batches = [batch for batch in batches if isinstance(batch, Batch)]
    lines = [f"the batch's {bad}" for batch in batches for bad in not_finite(batch.tensors().items())]
    lines += [f"the weight {bad}" for bad in weights]
    if module.ranks.world == 1 and not weights:
        for number, batch in enumerate(batches):
            seed_step(module.seed, step - 1, 0, number)
            with outputs(module) as seen, torch.no_grad(), module.trainer.precision_plugin.train_step_context():
                value = module.addend(batch)
            bad = next((numbers for numbers in seen if not numbers.finite), None)
            if bad:
                lines.append(f"the output of {bad}")
            elif not bool(torch.isfinite(value)):
                lines.append(f"all outputs are finite, the last up to {seen[-1].largest:.3g}: their error is not")
    grads = gradients(module)
    bad = not_finite(grads)
    if grads and not bad and not math.isfinite(norm_of(grad for _, grad in grads)):
        worst = max((Numbers.of(*named) for named in grads), key=lambda numbers: numbers.largest)
        lines.append(f"all gradients are finite, up to {worst.largest:.3g} in {worst.name}: their norm is not")
    return lines + [f"the gradient of {numbers}" for numbers in bad]


def gradients(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """By the names of the parameters, those nearest the loss first, as a backward pass comes to them."""
    return [(name, weight.grad) for name, weight in reversed([*module.named_parameters()]) if weight.grad is not None]


def not_finite(named: Iterable[tuple[str, torch.Tensor]]) -> list[Numbers]:
    """Of the tensors that hold NaN or infinity."""
    suspects = [(name, tensor) for name, tensor in named if tensor.is_floating_point()]
    return [Numbers.of(name, tensor) for name, tensor in suspects if not bool(torch.isfinite(tensor).all())]


@contextmanager
def outputs(module: nn.Module) -> Iterator[list[Numbers]]:
    """While inside, the outputs of submodules, in the order in which they come."""
    seen: list[Numbers] = []

    def look(name: str) -> Callable:
        def hook(_module, _inputs, output) -> None:
            parts = output if isinstance(output, tuple) else (getattr(output, "feature_QD", output),)
            seen.extend(Numbers.of(name, part) for part in parts)

        return hook

    with ExitStack() as stack:
        for name, part in module.named_modules():
            if name:
                stack.callback(part.register_forward_hook(look(name)).remove)
        yield seen


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
