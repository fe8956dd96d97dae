"""The HTTP gateway: serves workflows as endpoints, in front of a ComfyUI that listens on loopback.

Nothing else of the pack can be reached from outside.
"""
