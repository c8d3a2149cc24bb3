"""The core's configuration sections: every key that no plugin owns, with default, bounds and help."""

from types import MappingProxyType
from typing import Literal

import attrs

from diffulex_core.config.keys import KeyInfo, group, key
from diffulex_core.sampling_params import DecodingThresholds
from diffulex_core.sparse.config import SparseConfig

SIZES = (4, 8, 16, 32)
"""Block and page sizes for every family and strategy; their descriptors may add others (`sizes`)."""

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
ProfileFormat = Literal["trace.json", "trace.json.gz", "summary", "stages"]


@attrs.frozen(kw_only=True)
class ModelSection:
    """Which checkpoint is loaded, and how its tokens are named."""

    model: str = key(
        "", "Checkpoint: a local directory, or a name that a model source resolves.", aliases=("model_path",)
    )
    tokenizer_path: str | None = key(None, "Directory of the tokenizer; null = the checkpoint's own.")
    model_name: str = key("", "Model family; empty = inferred from config.json.")
    mask_token_id: int | None = key(
        None, "Id of the mask token; null = from config.json, generation_config.json or the tokenizer.", minimum=0
    )
    eos_token_ids: tuple[int, ...] = key(
        (),
        "Ids that end an answer; unset = those of config.json, generation_config.json and the tokenizer together.",
        aliases=("eos_token_id", "eos"),
        minimum=0,
    )
    dtype: Dtype = key("auto", "Dtype of weights and activations; auto = the checkpoint's, float32 on CPU.")
    load_format: Literal["auto", "safetensors", "dummy"] = key(
        "auto",
        "Where the weights come from: auto and safetensors = the checkpoint's files; dummy = random numbers, for "
        "benchmarks, for which config.json and a tokenizer are enough.",
    )
    check_weights: bool = key(
        False, "Refuse a checkpoint that gives a weight NaN or infinite numbers, naming every such tensor."
    )


def _threshold(name: str, help: str) -> tuple[str, KeyInfo]:
    return name, KeyInfo(help=help, minimum=0, maximum=1, generation_config=(name,))


THRESHOLDS = MappingProxyType(
    dict(
        (
            _threshold(
                "add_block_threshold",
                "Share of the last running block that must be decided before the next block starts.",
            ),
            _threshold(
                "semi_complete_threshold",
                "Share of a block that must be decided before its successor decides one token in every step.",
            ),
            _threshold("accept_threshold", "A masked position is decided when its confidence is strictly greater."),
            _threshold(
                "edit_threshold",
                "A decided token is replaced when the new one's probability is strictly greater (edit sampling).",
            ),
            _threshold(
                "remask_threshold",
                "A decided token whose probability falls below returns to mask (edit sampling, where offered).",
            ),
            _threshold(
                "token_stability_threshold",
                "Share of unchanged tokens that the last running block needs before the next block starts.",
            ),
        )
    )
)
"""Metadata of the attributes of `DecodingThresholds`, which carry none of their own."""


@attrs.frozen(kw_only=True)
class DecodingSection:
    """The decoding strategy, its block geometry and its thresholds."""

    decoding_strategy: str = key(
        "", "Decoding strategy; empty = the model family's default.", generation_config=("decoding_strategy",)
    )
    sampling_mode: str = key(
        "naive",
        "naive decides masks only; edit also revises decided tokens, where strategy and family offer it. Strategies "
        "may have other modes.",
        generation_config=("sampling_mode",),
    )
    block_size: int = key(
        32,
        "Tokens per block.",
        aliases=("diffusion_block_size",),
        choices=SIZES,
        sized=True,
        generation_config=("block_size",),
    )
    buffer_size: int = key(
        4, "Most blocks of a request that run at once.", minimum=1, generation_config=("buffer_size",)
    )
    decoding_thresholds: DecodingThresholds = group(DecodingThresholds(), leaves=THRESHOLDS, prefixed=False)
    auto_max_nfe: bool = key(
        False, "Cap the forwards of a request that sets no max_nfe at max_tokens / auto_max_nfe_tpf_floor."
    )
    auto_max_nfe_warmup_steps: int = key(8, "Forwards that the automatic cap always allows.", minimum=1)
    auto_max_nfe_tpf_floor: float = key(1.0, "Least mean tokens per forward that the automatic cap accepts.", above=0)


