"""Run one training from its configuration to the exported weights, in a run folder.

    run(config) -> folder     pictures, class images, caches, training, measurement, outputs

Everything that depends on the base alone is made before the first step, so a checkpoint holds only
what training changes. The same command continues a killed run bit for bit.
"""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator

from personalize.adapters.trainable import choose_as, trainable
from personalize.config.rules import refuse_for_model, resolve
from personalize.config.toml import SETTINGS, as_toml
from personalize.config.train_config import TrainConfig
from personalize.data.photos import Scan, hash_of
from personalize.data.subjects import scan_subjects
from personalize.drift import gain, measure
from personalize.drift.chains import (
    Chains,
    at_once,
    chain_sampling,
    kept_chains,
    prompt_groups,
    shared_chains,
)
from personalize.export.formats import leave
from personalize.export.model_card import model_card
from personalize.parallel.processes import (
    keep_step,
    opened_by_one,
    processes_at_start,
    processes_here,
)
from personalize.parallel.sharding import gathered, reassembled, shard_, sharding
from personalize.pipeline.load import load
from personalize.pipeline.model import Model
from personalize.sample.validate import Validation
from personalize.train.assembly import (
    Predictors,
    base_outputs,
    make_loop,
    make_predictors,
    make_streams,
)
from personalize.train.from_base import (
    DTYPES,
    held_layers,
    make_anchors,
    make_pools,
    resolution_of,
)
from personalize.train.loop import TrainingLoop, fit
from personalize.train.measurements import Measurements, Observer, OnRow
from personalize.train.setup import Clock, make_accelerator, make_state, peak_memory, with_steps
from personalize.train.state import State, read_checkpoint
from personalize.train.target import adapting, target_of, use_weight
from toy2d.core.drift import Params
from toy2d.runs.files import UserError, read_record, write_atomic, write_json
from toy2d.runs.folder import RunFolder, environment
from toy2d.runs.target import in_words

NEWER = ("l2_layers", "measure_layers", "max_path_kl")  # than 0.1, and off unless they are given
# flags that do not change the numbers of a run
NOT_OF_THE_RUN = ("resume_from_checkpoint", "dry_run", "report_to")
PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate")


def run(
    config: TrainConfig,
    say: Callable[[str], None] = print,
    chains: Path | None = None,
    on_row: OnRow | None = None,
) -> Path:
    """Make, continue or find the run that `config` describes.

    `chains`: a file of base chains that runs of the same base, prompts and seed share; made if it
    is not there. `on_row` is called with each row of history.csv before it is written.
    Raises UserError, RunFailure or Stopped, one line each.
    """
    given = as_toml(config)
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
            if accelerator.is_main_process:
                write_atomic(folder.path / SETTINGS, given)
            experiment = Experiment(config, pictures, folder, accelerator, say, chains, on_row)
            try:
                experiment.run(command)
            except UserError:
                if accelerator.is_main_process:
                    forget_refused(folder.path)
                raise
    return folder.path


def forget_refused(path: Path) -> None:
    """A run that was refused before its first row leaves the folder free for another command."""
    if not (path / "history.csv").exists():
        for name in ("config.json", "env.json", SETTINGS):
            (path / name).unlink(missing_ok=True)
        for name in ("cache", "figures"):
            shutil.rmtree(path / name, ignore_errors=True)


def read(config: TrainConfig, processes: int = 1) -> tuple[TrainConfig, Scan]:
    """Check every flag and every picture. Raises UserError listing all that is wrong."""
    config = resolve(config, processes)
    pictures = scan_subjects(config)
    return with_steps(config, len(pictures.require()), processes), pictures


def recorded(config: TrainConfig) -> dict:
    """What config.json holds. Flags newer than 0.1 are left out where they do nothing, so that
    older folders still hold the same configuration.
    """
    unused = () if config.holds_out else ("held_out", "held_out_data_dir", "gain_samples")
    unused += tuple(n for n in NEWER if not getattr(config, n))
    return {k: v for k, v in asdict(config).items() if k not in (*NOT_OF_THE_RUN, *unused)}


