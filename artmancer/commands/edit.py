"""`artmancer edit`: edit one photo.

Everything that can be checked without torch is checked before its import, which takes seconds.
"""

import argparse
import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import checks, images, models
from ..errors import ArtMancerError
from ..options import (
    CFG,
    CONTEXT,
    DEFAULT_CONTEXT,
    FRAMES,
    MAX_SEED,
    MEMORY_MODES,
    PRECISIONS,
    REGIONS,
    RESOLUTIONS,
    STEPS,
    TRANSFERS,
)
from ..recipes import RECIPES, Overrides, parse_condition_size
from ..variants import VARIANTS
from . import comfyui_edit
from .arguments import Subparsers, not_a_choice, number, whole_number, write_line

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from ..conditions import Conditions
    from ..editor import Editor
    from ..progress import Progress
    from ..report import EditResult

logger = logging.getLogger(__name__)

EDITORS = ("draft", "lama", "qwen")
"""Values of --editor besides the names of model sets."""

_TASKS = tuple(variant.replace("_", "-") for variant in VARIANTS)
"""Values of --task, as `task_type` over HTTP has them."""

MAX_MASK_PIXELS = 1024
"""Largest value of --grow and --feather, in pixels."""

MEMORY_NAMES = dict(zip(("all", "one", "stream"), MEMORY_MODES, strict=True))
"""The command's short names of the memory modes."""

EXAMPLES = """\
examples:
  artmancer edit room.jpg --task removal --mask mask.png
  artmancer edit room.jpg --task insertion --mask mask.png --reference lamp.png -o out.png
  artmancer edit room.jpg --task white-balance -o balanced.png
  artmancer edit room.jpg --task removal --mask mask.png --editor my-set -o out.png

A model set (`artmancer models set NAME`) names ComfyUI's own model files, and runs in ComfyUI: the
command starts one from $COMFYUI_PATH, which needs this pack in its custom_nodes, and stops it after
the edit. Starting takes seconds to minutes, and loads the models anew: for several edits, start
ComfyUI yourself, and name it with --comfyui-url.
"""


