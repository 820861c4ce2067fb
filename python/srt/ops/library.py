"""How an op becomes visible to torch.compile: a torch.library registration beside the function.

Outside of compilation the plain function runs: the dispatcher costs more than many kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, Protocol, TypeVar, cast

import torch

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Registered(Protocol[P, R_co]):
    """A function that torch.compile takes as one operation."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    def register_fake(self, fake: Callable[..., object], /) -> object:
        """How outputs of the right shapes are made without computing."""


def register(
    name: str, mutates: tuple[str, ...] = ()
) -> Callable[[Callable[P, R]], Registered[P, R]]:
    """Registers a function of tensors and numbers as `srt::<name>`.

    Args:
        mutates: the arguments that it writes to; no output may be one of them.
    """

    def decorate(plain: Callable[P, R]) -> Registered[P, R]:
        made = torch.library.custom_op(f"srt::{name}", plain, mutates_args=mutates)
        return cast(Registered[P, R], made)

    return decorate


def traced(plain: Callable[P, R], registered: Callable[P, R]) -> Callable[P, R]:
    """`plain`, but what torch.compile sees of it is `registered`."""

    @wraps(plain)
    def op(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return registered(*args, **kwargs)
        return plain(*args, **kwargs)

    return op


def kernel(
    mutates: tuple[str, ...] = (), fake: Callable[..., object] | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """`register` by the function's own name, and `traced`.

    Args:
        fake: see `Registered.register_fake`; not needed where nothing is returned.
    """

    def decorate(plain: Callable[P, R]) -> Callable[P, R]:
        registered = register(plain.__name__, mutates)(plain)
        if fake is not None:
            registered.register_fake(fake)
        return traced(plain, registered)

    return decorate
