"""run(config) -> the run folder: pictures, class images, caches, training, measurement, outputs. Resumes by itself.

Everything that depends on the base alone is made before the first step (prepare.py), so a checkpoint holds only what moves.
The same command continues a killed run bit for bit.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator

from personalize.adapters.trainable import choose_as, trainable
from personalize.config.rules import refuse_for_model, resolve
from personalize.config.train_config import TrainConfig
from personalize.data.latents import PromptCache
from personalize.data.photos import Scan, hash_of
from personalize.data.subjects import scan_subjects
from personalize.drift import gain, measure
from personalize.export.formats import leave
from personalize.export.model_card import model_card
from personalize.parallel.processes import (
    keep_step,
    opened_by_one,
    processes_at_start,
    processes_here,
)
from personalize.parallel.sharding import gathered, reassembled, shard_, sharding, whole
from personalize.pipeline.load import load
from personalize.pipeline.model import Model
from personalize.sample.validate import Validation
from personalize.train.from_base import DTYPES, importance, make_anchors, make_pools, stored_answers
from personalize.train.loop import Run, Streams, fit, objective_of
from personalize.train.setup import Clock, make_accelerator, make_state, peak_memory, with_steps
from personalize.train.state import State, read_checkpoint
from personalize.train.timesteps import node_weights
from toy2d.runs.files import UserError, read_csv, write_csv, write_json
from toy2d.runs.folder import RunFolder, environment

NOT_OF_THE_RUN = (
    "resume_from_checkpoint",
    "dry_run",
    "report_to",
)  # these do not change its numbers
PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate")


def run(
    config: TrainConfig, say: Callable[[str], None] = print, chains: Path | None = None
) -> Path:
    """Make, continue or find the run that `config` describes. Raises UserError, RunFailure or Stopped, one line each.

    `chains`: a file of base chains that runs of the same base, prompts and seed share; made if it is not there.
    """
    command, begun = config.command(), processes_at_start(config.output_dir)
    config, pictures = read(config, begun)
    folder = RunFolder(config.output_dir, recorded(config), "--output_dir")
    config = keep_step(config, begun, processes_here())
    accelerator = make_accelerator(config)
    say = say if accelerator.is_main_process else lambda text: None
    with opened_by_one(folder, accelerator):
        if folder.status == "done":
            say(f"{folder.path} is done already")
        else:
            try:
                Experiment(config, pictures, folder, accelerator, say, chains).run(command)
            except UserError:
                if accelerator.is_main_process:
                    forget_refused(folder.path)
                raise
    return folder.path


def forget_refused(path: Path) -> None:
    """What was refused before its first row leaves the folder free for the mended command."""
    if not (path / "history.csv").exists():
        for name in ("config.json", "env.json"):
            (path / name).unlink(missing_ok=True)
        for name in ("cache", "figures"):
            shutil.rmtree(path / name, ignore_errors=True)


def read(config: TrainConfig, processes: int = 1) -> tuple[TrainConfig, Scan]:
    """The first second of a run: every flag and every picture is looked at. Raises UserError listing all that is wrong."""
    config = resolve(config, processes)
    pictures = scan_subjects(config)
    return with_steps(config, len(pictures.require()), processes), pictures


def recorded(config: TrainConfig) -> dict:
    """What config.json holds. Without held-out pictures nothing is said of them, as before 0.2."""
    unused = () if config.holds_out else ("held_out", "held_out_data_dir", "gain_samples")
    return {k: v for k, v in asdict(config).items() if k not in (*NOT_OF_THE_RUN, *unused)}


class Experiment:
    """The parts of one run, in order; `run` is their table of contents."""

    def __init__(
        self, config: TrainConfig, pictures: Scan, folder: RunFolder, accelerator: Accelerator, say, chains: Path | None = None
    ):  # fmt: skip
        self.config, self.pictures, self.folder = config, pictures, folder
        self.accelerator, self.device, self.say = accelerator, accelerator.device, say
        self.writes = accelerator.is_main_process  # of several processes one writes
        self.cache, self.clock, self.chains = folder.path / "cache", Clock(), chains
        self.rows, self.paths = [], None  # of history.csv; path KL as last measured

    def run(self, command: str) -> None:
        with self.clock("load"):
            self.open_model()
        with self.clock("pictures"), self.accelerator.main_process_first():
            pools = make_pools(self.config, self.model, self.pictures, self.resolution)
            self.held_pictures = self.encode_held_out()
        with self.clock("base"):
            self.choose_what_trains()
            self.embed(pools)
        self.draw_the_base()
        with self.clock("base"):
            self.ask_the_base(pools)
        self.start_or_resume()
        self.say(self.describe())
        fit(self.loop, self.state, self.accelerator, self.observe, self.save)
        self.finish(command)

    # ---- the base, and what of it moves
    def open_model(self) -> None:
        c = self.config
        dtype = DTYPES[c.mixed_precision] if c.kind.keeps_base else torch.float32
        source = c.pretrained_model_name_or_path
        self.model: Model = load(source, c.revision, c.variant, dtype, c.without_t5).to(self.device)
        refuse_for_model(c, self.model.schedule.prediction == "flow")
        if c.mixed_precision == "fp16" and self.model.vae.config.force_upcast:
            self.say("the VAE computes in float32: in float16 it overflows")
        self.resolution = c.resolution or self.model.default_resolution
        self.shape = self.model.latent_shape(self.resolution)
        with self.accelerator.main_process_first():
            self.check_identity()

    def check_identity(self) -> None:
        """A run goes on only with the base, the pictures and the thread count it began with."""
        identity = {"base_hash": self.model.hash(), "data_hash": self.pictures.hash()}
        if self.pictures.held_out:
            identity["held_out_hash"] = hash_of(self.pictures.held_out)
        file = self.folder.path / "env.json"
        if not file.exists():
            more = self.where() | {"seed": self.config.seed}
            write_json(file, environment(PACKAGES) | more | identity)
            return
        before = json.loads(file.read_text())
        names = {
            "base_hash": "the base model",
            "data_hash": "a picture or caption",
            "held_out_hash": "a held-out picture or its caption",
        }
        changed = [names[k] for k, v in identity.items() if before.get(k) != v]
        if changed:
            raise UserError(
                f"{' and '.join(changed)} changed since {self.folder.path} was begun: "
                "put it back, or choose another --output_dir"
            )
        torch.set_num_threads(before["threads"])  # another thread count may round differently
        for what, now in self.where().items():
            if before.get(what, now) != now:
                self.say(f"begun with {what} {before[what]}, continued with {now}: equal to rounding, not to the bit")  # fmt: skip

    def where(self) -> dict:
        """What changes the last bits of a run, and nothing else."""
        return {"device": self.device.type, "processes": processes_here(), "sharded": sharding() is not None}  # fmt: skip

    def encode_held_out(self) -> gain.Pictures | None:
        """The held-out pictures' latents and prompts; None if every picture trains."""
        if not self.pictures.held_out:
            return None
        return gain.encode_held_out(
            self.model, self.config, self.pictures.held_out, self.resolution
        )

    def choose_what_trains(self) -> None:
        c = self.config
        self.theta = choose_as(self.model, c)
        if c.gradient_checkpointing:
            self.model.denoiser.enable_gradient_checkpointing()
            for encoder in self.trained_parts()[1:]:
                encoder.gradient_checkpointing_enable()

    def embed(self, pools: dict) -> None:
        """Every prompt of the run, once; live ones too where the text encoder stands still. Then memory is freed."""
        spoken = [p for pool in pools.values() for p in pool.prompts]
        measured = [p for group in measure.prompt_groups(self.config).values() for p in group]
        for prompt in dict.fromkeys(spoken):
            if lost := self.model.lost_text(prompt):
                self.say(f"the text encoder reads only the beginning of {prompt[:60]!r}...; lost: {lost!r}")  # fmt: skip
        if self.held_pictures is not None:
            measured += [p for group in self.held_pictures.prompts.values() for p in group]
        self.base_prompts = PromptCache(self.model).add(spoken + measured)
        self.model.unload("vae")
        if self.config.text_trains:
            self.prompts = PromptCache(self.model, cache=False)
        else:
            self.prompts = self.base_prompts
            self.model.unload("text_encoders")

    def predict(self, x_t, t, prompts):
        """The live model. Training and measuring compute in the same precision."""
        with self.accelerator.autocast():
            return self.model.predict(x_t, t, self.prompts(prompts))

    def predict_base(self, x_t, t, prompts):
        """The base: adapters off, its own embeddings."""
        with self.accelerator.autocast(), self.model.base():
            return self.model.predict(x_t, t, self.base_prompts(prompts))

    def draw_the_base(self) -> None:
        self.validation = Validation(self.config, self.model, self.folder.path / "figures", self.writes)  # fmt: skip
        with self.accelerator.main_process_first(), self.model.evaluating(), self.clock("validation"), self.accelerator.autocast():  # fmt: skip
            self.validation.keep_base()

    def ask_the_base(self, pools: dict) -> None:
        """Chains, importance and answers, the last that one process asks alone; then the network is sharded, and anchored where it stands."""
        c, model, schedule = self.config, self.model, self.model.schedule
        scheme = c.weighting_scheme or model.family.weighting
        ranks = self.accelerator.process_index, self.accelerator.num_processes
        streams = Streams(pools, c, len(schedule), scheme, *ranks)
        asking = self.predict, self.shape, self.cache
        with self.accelerator.main_process_first(), model.evaluating():
            with self.clock("chains"):
                file = self.chains or self.cache / "chains.safetensors"
                sampling = measure.chain_sampling(c, self.shape)
                chains = measure.kept_chains(file, self.predict, schedule, sampling)
                self.learning = self.base_errors()
            if c.uses("fisher"):
                importance(c, model, self.theta, *asking)
            base = None
            if c.uses("output"):
                base = self.predict_base
                if not c.kind.keeps_base:
                    base = stored_answers(c, streams, self.predict, schedule, self.cache)
        shard_(model.denoiser, self.device.type)
        self.theta = trainable(model)
        anchors, theta_star = make_anchors(c, model, self.theta, *asking)
        self.drift = measure.DriftMeter(
            model, self.theta, theta_star, self.predict, chains, c.sample_batch_size
        )
        weights = node_weights(c, scheme, schedule)
        self.loop = Run(c, schedule, self.predict, objective_of(c), anchors, streams, base, weights)

    def base_errors(self) -> gain.HeldOut | None:
        """The base's errors on the held-out pictures, from which gain is counted."""
        if self.held_pictures is None:
            return None
        file, schedule = self.cache / "held_out.safetensors", self.model.schedule
        return gain.ask_the_base(file, self.predict, self.held_pictures, schedule, self.config)

    # ---- from step 0, or from a checkpoint
    def start_or_resume(self) -> None:
        c = self.config
        self.state = make_state(self.theta, c, self.accelerator.scaler)
        if c.report_to:
            self.accelerator.init_trackers("personalize")
        for part in self.trained_parts():
            part.train()
        checkpoint = read_checkpoint(self.folder, self.theta, c)
        if checkpoint is None:
            self.observe({})
            return
        self.state.restore(*checkpoint)
        history = self.folder.path / "history.csv"
        rows = read_csv(history) if history.exists() else []
        self.rows = [r | {"step": int(r["step"])} for r in rows if r["step"] <= self.state.step]
        inexact = "" if checkpoint[1]["exact"] else ", weights only: not bit-equal to a run never stopped"  # fmt: skip
        self.say(f"resumed after step {self.state.step}{inexact}")

    def trained_parts(self) -> list[torch.nn.Module]:
        names = self.model.trainable_text_encoders if self.config.train_text_encoder else []
        return [self.model.denoiser, *(self.model.parts[name] for name in names)]

    def describe(self) -> str:
        n, c = sum(p.numel() for p in self.theta.values()), self.config
        return (
            f"{self.folder.path}: {c.objective}, {c.train}, {n / 1e6:.3g} million weights train, "
            f"steps {self.state.step} to {c.max_train_steps}"
        )

    # ---- while it runs
    def observe(self, terms: dict[str, float]) -> dict[str, float]:
        """A row of history.csv in the toy's columns, and a grid where one is due. Nothing here draws from training's generators.

        Returns what the progress bar shows: the loss terms and the newest drift.
        """
        c, step = self.config, self.state.step
        with self.model.evaluating(), torch.no_grad():
            with self.clock("measuring"):
                self.rows.append(self.row(terms))
                if self.writes:
                    write_csv(self.folder.path / "history.csv", self.rows)
            if self.validation.due(step):
                with self.clock("validation"), self.accelerator.autocast():
                    self.validation(step)
        if c.report_to:
            numbers = {k: v for k, v in self.rows[-1].items() if isinstance(v, float)}
            self.accelerator.log(numbers, step=step)
        known = {k: v for row in self.rows for k, v in row.items()}
        return {k: v for k, v in known.items() if k.startswith(("loss_", "delta_"))}

    def row(self, terms: dict[str, float]) -> dict:
        """`terms` are means since the row before; distances and drift are of the weights as they are now."""
        c, step = self.config, self.state.step
        distance = self.loop.objective.anchor_terms(self.loop.anchors)
        losses = {k: v for k, v in terms.items() if k != "grad_norm"}
        losses |= {k: float(whole(v)) for k, v in distance.items()}
        row = {"step": step, "objective": c.objective, "weight": c.weight, "seed": c.seed}
        row |= {f"loss_{k}": v for k, v in losses.items()}
        edge = step in (0, c.max_train_steps)
        if edge or step % c.probe_steps == 0:
            row |= {
                "delta_theta": self.drift.delta_theta()["total"],
                "delta_eps": self.drift.delta_eps(),
            }
            if self.learning is not None:
                row |= self.learning.columns(self.predict)
        if edge or (c.path_kl_steps and step % c.path_kl_steps == 0):
            self.paths = self.drift.path_kl()
            row |= measure.path_columns(self.paths)
        if "grad_norm" in terms:
            row |= {"lr": self.state.learning_rate, "grad_norm": terms["grad_norm"]}
        return row | {"seconds": round(self.state.seconds, 2)}

    def save(self, state: State) -> None:
        c = self.config
        tensors, scalars = state.weights_only() if c.checkpoint_weights_only else state.exact()
        tensors = gathered(tensors, self.writes)
        keep = c.checkpoints_total_limit or 10**9
        if self.writes:
            self.folder.save_checkpoint(state.step, tensors, scalars, keep)

    # ---- the end
    def finish(self, command: str) -> None:
        if self.state.ema is not None:
            self.state.ema.copy_to(self.theta.values())
        with self.model.evaluating(), self.clock("measuring"), torch.no_grad():
            metrics = self.metrics()
        self.model.put_denoiser(reassembled(self.model.denoiser, self.writes))
        if not self.writes:
            return
        with self.clock("export"):
            self.export(command, metrics)
        seconds = {**self.clock, "training": self.state.seconds}
        metrics["seconds"] = {k: round(v, 2) for k, v in seconds.items()}
        metrics["peak_memory_bytes"] = peak_memory(self.device)
        write_json(self.folder.path / "metrics.json", metrics)
        if self.config.report_to:
            self.accelerator.end_training()
        theta, kl = metrics["delta_theta"], metrics["path_kl"]
        learnt = gain.in_words(self.rows)
        self.say(
            f"done: {self.folder.path}, delta theta {theta:.4g}, path KL {kl:.4g} nats{learnt}"
        )

    def metrics(self) -> dict:
        """The drift of the weights that are exported: those of the last row, or EMA's if asked for."""
        c, blocks, last = self.config, self.drift.delta_theta(), self.rows[-1]
        eps = self.drift.delta_eps() if c.use_ema else last["delta_eps"]
        paths = self.drift.path_kl() if c.use_ema or self.paths is None else self.paths
        return {
            "objective": c.objective,
            "weight": c.weight,
            "reg_reduction": c.reg_reduction if c.uses("l2") else None,
            "steps": self.state.step,
            "weights": "ema" if c.use_ema else "last",
            "base_hash": self.model.hash(),
            "delta_theta": blocks.pop("total"),
            "delta_theta_blocks": blocks,
            "delta_eps": eps,
            "path_kl": measure.path_columns(paths)["path_kl"],
            "path_kl_groups": paths,
            **gain.peak(self.rows),
            "path_kl_sampler": f"ancestral, variance beta, {c.measure_nodes} nodes, no guidance",
            "prompts": measure.prompt_groups(c),
        }

    def export(self, command: str, metrics: dict) -> None:
        path = self.folder.path
        shown = ("delta_theta", "delta_eps", "path_kl", "path_kl_sampler", "steps")
        model_card(path, command, self.folder.config, {k: metrics[k] for k in shown})
        leave(self.model, path)
