"""LoRA adapters: each is attached to the base's transformer once, then switched on and off.

For compiled blocks they are copied into slots instead, see slots.py.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from . import eight_bits, lora_files, slots
from .checkpoints import missing
from .lora_files import Change
from .pipeline import Adapter, Base
from .slots import Gain, SlotFile

logger = logging.getLogger(__name__)

_FACTORS = ("lokr_", "hada_")
"""Beginnings of the tensors' names of LoKr and LoHa."""


def activate(base: Base, strengths: dict[Path, float], in_slots: bool = False) -> None:
    """Switch these checkpoints on with these strengths, and all others off.

    A file is read at its first use, when it has changed since, and after KEPT_FILES others.

    Parameters
    ----------
    strengths : strength of each checkpoint by path, 1 = as trained; empty = the base alone
    in_slots : copy the checkpoints into slots, for compiled blocks. They are attached all the same
        where slots cannot hold them. A change between the two attaches or copies anew

    Raises
    ------
    ArtMancerError : checkpoint_missing; generation_failed where a file is damaged or is not a LoRA
        for the base
    """
    if in_slots and _activate_slots(base, strengths):
        return
    if base.slots.installed:
        base.active = None
        base.slots.installed = False
        slots.restore(base.pipeline.transformer)
    # The model's own methods read PEFT's version from a file at each call.
    from diffusers.utils.peft_utils import set_adapter_layers, set_weights_and_activate_adapters

    transformer = base.pipeline.transformer
    changed = [_ensure_attached(base, path) for path in strengths]
    if not any(changed) and strengths == base.active:
        return
    base.active = None
    if strengths:
        set_adapter_layers(transformer, enabled=True)
        # DoRA scales what the base's layer returns, so it comes before the changes of other files.
        paths = sorted(strengths, key=lambda path: not base.adapters[path].scales_outputs)
        set_weights_and_activate_adapters(
            transformer,
            [base.adapters[path].name for path in paths],
            [strengths[path] for path in paths],
        )
    elif base.adapters:
        set_adapter_layers(transformer, enabled=False)
    _detach_least_recent(base, list(strengths))
    _set_norms(base, [(base.adapters[path].norms, strengths[path]) for path in strengths])
    base.memory.adapters_changed()
    base.active = dict(strengths)


def _activate_slots(base: Base, strengths: dict[Path, float]) -> bool:
    """Do as `activate`, in slots; return False, with nothing done, where slots cannot hold a
    file's changes.
    """
    transformer = base.pipeline.transformer
    read = [_ensure_read(base, path) for path in strengths]
    files = {path: base.slots.files[path] for path in strengths}
    changes = {path: file.changes for path, file in files.items() if file.changes is not None}
    if len(changes) < len(files) or sum(file.scales_outputs for file in files.values()) > 1:
        logger.warning(
            "With %s the blocks are not compiled: a LoKr, a LoHa, a difference of weights and a "
            "second DoRA do not fit into compiled blocks.",
            " and ".join(path.name for path in strengths),
        )
        return False
    if base.slots.installed and base.active == strengths and not any(read):
        return True
    base.active = None
    if base.slots.make_room(transformer, changes.values()):
        # The slots have taken the places of all attached adapters.
        base.adapters.clear()
        logger.info("The next edit compiles the blocks: their slots for LoRAs are new.")
    _set_norms(base, [(files[path].norms, strengths[path]) for path in strengths])
    # First: streaming keeps copies of the weights.
    base.memory.adapters_changed()
    slots.write(transformer, [(changes[path], strengths[path]) for path in strengths])
    base.active = dict(strengths)
    return True


def _ensure_read(base: Base, path: Path) -> bool:
    """Read a checkpoint for slots, unless it is in memory and its file has not changed; return True
    if it was read now.
    """
    file = base.slots.files.get(path)
    stamp = _stamp(path)
    is_new = file is None or stamp not in (file.stamp, None)
    if file is None or is_new:
        if stamp is None:
            raise missing(path)
        transformer = base.pipeline.transformer
        changes = lora_files.read(path, transformer)
        norms = _norms(base, changes)
        low_rank = None
        dtype = transformer.dtype
        if not any(key.startswith(_FACTORS) for change in changes.values() for key in change):
            low_rank = {
                layer: _on_cpu(_low_rank(change, transformer.get_submodule(layer)), dtype)
                for layer, change in changes.items()
                if "weight" not in change
            }
        file = SlotFile(stamp, low_rank, norms)
    base.slots.keep(path, file)
    return is_new


def _on_cpu(change: Change, dtype: torch.dtype) -> Change:
    return {name: value.to("cpu", dtype, copy=True) for name, value in change.items()}


