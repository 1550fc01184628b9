"""Functions to be cached, and what they note when they run."""

import textwrap

runs = []


def made(text, name="f", **namespace):
    """A function from source, in a namespace of its own, as after an edit."""
    scope = {"__name__": "__main__", "runs": runs, **namespace}
    exec(textwrap.dedent(text), scope)
    return scope[name]


def spelled(a, b=2, *rest, k=3, **more):
    runs.append(1)
    return a, b, rest, k, more
