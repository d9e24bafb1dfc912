"""Run-time checks of every annotation under pytest, for a tenth of what jaxtyping's hook takes.

The hook gives every function of the package the context in which names of axes are compared: about
10 us a call, more than most of these functions take. A module without torch has no tensor and so
no axis (nor is it ever traced, which turns the checks off): unless an annotation says otherwise,
its functions are given to the type checker as they are.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, ForwardRef, Literal, get_args, get_origin

import jaxtyping

with_axes = jaxtyping.jaxtyped


def has_axes(annotation: object) -> bool:
    """Whether an array with named axes is part of the annotation; what is in quotes may be one."""
    if get_origin(annotation) is Literal:
        return False
    if isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    # The arguments of a Callable are a list of their own.
    parts = annotation if isinstance(annotation, list) else get_args(annotation)
    return isinstance(annotation, str | ForwardRef) or any(map(has_axes, parts))


def jaxtyped(*, typechecker: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """In place of `jaxtyping.jaxtyped`, which the hook calls for each function and class."""

    def check(checked: Any) -> Any:
        if inspect.isclass(checked):
            if dataclasses.is_dataclass(checked) and "__init__" in vars(checked):
                checked.__init__ = check(checked.__init__)
            return checked
        assert inspect.isfunction(checked), "the hook's decorator is the innermost"
        annotations = inspect.get_annotations(checked).values()
        if "torch" in checked.__globals__ or any(map(has_axes, annotations)):
            return with_axes(checked, typechecker=typechecker)
        return typechecker(checked)

    return check
