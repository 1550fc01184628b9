"""`Parallel` and what belongs to it, as joblib's users know them.

A call becomes a `dispatch.Run`: a source of (function, arguments, keywords), the options, and a crew of
workers; here lie joblib's names and rules, there everything about sending, timing and failing.
"""

from __future__ import annotations

import ast
import contextlib
import dis
import functools
import math
import multiprocessing
import operator
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from types import CodeType, GeneratorType, TracebackType
from typing import Any, Literal

from ipyparcache.engine import worker
from ipyparcache.engine.cpus import cpu_count
from ipyparcache.engine.outcome import Error
from ipyparcache.engine.pool import can_have_processes
from ipyparcache.errors import TaskTimeout
from ipyparcache.parallel.dispatch import Done, Options, Run, Source

Triple = tuple[Callable[..., object], tuple[object, ...], dict[str, object]]

# Backend names as users write them, and as the engine knows them.
NAMES = {
    "processes": "processes",
    "loky": "processes",
    "multiprocessing": "processes",
    "threads": "threads",
    "threading": "threads",
    "sequential": "sequential",
}
UNSET: Any = type("Unset", (), {"__repr__": lambda self: "default"})()
DEFAULTS: dict[str, Any] = {
    "backend": None,
    "n_jobs": None,
    "verbose": 0,
    "temp_folder": None,
    "max_nbytes": "1M",
    "mmap_mode": "r",
    "prefer": None,
    "require": None,
    "inner_max_num_threads": None,
}


# -- delayed ----------------------------------------------------------------------------------------------

_last_delayed: tuple[object, Any] = (None, None)


def delayed(function: Callable[..., Any]) -> Callable[..., Triple]:
    """Decorate a function so that a call returns (function, arguments, keywords) and runs nothing."""
    # People write `delayed(f)(i) for i in ...`: wrapping anew for each task costs more than running it.
    global _last_delayed
    last, made = _last_delayed
    if last is function:
        return made  # type: ignore[no-any-return]

    def delayed_function(*args: object, **kwargs: object) -> Triple:
        return function, args, kwargs

    with contextlib.suppress(AttributeError):  # some callables lack what it copies
        delayed_function = functools.wraps(function)(delayed_function)
    _last_delayed = (function, delayed_function)
    return delayed_function


def _forget_delayed() -> None:
    global _last_delayed
    _last_delayed = (None, None)


# -- configuration ----------------------------------------------------------------------------------------


class _Context(threading.local):
    """Settings of the contexts that this thread is in, innermost last, and how deep its task is nested."""

    def __init__(self) -> None:
        self.settings: list[dict[str, Any]] = []
        self.level = 0


_context = _Context()


def nesting_level() -> int:
    """0 outside of tasks, 1 inside of one, 2 inside of a task of that."""
    return _context.level + (1 if worker.is_worker() else 0)


@contextlib.contextmanager
def _nested(level: int) -> Iterator[None]:
    before, _context.level = _context.level, level
    try:
        yield
    finally:
        _context.level = before


def configured(name: str, given: Any = UNSET) -> Any:
    """The value of a setting: the argument, else the innermost context that names it, else the default."""
    if given is not UNSET and given is not None:
        return given
    for settings in reversed(_context.settings):
        if settings.get(name, UNSET) is not UNSET:
            return settings[name]
    return DEFAULTS[name]


class parallel_config:
    """Set defaults of `Parallel` for the calls of this thread, from construction on or for a `with` block."""

    def __init__(
        self,
        backend: str | None = UNSET,
        *,
        n_jobs: int | None = UNSET,
        verbose: int = UNSET,
        temp_folder: str | None = UNSET,
        max_nbytes: int | str | None = UNSET,
        mmap_mode: str | None = UNSET,
        prefer: str | None = UNSET,
        require: str | None = UNSET,
        inner_max_num_threads: int | None = UNSET,
        **backend_params: Any,
    ):
        given = {
            "backend": backend,
            "n_jobs": n_jobs,
            "verbose": verbose,
            "temp_folder": temp_folder,
            "max_nbytes": max_nbytes,
            "mmap_mode": mmap_mode,
            "prefer": prefer,
            "require": require,
            "inner_max_num_threads": inner_max_num_threads,
        }
        if backend is not UNSET and backend is not None:
            engine_name(backend)
        elif inner_max_num_threads is not UNSET or backend_params:
            raise ValueError(
                "inner_max_num_threads and backend parameters are only supported when backend is not None"
            )
        if backend_params:
            raise TypeError(f"unknown arguments for this backend: {', '.join(sorted(backend_params))}")
        self._settings = {name: value for name, value in given.items() if value is not UNSET}
        _context.settings.append(self._settings)

    def __enter__(self) -> dict[str, Any]:
        return {name: configured(name) for name in DEFAULTS}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.unregister()

    def unregister(self) -> None:
        """Undo it."""
        _context.settings[:] = [kept for kept in _context.settings if kept is not self._settings]


