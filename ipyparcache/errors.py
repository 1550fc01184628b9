"""The error tree: one class a situation, facts as attributes, the next step in the text.

Every class hands all its facts to `super().__init__`, since an exception is pickled as its class and its `args`
and these errors cross process borders.
"""

from __future__ import annotations


class ParcacheError(Exception):
    """Base of every error that ipyparcache raises on purpose."""


class UnknownSetting(ParcacheError, ValueError):
    """A setting that does not exist."""

    def __init__(self, name: str, nearest: str | None):
        super().__init__(name, nearest)
        self.name = name
        self.nearest = nearest

    def __str__(self) -> str:
        hint = f"; did you mean `{self.nearest}`?" if self.nearest else "; `%parcache set` lists them."
        return f"there is no setting `{self.name}`{hint}"


class BadSetting(ParcacheError, ValueError):
    """A setting whose text cannot be read."""

    def __init__(self, name: str, text: str, expected: str, reason: str):
        super().__init__(name, text, expected, reason)
        self.name = name
        self.text = text
        self.expected = expected
        self.reason = reason

    def __str__(self) -> str:
        return f"setting `{self.name}` cannot be {self.text!r}: {self.reason}. It takes {self.expected}."


class StoreUnavailable(ParcacheError):
    """A store that cannot be written or reached: full, read-only, not a folder, without its signing key."""

    def __init__(self, location: str, reason: str):
        super().__init__(location, reason)
        self.location = location
        self.reason = reason

    def __str__(self) -> str:
        return f"the cache at {self.location} cannot be used: {self.reason}"


class DamagedEntry(ParcacheError):
    """An entry whose content is not what was stored: a miss for every reader."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"cache entry {self.name} is damaged ({self.reason})"
