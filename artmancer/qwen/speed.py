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
    from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn

    transformer = base.pipeline.transformer
    heads = transformer.config.num_attention_heads
    head_dim = transformer.config.attention_head_dim
    probe = torch.zeros(1, 64, heads, head_dim, device=base.device, dtype=transformer.dtype)
    with ExitStack() as stack:
        try:
            # Not the transformer's own set_attention_backend: it also sets the kernel of the whole
            # process, which nothing resets. This context is undone in full.
            stack.enter_context(attention_backend(backend))
            # Not every installed kernel runs on every device. torch reports that at the first use.
            dispatch_attention_fn(probe, probe, probe)
        except (RuntimeError, ValueError, ImportError) as error:
            raise ArtMancerError(
                "invalid_request",
                f"The attention '{name}' cannot be used here: {error} Choose 'default', or install "
                "what it needs.",
            ) from error
        yield


@contextmanager
def _compiled(transformer: Any, sampling: Sampling) -> Iterator[None]:
    """Run a block with the transformer's blocks compiled; torch keeps compiled code for the next
    time.
    """
    # Hooks break the graph: those of the step cache, of group offload and of casts from 8 bits.
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
