"""Random banks and steps of activation edits, and what they must give in float64.

`TRITON_INTERPRET=1 python edit_cases.py OUT` runs the Triton kernel on `kernel_steps()` and writes what came out.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from safetensors.torch import save_file
from torch import Tensor

from guard.kernels.edit import EditBank, edit
from guard.kernels.edit_formula import ALWAYS, EditRow

SLOTS = 8
RESIDENT = 6
SITES = 2
# slots of `random_bank` whose edits keep the norm
KEEPING = (2, 3, 6)


@dataclass(frozen=True, slots=True)
class Step:
    """Arguments of `edit`; the site is number 1 of 2."""

    hidden: Tensor
    residual: Tensor | None
    token_lane: Tensor
    token_strength: Tensor
    bank: EditBank

    @property
    def site(self) -> Tensor:
        return torch.tensor([1], dtype=torch.int32, device=self.hidden.device)


def random_row(width: int, rank: int, *, affine: bool, any_gate: bool, keep_norm: bool = False) -> EditRow:
    """Unit-size effects; some thresholds never, some always and some sometimes let pass."""
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape)

    scale, shift = (normal(width) / 4, normal(width)) if affine or rank == 0 else (None, None)
    if rank == 0:
        return EditRow(scale=scale, shift=shift, keep_norm=keep_norm)
    threshold = normal(rank)
    threshold[::3] = ALWAYS
    return EditRow(
        scale=scale, shift=shift, read=normal(rank, width) / width**0.5, write=normal(rank, width) / rank**0.5,
        bias=normal(rank) / 4, gain=normal(rank), offset=normal(rank), threshold=threshold, any_gate=any_gate,
        keep_norm=keep_norm,
    )


def random_bank(width: int, max_rank: int, dtype: torch.dtype) -> EditBank:
    """Slots 1..6 with ranks from 0 to `max_rank` at site 1, of which KEEPING keep the norm; slot 7 at site 0 only. What
    is not in use is NaN."""
    bank = EditBank.empty(SITES, SLOTS, width, max_rank, dtype)
    for part in (bank.scale, bank.shift, bank.read, bank.write, bank.bias, bank.gain, bank.offset, bank.threshold):
        part.fill_(float("nan"))
    ranks = [0, 1, max_rank // 2, max_rank - 1, max_rank, max_rank]
    for slot, rank in enumerate(ranks, start=1):
        row = random_row(width, rank, affine=slot % 2 == 0, any_gate=slot in (3, 5), keep_norm=slot in KEEPING)
        bank.set(1, slot, row)
    bank.set(0, SLOTS - 1, random_row(width, 1, affine=True, any_gate=False))
    return bank


def random_step(
    tokens: int, width: int, max_rank: int, dtype: torch.dtype, bank_dtype: torch.dtype, *, residual: bool, seed: int,
) -> Step:
    """A mixed step with untouched tokens, several lanes, slots outside the bank and whole tiles of one slot."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    bank = random_bank(width, max_rank, bank_dtype)
    lanes = torch.zeros(4, tokens + 3, dtype=torch.int32)
    strengths = torch.randn(4, tokens + 3)
    for token in range(tokens + 3):
        for lane in rng.choice(((), (0,), (0,), (0, 1), (2,), (0, 1, 2, 3))):
            lanes[lane, token] = rng.choice((*range(1, SLOTS + 2), -1))
    # tiles of 16: the same slot, the same slot besides one that is not resident, unlike strengths, two lanes
    for tile in range(0, tokens, 16):
        kind, part = rng.randrange(6), slice(tile, tile + 16)
        if kind < 4:
            lanes[:, part], strengths[:, part] = 0, 0.75
            lanes[rng.choice((0, 3)) if kind == 1 else 0, part] = rng.randint(1, RESIDENT)
        if kind == 1:
            lanes[1, part] = SLOTS - 1
        elif kind == 2:
            strengths[0, tile + rng.randrange(16) if tile + 16 <= tokens else tile] = -0.5
        elif kind == 3:
            lanes[2, part] = rng.randint(1, RESIDENT)
    hidden = torch.randn(tokens, width).to(dtype)
    hidden[~_touched(lanes[:, :tokens])] = float("nan")
    return Step(hidden, torch.randn(tokens, width).to(dtype) if residual else None, lanes, strengths, bank)


def _touched(lanes: Tensor) -> Tensor:
    return ((lanes > 0) & (lanes <= RESIDENT)).any(dim=0)


