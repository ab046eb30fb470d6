"""Ray's token authentication, for the clusters that this project starts and those that it joins.

1. It is on for a cluster that is started here, unless RAY_AUTH_MODE=disabled. A cluster that is joined gets the token
   if there is one.
2. The token is Ray's own: RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, or `~/.ray/auth_token`. The last is created
   if there is no token, readable only by its owner. If several processes start at once, one creates it under a lock on
   the file; the others wait for its content.
3. The token appears in no command line, setting or message; processes find it in Ray's usual places.
"""

import fcntl
import os
import secrets
from pathlib import Path

from ray import _raylet

from mtrl_ray.errors import ConfigurationError

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
ON, OFF = "token", "disabled"


def token_file() -> Path:
    """Where Ray looks for the token by itself."""
    return Path.home() / ".ray" / "auth_token"


def switch_on() -> None:
    """Set the mode and create a token, to start a cluster. Raises ConfigurationError if no token can be stored."""
    mode = os.environ.get(MODE, ON).lower()
    if mode not in (ON, OFF):
        raise ConfigurationError(f"{MODE} is {mode!r}; leave it out, or set it to {ON!r} or {OFF!r}")
    if mode == OFF:
        return
    _use()
    if not (os.environ.get(TOKEN) or os.environ.get(TOKEN_PATH)):
        _keep_token()


def join() -> None:
    """Send the token to a cluster that this process joins, if there is one and RAY_AUTH_MODE is not set."""
    known = os.environ.get(TOKEN) or os.environ.get(TOKEN_PATH) or token_file().is_file()
    if MODE not in os.environ and known:
        _use()


def _use() -> None:
    os.environ[MODE] = ON
    _raylet.Config.initialize("")  # type: ignore[attr-defined]  # Ray read the mode when it was imported


def _keep_token() -> None:
    path = token_file()
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            os.fchmod(file.fileno(), 0o600)
            if not file.read().strip():
                file.seek(0)
                file.write(secrets.token_hex(32))
                file.truncate()
    except OSError as error:
        raise ConfigurationError(
            f"a token for Ray cannot be kept in {path} ({error.strerror}); name a file that holds one with {TOKEN_PATH}"
        ) from None
