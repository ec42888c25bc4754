"""personalize: one trainer, five objectives, on Stable Diffusion's real classes.

Read in this order; a module imports only from those above it. The objectives, the schedule and the drift are toy2d's own.

    config        TrainConfig: diffusers' flag names and defaults, presets
    data          pictures + captions -> pixels -> latents; prompts -> embeddings; both cached
    model         a pipeline opened: what denoises, what encodes, what trains
    adapters      ||delta W||^2 of LoRA without forming delta W; the anchors
    sample        prompts x seeds -> pictures; the base's chains
    classimages   the class set, made by the frozen base, with its manifest
    train         one loop
    export        weights in the formats that others open
    measure       drift per prompt group: rows
    experiment    run(config) -> runs/personalize/<name>/
    bench         times and memory, side by side
    __main__      the command line

This file imports nothing, so that `personalize --help` is instant.
"""
