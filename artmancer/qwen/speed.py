"""What makes the transformer faster at a price: on for one run, and off again whatever became of it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ..editor import Sampling
from ..errors import ArtMancerError

ATTENTION = {
    "default": None,
    "cudnn": "_native_cudnn",
    "flash": "flash",
    "flash 3": "_flash_3",
    "sage": "sage",
}
"""Names of attention kernels, and diffusers' names for them. None of these is downloaded when it is chosen."""


@contextmanager
def settings(transformer: Any, sampling: Sampling) -> Iterator[None]:
    """Run with the attention, step cache and compilation that are asked for.

    Raises
    ------
    ArtMancerError : invalid_request where an attention kernel is not installed
    """
    _compile(transformer, sampling)
    with ExitStack() as stack:
        if backend := ATTENTION[sampling.attention]:
            stack.enter_context(_attention(sampling.attention, backend))
        if sampling.step_cache:
            from diffusers import FirstBlockCacheConfig

            transformer.enable_cache(FirstBlockCacheConfig(threshold=sampling.step_cache))
            stack.callback(transformer.disable_cache)
        yield


@contextmanager
def _attention(name: str, backend: str) -> Iterator[None]:
    from diffusers.models.attention_dispatch import attention_backend

    # Of the transformer's own setting diffusers keeps a copy for the whole process; this is undone in full.
    context = attention_backend(backend)
    try:
        context.__enter__()
    except (RuntimeError, ValueError, ImportError) as error:
        raise ArtMancerError(
            "invalid_request", f"The attention '{name}' cannot be used here: {error} Install it, or choose 'default'."
        ) from error
    try:
        yield
    finally:
        context.__exit__(None, None, None)


def _compile(transformer: Any, sampling: Sampling) -> None:
    """Compile the blocks, or go back to those that are not; what was compiled once is kept by torch."""
    for block in transformer.transformer_blocks:
        block._compiled_call_impl = None
    if sampling.compile:
        # Hooks leave the graph: the step cache's, group offload's and those that cast from 8 bits.
        hooked = sampling.step_cache or any(hasattr(module, "_diffusers_hook") for module in transformer.modules())
        transformer.compile_repeated_blocks(fullgraph=not hooked)
