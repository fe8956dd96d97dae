"""Hosting on Modal: the gateway's jobs as Modal's calls, and the workers that run them."""
