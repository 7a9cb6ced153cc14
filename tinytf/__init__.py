"""tinytf: text in, a small transformer language model out.

    import tinytf
    model = tinytf.load("best.ckpt")
    print(model.generate("ROMEO:", seed=1))

Importing it imports nothing heavy: the command line's --version and --help answer at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tinytf.run.loading import TrainedModel

__all__ = ["__version__", "load"]
__version__ = "0.1.0"


def load(
    ckpt_path: str | Path,
    *,
    name: str | None = None,
    root: str | Path = "checkpoints",
    device: str = "auto",
    base: str | None = None,
) -> TrainedModel:
    """A trained model and its tokenizer, from a checkpoint alone; the file can run no code.

    Args:
        ckpt_path: a checkpoint file, or the text ``best`` or ``last``: that of the newest run.
        name: with best or last, the run's name, where the newest run is not meant.
        root: the folder of your runs.
        device: ``cpu``, ``cuda``, ``mps``, or ``auto``: the first of CUDA, MPS and CPU that is there.
        base: of a checkpoint with an adapter, its base model, as ``model.base`` takes it; None is the one that its run
            named, if it is a run below ``root``.

    Returns:
        A [TrainedModel][tinytf.run.loading.TrainedModel]: ``.model``, ``.tokenizer``, ``.generate("text")``.

    Raises:
        tinytf.errors.UserError: where there is no such checkpoint or device, or the file is damaged or not tinytf's.
    """
    from tinytf.run.loading import load_checkpoint

    return load_checkpoint(ckpt_path, name, root, device, base)