def _ensure_attached(base: Base, path: Path) -> bool:
    """Attach a checkpoint, unless it is attached and its file has not changed; return True if it
    was attached now.
    """
    attached = base.adapters.get(path)
    stamp = _stamp(path)
    # A checkpoint whose file was deleted stays usable.
    if attached and stamp in (attached.stamp, None):
        return False
    base.active = None
    if attached:
        del base.adapters[path]
        base.pipeline.transformer.delete_adapters(attached.name)
    if stamp is None:
        raise missing(path)
    base.attached_count += 1
    name = f"artmancer_{base.attached_count}"
    try:
        changes = lora_files.read(path, base.pipeline.transformer)
        _attach(base.pipeline.transformer, changes, name)
    # A cancel in ComfyUI may be a BaseException; a half-attached adapter would change the result.
    except BaseException:
        base.pipeline.transformer.delete_adapters(name)
        raise
    norms = _norms(base, changes)
    scales_outputs = any("magnitude" in change for change in changes.values())
    base.adapters[path] = Adapter(name, stamp, norms, scales_outputs)
    return True


def _detach_least_recent(base: Base, used: list[Path]) -> None:
    """Detach the checkpoints that were used least recently, beyond KEPT_FILES; these are used
    now.
    """
    for path in used:
        base.adapters[path] = base.adapters.pop(path)
    for path in list(base.adapters)[: -max(slots.KEPT_FILES, len(used))]:
        base.pipeline.transformer.delete_adapters(base.adapters.pop(path).name)


def _norms(base: Base, changes: dict[str, Change]) -> dict[str, Tensor]:
    """Return what a file adds to weights of norms, by the parameter's name, and keep the base's
    own.
    """
    norms = {
        f"{layer}.weight": change["weight"].clone()
        for layer, change in changes.items()
        if "weight" in change
    }
    for parameter in norms.keys() - base.norms.keys():
        weight = base.pipeline.transformer.get_parameter(parameter)
        base.norms[parameter] = weight.detach().to("cpu", copy=True)
    return norms


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return a file's modification time and size, see Adapter.stamp; None: there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _attach(transformer: Any, changes: dict[str, Change], name: str) -> None:
    """Attach the changes of linear layers to the transformer under this name."""
    # diffusers walks all modules to tell it.
    dtype = transformer.dtype
    for layer, change in changes.items():
        if change.keys() & {"lora_A", "bias"}:
            _attach_lora(transformer, layer, change, name, dtype)
        factors = {key: value for key, value in change.items() if key.startswith(_FACTORS)}
        if factors:
            _attach_factors(transformer, layer, factors, name, dtype)


def _attach_lora(
    transformer: Any, layer: str, change: Change, name: str, dtype: torch.dtype
) -> None:
    """Attach a LoRA, a DoRA or the change of a bias to a layer."""
    from peft import LoraConfig
    from peft.tuners.lora.layer import Linear

    parent, attribute, module = _position(transformer, layer, Linear, is_inside=True)
    low_rank = _low_rank(change, module)
    rank = len(low_rank["lora_A"])
    config = LoraConfig(r=rank, lora_alpha=rank)
    if isinstance(module, Linear):
        module.update_layer(name, rank, rank, config=config)
    else:
        module = Linear(module, name, config=config, r=rank, lora_alpha=rank)
        setattr(parent, attribute, module)
    if "gain" in low_rank:
        _attach_gain(module, low_rank["gain"], name, dtype)
    like: Any = module.get_base_layer().weight
    # PEFT rounds to the dtype of the layer's own weight, which may be stored in 8 bits.
    module.lora_A[name].weight.data = _stored(low_rank["lora_A"], like, dtype)
    module.lora_B[name].weight.data = _stored(low_rank["lora_B"], like, dtype)
    if "bias" in low_rank:
        value = _stored(low_rank["bias"], like, dtype)
        module.lora_B[name].bias = Parameter(value, requires_grad=False)


def _low_rank(change: Change, module: Any) -> Change:
    """Return the change of a layer by a LoRA, a DoRA or a bias, as lora_A, lora_B and where there
    are any bias and gain: result * (1 + gain) + lora_B(lora_A(x)) + bias.

    Parameters
    ----------
    module : the layer, or an adapter around it
    """
    layer = slots.base_layer(module)
    # A bias alone is a LoRA of zeros with a bias.
    low_rank = {
        "lora_A": change.get("lora_A", torch.zeros(1, layer.in_features)),
        "lora_B": change.get("lora_B", torch.zeros(layer.out_features, 1)),
    }
    if "bias" in change:
        low_rank["bias"] = change["bias"]
    if "magnitude" in change:
        gain = low_rank["gain"] = _gain(layer, change)
        low_rank["lora_B"] = low_rank["lora_B"] * (1 + gain)[:, None]
        if layer.bias is not None:
            # DoRA scales the weight alone, but the gain scales all that the layer returns.
            scaled = gain * layer.bias.float().cpu()
            low_rank["bias"] = low_rank.get("bias", torch.zeros(())) - scaled
    return low_rank


