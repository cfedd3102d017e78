"""The edit kernel against the formula in float64, and its time; part of `bench/gpu/kernels.py`.

The floor of a timed case is the bytes that must move: the edited rows in and out, the residual in, and the rows of the
bank once per distinct slot. `edit compiled` is the formula with gathered bank rows under torch.compile.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.gpu.timing import Timing, timing
from guard.kernels.edit import AFFINE, ANY_GATE, KEEP_NORM, RESIDENT, Backend, EditBank, edit

TOKENS, WIDTHS, RANKS, DISTINCT = (1, 16, 256, 2048, 8192), (2048, 4096, 8192), (0, 16, 32), (1, 16, 256)
COMPILED_WIDTH = 4096
# tokens, distinct slots that torch.compile is timed on
COMPILED = ((1, 1), (256, 256), (8192, 16))
# tokens, width, rank, distinct slots
CHECKED = (
    (1, 896, 16, 1), (16, 4096, 16, 1), (63, 63, 5, 4), (257, 896, 31, 3), (256, 4096, 16, 256), (300, 5120, 32, 2),
    (512, 8192, 32, 7), (48, 16384, 16, 2), (64, 2048, 0, 2),
)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# half a unit in the last place of a result, and what float32 sums over a row may lose relative to its largest number
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
ARITHMETIC = 2e-5


@dataclass(frozen=True, slots=True)
class Case:
    """Arguments of `edit` at site 0, every lane in use."""

    hidden: Tensor
    residual: Tensor
    site: Tensor
    token_lane: Tensor
    token_strength: Tensor
    bank: EditBank

    def run(self, backend: Backend = "auto") -> None:
        """Edit `hidden` in place."""
        edit(self.hidden, self.residual, self.site, self.token_lane, self.token_strength, self.bank, backend=backend)


def random_bank(width: int, rank: int, slots: int, dtype: torch.dtype, device: str) -> EditBank:
    """Slots 1..`slots` of one rank; every third has the gate "any"; every second, or all at rank 0, scale and shift."""
    bank = EditBank.empty(1, slots + 1, width, rank, dtype, device)
    bank.scale.normal_(0.0, 0.1)
    bank.shift.normal_()
    bank.read.normal_(0.0, width**-0.5)
    bank.write.normal_(0.0, max(1, rank) ** -0.5)
    for part in (bank.bias, bank.gain, bank.offset, bank.threshold):
        part.normal_(0.0, 0.5)
    bank.rank.fill_(rank)
    number = torch.arange(slots + 1, device=device)
    affine = (number % 2 == 0) | (rank == 0)
    bank.parts[0] = (RESIDENT + AFFINE * affine + ANY_GATE * (number % 3 == 0)).to(torch.int32)
    bank.parts[0, 0] = 0
    return bank


def random_case(
    tokens: int, width: int, rank: int, distinct: int, *, dtype: torch.dtype = torch.bfloat16,
    bank_dtype: torch.dtype = torch.bfloat16, mixed: bool = False, device: str = "cuda",
) -> Case:
    """`distinct` slots over the tokens: in runs, as the requests of a prefill lie, or `mixed`, as in a decode."""
    token = torch.arange(tokens, device=device)
    lanes = torch.zeros(4, tokens, dtype=torch.int32, device=device)
    lanes[0] = 1 + (token % distinct if mixed else token * distinct // max(1, tokens))
    return Case(
        torch.randn(tokens, width, device=device).to(dtype), torch.randn(tokens, width, device=device).to(dtype),
        torch.zeros(1, dtype=torch.int32, device=device), lanes, torch.full((4, tokens), 0.7, device=device),
        random_bank(width, rank, distinct, bank_dtype, device),
    )


def dense(
    hidden: Tensor, residual: Tensor, slot: Tensor, strength: Tensor, bank: EditBank, rank: int, dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """One lane of the formula in `dtype` with the rows of the bank gathered per token.

    Returns the edited rows [T, d] in `dtype` and each token's smallest |z - threshold| [T]. Slot 0 changes nothing.
    """
    slot = slot.long()
    x = hidden.to(dtype) + residual.to(dtype)
    parts = bank.parts[0, slot]
    affine = ((parts & AFFINE) != 0)[:, None]
    delta = torch.where(affine, bank.scale[0, slot].to(dtype) * x + bank.shift[0, slot].to(dtype), 0.0)
    margin = torch.full_like(x[:, 0], float("inf"))
    if rank:
        z = (bank.read[0, slot, :rank].to(dtype) * x[:, None]).sum(dim=2) + bank.bias[0, slot, :rank].to(dtype)
        threshold = bank.threshold[0, slot, :rank].to(dtype)
        fires = z > threshold
        gate = torch.where((parts & ANY_GATE != 0)[:, None], fires.any(dim=1, keepdim=True), fires)
        gain, offset = bank.gain[0, slot, :rank].to(dtype), bank.offset[0, slot, :rank].to(dtype)
        amount = torch.where(gate, gain * torch.where(fires, z, 0.0) + offset, 0.0)
        delta = delta + (amount[:, :, None] * bank.write[0, slot, :rank].to(dtype)).sum(dim=1)
        margin = (z - threshold).abs().amin(dim=1)
    delta = torch.where((parts & RESIDENT != 0)[:, None], delta, 0.0)
    return hidden.to(dtype) + strength.to(dtype)[:, None] * delta, margin


def exact(case: Case, rank: int) -> tuple[Tensor, Tensor]:
    """`dense` in float64 for lane 0, some tokens at a time, with the norms kept that are to be kept."""
    step = max(1, (1 << 26) // (case.hidden.shape[1] * max(1, rank)))
    slots, strengths = case.token_lane[0].split(step), case.token_strength[0].split(step)
    parts = zip(case.hidden.split(step), case.residual.split(step), slots, strengths, strict=True)
    results = [
        dense(hidden, residual, slot, strength, case.bank, rank, torch.float64)
        for hidden, residual, slot, strength in parts
    ]
    rows, margin = torch.cat([rows for rows, _ in results]), torch.cat([margin for _, margin in results])
    x = case.hidden.double() + case.residual.double()
    result = rows + case.residual.double()
    keeps = (case.bank.parts[0, case.token_lane[0].long()] & KEEP_NORM != 0)[:, None]
    factor = torch.where(keeps, x.norm(dim=1, keepdim=True) / result.norm(dim=1, keepdim=True), 1.0)
    return rows + (factor - 1.0) * result, margin


def compare(case: Case, rank: int, run: Callable[[], object], name: str) -> float:
    """Largest error, as a part of what is allowed. Raises ValueError when rows, untouched bits or counts are wrong."""
    want, margin = exact(case, rank)
    before, counts = case.hidden.clone(), case.bank.counts.clone()
    scale = torch.maximum(want.abs(), before.double().abs() + case.residual.double().abs()).amax(dim=1, keepdim=True)
    run()
    slots = case.token_lane[0]
    counted = counts[0].index_add(0, slots.long(), (slots > 0).long())
    if not torch.equal(case.bank.counts[0], counted):
        raise ValueError(f"edit counts differ: {name}")
    untouched = slots == 0
    if not torch.equal(case.hidden[untouched].view(torch.uint8), before[untouched].view(torch.uint8)):
        raise ValueError(f"untouched rows changed: {name}")
    allowed = ROUNDING[before.dtype] * want.abs() + ARITHMETIC * scale
    # a gate as near as this may fall either way
    clear = margin > 1e-4
    error = float(((case.hidden.double() - want).abs() / allowed)[clear].max()) if bool(clear.any()) else 0.0
    if not error <= 1.0:
        raise ValueError(f"edit error {error:.3g} times what is allowed: {name}")
    return error


def check_edit(
    tokens: int, width: int, rank: int, distinct: int, *, dtype: torch.dtype, bank_dtype: torch.dtype, mixed: bool,
    keep_norm: bool = False, device: str = "cuda", backend: Backend = "auto",
) -> float:
    """One comparison with float64; every fifth token has no lane when the slots are mixed. With `keep_norm` every
    second slot keeps the norm, from the first on."""
    case = random_case(
        tokens, width, rank, distinct, dtype=dtype, bank_dtype=bank_dtype, mixed=mixed, device=device
    )
    if mixed:
        case.token_lane[:, ::5] = 0
    if keep_norm:
        case.bank.parts[0, 1::2] |= KEEP_NORM
    name = (
        f"{tokens} x {width} rank {rank}, {distinct} slots, {dtype}, bank {bank_dtype}, mixed {mixed}, "
        f"norm kept {keep_norm}"
    )
    return compare(case, rank, lambda: case.run(backend), name)


def edit_checks() -> dict[str, float]:
    """All comparisons, the replay of a graph included; the largest error, as a part of what is allowed, per dtype."""
    errors = dict.fromkeys(DTYPES, 0.0)
    for name, dtype in DTYPES.items():
        for bank_dtype in (torch.bfloat16, torch.float32):
            for shape in CHECKED:
                for mixed, keep_norm in itertools.product((False, True), repeat=2):
                    error = check_edit(
                        *shape, dtype=dtype, bank_dtype=bank_dtype, mixed=mixed, keep_norm=keep_norm
                    )
                    errors[name] = max(errors[name], error)
    case = random_case(256, 4096, 16, 256)
    graph = captured(case)
    # the graph sees other lanes than those it was captured with
    case.token_lane[0].copy_(case.token_lane[0].flip(0))
    case.token_lane[0, ::7] = 0
    errors["graph replay"] = compare(case, 16, graph.replay, "graph replay")
    case.token_lane[0] = 3
    errors["graph replay, one slot"] = compare(case, 16, graph.replay, "graph replay, one slot")
    return errors


def captured(case: Case) -> torch.cuda.CUDAGraph:
    """A CUDA graph of one call; compiled and warm before the capture."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        case.run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        case.run()
    torch.cuda.synchronize()
    return graph


