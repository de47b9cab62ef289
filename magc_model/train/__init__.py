"""Training: stages, loop, checkpoints, cached latents."""
