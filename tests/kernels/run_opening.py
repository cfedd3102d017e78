"""Cases of test_opening.py; run in Triton's interpreter: `TRITON_INTERPRET=1 python run_opening.py CASE...`.

Prints one JSON object: what every case ended with, "agrees" or the traceback.
"""

from __future__ import annotations

import json
import random
import sys
import traceback

import torch

from guard.classifiers.opening_table import FREE, OpeningTable, TokenPieces
from guard.kernels.opening import OpeningBank

TOKENS: list[bytes | None] = [
    None, None, *(bytes([byte]) for byte in range(256)), b"I ", b"I do", b"no", b"not", b" know",
]
PIECES = TokenPieces(TOKENS)
TABLES = [
    OpeningTable.compile(["I do not know", "I don't", "No idea"], PIECES),
    OpeningTable.compile(["知りません", "I know nothing of"], PIECES),
]
LENGTH = 40
NEGATIVE_INFINITY = float("-inf")


class Case:
    """Requests with random histories, some of them inside an opening."""

    def __init__(self, requests: int, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.bank = OpeningBank(max(requests, 1), (1,), torch.device("cpu"))
        self.history = torch.full((max(requests, 1), LENGTH), -7, dtype=torch.int32)
        self.total = torch.zeros(max(requests, 1), dtype=torch.int32)
        self.tables: dict[int, OpeningTable | None] = {}

    def walk(self, table: OpeningTable, longest: int) -> list[int]:
        """Random tokens along the wordings, sometimes past their end or beside them."""
        node, tokens = 0, []
        for _ in range(self.rng.randint(0, longest)):
            if node == FREE or self.rng.random() < 0.05:
                tokens.append(self.rng.randrange(2, len(TOKENS)))
                node = FREE
            else:
                tokens.append(int(self.rng.choice(table.allowed(node).tolist())))
                node = table.step(node, tokens[-1])
        return tokens

    def admit(self, index: int) -> None:
        """Put a request into slot `index`."""
        table = self.rng.choice([*TABLES, None])
        prompt = [self.rng.randrange(len(TOKENS)) for _ in range(self.rng.randint(1, 6))]
        tokens = prompt + (self.walk(table, 12) if table is not None else [])
        self.history[index] = -7
        self.history[index, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
        self.total[index] = len(tokens)
        self.tables[index] = table
        if table is None:
            self.bank.clear_request(index)
        else:
            self.bank.set_request(index, table, len(prompt))

    def check(self, rows: list[tuple[int, int]], width: int = len(TOKENS), *, nan: bool = False) -> None:
        """Compare the kernel with the reference on `rows` of (request, drafts before the row)."""
        self.bank.flush()
        mapping = torch.tensor([index for index, _ in rows], dtype=torch.int32)
        drafts = torch.tensor([count for _, count in rows], dtype=torch.int32)
        inputs = torch.tensor([self.rng.randrange(2, len(TOKENS)) for _ in rows], dtype=torch.int32)
        padded = torch.full((len(rows), width + 5), float("nan"))
        padded[:, :width] = torch.randn(len(rows), width)
        if nan:
            padded[:, :width][torch.rand(len(rows), width) < 0.3] = NEGATIVE_INFINITY
        logits = padded[:, :width]
        wanted = self.bank.reference(logits, mapping, drafts, inputs, self.history, self.total)
        self.bank.apply(logits, mapping, drafts, inputs, self.history, self.total)
        if not torch.equal(logits, wanted):
            raise AssertionError(f"rows differ: {(logits != wanted).any(1).nonzero().flatten().tolist()}")
        if not torch.isnan(padded[:, width:]).all():
            raise AssertionError("columns beyond the width were written")


def one_row() -> None:
    for seed in range(8):
        case = Case(1, seed)
        case.admit(0)
        case.check([(0, 0)])


def sixty_three_rows() -> None:
    case = Case(63)
    for index in range(63):
        case.admit(index)
    case.check([(index, 0) for index in range(63)])
    opened = sum(table is not None for table in case.tables.values())
    if not 0 < opened < 63:
        raise AssertionError("the case has nothing to compare")


def no_rows() -> None:
    Case(1).check([])


def drafts() -> None:
    case = Case(3, 5)
    for index in range(3):
        case.admit(index)
    case.check([(index, count) for index in range(3) for count in range(4)])


def masked_before() -> None:
    case = Case(16, 7)
    for index in range(16):
        case.admit(index)
    case.check([(index, 0) for index in range(16)], nan=True)


def narrow_logits() -> None:
    case = Case(16, 3)
    for index in range(16):
        case.admit(index)
    case.check([(index, 0) for index in range(16)], width=100)


def nothing_left() -> None:
    case = Case(1, 1)
    case.bank.set_request(0, TABLES[0], 0)
    case.tables[0] = TABLES[0]
    case.bank.flush()
    logits = torch.full((1, len(TOKENS)), NEGATIVE_INFINITY)
    zero = torch.zeros(1, dtype=torch.int32)
    case.bank.apply(logits, zero, zero, zero, case.history, case.total)
    if logits[0].isfinite().nonzero().flatten().tolist() != [1]:
        raise AssertionError("only the end token should be left")


def recycled_slots() -> None:
    case = Case(2, 9)
    for number in range(200):
        table = OpeningTable.compile([f"I do not know {number}"], PIECES)
        case.bank.set_request(number % 2, table, 0)
        case.total[number % 2] = 0
        case.check([(0, 0), (1, 0)])
    if case.bank.any_opened([0]) is not True:
        raise AssertionError("a request with an opening is not known")
    case.bank.clear_request(0)
    if case.bank.any_opened([0]):
        raise AssertionError("a request without an opening counts as opened")


def main() -> None:
    """Run the named cases."""
    found = {}
    for name in sys.argv[1:]:
        try:
            globals()[name]()
            found[name] = "agrees"
        except Exception:
            found[name] = traceback.format_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
