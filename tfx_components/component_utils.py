"""What more than one component needs: checks of parameters, errors that leave nothing."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

_PLAIN = (bool, int, float, str, list, type(None))


def checked_at_construction(check: Callable[[dict[str, Any]], Any]) -> Callable[[Any], Any]:
    """A decorator that makes a component class check its parameters at construction.

    `check` gets the parameters whose values are known then, by name (a runtime parameter's is
    not), and raises ValueError for one out of range.
    """

    def decorate(component: Any) -> Any:
        def __init__(self: Any, **kwargs: Any) -> None:
            try:
                check({name: v for name, v in kwargs.items() if isinstance(v, _PLAIN)})
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
def error_context(where: str, uris: Sequence[str] = ()) -> Iterator[None]:
    """Raises any error as a ValueError that begins with `where`; empties the directories."""
    try:
        yield
    except Exception as error:
        for uri in uris:
            with contextlib.suppress(tf.errors.OpError):
                remove_children(uri)
        raise ValueError(f"{where}: {error}") from error


def remove_children(directory: str, prefix: str = "") -> None:
    """Removes the files and directories in a directory whose names have a prefix."""
    for entry in tf.io.gfile.listdir(directory):
        entry = entry.rstrip("/")  # object stores end directory names with a slash
        if entry.startswith(prefix):
            path = os.path.join(directory, entry)
            remove = tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove
            remove(path)
