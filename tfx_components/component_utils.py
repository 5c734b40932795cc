"""What the components share: checks at construction, errors that name the component."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

_PLAIN = (bool, int, float, str, list, type(None))


def checked_at_construction(check: Callable[[dict[str, Any]], None]) -> Callable[[Any], Any]:
    """Makes a component class check its parameters when a pipeline is put together.

    Args:
      check: called with the parameters whose values are known then (a runtime parameter's is
        not); raises ValueError for one out of range.

    Returns:
      A decorator of component classes.
    """

    def decorate(component: Any) -> Any:
        def __init__(self: Any, **kwargs: Any) -> None:
            known = {name: value for name, value in kwargs.items() if isinstance(value, _PLAIN)}
            try:
                check(known)
            except ValueError as error:
                raise ValueError(f"{component.__name__}: {error}") from error
            component.__init__(self, **kwargs)

        namespace = {
            "__init__": __init__,
            "__module__": component.__module__,
            "__doc__": component.test_call.__doc__,
        }
        return type(component.__name__, (component,), namespace)

    return decorate


@contextlib.contextmanager
def naming_errors(name: str, uris: Sequence[str]) -> Iterator[None]:
    """Names the component in what goes wrong, and leaves nothing half-written behind.

    Args:
      name: the component's.
      uris: directories of its outputs; emptied on an error.

    Raises:
      ValueError: whatever was raised, with the component's name before its message.
    """
    try:
        yield
    except Exception as error:
        for uri in uris:
            with contextlib.suppress(tf.errors.OpError):
                remove_children(uri)
        raise ValueError(f"{name}: {error}") from error


def remove_children(directory: str, prefix: str = "") -> None:
    """Removes the files and directories in a directory whose names begin so."""
    for entry in tf.io.gfile.listdir(directory):
        entry = entry.rstrip("/")  # object stores name directories so
        if entry.startswith(prefix):
            path = os.path.join(directory, entry)
            remove = tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove
            remove(path)