def floor_bytes(case: Case, rank: int, distinct: int) -> int:
    """Bytes that must move for lane 0."""
    rows = 3 * case.hidden.numel() * case.hidden.element_size() + case.token_lane.nbytes
    width, size = case.bank.width, case.bank.read.element_size()
    affine = int((case.bank.parts[0] & AFFINE != 0).sum())
    return rows + 2 * width * size * (distinct * rank + affine)


def edit_timings(device: str = "cuda") -> list[Timing]:
    """Every shape in runs and mixed, the compiled reference at one width, untouched steps, the replay of a graph."""
    results = []
    for width in WIDTHS:
        for rank in RANKS:
            for tokens, distinct in [(tokens, each) for tokens in TOKENS for each in DISTINCT if each <= tokens]:
                for mixed in (False, True) if 1 < distinct < tokens else (False,):
                    case = random_case(tokens, width, rank, distinct, mixed=mixed, device=device)
                    # repeated edits of one buffer would grow
                    case.token_strength.fill_(1e-3)
                    name = f"{tokens} x {width} r {rank} slots {distinct}{' mixed' if mixed else ''}"
                    moved = floor_bytes(case, rank, distinct)
                    results.append(timing("edit", name, moved, case.run))
                    if width == COMPILED_WIDTH and not mixed and (tokens, distinct) in COMPILED:
                        results.append(timing("edit compiled", name, moved, compiled_call(case, rank)))
    for tokens in (256, 8192):
        case = random_case(tokens, COMPILED_WIDTH, 16, 1, device=device)
        case.token_lane.zero_()
        results.append(timing("edit", f"untouched {tokens} x {COMPILED_WIDTH}", case.token_lane.nbytes, case.run))
    case = random_case(256, COMPILED_WIDTH, 16, 256, device=device)
    case.token_strength.fill_(1e-3)
    graph = captured(case)
    results.append(timing("edit graph", "256 x 4096 r 16 slots 256", floor_bytes(case, 16, 256), graph.replay))
    return results


def compiled_call(case: Case, rank: int) -> Callable[[], object]:
    """`dense` in float32, compiled anew for the shapes of this case."""
    torch.compiler.reset()
    compiled = torch.compile(dense, dynamic=False)
    lists = (case.hidden, case.residual, case.token_lane[0], case.token_strength[0])
    return lambda: compiled(*lists, case.bank, rank, torch.float32)[0].to(case.hidden.dtype)
