"""Attention through torch's scaled_dot_product_attention: runs on any device, and is the reference for other backends."""

from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention


def sdpa(q_QNH, k_SNH, v_SNH, q_lengths: Sequence[int], k_lengths: Sequence[int], dropout: float = 0.0) -> torch.Tensor:
    """Each window's queries attend to that window's keys; see attention.attend.

    Ragged windows go one by one over `split`: on a CPU this is several times faster than padding with a mask, and slices
    instead of `split` would zero-fill the whole tensor for every window in the backward pass.
    """
    if len(set(q_lengths)) == 1 and len(set(k_lengths)) == 1:  # equal lengths: one call for all windows
        windows = len(q_lengths)
        q, k, v = (x.unflatten(0, (windows, -1)).transpose(1, 2) for x in (q_QNH, k_SNH, v_SNH))
        return scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2).flatten(0, 1)
    pieces = []
    for q, k, v in zip(q_QNH.split(q_lengths), k_SNH.split(k_lengths), v_SNH.split(k_lengths)):
        if len(k) == 0:  # a softmax over nothing: by agreement of all backends the output is zero
            pieces.append(torch.zeros_like(q))
            continue
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        pieces.append(scaled_dot_product_attention(q, k, v, dropout_p=dropout)[0].transpose(0, 1))
    return torch.cat(pieces)
