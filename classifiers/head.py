"""A trained head on sentence vectors: does this prompt belong to the forget-list, and to which target?

Multinomial logistic regression over the vectors (classes: "nothing" and every target with enough examples), trained in
seconds with a fixed seed against benign prompts. The score is the log-odds of "some target" against "nothing".
Thresholds come from out-of-fold scores of the benign prompts, since a head is too sure about what it was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from guard.classifiers.build_queue import Work
from guard.classifiers.threads import at_most_threads
from guard.errors import DetectorError

Vectors = np.ndarray[Any, np.dtype[np.float32]]
MIN_EXAMPLES = 8
_FOLDS = 5
_STEPS = 120
_SEED = 20240607
_SCALE = 12.0
_DECAY = 2e-4


@dataclass(frozen=True, slots=True)
class Head:
    """Weights [d, classes] and bias [classes]; class 0 is "nothing", class i is target `owners[i - 1]`."""

    weights: Vectors
    bias: Vectors
    owners: tuple[int, ...]

    def scores(self, vectors: Vectors) -> tuple[Vectors, np.ndarray[Any, np.dtype[np.int64]]]:
        """Log-odds [n] that each vector belongs to the list, and the likeliest target [n]."""
        logits = (_SCALE * vectors) @ self.weights + self.bias
        targets = logits[:, 1:]
        top = targets.max(axis=1)
        total = top + np.log(np.exp(targets - top[:, None]).sum(axis=1))
        owners = np.asarray(self.owners, np.int64)[targets.argmax(axis=1)]
        return (total - logits[:, 0]).astype(np.float32), owners


def train_head(positives: Vectors, owners: Sequence[int], negatives: Vectors, *, seed: int = _SEED) -> Work[Head]:
    """Fit on examples [p, d] of targets `owners` [p] and benign vectors [n, d], with a pause after each step.

    Raises DetectorError when empty.
    """
    if not len(positives) or not len(negatives) or len(owners) != len(positives):
        raise DetectorError("a head needs examples, one owner for each, and benign prompts")
    classes = tuple(sorted(set(owners)))
    number = {owner: rank + 1 for rank, owner in enumerate(classes)}
    inputs = torch.from_numpy(np.concatenate([negatives, positives])) * _SCALE
    labels = torch.tensor([0] * len(negatives) + [number[owner] for owner in owners])
    # "some target" and "nothing" weigh the same, however many prompts each has
    sample_weight = torch.where(labels == 0, 0.5 / len(negatives), 0.5 / len(positives))
    generator = torch.Generator().manual_seed(seed)
    weights = (torch.randn(inputs.shape[1], len(classes) + 1, generator=generator) * 1e-3).requires_grad_()
    bias = torch.zeros(len(classes) + 1, requires_grad=True)
    optimiser = torch.optim.AdamW([weights, bias], lr=0.05, weight_decay=0.0)
    for _ in range(_STEPS):
        with at_most_threads(1):
            optimiser.zero_grad()
            losses = torch.nn.functional.cross_entropy(inputs @ weights + bias, labels, reduction="none")
            loss = (losses * sample_weight).sum() + _DECAY * weights.square().sum()
            loss.backward()
            optimiser.step()
        yield
    return Head(weights.detach().numpy(), bias.detach().numpy(), classes)


def out_of_fold_scores(
    positives: Vectors, owners: Sequence[int], negatives: Vectors, groups: np.ndarray[Any, Any]
) -> Work[Vectors]:
    """Score [n] of every benign vector by a head that did not see it, nor another vector of its group [n]."""
    names, members = np.unique(groups, return_inverse=True)
    fold_of_group = np.random.default_rng(_SEED).permutation(len(names)) % _FOLDS
    folds = fold_of_group[members]
    scores = np.zeros(len(negatives), np.float32)
    for fold in range(_FOLDS):
        held_out = folds == fold
        if held_out.any() and not held_out.all():
            head = yield from train_head(positives, owners, negatives[~held_out])
            scores[held_out] = head.scores(negatives[held_out])[0]
    return scores
