"""The pool of the standard library's `multiprocessing` as a backend, with any of its start methods."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import multiprocessing.synchronize  # fails where Python was built without what pools need
import os
import pickle
import sys
import threading
import warnings
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

from ipyparcache import pickling
from ipyparcache.engine import filebacked, worker
from ipyparcache.engine.backends.base import (
    AutoBatchingMixin,
    ParallelBackendBase,
    are_processes_unwanted,
    is_daemonic,
    to_count,
)
from ipyparcache.engine.outcome import Error, dump_exception, load_exception, traceback_text
from ipyparcache.errors import PoolWorkerDied


class _Outward(ForkingPickler):
    """A pickler of batches: arrays that lie in files, or belong there, go as maps of them."""

    def reducer_override(self, obj: object) -> Any:
        """How to send an array; the usual way for anything else."""
        if not pickling.is_array(obj):
            return NotImplemented
        parts = filebacked.reduce_array(obj)
        return parts if parts is not NotImplemented else _in_its_order(obj)


class _Homeward(ForkingPickler):
    """A pickler of results: maps of files come home as arrays."""

    def reducer_override(self, obj: object) -> Any:
        """How to send an array; the usual way for anything else."""
        if not pickling.is_array(obj):
            return NotImplemented
        numpy = sys.modules["numpy"]
        if type(obj) is numpy.memmap:
            return numpy.array(obj).__reduce_ex__(pickle.HIGHEST_PROTOCOL)  # a copy can be written to
        return _in_its_order(obj)


def _in_its_order(array: Any) -> Any:
    if pickling.loses_byte_order(array):
        return array.copy("C").__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    return NotImplemented


def _run_pickled(payload: bytes) -> bytes | _Failed:
    """What a batch gives, pickled; by the pool's own protocol, arrays would lose the order of their bytes."""
    try:
        found = pickle.loads(payload)()
        try:
            return bytes(_Homeward.dumps(found, pickle.HIGHEST_PROTOCOL))
        except Exception:  # what only goes by value: an error of this second attempt is the one worth telling
            return pickling.dump_result(found)
    except (
        BaseException
    ) as error:  # the pool would lose a KeyboardInterrupt, and the call would wait for ever
        return _Failed(dump_exception(error, pickle.dumps), traceback_text(error, __file__))


class _Failed:
    """What a batch raised, on its way home."""

    def __init__(self, data: bytes, text: str):
        self.data = data
        self.text = text


def _pickled(batch: Callable[[], Any]) -> bytes:
    """The batch as a child unpickles it: by reference where that does, as a fork has all modules."""
    try:
        return bytes(_Outward.dumps(batch, pickle.HIGHEST_PROTOCOL))
    except Exception:  # lambdas, closures and what else only goes by value
        return pickling.dumps(batch, "multiprocessing")


def _end(pool: Any) -> None:
    """Terminate a pool, also one whose worker is killed while it holds the lock of a queue.

    The pool's own threads then wait for that lock; without workers, nobody needs it any more.
    """
    ending = threading.Thread(target=pool.terminate, name="ipyparcache-end-of-pool", daemon=True)
    ending.start()
    ending.join(_LOCK_AFTER)
    while ending.is_alive():
        for process in list(pool._pool):
            with contextlib.suppress(ValueError):  # it is closed already
                process.kill()
                process.join()
        for queue, name in (("_outqueue", "_wlock"), ("_inqueue", "_rlock")):
            lock: Any = getattr(getattr(pool, queue, None), name, None)
            if lock is not None:
                # taken first: whoever was woken when it was released may have been killed before taking it
                lock.acquire(block=False)
                lock.release()
        ending.join(_LOCK_AFTER)
    pool.join()


def _made(context: Any, count: int, arguments: dict[str, Any]) -> Any:
    """A pool, made by a thread that no interrupt reaches: nobody could end the workers of half a pool."""
    made: list[Any] = []
    is_over = threading.Event()
    unwanted = False

    def make() -> None:
        try:
            made.append(context.Pool(count, **arguments))
        except BaseException as error:
            made.append(error)
        is_over.set()
        if unwanted and not isinstance(made[0], BaseException):
            _end(made[0])

    making = threading.Thread(target=make, name="ipyparcache-making-a-pool", daemon=True)
    try:
        making.start()
        is_over.wait()
    except BaseException:
        unwanted = True
        if is_over.is_set() and not isinstance(made[0], BaseException):
            _end(made[0])
        raise
    if isinstance(made[0], BaseException):
        raise made[0]
    return made[0]


_LOCK_AFTER = 0.5  # seconds; ending a pool takes less


_OF_EVERY_CALL = ("temp_folder", "max_nbytes", "mmap_mode", "verbose", "inner_max_num_threads")
_OF_POOLS = ("initializer", "initargs", "maxtasksperchild")


