"""Fit LinEAS: the affine maps of all sites at once, end to end through the frozen model.

    minimise  sum over sites of transport_cost(source with maps, target without) + gamma R(weight - 1, bias)

Source: arXiv 2503.10679. Every step takes as many source as target texts, follows the gradient of the transport cost
(SGD or Adam, cosine decay) and then makes the proximal step of the sparse-group lasso R, which sets channels and whole
sites to the identity. With Adam, the proximal step keeps the geometry of SGD.

The paper's sites are outputs of norms, of about unit size. At others (`resid_post`) the curvature of the cost in a
weight grows with the square of the activations, and an SGD rate small enough for weights hardly moves biases.
`standardise` (not in the paper, off by default) runs the same algorithm on every channel in units of the targets: with
mean m and standard deviation s,

    u = (x - m) / s,    u' = weight * u + bias,    cost in u,    served: x' = weight * x + s * bias + (1 - weight) * m
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from guard.errors import ConfigurationError
from guard.fit.activations import EncodedText, mean_pooled, padded
from guard.fit.hooks import edits, recorded
from guard.fit.labelled_texts import LabelledText
from guard.fit.loaded_model import LoadedModel, progress
from guard.fit.proximal import proximal_step
from guard.fit.steering_fit import SteeringFit, from_files
from guard.fit.transport import channel_units, paired, transport_cost
from guard.interventions.lineas import LineasConfig, save_lineas
from guard.kernels.edit_formula import EditRow
from guard.packs.format import Pack
from guard.site import Site


def fit_lineas(
    loaded: LoadedModel, texts: Sequence[LabelledText], config: LineasConfig, *, out: Path, licence: str = "unknown",
    show_progress: bool = True,
) -> Pack:
    """Fit and write report.json, report.png and the pack `lineas/` into `out`; a stopped fit goes on from
    state.safetensors. Raises GuardError, also when the steps diverge."""
    fit = SteeringFit(loaded, texts, config, method="lineas", out=out, show_progress=show_progress)
    run = _Training(fit, config)
    with progress("fitting maps", config.steps, show=show_progress) as advance:
        for _ in range(run.step):
            advance()
        while run.step < config.steps:
            run.advance()
            advance()
    run.save()
    rows = run.rows()
    moved = sum(int((part != 0).sum()) for row in rows.values() for part in (row.scale, row.shift) if part is not None)
    total = sum(2 * row.width for row in rows.values())
    brief = fit.report(rows, losses=run.losses, support=round(moved / total, 6))
    maps = {site: (1.0 + _part(row.scale), _part(row.shift)) for site, row in rows.items()}
    return save_lineas(out / "lineas", maps, method="lineas", **fit.origin(brief, licence))


run_fit_lineas = from_files(fit_lineas)


class _Training:
    """weight - 1 (scale) and bias (shift) of every site, in the channels' units, and the optimiser; everything random
    is decided by the seed and the step."""

    def __init__(self, fit: SteeringFit, config: LineasConfig) -> None:
        self._fit, self._config, self._device = fit, config, fit.loaded.device
        self._source = fit.encoded(fit.texts.source)
        self._target = _per_text(fit, config)
        width = next(iter(self._target.values()))[0].shape[-1]
        # mean and standard deviation that a channel is measured in
        plain = torch.zeros(width, device=self._device), torch.ones(width, device=self._device)
        self._units = {
            site: channel_units(torch.cat(values)) if config.standardise else plain
            for site, values in self._target.items()
        }
        names = [f"{site}/{part}" for site in fit.sites for part in ("scale", "shift")]
        self._parts = {name: torch.zeros(width, device=self._device, requires_grad=True) for name in names}
        adam = config.optimizer == "adam"
        self._optimizer = (torch.optim.Adam if adam else torch.optim.SGD)(self._parts.values(), lr=config.learning_rate)
        self._losses: list[float] = []
        self.step = 0
        self._resume()

    @property
    def losses(self) -> list[float]:
        return self._losses

    def rows(self) -> dict[Site, EditRow]:
        """The maps so far as edits of the plain activations, detached, on the CPU."""
        with torch.no_grad():
            return {
                site: EditRow(scale=_part(row.scale).cpu().clone(), shift=_part(row.shift).cpu())
                for site, row in self._rows().items()
            }

    def _rows(self) -> dict[Site, EditRow]:
        rows = {}
        for site, (mean, deviation) in self._units.items():
            scale, shift = self._parts[f"{site}/scale"], self._parts[f"{site}/shift"]
            rows[site] = EditRow(scale=scale, shift=deviation * shift - scale * mean)
        return rows

    def advance(self) -> None:
        config = self._config
        rate = config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * self.step / config.steps))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ConfigurationError(
                f"the transport cost is not finite at step {self.step}; use a smaller learning rate"
            )
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        kappa = config.gamma * (rate if config.kappa == "step" else 1.0)
        if kappa > 0.0:
            with torch.no_grad():
                for part in self._parts.values():
                    part.copy_(proximal_step(part, kappa * config.lambda_l1, kappa * config.lambda_group))
        self._losses.append(value)
        self.step += 1
        if self.step % config.checkpoint_steps == 0:
            self.save()

    def _loss(self) -> Tensor:
        """Transport cost of one batch, summed over the sites."""
        fit = self._fit
        count = min(self._config.samples, len(self._source), len(fit.texts.target))
        generator = torch.Generator().manual_seed(fit.config.seed * 1_000_003 + self.step)
        source = torch.randperm(len(self._source), generator=generator)[:count].tolist()
        target = torch.randperm(len(fit.texts.target), generator=generator)[:count].tolist()
        batch = padded(self._source, source, self._device)
        # the logits are not needed: the model without its head
        model = fit.loaded.model.base_model
        with edits(fit.loaded.model, self._rows()), recorded(fit.loaded.model, fit.sites) as seen:
            model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False)
        loss = torch.zeros((), device=self._device)
        for site in fit.sites:
            goal, deviation = torch.cat([self._target[site][index] for index in target]), self._units[site][1]
            if self._config.pooling == "mean":
                found = mean_pooled(seen[site], batch.counted)
            else:
                found, goal = paired(seen[site][batch.counted], goal, self.step)
            loss = loss + transport_cost(found / deviation, goal / deviation)
        return loss

    def save(self) -> None:
        """Write the checkpoint."""
        state = {f"part/{name}": part for name, part in self._parts.items()}
        for name, part in self._parts.items():
            state |= {f"moment/{name}/{key}": value for key, value in self._optimizer.state[part].items()
                      if isinstance(value, Tensor)}
        state |= {"losses": torch.tensor(self._losses, dtype=torch.float64), "step": torch.tensor(self.step)}
        self._fit.checkpoint.save(state)

    def _resume(self) -> None:
        state = self._fit.checkpoint.load()
        if not state:
            return
        with torch.no_grad():
            for name, part in self._parts.items():
                part.copy_(state[f"part/{name}"])
                moments = {
                    key.rpartition("/")[2]: value for key, value in state.items() if key.startswith(f"moment/{name}/")
                }
                # the step count of Adam stays on the CPU
                self._optimizer.state[part] = {
                    key: value if key == "step" else value.to(self._device) for key, value in moments.items()
                }
        self.step, self._losses = int(state["step"]), state["losses"].tolist()


def _per_text(fit: SteeringFit, config: LineasConfig) -> dict[Site, list[Tensor]]:
    """Target activations without maps, one tensor [samples, d] for each text, on the model's device."""
    states = fit.states(fit.texts.target, pooling=config.pooling)
    texts: list[EncodedText] = fit.encoded(fit.texts.target)
    lengths = [1 if config.pooling == "mean" else len(text.ids) - text.start for text in texts]
    return {site: list(value.to(fit.loaded.device).split(lengths)) for site, value in states.items()}


def _part(part: Tensor | None) -> Tensor:
    if part is None:
        raise ValueError("a map has a scale and a shift")
    return part
