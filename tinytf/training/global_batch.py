"""How many micro-batches make a step, so that a step stays what it is when the devices change."""

from __future__ import annotations

from tinytf.errors import UserError


def accumulation(global_batch: int, batch: int, devices: int, asked: int | None) -> int:
    """Micro-batches a device takes before each optimizer step.

    Args:
        global_batch: windows a step over all devices, ``data.global_batch_size``.
        batch: windows a micro-batch on one device.
        devices: that read different batches.
        asked: ``trainer.accumulate_grad_batches``, None where it is left to this.

    Raises:
        UserError: where it does not divide, or ``asked`` says otherwise.
    """
    at_once = f"data.batch_size {batch} on {devices} device{'s' if devices > 1 else ''}"
    if global_batch % (batch * devices):
        raise UserError(
            f"data.global_batch_size {global_batch} is no multiple of the {batch * devices} windows that are read at "
            f"once ({at_once})"
        )
    needed = global_batch // (batch * devices)
    if asked is not None and asked != needed:
        raise UserError(
            f"trainer.accumulate_grad_batches {asked} contradicts data.global_batch_size {global_batch}, which takes "
            f"{needed} with {at_once}: set one of the two to null"
        )
    return needed
