"""Editor from Model: an editor around the models of ComfyUI's own loaders."""

from typing import Any

from comfy_api.latest import io

from ..artmancer.recipes import RECIPES
from ..artmancer.variants import VARIANTS
from .comfy_host.comfy_editor import ModelEditor, samplers, schedulers
from .sockets import AUTO, EditorType, advanced


class EditorFromModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ArtMancer_EditorFromModel",
            display_name="Editor from Model",
            category="ArtMancer",
            description="Make an editor of ComfyUI's own model files: Qwen-Image-Edit 2509 or "
            "2511, or FLUX.2 dev or klein, in fp8, GGUF or any other format that a loader reads. "
            "ComfyUI samples, and moves the models to the GPU and back as it does for its own "
            "nodes.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="From Load Diffusion Model or a GGUF loader, with the variant's LoRA "
                    "from Load LoRA. Leave ModelSamplingAuraFlow and CFGNorm out: the editor sets "
                    "the shift and the guidance itself.",
                ),
                io.Clip.Input(
                    "clip",
                    tooltip="The model's text encoder, from Load CLIP. For Qwen-Image-Edit: "
                    "Qwen2.5-VL with the type qwen_image. For FLUX.2: the type flux2.",
                ),
                io.Vae.Input("vae", tooltip="The model's VAE, from Load VAE."),
                io.Combo.Input(
                    "variant",
                    options=list(VARIANTS),
                    default="removal",
                    tooltip="The kind of edit: insert an object, remove one, or correct the white "
                    "balance.",
                ),
                advanced(
                    io.Combo.Input(
                        "recipe",
                        options=[AUTO, *RECIPES],
                        default=AUTO,
                        optional=True,
                        tooltip="How the LoRA was trained: its conditioning images, sizes and "
                        "prompt. auto: reference_mask_background for insertion, "
                        "background_mask_fill for removal, image_edges for white balance, since "
                        "the LoRA's file name is not known here.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "sampler",
                        options=samplers(),
                        default="euler",
                        optional=True,
                        tooltip="ComfyUI's sampler. The models were published with euler.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "scheduler",
                        options=[AUTO, *schedulers()],
                        default=AUTO,
                        optional=True,
                        tooltip="The noise schedule. auto: as the model was published. Others: "
                        "ComfyUI's schedulers.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "shift",
                        default=0.0,
                        min=0.0,
                        max=100.0,
                        step=0.01,
                        optional=True,
                        tooltip="Shift of the noise schedule. 0: as the model was published, for "
                        "the size of the crop. For a Lightning LoRA: 3, with cfg 1 and the LoRA's "
                        "4 or 8 steps in Edit Sampler.",
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
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        variant: str,
        recipe: str = AUTO,
        sampler: str = "euler",
        scheduler: str = AUTO,
        shift: float = 0.0,
    ) -> io.NodeOutput:
        return io.NodeOutput(
            ModelEditor(model, clip, vae, variant, recipe, sampler, scheduler, shift)
        )
