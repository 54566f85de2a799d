"""Ray Train: the loop of a worker is the plain loop; needs ``pip install 'ray[train]'``, which rankwise does not."""

from __future__ import annotations

from pathlib import Path

import ray
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer


def loop() -> None:
    """Train in one worker; with more, ``ray.train.torch.prepare_model`` wraps the model."""
    import plain_loop

    plain_loop.main()


def main() -> None:
    ray.init(num_cpus=2, runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}})
    TorchTrainer(loop, scaling_config=ScalingConfig(num_workers=1)).fit()


if __name__ == "__main__":
    main()
