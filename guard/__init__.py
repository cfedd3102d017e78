"""vllm-guard: per-tenant unlearning at serving time, on stock vLLM."""

__version__ = "0.1.0"
