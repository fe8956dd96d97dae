"""The only door to the outside: workflows as HTTP endpoints,
in front of a ComfyUI that listens on loopback.
"""
