"""What a notebook has left in its kernel, as text: runs inside the kernel, between two cells.

Two kernels get the same text if no later cell could tell them apart: exact types, the bits of floats, dtypes
and memory order, order of dicts, which mutable objects are the same one (`@df.3` is the third that was met in
`df`), whether a class is the one that its name stands for, the state of iterators, files and random
generators. Nothing of ipyparcache is used, as this is there to check it.
"""

from __future__ import annotations

import collections
import enum
import functools
import hashlib
import io
import operator
import os
import random
import re
import sys
import types
import warnings
from typing import Any

LONG = 240  # characters of a text that are shown whole
PLAIN = (type(None), type(Ellipsis), bool, int, complex, range, slice)
SHOWN_BY_REPR = {"datetime", "decimal", "fractions", "uuid", "pathlib", "re", "zoneinfo"}
# Classes of these are told by their name alone: what they draw or do is seen in the outputs of cells.
OPAQUE = {"IPython", "ipykernel", "ipyparcache", "ipywidgets", "logging", "sqlite3", "threading"}
OPAQUE |= {"_thread", "tqdm"}
# Objects of these hang on a class of their library, whose methods hand them out: two fitted models hold the
# same one, which no pickle keeps.
CONSTANTS = {"sklearn._loss.link.Interval"}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def cut(text: str) -> str:
    if len(text) <= LONG:
        return text
    return f"{text[:60]}…[{len(text)} {sha(text.encode('utf8', 'surrogatepass'))}]"


def without_addresses(text: str) -> str:
    return re.sub(r"0x[0-9a-f]{6,}", "0x", text)


def code_text(code: types.CodeType) -> str:
    """What the code does, wherever it stands."""
    constants = [
        code_text(value)
        if isinstance(value, types.CodeType)
        else repr(sorted(map(repr, value)))
        if isinstance(value, frozenset)
        else repr(value)
        for value in code.co_consts
    ]
    parts = (code.co_code.hex(), code.co_names, code.co_varnames, code.co_freevars, constants)
    return sha(repr(parts).encode("utf8", "surrogatepass"))


