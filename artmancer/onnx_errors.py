"""What onnxruntime raises on a file that it cannot run."""


def onnx_errors() -> tuple[type[Exception], ...]:
    """onnxruntime's own exceptions, which have no common base, and Python's that it raises."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [
        kind
        for kind in vars(state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ]
    return (*own, IndexError, RuntimeError, TypeError, ValueError)
