"""The error vocabulary: four causes, one sentence each.

1. `ConfigurationError`: a setting or a command line is wrong. Found before anything starts.
2. `DataError`: an environment's answer, a log file or a journal row is not what it must be.
3. `EngineError`: the infrastructure failed (sampler, worker, node, network). Worth a retry elsewhere.
4. `CheckpointError`: saved state cannot be read, or does not belong to this run.

A message names the thing, what was given, and what would work. An error is never turned into a reward.
"""


class MtrlError(Exception):
    """Any failure this project explains; the command line prints its sentence without a traceback."""


class ConfigurationError(MtrlError):
    """A setting, recipe or command line that cannot work; the message names the key and what would."""


class DataError(MtrlError):
    """An environment, a log or a journal gave something that is not a valid conversation."""


class EngineError(MtrlError):
    """A sampler, worker, node or endpoint failed; the same work may succeed elsewhere."""


class CheckpointError(MtrlError):
    """A checkpoint or model folder is torn, missing or of another run."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name if it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
