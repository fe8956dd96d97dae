"""Helpers of the tests and benchmarks: servers to test against, small models, synthetic images."""