@attrs.frozen(kw_only=True)
class ScheduleSection:
    """How much may run at once."""

    max_model_len: int = key(
        2048, "Most positions of a sequence, prompt included; unset = at most the checkpoint's maximum.", minimum=1
    )
    max_num_batched_tokens: int = key(
        4096,
        "Most rows of one forward, prefill and decode together; long prompts are chunked. Counted for each copy.",
        minimum=1,
    )
    max_logits_tokens: int | None = key(
        None,
        "Most rows of logits that exist at a time, where the sampler can look at a step in parts; null = all of a "
        "step's. The results do not depend on it.",
        aliases=("max_logprobs",),
        minimum=2,
    )
    max_refresh_tokens: int | None = key(
        None,
        "Most rows of full passes of sparse canvases in one forward, so that they take turns; the first always passes, "
        "null = no limit.",
        minimum=1,
    )
    max_num_reqs: int = key(
        128, "Most requests that run at once on each copy of the model.", aliases=("max_num_seqs",), minimum=1
    )


@attrs.frozen(kw_only=True)
class SparseDefaults(SparseConfig):
    """The sparse cache of requests that say nothing of it: none, unless it is turned on."""

    enabled: bool = key(False, "Keep some K/V of canvases and feed one block in most steps.")
    retention_ratio: float = key(0.5, "Share of the tokens outside the block that are kept.", above=0, maximum=1)
    delay_step: int = key(1, "Full passes of a block before the one that stores; below default_block_len.", minimum=0)
    default_block_len: int = key(32, "Length of blocks where no block_length is given.", minimum=1)
    head_select: bool = key(False, "Every KV head keeps tokens of its own.")
    pool_kernel: int = key(3, "A token counts as much as the best of so many around it; odd.", minimum=1)
    refresh_every: int | None = key(None, "Store anew after so many steps; null = once for each block.", minimum=1)
    refresh_drift: float | None = key(
        None,
        "Store anew once this share of the block's tokens has changed; null = never.",
        above=0,
        maximum=1,
    )
    force_first: bool = key(False, "Decide each block's first position first, as dLLM-Serve does.")


@attrs.frozen(kw_only=True)
class CacheSection:
    """The paged KV cache."""

    page_size: int = key(
        32,
        "Positions per page; a multiple of block_size.",
        aliases=("kvcache_block_size",),
        choices=SIZES,
        sized=True,
        generation_config=("page_size",),
    )
    num_pages: int = key(-1, "Pages of each copy's cache; -1 = as many as gpu_memory_utilization allows.", minimum=-1)
    gpu_memory_utilization: float = key(
        0.9,
        "Share of the memory still free after loading that the KV cache may take; on CUDA devices without what the "
        "largest step needs, which is measured.",
        above=0,
        maximum=1,
    )
    enable_prefix_caching: bool = key(
        True, "Share pages between requests whose tokens begin alike.", generation_config=("enable_prefix_caching",)
    )
    kv_cache_layout: Literal["unified", "distinct"] = key(
        "unified",
        "Memory layout of the pages.",
        built=False,
        why="split keys and transposed values suit the kernels of Diffulex 0.1, and pages here have the one layout "
        "that every attention backend and the sparse cache read",
        honoured=("unified",),
    )
    kv_cache_dtype: Dtype = key("auto", "Dtype of cached keys and values; auto = the model's.")
    cache_policy: str = key(
        "sparse_refresh", "What a sparse cache keeps: sparse_refresh, or a policy that a plugin registers."
    )
    sparse: SparseDefaults = group(SparseDefaults())


