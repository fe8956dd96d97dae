"""The extension that gives ComfyUI the pack's nodes and HTTP routes."""

from comfy_api.latest import ComfyExtension, io

from . import (
    edit_sampler,
    editor_from_model,
    endpoint_io,
    extra_conditions,
    fill_hole,
    image_tools,
    ksampler,
    load_editor,
    remove_background,
    report,
    routes,  # noqa: F401  importing it adds the routes
    smart_mask,
    split_conditions,
)

NODES: list[type[io.ComfyNode]] = [
    load_editor.LoadEditor,
    editor_from_model.EditorFromModel,
    split_conditions.SplitConditions,
    extra_conditions.AddCondition,
    extra_conditions.ConditionImages,
    edit_sampler.EditSampler,
    ksampler.EncodeConditions,
    ksampler.Stitch,
    report.Report,
    smart_mask.SmartMask,
    remove_background.RemoveBackground,
    fill_hole.FillHole,
    image_tools.Resize,
    image_tools.ExtractObject,
    image_tools.CastShadow,
    image_tools.ShadowMask,
    image_tools.Edges,
    image_tools.WhiteBalance,
    image_tools.Compare,
    endpoint_io.EndpointImage,
    endpoint_io.EndpointMask,
    endpoint_io.EndpointText,
    endpoint_io.EndpointInteger,
    endpoint_io.EndpointFloat,
    endpoint_io.EndpointChoice,
    endpoint_io.EndpointSwitch,
    endpoint_io.EndpointResult,
]


class ArtMancerExtension(ComfyExtension):
    """The extension that ComfyUI loads."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
