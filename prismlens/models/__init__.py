"""The latent loop, the processor, checkpoints and the models that ship; knows nothing of hooks or experiments."""
