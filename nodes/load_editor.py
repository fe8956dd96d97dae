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
from .comfy_host.folders import (
    bases,
    find_checkpoint,
    lama_time,
    lora_times,
    loras,
    set_paths,
    set_problems,
    set_times,
)
from .comfy_host.memory import load_base, load_lama
from .comfy_host.set_loader import load_set
from .sockets import (
    AUTO,
    DRAFT,
    LAMA,
    NONE,
    QWEN,
    EditorType,
    advanced,
    resolve_auto,
    with_aliases,
)


class LoadEditor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = list(loras())
        schema = io.Schema(
            node_id="ArtMancer_LoadEditor",
            display_name="Load Editor",
            category="ArtMancer",
            description="Select the editor and the variant: insertion, removal or white balance. "
            "The draft editor needs no weights and no GPU, and LaMa needs no base model. The "
            "others are model sets, which name ComfyUI's own model files, and Qwen-Image-Edit "
            "models in models/diffusers.",
            inputs=[
                io.Combo.Input(
                    "editor",
                    options=[DRAFT, LAMA, AUTO, *set_paths(), *bases()],
                    default=DRAFT,
                    tooltip="draft: PatchMatch fills the hole, the mask of a reference lays "
                    "it over the photo, and the estimated light corrects the white balance; it "
                    "ignores the prompt.\n"
                    "lama: the network LaMa fills the hole, for removal only; it ignores the "
                    "prompt too. Without big-lama.pt in models/inpaint, PatchMatch fills.\n"
                    "Others: model sets, the files NAME.json in models/artmancer (artmancer "
                    "models set NAME writes one), and folders with Qwen-Image-Edit-2509 or 2511, "
                    "in models/diffusers or named by MODEL_PATH.\n"
                    "auto: the first of these folders, else the first set whose files are there, "
                    "else draft.",
                ),
                io.Combo.Input(
                    "variant",
                    options=list(VARIANTS),
                    default="removal",
                    tooltip="insertion: put the reference where the mask is white.\n"
                    "removal: remove the object that the mask covers.\n"
                    "white_balance: remove a color cast; works without a mask.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Strength of the variant's LoRA: 1 = as trained, 0 = off. For the "
                    "draft editor's white balance: 1 = remove the whole color cast, 0 = nothing.",
                ),
                io.Combo.Input(
                    "checkpoint",
                    options=[AUTO, NONE, *files],
                    default=AUTO,
                    optional=True,
                    tooltip="The variant's LoRA, from models/artmancer or models/loras.\n"
                    "auto: the file that MODEL_FILE (insertion), MODEL_FILE_REMOVAL or "
                    "MODEL_FILE_WHITE_BALANCE names, else the file with the variant's own name, "
                    "such as removal_cp.safetensors; for a model set, the file that the set "
                    "names.\n"
                    "none: the base alone. Switching does not load the base again.",
                ),
                io.Combo.Input(
                    "acceleration",
                    options=[NONE, *files],
                    default=NONE,
                    optional=True,
                    tooltip="One more LoRA, for few steps, such as Qwen-Image-Lightning. It "
                    "samples with CFG 1 and a shift of 3. Set steps in Edit Sampler to the number "
                    "that the LoRA is made for, 4 or 8. A model set may name one, with its steps; "
                    "a file chosen here takes its place.",
                ),
                advanced(
                    io.Combo.Input(
                        "precision",
                        options=list(PRECISIONS),
                        default=AUTO,
                        optional=True,
                        tooltip="The number format of the base's weights.\n"
                        "auto: bf16 on a GPU where the transformer fits, else fp8; fp32 on the "
                        "CPU; a base whose files are in fp8 stays so.\n"
                        "fp8: the transformer takes half the memory (20 GB instead of 40); its "
                        "weights are rounded, which changes the result slightly.\n"
                        "A model set keeps its files' own.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "memory",
                        options=[AUTO, *MEMORY_MODES],
                        default=AUTO,
                        optional=True,
                        tooltip="Where the base's models are during an edit.\n"
                        "all on the GPU: fastest.\n"
                        "one model at a time: moves the text encoder (16 GB) and the transformer "
                        "(40 GB) to the GPU in each new edit.\n"
                        "group offload: streams the weights through a small GPU at every step; "
                        "slowest.\n"
                        "auto: the first of these three that fits.\n"
                        "For a model set, ComfyUI decides.",
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
        sets = set_paths()
        if editor is None:
            return (*bases(), lama_time(), *lora_times(), *map(tuple, map(set_times, sets)))
        if editor == LAMA:
            return editor, lama_time()
        editor = resolve_editor(editor)
        if editor == DRAFT:
            return (editor,)
        return (editor, *(set_times(editor) if editor in sets else ()), *lora_times())

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
        editor = resolve_editor(editor)
        if editor == DRAFT:
            return io.NodeOutput(DraftEditor(variant, strength))
        if editor in set_paths():
            return io.NodeOutput(
                load_set(
                    editor,
                    variant,
                    strength,
                    {AUTO: None, NONE: ""}.get(checkpoint, checkpoint),
                    None if acceleration == NONE else acceleration,
                )
            )
        return io.NodeOutput(
            load_qwen(editor, variant, strength, checkpoint, acceleration, precision, memory)
        )


def resolve_editor(choice: str) -> str:
    """Return the name of an editor: "draft", a model set or a base.

    Raises
    ------
    ArtMancerError : not_found: there is no editor with this name; checkpoint_missing: "qwen", and
        there is no base
    """
    folders = bases()
    if choice == QWEN:
        if not folders:
            raise ArtMancerError(
                "checkpoint_missing",
                "The editor qwen needs Qwen-Image-Edit in models/diffusers, and there is none. "
                "`artmancer models fetch` downloads it; or choose another editor.",
            )
        return next(iter(folders))
    if choice == AUTO and not folders:
        complete = [name for name, problem in set_problems().items() if not problem]
        return resolve_auto(choice, complete)
    names = [DRAFT, *set_paths(), *folders]
    if choice not in (AUTO, *names):
        raise ArtMancerError(
            "not_found",
            f"There is no editor '{choice[:80]}'; there are: {', '.join([LAMA, AUTO, *names])}.",
        )
    return resolve_auto(choice, folders)


def load_qwen(
    editor: str,
    variant: str,
    strength: float,
    checkpoint: str,
    acceleration: str,
    precision: str,
    memory: str,
) -> QwenEditor:
    """Load a base with a variant's LoRA; the arguments are the node's inputs.

    Raises
    ------
    ArtMancerError : checkpoint_missing
    """
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
    return QwenEditor(
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
