"""The command `artmancer`.

Exit codes: 0 done, 1 refused or failed (one sentence says why), 2 wrong usage, 130 interrupted.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from . import __version__
from .errors import ArtMancerError
from .variants import FILES

if TYPE_CHECKING:
    from .editor import Editor, Report
    from .progress import Progress

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

TASKS = ("removal", "insertion", "white_balance")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; `arguments` default to the process's own."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        code: int = options.run(options)
    except ArtMancerError as error:
        if options.json:
            _write(json.dumps({"detail": str(error), "error_type": error.code}))
        else:
            sys.stderr.write(f"artmancer: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("artmancer: interrupted; nothing was written.\n")
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="artmancer",
        description="Put an object into a photo, take one out, fix the white balance; leave every "
        "other pixel alone.",
        epilog="Exit codes: 0 done, 1 refused or failed (one sentence says why), 2 wrong usage, "
        "130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"artmancer {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_edit, _add_models, _add_serve, _add_doctor):
        add(commands)
    return parser


def _add_edit(commands: Commands) -> None:
    edit = commands.add_parser(
        "edit", help="edit a photo", description="Edit a photo where its mask is white."
    )
    edit.set_defaults(run=_edit)
    edit.add_argument("image", type=Path, metavar="IMAGE", help="PNG, JPEG, WebP, BMP, TIFF or GIF")
    edit.add_argument("--task", required=True, type=task, choices=TASKS, help="what to do")
    edit.add_argument(
        "--mask",
        type=Path,
        help="a picture of the same size, white = edit; white balance needs none",
    )
    edit.add_argument("--reference", type=Path, help="a picture of the object to insert")
    edit.add_argument(
        "--reference-mask",
        type=Path,
        help="white where the object is in its picture; default: where that is not transparent",
    )
    _add_qwen_options(edit)
    edit.add_argument(
        "--transfer",
        choices=("colors", "pixels"),
        default="colors",
        help="what is taken of a white balance: its change of colours, "
        "or its pixels (default: colors)",
    )
    edit.add_argument(
        "--seed",
        type=between(0, 2**53 - 1),
        default=0,
        help="the same seed gives the same picture (default 0)",
    )
    edit.add_argument(
        "--grow", type=between(0, 1024), default=0, metavar="PX", help="widen the mask (default 0)"
    )
    edit.add_argument(
        "--feather",
        type=between(0, 1024),
        default=16,
        metavar="PX",
        help="fade out around the mask over this width (default 16)",
    )
    edit.add_argument(
        "--strength",
        type=between(0.0, 1.0),
        default=1.0,
        help="of the white balance, or of the LoRA (default 1)",
    )
    edit.add_argument(
        "-o", "--output", required=True, type=Path, help="the result; PNG keeps every pixel exactly"
    )
    edit.add_argument("--json", action="store_true", help="print the report, or the error, as JSON")


def _add_qwen_options(edit: argparse.ArgumentParser) -> None:
    edit.add_argument(
        "--editor", choices=("draft", "qwen"), default="draft", help="who edits (default: draft)"
    )
    edit.add_argument(
        "--base",
        type=Path,
        help="qwen: the folder of Qwen-Image-Edit; default: $MODEL_PATH, or the first that "
        "`artmancer models` lists",
    )
    edit.add_argument(
        "--variant-file",
        type=Path,
        help="qwen: the task's LoRA; default: the one that `artmancer models` lists for it, or "
        "else the base alone",
    )
    edit.add_argument(
        "--acceleration", type=Path, help="qwen: a LoRA for few steps, which turns --cfg off"
    )
    edit.add_argument(
        "--precision",
        choices=("auto", "bf16", "fp8", "fp32"),
        default="auto",
        help="qwen: of the base",
    )
    edit.add_argument(
        "--memory",
        choices=("auto", "all", "one", "stream"),
        default="auto",
        help="qwen: what lies on the GPU at a time",
    )
    edit.add_argument(
        "--prompt", default="", help="the edit in words; the draft editor does not read them"
    )
    edit.add_argument(
        "--negative", default=" ", help="qwen: what to avoid (default: a space, as in training)"
    )
    edit.add_argument(
        "--steps", type=between(1, 100), default=10, help="qwen: denoising steps (default 10)"
    )
    edit.add_argument(
        "--cfg",
        type=between(0.5, 20.0),
        default=4.0,
        help="qwen: guidance scale, 1 = off (default 4)",
    )
    edit.add_argument(
        "--condition-megapixels",
        type=between(0.05, 4.0),
        metavar="MP",
        help="qwen: the area each conditioning image is encoded at; 1 = as diffusers does "
        "(default: the crop's own)",
    )
    edit.add_argument(
        "--keep-background", action="store_true", help="qwen: hold the latents outside the mask"
    )


def _add_models(commands: Commands) -> None:
    models = commands.add_parser(
        "models",
        help="list the models that are found; `models fetch` downloads the base",
        description="List the bases and LoRAs in ComfyUI's folders ($COMFYUI_PATH) and those that "
        "MODEL_PATH and MODEL_FILE... name; or fetch Qwen-Image-Edit-2509 (58 GB) or FastSAM-s "
        "(24 MB, for Smart Mask). Where a fetch breaks off, whole files are kept, and the next one "
        "starts the others anew.",
    )
    models.set_defaults(run=_models)
    models.add_argument("action", nargs="?", choices=("list", "fetch"), default="list")
    models.add_argument("what", nargs="?", choices=("qwen", "fastsam-s"), default="qwen")
    models.add_argument(
        "--folder", type=Path, help="fetch: where to; default: the folder of ComfyUI's for its kind"
    )
    models.add_argument("--json", action="store_true", help="print it as JSON")


def _add_serve(commands: Commands) -> None:
    serve = commands.add_parser(
        "serve",
        help="serve the workflows as HTTP endpoints",
        description="Serve the workflows as HTTP endpoints, in front of a ComfyUI with the pack. "
        "Everything else is set in the environment or in .env; see docs/api.md.",
    )
    serve.set_defaults(run=_serve, json=False)
    serve.add_argument("--host", help="the address to listen on (default: $HOST, or 127.0.0.1)")
    serve.add_argument("--port", type=int, help="default: $PORT, or 8003")
    serve.add_argument("--comfyui-url", help="default: $COMFYUI_URL, or http://127.0.0.1:8188")
    serve.add_argument(
        "--comfyui-light-url", help="for clicks; default: $COMFYUI_LIGHT_URL, or the same"
    )
    serve.add_argument(
        "--with-comfyui",
        action="store_true",
        help="start two ComfyUIs from $COMFYUI_PATH, one for edits and one for clicks, "
        "and keep them running",
    )
    serve.add_argument(
        "--comfyui-base", type=Path, help="with --with-comfyui: its --base-directory"
    )
    serve.add_argument(
        "--cpu", action="store_true", help="with --with-comfyui: run edits without a GPU, too"
    )
    serve.add_argument(
        "--light-on-gpu",
        action="store_true",
        help="with --with-comfyui: run clicks on the GPU, too",
    )


def _add_doctor(commands: Commands) -> None:
    doctor = commands.add_parser(
        "doctor", help="say what is installed, what is missing, and how to get it"
    )
    doctor.set_defaults(run=_doctor)
    doctor.add_argument("--json", action="store_true", help="print it as JSON")


def task(text: str) -> str:
    return text.replace("-", "_")


def between(least: float, most: float) -> Callable[[str], float]:
    """A number of the kind of these two, from one to the other; NaN is not."""

    def number(text: str) -> float:
        value = type(least)(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"expected {least} to {most}, got {value}")
        return value

    return number


def _edit(options: argparse.Namespace) -> int:
    # Imported here, so that --help and wrong usage do not wait for torch.
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from . import images
    from .edit import edit, prepare
    from .editor import Sampling

    _check_output(options)
    photo = images.load(options.image)
    reference = images.load(options.reference) if options.reference else None
    reference_mask = images.load_mask(options.reference_mask) if options.reference_mask else None
    if reference and reference_mask is None:
        reference_mask = reference.alpha
    mask = images.load_mask(options.mask) if options.mask else None
    megapixels = options.condition_megapixels
    with (
        tqdm(
            total=1,
            disable=True if options.json else None,
            bar_format="{desc} {elapsed}",
            leave=False,
        ) as bar,
        logging_redirect_tqdm(),
    ):

        def show(done: int, total: int, doing: str, latents: object = None) -> None:
            bar.set_description_str(f"{doing} {done}/{total}")

        editor = _editor(options, show)
        conditions = prepare(
            photo.image,
            mask,
            reference=reference.image if reference else None,
            reference_mask=reference_mask,
            recipe=editor.recipe,
            resolution=editor.resolution,
            grow=options.grow,
            feather=options.feather,
            progress=show,
        )
        result = edit(
            editor,
            conditions,
            prompt=options.prompt,
            seed=options.seed,
            sampling=Sampling(
                steps=options.steps,
                cfg=options.cfg,
                negative=options.negative,
                condition_pixels=megapixels and round(2**20 * megapixels),
                keep_background=options.keep_background,
            ),
            transfer=options.transfer,
            progress=show,
        )
    images.save(options.output, result.image, photo.icc_profile)
    _tell(result.report, options)
    return 0


def _check_output(options: argparse.Namespace) -> None:
    from . import images

    images.check_writable(options.output)
    given = (options.image, options.mask, options.reference, options.reference_mask)
    if options.output.resolve() in (path.resolve() for path in given if path):
        raise ArtMancerError(
            "invalid_request",
            f"The output '{options.output}' is one of the inputs. "
            "Write to another file, and keep it.",
        )
    if options.output.suffix.lower() in images.LOSSY_SUFFIXES:
        logging.getLogger(__name__).warning(
            "JPEG changes every pixel a little; write PNG to keep the rest exactly."
        )


def _tell(report: "Report", options: argparse.Namespace) -> None:
    if options.json:
        _write(json.dumps({"output": str(options.output), "report": report.as_dict()}))
        return
    stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in report.seconds.items())
    files = f" with {' and '.join(report.adapters)}" if report.adapters else ""
    size = f"crop {report.crop_size[1]}x{report.crop_size[0]}"
    _write(f"{options.output}: {report.editor}{files}, {size}, {stages}")


def _editor(options: argparse.Namespace, progress: "Progress") -> "Editor":
    if options.editor == "draft":
        from .draft import DraftEditor

        return DraftEditor(options.task, options.strength)
    from . import models
    from .qwen import checkpoints, memory, pipeline
    from .qwen.editor import QwenEditor

    folder = options.base or os.environ.get("MODEL_PATH") or models.base()
    if not folder:
        raise ArtMancerError(
            "checkpoint_missing",
            "The qwen editor needs a base model: name its folder with --base, or in MODEL_PATH; "
            "`artmancer models fetch` downloads one.",
        )
    file = options.variant_file or models.checkpoint(options.task)
    if file is None:
        logging.getLogger(__name__).warning(
            "No checkpoint for %s was found: the base edits alone.", options.task
        )
    return QwenEditor(
        pipeline.load(Path(folder), options.precision, progress=progress),
        options.task,
        checkpoints.read(file) if file else checkpoints.NONE,
        options.strength,
        options.acceleration,
        dict(zip(("all", "one", "stream"), memory.MODES, strict=True)).get(options.memory, "auto"),
    )


def _models(options: argparse.Namespace) -> int:
    from . import models

    if options.action == "fetch":
        if options.what == "fastsam-s":
            fetched = models.fetch_fastsam(options.folder or models.default_folder("fastsam"))
        else:
            fetched = (
                options.folder
                or models.default_folder("diffusers") / models.REPOSITORY.split("/")[1]
            )
            models.fetch(fetched)
        _write(
            json.dumps({"path": str(fetched)})
            if options.json
            else f"{fetched}: complete, every file checked"
        )
        return 0
    found = models.found()
    if options.json:
        _write(
            json.dumps(
                [{"kind": one.kind, "path": str(one.path), "about": one.about} for one in found]
            )
        )
    else:
        for one in found:
            _write(f"{one.kind:<18}{one.path}{f'  ({one.about})' if one.about else ''}")
        kinds = {one.kind for one in found}
        if "base" not in kinds:
            _write(f"{'no base':<18}`artmancer models fetch` downloads one")
        for variant, (name, *_) in FILES.items():
            if variant not in kinds:
                _write(f"{f'no {variant}':<18}without models/artmancer/{name} the base edits alone")
    return 0


def _serve(options: argparse.Namespace) -> int:
    try:
        from pydantic import ValidationError

        from .gateway.serve import serve
        from .gateway.settings import Settings
    except ModuleNotFoundError as error:
        raise ArtMancerError(
            "generation_failed",
            f"The gateway needs {error.name}. Install it with: "
            "pip install -e '.[gateway]', in ArtMancer's folder",
        ) from None
    given = {
        name: getattr(options, name)
        for name in ("host", "port", "comfyui_url", "comfyui_light_url")
    }
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise ArtMancerError(
            "invalid_request",
            f"The setting {first['loc'][0]} is {first['input']!r}: {first['msg']}. Change it.",
        ) from None
    serve(
        settings,
        with_comfyui=options.with_comfyui,
        base=options.comfyui_base,
        cpu=options.cpu,
        light_on_gpu=options.light_on_gpu,
    )
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import examine

    findings = examine()
    if options.json:
        _write(json.dumps([vars(finding) for finding in findings]))
    else:
        for finding in findings:
            advice = f"\n{'':32}{finding.advice}" if finding.advice else ""
            _write(
                f"{'ok' if finding.ok else 'missing':8}{finding.name:<24}{finding.found}{advice}"
            )
    return 0 if all(finding.ok for finding in findings) else 1


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
