"""personalize: one trainer, five objectives, on Stable Diffusion's real classes.

Read in this order; a module imports only from those above it. Objectives, schedule and drift are toy2d's own; no loss is defined here.

    presets        named settings, each with its source
    config         TrainConfig: diffusers' flag names and defaults; rules: what has no effect is an error
    flags          what a preset becomes under the flags beside it
    kinds          what can train, as data; concepts: several subjects in one run
    sharding       one network over several processes (FSDP2): cut, and put together again
    photos         a folder of photographs: what is usable, what is not and why
    families       what differs between SD-1.5, SDXL and SD-3, as three values
    tiny           pipelines for trying things: real classes, random weights
    backbone       a pipeline opened: what denoises, what encodes, what the frozen base answers
    model          load; choose: what trains; words: new tokens, the table beside them untouched
    changes        what each adapter does to a weight, ||delta W||^2 without forming it; adapters: the anchors
    data           pictures -> latents, prompts -> embeddings, each computed once
    sample         prompts x seeds -> pictures
    classimages    the class set, made by the frozen base, with its manifest
    subjects       the pictures of all concepts as one set
    timesteps      which noise levels are drawn, and how much each counts
    processes      several processes, one run: shares, means, who writes; configs/ for accelerate
    train          one loop, with state (exact resume), engine, prepare, fisher and validate beside it
    card, export   weights as folders that appear whole; reopen: put back onto their base; delta: the authors' delta.bin
    formats        kohya, PEFT, Custom Diffusion, words, diffusers, merged; each opened again by its loader (official, export_run)
    measure        drift per prompt group: rows
    experiment     run(config) -> runs/personalize/<name>/
    dryrun         what a run would do and cost, from three real steps
    bench          times side by side; stand: its random networks; memory: dry run against run, by preset
    pictures       a finished run's grids
    prompts        what evaluation asks for: the benchmark's lists, the mini's world, files; metrics: closed forms of features
    evaluators     CLIP, DINO, LPIPS; gallery: pictures kept; score, summary: rows and their means
    evaluate       one model judged, from the command line by evaluate_run
    compare        what a comparison is: objectives x weights x subjects x seeds; jobs: the TrainConfig of each run
    fleet          many runs at one call site: local processes, dask, ray, SLURM
    comparison     run(config): train and evaluate all, the base's part made once; record, table: the numbers
    report         toy and full scale on one page; readings: its sentences; drawings: its figures; page: its template
    __main__       the command line

This file imports nothing, so that `personalize --help` is instant.
"""
