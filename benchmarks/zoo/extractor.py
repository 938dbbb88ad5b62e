"""Hyperparameters for RL Baselines3 Zoo: SB3's own policy with MIRL's features extractor."""

from mirl.policies import FusionExtractor

hyperparams = {
    "MiniGrid-GoToDoor-5x5-v0": {
        "env_wrapper": "mirl.envs.ContractObservation",
        "policy": "MultiInputPolicy",
        "policy_kwargs": {
            "features_extractor_class": FusionExtractor,
            "features_extractor_kwargs": {"fusion": "bilinear"},
        },
        "n_envs": 4,
        "n_steps": 32,
        "batch_size": 64,
        "n_timesteps": 512,
    }
}
