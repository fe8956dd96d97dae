from typing import Any

from comfy_api.latest import io

from ..artmancer.draft import DraftEditor
from ..artmancer.errors import ArtMancerError
from ..artmancer.folders import LORA_FOLDERS
from ..artmancer.options import MEMORY_MODES, PRECISIONS
from ..artmancer.qwen import checkpoints
from ..artmancer.qwen.editor import QwenEditor
from ..artmancer.variants import VARIANTS
from .comfy_host.folders import bases, find_checkpoint, loras
from .comfy_host.memory import load_base
from .sockets import AUTO, DRAFT, NONE, EditorType, advanced, resolve_auto


class LoadEditor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = list(loras())
        return io.Schema(
            node_id="ArtMancer_LoadEditor",
            display_name="Load Editor",
            category="ArtMancer",
            description="Choose who edits, and the task. The draft editor needs no weights and no "
            "GPU; any other is a Qwen-Image-Edit model in models/diffusers.",
            inputs=[
                io.Combo.Input(
                    "editor",
                    options=[DRAFT, AUTO, *bases()],
                    default=DRAFT,
                    tooltip="draft: PatchMatch fills a hole, Poisson blending inserts a reference, "
                    "shades of grey balances the colours; it does not read the prompt. Others: "
                    "folders of Qwen-Image-Edit-2509 or 2511 in models/diffusers, or in "
                    "MODEL_PATH. auto: the first of these, or draft where there is none.",
                ),
                io.Combo.Input(
                    "variant",
                    options=list(VARIANTS),
                    default="removal",
                    tooltip="insertion: put the reference where the mask is. removal: take out "
                    "what the mask covers. white_balance: remove a colour cast; needs no mask.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Of the draft editor's white balance, "
                    "or of the Qwen editor's checkpoint.",
                ),
                io.Combo.Input(
                    "checkpoint",
                    options=[AUTO, NONE, *files],
                    default=AUTO,
                    optional=True,
                    tooltip="The variant's LoRA, from models/artmancer or models/loras. auto: the "
                    "file of the variant's own name (removal_cp.safetensors...), or what "
                    "MODEL_FILE... names. none: the base alone. Switching costs no reload.",
                ),
                io.Combo.Input(
                    "acceleration",
                    options=[NONE, *files],
                    default=NONE,
                    optional=True,
                    tooltip="A LoRA for few steps on top, such as Qwen-Image-Lightning. It samples "
                    "with CFG 1 and a shift of 3; set the steps in Edit Sampler to its 4 or 8.",
                ),
                advanced(
                    io.Combo.Input(
                        "precision",
                        options=list(PRECISIONS),
                        default=AUTO,
                        optional=True,
                        tooltip="auto: bf16 on a GPU, fp32 on the CPU. fp8 halves the "
                        "transformer's memory (20 GB instead of 40) and rounds them, which changes "
                        "the result a little.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "memory",
                        options=[AUTO, *MEMORY_MODES],
                        default=AUTO,
                        optional=True,
                        tooltip="auto: the first of the three that fits. one model at a time: "
                        "moves 16 and 40 GB in each new edit. group offload: streams the weights "
                        "through a small GPU in every step; slowest.",
                    )
                ),
            ],
            outputs=[
                EditorType.Output(
                    display_name="editor", tooltip="For Split Conditions and Edit Sampler."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, editor: str = DRAFT, **_: Any) -> str:
        return resolve_auto(editor, bases())

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
                "choose a file, or choose 'none' for the base without one.",
            )
        return io.NodeOutput(
            QwenEditor(
                load_base(editor, precision),
                variant,
                checkpoints.read(path) if path else checkpoints.NO_CHECKPOINT,
                strength,
                files.get(acceleration),
                memory,
                notes=checkpoints.notes(path, list(files.values())),
            )
        )
