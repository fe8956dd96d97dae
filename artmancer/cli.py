"""The command `artmancer`.

Exit codes: 0 done, 1 refused or failed (one sentence says why), 2 wrong usage, 130 interrupted.
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from .errors import ArtMancerError

if TYPE_CHECKING:
    from .editor import Editor

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
        description="Put an object into a photo, take one out, fix the white balance; leave every other pixel alone.",
        epilog="Exit codes: 0 done, 1 refused or failed (one sentence says why), 2 wrong usage, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"artmancer {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    edit = commands.add_parser("edit", help="edit a photo", description="Edit a photo where its mask is white.")
    edit.set_defaults(run=_edit)
    edit.add_argument("image", type=Path, metavar="IMAGE", help="PNG, JPEG, WebP, BMP, TIFF or GIF")
    edit.add_argument("--task", required=True, type=task, choices=TASKS, help="what to do")
    edit.add_argument("--mask", type=Path, help="a picture of the same size, white = edit; white balance needs none")
    edit.add_argument("--reference", type=Path, help="a picture of the object to insert")
    edit.add_argument(
        "--reference-mask",
        type=Path,
        help="white where the object is in its picture; default: where that is not transparent",
    )
    edit.add_argument("--editor", choices=("draft", "qwen"), default="draft", help="who edits (default: draft)")
    edit.add_argument("--base", type=Path, help="qwen: the folder of Qwen-Image-Edit; default: $MODEL_PATH")
    edit.add_argument(
        "--variant-file", type=Path, help="qwen: the task's LoRA; default: $MODEL_FILE..., or else the base alone"
    )
    edit.add_argument("--acceleration", type=Path, help="qwen: a LoRA for few steps, which turns --cfg off")
    edit.add_argument("--precision", choices=("auto", "bf16", "fp8", "fp32"), default="auto", help="qwen: of the base")
    edit.add_argument(
        "--memory",
        choices=("auto", "all", "one", "stream"),
        default="auto",
        help="qwen: what lies on the GPU at a time",
    )
    edit.add_argument("--prompt", default="", help="the edit in words; the draft editor does not read them")
    edit.add_argument("--negative", default=" ", help="qwen: what to avoid (default: a space, as in training)")
    edit.add_argument("--steps", type=int, default=10, help="qwen: denoising steps (default 10)")
    edit.add_argument("--cfg", type=float, default=4.0, help="qwen: guidance scale, 1 = off (default 4)")
    edit.add_argument("--keep-background", action="store_true", help="qwen: hold the latents outside the mask")
    edit.add_argument(
        "--transfer",
        choices=("colours", "pixels"),
        default="colours",
        help="what is taken of a white balance: its change of colours, or its pixels (default: colours)",
    )
    edit.add_argument("--seed", type=int, default=0, help="the same seed gives the same picture (default 0)")
    edit.add_argument("--grow", type=pixels, default=0, metavar="PX", help="widen the mask (default 0)")
    edit.add_argument(
        "--feather",
        type=pixels,
        default=16,
        metavar="PX",
        help="fade out around the mask over this width (default 16)",
    )
    edit.add_argument("--strength", type=share, default=1.0, help="of the white balance, or of the LoRA (default 1)")
    edit.add_argument("-o", "--output", required=True, type=Path, help="the result; PNG keeps every pixel exactly")
    edit.add_argument("--json", action="store_true", help="print the report, or the error, as JSON")

    models = commands.add_parser(
        "models",
        help="list the models that are found; `models fetch` downloads the base",
        description="List the bases and LoRAs in ComfyUI's folders ($COMFYUI_PATH) and those that MODEL_PATH and "
        "MODEL_FILE... name; or fetch Qwen-Image-Edit-2509 (58 GB) or FastSAM-s (24 MB, for Smart Mask).",
    )
    models.set_defaults(run=_models)
    models.add_argument("action", nargs="?", choices=("list", "fetch"), default="list")
    models.add_argument("what", nargs="?", choices=("qwen", "fastsam-s"), default="qwen")
    models.add_argument("--folder", type=Path, help="fetch: where to; default: the folder of ComfyUI's for its kind")
    models.add_argument("--json", action="store_true", help="print it as JSON")

    doctor = commands.add_parser("doctor", help="say what is installed, what is missing, and how to get it")
    doctor.set_defaults(run=_doctor)
    doctor.add_argument("--json", action="store_true", help="print it as JSON")
    return parser


def task(text: str) -> str:
    return text.replace("-", "_")


def pixels(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 1024:
        raise argparse.ArgumentTypeError(f"expected 0 to 1024 pixels, got {value}")
    return value


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected 0 to 1, got {value}")
    return value


def _edit(options: argparse.Namespace) -> int:
    # Imported here, so that --help and wrong usage do not wait for torch.
    from tqdm import tqdm

    from . import images
    from .edit import edit, prepare
    from .editor import Sampling

    images.check_writable(options.output)
    given = (options.image, options.mask, options.reference, options.reference_mask)
    if options.output.resolve() in (path.resolve() for path in given if path):
        raise ArtMancerError(
            "invalid_request",
            f"The output '{options.output}' is one of the inputs. Write to another file, and keep it.",
        )
    if options.output.suffix.lower() in images.LOSSY_SUFFIXES:
        logging.getLogger(__name__).warning("JPEG changes every pixel a little; write PNG to keep the rest exactly.")
    photo = images.load(options.image)
    reference = images.load(options.reference) if options.reference else None
    reference_mask = images.load_mask(options.reference_mask) if options.reference_mask else None
    if reference and reference_mask is None:
        reference_mask = reference.alpha
    editor = _editor(options)
    conditions = prepare(
        photo.image,
        images.load_mask(options.mask) if options.mask else None,
        reference=reference.image if reference else None,
        reference_mask=reference_mask,
        recipe=editor.recipe,
        resolution=editor.resolution,
        grow=options.grow,
        feather=options.feather,
    )
    with tqdm(total=1, disable=True if options.json else None, bar_format="{desc} {elapsed}", leave=False) as bar:

        def show(done: int, total: int, doing: str, latents: object = None) -> None:
            bar.set_description_str(f"{doing} {done}/{total}")

        result = edit(
            editor,
            conditions,
            prompt=options.prompt,
            seed=options.seed,
            sampling=Sampling(
                steps=options.steps,
                cfg=options.cfg,
                negative=options.negative,
                keep_background=options.keep_background,
            ),
            transfer=options.transfer,
            progress=show,
        )
    images.save(options.output, result.image, photo.icc_profile)
    report = result.report
    if options.json:
        _write(json.dumps({"output": str(options.output), "report": report.as_dict()}))
    else:
        stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in report.seconds.items())
        _write(f"{options.output}: {report.editor}, crop {report.crop_size[1]}x{report.crop_size[0]}, {stages}")
    return 0


def _editor(options: argparse.Namespace) -> "Editor":
    if options.editor == "draft":
        from .draft import DraftEditor

        return DraftEditor(options.task, options.strength)
    from .qwen import checkpoints, memory, pipeline
    from .qwen.editor import QwenEditor

    folder = options.base or os.environ.get("MODEL_PATH")
    if not folder:
        raise ArtMancerError(
            "checkpoint_missing", "The qwen editor needs a base model: name its folder with --base, or in MODEL_PATH."
        )
    file = options.variant_file or checkpoints.find(options.task, [])
    return QwenEditor(
        pipeline.load(Path(folder), options.precision),
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
            fetched = options.folder or models.default_folder("diffusers") / models.REPOSITORY.split("/")[1]
            models.fetch(fetched)
        _write(json.dumps({"path": str(fetched)}) if options.json else f"{fetched}: complete, every file checked")
        return 0
    found = models.found()
    if options.json:
        _write(json.dumps([{"kind": one.kind, "path": str(one.path), "about": one.about} for one in found]))
    else:
        for one in found:
            _write(f"{one.kind:<15}{one.path}{f'  ({one.about})' if one.about else ''}")
        if not any(one.kind == "base" for one in found):
            folder = models.default_folder("diffusers").resolve()
            _write(f"no base        `artmancer models fetch` downloads one to {folder}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import examine

    findings = examine()
    if options.json:
        _write(json.dumps([vars(finding) for finding in findings]))
    else:
        for finding in findings:
            advice = f"\n{'':32}{finding.advice}" if finding.advice else ""
            _write(f"{'ok' if finding.ok else 'missing':8}{finding.name:<24}{finding.found}{advice}")
    return 0 if all(finding.ok for finding in findings) else 1


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
