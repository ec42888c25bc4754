"""toy2d: a two-dimensional world in which the drift of a personalized diffusion model can be computed exactly.

Read in this order; a module imports only from those above it. `*` are shape-generic: `personalize` imports them.

    schedule    * alpha_bar table, add_noise, target, path weights
    drift       * delta theta, delta eps, path KL, Fisher diagonal
    objectives  * the loss as named terms: STANDARD, PRIOR, L2, OUTPUT, FISHER
    data          the worlds, with exact densities and exact eps
    model         EpsMLP, a stack of them as one set of tensors
    train         one loop for a stack of runs
    sample        ancestral, DDIM
    likelihood    exact log p by the probability-flow ODE
    measure       KL per prompt, drift: rows
    runfolder   * lock, status, exact checkpoints
    config        ToyConfig and its presets: smoke, course, paper, prompts
    experiment    run(config) -> runs/toy2d/<name>/
    plot, report  figures and one HTML page, from rows only
    density, display  a density to look at; pictures and sliders for notebooks
    theorems/     each statement as rows, both sides measured: `toy2d verify`
    __main__      the command line
"""

__version__ = "0.1.0"
