"""Masks of objects: the clicks on an object, the models that find it, and its shadow."""
