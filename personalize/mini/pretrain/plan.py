"""How long each part of the mini base trains, and how."""

# steps and peak learning rate
PLAN = {
    "vae": (4000, 3e-3),
    "clip": (1200, 1e-3),
    "unet": (9000, 2e-3),
    "dino": (800, 1e-3),
    "classifier": (1200, 2e-3),
}
# trained by Muon, in bfloat16 where the CPU has it; the judges by AdamW in float32
LARGE = ("vae", "unet")
