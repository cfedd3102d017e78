"""The guard in vLLM's V1 model runner: overrides of `_prepare_inputs`, `_model_forward` and `_dummy_run`.

Batch rows move between steps, so every request in the batch gets a request slot of its own while it stays there. A
preempted request loses its slot and gets a new one when it is scheduled again; corruption depends on absolute positions
only, so its recomputed cache is the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from guard.engine.routing import PlanRouter

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    _Base = GPUModelRunner
else:
    _Base = object


class GuardRunnerV1(_Base):
    """Mixed in front of the platform's V1 runner by `GuardWorker`."""

    guard_router: PlanRouter
    _guard_slot_of: dict[str, int]
    _guard_free: list[int]
    _guard_rows: list[str]
    _guard_request_slots: torch.Tensor

    def guard_attach(self, router: PlanRouter) -> None:
        """Start to mark tokens; called once, after the model is loaded."""
        self.guard_router = router
        self._guard_slot_of = {}
        self._guard_free = list(range(router.buffers.routes.num_requests))
        self._guard_rows = []
        self._guard_request_slots = torch.zeros(0, dtype=torch.int32, device=self.device)

    def _prepare_inputs(self, scheduler_output: SchedulerOutput, num_scheduled_tokens: np.ndarray) -> Any:
        result = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)
        rows = self.input_batch.req_ids
        if rows != self._guard_rows:
            self._guard_resync(list(rows))
        router = self.guard_router
        scheduled: dict[int, tuple[int, int]] = {}
        if router.ranges:
            computed = self.input_batch.num_computed_tokens_cpu
            for row, request_id in enumerate(rows):
                request_slot = self._guard_slot_of[request_id]
                if request_slot in router.ranges:
                    scheduled[request_slot] = (int(computed[row]), int(num_scheduled_tokens[row]))
        # the padded size is decided later, so the whole buffer is written
        router.mark(
            self.query_start_loc.gpu[: len(rows) + 1], self.positions[: int(num_scheduled_tokens.sum())],
            self._guard_request_slots, router.buffers.token_slot.shape[0], scheduled,
        )
        return result

    def _model_forward(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._model_forward(*args, **kwargs)
        # drafters share the embedding and run on other rows
        self.guard_router.clear()
        return result

    def _dummy_run(self, *args: Any, **kwargs: Any) -> Any:
        self.guard_router.clear()
        return super()._dummy_run(*args, **kwargs)

    def _guard_resync(self, rows: list[str]) -> None:
        present = set(rows)
        for request_id in [known for known in self._guard_slot_of if known not in present]:
            request_slot = self._guard_slot_of.pop(request_id)
            self.guard_router.release(request_slot)
            self._guard_free.append(request_slot)
        for request_id in rows:
            if request_id not in self._guard_slot_of:
                request_slot = self._guard_free.pop()
                self._guard_slot_of[request_id] = request_slot
                self.guard_router.admit(request_slot, self.requests[request_id].sampling_params)
        slots = [self._guard_slot_of[request_id] for request_id in rows]
        self._guard_request_slots = torch.tensor(slots, dtype=torch.int32).to(self.device)
        self._guard_rows = rows