class parallel_backend(parallel_config):
    """The older form of `parallel_config`: the backend must be named, and all processors are the default."""

    def __init__(
        self, backend: str, n_jobs: int = -1, inner_max_num_threads: int | None = None, **backend_params: Any
    ):
        inner: Any = UNSET if inner_max_num_threads is None else inner_max_num_threads
        super().__init__(backend, n_jobs=n_jobs, inner_max_num_threads=inner, **backend_params)

    def __enter__(self) -> Any:
        return self._settings["backend"], self._settings["n_jobs"]


def engine_name(backend: object) -> str:
    """The engine's name of a backend; ValueError for an unknown one."""
    if isinstance(backend, str) and backend in NAMES:
        return NAMES[backend]
    raise ValueError(f"Invalid backend: {backend!r}, expected one of {sorted(NAMES)}")


def to_count(n_jobs: Any) -> int:
    """How many workers a value of `n_jobs` stands for: -1 all processors, -2 all but one."""
    try:
        count = int(n_jobs)
    except ValueError as error:
        raise ValueError("n_jobs could not be converted to int") from error
    if count == 0:
        raise ValueError("n_jobs == 0 in Parallel has no meaning")
    return count if count > 0 else max(cpu_count() + 1 + count, 1)


def effective_n_jobs(n_jobs: int | None = -1) -> int:
    """How many workers a `Parallel` with this `n_jobs` would use here."""
    if n_jobs is None:
        n_jobs = configured("n_jobs")
    if n_jobs is None or nesting_level() > 1:
        return 1
    return to_count(n_jobs)


# -- the input --------------------------------------------------------------------------------------------

_CONTAINERS: tuple[Iterable[object], ...] = ([], (), range(0), {}, {}.values(), {}.items(), set(), "", b"")
_PLAIN_ITERATORS = {type(iter(made)) for made in _CONTAINERS}


def _calls_in(code: CodeType) -> int:
    return sum(
        1 for step in dis.get_instructions(code) if step.opname in ("CALL", "CALL_KW", "CALL_FUNCTION_EX")
    )


def is_transparent(tasks: object) -> bool:
    """Whether drawing a task runs no code of the user, so that no argument can change between two of them.

    True for lists, and for `delayed(f)(x, i) for i in range(n)` with nothing called but `delayed(f)` and its
    result.
    """
    if isinstance(tasks, (list, tuple)):
        return True
    if type(tasks) is not GeneratorType or tasks.gi_frame is None or tasks.gi_code.co_name != "<genexpr>":
        return False
    source = tasks.gi_frame.f_locals.get(".0")
    code = tasks.gi_code
    stores = any(
        step.opname.startswith(("STORE_SUBSCR", "STORE_ATTR")) for step in dis.get_instructions(code)
    )
    if type(source) not in _PLAIN_ITERATORS or stores:
        return False
    names = {step.argval for step in dis.get_instructions(code) if step.opname.startswith("LOAD_GLOBAL")}
    spaces = tasks.gi_frame.f_globals
    return _calls_in(code) == 2 and any(spaces.get(name) is delayed for name in names)


def parse_ahead(text: Any, n_jobs: int) -> int | None:
    """How many tasks `pre_dispatch` allows to be under way; None for all."""
    if text == "all":
        return None
    if isinstance(text, str):
        text = evaluate(text.replace("n_jobs", str(n_jobs)))
    count = int(text)
    if count <= 0:
        raise ValueError(f"pre_dispatch must allow at least one task, it is {count}")
    return count


_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
}


def evaluate(text: str) -> float:
    """The value of an arithmetic expression of numbers."""

    def value(node: ast.expr) -> float:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            number: float = node.value  # type: ignore[assignment]
        elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            left, right = value(node.left), value(node.right)
            if isinstance(node.op, ast.Pow) and abs(right) > 100:
                raise ValueError(f"{text!r} is too large")
            number = _OPERATORS[type(node.op)](left, right)
        elif isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
            number = _OPERATORS[type(node.op)](value(node.operand))
        else:
            raise ValueError(f"{text!r} is no arithmetic expression")
        if isinstance(number, complex) or math.isnan(number) or abs(number) > 1e6:
            raise ValueError(f"{text!r} is too large")
        return number

    if len(text) > 30:
        raise ValueError(f"{text!r} is too long for an expression")
    try:
        return value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ArithmeticError) as error:
        raise ValueError(f"{text!r} is no arithmetic expression: {error}") from error


