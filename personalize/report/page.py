"""The report's page: one template, no script, nothing from elsewhere. Light and dark follow the reader's system."""

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

STYLE = """
:root { color-scheme: light dark; --fg: #1b1f24; --bg: #fff; --card: #f6f8fa; --soft: #57606a; --line: #d8dee4; --accent: #0b5cad;
  --yes: #116329; --yes-bg: #dafbe1; --no: #a40e26; --no-bg: #ffebe9; --open: #57606a; --open-bg: #eaeef2; }
@media (prefers-color-scheme: dark) { :root { --fg: #e6edf3; --bg: #0d1117; --card: #161b22; --soft: #9198a1; --line: #30363d;
  --accent: #6cb6ff; --yes: #7ee787; --yes-bg: #12361f; --no: #ffa198; --no-bg: #4b1113; --open: #9198a1; --open-bg: #21262d; } }
* { box-sizing: border-box; }
body { font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--fg); background: var(--bg); margin: 0; }
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: clamp(1.7rem, 4vw, 2.5rem); line-height: 1.15; letter-spacing: -.02em; margin: 0 0 .6rem; text-wrap: balance; }
h2 { font-size: 1.35rem; line-height: 1.25; margin: 3.2rem 0 .4rem; padding-top: 1.2rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0; } p { max-width: 46rem; margin: .4rem 0 1rem; } .lead { font-size: 1.12rem; }
.soft, figcaption { color: var(--soft); font-size: .875rem; line-height: 1.5; }
ul.say { max-width: 52rem; padding-left: 1.1rem; margin: .5rem 0 1.2rem; } ul.say li { margin: .3rem 0; }
.scale { font-weight: 600; color: var(--accent); }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1rem; margin: 1rem 0; align-items: start; }
.pair > *, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .9rem 1rem; margin: 0; }
.pair figure img { width: 100%; height: auto; display: block; } .heads { margin-bottom: -.4rem; }
.heads > * { background: none; border: 0; padding: 0 .2rem; font-weight: 600; color: var(--accent); }
figcaption { margin-top: .5rem; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .6rem 0 0; padding: 0; list-style: none; font-size: .9rem; }
.row { display: grid; grid-template-columns: minmax(0, 17rem) minmax(0, 1fr); gap: 1rem 1.4rem; margin: .9rem 0; }
.row figure { margin: 0; } .row .cloud img { width: 100%; height: auto; display: block; } .row header { grid-column: 1 / -1; }
.row header p { margin: .1rem 0 0; } .mark { display: inline-block; width: 1.1em; }
.strips { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .8rem; align-content: start; }
.strips img { width: 100%; height: auto; display: block; border-radius: 4px; background: #fff; } .strips figcaption { margin: 0 0 .25rem; }
.scroll { overflow-x: auto; margin: .8rem 0; } table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .38rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; vertical-align: top; }
th { font-weight: 600; color: var(--soft); } th:first-child, td:first-child { text-align: left; } tr.best td { font-weight: 650; }
table.claims td, table.claims th { text-align: left; white-space: normal; } table.claims td:first-child { min-width: 13rem; }
.verdict { display: inline-block; border-radius: 99px; padding: 0 .6rem; font-size: .8rem; font-weight: 600; }
.supported { color: var(--yes); background: var(--yes-bg); } .contradicted { color: var(--no); background: var(--no-bg); }
.undecided, .unknown { color: var(--open); background: var(--open-bg); } .bar { display: flex; height: .8rem; border-radius: 3px; overflow: hidden; min-width: 8rem; }
.bar span { display: block; } .images { background: #E69F00; } .preparing { background: #56B4E9; } .training { background: #0072B2; }
@media (max-width: 720px) { main { padding: 1.5rem 1rem 3rem; } .pair, .row { grid-template-columns: minmax(0, 1fr); } .heads { display: none; }
  .pair figure::before { content: attr(data-at); font-weight: 600; color: var(--accent); }
  .strips { grid-template-columns: minmax(0, 1fr); }
  .row .cloud { max-width: 19rem; margin: 0 auto; width: 100%; } th, td { padding: .35rem .5rem; }
  table.claims, table.claims tbody, table.claims tr, table.claims td { display: block; } table.claims thead { display: none; }
  table.claims tr { padding: .7rem 0; border-bottom: 1px solid var(--line); } table.claims td { border: 0; padding: .12rem 0; }
  table.claims td[data-at]::before { content: attr(data-at) ": "; color: var(--soft); } }
@media print { h2 { break-after: avoid; } .pair, .row { break-inside: avoid; } }
"""

