"""The variants, which are the kinds of edit, and the file names of their checkpoints.

Imports no torch: `modal run` reads this module on the deployer's machine.
"""

VARIANTS = ("insertion", "removal", "white_balance")

CHECKPOINT_FILES = {
    "insertion": (
        "insertion_cp.safetensors",
        "qwen_2509_object_insertion_512_000002750.safetensors",
    ),
    "removal": ("removal_cp.safetensors",),
    "white_balance": ("wb_cp.safetensors",),
}
"""File names of each variant's checkpoint, the preferred one first."""

CHECKPOINT_VARIABLES = {
    "insertion": "MODEL_FILE",
    "removal": "MODEL_FILE_REMOVAL",
    "white_balance": "MODEL_FILE_WHITE_BALANCE",
}
"""Environment variables that name a checkpoint's file, by variant."""