def _check_known(owner: str, arguments: dict[str, Any]) -> None:
    """A TypeError if pools take no such argument."""
    unknown = sorted(set(arguments).difference(_OF_POOLS))
    if unknown:
        raise TypeError(f"{owner} got an unexpected keyword argument {unknown[0]!r}")


class MultiprocessingBackend(AutoBatchingMixin, ParallelBackendBase):
    """Tasks on a `multiprocessing.Pool`, made for each call or `with` block.

    Parameters
    ----------
    context : multiprocessing context, optional
        Such as `multiprocessing.get_context("spawn")`; that of JOBLIB_START_METHOD, or Python's own, if not
        given.
    """

    supports_retrieve_callback = True
    takes_files = True

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        *,
        context: Any = None,
        **pool_arguments: Any,
    ):
        _check_known(type(self).__name__, pool_arguments)
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self._context = context
        self._arguments = pool_arguments
        self._pool: Any = None
        self._processes: dict[int, Any] = {}  # those that ran at some time of this call
        self._may_exit = False  # as processes with a limited number of tasks do

    @property
    def supports_return_generator(self) -> bool:
        """Results come as one list."""
        return False

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many workers; 1 where a pool cannot be had."""
        count = to_count(1 if n_jobs is None else n_jobs)
        if count == 1:
            return 1
        reason = None
        if is_daemonic():
            reason = "inside of a daemonic process"
        elif worker.is_worker():
            reason = "inside of a worker process"
        elif not (self.in_main_thread() or (self.nesting_level or 0) == 0):
            reason = "inside of a task on threads"
        elif are_processes_unwanted():
            reason = "with JOBLIB_MULTIPROCESSING=0"
        if reason is None:
            return count
        warnings.warn(
            f"Multiprocessing-backed parallel loops cannot be nested {reason}, setting n_jobs=1", stacklevel=3
        )
        return 1

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        context: Any = None,
        **arguments: Any,
    ) -> int:
        """Start the pool, for which the arguments of the constructor may be given here, too."""
        pool_arguments = {name: value for name, value in arguments.items() if name not in _OF_EVERY_CALL}
        _check_known("Parallel", pool_arguments)
        count = self.effective_n_jobs(n_jobs)
        self.parallel = parallel
        if count > 1:
            context = context or self._context
            if context is None:
                method = os.environ.get("JOBLIB_START_METHOD", "").strip() or None
                context = multiprocessing.get_context(method)
            gc.collect()  # what a fork copies is paid for twice
            with warnings.catch_warnings():
                # Forking beside threads is what the user asked for with this backend.
                warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
                pool_arguments = {**self._arguments, **pool_arguments}
                self._pool = _made(context, count, pool_arguments)
            self._may_exit = pool_arguments.get("maxtasksperchild") is not None
        self.reset_batch_stats()
        return count

    def start_call(self) -> None:
        """A call begins; what has ended before it, has lost nothing of it."""
        self._processes = {} if self._pool is None else {process.pid: process for process in self._pool._pool}

    def check_workers(self) -> None:
        """Raise `PoolWorkerDied` if a process was killed or crashed: a pool replaces it without a word, and
        would wait for what it was doing for ever.
        """
        if self._pool is None:
            return
        self._processes.update((process.pid, process) for process in list(self._pool._pool))
        for process in self._processes.values():
            code = process.exitcode
            if code is not None and not (code == 0 and self._may_exit):
                raise PoolWorkerDied(-code if code < 0 else None, code if code >= 0 else None)

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], None] | None = None) -> Any:
        """Hand a batch to the pool."""
        try:
            payload = _pickled(func)
        except Exception as error:
            raise pickle.PicklingError("Could not pickle the task to send to the workers.") from error
        return self._pool.apply_async(_run_pickled, (payload,), callback=callback, error_callback=callback)

    def retrieve_result_callback(self, out: Any) -> Any:
        """The results of a batch; raises what it raised."""
        if isinstance(out, BaseException):
            raise out
        if isinstance(out, _Failed):
            error = load_exception(out.data)
            if isinstance(error, KeyboardInterrupt):
                raise error
            Error(error, out.text).unwrap()
        return pickle.loads(out)

    def terminate(self) -> None:
        """End the pool."""
        pool, self._pool = self._pool, None
        if pool is not None:
            _end(pool)
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End the pool with what it runs; a new one, if another call follows."""
        self.terminate()
        if ensure_ready and self.parallel is not None:
            self.configure(self.parallel.n_jobs, self.parallel)

    @staticmethod
    def in_main_thread() -> bool:
        """Whether this is the main thread."""
        return threading.current_thread() is threading.main_thread()