@attrs.frozen(kw_only=True)
class ParallelSection:
    """Devices and processes."""

    tensor_parallel_size: int = key(1, "Processes that share each layer.", minimum=1, maximum=8)
    data_parallel_size: int = key(
        1,
        "Copies of the model that share the requests; each has processes, pages and limits of its own.",
        minimum=1,
        maximum=1024,
    )
    expert_parallel_size: int = key(
        1, "Processes that share the experts.", minimum=1, maximum=32768, built=False, honoured=(1,)
    )
    executor: str = key(
        "auto",
        "Where the network runs: in_process, spawned or a plugin's; auto = spawned when there are several processes.",
    )
    master_addr: str = key("localhost", "Address of this machine at which the processes of a copy meet.")
    master_port: int = key(
        0, "Port where the processes meet, counted up for each copy; 0 = a free one.", minimum=0, maximum=65535
    )
    distributed_backend: Literal["auto", "nccl", "gloo"] = key(
        "auto", "Communication library; auto = nccl between CUDA devices, gloo on the CPU."
    )
    distributed_timeout_seconds: int = key(600, "Longest wait of a process for another one.", minimum=1)
    device: str = key(
        "auto",
        "Where the model runs: auto, cpu, cuda or cuda:N; auto = the first CUDA device, or the CPU.",
        pattern=r"auto|cpu|cuda(:\d+)?",
        form="auto, cpu, cuda or cuda:N",
    )
    device_ids: tuple[int, ...] = key(
        (),
        "CUDA devices in the order of the processes, as seen after CUDA_VISIBLE_DEVICES; empty = as device says.",
        minimum=0,
    )


@attrs.frozen(kw_only=True)
class AttentionSection:
    """How attention is computed."""

    attn_impl: str = key("auto", "Attention backend; auto = the best one that serves the model on this device.")


@attrs.frozen(kw_only=True)
class ProfilerConfig:
    """The PyTorch profiler, and how many steps' stage times are kept. Steps are counted from the start of a profile."""

    profiler: Literal["torch"] | None = key(None, "Profiler; null = none.", aliases=("profiler",))
    torch_profiler_dir: str = key(
        "", "Directory of the files; needed with profiler=torch.", aliases=("torch_profiler_dir",)
    )
    formats: tuple[ProfileFormat, ...] = key(
        ("trace.json", "summary", "stages"),
        "What is written: Chrome traces, plain or compressed; summaries of the operations as text, CSV and JSON; the "
        "stage times of each step as CSV.",
        aliases=("profiler_formats",),
    )
    activities: tuple[Literal["cpu", "cuda"], ...] = key(
        (), "What is recorded; empty = cpu and, with use_cuda, cuda.", aliases=("profiler_activities",)
    )
    record_shapes: bool = key(False, "Record input shapes.", aliases=("profiler_record_shapes",))
    profile_memory: bool = key(False, "Record memory use.", aliases=("profiler_memory",))
    with_stack: bool = key(False, "Record source lines.", aliases=("profiler_with_stack",))
    with_flops: bool = key(
        False, "Estimate the operations of matrix products and convolutions.", aliases=("profiler_with_flops",)
    )
    with_modules: bool = key(False, "Record the module hierarchy.", aliases=("profiler_with_modules",))
    use_cuda: bool = key(True, "Record CUDA activity where there is a CUDA device.", aliases=("profiler_use_cuda",))
    delay_iterations: int = key(
        0,
        "Steps to skip before recording.",
        aliases=("profiler_delay_iterations", "profiler_config.schedule.wait"),
        minimum=0,
    )
    warmup_iterations: int = key(
        0,
        "Steps after those to profile without recording, so that its own start is not recorded.",
        aliases=("profiler_warmup_iterations", "profiler_config.schedule.warmup"),
        minimum=0,
    )
    max_iterations: int = key(
        0,
        "Steps to record; 0 = until stopped.",
        aliases=("profiler_max_iterations", "profiler_config.schedule.active"),
        minimum=0,
    )
    repeat: int = key(
        1,
        "How often to skip, warm up and record max_iterations steps, into files of their own; 0 = until stopped.",
        aliases=("profiler_repeat", "profiler_config.schedule.repeat"),
        minimum=0,
    )
    run_id: str | None = key(
        None, "First part of the files' names; null = the time of the start.", aliases=("profiler_run_id",)
    )
    keep_steps: int = key(
        256,
        "Steps whose stage times are kept, always and without a profiler: the latest ones.",
        aliases=("profiler_keep_steps",),
        minimum=1,
        maximum=1_000_000,
    )


