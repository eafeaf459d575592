"""What a forward pass tells of itself: extremes and powers of activations, by noise level.

Statistics are tensors that the forward returns, never hooks: they stay in the graph of a compiled
block and are the same under recomputation. Each is kept apart for `BINS` ranges of the noise level,
because growth was seen at the noisiest steps first (YandexART Vi).
"""

from typing import NamedTuple

import torch
from torch import Tensor

BINS = 4  # equal ranges of the noise level
SITES = ("residual", "attention", "feed_forward", "attention_gate", "feed_forward_gate")
MEASURES = ("min", "max", "square_sum", "count")
BOUNDS = ("logit_max_above", "logit_max_below")


class Watch(NamedTuple):
    """What a forward pass returns beside its prediction."""

    statistics: bool = False
    penalty: bool = False


def noise_bins(noise_level: Tensor) -> Tensor:
    """The bin of each noise level in [0, 1]."""
    return (noise_level * BINS).long().clamp(0, BINS - 1)


def site_statistics(values: Tensor, bins: Tensor) -> Tensor:
    """(n, width) values in `bins` (n,) -> (BINS, 4) of min, max, sum of squares and count.

    A bin without values has min = inf and max = -inf. Sums are fp64 products with a one-hot matrix:
    unlike scattered additions they have one order.
    """
    wide = values.detach().to(torch.promote_types(values.dtype, torch.float32))
    low = _extreme(wide.amin(1), bins, torch.inf, "amin")
    high = _extreme(wide.amax(1), bins, -torch.inf, "amax")
    members = torch.nn.functional.one_hot(bins, BINS).double()
    squares = wide.square().sum(1).double() @ members
    count = members.sum(0) * values.shape[1]
    return torch.stack((low.double(), high.double(), squares, count), dim=1)


def logit_bounds(lse: Tensor, keys: Tensor, bins: Tensor) -> Tensor:
    """Bounds of the largest attention logit, (BINS, 2): it lies below `above`, not below `below`.

    lse (n, heads) of queries with `keys` (n,) keys each: lse - ln(keys) <= max <= lse.
    """
    above = lse.detach().amax(1).double()
    both = [above, above - keys.double().log()]
    return torch.stack([_extreme(each, bins, -torch.inf, "amax") for each in both], dim=1)


def _extreme(values: Tensor, bins: Tensor, empty: float, how: str) -> Tensor:
    start = torch.full((BINS,), empty, dtype=values.dtype, device=values.device)
    return start.scatter_reduce(0, bins, values, how)
