"""Which features of a sparse autoencoder stand for a concept: thresholds, statistics on forget and retain texts, two
selections.

  sparsity   arXiv 2410.19278: features that fire on at most a share of retain tokens, most frequent on forget tokens
  ratio      DSG, arXiv 2504.08192: s = (mean activation)^2; features whose s_F / s_R lies above a percentile, largest
             s_F first

Both count tokens, but one token is enough to derail an answer, and a feature on 1 % of the retain tokens can be in many
texts. `raise_thresholds` therefore looks at texts: a feature of the concept fires more strongly there than
elsewhere. A threshold above the autoencoder's is conditional clamping (arXiv 2503.11127); that it is a percentile over
retain texts is as in DSG, which takes it of the share of tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from guard.errors import ConfigurationError
from guard.fit.autoencoder import Autoencoder

# DSG keeps features above this percentile of s_F, and guards its ratio with this constant
FORGET_PERCENTILE = 5.0
_EPSILON = 1e-21


@dataclass(frozen=True, slots=True)
class FeatureStatistics:
    """Per feature [F], float64: share of tokens where it fires, and mean activation, on forget and retain tokens."""

    forget_frequency: Tensor
    retain_frequency: Tensor
    forget_mean: Tensor
    retain_mean: Tensor


def raise_thresholds(autoencoder: Autoencoder, retain: Tensor, lengths: Sequence[int], share: float) -> Autoencoder:
    """The autoencoder with thresholds, none lower than before, such that each feature fires in at most `share` of the
    texts. `retain` [M, d]: their activations, text after text; `lengths`: rows of each text, M together."""
    allowed = int(share * len(lengths))
    if allowed >= len(lengths):
        return autoencoder
    peaks = torch.stack([
        (text.float() @ autoencoder.encoder.T + autoencoder.encoder_bias).amax(dim=0)
        for text in retain.split(list(lengths))
    ])
    # what fires must exceed the threshold, so the text whose peak it is stays silent
    level = torch.topk(peaks, allowed + 1, dim=0).values[-1]
    return replace(autoencoder, threshold=torch.maximum(autoencoder.threshold, level))


def feature_statistics(autoencoder: Autoencoder, forget: Tensor, retain: Tensor) -> FeatureStatistics:
    """Statistics of activations forget [N, d] and retain [M, d]. Raises ConfigurationError when either is empty."""
    forget_frequency, forget_mean = _moments(autoencoder, forget)
    retain_frequency, retain_mean = _moments(autoencoder, retain)
    return FeatureStatistics(forget_frequency, retain_frequency, forget_mean, retain_mean)


def select_by_sparsity(statistics: FeatureStatistics, count: int, retain_sparsity: float = 0.01) -> list[int]:
    """Up to `count` features, most frequent on forget tokens first."""
    allowed = (statistics.retain_frequency <= retain_sparsity) & (statistics.forget_frequency > 0)
    return _strongest(statistics.forget_frequency, allowed, count)


def select_by_ratio(statistics: FeatureStatistics, count: int, percentile: float = 95.0) -> list[int]:
    """Up to `count` features, largest squared mean activation on forget tokens first."""
    forget, retain = statistics.forget_mean.square(), statistics.retain_mean.square()
    ratio = forget / (retain + _EPSILON)
    allowed = (
        (forget > 0) & (forget >= torch.quantile(forget, FORGET_PERCENTILE / 100.0))
        & (ratio >= torch.quantile(ratio, percentile / 100.0))
    )
    return _strongest(forget, allowed, count)


def firing_share(autoencoder: Autoencoder, chosen: Iterable[int], tokens: Tensor) -> float:
    """Share of the tokens [N, d] where at least one of the chosen features fires (rho of DSG); 0 without tokens."""
    if not len(tokens):
        return 0.0
    index = torch.tensor(list(chosen), dtype=torch.int64)
    before = tokens.float() @ autoencoder.encoder[index].T + autoencoder.encoder_bias[index]
    return float((before > autoencoder.threshold[index]).any(dim=-1).double().mean())


def firing_texts(
    autoencoder: Autoencoder, chosen: Iterable[int], tokens: Tensor, lengths: Sequence[int]
) -> float:
    """Share of the texts with a token where at least one of the chosen features fires; `lengths` as above."""
    shares = [firing_share(autoencoder, chosen, text) for text in tokens.split(list(lengths))] if lengths else []
    return sum(share > 0.0 for share in shares) / max(1, len(shares))


def _moments(autoencoder: Autoencoder, tokens: Tensor) -> tuple[Tensor, Tensor]:
    if not len(tokens):
        raise ConfigurationError("feature statistics need at least one token of each label")
    fired = torch.zeros(len(autoencoder.threshold), dtype=torch.float64)
    total = torch.zeros_like(fired)
    for part in tokens.split(4096):
        features = autoencoder.encode(part)
        fired += (features > 0).sum(dim=0).double()
        total += features.double().sum(dim=0)
    return fired / len(tokens), total / len(tokens)


def _strongest(score: Tensor, allowed: Tensor, count: int) -> list[int]:
    order = torch.argsort(score.masked_fill(~allowed, -1.0), descending=True, stable=True)
    return [int(index) for index in order[:count] if bool(allowed[index])]
