"""What an engine that is not there would say of itself."""

from __future__ import annotations

from diffulex_serve.engine.messages import EngineInfo

INFO = EngineInfo(
    model="m",
    family="f",
    strategy="s",
    block_size=4,
    mask_token_id=999,
    max_model_len=512,
    max_num_reqs=4,
    vocab_size=1000,
    num_pages=10,
    logprobs=True,
    sampling_defaults={},
    pid=1,
)
