"""Agents on latent observations: imports worldvae only, and runs from the repository's root."""
