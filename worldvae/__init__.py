"""worldvae: the compression layer between pixels and agents."""

from worldvae.checkpoint import CheckpointError
from worldvae.environments import make_vector_env
from worldvae.frames import FrameSpec, to_frames
from worldvae.latents import LatentStore, encode
from worldvae.objective import ObjectiveConfig
from worldvae.record import record
from worldvae.rollouts import Episode, RolloutStore
from worldvae.training import VAETrainingConfig, train_vae
from worldvae.vae import DiagonalGaussian, FrameVAE, FrameVAEConfig
from worldvae.wrappers import LatentObservation, LatentVectorObservation

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "DiagonalGaussian",
    "Episode",
    "FrameSpec",
    "FrameVAE",
    "FrameVAEConfig",
    "LatentObservation",
    "LatentStore",
    "LatentVectorObservation",
    "ObjectiveConfig",
    "RolloutStore",
    "VAETrainingConfig",
    "encode",
    "make_vector_env",
    "record",
    "to_frames",
    "train_vae",
]
