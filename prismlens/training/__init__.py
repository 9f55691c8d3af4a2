"""Training of the tiny models: architecture, sequences, objective, variants, and the recipe that builds the zoo."""
