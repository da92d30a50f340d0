"""A plain, slow, padded twin of POYO, written straight from the paper's description, to hold the fast model against."""

import math

import torch
from torch.nn.functional import gelu, layer_norm, linear


def turn(x_BNSH, time_BS):
    """Rotate the first 32 channels of every head, pair by pair, one Python step per pair."""
    out = x_BNSH.clone()
    pairs = x_BNSH.shape[-1] // 4
    for i in range(pairs):
        period = 1e-4 * (2.0627 / 1e-4) ** (i / (pairs - 1))
        angle = (2 * math.pi / period * time_BS)[:, None]
        a, b = x_BNSH[..., 2 * i], x_BNSH[..., 2 * i + 1]
        out[..., 2 * i] = a * angle.cos() - b * angle.sin()
        out[..., 2 * i + 1] = b * angle.cos() + a * angle.sin()
    return out


def norm(x, module):
    return layer_norm(x, (x.shape[-1],), module.weight, module.bias)


def attention(x_q, x_kv, t_q, t_kv, mask_BS, w_q, w_k, w_v, out, heads, rotate_values):
    """Dense attention with a mask over padded keys, softmax written out."""
    q, k, v = (
        linear(x, w).unflatten(-1, (heads, -1)).transpose(1, 2) for x, w in ((x_q, w_q), (x_kv, w_k), (x_kv, w_v))
    )
    q, k = turn(q, t_q), turn(k, t_kv)
    if rotate_values:
        v = turn(v, t_kv)
    score = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    score = score.masked_fill(~mask_BS[:, None, None, :], -math.inf)
    o = score.softmax(-1) @ v
    if rotate_values:
        o = turn(o, -t_q)
    return linear(o.transpose(1, 2).flatten(-2), out.weight, out.bias)


def feed_forward(x, ff):
    h, g = linear(norm(x, ff.norm), ff.inward.weight, ff.inward.bias).chunk(2, -1)
    return linear(h * gelu(g), ff.outward.weight, ff.outward.bias)


def cross(x_q, x_kv, t_q, t_kv, mask, module, rotate_values):
    inner = module.to_q.weight.shape[0]
    return attention(
        norm(x_q, module.norm),
        norm(x_kv, module.norm_context),
        t_q,
        t_kv,
        mask,
        module.to_q.weight,
        module.to_kv.weight[:inner],
        module.to_kv.weight[inner:],
        module.to_out,
        module.heads,
        rotate_values,
    )


def padded(packed, lengths):
    """Packed (S, ...) -> padded (B, longest, ...) and its mask."""
    pieces = packed.split(lengths.tolist())
    longest = max(len(p) for p in pieces)
    rows = [torch.cat((p, p.new_zeros(longest - len(p), *p.shape[1:]))) for p in pieces]
    mask = torch.tensor([[i < len(p) for i in range(longest)] for p in pieces])
    return torch.stack(rows), mask


def plain_poyo(model, batch):
    """Features (Q, D) of `model`'s weights for the batch, every token projected by itself, all windows padded."""
    config = model.config
    unit, mask = padded(batch.token_unit_S, batch.token_length_B)
    kind, _ = padded(batch.token_kind_S, batch.token_length_B)
    time, _ = padded(batch.token_time_S, batch.token_length_B)
    x = model.unit.weight[unit] + model.kind[kind]

    steps = round(batch.window_s / config.latent_step_s)
    t_latent = [(k + 0.5) * config.latent_step_s for k in range(steps) for _ in range(config.latents_per_step)]
    t_latent = torch.tensor(t_latent, dtype=x.dtype).expand(len(batch), -1)
    z = torch.stack([model.latent[j] for _ in range(steps) for j in range(config.latents_per_step)])
    z = z.expand(len(batch), -1, -1)
    everyone = torch.ones(z.shape[:2], dtype=torch.bool)

    z = z + cross(z, x, t_latent, time, mask, model.encoder, True)
    z = z + feed_forward(z, model.encoder_ff)
    for layer in model.layers:
        a = layer.attention
        y = norm(z, a.norm)
        w_q, w_k, w_v = a.to_qkv.weight.chunk(3)
        z = z + attention(y, y, t_latent, t_latent, everyone, w_q, w_k, w_v, a.to_out, a.heads, True)
        z = z + feed_forward(z, layer.feed_forward)

    session, asked = padded(batch.query_session_Q, batch.query_length_B)
    t_query, _ = padded(batch.query_time_Q, batch.query_length_B)
    y = model.session.weight[session]
    y = y + cross(y, z, t_query, t_latent, everyone, model.decoder, False)
    y = y + feed_forward(y, model.decoder_ff)
    return y[asked]
