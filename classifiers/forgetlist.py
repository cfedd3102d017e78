"""What the detector knows about one forget-list: neighbours among its vectors, trained head, thresholds.

Built once per list version and detector policy; immutable afterwards. Only the tenant's own texts and benign prompts,
and the shipped benign prompts, go into it: nothing of another tenant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from guard.classifiers.benign import shipped_benign
from guard.classifiers.build_queue import Work
from guard.classifiers.calibrate import Threshold, conformal_threshold
from guard.classifiers.head import MIN_EXAMPLES, Head, out_of_fold_scores, train_head
from guard.classifiers.index import NeighbourIndex
from guard.classifiers.windows import windows
from guard.errors import DetectorError
from guard.policy import DetectorPolicy, Target, Tenant

Vectors = np.ndarray[Any, np.dtype[np.float32]]
Encode = Callable[[Sequence[str]], Work[Vectors]]
# the shipped prompts are unlike a tenant's own traffic: thresholds from them alone flagged 44 % of questions on authors
# nobody forgot, so likeness below this never counts, and a head needs benign prompts of the tenant. Both floors were
# chosen on TOFU authors 0-19 as if they were forgotten, against authors 30-39 and 150-169: 99 % of the paraphrases are
# flagged, and no more than 0.8 % of the others; a likeness of 0.7 would flag 7.5 %
_SIMILARITY_FLOOR = 0.82
MIN_OWN_BENIGN = 100
# benign prompts of one narrow kind give a threshold far below even odds; unlike prompts would all exceed it
_HEAD_FLOOR = 8.0
# vectors compared with all benign prompts between two pauses
_COMPARED = 8192
# a log-odds far beyond what a head gives; it only scales calibrated scores
_HEAD_CEILING = 20.0


@dataclass(frozen=True, slots=True)
class TrainedParts:
    """Semantic neighbours and head of one list; a part is None when switched off or without material.

    `alike` holds the questions that only look like a target's (`Target.neighbours`).
    """

    neighbours: NeighbourIndex | None
    semantic: Threshold | None
    head: Head | None
    head_threshold: Threshold | None
    alike: NeighbourIndex | None = None

    @property
    def size(self) -> int:
        """Vectors that every window of a prompt is compared with."""
        return len(self.neighbours) if self.neighbours is not None else 0

    def score(self, vectors: Vectors) -> list[tuple[int, float, str]]:
        """Targets above threshold with calibrated score and part, for the windows [w, d] of one prompt.

        Raises DetectorError on NaN.
        """
        found: list[tuple[int, float, str]] = []
        if not np.isfinite(vectors).all():
            raise DetectorError("the sentence encoder gave values that are not finite")
        if self.neighbours is not None and self.semantic is not None:
            for window, best in enumerate(self.neighbours.nearest(vectors)):
                for target, similarity in best.items():
                    if self.semantic.exceeded(similarity) and not self._alike(vectors[window], target, similarity):
                        found.append((target, self.semantic.calibrated(similarity), "semantic"))
        if self.head is not None and self.head_threshold is not None:
            scores, owners = self.head.scores(vectors)
            for window, (score, owner) in enumerate(zip(scores.tolist(), owners.tolist(), strict=True)):
                if self.head_threshold.exceeded(score) and not self._alike(vectors[window], int(owner)):
                    found.append((int(owner), self.head_threshold.calibrated(score), "head"))
        return found

    def similarity(self, vectors: Vectors, target: int) -> Vectors | None:
        """Cosine of each sentence [s, d] to the nearest text of `target`, -1 where one of its neighbours is nearer.

        None where there are no vectors of its texts. Raises DetectorError on NaN.
        """
        if self.neighbours is None or not self.neighbours.knows(target):
            return None
        if not np.isfinite(vectors).all():
            raise DetectorError("the sentence encoder gave values that are not finite")
        found = self.neighbours.similarity(vectors, target)
        if self.alike is not None and self.alike.knows(target):
            found[self.alike.similarity(vectors, target) > found] = -1.0
        return found

    def _alike(self, vector: Vectors, target: int, similarity: float | None = None) -> bool:
        """Whether a window is nearer to a neighbour of `target` than to its texts."""
        if self.alike is None or not self.alike.knows(target):
            return False
        window = vector[None]
        if similarity is None:
            if self.neighbours is None or not self.neighbours.knows(target):
                return False
            similarity = float(self.neighbours.similarity(window, target)[0])
        return float(self.alike.similarity(window, target)[0]) > similarity


@dataclass(frozen=True, slots=True)
class BenignVectors:
    """Vectors [n, d] of the windows of benign prompts; `members` [n] are the numbers of the windows' prompts."""

    vectors: Vectors
    members: np.ndarray[Any, np.dtype[np.int64]]


class ShippedBenign:
    """The vectors of the shipped benign prompts: the same for all lists, so encoded once."""

    def __init__(self) -> None:
        self._known: BenignVectors | None = None

    def get(self, encode: Encode) -> Work[BenignVectors]:
        """The vectors, encoded on first use."""
        if self._known is None:
            self._known = yield from _benign_vectors(shipped_benign(), encode)
        return self._known


