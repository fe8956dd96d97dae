"""Mask-aware photo editing: put an object in, take one out, fix the white balance, leave the other
pixels alone.
"""

__version__ = "0.1.0"
