"""Chains of the base's ancestral sampler, with its answers at every node: sampled once, then kept.

The sampler that path KL is about: ancestral, variance beta, `measure_nodes` of the schedule's
timesteps, no guidance.
Shapes: N chains of a group, T nodes, D data.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from personalize.config.train_config import TrainConfig
from toy2d.core.drift import Predict
from toy2d.core.rng import generator
from toy2d.core.sample import ancestral
from toy2d.core.schedule import Schedule
from toy2d.runs.folder import load_tensors, save_tensors

KEPT = 20  # files of chains that runs share; 40 MB each for SD-1.5 at 512 px
Groups = dict[str, tuple[str, ...]]  # name -> prompts


def prompt_groups(config: TrainConfig) -> Groups:
    """Prompts that personalizing may hurt: the class, the class elsewhere, and unrelated ones."""
    groups = {
        "class": config.class_prompts,
        "contexts": config.context_prompts,
        "unrelated": config.unrelated_prompts,
    }
    return {name: prompts for name, prompts in groups.items() if prompts}


def in_chunks(predict: Predict, size: int) -> Predict:
    """The same predictor, `size` samples at a time."""

    def chunked(x_t, t, prompts):
        starts = range(0, len(x_t), size)
        cuts = [slice(i, i + size) for i in starts]
        return torch.cat([predict(x_t[cut], t[cut], prompts[cut]) for cut in cuts])

    return chunked


@dataclass(frozen=True)
class ChainSampling:
    """Which chains: so many for each prompt of each group, over so many nodes of the schedule."""

    groups: Groups
    shape: tuple[int, ...]  # of one latent
    chains: int = 4  # for each prompt
    nodes: int = 10
    seed: int = 0
    batch_size: int = 4

    def prompts(self, group: str) -> list[str]:
        """The prompt of each chain."""
        return [p for p in self.groups[group] for _ in range(self.chains)]


def at_once(config: TrainConfig) -> int:
    """Samples in one forward pass of a measurement: without gradients a training batch fits too."""
    return max(config.sample_batch_size, config.train_batch_size)


def chain_sampling(config: TrainConfig, shape: tuple[int, ...]) -> ChainSampling:
    return ChainSampling(
        prompt_groups(config),
        shape,
        config.measure_chains,
        config.measure_nodes,
        config.seed,
        at_once(config),
    )


def base_chain(
    predict: Predict,
    schedule: Schedule,
    prompts: list[str],
    shape: tuple[int, ...],
    rng: torch.Generator,
) -> Tensor:
    """(T, N, D): one ancestral chain for each of N prompts, entry t at node t of `schedule`."""
    x_T = torch.randn(len(prompts), *shape, generator=rng).to(schedule.alpha_bar.device)
    return torch.stack(ancestral(predict, schedule, x_T, prompts, rng, chain=True))


@dataclass(frozen=True)
class Chains:
    """One group's chains, and the base's answers along them."""

    schedule: Schedule
    prompts: list[str]  # N
    x: Tensor  # T N D
    answers: Tensor  # T N D; entry 0 is not used

    def base(self, x_t: Tensor, t: Tensor, prompts) -> Tensor:
        """The base as a Predict, on the chains alone: sample i of the batch must be chain i."""
        node = torch.searchsorted(self.schedule.timesteps, t)
        return self.answers[node, torch.arange(len(t), device=t.device)]


def make_chains(predict: Predict, schedule: Schedule, sampling: ChainSampling) -> dict[str, Chains]:
    """Sample the base's chains and note its answers; call it before anything trains."""
    short, groups = schedule.strided(sampling.nodes), {}
    predict = in_chunks(predict, sampling.batch_size)
    for name in sampling.groups:
        prompts, noted = sampling.prompts(name), []

        def noting(x_t, t, cond, noted=noted):
            noted.append(predict(x_t, t, cond))
            return noted[-1]

        rng = generator(sampling.seed, f"probe/{name}")
        x = base_chain(noting, short, prompts, sampling.shape, rng)
        answers = torch.stack([torch.zeros_like(x[0]), *reversed(noted)])  # noted from T-1 to 1
        groups[name] = Chains(short, prompts, x, answers)
    return groups


def shared_file(base_hash: str, schedule: Schedule, sampling: ChainSampling, dtype: str) -> Path:
    """Where all runs of one base, prompts and sampler keep their chains together.

    $DRIFTLAB_CACHE/chains/KEY.safetensors; without that variable below $XDG_CACHE_HOME or ~/.cache.
    Chains are functions of what the key is made from, so a file may be deleted at any time.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("DRIFTLAB_CACHE") or Path(home) / "driftlab")
    settings = {k: v for k, v in asdict(sampling).items() if k != "batch_size"}
    short = schedule.strided(sampling.nodes)
    nodes = [short.alpha_bar.tolist(), short.timesteps.tolist(), short.prediction]
    made_from = json.dumps([base_hash, settings, nodes, dtype], sort_keys=True)
    key = hashlib.sha256(made_from.encode()).hexdigest()[:20]
    return folder / "chains" / f"{key}.safetensors"


def forget_oldest(folder: Path, keep: int = KEPT) -> None:
    """Delete all but the `keep` files of `folder` that were made last: chains can be made again."""
    files = sorted(folder.glob("*.safetensors"), key=lambda f: f.stat().st_mtime)
    for file in files[:-keep]:
        file.unlink(missing_ok=True)


def writable(file: Path, otherwise: Path) -> Path:
    """`file`, or `otherwise` where its folder can neither be found nor made."""
    if file.exists():
        return file
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return otherwise
    return file if os.access(file.parent, os.W_OK) else otherwise


def kept_chains(
    file: Path, predict: Predict, schedule: Schedule, sampling: ChainSampling
) -> dict[str, Chains]:
    """`make_chains`, kept in `file`: a resumed run is measured on the very same chains."""
    if not file.exists():
        made = make_chains(predict, schedule, sampling)
        parts = [(part, name) for name in made for part in ("x", "answers")]
        save_tensors(file, {f"{part}/{name}": getattr(made[name], part) for part, name in parts})
    kept = load_tensors(file)
    device, short = schedule.alpha_bar.device, schedule.strided(sampling.nodes)
    return {
        name: Chains(
            short,
            sampling.prompts(name),
            kept[f"x/{name}"].to(device),
            kept[f"answers/{name}"].to(device),
        )
        for name in sampling.groups
    }


def shared_chains(
    predict: Predict,
    schedule: Schedule,
    sampling: ChainSampling,
    base_hash: str,
    dtype: str,
    otherwise: Path,
) -> dict[str, Chains]:
    """`kept_chains` in the file that all runs of this base share.

    In `otherwise` where the shared file cannot be written.
    """
    shared = shared_file(base_hash, schedule, sampling, dtype)
    file = writable(shared, otherwise)
    chains = kept_chains(file, predict, schedule, sampling)
    if file == shared:
        forget_oldest(shared.parent)
    return chains
