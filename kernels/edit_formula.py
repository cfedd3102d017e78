"""The one formula of all activation edits, differentiable and for one intervention at one site.

For x in R^d, computed in float32:

    z_i = <read_i, x> + bias_i                            i = 1..r
    a_i = z_i if z_i > threshold_i else 0
    o_i = [z_i > threshold_i]      gate "own";            gate "any": [exists j: z_j > threshold_j] for all i
    x'  = x + strength * (scale * x + shift + sum_i o_i * (gain_i * a_i + offset_i) * write_i)

With `keep_norm`, x' is then made as long as x was (arXiv 2605.12765): x' <- x' |x| / |x'|. An edit that changes
nothing leaves its bits as they are. x' is not rescaled where x or x' is zero, where x' is shorter than 2^-20 |x| (what
rounding leaves of an x inside the removed subspace), and where a squared norm exceeds float32.

Fitting calls this code at the same sites where the engine's kernel works, so what is fitted is what is served.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

MAX_RANK = 32
# stands for minus infinity: packs hold finite numbers only, and no activation lies below it
ALWAYS = -3.0e38
# smallest |x'|^2 / |x|^2 that is rescaled: below it x' is rounding and has no direction
LEAST_SHARE = 2.0**-40


@dataclass(frozen=True, slots=True)
class EditRow:
    """One intervention at one site. Absent parts are None.

    scale, shift: [d]; read, write: [r, d]; bias, gain, offset, threshold: [r]; r <= 32, all parts of a low rank are
    there or none is. Any floating dtype; arithmetic is float32.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    read: Tensor | None = None
    write: Tensor | None = None
    bias: Tensor | None = None
    gain: Tensor | None = None
    offset: Tensor | None = None
    threshold: Tensor | None = None
    any_gate: bool = False
    keep_norm: bool = False

    @property
    def rank(self) -> int:
        return 0 if self.read is None else self.read.shape[0]

    @property
    def width(self) -> int:
        """d. Raises ValueError for a row without any part."""
        for part in (self.scale, self.shift, self.read):
            if part is not None:
                return part.shape[-1]
        raise ValueError("an edit row needs a scale, a shift or a read matrix")

    def check(self) -> None:
        """Raises ValueError when shapes do not fit together, the rank exceeds 32 or a number is not finite."""
        width, rank = self.width, self.rank
        if rank > MAX_RANK:
            raise ValueError(f"rank {rank} exceeds {MAX_RANK}")
        low_rank = ("read", "write", "bias", "gain", "offset", "threshold")
        given = [name for name in low_rank if getattr(self, name) is not None]
        if given and len(given) != len(low_rank):
            raise ValueError(f"a low-rank part needs {', '.join(low_rank)}; only {', '.join(given)} are there")
        shapes = {"scale": (width,), "shift": (width,), "read": (rank, width), "write": (rank, width)}
        for field in fields(self):
            part = getattr(self, field.name)
            if not isinstance(part, Tensor):
                continue
            expected = shapes.get(field.name, (rank,))
            if tuple(part.shape) != expected:
                raise ValueError(f"{field.name} must be {list(expected)}, got {list(part.shape)}")
            if not part.is_floating_point() or not bool(part.isfinite().all()):
                raise ValueError(f"{field.name} must hold finite floating-point numbers")


def edited(x: Tensor, row: EditRow, strength: float | Tensor = 1.0) -> Tensor:
    """x' of the formula for x [..., d]; `strength` is a number or [...]. Returns the dtype of x.

    Differentiable in x and in every part of `row` (gates are constant almost everywhere).
    """
    value = x.float()
    delta = torch.zeros_like(value)
    if row.scale is not None:
        delta = delta + row.scale.float() * value
    if row.shift is not None:
        delta = delta + row.shift.float()
    if row.read is not None:
        delta = delta + coefficients(value, row) @ _part(row.write)
    if isinstance(strength, Tensor):
        strength = strength.float().unsqueeze(-1)
    result = value + strength * delta
    if row.keep_norm:
        result = norm_factor(value, result) * result
    return result.to(x.dtype)


def norm_factor(x: Tensor, result: Tensor) -> Tensor:
    """|x| / |result| for float32 x and result [..., d], as [..., 1]; 1 where nothing is rescaled. Differentiable."""
    before, after = (part.square().sum(dim=-1, keepdim=True) for part in (x, result))
    scaled = (before > 0.0) & (after > LEAST_SHARE * before) & (after < torch.inf)
    # the ratio that is not taken must not spoil the gradient of the other
    return torch.where(scaled, before / torch.where(scaled, after, 1.0), 1.0).sqrt()


def coefficients(x: Tensor, row: EditRow) -> Tensor:
    """o_i * (gain_i * a_i + offset_i) in float32 [..., r] for x [..., d]. Raises ValueError without a low-rank part."""
    z = x.float() @ _part(row.read).T + _part(row.bias)
    fires = z > _part(row.threshold)
    activation = torch.where(fires, z, torch.zeros_like(z))
    gate = fires.any(dim=-1, keepdim=True) if row.any_gate else fires
    value = _part(row.gain) * activation + _part(row.offset)
    return torch.where(gate, value, torch.zeros_like(value))


def _part(part: Tensor | None) -> Tensor:
    if part is None:
        raise ValueError("the low-rank part of this edit row is missing")
    return part.float()
