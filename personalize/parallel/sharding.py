"""Divide one network among several processes (FSDP2, ZeRO-3).

Each process holds a share of every weight, gradient, moment, anchor and average. `shard_` divides
the denoiser once everything that needs the base has been computed. Its parameters are then
DTensors, which torch's optimizers and toy2d's distances take like tensors. `whole` puts one back
together and `cut` takes this process's share of one, so files are the same with and without
sharding.
"""

import torch.distributed as dist
from accelerate.utils import FullyShardedDataParallelPlugin, parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from personalize.config.train_config import TrainConfig
from toy2d.runs.files import UserError


def sharding() -> FullyShardedDataParallelPlugin | None:
    """The launcher's FSDP settings, if it uses FSDP. (On a CPU accelerate's state does not say.)"""
    return FullyShardedDataParallelPlugin() if parse_flag_from_env("ACCELERATE_USE_FSDP") else None


def refuse_what_is_not_sharded(config: TrainConfig) -> None:
    """Raises UserError for FSDP settings and flags that would not work or have no effect."""
    if (fsdp := sharding()) is None:
        return
    shipped = "start from personalize/parallel/configs/fsdp.yaml"
    without = "start with personalize/parallel/configs/gpus.yaml"
    refusals = (
        (fsdp.fsdp_version != 2, f"FSDP is built as its version 2 only; {shipped}"),
        (
            isinstance(fsdp.cpu_offload, CPUOffloadPolicy),
            f"fsdp_offload_params has no effect: shares stay on their device; {shipped}",
        ),
        (
            fsdp.cpu_ram_efficient_loading,
            f"fsdp_cpu_ram_efficient_loading: every process reads the base itself; {shipped}",
        ),
        (
            fsdp.activation_checkpointing,
            "fsdp_activation_checkpointing: use --gradient_checkpointing instead",
        ),
        (
            config.train != "full",
            f"--train {config.train} moves so little that FSDP would save nothing of it: {without}",
        ),
        (
            config.train_text_encoder,
            "--train_text_encoder: FSDP shards the denoiser only; "
            f"leave the flag out, or {without}",
        ),
        (
            config.use_8bit_adam,
            "--use_8bit_adam cannot hold the moments of a share; FSDP divides them already",
        ),
        (
            config.anchor_device == "cpu",
            "--anchor_device cpu has no effect: FSDP divides the anchor like the weights",
        ),
        (
            config.mixed_precision == "fp16",
            "--mixed_precision fp16: its loss scaling is not built for FSDP; use bf16",
        ),
        (
            config.use_ema and not fsdp.reshard_after_forward,
            "--use_ema needs fsdp_reshard_after_forward: true",
        ),
    )
    for refused, reason in refusals:
        if refused:
            raise UserError(reason)


def shard_(network: nn.Module, device: str) -> None:
    """Shard the network in place, if the launcher uses FSDP.

    Blocks (diffusers' `_no_split_modules`) are gathered one at a time. Gradients arrive sharded,
    and averaged over the processes.
    """
    fsdp = sharding()
    if fsdp is None or not dist.is_initialized():
        return
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for module in reversed(list(network.modules())):  # from the inside out
        if module is network or type(module).__name__ in network._no_split_modules:
            fully_shard(module, mesh=mesh, reshard_after_forward=fsdp.reshard_after_forward)


def sharded(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor; every process must call it. A plain tensor is returned."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's share of a tensor that all have whole, sharded like `like`.

    A single number (Adam's step) stays whole.
    """
    if not isinstance(like, DTensor) or not tensor.ndim:
        return tensor
    there = tensor.to(like.device)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)


def gathered(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """The tensors as wholes, gathered one by one into the host's memory; empty unless `keep`.

    Every process must call it.
    """
    parts = {}
    for name, t in tensors.items():
        together = whole(t)
        if keep:
            parts[name] = together.cpu() if sharded(t) else t
    return parts


def reassembled(network: nn.Module, keep: bool) -> nn.Module:
    """The network as it was before `shard_`, in the host's memory, for the process that writes.

    Every process must call it.
    """
    if not isinstance(network, FSDPModule):
        return network
    state = gathered(network.state_dict(), keep)
    if not keep:
        return network
    plain = type(network).from_config(network.config)  # of the class before it was sharded
    plain.load_state_dict(state)
    return plain
