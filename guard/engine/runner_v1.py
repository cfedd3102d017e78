"""The guard in vLLM's V1 model runner: overrides of `_update_states`, `_prepare_inputs`, `_model_forward`,
`_bookkeeping_sync` and `_dummy_run`.

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

    from guard.engine.worker_state import WorkerState

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
    _guard_generator_states: dict[int, torch.Tensor]

    def guard_attach(self, state: WorkerState) -> None:
        """Start to mark tokens; called once, after the model is loaded."""
        self.guard_router = router = state.router
        self._guard_slot_of = {}
        self._guard_free = list(range(router.buffers.routes.num_requests))
        self._guard_rows = []
        self._guard_request_slots = torch.zeros(0, dtype=torch.int32, device=self.device)
        self._guard_generator_states = {}

    def _update_states(self, scheduler_output: SchedulerOutput) -> Any:
        # also called by steps without tokens, so that an idle engine gives back the slots of finished requests
        for request_id in scheduler_output.finished_req_ids:
            self._guard_forget(request_id)
        return super()._update_states(scheduler_output)

    def _prepare_inputs(self, scheduler_output: SchedulerOutput, num_scheduled_tokens: np.ndarray) -> Any:
        result = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)
        rows = self.input_batch.req_ids
        if rows != self._guard_rows:
            self._guard_resync(list(rows))
        router = self.guard_router
        scheduled: dict[int, tuple[int, int]] = {}
        if router.planned:
            computed = self.input_batch.num_computed_tokens_cpu
            for row, request_id in enumerate(rows):
                request_slot = self._guard_slot_of[request_id]
                if router.has_plan(request_slot):
                    scheduled[request_slot] = (int(computed[row]), int(num_scheduled_tokens[row]))
        # the padded size is decided later, so the whole buffer is written
        router.mark(
            self.query_start_loc.gpu[: len(rows) + 1], self.positions[: int(num_scheduled_tokens.sum())],
            self._guard_request_slots, router.buffers.token_slot.shape[0], scheduled,
        )
        self._guard_generator_states = {
            row: self.input_batch.generators[row].get_state() for row in self._guard_discarded_seeded_rows()
        }
        return result

    def _model_forward(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._model_forward(*args, **kwargs)
        # drafters share the embedding and run on other rows
        self.guard_router.clear()
        return result

    def _bookkeeping_sync(self, *args: Any, **kwargs: Any) -> Any:
        # vLLM 0.32 rewinds the generator of a seeded request whose prompt is not finished by its offset, which only a
        # CUDA generator has: on CPU that ends the engine, so any client could. Here the state is put back instead.
        generators = self.input_batch.generators
        set_aside = {row: generators.pop(row) for row in self._guard_generator_states}
        try:
            return super()._bookkeeping_sync(*args, **kwargs)
        finally:
            for row, generator in set_aside.items():
                generator.set_state(self._guard_generator_states[row])
                generators[row] = generator
            self._guard_generator_states = {}

    def _guard_discarded_seeded_rows(self) -> list[int]:
        """Rows with a seed whose sample of this step will be thrown away; only CPU generators need care."""
        if self.device.type != "cpu" or not self.input_batch.generators:
            return []
        discarded = np.nonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])[0]
        return [int(row) for row in discarded if int(row) in self.input_batch.generators]

    def _dummy_run(self, *args: Any, **kwargs: Any) -> Any:
        self.guard_router.clear()
        return super()._dummy_run(*args, **kwargs)

    def _guard_forget(self, request_id: str) -> None:
        request_slot = self._guard_slot_of.pop(request_id, None)
        if request_slot is not None:
            self.guard_router.release(request_slot)
            self._guard_free.append(request_slot)
            # the next batch is compared with these, and the same name may come back as another request
            self._guard_rows = []

    def _guard_resync(self, rows: list[str]) -> None:
        present = set(rows)
        for request_id in [known for known in self._guard_slot_of if known not in present]:
            self._guard_forget(request_id)
        for request_id in rows:
            if request_id not in self._guard_slot_of:
                request_slot = self._guard_free.pop()
                self._guard_slot_of[request_id] = request_slot
                self.guard_router.admit(request_slot, self.requests[request_id].sampling_params)
        slots = [self._guard_slot_of[request_id] for request_id in rows]
        self._guard_request_slots = torch.tensor(slots, dtype=torch.int32).to(self.device)
        self._guard_rows = rows
