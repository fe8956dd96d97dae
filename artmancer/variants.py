"""The variants' checkpoints by name; of this module a machine without torch has use, too."""

FILES = {
    "insertion": (
        "insertion_cp.safetensors",
        "qwen_2509_object_insertion_512_000002750.safetensors",
    ),
    "removal": ("removal_cp.safetensors",),
    "white_balance": ("wb_cp.safetensors",),
}
"""The names each variant's checkpoint goes by."""