class Writer:
    """Writes values as text; mutable objects met again are written by their number."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.namespace = namespace
        self.numbers: dict[int, str] = {}
        self.held: list[object] = []  # so that no other object gets their ids
        self.root, self.met = "", 0

    def variable(self, name: str, value: Any) -> str:
        """Text of a variable; objects that it shares with one written before are named by that."""
        self.root, self.met = name, 0
        return self.text(value)

    def text(self, value: Any) -> str:
        kind = type(value)
        if kind in PLAIN:
            return f"{kind.__name__} {value!r}"
        if kind is float:
            return f"float {value.hex()}"
        if kind is str:
            return cut(repr(value))
        if kind is bytes:
            return f"bytes {len(value)} {sha(value)}"
        if kind is tuple:
            return f"({self.row(value)})"
        if isinstance(value, types.ModuleType):
            return f"module {value.__name__}"
        if isinstance(value, enum.Enum):
            is_member = kind.__members__.get(value.name) is value
            return f"{self.kind(kind)}.{value.name}{'' if is_member else ' (not the member)'}"
        numpy = sys.modules.get("numpy")
        if numpy and isinstance(value, numpy.generic):
            inner = self.text(value.item()) if value.dtype.hasobject else value.tobytes().hex()
            return f"{kind.__name__} {value.dtype.str} {inner}"
        if kind.__name__.endswith("DType") or kind.__module__ in SHOWN_BY_REPR:  # one or many of the same
            return f"{self.kind(kind)} {value!r}"
        if isinstance(value, tuple) and not hasattr(value, "__dict__"):  # immutable, as a named tuple
            return f"{self.kind(kind)}({self.row(value)})"
        if self.kind(kind) in CONSTANTS:
            return f"{self.kind(kind)}({self.attributes(value)})"
        if id(value) in self.numbers:
            return f"@{self.numbers[id(value)]}"
        self.held.append(value)
        self.met += 1
        self.numbers[id(value)] = number = f"{self.root}.{self.met}"
        return f"@{number}={self.large(value, kind)}"

    def row(self, values: Any) -> str:
        return ", ".join(self.text(value) for value in values)

    def pairs(self, mapping: Any) -> str:
        return ", ".join(f"{self.text(key)}: {self.text(value)}" for key, value in mapping.items())

    def members(self, values: Any) -> str:
        """Of a set: sorted by what they are, not by when they were met."""
        return ", ".join(sorted(re.sub(r"@\d+=?", "", self.text(value)) for value in values))

    def kind(self, kind: type) -> str:
        """A class's name, and whether that name stands for another class by now."""
        name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
        if kind.__module__ != "__main__" or "<locals>" in name:
            return name
        found: Any = self.namespace
        for part in kind.__qualname__.split("."):
            found = found.get(part) if isinstance(found, dict) else getattr(found, part, None)
        return name if found is kind else f"{name} (an older class)"

    def attributes(self, value: Any) -> str:
        found = dict(getattr(value, "__dict__", {}))
        for kind in type(value).__mro__:
            slots = vars(kind).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                    found[name] = getattr(value, name)
        return ", ".join(f"{name}={self.text(found[name])}" for name in sorted(found, key=str))

    def large(self, value: Any, kind: type) -> str:
        name, package = self.kind(kind), kind.__module__.partition(".")[0]
        if isinstance(value, types.FunctionType):
            return self.function(value)
        if isinstance(value, types.MethodType):
            return f"method {self.text(value.__func__)} of {self.text(value.__self__)}"
        if isinstance(value, types.BuiltinFunctionType):
            return f"builtin {value.__qualname__}"
        if isinstance(value, functools.partial):
            return f"partial {self.row((value.func, value.args, value.keywords))}"
        if kind.__name__ == "_lru_cache_wrapper":
            # `cache_info()` counts the calls of this kernel only; what is remembered is counted here.
            return f"memo of {self.text(value.__wrapped__)} with {value.cache_info().currsize}"
        if isinstance(value, type):
            return self.defined(value)
        if isinstance(value, staticmethod | classmethod):
            return f"{name} {self.text(value.__func__)}"
        if isinstance(value, property):
            return f"property {self.row((value.fget, value.fset, value.fdel))}"
        if package in ("numpy", "pandas", "matplotlib", "scipy"):
            written = getattr(self, package)(value)
            if written is not None:
                return f"{name} {written}"
        if isinstance(value, random.Random):
            return f"{name} {sha(repr(value.getstate()).encode())}"
        if isinstance(value, io.IOBase):
            place = "closed" if value.closed else f"at {value.tell()}"
            return f"{name} {getattr(value, 'name', '')} {place}"
        if package in OPAQUE and not isinstance(value, BaseException):
            return f"<{name}>"
        return self.container(value, kind, name)

    def container(self, value: Any, kind: type, name: str) -> str:
        own = "" if kind.__module__ in ("builtins", "collections") else self.attributes(value)
        own = f" {{{own}}}" if own else ""
        if isinstance(value, BaseException):
            return f"{name}({self.row(value.args)}) notes {getattr(value, '__notes__', None)}{own}"
        if isinstance(value, list | tuple | collections.deque):
            limit = f" maxlen {value.maxlen}" if isinstance(value, collections.deque) else ""
            return f"{name} [{self.row(value)}]{limit}{own}"
        if isinstance(value, set | frozenset):
            return f"{name} {{{self.members(value)}}}{own}"
        if isinstance(value, dict):
            factory = getattr(value, "default_factory", None)
            more = f" default {self.text(factory)}" if factory else ""
            return f"{name} {{{self.pairs(value)}}}{more}{own}"
        if isinstance(value, int | float | str | bytes):
            base = next(base for base in (int, float, str, bytes) if isinstance(value, base))
            return f"{name} {base.__repr__(value)}{own}"
        if isinstance(value, bytearray | memoryview):
            return f"{name} {len(value)} {sha(bytes(value))}"
        if isinstance(value, types.GeneratorType):
            line = value.gi_frame.f_lineno if value.gi_frame else "ended"
            return f"generator {value.__qualname__} {line if isinstance(line, str) else 'suspended'}"
        if hasattr(value, "__next__"):
            return f"iterator {name} {operator.length_hint(value, -1)}{own}"
        if own or hasattr(value, "__dict__"):
            return f"{name}{own}"
        return f"{name} {without_addresses(repr(value))}"

    def function(self, value: types.FunctionType) -> str:
        is_ours = value.__module__ == "__main__" and value.__globals__ is not self.namespace
        cells = []
        for cell in value.__closure__ or ():
            try:
                cells.append(self.text(cell.cell_contents))
            except ValueError:
                cells.append("(empty)")
        return (
            f"function {value.__module__}.{value.__qualname__} {code_text(value.__code__)} "
            f"defaults {self.row((value.__defaults__, value.__kwdefaults__))} closure [{', '.join(cells)}] "
            f"{{{self.pairs(vars(value))}}}{' (over other globals)' if is_ours else ''}"
        )

    def defined(self, value: type) -> str:
        if value.__module__ != "__main__":
            return f"class {self.kind(value)}"
        told = ("__init__", "__repr__", "__call__", "__doc__", "__eq__")
        body = {
            name: member
            for name, member in vars(value).items()
            if (not name.startswith("__") or name in told)
            and not isinstance(member, types.GetSetDescriptorType | types.MemberDescriptorType)
            and name != "_abc_impl"
        }
        inner = ", ".join(f"{name}={self.text(body[name])}" for name in sorted(body))
        return f"class {self.kind(value)}({self.row(value.__bases__)}) {inner}"

    def numpy(self, value: Any) -> str | None:
        np = sys.modules["numpy"]
        if isinstance(value, np.random.Generator):
            return self.text(value.bit_generator.state)
        if isinstance(value, np.random.RandomState):
            return sha(repr(value.get_state()[1].tolist() + list(value.get_state()[2:])).encode())
        if isinstance(value, np.ndarray):
            return self.array(value)
        return without_addresses(repr(value))

    def array(self, value: Any) -> str:
        np = sys.modules["numpy"]
        order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
        head = f"{value.dtype.descr if value.dtype.names else value.dtype.str} {value.shape} {order}"
        head += "" if value.flags.writeable else " read-only"
        if isinstance(value, np.ma.MaskedArray):
            head += f" mask {sha(np.ma.getmaskarray(value).tobytes())} fill {value.fill_value!r}"
            value = value.data
        flat = np.asarray(value).ravel()
        if value.dtype.hasobject:
            return f"{head} [{self.row(flat.tolist())}]"
        if value.dtype.names:  # field by field, as what lies between fields is not set
            return f"{head} [{', '.join(self.array(value[name]) for name in value.dtype.names)}]"
        shown = flat.tolist() if value.size <= 8 and value.dtype.kind in "iub" else sha(flat.tobytes())
        return f"{head} {shown}"

    def pandas(self, value: Any) -> str | None:
        pd = sys.modules["pandas"]
        if isinstance(value, pd.DataFrame):
            columns = (self.column(value.iloc[:, number].array) for number in range(value.shape[1]))
            axes = f"index {self.index(value.index)} columns {self.index(value.columns)}"
            return f"{axes} attrs {self.text(value.attrs)} [{'; '.join(columns)}]"
        if isinstance(value, pd.Series):
            return f"{value.name!r} index {self.index(value.index)} {self.column(value.array)}"
        if isinstance(value, pd.Index):
            return self.index(value)
        if isinstance(value, pd.api.extensions.ExtensionArray):
            return self.column(value)
        return cut(without_addresses(repr(value)))

    def column(self, array: Any) -> str:
        import numpy as np

        plain = array.to_numpy() if type(array).__name__ == "NumpyExtensionArray" else array
        if isinstance(plain, np.ndarray):
            return self.array(plain).removesuffix(" read-only")
        if hasattr(array, "categories"):
            ordered = " ordered" if array.ordered else ""
            return f"categories {self.index(array.categories)}{ordered} codes {array.codes.tolist()!r:.200}"
        return f"{array.dtype!r} {cut(repr([repr(one) for one in array]))}"

    def index(self, index: Any) -> str:
        frequency = f" {index.freqstr}" if getattr(index, "freq", None) is not None else ""
        numbers = index.asi8 if hasattr(index, "asi8") else index.to_numpy()
        is_long = len(index) > 20 and numbers.dtype.kind in "biufmM"
        values = sha(numbers.tobytes()) if is_long else cut(repr(index.tolist()))
        return f"{type(index).__name__} {index.dtype} {list(index.names)!r}{frequency} {len(index)} {values}"

    def scipy(self, value: Any) -> str | None:
        if hasattr(value, "tocoo"):
            coo = value.tocoo()
            return f"{value.shape} {self.array(coo.data)} at {sha(repr(coo.coords).encode())}"
        return None

    def matplotlib(self, value: Any) -> str | None:
        """A figure by what was drawn into it."""
        if hasattr(value, "axes") and hasattr(value, "savefig"):
            return f"{value.get_size_inches().tolist()} [{'; '.join(map(self.drawn, value.axes))}]"
        if hasattr(value, "get_lines") and hasattr(value, "get_xlabel"):
            return self.drawn(value)
        return "(drawn)"

    def drawn(self, axes: Any) -> str:
        lines = [sha(line.get_xydata().tobytes()) for line in axes.get_lines()]
        labels = (axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), axes.get_xlim(), axes.get_ylim())
        return f"{labels!r} lines {lines} patches {len(axes.patches)} others {len(axes.collections)}"


