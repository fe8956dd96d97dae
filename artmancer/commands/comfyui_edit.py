"""An edit with a model set: by a ComfyUI that runs already, or by one that is started for it."""

import argparse
import asyncio
import json
import tempfile
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import images, model_sets, models
from ..errors import ArtMancerError
from ..folders import comfyui_folder
from ..recipes import CONDITION_SIZES
from .arguments import not_a_choice, sentence

if TYPE_CHECKING:
    from ..gateway.runner import Outputs, Run
    from ..progress import Progress

WORKFLOW = "generate.json"
"""Graph of the edit."""

ANSWER_SECONDS = 15.0
"""Longest time until a ComfyUI at a URL answers."""

START_SECONDS = 600.0
"""Longest time until a ComfyUI that was started answers."""

_RESULTS = ("image", "report")


def check_editor(options: argparse.Namespace, other_editors: tuple[str, ...]) -> None:
    """Refuse a model set that does not exist, and the options of the editor qwen.

    Parameters
    ----------
    other_editors : values of --editor besides the names of model sets

    Raises
    ------
    ArtMancerError : comfyui_unavailable, not_found, invalid_request; see model_sets.read
    """
    others = ("base", "variant_file", "acceleration", "precision", "memory")
    for name in others:
        if getattr(options, name) not in (None, "auto"):
            raise ArtMancerError(
                "invalid_request",
                f"--{name.replace('_', '-')} is for the editor qwen; the model set "
                f"'{options.editor}' names its own files. Leave it out, or change the set.",
            )
    if options.comfyui_url:
        return  # that ComfyUI knows its sets
    folder = comfyui_folder()
    has_comfyui = (folder / "main.py").is_file()
    no_comfyui = (
        f"A model set runs in ComfyUI, and there is none in '{folder}'. Set COMFYUI_PATH to the "
        "folder of your ComfyUI, or name a running one with --comfyui-url."
    )
    sets = models.set_paths(options.comfyui_base)
    if options.editor not in sets:
        advice = "`artmancer models set NAME` writes a model set." if has_comfyui else no_comfyui
        raise ArtMancerError(
            "not_found",
            f"argument --editor: {sentence(not_a_choice(options.editor, [*other_editors, *sets]))} "
            f"{advice}",
        )
    if not has_comfyui:
        raise ArtMancerError("comfyui_unavailable", no_comfyui)
    model_sets.read(sets[options.editor])


def edit(options: argparse.Namespace, progress: "Progress") -> tuple[bytes, dict[str, Any]]:
    """Edit a photo; return the result as PNG, and the report.

    Raises
    ------
    ArtMancerError : comfyui_unavailable, and what ComfyUI or the edit failed with
    """
    try:
        outputs = asyncio.run(_edit(options, progress))
    except ModuleNotFoundError as error:
        raise ArtMancerError(
            "generation_failed",
            f"An edit in ComfyUI needs {error.name}. Install it with: pip install -e '.[gateway]' "
            "in ArtMancer's folder.",
        ) from None
    (image,) = outputs.images["image"]
    return image, json.loads(outputs.values["report"])


async def _edit(options: argparse.Namespace, progress: "Progress") -> "Outputs":
    from ..gateway.comfy_runner import ComfyRunner
    from ..gateway.runner import RunLost, Step

    def on_step(step: Step) -> None:
        progress(step.done, step.total, step.stage or "waiting")

    with tempfile.TemporaryDirectory(prefix="artmancer-") as temp:
        folder = Path(temp)
        run = _run(options, folder)
        async with _comfyui(options, folder, progress) as (url, wait):
            runner = ComfyRunner(url, uuid.uuid4().hex)
            connecting = asyncio.create_task(runner.connect())
            try:
                await wait(runner)
                _check_pack(runner.status().info, url)
                await runner.submit(run)
                return await runner.outputs(run, on_step)
            except RunLost:
                raise ArtMancerError(
                    "comfyui_unavailable",
                    f"The ComfyUI at {url} stopped during the edit. Look at its log, and try "
                    "again.",
                ) from None
            except asyncio.CancelledError:
                await runner.cancel(run.id)
                raise
            finally:
                connecting.cancel()
                await asyncio.gather(connecting, return_exceptions=True)


