"""SVDiff: train the singular values of a weight and keep its singular vectors (Han et al. 2023).

    W = U diag(s) V'     ->     W(delta) = U diag(relu(s + delta)) V'

One number for each singular value trains, the spectral shift delta. Singular values stay positive
by the relu. A convolution's kernel is flattened to (O, I k k). Every linear layer and convolution
of the denoiser is shifted unless --lora_target_modules names others; biases and norms are frozen.
The paper's data augmentation (cut-mix-unmix) is not built here.

The weight change is U diag(d) V' with d = relu(s + delta) - s, and U and V have orthonormal
columns, so its squared norm costs nothing:

    ||Delta W||^2 = ||d||^2 = sum of delta_i^2 where s_i + delta_i > 0, of s_i^2 elsewhere

The second case is the relu's: once a singular value is 0 it stays there, however far delta goes on.

The weight is computed as W + U diag(d) V', so delta = 0 gives the base to the bit. U and V are
kept in float32: two more copies of the weights at most. They are a function of the base; a file of
shifts alone restores the model, to rounding, on any machine (a pair of singular vectors may change
its sign there, which changes nothing).

Shapes: O outputs, I inputs (a convolution's kernel included), k = min(O, I) singular values.
"""

from pathlib import Path
from types import SimpleNamespace

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from personalize.pipeline.model import Model
from toy2d.runs.files import UserError

FILE = "spectral_shifts.safetensors"
PLACE = ".parametrizations.weight.0"  # of a SpectralShift, below its layer's name
LAYERS = (nn.Linear, nn.Conv2d)


class SpectralShift(nn.Module, BaseTunerLayer):
    """torch's parametrization of one weight, switched off and on like a layer of PEFT."""

    adapter_layer_names = ("spectral_shift",)

    def __init__(self, weight: nn.Parameter):
        super().__init__()
        matrix = weight.detach().float().flatten(1)
        U, s, Vh = torch.linalg.svd(matrix, full_matrices=False)
        for name, tensor in (("U", U), ("s", s), ("Vh", Vh)):  # O k, k, k I
            self.register_buffer(name, tensor, persistent=False)
        self.spectral_shift = nn.ParameterDict({"default": nn.Parameter(torch.zeros_like(s))})
        self.scaling = {"default": 1.0}
        self._weight = [weight]  # in a list: it belongs to the layer, not to this module

    def get_base_layer(self) -> SimpleNamespace:
        return SimpleNamespace(weight=self._weight[0])

    def enable_adapters(self, enabled: bool) -> None:
        self._disable_adapters = not enabled

    def moved(self) -> Tensor:
        """d = relu(s + delta) - s (k): how far each singular value has moved."""
        return torch.relu(self.s + self.spectral_shift["default"]) - self.s

    def delta_weight(self) -> Tensor:
        """U diag(d) V' (O I), in float32."""
        with torch.autocast(self.s.device.type, enabled=False):
            return self.U @ (self.moved()[:, None] * self.Vh)

    def forward(self, weight: Tensor) -> Tensor:
        if self.disable_adapters:
            return weight
        return (weight.float() + self.delta_weight().view_as(weight)).to(weight.dtype)

    @torch.no_grad()
    def clamp_(self) -> None:
        """delta <- max(delta, -s). The weight stays as it is, and is linear in delta from there."""
        self.spectral_shift["default"].clamp_(min=-self.s)


def add_spectral_shifts(
    network: nn.Module, targets: tuple[str, ...] = (), excluded: list[str] | None = None
) -> None:
    """Shift every linear layer and convolution whose name ends in one of `targets`; none: all.

    Raises UserError for a target that fits none.
    """
    layers = {f".{n}": m for n, m in network.named_modules() if isinstance(m, LAYERS)}
    ends = tuple(f".{t}" for t in targets)
    if missing := [t for t in targets if not any(n.endswith(f".{t}") for n in layers)]:
        raise UserError(
            f"--lora_target_modules {' '.join(missing)}: {type(network).__name__} has no such "
            "linear layer or convolution"
        )
    skipped = {f".{name}" for name in excluded or ()}
    for name, module in layers.items():
        if name not in skipped and (not ends or name.endswith(ends)):
            shift = SpectralShift(module.weight)
            parametrize.register_parametrization(module, "weight", shift, unsafe=True)


def shifts_of(network: nn.Module) -> dict[str, Tensor]:
    """{"down_blocks.0....to_q.delta": shift (k)} of a network; empty if it has none."""
    return {
        f"{name.removesuffix(PLACE)}.delta": module.spectral_shift["default"]
        for name, module in network.named_modules()
        if isinstance(module, SpectralShift)
    }


@torch.no_grad()
def merge_spectral_(network: nn.Module) -> nn.Module:
    """Replace every shifted weight by its value, in place; returns the network.

    torch's remove_parametrizations changes the layer's class, which copies of the layer share.
    """
    for module in list(network.modules()):
        if parametrize.is_parametrized(module, "weight"):
            weight = module.weight
            del module.parametrizations
            module.__class__ = parametrize.type_before_parametrizations(module)
            module.weight = nn.Parameter(weight, requires_grad=False)
    return network


# ---- files of shifts
@torch.no_grad()
def read_shifts(networks: dict[str, nn.Module], folder: Path) -> None:
    """Put the shifts of a folder onto the networks of its base.

    FILE holds a tensor for each layer, such as "unet.mid_block.resnets.0.conv1.delta". Raises
    UserError if they do not fit.
    """
    by_part: dict[str, dict[str, Tensor]] = {}
    for key, shift in load_file(folder / FILE).items():
        part, _, name = key.partition(".")
        by_part.setdefault(part, {})[name] = shift
    for part, shifts in by_part.items():
        layers = dict(networks[part].named_modules()) if part in networks else {}
        names = [key.removesuffix(".delta") for key in shifts]
        if foreign := [n for n in names if not isinstance(layers.get(n), LAYERS)]:
            raise UserError(f"{folder / FILE}: the base has no layer {part}.{foreign[0]}")
        others = [n for n, m in layers.items() if isinstance(m, LAYERS) and n not in names]
        add_spectral_shifts(networks[part], excluded=others)
        for key, own in shifts_of(networks[part]).items():
            if own.shape != shifts[key].shape:
                raise UserError(
                    f"{folder / FILE}: {part}.{key} has {len(shifts[key])} numbers, the base's "
                    f"layer {len(own)} singular values"
                )
            own.copy_(shifts[key])


def shift_tensors(model: Model) -> dict[str, Tensor]:
    """What FILE holds."""
    return {
        f"{part}.{key}": shift.detach().cpu().contiguous()
        for part, network in model.parts.items()
        for key, shift in shifts_of(network).items()
    }


def merge_shifts(pipeline, folder: Path) -> None:
    """Give a pipeline of the same base the trained weights of a folder of shifts."""
    networks = {n: m for n, m in pipeline.components.items() if isinstance(m, nn.Module)}
    read_shifts(networks, folder)
    for network in networks.values():
        merge_spectral_(network)
