"""Arguments about the engine."""

from mirl.configs.commands.engines import EngineConfig, add_engine_word
from mirl.configs.compose import validate


def test_engine_words_are_taken() -> None:
    values: dict[str, object] = {}
    for word in ("engine=slurm", "jobs=4", "slurm.partition=gpu", "slurm.time=60"):
        key, _, value = word.partition("=")
        assert add_engine_word(values, key, value)
    assert not add_engine_word(values, "seed", "1")
    config = validate(EngineConfig, values)
    assert (config.engine, config.jobs) == ("slurm", 4)
    assert config.slurm == {"partition": "gpu", "time": "60"}
