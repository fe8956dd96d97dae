import json

from comfy_api.latest import io

from ..artmancer.edit import TRANSFERS, edit
from ..artmancer.editor import Conditions, Editor, Sampling
from ..artmancer.qwen.speed import ATTENTION
from . import comfy_host
from .types import ADVANCED, ConditionsType, EditorType

CONDITION_PIXELS = {"crop": None, "1 megapixel": 1024 * 1024, "768": 768 * 768, "512": 512 * 512, "384": 384 * 384}


class EditSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ArtMancer_EditSampler",
            display_name="Edit Sampler",
            category="ArtMancer",
            description="Edit the crop, match its colours at the mask's rim, and stitch it into the photo. "
            "Every pixel outside the feathered mask stays as it was.",
            inputs=[
                EditorType.Input("editor", tooltip="From Load Editor."),
                ConditionsType.Input("conditions", tooltip="From Split Conditions."),
                io.String.Input(
                    "prompt", default="", multiline=True, tooltip="The edit in words. The draft editor ignores it."
                ),
                io.String.Input(
                    "negative",
                    default=" ",
                    multiline=True,
                    tooltip="What to avoid. The checkpoints were trained with a single space. "
                    "The draft editor ignores it.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**53 - 1,
                    control_after_generate=True,
                    tooltip="The same seed gives the same edit. Each picture of a batch has the next one.",
                ),
                io.Int.Input(
                    "steps", default=10, min=1, max=100, tooltip="Denoising steps. The draft editor ignores them."
                ),
                io.Float.Input(
                    "cfg",
                    default=4.0,
                    min=0.5,
                    max=20.0,
                    step=0.1,
                    tooltip="How closely the edit follows the prompt; 1 halves the time of a step, and ignores the "
                    "negative. The draft editor ignores it.",
                ),
                io.Boolean.Input(
                    "match_colors",
                    default=True,
                    tooltip="Fit the edit's colours to the photo's just outside the mask, so that no seam shows.",
                ),
                io.Combo.Input(
                    "transfer",
                    options=list(TRANSFERS),
                    default="colours",
                    optional=True,
                    tooltip="White balance: colours fits the change of colours and applies it to the photo's own "
                    "pixels, so that no texture is lost. pixels takes the editor's pixels.",
                ),
                io.Boolean.Input(
                    "keep_background",
                    default=False,
                    optional=True,
                    tooltip="Hold the crop outside the mask to the photo in every step. The edit then fits what is "
                    "around it more closely, but cannot cast a shadow there. Costs one more encoding.",
                ),
                io.Combo.Input(
                    "condition_size",
                    options=list(CONDITION_PIXELS),
                    default="crop",
                    optional=True,
                    tooltip="The size each conditioning image is encoded at. crop: its own, fastest. 1 megapixel: as "
                    "the stock pipeline does, 4 times the work at 512x512. A number: that many pixels squared.",
                    extra_dict=ADVANCED,
                ),
                io.Float.Input(
                    "step_cache",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Skip most of a step when its first block changes less than this; 0 = never. 0.1 is a "
                    "start for 20 steps or more. Costs detail.",
                    extra_dict=ADVANCED,
                ),
                io.Combo.Input(
                    "attention",
                    options=list(ATTENTION),
                    default="default",
                    optional=True,
                    tooltip="The attention kernel. All but default and cudnn must be installed first; sage computes "
                    "in 8 bits, which changes the result a little.",
                    extra_dict=ADVANCED,
                ),
                io.Boolean.Input(
                    "compile",
                    default=False,
                    optional=True,
                    tooltip="Compile the transformer's blocks. The first edit at each size then takes a minute or "
                    "more, later ones less. Switching the variant compiles anew.",
                    extra_dict=ADVANCED,
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The edited photo, at its own resolution."),
                io.String.Output(
                    display_name="report",
                    tooltip="What was done, as JSON: who edited, seconds, memory, drift, change outside the mask.",
                ),
            ],
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
        transfer: str = "colours",
        keep_background: bool = False,
        condition_size: str = "crop",
        step_cache: float = 0.0,
        attention: str = "default",
        compile: bool = False,
    ) -> io.NodeOutput:
        progress = comfy_host.progress()
        result = edit(
            editor,
            conditions,
            prompt=prompt,
            seed=seed,
            sampling=Sampling(
                steps=steps,
                cfg=cfg,
                negative=negative,
                condition_pixels=CONDITION_PIXELS[condition_size],
                keep_background=keep_background,
                step_cache=step_cache,
                attention=attention,
                compile=compile,
            ),
            match=match_colors,
            transfer=transfer,
            progress=progress,
        )
        report = result.report
        progress(1, 1, f"{report.editor}: {sum(report.seconds.values()):.1f} s")
        shown = comfy_host.before_after(conditions.image, result.image)
        return io.NodeOutput(result.image, json.dumps(report.as_dict(), indent=2), ui=shown)
