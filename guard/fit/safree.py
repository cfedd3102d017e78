"""The concept of SAFREE from its phrases, and its constants from benign prompts.

Sources: arXiv 2410.12761; conformal calibration as in arXiv 2107.07511, section 1. The concept subspace comes from the
embedding rows of every token that a wording of the concept is made of: names and aliases, in three cases, with and
without a space before them. The constants of the paper belong to one text encoder; here kappa is the smallest value
that edits at most a share of benign prompts, and the self-validation is placed between benign and forget prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from guard.errors import ConfigurationError
from guard.fit.concept_basis import energy_basis
from guard.interventions.safree import (
    Concept,
    SafreeConfig,
    Validation,
    concept_share,
    relative_test,
    self_validation,
    triggers,
    windows,
)
from guard.kernels.edit_formula import MAX_RANK

# sigmoid(2 k (10 beta - t)) at the median forget prompt
MEDIAN_STRENGTH = 0.95


@dataclass(frozen=True, slots=True)
class KappaCalibration:
    """`kappa`, and the share of the benign and of the forget prompts in which it finds a trigger (nan for none given).
    `benign_edited` is measured on the prompts of the calibration; a new benign prompt is edited with a probability of
    at most the target."""

    kappa: float
    benign_edited: float
    forget_edited: float


def concept_tokens(tokenizer: Any, phrases: Iterable[str]) -> list[int]:
    """Ids, sorted, of the tokens of all phrases: as given, lower and upper case, each with and without a space before.

    Special tokens are left out. Raises ConfigurationError when nothing is left.
    """
    found: set[int] = set()
    for phrase in phrases:
        stripped = phrase.strip()
        for wording in {stripped, stripped.lower(), stripped.upper()} - {""}:
            for text in (wording, f" {wording}"):
                found.update(tokenizer(text, add_special_tokens=False)["input_ids"])
    kept = sorted(found - set(tokenizer.all_special_ids))
    if not kept:
        raise ConfigurationError("the phrases of the concept have no tokens")
    return kept


def rare_tokens(tokens: Sequence[int], counts: Tensor, most: float = 2e-4) -> list[int]:
    """The tokens that make up at most a share `most` of the `counts` [V] of ordinary text.

    Pieces of words that a name shares with half of the language say nothing about it, and would make every prompt a
    trigger. Raises ConfigurationError when nothing is left.
    """
    limit = most * float(counts.sum())
    kept = [token for token in tokens if float(counts[token]) <= limit]
    if not kept:
        raise ConfigurationError("every token of the concept is common in ordinary text and says nothing about it")
    return kept


def token_counts(tokenizer: Any, texts: Iterable[str], size: int) -> Tensor:
    """How often each of `size` tokens occurs in `texts`, float32 [size]."""
    counts = torch.zeros(size)
    for text in texts:
        ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.int64)
        counts += torch.bincount(ids, minlength=size)[:size]
    return counts


def embedding_center(table: Tensor, counts: Tensor | None = None) -> Tensor:
    """Mean row [d] of an embedding table [V, d], weighted by `counts` [V]; all rows alike without counts.

    Raises ConfigurationError for counts that are all zero.
    """
    if counts is None:
        return table.float().mean(dim=0)
    if not float(counts.sum()) > 0.0:
        raise ConfigurationError("no token was counted; the centre of the embedding table needs some text")
    center: Tensor = (counts.float() / counts.sum()) @ table.float()
    return center


def embedding_concept(
    table: Tensor, tokens: Sequence[int], center: Tensor, *, energy: float = 0.95, max_rank: int = MAX_RANK
) -> Concept:
    """The concept of `tokens` in an embedding table [V, d]. Raises ConfigurationError."""
    index = torch.tensor(list(tokens), dtype=torch.int64, device=table.device)
    found = energy_basis(table[index].float() - center, energy=energy, max_rank=max_rank)
    return Concept(center, found.basis)


def calibrate_kappa(
    benign: Sequence[Tensor], concept: Concept, config: SafreeConfig, *, forget: Sequence[Tensor] = (),
    target: float = 0.05,
) -> KappaCalibration:
    """kappa by split-conformal calibration on the embedding rows [n, d] of benign prompts; `config.kappa` is not read.

    The score of a prompt is the largest concept share among its tokens that pass the relative test. Raises
    ConfigurationError when there are too few prompts for `target`: 1 / target - 1 are needed.
    """
    count = len(benign)
    if not 0.0 < target < 1.0 or math.ceil((count + 1) * (1.0 - target)) > count:
        raise ConfigurationError(f"a share of {target} needs at least {math.ceil(1 / max(target, 1e-9)) - 1} prompts")
    scores = sorted(_largest_share(rows, concept, config) for rows in benign)
    level = scores[math.ceil((count + 1) * (1.0 - target)) - 1]
    # the test is `share >= kappa`: a score at the level itself must not pass
    kappa = min(1.0, math.nextafter(level, math.inf) + 1e-6)
    tested = config.model_copy(update={"kappa": kappa})
    return KappaCalibration(kappa, _edited(benign, concept, tested), _edited(forget, concept, tested))


def calibrate_validation(
    benign: Sequence[Tensor], forget: Sequence[Tensor], concept: Concept, config: SafreeConfig
) -> Validation:
    """t = 95th percentile of 10 beta on benign prompts; k gives a strength of 0.95 at the median forget prompt.

    Raises ConfigurationError when forget prompts do not lie above benign ones.
    """
    if not benign or not forget:
        raise ConfigurationError("self-validation needs benign and forget prompts")
    betas = torch.tensor([self_validation(rows, concept, config) for rows in benign], dtype=torch.float64)
    midpoint = 10.0 * float(torch.quantile(betas, 0.95))
    middle = 10.0 * median(self_validation(rows, concept, config) for rows in forget)
    if middle <= midpoint:
        raise ConfigurationError(
            f"self-validation cannot tell the prompts apart: 10 beta is {middle:.3f} at the median forget prompt and "
            f"{midpoint:.3f} at the 95th percentile of benign ones"
        )
    steepness = math.log(MEDIAN_STRENGTH / (1.0 - MEDIAN_STRENGTH)) / (2.0 * (middle - midpoint))
    return Validation(steepness=steepness, midpoint=midpoint)


def _largest_share(rows: Tensor, concept: Concept, config: SafreeConfig) -> float:
    centred = rows.float() - concept.center
    passing = torch.zeros(len(centred), dtype=torch.bool, device=centred.device)
    for window, core in windows(len(centred), config.window):
        inside = slice(core.start - window.start, core.stop - window.start)
        passing[core] = relative_test(centred[window], concept.basis, config.alpha)[inside]
    share = concept_share(centred, concept.basis)[passing]
    return float(share.max()) if len(share) else 0.0


def _edited(prompts: Sequence[Tensor], concept: Concept, config: SafreeConfig) -> float:
    if not prompts:
        return math.nan
    hits = [bool(triggers(rows.float() - concept.center, concept.basis, config).any()) for rows in prompts]
    return sum(hits) / len(hits)
