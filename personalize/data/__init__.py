"""Pictures and prompts in: photographs, latents, subjects and prompt lists."""
