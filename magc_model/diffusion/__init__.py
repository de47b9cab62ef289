"""Schedules, samplers and noise as pure functions over one denoiser."""