def touched(step: Step) -> Tensor:
    """Which tokens are edited: bool [T]."""
    return _touched(step.token_lane[:, : step.hidden.shape[0]])


def expected(step: Step) -> tuple[Tensor, Tensor, Tensor]:
    """The edited rows float64 [T, d] token by token, their counts [S], and the doubt about each token.

    A gate that float32 sums may decide either way makes a token doubtful: its smallest |z - threshold| is returned. So
    does a norm that is kept where little is left to keep it with: rounding is enlarged then, and the doubt is 0.
    """
    x = step.hidden.double() if step.residual is None else step.hidden.double() + step.residual.double()
    counts = torch.zeros(SLOTS, dtype=torch.int64)
    margin = torch.full((x.shape[0],), float("inf"), dtype=torch.float64)
    for token in range(x.shape[0]):
        for lane in range(4):
            slot = int(step.token_lane[lane, token])
            if not 1 <= slot <= RESIDENT:
                continue
            counts[slot] += 1
            delta, closest = _delta(x[token], step.bank, slot)
            result = x[token] + step.token_strength[lane, token].double() * delta
            if slot in KEEPING:
                kept = result.norm() / x[token].norm()
                closest = closest if float(kept) > 0.03 else 0.0
                result = result / kept
            x[token] = result
            margin[token] = min(float(margin[token]), closest)
    return (x if step.residual is None else x - step.residual.double()), counts, margin


def _delta(x: Tensor, bank: EditBank, slot: int) -> tuple[Tensor, float]:
    at, rank = (1, slot), int(bank.rank[1, slot])
    delta = torch.zeros_like(x)
    if int(bank.parts[at]) & 2:
        delta = bank.scale[at].double() * x + bank.shift[at].double()
    if rank == 0:
        return delta, float("inf")
    threshold = bank.threshold[at][:rank].double()
    z = bank.read[at][:rank].double() @ x + bank.bias[at][:rank].double()
    fires = z > threshold
    gate = fires.any().expand(rank) if int(bank.parts[at]) & 4 else fires
    amount = bank.gain[at][:rank].double() * z * fires + bank.offset[at][:rank].double()
    return delta + (amount * gate) @ bank.write[at][:rank].double(), float((z - threshold).abs().min())


def kernel_steps() -> Iterator[Step]:
    """The steps on which the Triton kernel is compared, one per combination of dtypes; always the same."""
    shapes = [(63, 63, 16), (49, 256, 32), (1, 63, 16), (33, 896, 16), (48, 100, 32), (47, 200, 16)]
    # these seeds have whole tiles of every kind
    seeds = (9, 17, 0, 22, 19, 12)
    number = 0
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for bank_dtype in (torch.float32, torch.bfloat16):
            tokens, width, rank = shapes[number]
            yield random_step(tokens, width, rank, dtype, bank_dtype, residual=number % 3 > 0, seed=seeds[number])
            number += 1


def still_steps() -> Iterator[Step]:
    """Steps that edit tokens and move nothing, in mixed tokens and in whole tiles: of strength 0, and with gates that
    stay closed."""
    for number, closed in enumerate((False, True)):
        step = random_step(48, 63, 16, torch.float32, torch.float32, residual=closed, seed=number)
        if closed:
            # the affine parts and the offset of the low rank would move all the same
            step.bank.scale.zero_()
            step.bank.shift.zero_()
            step.bank.threshold.fill_(1e30)
        else:
            step.token_strength.zero_()
        step.token_lane[:, 16:32] = torch.tensor([3, 0, 0, 0])[:, None]
        step.token_strength[:, 16:32] = step.token_strength[:, :1]
        step.hidden.nan_to_num_(1.5)
        yield step


def main() -> None:
    """Run the kernel on CPU tensors; rows are wider than the width, as in a padded buffer."""
    results = {}
    for number, step in enumerate([*kernel_steps(), *still_steps()]):
        tokens, width = step.hidden.shape
        wide = torch.full((tokens, width + 2), float("nan"), dtype=step.hidden.dtype)
        wide[:, :width] = step.hidden
        lanes = step.token_lane, step.token_strength
        edit(wide[:, :width], step.residual, step.site, *lanes, step.bank, backend="triton")
        if not bool(wide[:, width:].isnan().all()):
            raise ValueError("wrote behind the width")
        results[f"{number}/hidden"], results[f"{number}/counts"] = wide[:, :width].contiguous(), step.bank.counts
    save_file(results, sys.argv[1])


if __name__ == "__main__":
    main()
