"""What the card can do at all: matrix products in torch, and where a graph's time goes.

Letters: T tokens, D width, F feed-forward width.
"""

from collections.abc import Callable, Iterator
from statistics import median
from time import perf_counter

import torch

from bench.gpu.rows import Row
from heed.bundle.manifest import Device

SHOWN = 8  # kernels


def _synchronise(device: Device) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _rate(shape: tuple[int, int, int], dtype: torch.dtype, device: Device, rounds: int) -> float:
    """Floating-point operations per second of one product, over and over: `[m, k] @ [k, n]`."""
    m, k, n = shape
    left, right = torch.randn(m, k, dtype=dtype, device=device), torch.randn(k, n, dtype=dtype, device=device)
    out = left @ right
    seconds = []
    for _ in range(rounds):
        _synchronise(device)
        started = perf_counter()
        for _ in range(10):
            torch.matmul(left, right, out=out)
        _synchronise(device)
        seconds.append((perf_counter() - started) / 10)
    return 2 * m * k * n / median(seconds)


def matrix_rates(widths: dict[str, int], largest: int, tokens: int, device: Device, rounds: int) -> Iterator[Row]:
    """The largest product there is, and those of the models' linear layers: what other rates are held against.

    Args:
        widths: D of each model; F is 4 D.
    """
    torch.set_float32_matmul_precision("highest")  # no TF32
    shapes = {f"{largest}³": (largest, largest, largest)}
    for name, width in widths.items():
        shapes |= {
            f"{name}, attention": (tokens, width, width),
            f"{name}, feed-forward up": (tokens, width, 4 * width),
            f"{name}, feed-forward down": (tokens, 4 * width, width),
        }
    for name, shape in shapes.items():
        rates = {label: _rate(shape, dtype, device, rounds) for label, dtype in _DTYPES.items()}
        found = ", ".join(f"{label} {rate / 1e12:.2f} TFLOP/s" for label, rate in rates.items())
        yield Row("rates", name, found, None, rates)


_DTYPES = {"fp16": torch.float16, "fp32 without TF32": torch.float32}


def kernels(part: str, what: str, run: Callable[[], object]) -> Iterator[Row]:
    """Where a GPU's time goes: the kernels that take most of it, whoever started them."""
    run()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
        torch.cuda.synchronize()
    times = {event.key: float(event.self_device_time_total) for event in profile.key_averages()}
    total = sum(times.values())
    longest = sorted(times, key=lambda name: -times[name])[:SHOWN]
    found = "; ".join(f"{times[name] / total:.0%} {name[:60]}" for name in longest)
    yield Row(part, what, f"{total / 1000:.2f} ms: {found}", None, {name: times[name] / total for name in times})
