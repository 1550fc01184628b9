"""`hash` where programs written for joblib look for it, and the hashers that they make themselves."""

from __future__ import annotations

from ipyparcache.digest.joblibhash import hash

__all__ = ["Hasher", "NumpyHasher", "hash"]


class Hasher:
    """Names objects as `hash` does.

    Parameters
    ----------
    hash_name : {'md5', 'sha1'}
        As in `hash`.
    """

    _coerce_mmap = False

    def __init_subclass__(cls) -> None:
        if "save" in vars(cls):
            raise TypeError(
                f"{cls.__name__}.save would never be called: names are not made of pickles here. Give hash() "
                "what the object is to be named by, or let the class of the object say it in __reduce__."
            )

    def __init__(self, hash_name: str = "md5"):
        self._hash_name = hash_name
        hash(None, hash_name)  # an error for a name that is none

    def hash(self, obj: object) -> str:
        """The name of an object."""
        return hash(obj, self._hash_name, self._coerce_mmap)


class NumpyHasher(Hasher):
    """The same with a choice for memory maps.

    Parameters
    ----------
    hash_name, coerce_mmap
        As in `hash`.
    """

    def __init__(self, hash_name: str = "md5", coerce_mmap: bool = False):
        super().__init__(hash_name)
        self._coerce_mmap = coerce_mmap
