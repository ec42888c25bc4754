"use strict";
// The explorer's page: recorded runs in, SVG out. State: two runs, and whether both are shown.
const DATA = JSON.parse(document.getElementById("data").textContent);
const { toy, mini, frontiers, objectives, colours } = DATA;
const KINDS = Object.keys(objectives);
const STEPS = [0, ...toy.runs[0].along.map((row) => row.step)];
const SEEDS = toy.base.map((base) => base.seed);
const WEIGHTS = Object.fromEntries(KINDS.map((kind) => [kind, weightsOf(toy.runs, kind)]));
const MINI_WEIGHTS = Object.fromEntries(KINDS.map((kind) => [kind, weightsOf(mini.runs, kind)]));
const MARKS = ["circle", "square", "triangle", "diamond", "cross", "star", "bar"];
const still = matchMedia("(prefers-reduced-motion: reduce)");

function weightsOf(runs, kind) {
  const found = new Set(runs.filter((r) => r.objective === kind).map((r) => r.weight));
  return [...found].sort((a, b) => (a ?? 0) - (b ?? 0));
}

// ---- state, and the link that restores it
const state = { compare: false, runs: { a: start("standard"), b: start("l2", 3) } };

function start(kind, place = 0) {
  const weight = WEIGHTS[kind][place];
  return { kind, weight, seed: SEEDS[1] ?? SEEDS[0], step: STEPS.at(-1), mini: nearest(MINI_WEIGHTS[kind], weight) };
}

function nearest(weights, weight) {
  if (!weights.length || weights[0] === null) return weights[0] ?? null;
  const distance = (w) => Math.abs(Math.log(w / (weight || 1)));
  return weights.reduce((best, w) => (distance(w) < distance(best) ? w : best));
}

function toLink() {
  const text = ({ kind, weight, seed, step, mini }) => [kind, weight ?? "-", seed, step, mini ?? "-"].join("~");
  const parts = ["a=" + text(state.runs.a)];
  if (state.compare) parts.push("b=" + text(state.runs.b));
  return "#" + parts.join("&");
}