class Experiment:
    """The parts of one run. `run` calls them in order; each returns what the next ones take."""

    def __init__(
        self,
        config: TrainConfig,
        pictures: Scan,
        folder: RunFolder,
        accelerator: Accelerator,
        say: Callable[[str], None] = print,
        chains: Path | None = None,
        on_row: OnRow | None = None,
    ):
        self.config, self.pictures, self.folder = config, pictures, folder
        self.accelerator, self.say, self.on_row = accelerator, say, on_row
        self.cache = folder.path / "cache"
        self.chains = chains
        self.clock = Clock()

    def run(self, command: str) -> TrainingLoop:
        with self.clock("load"):
            model = self.open_model()
        with self.clock("pictures"), self.one_first():
            pools = make_pools(self.config, model, self.pictures)
            held_out = self.encode_held_out(model)
        with self.clock("base"):
            theta = self.choose_what_trains(model)
            predictors = self.encode(model, pools, held_out)
        validation = self.draw_the_base(model)
        with self.clock("base"):
            chains = self.make_chains(predictors)
            learning = self.base_errors(predictors, held_out)
            loop, theta, theta_star = self.assemble(predictors, theta, pools)
        drift = self.make_meter(predictors, theta, theta_star, chains)
        state = self.make_state(model, theta)
        history = self.folder.path / "history.csv"
        measurements = Measurements(self.config, loop, drift, learning)
        known = (state, self.accelerator, self.clock, self.on_row)
        observe = Observer(history, measurements, validation, *known)
        self.resume(state, observe)
        use_weight(loop, state)
        self.say(self.describe(state))
        fit(loop, state, self.accelerator, adapting(observe, loop, state), self.save)
        self.finish(command, model, observe)
        return loop

    def one_first(self):
        """Inside, the main process makes what the others then find."""
        return self.accelerator.main_process_first()

    # ---- the base, and which of its weights train
    def open_model(self) -> Model:
        """Raises UserError for flags that this model makes ineffective, or a changed base."""
        c = self.config
        dtype = DTYPES[c.mixed_precision] if c.kind.keeps_base else torch.float32
        source = c.pretrained_model_name_or_path
        model = load(source, c.revision, c.variant, dtype, c.without_t5).to(self.accelerator.device)
        refuse_for_model(c, model.schedule.prediction == "flow")
        if c.mixed_precision == "fp16" and model.vae.config.force_upcast:
            self.say("the VAE computes in float32: in float16 it overflows")
        model.latent_shape(resolution_of(c, model))  # refused here if it does not fit
        with self.one_first():
            self.check_identity(model)
        return model

    def check_identity(self, model: Model) -> None:
        """A run goes on only with the base, the pictures and the thread count it began with."""
        identity = {"base_hash": model.hash(), "data_hash": self.pictures.hash()}
        if self.pictures.held_out:
            identity["held_out_hash"] = hash_of(self.pictures.held_out)
        file = self.folder.path / "env.json"
        if not file.exists():
            more = self.where() | {"seed": self.config.seed}
            write_json(file, environment(PACKAGES) | more | identity)
            return
        before = read_record(file)
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
                self.say(
                    f"begun with {what} {before[what]}, continued with {now}: "
                    "equal to rounding, not to the bit"
                )
        if self.accelerator.device.type == "cuda":
            self.say("continued on a GPU, whose sums have no fixed order: equal to rounding")

    def where(self) -> dict:
        """What may change the last bits of a run, and nothing else."""
        return {
            "device": self.accelerator.device.type,
            "processes": processes_here(),
            "sharded": sharding() is not None,
        }

    def encode_held_out(self, model: Model) -> gain.EncodedPictures | None:
        """The held-out pictures' latents and prompts; None if every picture trains."""
        if not self.pictures.held_out:
            return None
        resolution = resolution_of(self.config, model)
        return gain.encode_held_out(model, self.config, self.pictures.held_out, resolution)

    def choose_what_trains(self, model: Model) -> Params:
        c = self.config
        theta = choose_as(model, c)
        held_layers(c, model, theta)  # refused here if it fits no weight
        if c.gradient_checkpointing:
            model.denoiser.enable_gradient_checkpointing()
            for encoder in self.trained_parts(model)[1:]:
                encoder.gradient_checkpointing_enable()
        return theta

    def encode(
        self, model: Model, pools: dict, held_out: gain.EncodedPictures | None = None
    ) -> Predictors:
        """Encode every prompt of the run, once; say which are too long for the text encoder."""
        trained = [p for pool in pools.values() for p in pool.prompts]
        groups = [*prompt_groups(self.config).values()]
        groups += held_out.prompts.values() if held_out else []
        for prompt in dict.fromkeys(trained):
            if lost := model.lost_text(prompt):
                self.say(
                    f"the text encoder reads only the beginning of {prompt[:60]!r}...; "
                    f"lost: {lost!r}"
                )
        prompts = trained + [p for group in groups for p in group]
        return make_predictors(self.config, model, self.accelerator, prompts)

    def draw_the_base(self, model: Model) -> Validation:
        """Grids of the validation prompts; the base's pictures are drawn now."""
        writes = self.accelerator.is_main_process
        validation = Validation(self.config, model, self.folder.path / "figures", writes)
        autocast, clock = self.accelerator.autocast, self.clock
        with self.one_first(), model.evaluating(), clock("validation"), autocast():
            validation.keep_base()
        return validation

    def make_chains(self, predictors: Predictors) -> dict[str, Chains]:
        """The chains of the base on which drift is measured; runs of one base share them."""
        c, model = self.config, predictors.model
        sampling = chain_sampling(c, model.latent_shape(resolution_of(c, model)))
        how = predictors.live, model.schedule, sampling
        with self.one_first(), model.evaluating(), self.clock("chains"):
            if self.chains:
                return kept_chains(self.chains, *how)
            own = self.cache / "chains.safetensors"
            return shared_chains(*how, model.hash(), c.mixed_precision, own)

    def make_meter(
        self, predictors: Predictors, theta: Params, theta_star: Params, chains: dict
    ) -> measure.DriftMeter:
        c = self.config
        return measure.DriftMeter(
            predictors.model,
            theta,
            theta_star,
            predictors.live,
            measure.Probes.of(chains, c.nodes_per_chain, c.seed),
            at_once(c),
            self.cache / "probe.safetensors",
            c.seed,
            self.accelerator.is_main_process,
        )

    def base_errors(
        self, predictors: Predictors, held_out: gain.EncodedPictures | None
    ) -> gain.HeldOut | None:
        """The base's errors on the held-out pictures, from which gain is counted."""
        if held_out is None:
            return None
        file, model = self.cache / "held_out.safetensors", predictors.model
        with self.one_first(), model.evaluating(), self.clock("chains"):
            return gain.ask_the_base(file, predictors.live, held_out, model.schedule, self.config)

    def assemble(
        self, predictors: Predictors, theta: Params, pools: dict
    ) -> tuple[TrainingLoop, Params, Params]:
        """(loop, theta, theta_star). The denoiser is sharded here, if the launcher asks for it."""
        c, model = self.config, predictors.model
        process = self.accelerator.process_index, self.accelerator.num_processes
        streams = make_streams(c, model, pools, *process)
        with self.one_first(), model.evaluating():
            base = base_outputs(c, predictors, theta, streams, self.cache)
        shard_(model.denoiser, self.accelerator.device.type)
        theta = trainable(model)
        anchors, theta_star = self.make_anchors(predictors, theta)
        return make_loop(c, predictors, streams, anchors, base), theta, theta_star

    def make_anchors(self, predictors: Predictors, theta: Params) -> tuple[dict, Params]:
        """(distance terms by name, theta_star of the plain parameters)."""
        return make_anchors(self.config, predictors.model, theta, predictors.live, self.cache)

    # ---- from step 0, or from a checkpoint
    def trained_parts(self, model: Model) -> list[torch.nn.Module]:
        names = model.trainable_text_encoders if self.config.train_text_encoder else []
        return [model.denoiser, *(model.parts[name] for name in names)]

    def make_state(self, model: Model, theta: Params) -> State:
        for part in self.trained_parts(model):
            part.train()
        state = make_state(theta, self.config, self.accelerator.scaler)
        if target := target_of(self.config):
            state.weight = float(target.start)
        return state

    def resume(self, state: State, observe: Observer) -> None:
        """Restore the newest checkpoint; without one, measure step 0."""
        if self.config.report_to:
            self.accelerator.init_trackers("personalize")
        checkpoint = read_checkpoint(self.folder, state.theta, self.config)
        if checkpoint is None:
            observe({})
            return
        tensors, scalars = checkpoint
        state.restore(tensors, scalars)
        observe.resume()
        inexact = ", weights only: not bit-equal to a run never stopped"
        self.say(f"resumed after step {state.step}{'' if scalars['exact'] else inexact}")

    def describe(self, state: State) -> str:
        n, c = sum(p.numel() for p in state.theta.values()), self.config
        return (
            f"{self.folder.path}: {c.objective}, {c.train}, {n / 1e6:.3g} million weights train, "
            f"steps {state.step} to {c.max_train_steps}"
        )

    def save(self, state: State) -> None:
        """Write a checkpoint."""
        c, writes = self.config, self.accelerator.is_main_process
        tensors, scalars = state.weights_only() if c.checkpoint_weights_only else state.exact()
        tensors = gathered(tensors, writes)
        keep = c.checkpoints_total_limit or 10**9
        if writes:
            self.folder.save_checkpoint(state.step, tensors, scalars, keep)

    # ---- the end
    def finish(self, command: str, model: Model, observe: Observer) -> None:
        """Measure what is exported, export it, and write metrics.json."""
        state, writes = observe.state, self.accelerator.is_main_process
        if state.ema is not None:
            state.ema.copy_to(state.theta.values())
        with model.evaluating(), self.clock("measuring"), torch.no_grad():
            metrics = observe.measurements.summary(state, observe.rows)
        model.put_denoiser(reassembled(model.denoiser, writes))
        if not writes:
            return
        with self.clock("export"):
            self.export(command, model, metrics)
        seconds = {**self.clock, "training": state.seconds}
        metrics["seconds"] = {k: round(v, 2) for k, v in seconds.items()}
        metrics["peak_memory_bytes"] = peak_memory(self.accelerator.device)
        write_json(self.folder.path / "metrics.json", metrics)
        if self.config.report_to:
            self.accelerator.end_training()
        theta, kl = metrics["delta_theta"], metrics["path_kl"]
        learnt = gain.in_words(observe.rows)
        if "target" in metrics:
            self.say(in_words(metrics["target"]))
        self.say(
            f"done: {self.folder.path}, delta theta {theta:.4g}, path KL {kl:.4g} nats{learnt}"
        )

    def export(self, command: str, model: Model, metrics: dict) -> None:
        path = self.folder.path
        shown = ("delta_theta", "delta_eps", "path_kl", "path_kl_sampler", "steps")
        model_card(path, command, self.folder.config, {k: metrics[k] for k in shown})
        leave(model, path)
