"""ComfyUI's HTTP server."""

from server import PromptServer

routes = PromptServer.instance.routes
"""aiohttp's route table; what is added at import time is also served under /api."""