@asynccontextmanager
async def _comfyui(
    options: argparse.Namespace, folder: Path, progress: "Progress"
) -> AsyncIterator[tuple[str, Any]]:
    """Provide a ComfyUI: its URL, and a function that waits until a runner is connected to it."""
    from ..gateway import comfy_process
    from ..gateway.comfy_runner import ComfyRunner

    if options.comfyui_url:
        url = options.comfyui_url

        async def wait_for_answer(runner: ComfyRunner) -> None:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(runner.ready(), ANSWER_SECONDS)
                return
            raise ArtMancerError(
                "comfyui_unavailable",
                f"No ComfyUI answers at {url}: {runner.status().reason} Start it, or leave "
                "--comfyui-url out to start one from COMFYUI_PATH.",
            )

        yield url, wait_for_answer
        return
    port = comfy_process.free_port()
    start = comfy_process.command(
        port, folder / "comfyui", base=options.comfyui_base, cpu=options.cpu
    )
    log = folder / "comfyui.log"
    progress(0, 1, "starting ComfyUI")
    async with comfy_process.started(start, log) as process:

        async def wait_for_start(runner: ComfyRunner) -> None:
            tasks = [asyncio.create_task(call) for call in (runner.ready(), process.wait())]
            await asyncio.wait(tasks, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            is_ready = tasks[0].done()
            for task in tasks:
                task.cancel()
            if not is_ready:
                lines = log.read_text("utf-8", "replace").strip().splitlines()
                raise ArtMancerError(
                    "comfyui_unavailable",
                    f"The ComfyUI in '{comfyui_folder()}' did not start; its log ends with "
                    f"'{lines[-1] if lines else ''}'. Correct that; without a GPU, add --cpu.",
                )

        yield f"http://127.0.0.1:{port}", wait_for_start


def _check_pack(info: Any, url: str) -> None:
    """Refuse a ComfyUI without the pack, or with one that knows no model sets."""
    if "model_sets" not in (info.get("pack") or {}):
        raise ArtMancerError(
            "comfyui_unavailable",
            f"The ComfyUI at {url} has no ArtMancer pack in its custom_nodes, or an older one. "
            "Install this version there.",
        )


def _run(options: argparse.Namespace, folder: Path) -> "Run":
    """Fill the graph with the options.

    Parameters
    ----------
    folder : for a mask that is made from the reference's transparency, and for a reference that is
        converted to the photo's color profile
    """
    from ..gateway.runner import Run
    from ..gateway.settings import WORKFLOWS
    from ..gateway.workflows import read_workflow

    reference, reference_mask = options.reference, options.reference_mask
    if reference:
        decoded = images.load(reference)
        if reference_mask is None and decoded.alpha is not None:
            reference_mask = folder / "reference-mask.png"
            images.save(reference_mask, decoded.alpha[0])
        profile = images.read_header(options.image.read_bytes()).profile
        if matched := images.match_reference(profile, reference.read_bytes()):
            reference = folder / "reference.png"
            reference.write_bytes(matched)
    paths = {
        "input_image": options.image,
        "mask_image": options.mask,
        "reference_image": reference,
        "reference_mask_R": reference_mask,
    }
    names = {
        field: f"{uuid.uuid4().hex}{path.suffix.lower()}" for field, path in paths.items() if path
    }
    workflow = read_workflow(WORKFLOWS / WORKFLOW)
    results = {node: name for node, name in workflow.wanted_results([]).items() if name in _RESULTS}
    values = {**names, **_values(options)}
    bits = images.read_header(options.image.read_bytes()).bits
    graph = workflow.with_inputs(
        {name: value for name, value in values.items() if value is not None}, results, bits
    )
    _set_nodes(graph, options)
    return Run(
        str(uuid.uuid4()), graph, {name: paths[field] for field, name in names.items()}, results
    )


def _values(options: argparse.Namespace) -> dict[str, Any]:
    """Return the endpoint's inputs besides the images; None: its default."""
    size: str | float = options.condition_size
    megapixels = None
    if size not in CONDITION_SIZES:
        size, megapixels = "megapixels", float(size)
    return {
        "editor": options.editor,
        "task_type": options.variant,
        "prompt": options.prompt,
        "negative_prompt": options.negative,
        "seed": options.seed,
        "num_inference_steps": options.steps,
        "true_cfg_scale": options.cfg,
        "condition_size": size,
        "condition_megapixels": megapixels,
        "recipe": options.recipe,
        "frame": options.frame,
        "resolution": options.resolution,
        "context": options.context,
        "grow_mask": options.grow,
        "brush_mask": options.brush_mask,
        "silhouette": not options.no_silhouette,
        "shadow_hint": not options.no_shadow_hint,
        "fill_holes": options.fill_holes,
        "widen": options.widen,
        "regions": options.regions,
        "match_grain": options.match_grain,
    }


def _set_nodes(graph: dict[str, Any], options: argparse.Namespace) -> None:
    """Set the inputs of nodes that the endpoint leaves as they are."""
    inputs = {
        "ArtMancer_LoadEditor": {"strength": options.strength},
        "ArtMancer_SplitConditions": {"feather": options.feather},
        "ArtMancer_EditSampler": {
            "transfer": options.transfer,
            "keep_background": options.keep_background,
        },
    }
    for node in graph.values():
        node["inputs"].update(inputs.get(node["class_type"], {}))
