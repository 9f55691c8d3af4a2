"""Where items come from: rendered scenes, benchmark folders and pictures; knows nothing of models."""
