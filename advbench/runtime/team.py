"""The processes of one run: process 0 leads, and the others do what it orders.

Orders and answers go over connections of their own, beside those of ``torch.distributed``. A process that
ends closes its connection, so that the others notice at once, whatever they are doing: they end too, with
one line in all.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import pickle
import queue
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar, cast

import torch
from torch import distributed

from advbench.runtime.interrupts import Interrupted
from advbench.runtime.launch import Launch, launched
from advbench.runtime.reasons import reason
from attacks_pool.errors import InputError
from leaderboards.printable import printable

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

GRACE = 2.0
"""Seconds in which a process may end by itself before it is ended."""
LONGEST_WAIT, LONGEST_STEP = timedelta(days=7), timedelta(hours=2)
"""The time limits for meeting the others, and for one exchange in training, which only a fault can reach."""
PLACE = "advbench"
"""The key under which process 0 publishes its address in the store of ``torch.distributed``."""
LOCAL = "127.0.0.1"
USER_MISTAKES = ("InputError", "RecordError")

Given = ParamSpec("Given")
Result = TypeVar("Result")


class _Process:
    """What process 0 and the others have in common."""

    def __init__(self, launch: Launch, store: Store) -> None:
        self.launch, self.store = launch, store
        self.working = False
        self._groups = 0
        # Held for ever by whoever says the last line of this process.
        self._last_word = threading.Lock()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Within the block, this process ends if another one does."""
        before, self.working = self.working, True
        try:
            yield
        finally:
            self.working = before

    def speak(self) -> None:
        """Take the last word, to say why this process ends. If another has ended, that is said already."""
        self._last_word.acquire()

    def open_group(self, device: torch.device) -> None:
        """Set up ``torch.distributed``; returns once all processes have called it."""
        if distributed.is_initialized():
            return
        from torch._C._distributed_c10d import PrefixStore

        if device.type == "cuda":
            torch.cuda.set_device(device)
        self._groups += 1
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore(f"{PLACE}/{self._groups}", self.store),
            rank=self.launch.rank,
            world_size=self.launch.count,
            timeout=LONGEST_STEP,
        )

    def close_group(self) -> None:
        """Undo :meth:`open_group`, so that each process can train something alone."""
        if self._groups and distributed.is_initialized():
            distributed.destroy_process_group()