@attrs.frozen(kw_only=True)
class RuntimeSection:
    """How steps are executed and recorded."""

    enforce_eager: bool = key(False, "Run every step as it comes: no CUDA graphs, no torch.compile.")
    enable_full_static_runner: bool = key(
        True, "Run decode steps in few static shapes, as CUDA graphs, where the device has them."
    )
    enable_prefill_cudagraph: bool = key(False, "Capture steps that feed prompts, too.")
    prefill_cudagraph_max_len: int = key(
        0, "Most rows of a step that feeds prompts and is captured; 0 = none is.", minimum=0
    )
    enable_torch_compile: bool = key(True, "Allow torch.compile where another key asks for it.")
    enable_cudagraph_torch_compile: bool = key(
        False, "Compile the network for steps of static shape; on the CPU, too, where they are not captured."
    )
    torch_compile_mode: CompileMode = key(
        "reduce-overhead", "Mode of torch.compile. Where steps are captured it captures none of its own."
    )
    enable_vllm_layers: bool = key(
        True,
        "Let layer_impl and moe_gemm_impl choose vllm by auto, where a plugin registers kernels of that name; false "
        "leaves them to who names them.",
    )
    enable_vectorized_sampler: bool = key(
        True,
        "Decide the rows of all requests in one call of the sampler.",
        built=False,
        why="one call for all rows decides what a call for each request would, and there is no other sampler",
        honoured=(True, False),
    )
    enable_vectorized_sampler_compile: bool = key(
        False,
        "Compile the sampler.",
        built=False,
        why="kernels of layer_impl, such as triton, search through the logits while the head computes them, which "
        "leaves nothing to compile",
        honoured=(False,),
    )
    moe_gemm_impl: str = key(
        "auto",
        "Kernel of the experts' matrix products: torch, triton, naive or one that a plugin registers; auto = triton on "
        "CUDA devices, torch on the CPU.",
    )
    layer_impl: str = key(
        "auto",
        "Kernels of the layers' other operations (norms, gates, rotation with the K/V write, routing, merged "
        "embeddings, the head with the search through its logits): torch = none, triton, or those that a plugin "
        "registers; auto = triton on CUDA devices, torch on the CPU.",
    )
    moe_dispatcher_backend: Literal["standard", "naive", "deepep"] = key(
        "standard", "How tokens travel to their experts.", built=False
    )
    deepep_mode: Literal["auto", "normal", "low_latency"] = key("auto", "Mode of DeepEP.", built=False)
    deepep_num_max_dispatch_tokens_per_rank: int = key(
        256, "Most tokens that DeepEP sends at once.", minimum=1, built=False
    )
    skip_warmup: bool = key(False, "Start without a warm-up forward.")
    profiler_config: ProfilerConfig = group(ProfilerConfig())
    trace_path: str = key("", "JSON-lines file that records every step; empty = none.")
    save_trace: bool = key(False, "Keep each request's per-step trace in its output.")


@attrs.frozen(kw_only=True)
class LoraSection:
    """A LoRA adapter over the checkpoint."""

    use_lora: bool = key(False, "Load the adapter at lora_path.")
    lora_path: str = key("", "The adapter as peft saves it: a directory, or a name that a model source resolves.")
    pre_merge_lora: bool = key(
        False, "Add the adapter to the weights once, at load; false = compute its product in every forward."
    )


CORE_SECTIONS: tuple[tuple[str, type], ...] = (
    ("model", ModelSection),
    ("decoding", DecodingSection),
    ("schedule", ScheduleSection),
    ("cache", CacheSection),
    ("parallel", ParallelSection),
    ("attention", AttentionSection),
    ("runtime", RuntimeSection),
    ("lora", LoraSection),
)
"""Section name and class, in the order in which they are shown."""
