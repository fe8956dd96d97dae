"""Adapters to the running ComfyUI; only this package imports ComfyUI's own modules.

- folders: model files and input files by ComfyUI's names
- memory: models under the control of ComfyUI's memory manager
- progress: progress bar, previews and cancelling
- files: images in ComfyUI's temporary and output folders
- server: ComfyUI's HTTP server
"""