def train_parts(tenant: Tenant, encode: Encode, shipped: ShippedBenign) -> Work[TrainedParts]:
    """Encode a tenant's list and benign prompts, index the list, train the head, set thresholds."""
    policy = tenant.policy.detector
    with_head = head_targets(tenant)
    # a target that wants a head and cannot have one is matched by likeness, or its meaning would never be checked
    by_likeness = [
        number
        for number in range(len(tenant.targets))
        if policy.semantic or (policy.head and number not in with_head)
    ]
    if tenant.benign:
        benign = yield from _benign_vectors(tenant.benign, encode)
    else:
        benign = yield from shipped.get(encode)
    share = policy.alpha / (int(bool(by_likeness)) + int(bool(with_head)) or 1)
    neighbours = semantic = None
    alike = yield from _alike_index(tenant.targets, encode)
    if by_likeness:
        texts, owners = semantic_texts(tenant.targets, by_likeness)
        vectors = yield from encode(texts)
        neighbours = NeighbourIndex(vectors, np.asarray(owners))
        scores = yield from _largest_similarity(benign.vectors, vectors)
        semantic = conformal_threshold(_largest_per_prompt(scores, benign.members), share)
        semantic = replace(semantic, value=max(semantic.value, _SIMILARITY_FLOOR))
    if not with_head:
        return TrainedParts(neighbours, semantic, None, None, alike)
    others = (yield from shipped.get(encode)) if tenant.benign else None
    head, head_threshold = yield from _train_head(tenant, with_head, encode, benign, others, share)
    return TrainedParts(neighbours, semantic, head, head_threshold, alike)


def head_targets(tenant: Tenant) -> tuple[int, ...]:
    """Numbers of the targets that get a head: it is switched on, and there are enough examples and benign prompts."""
    if not tenant.policy.detector.head or len(tenant.benign) < MIN_OWN_BENIGN:
        return ()
    return tuple(number for number, target in enumerate(tenant.targets) if len(target.examples) >= MIN_EXAMPLES)


def semantic_texts(targets: Sequence[Target], numbers: Sequence[int]) -> tuple[list[str], list[int]]:
    """Texts whose neighbourhood means one of the targets `numbers`: names, aliases, name with description, examples.

    With each its target's number.
    """
    texts: list[str] = []
    owners: list[int] = []
    for number in numbers:
        target = targets[number]
        own = [target.name, *target.aliases, *target.examples]
        if target.description:
            own.append(f"{target.name}. {target.description}")
        own = list(dict.fromkeys(own))
        texts += own
        owners += [number] * len(own)
    return texts, owners


def needs_encoder(tenant: Tenant) -> bool:
    """Whether any request of this tenant can ever need a sentence vector."""
    policy: DetectorPolicy = tenant.policy.detector
    return tenant.listed and policy.mode == "auto" and (policy.semantic or policy.head)


def _train_head(
    tenant: Tenant, numbers: Sequence[int], encode: Encode, benign: BenignVectors, others: BenignVectors | None,
    alpha: float,
) -> Work[tuple[Head, Threshold]]:
    """The head against `benign` and `others`; its threshold comes from `benign` alone."""
    examples = [(text, number) for number in numbers for text in tenant.targets[number].examples]
    positives = yield from encode([text for text, _ in examples])
    owners = [number for _, number in examples]
    negatives, groups = benign.vectors, benign.members
    if others is not None:
        negatives = np.concatenate([benign.vectors, others.vectors])
        groups = np.concatenate([benign.members, others.members + int(benign.members.max()) + 1])
    scores = (yield from out_of_fold_scores(positives, owners, negatives, groups))[: len(benign.vectors)]
    threshold = conformal_threshold(_largest_per_prompt(scores, benign.members), alpha, _HEAD_CEILING)
    threshold = replace(threshold, value=max(threshold.value, _HEAD_FLOOR))
    head = yield from train_head(positives, owners, negatives)
    return head, threshold


def _alike_index(targets: Sequence[Target], encode: Encode) -> Work[NeighbourIndex | None]:
    pairs = [(text, number) for number, target in enumerate(targets) for text in target.neighbours]
    if not pairs:
        return None
    vectors = yield from encode([text for text, _ in pairs])
    return NeighbourIndex(vectors, np.asarray([number for _, number in pairs]))


def _benign_vectors(prompts: Sequence[str], encode: Encode) -> Work[BenignVectors]:
    pieces, members = _windows_of(prompts)
    vectors = yield from encode(pieces)
    return BenignVectors(vectors, members)


def _windows_of(prompts: Sequence[str]) -> tuple[list[str], np.ndarray[Any, np.dtype[np.int64]]]:
    """Windows of all prompts and, for each, the number of its prompt."""
    pieces: list[str] = []
    members: list[int] = []
    for number, prompt in enumerate(prompts):
        own = windows(prompt, [(0, len(prompt))])
        pieces += own
        members += [number] * len(own)
    return pieces, np.asarray(members, np.int64)


def _largest_similarity(queries: Vectors, vectors: Vectors) -> Work[Vectors]:
    largest = np.full(len(queries), -1.0, np.float32)
    for start in range(0, len(vectors), _COMPARED):
        np.maximum(largest, (queries @ vectors[start : start + _COMPARED].T).max(axis=1), out=largest)
        yield
    return largest


def _largest_per_prompt(scores: Vectors, members: np.ndarray[Any, Any]) -> Vectors:
    largest = np.full(int(members.max()) + 1, -np.inf, np.float32)
    np.maximum.at(largest, members, scores)
    kept: Vectors = largest[np.isfinite(largest)]
    return kept
