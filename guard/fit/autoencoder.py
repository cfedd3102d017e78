"""Train a sparse autoencoder on activations: TopK over the batch, kept as JumpReLU with one calibrated threshold.

    f = enc(x): pi = W_enc x + b_enc, kept where it is among the k * B largest of a batch of B tokens (BatchTopK,
    arXiv 2412.06410); x^ = W_dec f + b_dec; loss = |x - x^|^2 / |x|^2 + auxiliary loss that lets features that have not
    fired for long rebuild the error (arXiv 2406.04093)

A selection over tokens or features cannot be served feature by feature, so the trained autoencoder is read as JumpReLU:
pi counts where it exceeds a threshold that keeps k features per token on average; `agreement` says how far both choices
are the same. Trained on centred, scaled activations; the result works on raw ones, its decoder rows have norm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guard.errors import ConfigurationError
from guard.fit.checkpoint import Checkpoint
from guard.interventions.sae import SaeFeatures, TrainingConfig

AUXILIARY_WEIGHT = 1 / 32
# a feature is dead after this many tokens without firing
DEAD_AFTER = 50_000
CHECKPOINT_STEPS = 200
_PARTS = ("encoder", "encoder_bias", "decoder", "decoder_bias")


@dataclass(frozen=True, slots=True)
class Autoencoder:
    """JumpReLU autoencoder of raw activations: encoder, decoder [F, d], encoder_bias, threshold [F], decoder_bias [d];
    float32."""

    encoder: Tensor
    encoder_bias: Tensor
    threshold: Tensor
    decoder: Tensor
    decoder_bias: Tensor

    def encode(self, x: Tensor) -> Tensor:
        """Features [..., F] >= 0 of activations [..., d]."""
        before = x.float() @ self.encoder.T + self.encoder_bias
        return torch.where(before > self.threshold, before, torch.zeros_like(before))

    def decode(self, features: Tensor) -> Tensor:
        """Activations [..., d] of features [..., F]."""
        return features @ self.decoder + self.decoder_bias

    def features(self, chosen: Sequence[int]) -> SaeFeatures:
        """Some features, in the given order, as a clamp pack stores them."""
        index = torch.tensor(list(chosen), dtype=torch.int64)
        return SaeFeatures(
            encoder=self.encoder[index], encoder_bias=self.encoder_bias[index], threshold=self.threshold[index],
            decoder=self.decoder[index],
        )


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """`losses`: relative squared error at every tenth step. On held-out activations: `unexplained` variance of the
    JumpReLU form, `unexplained_topk` of the trained form, `active` features per token, `agreement` = both choose the
    feature / either does, `dead` = share of features that never fire."""

    losses: tuple[float, ...]
    unexplained: float
    unexplained_topk: float
    active: float
    agreement: float
    dead: float


def train(
    activations: Tensor, held_out: Tensor, config: TrainingConfig, *, checkpoint: Checkpoint | None = None,
    advance: Callable[[], object] = lambda: None, device: str | torch.device = "cpu",
) -> tuple[Autoencoder, TrainingReport]:
    """Train on activations [N, d]; threshold and report come from `held_out` [M, d], both on
    the CPU; the weights are trained on `device`. With `checkpoint`, a stopped
    training of the same identity goes on where it was.

    Raises ConfigurationError when there are too few activations.
    """
    if min(len(activations), len(held_out)) < 2 or config.active > config.features:
        raise ConfigurationError("training needs 2 activations in each part and no more active features than features")
    center = activations.float().mean(dim=0)
    scale = float((activations.float() - center).norm(dim=-1).mean()) / math.sqrt(activations.shape[-1])
    if not scale > 0.0:
        raise ConfigurationError("the activations are all equal; there is nothing to train on")
    scaled = (activations.float() - center) / scale
    run = _Training(scaled, config, checkpoint, torch.device(device))
    for _ in range(run.step):
        advance()
    while run.step < config.steps:
        run.advance()
        advance()
    return _finished(run, center, scale, (held_out.float() - center) / scale, config)


class _Training:
    """Weights, Adam moments and step count; everything random is decided by the seed and the step."""

    def __init__(
        self, scaled: Tensor, config: TrainingConfig, checkpoint: Checkpoint | None, device: torch.device
    ) -> None:
        self._data, self._config, self._checkpoint, self._device = scaled, config, checkpoint, device
        width = scaled.shape[-1]
        decoder = torch.randn(config.features, width, generator=_generator(config.seed))
        decoder /= decoder.norm(dim=-1, keepdim=True)
        values = (decoder.clone(), torch.zeros(config.features), decoder, torch.zeros(width))
        self.weights = {name: value.to(device).requires_grad_() for name, value in zip(_PARTS, values, strict=True)}
        self._adam = torch.optim.Adam(self.weights.values(), lr=config.learning_rate, betas=(0.9, 0.999))
        self._idle = torch.zeros(config.features, device=device)  # tokens since a feature last fired
        self._losses: list[float] = []
        self.step = 0
        self._resume()

    @property
    def losses(self) -> tuple[float, ...]:
        return tuple(self._losses)

    def advance(self) -> None:
        config = self._config
        chosen = torch.randint(
            len(self._data), (config.batch,), generator=_generator(config.seed * 1_000_003 + self.step + 1)
        )
        for group in self._adam.param_groups:
            # the last fifth of the steps decays to zero
            group["lr"] = config.learning_rate * min(1.0, 5.0 * (1.0 - self.step / config.steps))
        loss = self._loss(self._data[chosen].to(self._device))
        self._adam.zero_grad()
        loss.backward()
        self._adam.step()
        with torch.no_grad():
            self.weights["decoder"] /= self.weights["decoder"].norm(dim=-1, keepdim=True).clamp_min(1e-8)
        self.step += 1
        if self.step % CHECKPOINT_STEPS == 0:
            self._save()

    def _loss(self, x: Tensor) -> Tensor:
        weights = self.weights
        before = pre_activations(x, weights)
        features = batch_top_k(before, self._config.active)
        error = x - (features @ weights["decoder"] + weights["decoder_bias"])
        power = x.square().mean()
        loss = error.square().mean() / power
        if self.step % 10 == 0:
            self._losses.append(round(float(loss.detach()), 6))
        self._idle = torch.where(features.detach().any(dim=0), 0.0, self._idle + len(x))
        dead = self._idle > DEAD_AFTER
        if bool(dead.any()):
            count = min(int(dead.sum()), max(1, x.shape[-1] // 2))
            revived = batch_top_k(before.masked_fill(~dead, 0.0), count)
            loss = loss + AUXILIARY_WEIGHT * (error.detach() - revived @ weights["decoder"]).square().mean() / power
        return loss

    def _save(self) -> None:
        if self._checkpoint is None:
            return
        state = {f"weight.{name}": value.detach() for name, value in self.weights.items()}
        for name, value in self.weights.items():
            state |= {f"adam.{name}.{key}": moment for key, moment in self._adam.state[value].items()}
        state |= {"idle": self._idle, "losses": torch.tensor(self._losses), "step": torch.tensor(self.step)}
        self._checkpoint.save(state)

    def _resume(self) -> None:
        state = self._checkpoint.load() if self._checkpoint is not None else {}
        if not state:
            return
        with torch.no_grad():
            for name, value in self.weights.items():
                value.copy_(state[f"weight.{name}"])
                moments = {key: state[f"adam.{name}.{key}"].to(self._device) for key in ("exp_avg", "exp_avg_sq")}
                # Adam keeps its step on the CPU
                self._adam.state[value] = {"step": state[f"adam.{name}.step"], **moments}
        self._idle, self.step = state["idle"].to(self._device), int(state["step"])
        self._losses = [round(float(loss), 6) for loss in state["losses"]]


def pre_activations(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """pi [B, F] of scaled activations [B, d]."""
    return (x - weights["decoder_bias"]) @ weights["encoder"].T + weights["encoder_bias"]


def batch_top_k(before: Tensor, active: int) -> Tensor:
    """`before` [B, F] where it is positive and among the B * active largest, else 0."""
    count = min(before.shape[0] * active, before.numel())
    smallest = torch.topk(before.detach().flatten(), count, sorted=False).values.min()
    return torch.where((before >= smallest) & (before > 0), before, torch.zeros_like(before))


@torch.no_grad()
def _finished(
    run: _Training, center: Tensor, scale: float, held_out: Tensor, config: TrainingConfig
) -> tuple[Autoencoder, TrainingReport]:
    # on the CPU, so that the threshold does not depend on the device's order of sums
    weights = {name: value.detach().cpu() for name, value in run.weights.items()}
    chosen, level = [], []
    for part in held_out.split(config.batch):
        before = pre_activations(part, weights)
        kept = batch_top_k(before, config.active)
        level.append(torch.topk(before.flatten(), min(len(part) * config.active, before.numel())).values)
        chosen.append(kept)
    topk = torch.cat(chosen)
    # all batches together: the level that keeps k features per token
    threshold = float(torch.cat([values[-1:] for values in level]).mean().clamp_min(0.0))
    before = pre_activations(held_out, weights)
    jump = torch.where(before > threshold, before, torch.zeros_like(before))
    both, either = ((topk > 0) & (jump > 0)).sum(), ((topk > 0) | (jump > 0)).sum()
    variance = (held_out - held_out.mean(dim=0)).square().sum()

    def unexplained(features: Tensor) -> float:
        error = held_out - (features @ weights["decoder"] + weights["decoder_bias"])
        return round(float(error.square().sum() / variance), 6)

    report = TrainingReport(
        losses=run.losses, unexplained=unexplained(jump), unexplained_topk=unexplained(topk),
        active=round(float((jump > 0).sum(dim=-1).float().mean()), 3),
        agreement=round(float(both / either.clamp_min(1)), 6),
        dead=round(float((~(jump > 0).any(dim=0)).float().mean()), 6),
    )
    encoder, offset = weights["encoder"], weights["decoder_bias"] + center / scale
    autoencoder = Autoencoder(
        encoder=encoder, encoder_bias=scale * (weights["encoder_bias"] - encoder @ offset),
        threshold=torch.full((config.features,), scale * threshold), decoder=weights["decoder"],
        decoder_bias=scale * offset,
    )
    return autoencoder, report


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