TEMPLATE = """{% macro picture(f, cls="", at="") %}<figure class="{{ cls }}" data-at="{{ at }}"><picture><source media="(prefers-color-scheme: dark)" srcset="{{ f.dark }}">
<img alt="{{ f.alt }}" src="{{ f.light }}" width="{{ f.width }}" height="{{ f.height }}"></picture>{% if f.caption %}<figcaption>{{ f.caption }}</figcaption>{% endif %}</figure>{% endmacro %}
{% macro say(toy, full) %}<ul class="say">{% for name, list in ((names.toy, toy), (names.full, full)) %}{% for s in list if s %}<li><span class="scale">{{ name }}.</span> {{ s }}</li>{% endfor %}{% endfor %}</ul>{% endmacro %}
{% macro side_by_side(pair) %}<div class="pair">{{ picture(pair.toy, at=names.toy) }}{{ picture(pair.full, at=names.full) }}</div>{% endmacro %}
{% macro heads() %}<div class="pair heads"><div>{{ names.toy }}</div><div>{{ names.full }}</div></div>{% endmacro %}
{% macro legend() %}<ul class="legend" aria-label="objectives">{% for o in legend_items %}<li><span class="mark" style="color: {{ o.colour }}" aria-hidden="true">{{ o.mark }}</span>{{ o.name }}</li>{% endfor %}</ul>{% endmacro %}
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="description" content="{{ description }}"><title>{{ title }}</title><style>{{ style }}</style></head><body><main>
<h1>{{ title }}</h1><p class="lead">{{ lead }}</p>
<p class="soft">{{ subtitle }}</p>

<h2>Claims, and what was measured</h2>
<p>A claim is supported or contradicted where the 95 % interval of the ratio excludes 1. Equal adaptation: the weights that learnt the new thing as well as
standard fine-tuning did ({{ adaptation }}). The least drifting of them is chosen, and judged, on the same pictures, so a choice among many weights
flatters. The interval takes runs (subjects and seeds) as independent: it speaks of these subjects.</p>
<div class="scroll"><table class="claims"><thead><tr><th>claim</th><th>{{ names.toy }}</th><th>{{ names.full }}</th></tr></thead><tbody>
{% for c in claims %}<tr><td>{{ c.text }} <span class="soft">({{ c.source }})</span></td>{% for at, (verdict, words) in ((names.toy, c.toy), (names.full, c.full)) %}
<td data-at="{{ at }}"><span class="verdict {{ verdict }}">{{ verdict_words[verdict] }}</span> <span class="soft">{{ words }}</span></td>{% endfor %}</tr>{% endfor %}</tbody></table></div>

<h2>What each model draws</h2>
<p>One world in two dimensions with {{ old_prompts }} prompts and one of pictures; a model of each is fine-tuned on a handful of examples of something new. Left: samples of
every prompt, one colour per prompt, + the new examples. Right: pictures of four kinds of prompts, from the same seeds in every row.</p>
{% if shown_to_it %}<div class="row card"><header><h3>What was shown</h3></header>{{ picture(truth, "cloud") }}<div class="strips">
<figure><figcaption>{{ shown_to_it.label }}</figcaption><img alt="{{ shown_to_it.alt }}" src="{{ shown_to_it.src }}" width="{{ shown_to_it.width }}" height="{{ shown_to_it.height }}"></figure></div></div>{% endif %}
{% for r in samples %}<div class="row card"><header><h3>{{ r.title }}</h3><p class="soft">{{ r.words }}</p></header>
{% if r.cloud %}{{ picture(r.cloud, "cloud") }}{% else %}<p class="soft">Not run in the toy.</p>{% endif %}
<div class="strips">{% for s in r.strips %}<figure><figcaption>{{ s.label }}</figcaption><img alt="{{ s.alt }}" src="{{ s.src }}" width="{{ s.width }}" height="{{ s.height }}"></figure>{% endfor %}</div></div>{% endfor %}
{{ say([], [right]) }}

<h2>Drift, condition by condition</h2>
{{ legend() }}{{ heads() }}{{ side_by_side(conditions) }}{{ say(say_drift.toy, say_drift.full) }}

<h2>From parameters to outputs to laws</h2>
<p>The chain of the theory: \u0394\u03b8 \u2192 \u0394\u03b5 \u2192 path KL \u2192 what one sees. L2 holds the first link, base-output preservation the second. Every point is a run; both axes are
logarithmic.</p>{{ legend() }}{{ heads() }}
{% for pair in chain %}{{ side_by_side(pair) }}{% endfor %}{{ say(say_chain.toy, say_chain.full) }}

<h2>The weight sweep</h2>
{{ legend() }}{{ heads() }}{% for pair in sweep %}{{ side_by_side(pair) }}{% endfor %}{{ say(say_sweep.toy, say_sweep.full) }}

<h2>Adaptation against preservation</h2>
<p>Lower left is better: learnt more, lost less. Lines join the weights of one objective.</p>
{{ legend() }}{{ heads() }}{{ side_by_side(tradeoff) }}

<h2>What it costs</h2>
<p>{{ say_cost }} {{ toy_cost }}</p>
<div class="scroll"><table><thead><tr><th>objective</th><th>class images (s)</th><th>preparing (s)</th><th>training (s)</th><th>total (s)</th><th>\u00d7 standard</th><th></th></tr></thead><tbody>
{% for c in costs %}<tr><td>{{ c.objective }}</td>{% for p in c.parts %}<td>{{ p }}</td>{% endfor %}<td>{{ c.total }}</td><td>{{ c.times }}</td>
<td><div class="bar" role="img" aria-label="{{ c.bar_words }}">{% for name, share in c.bar %}<span class="{{ name }}" style="width: {{ share }}%"></span>{% endfor %}</div></td></tr>{% endfor %}</tbody></table></div>
<p class="soft">Bars: class images (orange), preparing (light blue: latents, anchors, Fisher, the base's answers), training (dark blue), on one scale.</p>

<h2>Every run</h2>
<p class="soft">{{ names.full }}: mean \u00b1 95 % interval over runs (subjects \u00d7 seeds, taken as independent); bold: least drift at equal fidelity, against standard on the row's own
subjects and seeds, chosen and judged on the same pictures. {{ definitions }}</p>
<div class="scroll"><table><thead><tr>{% for h in table.header %}<th>{{ h }}</th>{% endfor %}</tr></thead><tbody>
{% for row in table.rows %}<tr{% if row.best %} class="best"{% endif %}>{% for c in row.cells %}<td>{{ c }}</td>{% endfor %}</tr>{% endfor %}</tbody></table></div>
<p class="soft">{{ names.toy }}: KL in nats, geometric mean over seeds (one-standard-error limits); bold: least drift at equal adaptation.</p>
<div class="scroll"><table><thead><tr>{% for h in toy_table.header %}<th>{{ h }}</th>{% endfor %}</tr></thead><tbody>
{% for row in toy_table.rows %}<tr{% if row.best %} class="best"{% endif %}>{% for c in row.cells %}<td>{{ c }}</td>{% endfor %}</tr>{% endfor %}</tbody></table></div>

<h2>How it was made</h2>
{% for line in made %}<p class="soft">{{ line }}</p>{% endfor %}
</main></body></html>
"""


def render(**values) -> str:
    """The page; everything but our own style sheet is escaped, a missing value is an error."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(TEMPLATE).render(style=Markup(STYLE), **values).lstrip()