function fromLink(hash) {
  const parts = new URLSearchParams(hash.replace(/^#/, ""));
  state.compare = parts.has("b");
  for (const name of ["a", "b"]) {
    const [kind, weight, seed, step, small] = (parts.get(name) ?? "").split("~");
    if (!KINDS.includes(kind)) continue;
    const number = (text, known, otherwise) => (known.includes(+text) ? +text : otherwise);
    const weightHere = number(weight, WEIGHTS[kind], WEIGHTS[kind][0]);
    state.runs[name] = {
      kind, weight: weightHere, seed: number(seed, SEEDS, SEEDS[0]),
      step: number(step, STEPS, STEPS.at(-1)),
      mini: number(small, MINI_WEIGHTS[kind], nearest(MINI_WEIGHTS[kind], weightHere)),
    };
  }
}

// ---- recorded rows
function rowOf({ kind, weight, seed, step }) {
  const base = toy.base.find((b) => b.seed === seed);
  if (step === 0) {
    const zero = { kl: toy.classes.map(() => [0, 0]), path_kl: 0, path_kl_error: 0, delta_theta: 0, delta_eps: 0 };
    return { ...zero, step, kl_new: base.kl_new[0], kl_new_error: base.kl_new[1], points: base.points };
  }
  const same = (r) => r.objective === kind && r.weight === weight && r.seed === seed;
  return toy.runs.find(same).along.find((row) => row.step === step);
}

function pointsOf(packed) {
  const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
  const values = new Int8Array(bytes.buffer);
  return Array.from({ length: values.length / 2 }, (_, i) => [values[2 * i] / toy.scale, values[2 * i + 1] / toy.scale]);
}

const nameOf = (kind, weight) => (weight === null ? kind : `${kind}:${weight}`);
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
const oldKl = (row) => mean(row.kl.map(([value]) => value));
const shown = (x) => (x === null || x === undefined ? "-" : x === 0 ? "0" : x.toPrecision(3).replace(/e-(\d)$/, "e-0$1"));

// ---- drawing
function element(tag, attributes = {}, ...inside) {
  const svg = ["svg", "g", "circle", "rect", "line", "path", "text", "title", "desc"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...inside);
  return made;
}

function picture(width, height, label) {
  return element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
}

const SIZE = 360, RANGE = 4.6;
const toX = (x) => ((x + RANGE) / (2 * RANGE)) * SIZE;
const toY = (y) => ((RANGE - y) / (2 * RANGE)) * SIZE;

function plane(name) {
  const svg = picture(SIZE, SIZE, "");
  svg.id = `${name}-plane`;
  for (const tick of [-4, -2, 0, 2, 4]) {
    svg.append(element("line", { class: "axis", x1: toX(tick), x2: toX(tick), y1: 0, y2: SIZE }));
    svg.append(element("line", { class: "axis", y1: toY(tick), y2: toY(tick), x1: 0, x2: SIZE }));
  }
  const layers = ["base", "points", "shots", "names"].map((c) => svg.appendChild(element("g", { class: c })));
  const prompts = toy.classes.length + 1;
  for (let i = 0; i < prompts * toy.points; i++) {
    const colour = colours.classes[Math.floor(i / toy.points) % colours.classes.length];
    layers[0].append(element("circle", { r: 2, fill: "var(--faint)", "fill-opacity": 0.55 }));
    layers[1].append(element("circle", { r: 2.6, fill: colour, class: "point" }));
  }
  return svg;
}

function drawPlane(svg, run, row) {
  const base = toy.base.find((b) => b.seed === run.seed);
  const [grey, points, shots, names] = svg.querySelectorAll("g");
  const place = (layer, packed) => pointsOf(packed).forEach(([x, y], i) => {
    layer.children[i].setAttribute("cx", toX(x));
    layer.children[i].setAttribute("cy", toY(y));
  });
  place(grey, base.points);
  place(points, row.points);
  shots.replaceChildren(...base.shots.map(([x, y]) => element("path", {
    d: `M${toX(x) - 6} ${toY(y)}h12M${toX(x)} ${toY(y) - 6}v12`, stroke: "var(--text)", "stroke-width": 2 })));
  const old = pointsOf(base.points);
  names.replaceChildren(...[...toy.classes, "new"].map((label, i) => {
    const own = old.slice(i * toy.points, (i + 1) * toy.points);
    const at = i < toy.classes.length ? [mean(own.map((p) => p[0])), mean(own.map((p) => p[1]))] : [0, 0.8];
    const far = i < toy.classes.length ? 1.45 : 1;
    const x = Math.min(SIZE - 24, Math.max(24, toX(at[0] * far)));
    const y = Math.min(SIZE - 6, Math.max(14, toY(at[1] * far)));
    return element("text", { x, y, "text-anchor": "middle" }, label);
  }));
  svg.setAttribute("aria-label", `Samples of ${toy.classes.length} old classes and the new one, ${nameOf(run.kind, run.weight)}, ` +
    `seed ${run.seed}, step ${run.step}. Mean KL of the old classes ${shown(oldKl(row))} nats. Grey: the base's samples; plus signs: the six shots.`);
}

const LOW = 1e-3, HIGH = 50;
const along = (x, from, to) => from + (to - from) * Math.min(1, Math.max(0, Math.log(Math.max(x, LOW) / LOW) / Math.log(HIGH / LOW)));

function bars(name) {
  const svg = picture(SIZE, 196, "");
  svg.id = `${name}-bars`;
  return svg;
}

function drawBars(svg, run, row) {
  const names = [...toy.classes, "new class*"];
  const values = [...row.kl, [row.kl_new, row.kl_new_error]];
  const [from, to] = [74, SIZE - 62];
  svg.replaceChildren();
  for (const tick of [0.001, 0.01, 0.1, 1, 10]) {
    svg.append(element("line", { class: "axis", x1: along(tick, from, to), x2: along(tick, from, to), y1: 6, y2: 172 }));
    svg.append(element("text", { class: "soft", x: along(tick, from, to), y: 188, "text-anchor": "middle" }, String(tick)));
  }
  values.forEach(([value, error], i) => {
    const y = 8 + i * 27, x = along(value ?? 0, from, to);
    svg.append(element("text", { x: from - 6, y: y + 15, "text-anchor": "end" }, names[i]));
    svg.append(element("rect", { class: "kl", x: from, y: y + 3, height: 16, width: Math.max(0, x - from), fill: colours.classes[i % colours.classes.length] }));
    if (value) svg.append(element("line", { class: "error", x1: along(value - error, from, to), x2: along(value + error, from, to), y1: y + 11, y2: y + 11 }));
    svg.append(element("text", { x: Math.min(x + 6, SIZE - 54), y: y + 15 }, shown(value)));
  });
  svg.setAttribute("aria-label", `KL in nats: ${names.map((n, i) => `${n} ${shown(values[i][0])}`).join(", ")}.`);
}

function mark(kind, x, y, r, colour) {
  const shape = MARKS[KINDS.indexOf(kind) % MARKS.length];
  const paths = {
    circle: `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`,
    square: `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
    triangle: `M${x} ${y - r}L${x + r} ${y + r}H${x - r}z`,
    diamond: `M${x} ${y - r * 1.3}L${x + r * 1.3} ${y}L${x} ${y + r * 1.3}L${x - r * 1.3} ${y}z`,
    cross: `M${x - r} ${y - r}L${x + r} ${y + r}M${x + r} ${y - r}L${x - r} ${y + r}`,
    star: `M${x - r} ${y}h${2 * r}M${x} ${y - r}v${2 * r}`,
    bar: `M${x - r} ${y}h${2 * r}`,
  };
  const open = ["cross", "star", "bar"].includes(shape);
  return element("path", { d: paths[shape], fill: open ? "none" : colour, stroke: colour, "stroke-width": 2 });
}

// lines: [{kind, name, points: [{x, y, x_low, ..., step, chosen: "A" | "B" | "AB" | ""}]}], one a weight
function frontier(label, lines, xAxis, yAxis) {
  const [w, h, left, low, top] = [400, 330, 54, 280, 14];
  const svg = picture(w, h, label);
  const px = (x) => left + (w - left - 16) * xAxis.scale(x), py = (y) => low - (low - top) * yAxis.scale(y);
  for (const tick of xAxis.ticks) {
    svg.append(element("line", { class: "axis", x1: px(tick), x2: px(tick), y1: top, y2: low }));
    svg.append(element("text", { class: "soft", x: px(tick), y: low + 16, "text-anchor": "middle" }, String(tick)));
  }
  for (const tick of yAxis.ticks) {
    svg.append(element("line", { class: "axis", x1: left, x2: w - 16, y1: py(tick), y2: py(tick) }));
    svg.append(element("text", { class: "soft", x: left - 6, y: py(tick) + 4, "text-anchor": "end" }, String(tick)));
  }
  svg.append(element("text", { x: w / 2, y: h - 8, "text-anchor": "middle" }, xAxis.name));
  svg.append(element("text", { x: 14, y: h / 2, "text-anchor": "middle", transform: `rotate(-90 14 ${h / 2})` }, yAxis.name));
  const strong = (line) => line.points.some((p) => p.chosen);
  for (const line of [...lines].sort((a, b) => strong(a) - strong(b))) {
    const colour = colours.objectives[line.kind] === "#000000" ? "var(--text)" : colours.objectives[line.kind];
    const d = line.points.map((p, i) => `${i ? "L" : "M"}${px(p.x)} ${py(p.y)}`).join("");
    svg.append(element("path", { d, class: "curve", fill: "none", stroke: colour, "stroke-width": strong(line) ? 2 : 1.2, "stroke-opacity": strong(line) ? 1 : 0.35 },
      element("title", {}, line.name)));
    for (const p of strong(line) ? line.points : line.points.slice(-1)) {
      const group = element("g", {}, element("title", {}, `${line.name}, step ${p.step}: ${xAxis.name} ${shown(p.x)}, ${yAxis.name} ${shown(p.y)}`));
      const whisker = (a, b, c, d) => group.append(element("line", { x1: a, y1: b, x2: c, y2: d, stroke: colour, "stroke-opacity": 0.6 }));
      if (p.chosen) {
        whisker(px(p.x_low), py(p.y), px(p.x_high), py(p.y));
        whisker(px(p.x), py(p.y_low), px(p.x), py(p.y_high));
      }
      group.append(mark(line.kind, px(p.x), py(p.y), strong(line) ? 3 : 2.5, colour));
      if (p.chosen) {
        group.append(element("circle", { cx: px(p.x), cy: py(p.y), r: 11, fill: "none", stroke: "var(--accent)", "stroke-width": 2.5, class: "chosen" }));
        group.append(element("text", { x: Math.min(px(p.x) + 13, w - 26), y: py(p.y) - 7, "font-weight": "bold" }, p.chosen));
      }
      svg.append(group);
    }
  }
  return svg;
}

const logAxis = (name, low, high, ticks) => ({ name, ticks, scale: (x) => Math.min(1, Math.max(0, Math.log(Math.max(x, low) / low) / Math.log(high / low))) });
const linearAxis = (name, low, high, ticks) => ({ name, ticks, scale: (x) => Math.min(1, Math.max(0, (x - low) / (high - low))) });

// The recorded curve and the place on it that stand for a run: the nearest weight, the same share of training.
function placeOn(scale, run) {
  const { curves } = frontiers[scale], weight = scale === "toy" ? run.weight : run.mini ?? run.weight;
  const own = curves.filter((c) => c.objective === run.kind);
  if (!own.length) return null;
  const near = nearest(weightsOf(own, run.kind), weight), curve = own.find((c) => c.weight === near);
  const wanted = (run.step / STEPS.at(-1)) * curve.step.at(-1);
  const steps = [0, ...curve.step], distance = (s) => Math.abs(s - wanted);
  const step = steps.reduce((best, s) => (distance(s) < distance(best) ? s : best));
  return { curve, step, i: curve.step.indexOf(step) };
}

function linesOf(scale) {
  const places = { a: placeOn(scale, state.runs.a), b: placeOn(scale, state.runs.b) };
  return frontiers[scale].curves.filter((c) => KINDS.includes(c.objective)).map((c) => ({
    kind: c.objective, name: `${nameOf(c.objective, c.weight)} (${c.runs} runs)`,
    points: c.step.map((step, i) => ({ step, x: c.x[i], y: c.y[i], x_low: c.x_low[i], x_high: c.x_high[i], y_low: c.y_low[i], y_high: c.y_high[i],
      chosen: ["a", "b"].filter((n) => (n === "a" || state.compare) && places[n]?.curve === c && places[n].i === i).join("").toUpperCase() })),
  }));
}

function legend() {
  return element("p", { class: "note" }, ...KINDS.flatMap((kind) => {
    const svg = picture(16, 16, "");
    svg.setAttribute("style", "width:1rem;display:inline-block;border:0;background:none;vertical-align:-0.15rem");
    svg.setAttribute("aria-hidden", "true");
    svg.append(mark(kind, 8, 8, 4, colours.objectives[kind] === "#000000" ? "var(--text)" : colours.objectives[kind]));
    return [element("span", { class: "key" }, svg, " ", kind), " "];
  }));
}

function drawFrontiers() {
  const figure = (svg, caption) => element("figure", {}, svg, element("figcaption", {}, caption));
  const place = document.getElementById("frontiers");
  const drawn = (scale, label, x, y) => {
    const { axes } = frontiers[scale];
    const svg = frontier(label, linesOf(scale), linearAxis(x, axes.x.low, axes.x.high, axes.x.ticks), logAxis(y, axes.y.low, axes.y.high, axes.y.ticks));
    svg.id = `${scale}-frontier`;
    return svg;
  };
  const told = (scale, unit) => `${frontiers[scale].curves.length} curves, each a mean over ${frontiers[scale].units} ${unit}, commit ${frontiers[scale].commit}`;
  const common = "Each line is an objective at one weight along its training: right is learnt, up is lost, lower right is better. " +
    "Marked: the recorded weight nearest to yours, at the same share of its training, with one standard error.";
  place.replaceChildren(
    figure(drawn("toy", "2D world: learning against drift along training", "learnt: fall of KL(world || tuned), new class, nats", "lost: KL(base || tuned), old classes, nats"),
      `2D world, ${told("toy", "seeds")}. ${common}`),
    figure(drawn("mini", "Mini model: learning against drift along training", "learnt: gain on held-out pictures, nats", "lost: path KL of old prompts, nats"),
      `Mini model, ${told("mini", "subjects")}; shorter runs than those of the pictures above.`),
    legend());
}

// ---- a run's panel
function panel(name) {
  const id = (part) => `${name}-${part}`;
  const select = (part, values, text) => element("select", { id: id(part) }, ...values.map((v) => element("option", { value: v }, text(v))));
  const range = (part) => element("input", { type: "range", id: id(part), min: 0, step: 1 });
  const field = (part, label, control) => element("div", {}, element("label", { for: id(part) }, label, " ", element("output", { id: id(part + "-value"), for: id(part) })), control);
  const made = element("section", { class: "run", "aria-labelledby": id("title") },
    element("h2", { id: id("title") }, `Run ${name.toUpperCase()}`),
    element("div", { class: "controls" },
      field("kind", "Objective", select("kind", KINDS, (k) => k)),
      field("weight", "Weight", range("weight")),
      field("seed", "Seed", select("seed", SEEDS, (s) => s)),
      field("step", "Training step", element("div", { class: "step" }, range("step"), element("button", { type: "button", id: id("play") }, "Play")))),
    element("p", { class: "note", id: id("what") }),
    element("div", { class: "two" },
      element("div", {}, element("h3", {}, "The 2D world"),
        element("figure", {}, plane(name), element("figcaption", {}, "Samples of every prompt; grey: the base's, +: the six shots of the new class.")),
        element("figure", {}, bars(name), element("figcaption", {}, "KL(base || tuned) of each old class in nats, with its error: ODE, quadrature and rounding added. *New class: KL(world || tuned), lower is learned better. Path KL, below, bounds the KL of another sampler's law and may be smaller (lecture 6).")),
        element("table", { id: id("numbers") })),
      element("div", {}, element("h3", {}, "The mini model"),
        field("mini", "Its own weight", range("mini")),
        element("figure", {}, element("div", { class: "grids" }, element("img", { id: id("before") }), element("img", { id: id("after") })), element("figcaption", { id: id("mini-note") })),
        element("table", { id: id("mini-numbers") }),
        element("p", { class: "note", id: id("mini-along") }))));
  return made;
}

const byId = (id) => document.getElementById(id);

function table(place, rows) {
  place.replaceChildren(element("tbody", {}, ...rows.map(([what, value]) => element("tr", {}, element("th", { scope: "row" }, what), element("td", {}, value)))));
}

const plusMinus = (value, error) => `${shown(value)} \u00b1 ${shown(error)}`;

function drawMini(name, run) {
  const record = mini.runs.find((r) => r.objective === run.kind && r.weight === run.mini);
  const [before, after] = [byId(`${name}-before`), byId(`${name}-after`)];
  before.hidden = !mini.base;
  before.src = mini.base ?? "";
  before.alt = `Base model before training, four pictures each of: ${mini.prompts.join("; ")}. Its bears are brown.`;
  after.hidden = !record;
  byId(`${name}-mini-note`).textContent = record
    ? `${mini.base ? "First the base, then" : "Pictures"} after ${mini.steps} steps with ${nameOf(run.kind, run.mini)}. One seed: to look at, not to measure.`
    : `No run of the mini model was recorded for ${run.kind}.`;
  const at = placeOn("mini", run), { i, step, curve } = at ?? {};
  byId(`${name}-mini-along`).textContent = !at ? "" :
    `Along training, mean of ${curve.runs} runs on ${frontiers.mini.units} subjects with ${nameOf(curve.objective, curve.weight)}: step ${step} of ${curve.step.at(-1)}, ` +
    `learnt ${i < 0 ? 0 : shown(curve.x[i])} nats of held-out pictures, lost ${i < 0 ? 0 : shown(curve.y[i])} nats of path KL.`;
  table(byId(`${name}-mini-numbers`), !record ? [] : [
    ["path KL, nats", plusMinus(...record.path_kl)], ["delta theta", shown(record.delta_theta)], ["seconds of training", shown(record.seconds)]]);
  if (!record) return;
  after.src = record.picture;
  after.alt = `After training with ${nameOf(run.kind, run.mini)}, four pictures each of: ${mini.prompts.join("; ")}. Path KL ${shown(record.path_kl[0])} nats.`;
}

function draw() {
  byId("compare").checked = state.compare;
  byId("panels").classList.toggle("compare", state.compare);
  byId("b-title").closest("section").hidden = !state.compare;
  const said = [];
  for (const name of state.compare ? ["a", "b"] : ["a"]) {
    const run = state.runs[name], row = rowOf(run);
    const slider = (part, values, value, text) => {
      const input = byId(`${name}-${part}`);
      input.max = Math.max(0, values.length - 1);
      input.value = Math.max(0, values.indexOf(value));
      input.disabled = values.length < 2;
      input.setAttribute("aria-valuetext", text);
      byId(`${name}-${part}-value`).textContent = text;
    };
    byId(`${name}-kind`).value = run.kind;
    byId(`${name}-seed`).value = run.seed;
    slider("weight", WEIGHTS[run.kind], run.weight, run.weight === null ? "none" : String(run.weight));
    slider("step", STEPS, run.step, String(run.step));
    slider("mini", MINI_WEIGHTS[run.kind], run.mini, run.mini === null ? "none" : String(run.mini));
    byId(`${name}-what`).textContent = objectives[run.kind];
    drawPlane(byId(`${name}-plane`), run, row);
    drawBars(byId(`${name}-bars`), run, row);
    table(byId(`${name}-numbers`), [
      ["KL of the old classes, mean, nats", shown(oldKl(row))], ["path KL, nats", plusMinus(row.path_kl, row.path_kl_error)],
      ["new class: KL(world || tuned), nats", plusMinus(row.kl_new, row.kl_new_error)],
      ["delta theta", shown(row.delta_theta)], ["delta epsilon", shown(row.delta_eps)]]);
    drawMini(name, run);
    said.push(`Run ${name.toUpperCase()}: ${nameOf(run.kind, run.weight)}, seed ${run.seed}, step ${run.step}: old classes ${shown(oldKl(row))} nats, new class ${shown(row.kl_new)} nats.`);
  }
  drawFrontiers();
  byId("spoken").textContent = said.join(" ");
  history.replaceState(null, "", toLink());
}

function play(name) {
  const run = state.runs[name], button = byId(`${name}-play`);
  if (button.dataset.timer) return stop(name);
  if (run.step === STEPS.at(-1)) run.step = STEPS[0];
  draw();
  button.textContent = "Stop";
  button.dataset.timer = setInterval(() => {
    const here = STEPS.indexOf(run.step);
    if (state.runs[name] !== run || here === STEPS.length - 1) return stop(name);
    run.step = STEPS[here + 1];
    draw();
  }, still.matches ? 1500 : 700);
}

function stop(name) {
  const button = byId(`${name}-play`);
  clearInterval(+button.dataset.timer);
  delete button.dataset.timer;
  button.textContent = "Play";
}

function listen(name) {
  const on = (part, event, change) => byId(`${name}-${part}`).addEventListener(event, (e) => { change(state.runs[name], e.target.value); draw(); });
  on("kind", "change", (run, kind) => {
    run.kind = kind;
    run.weight = WEIGHTS[kind][Math.floor((WEIGHTS[kind].length - 1) / 2)];
    run.mini = nearest(MINI_WEIGHTS[kind], run.weight);
  });
  on("seed", "change", (run, seed) => { run.seed = +seed; });
  on("weight", "input", (run, i) => { run.weight = WEIGHTS[run.kind][i]; });
  on("mini", "input", (run, i) => { run.mini = MINI_WEIGHTS[run.kind][i] ?? null; });
  on("step", "input", (run, i) => { stop(name); run.step = STEPS[i]; });
  byId(`${name}-play`).addEventListener("click", () => play(name));
}

byId("panels").append(panel("a"), panel("b"));
fromLink(location.hash);
listen("a");
listen("b");
byId("compare").addEventListener("change", (e) => { state.compare = e.target.checked; draw(); });
byId("link").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(location.href);
    byId("copied").textContent = "Copied.";
  } catch {
    byId("copied").textContent = "The address of this page is the link.";
  }
});
addEventListener("hashchange", () => { fromLink(location.hash); draw(); });
byId("provenance").textContent = `2D world: ${toy.provenance}. Mini model: ${mini.provenance}`;
draw();
