"""The Qwen editor: Qwen-Image-Edit with the variants' checkpoints on it."""
