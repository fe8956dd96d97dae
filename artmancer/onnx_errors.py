"""The exceptions that onnxruntime raises for a model file that it cannot run."""


def onnx_errors() -> tuple[type[Exception], ...]:
    """List onnxruntime's own exceptions, which have no common base class, and the built-in
    exceptions that it raises.
    """
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [
        value
        for value in vars(state).values()
        if isinstance(value, type) and issubclass(value, Exception)
    ]
    return (*own, IndexError, RuntimeError, TypeError, ValueError)
