"""The commands of `artmancer`, one module each, with `add_parser` and the function that runs it.

No module here imports torch at its top, so that `--help` and cheap checks do not wait for it.
"""
