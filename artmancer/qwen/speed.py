"""Speed-ups of the transformer that cost precision or preparation: attention kernels, step caches
and compilation.

Each is switched on for one run, and off when the run ends or fails.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import ArtMancerError
from ..options import Sampling
from .pipeline import Base
from .sampler import unpack

ATTENTION = {
    "default": None,
    "cudnn": "_native_cudnn",
    "flash": "flash",
    "flash 3": "_flash_3",
    "sage": "sage",
}
"""diffusers' names of attention kernels, by the names to choose from; None: torch's own choice.

None of these is downloaded when it is chosen.
"""

_ATTENTION_TOLERANCE = 0.1
"""Largest difference of an attention kernel's result from the default's, as a share of its norm.

On random input the difference of simulated kernels is 0.002 in bfloat16, 0.01 to 0.05 with query
and key in int8, 0.04 to 0.06 with all in float8, and 0.2 with query and key in 4 bits.
"""

_PROBE_TOKENS = 200
"""Tokens of that random input; no multiple of the blocks that kernels compute in."""

_GRAPHS = 1000
"""Graphs that torch may compile of the blocks; those of all bases, ranks and settings count."""

_MAX_TAYLOR_THRESHOLD = 0.9
"""Largest threshold of the step cache "taylor": every tenth step is computed."""


def _first_block(sampling: Sampling) -> Any:
    """Configure a cache that skips the other blocks of a step whose first block changes little: it
    reuses what they added in an earlier step.
    """
    from diffusers import FirstBlockCacheConfig

    return FirstBlockCacheConfig(threshold=sampling.step_cache)


def _sea(sampling: Sampling) -> Any:
    """Configure a cache that skips all blocks of a step whose image has moved little: it
    extrapolates what they added in earlier steps.
    """
    from diffusers.hooks.sea_cache import SeaCacheConfig

    def result_latents(module: Any, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
        _, *grid = kwargs["img_shapes"][0][0]
        return [unpack(kwargs["hidden_states"][:, : math.prod(grid)], grid)[0]]

    return SeaCacheConfig(threshold=sampling.step_cache, raw_vision_callback=result_latents)


def _taylor(sampling: Sampling) -> Any:
    """Configure a cache that computes every n-th step, the first three and the last, and
    extrapolates the other steps without computing anything.

    The threshold is the share of steps to skip: n = 1 / (1 - threshold).
    """
    from diffusers import TaylorSeerCacheConfig

    return TaylorSeerCacheConfig(
        cache_interval=round(1 / (1 - min(sampling.step_cache, _MAX_TAYLOR_THRESHOLD))),
        disable_cache_after_step=sampling.steps - 1,
        taylor_factors_dtype=torch.float32,
        use_lite_mode=True,
    )


STEP_CACHES: dict[str, Callable[[Sampling], Any]] = {
    "first block": _first_block,
    "sea": _sea,
    "taylor": _taylor,
}
"""Step caches, which save part of the work of a step, and the functions that configure diffusers'
caches for them.

diffusers' other caches do not fit: MagCache needs values measured on the model, FasterCache expects
another layout of the latents, and PyramidAttentionBroadcast mixes the two passes of classifier-free
guidance.
"""


@contextmanager
def settings(base: Base, sampling: Sampling) -> Iterator[None]:
    """Run a block with the attention, step cache and compilation that the settings name; with
    attached adapters nothing is compiled.

    Raises
    ------
    ArtMancerError : invalid_request where an attention kernel is not installed, or cannot run on
        the base's device
    """
    transformer = base.pipeline.transformer
    with ExitStack() as stack:
        # PEFT's layers for attached adapters break the graph into dozens.
        if sampling.compile and not base.adapters:
            stack.enter_context(_compiled(transformer, sampling))
        if backend := ATTENTION[sampling.attention]:
            stack.enter_context(_attention(base, sampling.attention, backend))
        if sampling.step_cache:
            transformer.enable_cache(STEP_CACHES[sampling.step_cache_kind](sampling))
            stack.callback(transformer.disable_cache)
        yield


@contextmanager
def _attention(base: Base, name: str, backend: str) -> Iterator[None]:
    """Run a block with an attention kernel, after a trial on the device."""
    from diffusers.models.attention_dispatch import attention_backend

    with ExitStack() as stack:
        try:
            # Not the transformer's own set_attention_backend: it also sets the kernel of the whole
            # process, which nothing resets. This context is undone in full.
            stack.enter_context(attention_backend(backend))
            error = _attention_error(base)
        except (RuntimeError, ValueError, ImportError) as failure:
            reason = str(failure).strip().partition("\n")[0].rstrip(".").replace(". ", "; ")
            raise ArtMancerError(
                "invalid_request",
                f"The attention '{name}' cannot be used here ({reason}): choose 'default', or "
                "install what it needs.",
            ) from failure
        # NaN is no number below the tolerance.
        if not error <= _ATTENTION_TOLERANCE:
            raise ArtMancerError(
                "invalid_request",
                f"The attention '{name}' cannot be used here (its result differs from the "
                f"default's by {error:.0%}, and {_ATTENTION_TOLERANCE:.0%} is the most that 8 bits "
                "explain): choose 'default'.",
            )
        yield


def _attention_error(base: Base) -> float:
    """Return the difference of the active attention kernel's result from the default's on random
    input, as a share of the default's norm.

    Not every installed kernel runs on every device, which torch reports at the first use; some
    return zeros or NaN.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    transformer = base.pipeline.transformer
    config = transformer.config
    shape = (3, 1, _PROBE_TOKENS, config.num_attention_heads, config.attention_head_dim)
    probe = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    query, key, value = probe.to(base.device, transformer.dtype)
    result = dispatch_attention_fn(query, key, value).float()
    default = AttentionBackendName.NATIVE
    expected = dispatch_attention_fn(query, key, value, backend=default).float()
    return float((result - expected).norm() / expected.norm())


@contextmanager
def _compiled(transformer: Any, sampling: Sampling) -> Iterator[None]:
    """Run a block with the transformer's blocks compiled; torch keeps compiled code for the next
    time.
    """
    # Hooks break the graph: those of the step cache and of group offload.
    hooked = sampling.step_cache or any(
        hasattr(module, "_diffusers_hook") for module in transformer.modules()
    )
    config: Any = torch._dynamo.config
    limits = {"recompile_limit": _GRAPHS, "accumulated_recompile_limit": _GRAPHS}
    with ExitStack() as stack:
        # Beyond its limit torch fails, or runs blocks that are not compiled.
        stack.enter_context(config.patch(limits))
        for layer in (transformer.img_in, transformer.txt_in):
            # A layer returns a view, a block does not: the first would have a graph of its own.
            stack.callback(layer.register_forward_hook(lambda *call: call[-1].clone()).remove)
        # Without `dynamic`, other sizes of images and prompts are compiled anew, in turn.
        transformer.compile_repeated_blocks(fullgraph=not hooked, dynamic=True)
        stack.callback(_leave, transformer)
        yield


def _leave(transformer: Any) -> None:
    """Go back to the blocks that are not compiled."""
    for block in transformer.transformer_blocks:
        # Private in torch, which has no call for it: Module.compile stores the compiled forward
        # here, and None makes the module run its own forward again.
        block._compiled_call_impl = None
