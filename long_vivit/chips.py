"""Accelerators: how fast one device computes and how much it holds, by JAX's name of its kind.

Peaks are dense bfloat16 products without sparsity, as the vendors' data sheets say. Memory is the
data sheet's as well, in units of 10^9 bytes: drivers keep a little, and the true size is a little
more. A chip that is not here has no utilisation: none is guessed.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Chip(NamedTuple):
    """What one JAX device of a kind is; `kinds` are its names in `jax.Device.device_kind`."""

    peak_flops: float  # per second
    memory_bytes: float
    kinds: tuple[str, ...]


def _chip(tera_flops: float, gigabytes: float, *kinds: str) -> Chip:
    return Chip(tera_flops * 1e12, gigabytes * 1e9, kinds)


CHIPS = {  # the names for `--chip`
    'v4': _chip(275, 32, 'TPU v4'),
    'v5e': _chip(197, 16, 'TPU v5 lite', 'TPU v5e'),
    'v5p': _chip(459, 95, 'TPU v5', 'TPU v5p'),
    'v6e': _chip(918, 32, 'TPU v6 lite', 'TPU v6e'),
    '7x': _chip(2307 / 2, 192 / 2, 'TPU7x'),  # a chip has two cores, each a device of its own
    'a100-40': _chip(312, 40, 'NVIDIA A100-SXM4-40GB', 'NVIDIA A100-PCIE-40GB'),
    'a100-80': _chip(312, 80, 'NVIDIA A100-SXM4-80GB', 'NVIDIA A100 80GB PCIe'),
    'h100': _chip(989, 80, 'NVIDIA H100 80GB HBM3'),
    'h100-pcie': _chip(756, 80, 'NVIDIA H100 PCIe'),
    'h200': _chip(989, 141, 'NVIDIA H200'),
    'b200': _chip(2250, 180, 'NVIDIA B200'),
    'l4': _chip(121, 24, 'NVIDIA L4'),
    'l40s': _chip(362, 48, 'NVIDIA L40S'),
    'rtx4090': _chip(165.2, 24, 'NVIDIA GeForce RTX 4090'),
}


def of_kind(device_kind: str) -> Chip | None:
    """The chip that JAX calls `device_kind`, or None where it is not in the table."""
    for chip in CHIPS.values():
        if device_kind in chip.kinds:
            return chip
    return None


def named(name: str) -> Chip:
    """The chip of a `--chip` name. Raises ValueError where there is none."""
    if name not in CHIPS:
        raise ValueError(f'--chip={name}: not known; it must be one of {", ".join(CHIPS)}')
    return CHIPS[name]


def peak_flops(devices: Sequence) -> float | None:
    """FLOP/s of JAX devices of one kind together, or None where their chip is not known."""
    chip = of_kind(devices[0].device_kind)
    return None if chip is None else chip.peak_flops * len(devices)
