"""Load Editor: the draft editor, LaMa, or a Qwen-Image-Edit base with a variant's LoRA."""

from typing import Any

from comfy_api.latest import io

from ..artmancer.draft import DraftEditor
from ..artmancer.errors import ArtMancerError
from ..artmancer.folders import LORA_FOLDERS
from ..artmancer.lama_editor import LamaEditor
from ..artmancer.options import MEMORY_MODES, PRECISIONS
from ..artmancer.qwen import checkpoints
from ..artmancer.qwen.editor import QwenEditor
from ..artmancer.variants import VARIANTS
from .comfy_host.folders import bases, find_checkpoint, lama_time, lora_times, loras
from .comfy_host.memory import load_base, load_lama
from .sockets import AUTO, DRAFT, LAMA, NONE, EditorType, advanced, resolve_auto, with_aliases


class LoadEditor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = list(loras())
        schema = io.Schema(
            node_id="ArtMancer_LoadEditor",
            display_name="Load Editor",
            category="ArtMancer",
            description="Select the editor and the variant: insertion, removal or white balance. "
            "The draft editor needs no weights and no GPU, and LaMa needs no base model. All "
            "others are Qwen-Image-Edit models in models/diffusers.",
            inputs=[
                io.Combo.Input(
                    "editor",
                    options=[DRAFT, LAMA, AUTO, *bases()],
                    default=DRAFT,
                    tooltip="draft: PatchMatch fills the hole, Poisson blending inserts a "
                    "reference, shades of gray corrects the white balance; it ignores the prompt. "
                    "lama: the network LaMa fills the hole, for removal only; it ignores the "
                    "prompt too. Without big-lama.pt in models/inpaint, PatchMatch fills. Others: "
                    "folders with Qwen-Image-Edit-2509 or 2511, in models/diffusers or named by "
                    "MODEL_PATH. auto: the first of these folders, or draft if there is none.",
                ),
                io.Combo.Input(
                    "variant",
                    options=list(VARIANTS),
                    default="removal",
                    tooltip="insertion: put the reference where the mask is white. removal: remove "
                    "the object that the mask covers. white_balance: remove a color cast; works "
                    "without a mask.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Strength of the LoRA, or of the draft editor's white balance.",
                ),
                io.Combo.Input(
                    "checkpoint",
                    options=[AUTO, NONE, *files],
                    default=AUTO,
                    optional=True,
                    tooltip="The variant's LoRA, from models/artmancer or models/loras. auto: the "
                    "file that MODEL_FILE (insertion), MODEL_FILE_REMOVAL or "
                    "MODEL_FILE_WHITE_BALANCE names, else the file with the variant's own name, "
                    "such as removal_cp.safetensors. none: the base alone. Switching does not load "
                    "the base again.",
                ),
                io.Combo.Input(
                    "acceleration",
                    options=[NONE, *files],
                    default=NONE,
                    optional=True,
                    tooltip="One more LoRA, for few steps, such as Qwen-Image-Lightning. It "
                    "samples with CFG 1 and a shift of 3. Set steps in Edit Sampler to the number "
                    "that the LoRA is made for, 4 or 8.",
                ),
                advanced(
                    io.Combo.Input(
                        "precision",
                        options=list(PRECISIONS),
                        default=AUTO,
                        optional=True,
                        tooltip="auto: bf16 on a GPU where the transformer fits, else fp8; fp32 "
                        "on the CPU; a base whose files are in fp8 stays so. fp8: the transformer "
                        "takes half the memory (20 GB instead of 40); its weights are rounded, "
                        "which changes the result slightly.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "memory",
                        options=[AUTO, *MEMORY_MODES],
                        default=AUTO,
                        optional=True,
                        tooltip="auto: the first of the other three that fits. one model at a "
                        "time: moves the text encoder (16 GB) and the transformer (40 GB) to the "
                        "GPU in each new edit. group offload: streams the weights through a small "
                        "GPU at every step; slowest.",
                    )
                ),
            ],
            outputs=[
                EditorType.Output(
                    display_name="editor", tooltip="For Split Conditions and Edit Sampler."
                )
            ],
        )
        return with_aliases(
            schema, "load model", "qwen image edit", "inpaint model", "lama", "generative fill"
        )

    @classmethod
    def fingerprint_inputs(cls, editor: str | None = None, **_: Any) -> tuple[Any, ...]:
        # ComfyUI runs the node again when a model was added, removed or replaced. It passes None
        # for an input that is connected.
        if editor is None:
            return (*bases(), lama_time(), *lora_times())
        if editor == LAMA:
            return editor, lama_time()
        editor = resolve_auto(editor, bases())
        if editor == DRAFT:
            return (editor,)
        return (editor, *lora_times())

    @classmethod
    def execute(
        cls,
        editor: str,
        variant: str,
        strength: float,
        checkpoint: str = AUTO,
        acceleration: str = NONE,
        precision: str = AUTO,
        memory: str = AUTO,
    ) -> io.NodeOutput:
        if editor == LAMA:
            return io.NodeOutput(LamaEditor(variant, load_lama()))
        editor = resolve_auto(editor, bases())
        if editor == DRAFT:
            return io.NodeOutput(DraftEditor(variant, strength))
        files = loras()
        path = find_checkpoint(variant) if checkpoint == AUTO else files.get(checkpoint)
        if checkpoint == AUTO and path is None:
            raise ArtMancerError(
                "checkpoint_missing",
                f"There is no checkpoint for {variant}: expected "
                f"{' or '.join(checkpoints.expected(variant))} in "
                f"{' or '.join(f'models/{folder}' for folder in LORA_FOLDERS)}. Put it there, "
                "choose a file, or choose 'none' for the base alone.",
            )
        return io.NodeOutput(
            QwenEditor(
                load_base(editor, precision),
                variant,
                checkpoints.read(path) if path else checkpoints.NO_CHECKPOINT,
                strength,
                files.get(acceleration),
                memory,
                file_notes=(
                    *checkpoints.notes(path, list(files.values())),
                    *checkpoints.notes(files.get(acceleration), []),
                ),
            )
        )
