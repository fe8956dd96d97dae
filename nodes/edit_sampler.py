"""Edit Sampler: edit the crop with any editor, and stitch it into the photo."""

import json

from comfy_api.latest import io
from torch import Tensor

from ..artmancer.conditions import Conditions, with_blend_mask
from ..artmancer.edit import edit
from ..artmancer.editor import Editor
from ..artmancer.options import (
    CFG,
    MAX_SEED,
    STEPS,
)
from ..artmancer.qwen.speed import ATTENTION, STEP_CACHES
from ..artmancer.recipes import Overrides
from .comfy_host.files import save_before_after
from .comfy_host.progress import node_progress
from .sockets import (
    FROM_RECIPE,
    RECIPE,
    ConditionsType,
    EditorType,
    advanced,
    blend_mask,
    condition_megapixels,
    condition_size,
    match_colors,
    match_grain,
    prompt_inputs,
    resolve_condition_size,
    spill,
    transfer,
    widen,
    with_aliases,
    with_cached_previews,
)


class EditSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="ArtMancer_EditSampler",
            display_name="Edit Sampler",
            category="ArtMancer",
            description="Edit the crop, match its colors to the photo at the rim of the mask, and "
            "stitch it into the photo. Every pixel outside the feathered mask stays as it was.",
            inputs=[
                EditorType.Input("editor", tooltip="From Load Editor or Editor from Model."),
                ConditionsType.Input(
                    "conditions", tooltip="From Split Conditions or Add Condition."
                ),
                *prompt_inputs(
                    prompt_tooltip="The edit in words. Empty: the prompt of the recipe or the "
                    "checkpoint, if it has one. The editors draft and lama ignore it.",
                    negative_tooltip="What to avoid, used if cfg is above 1. The checkpoints were "
                    "trained with a single space. The editors draft and lama ignore it.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip="The same seed gives the same edit. "
                    "Each photo of a batch uses the next seed.",
                ),
                io.Int.Input(
                    "steps",
                    default=FROM_RECIPE,
                    min=FROM_RECIPE,
                    max=STEPS[1],
                    tooltip="Denoising steps. 0: as many as the acceleration of a model set is "
                    "made for, else as the recipe says: 10 in every recipe. The editors draft and "
                    "lama ignore them.",
                ),
                io.Float.Input(
                    "cfg",
                    default=float(FROM_RECIPE),
                    min=float(FROM_RECIPE),
                    max=CFG[1],
                    step=0.1,
                    tooltip="Classifier-free guidance: how closely the edit follows the prompt. "
                    "0: as the recipe says (4, or 3.3 for image_edges); else 0.5 to 20. "
                    "With 1, each step takes half the time and the negative prompt is ignored; an "
                    "acceleration always uses 1. The editors draft and lama ignore it.",
                ),
                match_colors(),
                advanced(transfer(optional=True)),
                advanced(
                    io.Boolean.Input(
                        "keep_background",
                        default=False,
                        optional=True,
                        tooltip="Hold the crop outside the mask to the photo at every step. The "
                        "edit then fits its surroundings more closely, but cannot cast a shadow "
                        "there. Costs one more encoding.",
                    )
                ),
                condition_size(),
                advanced(
                    io.Float.Input(
                        "step_cache",
                        default=0.0,
                        min=0.0,
                        max=1.0,
                        step=0.01,
                        optional=True,
                        tooltip="Cache threshold: the higher, the more steps are reused or "
                        "extrapolated from earlier steps instead of computed; 0 = off. For 20 "
                        "steps or more; costs detail. The meaning of the number depends on "
                        "step_cache_kind. Only for an editor from models/diffusers.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "attention",
                        options=list(ATTENTION),
                        default="default",
                        optional=True,
                        tooltip="The attention kernel. All but default and cudnn must be installed "
                        "first. sage computes in 8 bits, which changes the result slightly; with "
                        "Qwen-Image some users of ComfyUI got black images from it (issue 9184): "
                        "choose default then. Only for an editor from models/diffusers.",
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "compile",
                        default=False,
                        optional=True,
                        tooltip="Compile the transformer's blocks. The first edit then takes a "
                        "minute or more; later edits are faster. The size and the checkpoint may "
                        "change; a LoRA of a larger rank or for other layers than any before "
                        "compiles the blocks again. With a LoKr or a LoHa they are not compiled. "
                        "Only for an editor from models/diffusers.",
                    )
                ),
                condition_megapixels(),
                advanced(
                    io.Combo.Input(
                        "step_cache_kind",
                        options=list(STEP_CACHES),
                        default="first block",
                        optional=True,
                        tooltip="The caching method; step_cache is its threshold.\n"
                        "first block: skips the other blocks where the first block changes less "
                        "than the threshold, for example 0.1; adapts to the image.\n"
                        "sea: skips all blocks until the image has changed by the threshold, for "
                        "example 0.25; at most two steps in a row.\n"
                        "taylor: computes every second step (threshold from 0.34), third (0.7), "
                        "fifth (0.8) or tenth (0.9), the first three steps and the last. The "
                        "other steps are extrapolated, at almost no cost.",
                    )
                ),
                widen(),
                blend_mask(),
                match_grain(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image", tooltip="The edited photo, at its own resolution."
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="The report as JSON, for Report: editor, seconds, memory, drift, "
                    "changes outside the mask.",
                ),
                spill(),
            ],
        )
        with_cached_previews(schema)
        return with_aliases(
            schema,
            "inpaint",
            "erase",
            "remove object",
            "delete object",
            "add object",
            "insert object",
            "generative fill",
            "object removal",
            "white balance",
        )

    @classmethod
    def execute(
        cls,
        editor: Editor,
        conditions: Conditions,
        prompt: str,
        negative: str,
        seed: int,
        steps: int,
        cfg: float,
        match_colors: bool,
        transfer: str = "colors",
        keep_background: bool = False,
        condition_size: str = RECIPE,
        step_cache: float = 0.0,
        attention: str = "default",
        compile: bool = False,
        condition_megapixels: float = 0.25,
        step_cache_kind: str = "first block",
        widen: bool = False,
        blend_mask: Tensor | None = None,
        match_grain: bool = False,
    ) -> io.NodeOutput:
        overrides = Overrides(
            steps or editor.steps,
            cfg or None,
            negative,
            resolve_condition_size(condition_size, condition_megapixels),
            {
                "keep_background": keep_background,
                "step_cache": step_cache,
                "step_cache_kind": step_cache_kind,
                "attention": attention,
                "compile": compile,
            },
        )
        with node_progress() as progress:
            result = edit(
                editor,
                with_blend_mask(conditions, blend_mask),
                prompt=prompt,
                seed=seed,
                sampling=overrides.sampling(conditions.recipe),
                match=match_colors,
                transfer=transfer,
                widen=widen,
                match_grain=match_grain,
                progress=progress,
            )
            report = result.report
            progress(1, 1, f"{report.editor}: {sum(report.seconds.values()):.1f} s")
        previews = save_before_after(conditions.image, result.image)
        return io.NodeOutput(
            result.image, json.dumps(report.as_dict(), indent=2), result.spill, ui=previews
        )