def _position(
    transformer: Any, layer: str, layer_class: type, is_inside: bool
) -> tuple[Any, str, Any]:
    """Return PEFT's layer of this class around a layer of the base; without one, the module that a
    new one is to wrap.

    LoRAs are inside and the other kinds outside, so that DoRA scales what the base returns and not
    what the other kinds add.

    Returns
    -------
    parent, attribute, module : the module, and the place it stands in
    """
    path, _, attribute = layer.rpartition(".")
    parent = transformer.get_submodule(path)
    module = transformer.get_submodule(layer)
    outside = parent, attribute, module
    while hasattr(module, "base_layer") and not isinstance(module, layer_class):
        parent, attribute, module = module, "base_layer", module.base_layer
    if isinstance(module, layer_class) or is_inside:
        return parent, attribute, module
    return outside


def _stored(value: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy of a file's tensor on the device of `like`, in this dtype.

    Weights that are mapped from a file change when the file is overwritten.
    """
    return value.to(like.device, dtype, copy=True)


def _gain(module: Any, change: Change) -> Tensor:
    """Return a DoRA's gain of each output, minus 1: magnitude / ||row of W + delta|| - 1.

    It does not change after training (DoRA, Liu et al. 2024). PEFT's own layer computes it in each
    forward from the base's weight, which group offload may have taken away and which may be stored
    in 8 bits.
    """
    device = module.weight.device
    delta = change["lora_B"].to(device) @ change["lora_A"].to(device)
    norms = torch.linalg.norm(eight_bits.weight_of(module).detach().float() + delta, dim=1)
    gain: Tensor = change["magnitude"] / norms.cpu() - 1
    return gain


def _attach_gain(module: Any, gain: Tensor, name: str, dtype: torch.dtype) -> None:
    """Make a LoRA in PEFT's layer a DoRA."""
    from peft.tuners.lora.layer import LoraVariant

    class Dora(LoraVariant):
        """PEFT's way to change the forward of one adapter."""

        @staticmethod
        def forward(
            module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any
        ) -> Tensor:
            change = module.lora_B[active_adapter](module.lora_A[active_adapter](x))
            change = change + module.lora_magnitude_vector[active_adapter](result)
            scaled: Tensor = result + module.scaling[active_adapter] * change
            return scaled

    value = _stored(gain, module.get_base_layer().weight, dtype)
    module.lora_magnitude_vector[name] = Gain(value)
    module.lora_variant[name] = Dora()
    if "lora_magnitude_vector" not in module.adapter_layer_names:
        # PEFT deletes the adapter from these.
        module.adapter_layer_names = (*module.adapter_layer_names, "lora_magnitude_vector")


def _attach_factors(
    transformer: Any, layer: str, factors: Change, name: str, dtype: torch.dtype
) -> None:
    """Attach a LoKr or a LoHa to a layer."""
    from peft import LoHaConfig, LoKrConfig
    from peft.tuners.loha.layer import Linear as LoHa
    from peft.tuners.lokr.layer import Linear as LoKr

    is_lokr = any(key.startswith("lokr_") for key in factors)
    layer_class: Any = LoKr if is_lokr else LoHa
    config = LoKrConfig(r=1) if is_lokr else LoHaConfig(r=1)
    parent, attribute, module = _position(transformer, layer, layer_class, is_inside=False)
    if isinstance(module, layer_class):
        module.update_layer(name, 1, 1.0, config=config)
    else:
        module = layer_class(module, name, config=config, r=1, alpha=1.0)
        setattr(parent, attribute, module)
    # PEFT has made its own factors, whose shapes need not be the file's.
    like = module.get_base_layer().weight
    for key in module.adapter_layer_names:
        parameters = getattr(module, key)
        if name in parameters:
            del parameters[name]
        if key in factors:
            value = _stored(factors[key], like, dtype)
            parameters[name] = Parameter(value, requires_grad=False)


def _set_norms(base: Base, files: list[tuple[dict[str, Tensor], float]]) -> None:
    """Set the weights of the base's norms that files change, by these norms and strengths. PEFT has
    no adapter for them.
    """
    for name, original in base.norms.items():
        weight = original.float()
        for norms, strength in files:
            if name in norms:
                weight = weight + strength * norms[name]
        # In place: a weight that was replaced would come back when the model leaves the GPU.
        with torch.no_grad():
            base.pipeline.transformer.get_parameter(name).copy_(weight)
