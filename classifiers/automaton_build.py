"""Compile a trie of forbidden strings against a vocabulary.

From a node that spells a proper prefix of a pattern, the tokens that complete it begin with the remainder, so they are
one contiguous range of the vocabulary sorted by text. A token that holds a whole pattern, its leading separator
included, completes it from everywhere: those are one shared list. Both carry the pattern's index.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from guard.classifiers.trie import SEPARATOR_CODE, WORD_START, Ints, Spelling, Trie
from guard.classifiers.vocabulary import HASH_BASE, Vocabulary


def completion_ranges(trie: Trie, spelling: Spelling, vocabulary: Vocabulary) -> dict[str, Ints]:
    """Ranges of sorted tokens that complete a pattern, by node: CSR of `entry_offset` [S + 1] over the other arrays.

    Range e is entry_low[e] .. entry_high[e] and completes pattern entry_pattern[e].
    """
    found: list[tuple[Ints, Ints, Ints, Ints]] = []
    tables = vocabulary.prefixes
    separator = np.uint64(SEPARATOR_CODE)
    ends = spelling.starts + spelling.lengths
    hashes = np.zeros(len(ends), dtype=np.uint64)
    active = np.arange(len(ends))
    for length in range(1, len(tables)):
        # the leading separator is never part of a remainder: that case is the shared list
        active = active[spelling.lengths[active] > length]
        if not len(active):
            break
        with np.errstate(over="ignore"):
            hashes[active] = spelling.codes[ends[active] - length].astype(np.uint64) + HASH_BASE * hashes[active]
            spaced = separator + HASH_BASE * hashes[active]
        nodes = spelling.nodes[ends[active] - length - 1]
        found += _match(vocabulary, hashes[active], length, 0, nodes, active, spelling)
        if length + 1 < len(tables):
            folds = (trie.arrays["label"][nodes] == SEPARATOR_CODE) & (nodes != WORD_START)
            found += _match(
                vocabulary, spaced[folds], length + 1, 1, nodes[folds], active[folds], spelling
            )
    return _by_node(found, trie.nodes)


def shared_tokens(trie: Trie, vocabulary: Vocabulary) -> dict[str, Ints]:
    """Pairs (`shared_token`, `shared_pattern`): the token's text holds the pattern with its leading separator."""
    codes, starts = vocabulary.sorted_codes
    lengths = np.array([len(text) for text in vocabulary.texts], dtype=np.int64)
    nodes = np.zeros(len(lengths), dtype=np.int32)
    pairs: list[NDArray[np.int64]] = []
    active = np.arange(len(lengths))
    output, fail, pattern = (trie.arrays[name] for name in ("output", "fail", "pattern"))
    for place in range(int(lengths.max(initial=0))):
        active = active[lengths[active] > place]
        nodes[active] = trie.lookup.step(nodes[active], codes[starts[active] + place])
        ended, where = output[nodes[active]], active
        while len(where):
            where, ended = where[ended >= 0], ended[ended >= 0]
            pairs.append(np.stack([vocabulary.order[where].astype(np.int64), pattern[ended].astype(np.int64)]))
            ended = output[fail[ended]]
    both = np.unique(np.concatenate(pairs, axis=1), axis=1) if pairs else np.zeros((2, 0), dtype=np.int64)
    return {"shared_token": both[0].astype(np.int32), "shared_pattern": both[1].astype(np.int32)}


def _match(
    vocabulary: Vocabulary, hashes: NDArray[np.uint64], length: int, spaces: int, nodes: Ints,
    patterns: NDArray[np.int64], spelling: Spelling,
) -> list[tuple[Ints, Ints, Ints, Ints]]:
    """Ranges (node, low, high, pattern) of tokens whose first `length` characters hash to the given remainders."""
    table = vocabulary.prefixes[length]
    if not len(table.hashes) or not len(hashes):
        return []
    places = np.minimum(np.searchsorted(table.hashes, hashes), len(table.hashes) - 1)
    hit = np.flatnonzero(table.hashes[places] == hashes)
    places, nodes, patterns = places[hit], nodes[hit], patterns[hit]
    codes, starts = vocabulary.sorted_codes
    ends = spelling.starts[patterns] + spelling.lengths[patterns]
    equal = np.ones(len(hit), dtype=bool)
    # equal hashes are compared character by character: a collision must not ban a token
    for place in range(spaces, length):
        equal &= codes[starts[table.low[places]] + place] == spelling.codes[ends - length + place]
    places, nodes, patterns = places[equal], nodes[equal], patterns[equal]
    return [(nodes, table.low[places], table.high[places], patterns.astype(np.int32))]


def _by_node(found: list[tuple[Ints, Ints, Ints, Ints]], nodes: int) -> dict[str, Ints]:
    empty = np.zeros(0, dtype=np.int32)
    columns = [np.concatenate([empty, *(row[column] for row in found)]) for column in range(4)]
    order = np.argsort(columns[0], kind="stable")
    offsets = np.zeros(nodes + 1, dtype=np.int32)
    np.cumsum(np.bincount(columns[0], minlength=nodes), out=offsets[1:])
    low, high, pattern = (column[order] for column in columns[1:])
    return {"entry_offset": offsets, "entry_low": low, "entry_high": high, "entry_pattern": pattern}
