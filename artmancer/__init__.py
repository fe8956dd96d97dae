"""Mask-aware photo editing: insert an object, remove one, or correct the white balance. Every other
pixel stays as it is.
"""

__version__ = "0.1.0"
