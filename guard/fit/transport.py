"""Optimal transport in one dimension, channel by channel: sorted samples are matched in order.

    cost(U, V) = sum_j W2^2(U_j, V_j) = (1/n) sum_j |sort(U_j) - sort(V_j)|^2        (LinEAS, arXiv 2503.10679)
    map of Linear-AcT: least squares of sorted targets on sorted sources             (arXiv 2410.23054)
"""

from __future__ import annotations

import torch
from torch import Tensor

# a channel whose source variance is below this share of its target's scale has no slope to fit
_FLAT = 1e-12
# a channel's standard deviation counts as this share of its site's at least
_LEAST_SPREAD = 1e-3


def transport_cost(source: Tensor, target: Tensor) -> Tensor:
    """Sum over channels of the squared Wasserstein-2 distance of source [n, d] and target [n, d]; a scalar.

    Differentiable almost everywhere. Raises ValueError for different shapes.
    """
    if source.shape != target.shape:
        raise ValueError(f"samples of equal number are needed, got {list(source.shape)} and {list(target.shape)}")
    difference = source.float().sort(dim=0).values - target.float().sort(dim=0).values
    return difference.square().sum() / len(source)


def sorted_regression(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias [d] of Linear-AcT for source [n, d] and target [n, d], float32, computed in float64.

    A channel that is constant in the source is moved to the mean of the target with weight 1.
    Raises ValueError for different shapes or fewer than 2 samples.
    """
    if source.shape != target.shape or len(source) < 2:
        raise ValueError(f"2 or more pairs are needed, got {list(source.shape)} and {list(target.shape)}")
    a, b = source.double().sort(dim=0).values, target.double().sort(dim=0).values
    mean_a, mean_b = a.mean(dim=0), b.mean(dim=0)
    variance = (a - mean_a).square().sum(dim=0)
    covariance = ((a - mean_a) * (b - mean_b)).sum(dim=0)
    flat = variance <= _FLAT * (a.square() + b.square()).sum(dim=0)
    weight = torch.where(flat, 1.0, covariance / variance.masked_fill(flat, 1.0))
    return weight.float(), (mean_b - weight * mean_a).float()


def channel_units(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [d] of samples [n, d], float32, the latter positive also for constant channels."""
    mean, deviation = samples.double().mean(dim=0), samples.double().std(dim=0, correction=0)
    typical = deviation.square().mean().sqrt()
    least = torch.where(typical > 0.0, _LEAST_SPREAD * typical, 1.0)
    return mean.float(), deviation.maximum(least).float()


def paired(source: Tensor, target: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """As many rows of each as the smaller one has, in random order decided by `seed`."""
    count = min(len(source), len(target))
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randperm(len(rows), generator=generator)[:count] for rows in (source, target))
    return source[first.to(source.device)], target[second.to(target.device)]
