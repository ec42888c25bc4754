"""What `personalize pretrain` is asked, and how long each part trains. Light: the command line's help reads it."""

# steps and peak learning rate
PLAN = {
    "vae": (7000, 2e-3),
    "clip": (1200, 1e-3),
    "unet": (4800, 1e-3),
    "dino": (800, 1e-3),
    "classifier": (1200, 2e-3),
}
