"""The commands of `artmancer`, one module each: `add_parser` and the function that runs it.

No module here imports torch at its top: `--help` and cheap checks answer at once.
"""
