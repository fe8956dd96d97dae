import json

from comfy_api.latest import io

from ..artmancer.conditions import Conditions
from ..artmancer.edit import edit
from ..artmancer.editor import Editor
from ..artmancer.options import (
    CFG,
    CONDITION_MEGAPIXELS,
    DEFAULT_SAMPLING,
    MAX_SEED,
    ONE_MEGAPIXEL,
    STEPS,
    TRANSFERS,
    Sampling,
)
from ..artmancer.qwen.speed import ATTENTION, STEP_CACHES
from .comfy_host.files import save_before_after
from .comfy_host.progress import node_progress
from .sockets import (
    ConditionsType,
    EditorType,
    advanced,
    match_colors,
    prompt_inputs,
    spill,
    widen,
    with_pictures,
)

CONDITION_PIXELS = {
    "crop": None,
    "1 megapixel": ONE_MEGAPIXEL,
    "768": 768 * 768,
    "512": 512 * 512,
    "384": 384 * 384,
}
MEGAPIXELS = "megapixels"


class EditSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="ArtMancer_EditSampler",
            display_name="Edit Sampler",
            category="ArtMancer",
            description="Edit the crop, match its colours at the mask's rim, and stitch it into "
            "the photo. Every pixel outside the feathered mask stays as it was.",
            inputs=[
                EditorType.Input("editor", tooltip="From Load Editor."),
                ConditionsType.Input(
                    "conditions", tooltip="From Split Conditions or Add Condition."
                ),
                *prompt_inputs(
                    prompt_tooltip="The edit in words. The draft editor ignores it.",
                    negative_tooltip="What to avoid. The checkpoints were trained with a single "
                    "space. The draft editor ignores it.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip="The same seed gives the same edit. "
                    "Each picture of a batch has the next one.",
                ),
                io.Int.Input(
                    "steps",
                    default=DEFAULT_SAMPLING.steps,
                    min=STEPS[0],
                    max=STEPS[1],
                    tooltip="Denoising steps. The draft editor ignores them.",
                ),
                io.Float.Input(
                    "cfg",
                    default=DEFAULT_SAMPLING.cfg,
                    min=CFG[0],
                    max=CFG[1],
                    step=0.1,
                    tooltip="How closely the edit follows the prompt; 1 halves the time of a step, "
                    "and ignores the negative. The draft editor ignores it.",
                ),
                match_colors(),
                io.Combo.Input(
                    "transfer",
                    options=list(TRANSFERS),
                    default="colors",
                    optional=True,
                    tooltip="White balance: colors fits the change of colours and applies it to "
                    "the photo's own pixels, so that no texture is lost. "
                    "pixels takes the editor's pixels.",
                ),
                io.Boolean.Input(
                    "keep_background",
                    default=False,
                    optional=True,
                    tooltip="Hold the crop outside the mask to the photo in every step. The edit "
                    "then fits what is around it more closely, but cannot cast a shadow there. "
                    "Costs one more encoding.",
                ),
                advanced(
                    io.Combo.Input(
                        "condition_size",
                        options=[*CONDITION_PIXELS, MEGAPIXELS],
                        default="crop",
                        optional=True,
                        tooltip="The size each conditioning image is encoded at. crop: its own, "
                        "fastest. 1 megapixel: as the stock pipeline does, 4 times the work at "
                        "512x512. A number: that many pixels squared. megapixels: as "
                        "condition_megapixels says.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "step_cache",
                        default=0.0,
                        min=0.0,
                        max=1.0,
                        step=0.01,
                        optional=True,
                        tooltip="How readily a step is made of those before it instead of being "
                        "computed; 0 = never. For 20 steps or more; costs detail. What the number "
                        "means is up to step_cache_kind.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "attention",
                        options=list(ATTENTION),
                        default="default",
                        optional=True,
                        tooltip="The attention kernel. All but default and cudnn must be installed "
                        "first; sage computes in 8 bits, which changes the result a little.",
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "compile",
                        default=False,
                        optional=True,
                        tooltip="Compile the transformer's blocks. The first edit at each size "
                        "then takes a minute or more, later ones less. Switching the variant "
                        "compiles anew.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "condition_megapixels",
                        default=0.25,
                        min=CONDITION_MEGAPIXELS[0],
                        max=CONDITION_MEGAPIXELS[1],
                        step=0.01,
                        optional=True,
                        tooltip="The area each conditioning image is encoded at where "
                        "condition_size is megapixels; 0.25 = 512x512. Twice the area is at least "
                        "twice the work.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "step_cache_kind",
                        options=list(STEP_CACHES),
                        default="first block",
                        optional=True,
                        tooltip="What step_cache does. first block: skips the other blocks where "
                        "the first changes less than this, say 0.1; adapts to the picture. sea: "
                        "skips all blocks until the picture has moved this far, say 0.25; at most "
                        "two steps in a row. taylor: computes every second step (from 0.34 on), "
                        "third (0.7), fifth (0.8) or tenth (0.9), the first three and the last; "
                        "it extrapolates the others, which cost next to nothing.",
                    )
                ),
                widen(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image", tooltip="The edited photo, at its own resolution."
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="What was done, as JSON: who edited, seconds, memory, drift, change "
                    "outside the mask. For Report.",
                ),
                spill(),
            ],
        )
        return with_pictures(schema)

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
        condition_size: str = "crop",
        step_cache: float = 0.0,
        attention: str = "default",
        compile: bool = False,
        condition_megapixels: float = 0.25,
        step_cache_kind: str = "first block",
        widen: bool = False,
    ) -> io.NodeOutput:
        progress = node_progress()
        pixels = {**CONDITION_PIXELS, MEGAPIXELS: round(ONE_MEGAPIXEL * condition_megapixels)}[
            condition_size
        ]
        result = edit(
            editor,
            conditions,
            prompt=prompt,
            seed=seed,
            sampling=Sampling(
                steps=steps,
                cfg=cfg,
                negative=negative,
                condition_pixels=pixels,
                keep_background=keep_background,
                step_cache=step_cache,
                step_cache_kind=step_cache_kind,
                attention=attention,
                compile=compile,
            ),
            match=match_colors,
            transfer=transfer,
            widen=widen,
            progress=progress,
        )
        report = result.report
        progress(1, 1, f"{report.editor}: {sum(report.seconds.values()):.1f} s")
        shown = save_before_after(conditions.image, result.image)
        return io.NodeOutput(
            result.image, json.dumps(report.as_dict(), indent=2), result.spill, ui=shown
        )
