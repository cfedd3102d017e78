"""Cases of test_mask.py; run in Triton's interpreter: `TRITON_INTERPRET=1 python run_mask.py CASE...`.

Prints one JSON object: what every case ended with, "agrees" or the traceback.
"""

from __future__ import annotations

import json
import random
import sys
import traceback

import torch

from guard.classifiers.automaton import START, Automaton, State
from guard.classifiers.vocabulary import Vocabulary
from guard.kernels.mask import DeviceBank

WORDS = ["jaime", "vas", "ana", "josé", "ab", "東京", "zoë"]
TOKENS: list[bytes | None] = [
    None, None, *(bytes([byte]) for byte in range(256)),
    b"Jaime", b" Vas", b"quez", b" jaime vas", b"\xa9 ana", b"ana ",
    b"s\xc3", " \u200b".encode(), "東".encode(), b"\xac ab", b"\xe4\xba", None, b"", b" -", b"an", b"ab ana",
]
WORDBOOK = Vocabulary(TOKENS, frozenset({0, 1}), (1,))
LENGTH = 48
NEGATIVE_INFINITY = float("-inf")


class Case:
    """Requests with random histories on a bank with two automata."""

    def __init__(self, requests: int, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.automata = {slot: Automaton.compile(self.patterns(), WORDBOOK) for slot in (1, 3)}
        self.bank = DeviceBank(WORDBOOK.arrays(), WORDBOOK.eos_ids, 4, max(requests, 1), torch.device("cpu"))
        for slot, automaton in self.automata.items():
            self.bank.put(slot, automaton.arrays)
        self.history = torch.full((max(requests, 1), LENGTH), -7, dtype=torch.int32)
        self.total = torch.zeros(max(requests, 1), dtype=torch.int32)
        self.prompt = torch.zeros_like(self.total)
        self.rules: dict[int, tuple[int, int, bool, tuple[int, ...]]] = {}

    def patterns(self) -> list[str]:
        """Random forbidden strings."""
        return [" ".join(self.rng.choices(WORDS, k=self.rng.randint(1, 2))) for _ in range(6)]

    def text(self) -> list[int]:
        """Random tokens, often the start of a forbidden string."""
        automaton = self.automata[self.rng.choice((1, 3))]
        data = self.rng.choice(automaton.patterns).encode() if self.rng.random() < 0.7 else b""
        data = data[: self.rng.randint(0, len(data))]
        noise = [self.rng.randrange(len(TOKENS)) for _ in range(self.rng.randint(0, 4))]
        return [*noise, 2 + ord(" "), *(2 + byte for byte in data)]

    def admit(self, index: int, slot: int, tokens: list[int]) -> None:
        """Put a request into slot `index`."""
        prompt = self.rng.randint(0, len(tokens))
        start = self.rng.randint(0, prompt)
        exempt = tuple(sorted(self.rng.sample(range(3), self.rng.randint(0, 2))))
        self.rules[index] = (slot, start, self.rng.random() < 0.5, exempt)
        self.history[index] = -7
        self.history[index, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
        self.total[index], self.prompt[index] = len(tokens), prompt
        self.bank.set_request(index, *self.rules[index])
        self.bank.flush()

    def state(self, index: int, drafts: list[int]) -> State:
        """Host state of a request."""
        slot, start, skip, _ = self.rules[index]
        state = START
        tokens = self.history[index, : int(self.total[index])].tolist() + drafts
        for position, token in list(enumerate(tokens))[start:]:
            visible = skip and position >= int(self.prompt[index])
            state = self.automata[slot].advance(state, token, WORDBOOK, skip_special=visible)
        return state

    def expected(self, index: int, width: int, drafts: list[int]) -> set[int]:
        """Masked ids, token by token."""
        slot, _, _, exempt = self.rules[index]
        if slot == 0:
            return set()
        if slot < 0:
            return set(range(width)) - {1}
        state, automaton = self.state(index, drafts), self.automata[slot]
        return {t for t in range(width) if automaton.completes(state, t, WORDBOOK, frozenset(exempt))}

    def check(self, requests: list[int], width: int = len(TOKENS), drafts: int = 0) -> int:
        """Run the kernels on zero logits with garbage around them and compare; number of masked logits."""
        mapping = [index for index in requests for _ in range(drafts + 1)]
        local = [k for _ in requests for k in range(drafts + 1)]
        inputs = [self.rng.randrange(len(TOKENS)) for _ in mapping]
        wide = torch.full((len(mapping) + 2, width + 5), float("nan"))
        logits = wide[1:-1, 2:-3]
        logits.zero_()
        slots, rows, places, tokens = (
            torch.tensor(values, dtype=torch.int32) for values in (requests, mapping, local, inputs)
        )
        self.bank.apply(logits, slots, rows, places, tokens, self.history, self.prompt, self.total)
        masked = 0
        for row, index in enumerate(mapping):
            first = row - local[row]
            want = self.expected(index, width, inputs[first + 1 : row + 1])
            got = set(torch.nonzero(logits[row] == NEGATIVE_INFINITY).flatten().tolist())
            assert got == want, (row, index, self.rules[index], got ^ want)
            masked += len(got)
        around = torch.cat([wide[0], wide[-1], wide[:, :2].flatten(), wide[:, -3:].flatten()])
        assert bool(torch.isnan(around).all()), "wrote outside the logits"
        return masked


def one_row() -> None:
    """A single request."""
    case = Case(1)
    for _ in range(12):
        case.admit(0, 1, case.text())
        case.check([0])


def sixty_three_rows() -> None:
    """An odd number of rows in mixed order, guarded and not."""
    case = Case(63, seed=1)
    for index in range(63):
        case.admit(index, case.rng.choice((0, 1, 3, 3, -1)), case.text())
    order = list(range(63))
    case.rng.shuffle(order)
    assert case.check(order) > 0
    counters = case.bank.counters()
    assert counters["masked_tokens"] == sum(
        len(case.expected(index, len(TOKENS), [])) for index, rule in case.rules.items() if rule[0] > 0
    )
    assert case.check(order[:7]) >= 0


def no_rows() -> None:
    """An empty batch."""
    Case(0).check([])


def drafts() -> None:
    """Rows of draft tokens follow the committed text."""
    case = Case(5, seed=2)
    for index in range(5):
        case.admit(index, case.rng.choice((1, 3)), case.text())
    for _ in range(3):
        case.check(list(range(5)), drafts=2)


def broken_characters() -> None:
    """Characters cut over tokens."""
    case = Case(12, seed=3)
    pieces = [
        b"jos\xc3", b" jos", b"\xe6", b"\xe6\x9d", b"zo\xc3", b"\xf0\x9f", b"\xed", b"\xf4", b"\xe0",
        b"jos\xc3\xa9 \xc3",
    ]
    for index in range(12):
        data = pieces[index % len(pieces)]
        case.admit(index, case.rng.choice((1, 3)), [2 + 32, *(2 + byte for byte in data)])
        slot, _, skip, exempt = case.rules[index]
        case.rules[index] = (slot, 0, skip, exempt)
        case.bank.set_request(index, *case.rules[index])
        case.bank.flush()
    assert case.check(list(range(12))) > 0


def nan_and_blocked() -> None:
    """Rows without anything to sample may end; rows of others keep their NaN."""
    case = Case(4, seed=4)
    for index, slot in enumerate((1, 0, 3, -1)):
        case.admit(index, slot, [])
    logits = torch.full((4, len(TOKENS)), float("nan"))
    logits[2] = NEGATIVE_INFINITY
    rows = torch.arange(4, dtype=torch.int32)
    case.bank.apply(logits, rows, rows, rows * 0, rows * 0, case.history, case.prompt, case.total)
    for row in (0, 2, 3):
        assert torch.nonzero(logits[row] > NEGATIVE_INFINITY).flatten().tolist() == [1]
    assert bool(torch.isnan(logits[1]).all())
    counters = case.bank.counters()
    assert counters["rescued_rows"] == 2 and counters["blocked_rows"] == 1


def incremental() -> None:
    """Token by token gives what a rebuild gives, and applying twice changes nothing."""
    case = Case(2, seed=5)
    tokens = [t for _ in range(3) for t in case.text()][:LENGTH]
    case.admit(0, 1, tokens)
    case.admit(1, 1, tokens)
    case.rules[1] = case.rules[0]
    case.prompt[1] = case.prompt[0]
    case.bank.set_request(1, *case.rules[1])
    case.bank.flush()
    for length in range(int(case.prompt[0]), len(tokens) + 1):
        case.total[0] = length
        assert case.check([0]) == case.check([0])
    case.check([1])
    states = case.bank._buffers["states"]
    assert torch.equal(states[0], states[1])


def special_tokens() -> None:
    """Special tokens inside a string."""
    case = Case(8, seed=6)
    tokens = [2 + 32, *(2 + byte for byte in b"jai"), 0, *(2 + byte for byte in b"me va")]
    for index in range(8):
        case.admit(index, 1 + 2 * (index % 2), tokens)
    case.check(list(range(8)))


def narrow_logits() -> None:
    """Logits narrower and wider than the vocabulary."""
    case = Case(5, seed=7)
    for index in range(5):
        case.admit(index, 1, case.text())
    case.check(list(range(5)), width=200)
    case.check(list(range(5)), width=len(TOKENS) + 61)


def recycled_slots() -> None:
    """A new request in an old slot starts afresh."""
    case = Case(3, seed=8)
    for _ in range(10):
        for index in range(3):
            case.admit(index, case.rng.choice((0, 1, 3, -1)), case.text())
        case.check([2, 0, 1])


def refused_shapes() -> None:
    """Wrong types and shapes are refused before anything runs."""
    case = Case(1)
    case.admit(0, 1, [])
    rows = torch.zeros(1, dtype=torch.int32)
    strided = torch.zeros(9, 1).T[:, ::2]
    for logits in (torch.zeros(1, 9, dtype=torch.float16), torch.zeros(9), torch.zeros(2, 9), strided):
        try:
            case.bank.apply(logits, rows, rows, rows, rows, case.history, case.prompt, case.total)
        except ValueError:
            continue
        raise AssertionError(f"accepted {logits.dtype} {logits.shape}")


def main(names: list[str]) -> None:
    """Run the cases one after the other; every case builds its own bank."""
    outcomes = {}
    for name in names:
        try:
            globals()[name]()
            outcomes[name] = "agrees"
        except Exception:  # noqa: BLE001 - reported as the case's outcome
            outcomes[name] = traceback.format_exc()
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(sys.argv[1:])