def add_parser(commands: Subparsers) -> None:
    """Add `artmancer edit` to the parser."""
    parser = commands.add_parser(
        "edit",
        help="edit a photo",
        description="Edit a photo where its mask is white.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, error=parser.error)
    add_inputs(parser)
    add_options(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help="the result; PNG keeps every pixel exactly (default: beside the photo, as "
        "NAME-edited, with the photo's ending or as PNG for a JPEG, and a number where that "
        "file exists)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the report, or the error, as JSON"
    )


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Add the files of one photo."""
    parser.add_argument(
        "image",
        type=Path,
        nargs="+",
        metavar="IMAGE",
        help=f"the photo: {', '.join(images.FORMATS)}; HEIC, AVIF and JPEG XL where a package for "
        "them is installed",
    )
    parser.add_argument(
        "--mask",
        type=Path,
        help="an image of the same size, white = edit; white balance needs none",
    )
    add_references(parser)


def add_references(parser: argparse.ArgumentParser) -> None:
    """Add the files of an object to insert."""
    parser.add_argument("--reference", type=Path, help="an image of the object to insert")
    parser.add_argument(
        "--reference-mask",
        type=Path,
        help="an image, white where the object is in the reference; default: where the reference "
        "is not transparent",
    )


def add_options(parser: argparse.ArgumentParser, *, variant_required: bool = True) -> None:
    """Add the options of an edit, which many photos may share."""
    parser.add_argument(
        "--task",
        "--variant",
        dest="variant",
        required=variant_required,
        type=_variant,
        metavar=f"{{{','.join(_TASKS)}}}",
        help="the kind of edit",
    )
    parser.add_argument(
        "--fill-holes", action="store_true", help="fill the holes that the mask encloses"
    )
    parser.add_argument(
        "--regions",
        choices=REGIONS,
        default=REGIONS[0],
        help="for a mask of several islands: one crop around all, or a crop for each; auto: apart "
        "where that crops fewer pixels of the photo",
    )
    parser.add_argument(
        "--widen",
        action="store_true",
        help="also keep what the edit changed just around the mask, such as a shadow",
    )
    _add_editor_options(parser)
    _add_qwen_options(parser)
    _add_recipe_options(parser)
    _add_pasting_options(parser)


def _add_qwen_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base",
        type=Path,
        help="qwen: the folder of Qwen-Image-Edit; default: $MODEL_PATH, or the first base that "
        "`artmancer models` lists",
    )
    parser.add_argument(
        "--variant-file",
        type=Path,
        help="qwen: the LoRA for this kind of edit; default: the LoRA that `artmancer models` "
        "lists for it, or else the base alone",
    )
    parser.add_argument(
        "--acceleration", type=Path, help="qwen: a LoRA for few steps, which turns --cfg off"
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="auto", help="qwen: precision of the base"
    )
    parser.add_argument(
        "--memory",
        choices=("auto", *MEMORY_NAMES),
        default="auto",
        help="qwen: all models on the GPU, one at a time, or streamed through it",
    )
    parser.add_argument(
        "--prompt",
        default="",
        help="qwen: the edit in words (default: the recipe's, if it has one); the other editors "
        "ignore it",
    )
    parser.add_argument("--negative", help="qwen: negative prompt (default: the recipe's, a space)")
    parser.add_argument(
        "--steps",
        type=whole_number(*STEPS),
        help="qwen: denoising steps (default: the recipe's, 10)",
    )
    parser.add_argument(
        "--cfg",
        type=number(*CFG),
        help="qwen: guidance scale, 1 = off (default: the recipe's, 4, or 3.3 for image_edges)",
    )
    parser.add_argument(
        "--condition-size",
        "--condition-megapixels",
        type=_condition_size,
        default="recipe",
        metavar="SIZE",
        help="qwen: size each conditioning image is encoded at: recipe, crop (the crop's own) or "
        "an area in megapixels; 1 = as diffusers does (default recipe)",
    )
    parser.add_argument(
        "--keep-background",
        action="store_true",
        help="qwen: hold the latents outside the mask to the photo",
    )


def _add_pasting_options(parser: argparse.ArgumentParser) -> None:
    """Add the options on the mask's edge and on what is pasted."""
    parser.add_argument(
        "--transfer",
        choices=TRANSFERS,
        default="colors",
        help="for white balance: apply the edit's change of colors to the photo, "
        "or take the edit's pixels (default: colors)",
    )
    parser.add_argument(
        "--seed",
        type=whole_number(0, MAX_SEED),
        default=0,
        help="the same seed gives the same image (default 0)",
    )
    parser.add_argument(
        "--grow",
        type=whole_number(0, MAX_MASK_PIXELS),
        default=0,
        metavar="PX",
        help="dilate the mask (default 0)",
    )
    parser.add_argument(
        "--feather",
        type=whole_number(0, MAX_MASK_PIXELS),
        default=16,
        metavar="PX",
        help="width over which the edit fades out around the mask (default 16)",
    )
    parser.add_argument(
        "--match-grain",
        action="store_true",
        help="sharpen what is pasted, and add noise to it, as far as the photo around it has more",
    )
    parser.add_argument(
        "--strength",
        type=number(0.0, 1.0),
        default=1.0,
        help="strength of the LoRA, or of the draft editor's white balance (default 1)",
    )
    parser.add_argument(
        "--strip",
        action="store_true",
        help="leave out the photo's EXIF, XMP and IPTC, which say when, where and by whom it was "
        "taken; color profile and resolution stay",
    )


def _add_editor_options(parser: argparse.ArgumentParser) -> None:
    """Add the choice of the editor, and the options for the ComfyUI that runs a model set."""
    parser.add_argument(
        "--editor",
        default="draft",
        metavar="NAME",
        help=f"{', '.join(EDITORS)} or the name of a model set (default: draft)",
    )
    parser.add_argument(
        "--comfyui-url",
        metavar="URL",
        help="model sets: a running ComfyUI with this pack (default: one is started from "
        "$COMFYUI_PATH for the edit)",
    )
    parser.add_argument(
        "--comfyui-base", type=Path, help="model sets: --base-directory of the started ComfyUI"
    )
    parser.add_argument(
        "--cpu", action="store_true", help="model sets: run the started ComfyUI on the CPU"
    )


def _add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that override a recipe."""
    parser.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        help="how the checkpoint was trained (default: by its metadata, else by its file name, "
        "else mask_background_object)",
    )
    parser.add_argument(
        "--frame",
        choices=FRAMES,
        help="what the editor sees: the photo around the mask, or the whole photo, padded with "
        "black to a square (default: as the recipe says)",
    )
    parser.add_argument(
        "--resolution",
        choices=tuple(RESOLUTIONS),
        help="size of what the editor sees (default: as the checkpoint or the recipe says)",
    )
    parser.add_argument(
        "--context",
        type=number(*CONTEXT),
        default=DEFAULT_CONTEXT,
        help="size of the crop over the size of the mask (default %(default)g)",
    )
    parser.add_argument(
        "--brush-mask",
        action="store_true",
        help="the mask was painted with a brush: a hole is filled 35 pixels beyond it",
    )
    parser.add_argument(
        "--no-silhouette",
        action="store_true",
        help="reference_mask_background: show the mask as it is, not the reference's silhouette",
    )
    parser.add_argument(
        "--no-shadow-hint",
        action="store_true",
        help="reference_mask_background: do not darken the background beside the silhouette",
    )


def _variant(text: str) -> str:
    """Parse --task; an underscore is as good as a hyphen."""
    variant = text.replace("-", "_")
    if variant not in VARIANTS:
        raise argparse.ArgumentTypeError(not_a_choice(text, _TASKS))
    return variant


def _condition_size(text: str) -> str | float:
    """Parse --condition-size."""
    try:
        return parse_condition_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, got '{text}'") from None


def run(options: argparse.Namespace) -> int:
    """Edit a photo and write the result."""
    if len(options.image) > 1:
        options.error(
            f"edit takes one photo, got {len(options.image)}. For many, use "
            "`artmancer batch FOLDER -o OUT`."
        )
    (options.image,) = options.image
    options.output = options.output or default_output(options.image)
    check_inputs(options)
    if options.editor == "lama":
        models.require_lama()
    for warning in warnings(options):
        logger.warning(warning)

    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    # None: tqdm hides the bar where standard error is not a terminal.
    hidden = True if options.json else None
    with (
        tqdm(total=1, disable=hidden, bar_format="{desc} {elapsed}", leave=False) as bar,
        logging_redirect_tqdm(),
    ):

        def show(done: int, total: int, stage: str, latents: object = None) -> None:
            bar.set_description_str(f"{stage} {done}/{total}")

        if options.editor in EDITORS:
            inputs = read_inputs(options)
            photo, notes = inputs.photo.picture, inputs.notes
            editor = load_editor(options, show)
            conditions = prepare_photo(options, editor, inputs, show)
            result = edit_photo(options, editor, conditions, show)
            image: Tensor | NDArray[Any] = result.image
            report = result.report.as_dict()
        else:
            photo = read_photo(options)
            data, report = comfyui_edit.edit(options, show)
            image, notes = images.read(data, name="the result").pixels, photo.notes
    images.save(options.output, image, photo)
    _write_report(with_notes(report, notes, photo, options), options)
    return 0


def default_output(photo: Path) -> Path:
    """Return a file beside a photo that does not exist yet, for its result.

    Raises
    ------
    ArtMancerError : not_found, invalid_image
    """
    images.read_size(photo)
    # A JPEG would change every pixel a little, and a HEIC can be read but not written.
    kept = set(images.SUFFIXES) - set(images.LOSSY_SUFFIXES)
    suffix = photo.suffix if photo.suffix.lower() in kept else ".png"
    numbers = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    paths = (photo.with_name(f"{photo.stem}-edited{number}{suffix}") for number in numbers)
    return next(path for path in paths if not path.exists())


def with_notes(
    report: dict[str, Any],
    notes: tuple[str, ...],
    photo: images.Picture,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Return a report with sentences about the photo's files, and about what the result's format
    cannot hold.
    """
    lost = images.losses(photo, images.SUFFIXES[options.output.suffix.lower()])
    return {**report, "notes": [*report["notes"], *notes, *lost]}


def check_inputs(options: argparse.Namespace, *, mask_follows: bool = False) -> None:
    """Refuse what can be refused without torch: paths, file endings, sizes, a black mask.

    Parameters
    ----------
    mask_follows : the mask is not a file, and is made later

    Raises
    ------
    ArtMancerError : not_found, invalid_request, invalid_image, image_too_large, mask_missing,
        mask_empty, reference_missing
    """
    images.check_writable(options.output)
    inputs = (options.image, options.mask, options.reference, options.reference_mask)
    if options.output.resolve() in (path.resolve() for path in inputs if path):
        raise ArtMancerError(
            "invalid_request",
            f"The output '{options.output}' is one of the inputs. Choose another file.",
        )
    size = images.read_size(options.image)
    checks.check_mask_given(options.variant, mask_follows or options.mask is not None)
    if options.mask:
        mask_size = images.read_size(options.mask, "mask")
        # A photo whose rotation stands after its pixels has its sides exchanged here. The decoded
        # images are compared later.
        if mask_size != size[::-1] and not checks.scales_exactly(mask_size, size):
            checks.check_mask_size(mask_size, size)
        brightest = images.brightest(options.mask)
        if brightest <= checks.NEAR_BLACK:
            raise checks.empty_mask(brightest)
    if options.reference_mask and not options.reference:
        raise ArtMancerError(
            "reference_missing",
            "--reference-mask needs the image that it belongs to. Add --reference.",
        )
    if options.reference:
        reference_size = images.read_size(options.reference, "reference")
        if options.reference_mask:
            mask_size = images.read_size(options.reference_mask, "mask of the reference")
            checks.check_mask_size(mask_size, reference_size, "reference")
    elif options.variant == "insertion" and options.editor == "draft":
        raise checks.draft_needs_reference()
    if options.editor == "lama":
        checks.check_lama_variant(options.variant)
    if options.editor not in EDITORS:
        comfyui_edit.check_editor(options, EDITORS)


def warnings(options: argparse.Namespace) -> Iterator[str]:
    """Yield what the user may not expect of these options."""
    if options.editor in ("draft", "lama") and options.prompt:
        yield f"--prompt is ignored: the {options.editor} editor does not use it."
    if options.output.suffix.lower() in images.LOSSY_SUFFIXES:
        yield "JPEG changes every pixel a little; write PNG to keep every pixel exactly."


class Inputs(NamedTuple):
    """The decoded images of an edit.

    Attributes
    ----------
    mask, reference_mask : MASK [1, H, W]
    reference : in the photo's color profile
    """

    photo: images.DecodedImage
    mask: "Tensor | None"
    reference: images.DecodedImage | None
    reference_mask: "Tensor | None"

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what the images hold, for the report."""
        reference = self.reference.picture.notes if self.reference else ()
        return (*self.photo.picture.notes, *reference)


def read_photo(options: argparse.Namespace) -> images.Picture:
    """Read the photo that the options name, without what --strip leaves out.

    Raises
    ------
    ArtMancerError : see images.read
    """
    photo = images.load_picture(options.image)
    return photo.stripped() if options.strip else photo


def read_inputs(options: argparse.Namespace) -> Inputs:
    """Decode the images that the options name.

    Raises
    ------
    ArtMancerError : see images.decode
    """
    photo = images.to_image(read_photo(options))
    reference = None
    if options.reference:
        reference = images.load_reference(options.reference, photo.picture)
    reference_mask = images.load_mask(options.reference_mask) if options.reference_mask else None
    if reference and reference_mask is None:
        reference_mask = reference.alpha
    mask = images.load_mask(options.mask) if options.mask else None
    return Inputs(photo, mask, reference, reference_mask)


def prepare_photo(
    options: argparse.Namespace, editor: "Editor", inputs: Inputs, progress: "Progress"
) -> "Conditions":
    """Crop the photo and make the conditioning images."""
    from ..conditions import prepare

    return prepare(
        inputs.photo.image,
        inputs.mask,
        reference=inputs.reference.image if inputs.reference else None,
        reference_mask=inputs.reference_mask,
        progress=progress,
        **_preparation(options, editor),
    )


def edit_photo(
    options: argparse.Namespace, editor: "Editor", conditions: "Conditions", progress: "Progress"
) -> "EditResult":
    """Edit a photo as the options say."""
    from ..edit import edit

    return edit(
        editor,
        conditions,
        prompt=options.prompt,
        seed=options.seed,
        sampling=_overrides(options).sampling(conditions.recipe),
        transfer=options.transfer,
        widen=options.widen,
        match_grain=options.match_grain,
        progress=progress,
    )


def _preparation(options: argparse.Namespace, editor: "Editor") -> dict[str, Any]:
    """Return the arguments of conditions.prepare besides the images."""
    from ..editor import plan
    from ..lama import load

    choices = plan(
        editor,
        recipe=options.recipe,
        resolution=options.resolution,
        frame=options.frame,
        regions=options.regions,
    )
    file = models.lama() if "fill" in RECIPES[choices.recipe].images else None
    return {
        "context": options.context,
        "grow": options.grow,
        "fill_holes": options.fill_holes,
        "feather": options.feather,
        "brushed": options.brush_mask,
        "silhouette": not options.no_silhouette,
        "shadow": not options.no_shadow_hint,
        "lama": load(file) if file else None,
        **choices._asdict(),
    }


def _overrides(options: argparse.Namespace) -> Overrides:
    return Overrides(
        options.steps,
        options.cfg,
        options.negative,
        options.condition_size,
        {"keep_background": options.keep_background},
    )


def load_editor(options: argparse.Namespace, progress: "Progress") -> "Editor":
    """Load the editor that the options name."""
    if options.editor == "draft":
        from ..draft import DraftEditor

        return DraftEditor(options.variant, options.strength)
    if options.editor == "lama":
        from .. import lama
        from ..lama_editor import LamaEditor

        return LamaEditor(options.variant, lama.load(models.require_lama()))
    from ..qwen import checkpoints, pipeline
    from ..qwen.editor import QwenEditor

    folder = options.base or models.base()
    if not folder:
        raise ArtMancerError(
            "checkpoint_missing",
            "The qwen editor needs a base model, and there is none. Name its folder with --base or "
            "MODEL_PATH, or download one with `artmancer models fetch`.",
        )
    path: Path | None = options.variant_file
    notes: tuple[str, ...] = ()
    if path is None:
        path, notes = models.checkpoint(options.variant)
    if path is None:
        logger.warning(
            "No checkpoint for %s was found: the base model edits without a LoRA.", options.variant
        )
    return QwenEditor(
        pipeline.load(Path(folder), options.precision, progress=progress),
        options.variant,
        checkpoints.read(path) if path else checkpoints.NO_CHECKPOINT,
        options.strength,
        options.acceleration,
        MEMORY_NAMES.get(options.memory, "auto"),
        notes,
    )


def _write_report(report: dict[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        write_line(json.dumps({"output": str(options.output), "report": report}))
        return
    stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in report["seconds"].items())
    files = f" with {' and '.join(report['adapters'])}" if report["adapters"] else ""
    height, width = report["crop_size"]
    size = f"crop {width}x{height}"
    write_line(f"{options.output}: {report['editor']}{files}, {size}, {stages}")
    write_line(f"recipe {report['recipe']} ({report['recipe_reason']})")
    for note in report["notes"]:
        write_line(note)
    write_line(" ".join([f"verdict: {report['verdict']}.", *report["verdict_reasons"]]))
