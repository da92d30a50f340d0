"""POYO: spikes as tokens, a PerceiverIO over one second of them (Azabou et al. 2023, "A Unified, Scalable Framework for
Neural Population Decoding").

    1. every spike, and a start and an end mark of every unit, is a token: unit embedding + kind embedding, at its time;
    2. latents, the same learned few at each of 8 steps of the window, attend to all tokens (values turned by time);
    3. they attend to each other, `depth` times;
    4. one query per behaviour sample, the session's embedding at the sample's time, attends to the latents.

What repeats is computed once: a token's content depends on (unit, kind) alone, a query's on the session, and latents are
alike in all windows, so keys, values and queries are projected for distinct contents, gathered, then turned by time.
Attention is packed, without padding. Defaults are the 1.3 M single-session preset of the authors.

Four options change the start only, never the function computed from given weights; the paper has none of them. Started as
in the paper, both cross-attentions average nearly all of a window, and the random readout of what little the spikes move is
noise, so the first steps teach the model to ignore the spikes and the next hundreds wake them again, at R2 = 0.
`zero_readout` spares it that; `local_start` lets both cross-attentions look near their own time from the first step;
`calibrated_start` makes their outputs vary around 0 with sd 1; `tuned_start` puts units tuned alike in like places
(measured one by one in BENCHMARKS.md).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pretrain.errors import ConfigError
from pretrain.nn.attention import CrossAttention, SelfAttention
from pretrain.nn.blocks import FeedForward
from pretrain.nn.embedding import GrowingTable
from pretrain.nn.rotary import RotaryTime
from pretrain.outputs import Encoded
from sharding.batch import Batch
from sharding.vocabulary import Vocabulary


@dataclass(frozen=True)
class PoyoConfig:
    name: str = "poyo"
    width: int = 64
    "channels of tokens, latents and queries"
    depth: int = 6
    "processing layers"
    latents_per_step: int = 16
    "distinct latents, reused at every step of the window"
    latent_step_s: float = 0.125
    "seconds between latent steps; latents stand at step centres"
    cross_heads: int = 2
    "heads of the encoder's and decoder's cross-attention"
    self_heads: int = 8
    "heads of the processing layers"
    head_width: int = 64
    "channels of a head; the first half turns with time"
    ff_multiple: int = 4
    "inner width of feed-forward blocks, in widths"
    attention_dropout: float = 0.2
    "dropout on attention probabilities (on a CPU any value above 0 takes a slower kernel)"
    ff_dropout: float = 0.2
    "dropout inside feed-forward blocks"
    residual_dropout: float = 0.4
    "dropout on the outputs of the processing layers"
    embedding_std: float = 0.02
    "standard deviation of fresh unit, session, kind and latent embeddings"
    min_period_s: float = 1e-4
    "shortest rotary period, seconds"
    max_period_s: float = 2.0627
    "longest rotary period, seconds"
    local_start: float = 0.0
    "height of the logit that makes both cross-attentions start near a query's own time; 0 is the paper's start"
    local_shortest_s: float = 0.1
    "shortest rotary period that takes part in local_start, seconds"
    calibrated_start: bool = False
    "scale both cross-attentions' outputs to mean 0 and sd 1 on the first batches before training; off in the paper"
    tuned_start: float = 0.0
    "share (of variance) of a fresh unit embedding that the unit's tuning in the train split decides; 0 in the paper"
    zero_readout: bool = False
    "start the task's readout at zero, so that the first steps do not learn to ignore the spikes; off in the paper"

    def __post_init__(self):
        if not 0 <= self.tuned_start <= 1:
            raise ConfigError("model.tuned_start", f"is {self.tuned_start}", "give a share from 0 to 1")


class ProcessingLayer(nn.Module):
    """Self-attention and feed-forward on latents, each added through dropout."""

    def __init__(self, config: PoyoConfig):
        super().__init__()
        self.attention = SelfAttention(config.width, config.self_heads, config.head_width, config.attention_dropout)
        self.feed_forward = FeedForward(config.width, config.ff_multiple, config.ff_dropout)
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(self, z_LD, turn, lengths):
        z_LD = z_LD + self.dropout(self.attention(z_LD, turn, lengths))
        return z_LD + self.dropout(self.feed_forward(z_LD))


class Poyo(nn.Module):
    """The model; see the opening of this file. Tables have a row per name of the vocabularies, and row 0."""

    def __init__(self, config: PoyoConfig, units: Vocabulary, sessions: Vocabulary):
        super().__init__()
        self.config, self.width = config, config.width
        std, cross = (
            config.embedding_std,
            (config.width, config.cross_heads, config.head_width, config.attention_dropout),
        )
        self.unit = GrowingTable(len(units), config.width, std)
        self.session = GrowingTable(len(sessions), config.width, std)
        self.kind = nn.Parameter(
            torch.randn(4, config.width) * std
        )  # spike, unit start, unit end; the fourth is unused
        self.latent = nn.Parameter(torch.randn(config.latents_per_step, config.width) * std)
        self.rotary = RotaryTime(config.head_width, config.min_period_s, config.max_period_s)
        self.encoder = CrossAttention(*cross, rotate_values=True)
        self.encoder_ff = FeedForward(config.width, config.ff_multiple, config.ff_dropout)
        self.layers = nn.ModuleList(ProcessingLayer(config) for _ in range(config.depth))
        self.decoder = CrossAttention(*cross, rotate_values=False)
        self.decoder_ff = FeedForward(config.width, config.ff_multiple, config.ff_dropout)
        if config.local_start > 0:
            for attention in (self.encoder, self.decoder):
                attention.start_local(config.local_start, self.rotary.period_P, config.local_shortest_s)

    @torch.no_grad()
    def start_units(self, row_U: np.ndarray, start_UD: np.ndarray) -> None:
        """Bring fresh embeddings (rows of the unit table) near `start_UD` (channels of about unit variance)."""
        share, chance_UD = self.config.tuned_start, self.unit.weight[torch.as_tensor(row_U)]
        tuned_UD = self.config.embedding_std * torch.as_tensor(start_UD).to(chance_UD)
        self.unit.weight[torch.as_tensor(row_U)] = (1 - share) ** 0.5 * chance_UD + share**0.5 * tuned_UD

    def start(self, task: nn.Module, batches: Iterable[Batch]) -> None:
        """The last touch to fresh weights before training: the options that need the task or its first batches."""
        if self.config.zero_readout:
            task.start_at_zero()
        if self.config.calibrated_start:
            self._calibrate(list(batches))

    @torch.no_grad()
    def _calibrate(self, batches: list[Batch]) -> None:
        """Scale what the cross-attentions add, the encoder's first, then the decoder's, on the same batches."""
        training = self.training
        self.eval()
        for attention in (self.encoder, self.decoder):
            outputs: list[torch.Tensor] = []
            hook = attention.register_forward_hook(lambda _module, _inputs, output, into=outputs: into.append(output))
            for batch in batches:
                self(batch)
            hook.remove()
            attention.start_calibrated(torch.cat(outputs))
        self.train(training)

    def grow(self, units: Vocabulary, sessions: Vocabulary) -> None:
        """Add fresh rows for the names that extended vocabularies bring; every other parameter stays as it is."""
        self.unit.grow(len(units))
        self.session.grow(len(sessions))

    def tables(self) -> dict[str, GrowingTable]:
        """The embedding tables of units and of sessions: all that unit identification trains."""
        return {"unit": self.unit, "session": self.session}

    def forward(self, batch: Batch) -> Encoded:
        """Features (Q, D) for the batch's queries."""
        windows, tokens, queries = len(batch), batch.token_length_B.tolist(), batch.query_length_B.tolist()

        # 1. Tokens: key and value contents of the distinct (unit, kind) pairs, gathered.
        pair_E, pair_S = torch.unique(batch.token_unit_S * 4 + batch.token_kind_S, return_inverse=True)
        content_ED = self.unit(pair_E // 4) + self.kind[pair_E % 4]
        k_SNH, v_SNH = (x_ENH.index_select(0, pair_S) for x_ENH in self.encoder.context(content_ED))

        # 2. Latents read the tokens.
        steps = round(batch.window_s / self.config.latent_step_s)
        step_time = (torch.arange(steps, device=pair_S.device) + 0.5) * self.config.latent_step_s
        latent_turn = self.rotary(step_time.repeat_interleave(len(self.latent)).repeat(windows))
        q_LNH = self.encoder.query(self.latent).repeat(windows * steps, 1, 1)
        latents = [steps * len(self.latent)] * windows
        z_LD = self.latent.repeat(windows * steps, 1)
        token_turn = self.rotary(batch.token_time_S)
        z_LD = z_LD + self.encoder(q_LNH, k_SNH, v_SNH, latent_turn, token_turn, latents, tokens)
        z_LD = z_LD + self.encoder_ff(z_LD)

        # 3. Latents read each other.
        for layer in self.layers:
            z_LD = layer(z_LD, latent_turn, latents)

        # 4. Queries read the latents; their contents are those of the distinct sessions.
        session_E, session_Q = torch.unique(batch.query_session_Q, return_inverse=True)
        content_ED = self.session(session_E)
        q_QNH = self.decoder.query(content_ED).index_select(0, session_Q)
        y_QD = content_ED.index_select(0, session_Q)
        query_turn = self.rotary(batch.query_time_Q)
        y_QD = y_QD + self.decoder(q_QNH, *self.decoder.context(z_LD), query_turn, latent_turn, queries, latents)
        return Encoded(feature_QD=y_QD + self.decoder_ff(y_QD))
