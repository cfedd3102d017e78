"""The guard in vLLM's Model Runner V2: overrides of `add_requests`, `_remove_request`, `prepare_inputs`,
`execute_model` and `_dummy_run`.

V2 gives every request a stable state index, which is its request slot. Preemption removes the state and sends the
request again as a new one. Batch boundaries are read from `query_start_loc` on the device, because adaptive
verification decides them there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guard.engine.routing import PlanRouter

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    from guard.engine.logits import GuardLogitsProcessor
    from guard.engine.worker_state import WorkerState

    _Base = GPUModelRunner
else:
    _Base = object


class GuardRunnerV2(_Base):
    """Mixed in front of the platform's V2 runner by `GuardWorker`."""

    guard_router: PlanRouter
    guard_mask: GuardLogitsProcessor | None

    def guard_attach(self, state: WorkerState) -> None:
        """Start to mark tokens; called once, after the model is loaded."""
        self.guard_router, self.guard_mask = state.router, state.mask

    def add_requests(self, scheduler_output: SchedulerOutput) -> None:
        """Register the plans of new and resumed requests."""
        super().add_requests(scheduler_output)
        for new in scheduler_output.scheduled_new_reqs:
            self.guard_router.admit(self.req_states.req_id_to_index[new.req_id], new.sampling_params)

    def _remove_request(self, req_id: str) -> bool:
        request_slot = self.req_states.req_id_to_index.get(req_id)
        if request_slot is not None:
            self.guard_router.release(request_slot)
            if self.guard_mask is not None:
                self.guard_mask.remove_request(request_slot)
        return super()._remove_request(req_id)

    def prepare_inputs(self, *args: Any, **kwargs: Any) -> InputBatch:
        """Build the batch, then mark its tokens."""
        batch = super().prepare_inputs(*args, **kwargs)
        router = self.guard_router
        scheduled: dict[int, tuple[int, int]] = {}
        if router.planned:
            for row, request_slot in enumerate(batch.idx_mapping_np[: batch.num_reqs].tolist()):
                if router.has_plan(request_slot):
                    first, count = int(batch.num_computed_tokens_np[row]), int(batch.num_scheduled_tokens[row])
                    scheduled[request_slot] = (first, count)
        router.mark(
            batch.query_start_loc[: batch.num_reqs + 1], batch.positions, batch.idx_mapping[: batch.num_reqs],
            batch.num_tokens_after_padding, scheduled,
        )
        return batch

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        """Run the target model, then unmark: drafters share the embedding and run on other rows."""
        result = super().execute_model(*args, **kwargs)
        self.guard_router.clear()
        return result

    def _dummy_run(self, *args: Any, **kwargs: Any) -> Any:
        self.guard_router.clear()
        return super()._dummy_run(*args, **kwargs)