class Leader(_Process):
    """Process 0, with a connection to each of the others.

    Attributes:
        directory: where the run is, once it has a directory.
        last_line: called with the line that says why all processes end; by default it goes to stderr.
    """

    def __init__(self, launch: Launch, store: Store) -> None:
        super().__init__(launch, store)
        self.directory: Path | None = None
        self.last_line: Callable[[str], object] = lambda line: _say(f"error: {line}")
        self._task = 0
        self._answers: queue.Queue[tuple[int, int, Any]] = queue.Queue()
        self._gone: set[int] = set()
        self._sending = threading.Lock()
        self._others: dict[int, Connection] = {}
        key = secrets.token_bytes(32)
        with Listener((_host(launch), 0), backlog=launch.count, authkey=key) as listener:
            address: Any = listener.address
            store.set(PLACE, json.dumps({"port": address[1], "key": key.hex()}))
            while len(self._others) < launch.count - 1:
                with contextlib.suppress(AuthenticationError, EOFError, OSError):
                    connection = listener.accept()
                    self._others[int(connection.recv_bytes())] = connection
        for rank, connection in self._others.items():
            _notice_lost_machines(connection)
            threading.Thread(target=self._watch, args=(rank, connection), daemon=True).start()

    def order(self, work: Any) -> None:
        """Begin a task: send ``work`` to all other processes. Answers to earlier tasks are dropped."""
        self._task += 1
        self._send(("order", self._task, work))

    def answer(self) -> Any:
        """The next answer of any process to the current task."""
        while True:
            _, task, value = self._answers.get()
            if task == self._task:
                return value

    def answers(self) -> None:
        """Wait until every other process has answered the current task once."""
        for _ in self._others:
            self.answer()

    @contextmanager
    def leading(self) -> Iterator[Callable[[Any], None]]:
        """Lead one run: give its result to the other processes, or make them raise what is raised here.

        Yields:
            A function to call with the result.
        """
        if self._gone:
            gone = min(self._gone)
            raise InputError(f"process {gone} of {self.launch.count} has ended: it cannot take part in a run")
        with self.at_work():
            try:
                yield lambda value: self._send(("result", 0, value))
            except BaseException as error:
                self._send(("raise", 0, _sendable(error)))
                raise
            finally:
                self.directory = None

    def look_around(self) -> None:
        """After an error, give other processes the time to show that it was theirs; then this one ends."""
        time.sleep(GRACE / 2)

    def end(self, code: int) -> None:
        """End the other processes with this exit code."""
        self.working = False
        self._send(("end", 0, code))
        until = time.monotonic() + 5 * GRACE
        while len(self._gone) < len(self._others) and time.monotonic() < until:
            time.sleep(0.01)

    def _send(self, message: tuple[str, int, Any]) -> None:
        content = pickle.dumps(message)
        # A watch may have to end all while the main thread waits in the middle of an order.
        if not self._sending.acquire(timeout=GRACE if message[0] == "end" else -1):
            return
        try:
            for other, connection in self._others.items():
                if other not in self._gone:
                    # If it has ended, its watch says so.
                    with contextlib.suppress(OSError):
                        connection.send_bytes(content)
        finally:
            self._sending.release()

    def _watch(self, rank: int, connection: Connection) -> None:
        """Receive what one process sends, until it ends."""
        while True:
            try:
                kind, task, value = pickle.loads(connection.recv_bytes())
            except (EOFError, OSError):
                self._gone.add(rank)
                if self.working:
                    self._end_all(f"process {rank} of {self.launch.count} ended", 1)
                return
            if kind == "answer":
                self._answers.put((rank, task, value))
            elif kind == "failed":
                # The cause may lie in this process or a third one, which then ends meanwhile.
                threading.Timer(GRACE, self._report, [rank, *value]).start()

    def _report(self, rank: int, message: str, code: int, trace: str) -> None:
        """End all because one process failed."""
        if self.directory is not None and trace:
            with contextlib.suppress(OSError):
                (self.directory / "error.log").write_text(trace, encoding="utf-8")
        self._end_all(f"process {rank} of {self.launch.count}: {message}", code)

    def _end_all(self, line: str, code: int) -> None:
        """End this process and the others, whatever they are doing."""
        self.speak()
        resumes = "" if self.directory is None else "; the same command resumes this run"
        self.last_line(f"{line}{resumes}")
        self.end(code)
        leave(code)


class Member(_Process):
    """A process other than process 0, with a connection to it.

    Args:
        launch: this process among all.
        store: the store of ``torch.distributed``.
        errors: the file descriptor for the last line, if process 0 cannot write it.
    """

    def __init__(self, launch: Launch, store: Store, errors: int = 2) -> None:
        super().__init__(launch, store)
        self.errors = errors
        self._orders: queue.Queue[tuple[str, int, Any]] = queue.Queue()
        self._task = 0
        self._left = False
        place = json.loads(store.get(PLACE))
        address = LOCAL if _host(launch) == LOCAL else launch.address
        self._leader: Any = Client((address, place["port"]), authkey=bytes.fromhex(place["key"]))
        self._leader.send_bytes(str(launch.rank).encode())
        _notice_lost_machines(self._leader)
        threading.Thread(target=self._watch, daemon=True).start()
        atexit.register(self._bye)

    def serve(self, do: Callable[[Any], Any]) -> Any:
        """Call ``do`` with every order of process 0 and send back what it returns; return the run's result.

        Raises:
            Exception: what process 0 raised.
            SystemExit: process 0 has ended, with its code.
        """
        with self.at_work():
            while True:
                kind, task, value = self._orders.get()
                if kind == "result":
                    return value
                if kind == "raise":
                    raise value
                if kind == "end":
                    raise SystemExit(value)
                self._task = task
                try:
                    answer = do(value)
                except BaseException as error:
                    self._fail(error)
                self.answer(answer)

    def answer(self, value: Any) -> None:
        """Send an answer to the current order."""
        self._send(("answer", self._task, value))

    def _send(self, message: tuple[str, int, Any]) -> None:
        with contextlib.suppress(OSError):
            self._leader.send_bytes(pickle.dumps(message))

    def _watch(self) -> None:
        """Receive what process 0 sends, until it ends."""
        while True:
            try:
                message = pickle.loads(self._leader.recv_bytes())
            except (EOFError, OSError):
                if self.working and not self._left:
                    self._alone()
                return
            self._orders.put(message)
            kind, _, value = message
            if kind in ("raise", "end"):
                timer = threading.Timer(GRACE, self._stop, [kind, value])
                timer.daemon = True
                timer.start()
            if kind == "end":
                return

    def _stop(self, kind: str, value: Any) -> None:
        """End this process, unless it has heard of an error and is about to raise it."""
        if kind == "end" or not self._orders.empty():
            leave(value if kind == "end" else 1)

    def _alone(self) -> None:
        if self.launch.rank == 1:
            _say(
                f"error: process 0 of {self.launch.count} ended; the same command resumes this run",
                self.errors,
            )
        leave(1)

    def _fail(self, error: BaseException) -> None:
        """Report an error to process 0, which ends all processes."""
        known = type(error).__name__
        user = any(base.__name__ in USER_MISTAKES for base in type(error).__mro__)
        trace = "" if user else "".join(traceback.format_exception(error))
        code = 2 if user else 1
        self._send(("failed", self._task, (reason(error) or known, code, trace)))
        while True:
            kind, _, value = self._orders.get()
            if kind in ("raise", "end"):
                leave(value if kind == "end" else code)

    def _bye(self) -> None:
        self._left = True
        with contextlib.suppress(OSError):
            self._leader.close()


