"""Files that a driver writes into the run's folder: a write error is a failure of the infrastructure (`recovery`)."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtrl_ray.errors import EngineError, first_line


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises EngineError with the path and the cause if the file cannot be written."""
    try:
        yield
    except OSError as error:
        cause = "no space is left there" if error.errno == errno.ENOSPC else first_line(error)
        raise EngineError(f"{path} could not be written: {cause}; free space or give permission") from error
