"""What the guard does to vLLM's flags and environment variables: refused, limited or forced, and why.

Tables only, without vLLM; `guard.engine.compat` applies them and docs/deployment.md prints them. Flags stand under the
attribute of vLLM's parsed arguments.
"""

from __future__ import annotations

from guard.policy import MAX_CHOICES

WORKER = "guard.engine.worker.GuardWorker"
SCHEDULER = "guard.engine.scheduler.GuardScheduler"
LOGITS_PROCESSOR = "guard.engine.logits:GuardLogitsProcessor"
CONFIG_KEY = "guard"
MIN_SHUTDOWN_TIMEOUT_S = 30

# why a truthy value is refused
REFUSED: dict[str, str] = {
    "grpc": "the gRPC server has no gate",
    "grpc_port": "the gRPC server has no gate",
    "headless": "the guard needs its own API process",
    "middleware": "it would see requests before the guard",
    "enable_lora": "an adapter is another model than the one that was checked",
    "lora_modules": "an adapter is another model than the one that was checked",
    "enable_prompt_tokens_details": "it shows what other requests have cached",
    "enable_per_request_metrics": "it shows what other requests have cached",
    "return_tokens_as_token_ids": "token ids are not compared with the forget-list",
    "enable_auto_tool_choice": "tool calls are not compared with the forget-list yet",
    "enable_prompt_embeds": "prompts without token ids cannot be classified",
    "enable_mm_embeds": "prompts without token ids cannot be classified",
    "enable_scale_out": "its routes take token ids past the gate",
    "tokens_only": "its routes take token ids past the gate",
    "enable_elastic_ep": "ranks that join later are not self-tested",
    "trust_request_chat_template": "a client could rewrite the prompt after it is checked",
    "trust_request_mm_kwargs": "a client could rewrite the prompt after it is checked",
    "enable_trace_replay": "replayed tokens overwrite constrained ones",
    "enable_tokenizer_info_endpoint": "it shows the server's templates to every client",
    "enable_log_outputs": "answers would be written to the log",
    "enable_log_requests": "prompts would be written to the log",
    "tool_server": "built-in tools generate past the gate",
    "enable_return_routed_experts": "it returns what the output check cannot read",
    "return_sampling_mask": "it returns what the output check cannot read",
    "kv_transfer_config": "caches of other engines are not separated by tenant",
    "ec_transfer_config": "caches of other engines are not separated by tenant",
    "kv_offloading_size": "offloaded caches are not separated by tenant",
    "kv_events_config": "it publishes prompts of all tenants",
    "enable_dbo": "microbatches split the rows that the guard marks",
    "ubatch_size": "microbatches split the rows that the guard marks",
    "kv_sharing_fast_prefill": "later layers see other rows than the guard marks",
    "enable_sleep_mode": "sleeping drops the guard's device memory",
    "enable_hc_sp": "sequence parallelism splits the rows that the guard marks",
    "weight_transfer_config": "interventions are fitted to one set of weights",
    "diffusion_config": "diffusion decoding has no constrained sampling",
    "mm_encoder_only": "there is nothing to guard",
    "skip_tokenizer_init": "the guard reads prompts as text",
    "worker_extension_cls": "it adds unguarded calls to the workers",
    "api_key": "the guard has keys of its own (`guard key create`)",
}
# largest number that is served, and why no larger one
LIMITS: dict[str, tuple[int, str]] = {
    "data_parallel_size": (1, "only the first engine would be self-tested; start one server per replica"),
    "api_server_count": (1, "the guard runs one API process; start one server per replica"),
    "prefill_context_parallel_size": (1, "prompt rows would be split over ranks"),
    "decode_context_parallel_size": (1, "it is untested with the guard"),
    "nnodes": (1, "other nodes would need the guard's ticket key"),
}
# what the guard sets, whatever was asked for, and why; `check_arguments` refuses another choice of the first three
FORCED: dict[str, tuple[object, str]] = {
    "worker_cls": (WORKER, "the worker holds the guard's device memory and tables"),
    "scheduler_cls": (SCHEDULER, "its import puts the gate in front of the engine, and it counts what is planned"),
    "logits_processors": ([LOGITS_PROCESSOR], "another processor could undo its mask"),
    "logprobs_mode": ("processed_logprobs", "the engine's own records hold values after the mask"),
    "prefix_caching_hash_algo": ("sha256", "two tenants must not share a block by a collision"),
    "fingerprint_mode": ("none", "answers do not tell how the server is configured"),
    "disable_fastapi_docs": (True, "no page lists routes that the guard does not serve"),
    "enable_offline_docs": (False, "no page lists routes that the guard does not serve"),
    "language_model_only": (True, "images and audio cannot be classified"),
}
# what the guard changes by what was asked for
ADJUSTED: dict[str, str] = {
    "additional_config": f"the key `{CONFIG_KEY}` is added: the guard's version, edit settings and digest",
    "shutdown_timeout": f"at least {MIN_SHUTDOWN_TIMEOUT_S} s, for requests that still run",
}
# methods of --speculative-config that are refused; the others need Model Runner V2
REFUSED_DRAFTERS = ("suffix", "medusa", "mlp_speculator", "custom_class")
# environment variables that are refused when they are set to anything but 0 or false
FORBIDDEN_ENVIRONMENT: dict[str, str] = {
    "VLLM_SERVER_DEV_MODE": "development routes call the engine directly",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "any client could change adapters",
    "VLLM_ENABLE_RESPONSES_API_STORE": "stored responses are shared by all tenants",
    "VLLM_ENABLE_COHERE_API": "its routes are not checked",
    "VLLM_USE_RUST_FRONTEND": "the Rust front end does not pass the gate",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "answers would be written to the log",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "it allows code in engine calls",
}
# environment variables that the guard sets besides those, and why
FORCED_ENVIRONMENT: dict[str, tuple[str, str]] = {
    "VLLM_MAX_N_SEQUENCES": (str(MAX_CHOICES), "many draws raise the odds of a forbidden answer"),
    "VLLM_MAX_COMPLETION_PROMPTS": ("8", "each prompt of a request is classified"),
    "VLLM_PLUGINS": ("", "a plug-in could change what was checked"),
}


def flag_of(name: str) -> str:
    """The command-line spelling of an argument."""
    return "--" + name.replace("_", "-")
