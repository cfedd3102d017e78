"""`--worker-cls guard.engine.worker.GuardWorker`: vLLM's worker with the guard inside.

It changes the runner's class, wraps the embedding once the weights are loaded and before the model is compiled, and
answers the `guard_*` calls that the API process makes by `collective_rpc` between steps. An import error here ends the
start, unlike one of an entry-point plugin.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from vllm.platforms import current_platform
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from guard import __version__
from guard.engine import compat, layers, ops
from guard.engine.resident_edits import install_edits
from guard.engine.routing import PlanRouter
from guard.engine.runner_v1 import GuardRunnerV1
from guard.engine.runner_v2 import GuardRunnerV2
from guard.engine.tickets import VerifiedTickets
from guard.engine.worker_state import WorkerState, find_mask
from guard.errors import EngineMismatchError
from guard.ticket import read_key

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_worker import Worker as _Base
elif current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as _Base
elif current_platform.is_cuda_alike():
    from vllm.v1.worker.gpu_worker import Worker as _Base
else:
    raise EngineMismatchError(f"the guard does not support vLLM's platform {current_platform.device_name!r}")


class GuardWorker(_Base):
    """The platform's worker; every `guard_*` method is called on every rank."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        read_key()
        compat.check_config(self.vllm_config)
        ops.register()

    def init_device(self) -> None:
        """Make the stock runner, then put the guard's overrides in front of its class."""
        super().init_device()
        runner = self.model_runner
        guarded = GuardRunnerV2 if self.use_v2_model_runner else GuardRunnerV1
        runner.__class__ = type("Guarded" + type(runner).__name__, (guarded, type(runner)), {})

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the weights, allocate the guard's memory (before the cache is sized) and wrap embedding and sites."""
        super().load_model(*args, **kwargs)
        runner: Any = self.model_runner
        capacity = max([runner.max_num_tokens, *(self.vllm_config.compilation_config.cudagraph_capture_sizes or [])])
        device: torch.device = runner.device
        model = runner.get_model()
        width = self.model_config.get_inputs_embeds_size()
        self._guard_layers = layers.find_decoder_layers(model)
        settings = compat.edit_settings(self.vllm_config)
        edits = install_edits(
            model, settings, num_layers=self._guard_num_layers(), width=self.model_config.get_hidden_size(),
            dtype=runner.dtype, device=device,
        )
        buffers = ops.EngineBuffers.allocate(
            capacity, runner.max_num_reqs, device, edits.bank if edits is not None else None
        )
        ops.install(buffers)
        self._guard_embedding = ""
        if self._guard_first_stage():
            self._guard_embedding = layers.wrap_embedding(model, width, device)
        tickets, slots = VerifiedTickets(read_key()), edits.slots if edits is not None else None
        mask = find_mask(runner)
        constraints = mask.connect(tickets, settings.max_lists + 1, slots) if mask is not None else None
        self.guard_state = WorkerState(tickets, PlanRouter(buffers, tickets, slots), constraints, mask, edits)
        runner.guard_attach(self.guard_state)

    def guard_ping(self) -> dict[str, Any]:
        """What this rank runs; the API process compares it over all ranks."""
        runner: Any = self.model_runner
        settings = compat.edit_settings(self.vllm_config)
        return {
            "version": __version__,
            "digest": compat.engine_digest(
                self.parallel_config.tensor_parallel_size, self.parallel_config.pipeline_parallel_size, settings
            ),
            "rank": self.rank,
            "runner": "v2" if isinstance(runner, GuardRunnerV2) else "v1",
            "embedding": self._guard_embedding,
            "first_stage": self._guard_first_stage(),
            "layers": list(self._guard_layers),
            "sites": [str(site) for site in self.guard_state.sites],
            "num_layers": self._guard_num_layers(),
            "width": self.model_config.get_hidden_size(),
            "max_slots": settings.max_slots,
            "max_rank": settings.max_rank,
            "max_lists": settings.max_lists,
            "fingerprint": settings.fingerprint,
            "compiled": compat.compile_counters(),
        }

    def guard_stage(self, kind: str, path: str, digest: str) -> None:
        """Begin to read an intervention from disk, in the background. Raises ResidencyError."""
        slots = self.guard_state.slots(kind)
        if slots is not None:
            slots.stage(Path(path), digest)

    def guard_staged(self, kind: str, digest: str) -> str:
        """`loading`, `ready` or `resident`. Raises PackError or ResidencyError with what was wrong."""
        slots = self.guard_state.slots(kind)
        return "resident" if slots is None else slots.staged(digest)

    def guard_commit(self, kind: str, digest: str) -> int:
        """Put a staged intervention into a free slot and return the slot. Raises ResidencyError."""
        slots = self.guard_state.slots(kind)
        if slots is None:
            return 0
        # copies to the device, in the order of the current stream
        with gpu_sync_allowed():
            return slots.commit(digest)

    def guard_release(self, kind: str, digest: str) -> None:
        """Free the slot of an intervention that no request refers to any more."""
        slots = self.guard_state.slots(kind)
        if slots is not None:
            slots.release(digest)

    def guard_counters(self) -> dict[str, int]:
        """Enforcement counters of this rank since its start."""
        return self.guard_state.counters()

    def _guard_num_layers(self) -> int:
        return int(self.model_config.get_total_num_hidden_layers())

    def _guard_first_stage(self) -> bool:
        from vllm.distributed import get_pp_group  # needs the process groups of a started worker

        return bool(get_pp_group().is_first_rank)