_joined: list[Leader | Member] = []


def join(errors: int = 2) -> Leader | Member | None:
    """Join the other processes that ``torchrun`` started; None if this process runs alone.

    The first call connects them; it returns once all have called it.

    Raises:
        InputError: they cannot reach each other.
    """
    launch = launched()
    if launch is None:
        return None
    if not _joined:
        try:
            from torch.distributed.rendezvous import rendezvous

            store, *_ = next(rendezvous("env://"))
            # Process 0 may have much to do before its first run.
            store.set_timeout(LONGEST_WAIT)
            _joined.append(Leader(launch, store) if launch.rank == 0 else Member(launch, store, errors))
        except (RuntimeError, ValueError, OSError, EOFError, ImportError, AuthenticationError) as error:
            raise InputError(f"{launch.name} cannot reach the others: {reason(error)}") from error
        except Interrupted as stop:
            # torchrun sends a signal if one of them has failed to start.
            stop.how = "not all processes had joined the run"
            raise
    return _joined[0]


def together(
    take_part: Callable[[Member, dict[str, Any]], Result],
) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Decorate a function that several processes call alike: process 0 runs it, and the others help.

    Args:
        take_part: what the others do instead, with the keyword arguments of the call; it returns the result
            that process 0 sends: a dataclass, without what it caches.
    """

    def decorate(function: Callable[Given, Result]) -> Callable[Given, Result]:
        @functools.wraps(function)
        def called(*arguments: Given.args, **options: Given.kwargs) -> Result:
            others = join()
            if others is None:
                return function(*arguments, **options)
            if isinstance(others, Member):
                return take_part(others, options)
            with others.leading() as finish:
                result: Any = function(*arguments, **options)
                finish(replace(result))
            return cast("Result", result)

        return called

    return decorate


def joined() -> Leader | Member | None:
    """The other processes, if this one has joined them."""
    return _joined[0] if _joined else None


def _host(launch: Launch) -> str:
    """Where process 0 listens: on one machine, only there."""
    return LOCAL if launch.count == launch.local_count else "0.0.0.0"


def _notice_lost_machines(connection: Connection) -> None:
    """Let the system close a connection whose machine does not answer for half a minute."""
    with socket.socket(fileno=os.dup(connection.fileno())) as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, option):
                plain.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _sendable(error: BaseException) -> BaseException:
    """The error, or its text where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(reason(error))
    return error


def _say(line: str, errors: int = 2) -> None:
    with contextlib.suppress(OSError):
        os.write(errors, f"{printable(' '.join(line.split()))}\n".encode())


def leave(code: int) -> NoReturn:
    """End this process now, from any of its threads."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