# -- Parallel ---------------------------------------------------------------------------------------------


class Parallel:
    """Run calls made with `delayed` on workers, and return their results in order.

    The parameters are joblib's. Beyond them: `on_error="collect"` puts the `Error` of a failed task in the
    place of its result and goes on, `retries` counts further attempts at a task that failed, and `timeout`
    counts from each task's own start, after which its worker is replaced.
    """

    def __init__(
        self,
        n_jobs: Any = UNSET,
        backend: Any = UNSET,
        return_as: str = "list",
        verbose: int = UNSET,
        timeout: float | None = None,
        pre_dispatch: Any = "2 * n_jobs",
        batch_size: Any = "auto",
        temp_folder: str | None = UNSET,
        max_nbytes: int | str | None = UNSET,
        mmap_mode: str | None = UNSET,
        prefer: str | None = UNSET,
        require: str | None = UNSET,
        *,
        return_generator: bool | None = None,
        on_error: Literal["raise", "collect"] = "raise",
        retries: int = 0,
        inner_max_num_threads: int | None = UNSET,
    ):
        if return_generator is not None:
            if return_generator and return_as == "generator_unordered":
                raise ValueError("return_generator=True contradicts return_as='generator_unordered'")
            return_as = "generator" if return_generator else "list"
        if return_as not in ("list", "generator", "generator_unordered"):
            raise ValueError(
                f"return_as must be 'list', 'generator' or 'generator_unordered', not {return_as!r}"
            )
        if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size <= 0):
            raise ValueError(f"batch_size must be 'auto' or a positive integer, got: {batch_size!r}")
        self.return_as = return_as
        self.return_generator = return_as != "list"
        self.return_ordered = return_as != "generator_unordered"
        self.n_jobs = configured("n_jobs", n_jobs)
        self.verbose = configured("verbose", verbose)
        self.prefer = configured("prefer", prefer)
        self.require = configured("require", require)
        self.timeout = timeout
        self.pre_dispatch = pre_dispatch
        self.batch_size = batch_size
        self.on_error = on_error
        self.retries = retries
        self.inner_max_num_threads = configured("inner_max_num_threads", inner_max_num_threads)
        self.backend = self._chosen_backend(backend)
        if self.n_jobs is None:
            self.n_jobs = 1
        else:
            try:
                self.n_jobs = int(self.n_jobs)
            except ValueError as error:
                raise ValueError("n_jobs could not be converted to int") from error
        self._running: Callable[[], object] | None = None

    def _chosen_backend(self, backend: Any) -> str:
        for name, value, known in (
            ("prefer", self.prefer, ("processes", "threads", None)),
            ("require", self.require, ("sharedmem", None)),
        ):
            if value not in known:
                raise ValueError(f"{name}={value} is not a valid choice, expected one of {known}")
        if self.prefer == "processes" and self.require == "sharedmem":
            raise ValueError("prefer='processes' and require='sharedmem' contradict each other")
        explicit = backend is not UNSET and backend is not None
        named = backend if explicit else configured("backend")
        if named is not None:
            chosen = engine_name(named)
            if self.require == "sharedmem" and chosen == "processes":
                if explicit:
                    raise ValueError(
                        f"backend {named!r} has no shared memory, which require='sharedmem' asks for"
                    )
                chosen = "threads"
        elif self.require == "sharedmem" or self.prefer == "threads" or nesting_level() == 1:
            chosen = "threads"
        elif nesting_level() > 1:
            chosen = "sequential"
        else:
            chosen = "processes"
        if chosen == "processes" and not can_have_processes():
            import warnings

            warnings.warn(
                "this system has no worker processes: tasks run on threads", UserWarning, stacklevel=4
            )
            chosen = "threads"
        return chosen

    def __enter__(self) -> Parallel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        running = self._running() if self._running is not None else None
        if isinstance(running, GeneratorType):
            running.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n_jobs={self.n_jobs})"

    def __call__(self, iterable: Iterable[Triple]) -> Any:
        """Run the calls of the iterable; a list of their results, or a generator of them."""
        if self._running is not None and self._running() is not None:
            raise RuntimeError("This Parallel instance is already running")
        count = to_count(self.n_jobs)
        serial = count == 1 or self.backend == "sequential"
        if self.return_as == "list":
            self._running = lambda: self
            try:
                return list(self._serially(iterable)) if serial else self._as_list(iterable, count)
            finally:
                self._running = None
                _forget_delayed()
        if serial:
            results: Generator[Any, None, None] = self._serially(iterable)
        else:
            results = self._as_generator(iterable, count)
            next(results)  # the tasks start now, not with the first result that is asked for
        self._running = weakref.ref(results)
        return results

    def _serially(self, iterable: Iterable[Triple]) -> Generator[Any, None, None]:
        size = 1 if self.batch_size == "auto" else self.batch_size
        tasks = iter(iterable)
        while batch := list(islice(tasks, size)):
            for function, arguments, keywords in batch:
                yield function(*arguments, **keywords)

    def _run(
        self, iterable: Iterable[Triple], count: int, cancelled: threading.Event | None = None
    ) -> Run | None:
        ahead = parse_ahead(self.pre_dispatch, count)
        if ahead is None and not isinstance(iterable, (list, tuple)):
            iterable = list(iterable)
        source = Source(iterable, triples=True, careful=not is_transparent(iterable))
        function = source.peek_function()
        if function is None:
            return None
        options = Options(
            n_jobs=count,
            backend=self.backend,
            batch=None if self.batch_size == "auto" else self.batch_size,
            timeout=self.timeout,
            retries=self.retries,
            on_error=self.on_error,
            inner_threads=self.inner_max_num_threads,
        )
        level = nesting_level() + 1
        default = self.pre_dispatch in ("2 * n_jobs", "2*n_jobs")
        return Run(
            function,
            source,
            options,
            cancelled=cancelled,
            around_thread=lambda: _nested(level),
            ahead=None if default or ahead is None else ahead,
        )

    def _unwrapped(self, value: Error) -> Any:
        if self.on_error == "collect":
            return value
        error = value.exception
        if isinstance(error, TaskTimeout):
            raise multiprocessing.TimeoutError(str(error)) from error
        return value.unwrap()

    def _as_list(self, iterable: Iterable[Triple], count: int) -> list[Any]:
        run = self._run(iterable, count)
        if run is None:
            return []
        results: list[Any] = []
        missing = object()
        for done in run:
            end = done.first + len(done.values)
            if done.failed:
                done.values[0] = self._unwrapped(done.values[0])
            if done.first == len(results):
                results += done.values
                continue
            if end > len(results):
                results += [missing] * (end - len(results))
            results[done.first : end] = done.values
        return results

    def _as_generator(self, iterable: Iterable[Triple], count: int) -> Generator[Any, None, None]:
        """Results as they come, in order or not; a thread of its own keeps the workers busy meanwhile."""
        found: queue.SimpleQueue[Done | BaseException | None] = queue.SimpleQueue()
        cancelled = threading.Event()
        run = self._run(iterable, count, cancelled)

        def drive() -> None:
            try:
                if run is not None:
                    for done in run:
                        found.put(done)
                        if cancelled.is_set():
                            break
                found.put(None)
            except BaseException as error:
                found.put(error)

        driver = threading.Thread(target=drive, name="ipyparcache-generator", daemon=True)
        driver.start()
        try:
            yield None
            yield from self._in_order(found) if self.return_ordered else self._as_they_come(found)
        finally:
            cancelled.set()
            if threading.current_thread() is not driver:
                driver.join(2.0)
            self._running = None
            _forget_delayed()

    def _news(self, found: queue.SimpleQueue[Done | BaseException | None]) -> Iterator[Done]:
        while (news := found.get()) is not None:
            if isinstance(news, BaseException):
                raise news
            if news.failed:
                news.values[0] = self._unwrapped(news.values[0])
            yield news

    def _as_they_come(self, found: queue.SimpleQueue[Done | BaseException | None]) -> Iterator[Any]:
        for done in self._news(found):
            yield from done.values

    def _in_order(self, found: queue.SimpleQueue[Done | BaseException | None]) -> Iterator[Any]:
        waiting: dict[int, Done] = {}
        following = 0
        for done in self._news(found):
            waiting[done.first] = done
            while following in waiting:
                values = deque(waiting.pop(following).values)
                following += len(values)
                while values:
                    yield values.popleft()  # not kept: the consumer decides how long a result lives
