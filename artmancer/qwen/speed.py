"""What makes the transformer faster at a price:
on for one run, and off again whatever became of it.
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
"""Names of attention kernels, and diffusers' names for them.
None of these is downloaded when it is chosen.
"""


def _first_block(sampling: Sampling) -> Any:
    """A step whose first block gives about what it gave before takes the others'
    part from there.
    """
    from diffusers import FirstBlockCacheConfig

    return FirstBlockCacheConfig(threshold=sampling.step_cache)


def _sea(sampling: Sampling) -> Any:
    """A step whose picture has moved little takes what all blocks add from
    those before, extrapolated.
    """
    from diffusers.hooks.sea_cache import SeaCacheConfig

    def picture(module: Any, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
        _, *grid = kwargs["img_shapes"][0][0]
        return [unpack(kwargs["hidden_states"][:, : math.prod(grid)], grid)[0]]

    return SeaCacheConfig(threshold=sampling.step_cache, raw_vision_callback=picture)


def _taylor(sampling: Sampling) -> Any:
    """Some steps, all but the first three and the last, are extrapolated from those before and
    compute nothing.
    """
    from diffusers import TaylorSeerCacheConfig

    return TaylorSeerCacheConfig(
        cache_interval=round(1 / (1 - min(sampling.step_cache, 0.9))),
        disable_cache_after_step=sampling.steps - 1,
        taylor_factors_dtype=torch.float32,
        use_lite_mode=True,
    )


STEP_CACHES: dict[str, Callable[[Sampling], Any]] = {
    "first block": _first_block,
    "sea": _sea,
    "taylor": _taylor,
}
"""What may save part of a step, and diffusers' configuration for it.

Of its other caches MagCache needs figures measured on the model, FasterCache wants another layout
of the latents, and PyramidAttentionBroadcast mixes the two halves of CFG.
"""


@contextmanager
def settings(base: Base, sampling: Sampling) -> Iterator[None]:
    """Run with the attention, step cache and compilation that are asked for.

    Raises
    ------
    ArtMancerError : invalid_request where an attention kernel is not installed, or cannot run on
        the base's device
    """
    transformer = base.pipeline.transformer
    _compile(transformer, sampling)
    with ExitStack() as stack:
        if backend := ATTENTION[sampling.attention]:
            stack.enter_context(_attention(base, sampling.attention, backend))
        if sampling.step_cache:
            transformer.enable_cache(STEP_CACHES[sampling.step_cache_kind](sampling))
            stack.callback(transformer.disable_cache)
        yield


@contextmanager
def _attention(base: Base, name: str, backend: str) -> Iterator[None]:
    from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn

    transformer = base.pipeline.transformer
    heads, width = transformer.config.num_attention_heads, transformer.config.attention_head_dim
    few = torch.zeros(1, 64, heads, width, device=base.device, dtype=transformer.dtype)
    with ExitStack() as stack:
        try:
            # Of the transformer's own setting diffusers keeps a copy for the whole process; this is
            # undone in full.
            stack.enter_context(attention_backend(backend))
            # Not every kernel that is installed runs on every device,
            # and torch says so at its first use.
            dispatch_attention_fn(few, few, few)
        except (RuntimeError, ValueError, ImportError) as error:
            raise ArtMancerError(
                "invalid_request",
                f"The attention '{name}' cannot be used here: {error} Choose 'default', or install "
                "what it needs.",
            ) from error
        yield


def _compile(transformer: Any, sampling: Sampling) -> None:
    """Compile the blocks, or go back to those that are not;
    what was compiled once is kept by torch.
    """
    for block in transformer.transformer_blocks:
        block._compiled_call_impl = None
    if sampling.compile:
        # Hooks leave the graph: the step cache's, group offload's and those that cast from 8 bits.
        hooked = sampling.step_cache or any(
            hasattr(module, "_diffusers_hook") for module in transformer.modules()
        )
        transformer.compile_repeated_blocks(fullgraph=not hooked)
