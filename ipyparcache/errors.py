"""The error tree: one class a situation, facts as attributes, the next step in the text.

Every class hands all its facts to `super().__init__`, since an exception is pickled as its class and its `args`
and these errors cross process borders.
"""

from __future__ import annotations


class ParcacheError(Exception):
    """Base of every error that ipyparcache raises on purpose."""
