"""`Ref[T]`: the type of a reference to a value of type `T` in Ray's object store.

Ray's own `ObjectRef` is not generic. An actor's or a task's `remote` gives `Any`; name the type where the reference is
kept, passed or returned (`table: Ref[pa.Table] = task.remote(…)`), and `waiting.fetch` gives the value its type.
"""

from typing import Generic, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Ref(Generic[T_co]):
    """A `ray.ObjectRef`, as the type checker sees it. Never instantiated."""
