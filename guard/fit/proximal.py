"""Sparse-group lasso: the penalty of LinEAS and its proximal step.

    R(z) = l1 |z|_1 + group sqrt(d) |z|_2        for z in R^d: weight - 1, or bias, of one site

Source: LinEAS, arXiv 2503.10679. Soft threshold, then shrinkage of the group, is the exact minimiser of
|y - z|^2 / 2 + R(y).
"""

from __future__ import annotations

from torch import Tensor


def proximal_step(z: Tensor, l1: float, group: float) -> Tensor:
    """The minimiser of |y - z|^2 / 2 + l1 |y|_1 + group sqrt(d) |y|_2 over y, for z [d]."""
    soft: Tensor = z.sign() * (z.abs() - l1).clamp_min(0.0)
    length, radius = float(soft.norm()), group * z.numel() ** 0.5
    return soft * (1.0 - radius / length) if length > radius else soft.new_zeros(soft.shape)


def penalty(z: Tensor, l1: float, group: float) -> Tensor:
    """R(z), a scalar."""
    value: Tensor = l1 * z.abs().sum() + group * z.numel() ** 0.5 * z.norm()
    return value