def process_state(expressions: list[str], namespace: dict[str, Any]) -> dict[str, str]:
    """What a cell can change outside the namespace, and what the notebook wants watched besides."""
    import logging

    found = {
        "(folder)": os.getcwd(),
        "(import path)": repr(sys.path),
        "(warning filters)": repr(len(warnings.filters)),
        "(log levels)": repr(
            sorted(
                (name, logger.level, len(logger.handlers))
                for name, logger in logging.root.manager.loggerDict.items()
                if isinstance(logger, logging.Logger) and (logger.level or logger.handlers)
            )
        ),
        "(environment)": sha(
            repr(sorted((k, v) for k, v in os.environ.items() if not k.startswith("JPY_"))).encode()
        ),
    }
    if "matplotlib" in sys.modules and "matplotlib.pyplot" in sys.modules:
        found["(figures)"] = repr(sys.modules["matplotlib.pyplot"].get_fignums())
        matplotlib = sys.modules["matplotlib"]
        usual = matplotlib.rcParamsDefault
        found["(rcParams)"] = repr(
            {key: value for key, value in matplotlib.rcParams.items() if key in usual and value != usual[key]}
        )
        found["(interactive)"] = repr(matplotlib.is_interactive())
    if "numpy" in sys.modules:
        found["(print options)"] = repr(sorted(sys.modules["numpy"].get_printoptions().items(), key=str))
    for expression in expressions:
        try:
            found[f"({expression})"] = Writer(namespace).text(eval(expression, namespace))
        except Exception as error:
            found[f"({expression})"] = f"{type(error).__name__}: {error}"
    return found


def state(shell: Any, leave_out: list[str], watch: list[str]) -> dict[str, str]:
    """Text of every variable of the user, of what `Out` and `_` hold, and of the state of the process."""
    namespace, hidden, written = shell.user_ns, shell.user_ns_hidden, {}
    writer = Writer(namespace)
    for name in sorted(namespace):
        value = namespace[name]
        is_shells = name.startswith("_") or (name in hidden and hidden[name] is value)
        if not is_shells and name not in leave_out:
            written[name] = writer.variable(name, value)
    for number, value in namespace["Out"].items():
        written[f"Out[{number}]"] = writer.variable(f"Out[{number}]", value)
    written["_"] = writer.variable("_", namespace.get("_"))
    return written | process_state(watch, namespace)
