"""Random numbers: one independent generator for each role, so that objectives share their noise."""

import hashlib

import torch


def generator(seed: int, role: str) -> torch.Generator:
    """An independent stream for a seed and a role, such as "data", "init" or "probe"."""
    digest = hashlib.sha256(f"{seed}/{role}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
