"""Changes of tests/mutants.py that change nothing that anyone sees, and why.

module -> {(start of the line, change): reason}
"""

SEEDS = "every run has all seeds, and each seed of it has its name and its weight"
SQUARED = "of a difference that is squared: either sign"
SYMMETRIC = "the distance of two pictures is symmetric"
ANY_ORDER = "a question about any of them"
AS_MANY = "as many of one as of the other, by construction"
FROZEN = "nothing assigns to it"
WAITS = "whether a copy waits changes no number"
STREAM = "another stream of random numbers is as good"
WHOLE = "in pieces or whole, the same bits"
ON_A_GPU = "it differs where there are two devices"
MEMORY = "a graph that is kept longer changes no number"
NO_NUMBER = "a limit that no computed number meets exactly"
NEITHER = "a share is nan or within 0 and 1: sum and difference are nan together"

EQUIVALENT = {
    "toy2d/sentences.py": {
        ("same = next((runs for runs in prior if runs[0]", "0 -> 1"): SEEDS,
        ("f\"{same[0]['run']}, which replays", "0 -> 1"): SEEDS,
        ("pairs = zip(same, standard, strict=", "True -> False"): SEEDS,
    },
    "toy2d/core/objectives.py": {
        (
            "return per_run_mean(output, schedule.target(x0, t, eps)",
            (
                "per_run_mean(output, schedule.target(x0, t, eps), t, weights) -> "
                "per_run_mean(schedule.target(x0, t, eps), output, t, weights)"
            ),
        ): SQUARED,
        (
            "return per_run_mean(predict(x_t, steps, cond), star",
            (
                "per_run_mean(predict(x_t, steps, cond), star, t, weights) -> "
                "per_run_mean(star, predict(x_t, steps, cond), t, weights)"
            ),
        ): SQUARED,
        ("if self.uses(", "self.uses('l2', 'fisher') -> self.uses('fisher', 'l2')"): ANY_ORDER,
        ("if self.uses(", "other.uses('l2', 'fisher') -> other.uses('fisher', 'l2')"): ANY_ORDER,
        ("yield p, self.theta_star[name]", "True -> False"): WAITS,
        (
            "distance = other if",
            "other.uses('l2', 'fisher') -> other.uses('fisher', 'l2')",
        ): ANY_ORDER,
        (
            "plain = all(type(t)",
            ("type(t) in (Tensor, Parameter) -> type(t) not in (Tensor, Parameter)"),
        ): WHOLE,
        ("if not plain or tensors[0]", "0 -> 1"): WHOLE,
    },
    "toy2d/core/drift.py": {
        (
            "errors.append(squared_error(",
            (
                "squared_error(predict, predict_star, schedule, chain[n], t, cond) -> "
                "squared_error(predict_star, predict, schedule, chain[n], t, cond)"
            ),
        ): SQUARED,
        ("grads = torch.autograd.grad(", "eps * sign -> eps / sign"): "a sign is its own inverse",
        ("errors = [torch.zeros(", "0 -> 1"): "a chain is on one device",
        ("shape = chain[0]", "0 -> 1"): "a chain's states have one shape",
        ("t = torch.full(shape, n", "0 -> 1"): "a chain is on one device",
    },
    "toy2d/core/trace.py": {
        ("(Jv,) = torch.autograd.grad(", "i + 1 -> i - 1"): MEMORY,
        (
            "return LogProb(self.value, self.coarse",
            (
                "LogProb(self.value, self.coarse.mean(0)) -> "
                "LogProb(self.coarse.mean(0), self.value)"
            ),
        ): "a gap has no sign",
        ("chunk: int = 0", "0 -> 1"): "a chunk bounds memory only",
        ("found.append(", "True -> False"): AS_MANY,
        ("ratio = LogProb(", "True -> False"): AS_MANY,
        ("(Jv,) = torch", "i + 1 < len(probes) -> i + 1 <= len(probes)"): MEMORY,
    },
    "toy2d/runs/sentences.py": {
        ("if error > UNRESOLVED", "error > UNRESOLVED -> error >= UNRESOLVED"): NO_NUMBER,
        (
            "elif abs(slope - 2) < 2",
            ("abs(slope - 2) < 2 * error + 0.005 -> abs(slope - 2) <= 2 * error + 0.005"),
        ): NO_NUMBER,
        ("rises, falls = (", "1 -> 2"): "of a factor only the sign counts",
    },
    "toy2d/core/likelihood.py": {
        (
            "past = list(range(n, max(",
            "max(n - order, -1) -> max(-1, n - order)",
        ): "the larger of two, in either order",
        (
            "past = list(range(at, -1",
            "1 -> 2",
        ): "`at` is even wherever a step begins: -1 and -2 are both below node 0",
        ("if step[-1] > 4", "step[-1] > 4 * step[-2] -> step[-1] >= 4 * step[-2]"): NO_NUMBER,
        (
            "fine = torch.linspace(",
            "4001 -> 4002",
        ): "one point more of a fine grid: nodes move by 1e-8",
        ("share, gauss = _gauss", "20 -> 21"): "both rules are exact to rounding",
    },
    "personalize/drift/gain.py": {
        (
            "while len(turns) < len(",
            "len(turns) < len(node) -> len(turns) <= len(node)",
        ): "turns beyond the last sample are cut off",
        ("@dataclass(frozen=", "True -> False"): FROZEN,
        ("places = [", "1 -> 2"): "every variant but 0 is mirrored",
        ("same = instance_set(", "True -> False"): "mirrored or not, a picture has one prompt",
    },
    "personalize/drift/measure.py": {
        ("seed: int = 0", "0 -> 1"): STREAM,
        ("x, node, prompts, answers, share", "True -> False"): AS_MANY,
        (
            "if self._squares is None or step",
            "step <= self._first_step -> step < self._first_step",
        ): "measured again or kept, the same numbers",
        (
            "starts[name] = even_starts(",
            ("generator(seed, f'probe/{name}/nodes') -> generator(f'probe/{name}/nodes', seed)"),
        ): STREAM,
        (
            "mean, error = path_kl(",
            (
                "path_kl(predict, c.base, c.schedule, c.x, c.prompts) -> "
                "path_kl(c.base, predict, c.schedule, c.x, c.prompts)"
            ),
        ): SQUARED,
    },
    "personalize/adapters/deltas.py": {
        ("scale: float", "1.0 -> 2.0"): "a scale is always given",
        ("@dataclass(frozen=True, eq=", "False -> True"): "no Change is compared or hashed",
        ("@dataclass(frozen=", "True -> False"): FROZEN,
        (
            "lambda group: torch.stack([c.layer.moved()",
            "-1 -> 1",
        ): "the last dimension of a matrix is 1",
        (
            "if rank**2 >= min(",
            (
                "rank ** 2 >= min(f['hada_w1_a'].shape[-2], inputs) -> "
                "rank ** 2 > min(f['hada_w1_a'].shape[-2], inputs)"
            ),
        ): "where both are as large either formula gives the number",
    },
    "personalize/adapters/anchors.py": {
        ("home = p.device if sharded(", "device or p.device -> device and p.device"): ON_A_GPU,
        ("copies[name] = c.pin_memory(", "not c.is_cuda -> c.is_cuda"): ON_A_GPU,
        ("@dataclass(frozen=", "True -> False"): FROZEN,
        ("star = theta_star[name].to(", "True -> False"): WAITS,
    },
    "personalize/drift/fisher.py": {
        (
            "rng = generator(",
            ("generator(config.seed, 'fisher/signs') -> generator('fisher/signs', config.seed)"),
        ): STREAM,
    },
    "personalize/train/loop.py": {
        (
            "seed_dropout(config.seed",
            (
                "seed_dropout(config.seed, step, loop.streams.rank) -> "
                "seed_dropout(step, config.seed, loop.streams.rank)"
            ),
        ): STREAM,
        ("for group, anchors in zip(", "True -> False"): AS_MANY,
        ("self.optimizer.zero_grad(", "True -> False"): "a gradient of zeros or none",
    },
    "personalize/train/streams.py": {
        (
            "x0, t, eps, cond = streams.collate(",
            "min(first + size, n) -> min(n, first + size)",
        ): "the smaller of two, in either order",
        ("x0, t, eps, prompts = zip(", "True -> False"): AS_MANY,
        ("t, eps = (torch.cat(v).to(", "True -> False"): WAITS,
    },
    "personalize/train/state.py": {
        ("shadow = zip(self.theta", "True -> False"): AS_MANY,
        ("for (name, p), shadow in zip(", "True -> False"): AS_MANY,
    },
    "personalize/evaluate/metrics.py": {
        ("for x, y in zip(a, b", "zip(a, b, strict=True) -> zip(b, a, strict=True)"): SYMMETRIC,
        (
            "out[i, i + 1 :] = out",
            ("perceptual_distance(one, rest, channel) -> perceptual_distance(rest, one, channel)"),
        ): SYMMETRIC,
    },
    "personalize/report/sentences.py": {
        ("if not math.isnan(base + tuned)", "base + tuned -> base - tuned"): NEITHER,
    },
}
