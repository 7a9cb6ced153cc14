"""How many floating-point operations per second a device can do at most: what MFU is a share of."""

from __future__ import annotations

import contextlib
import json
import time

import torch

from tinytf.data.config import cache_root
from tinytf.utils.files import atomic_write
from tinytf.utils.machine import cpu_name

# Dense (without sparsity) matrix products in bfloat16 with float32 accumulation, float16 if the chip has no bfloat16,
# as NVIDIA's and AMD's data sheets of each product state them. The first name that is part of the device's name
# counts, so the longer ones come first.
# Lightning has such a table (lightning.fabric.utilities.throughput.get_available_flops), but it knows no B200, GB200,
# GH200, A30 and MI300X, finds an H200 only under names that drivers do not give, and takes an L40S (362 TFLOP/s) for
# an L4 (121): an MFU three times too high.
GPU_PEAKS = {
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10G": 70e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
    "MI300X": 1307e12,
}

GEFORCE = {
    "RTX 5090": (170, 2407), "RTX 5080": (84, 2617), "RTX 5070 Ti": (70, 2452), "RTX 5070": (48, 2512),
    "RTX 5060 Ti": (36, 2572), "RTX 5060": (30, 2497), "RTX 5050": (20, 2572),
    "RTX 4090": (128, 2520), "RTX 4080 SUPER": (80, 2550), "RTX 4080": (76, 2505), "RTX 4070 Ti SUPER": (66, 2610),
    "RTX 4070 Ti": (60, 2610), "RTX 4070 SUPER": (56, 2475), "RTX 4070": (46, 2475), "RTX 4060 Ti": (34, 2535),
    "RTX 4060": (24, 2460),
    "RTX 3090 Ti": (84, 1860), "RTX 3090": (82, 1695), "RTX 3080 Ti": (80, 1665), "RTX 3080": (68, 1710),
    "RTX 3070 Ti": (48, 1770), "RTX 3070": (46, 1725), "RTX 3060 Ti": (38, 1665), "RTX 3060": (28, 1777),
}  # fmt: skip
"""Multiprocessors and boost clock in MHz of desktop cards, as NVIDIA's whitepapers (GA102, Ada, RTX Blackwell) and
product pages state them. A laptop's chip of the same name has fewer, and a clock that its maker chooses; the RTX 3050
was sold with 18 and with 20. The RTX 3080 of 12 GB, which the driver calls the same, has 70."""

GEFORCE_FLOPS = 512
"""Of one multiprocessor per clock, in bfloat16 with float32 accumulation, in all three generations. It gives what
the whitepapers state: 71 TFLOP/s for the RTX 3090, 165.2 for the 4090, 209.5 for the 5090. Twice that is theirs with
float16 accumulation or with sparsity, which training does not use; Lightning's table has half."""

KNOWN_GPUS = (*GPU_PEAKS, *GEFORCE)

SIZE = 1024
"""Rows and columns of the measured product: large enough for full speed, small enough for 0.1 s on one core."""

SMALL = 128

SECONDS = 0.1
"""For each type; a product takes 5 to 30 ms on one core."""


def peak_flops(device: torch.device) -> float | None:
    """Peak FLOP/s in the device's fastest matrix type that trains, whatever the run uses; None if unknown."""
    if device.type == "cuda":
        return gpu_peak(torch.cuda.get_device_name(device))
    if device.type == "cpu":
        return cpu_peak()
    return None


def gpu_peak(name: str) -> float | None:
    """By the device's name; None for one that is not in the tables, because a guess would look like a measurement."""
    words = name.replace("-", " ").split()
    # Of a GeForce the whole name counts: "RTX 4090 Laptop GPU" and "RTX 4090 D" are other chips than "RTX 4090".
    model = " ".join(word for word in words if word.upper() not in ("NVIDIA", "GEFORCE")).upper()
    for known, (multiprocessors, megahertz) in GEFORCE.items():
        if model == known.upper():
            return multiprocessors * megahertz * 1e6 * GEFORCE_FLOPS
    for known, peak in GPU_PEAKS.items():
        wanted = known.split()
        if any(words[at : at + len(wanted)] == wanted for at in range(len(words))):
            return peak
    return None


def cpu_peak() -> float:
    """The fastest of a few matrix products on this process's threads, now or in an earlier process on this machine.

    Measured at each start (0.2 s), because one measurement on a busy machine, cached for ever, shows an MFU over 1.
    """
    path = cache_root(None) / "cpu_peak.json"
    key = f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    try:
        known = json.loads(path.read_text())
        known = {name: float(flops) for name, flops in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):  # None yet, or not what was written here.
        known = {}
    measured, before = measure_peak_flops(), known.get(key, 0.0)
    if measured > before:
        known[key] = measured
        # A cache that cannot be written costs a measurement in each run, nothing more.
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(json.dumps(known, indent=1).encode())
    return max(measured, before)


def measure_peak_flops() -> float:
    """FLOP/s of the fastest product, in float32 or bfloat16, within SECONDS each."""
    dtypes = [torch.float32]
    # Hardware without bfloat16 emulates it a hundred times slower, and one large product would take seconds.
    if _product_seconds(torch.bfloat16, SMALL) < 4 * _product_seconds(torch.float32, SMALL):
        dtypes.append(torch.bfloat16)
    return max(2 * SIZE**3 / _product_seconds(dtype, SIZE) for dtype in dtypes)


@torch.inference_mode()
def _product_seconds(dtype: torch.dtype, size: int) -> float:
    # A generator of its own: the run's random numbers are not touched.
    a = torch.rand(size, size, generator=torch.Generator().manual_seed(0)).to(dtype)
    torch.mm(a, a)
    best, deadline = float("inf"), time.perf_counter() + SECONDS * size / SIZE
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - start)
    return best
