"""What each operating system knows of processes and memory, and what it can do to them."""

import os
import sys
from contextlib import suppress
from functools import cache

_PER_THREAD = 8 << 20  # address space of a stack, of which hardly anything is used
_THREADS = 16  # for each processor: TensorFlow and ONNX Runtime have several pools
_ROOM = 256 << 20


def resident(pid: int) -> int | None:
    """The bytes of memory that a process has; None where the system does not say it.

    On Linux without those of mapped files, which are given up as soon as others need their place.
    """
    try:
        with open(f"/proc/{pid}/statm", "rb") as stream:
            _, present, mapped, *_ = map(int, stream.read().split())
            return (present - mapped) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        pass
    if sys.platform == "darwin":
        return _resident_on_macos(pid)
    if sys.platform == "win32":
        return _resident_on_windows(pid)
    return None


def waited(pid: int) -> float:
    """The seconds for which the main thread of a process could not run for want of a processor."""
    try:
        with open(f"/proc/{pid}/schedstat", "rb") as stream:
            return int(stream.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _resident_on_macos(pid: int) -> int | None:
    """The physical footprint, which is the eighth number of `struct rusage_info_v0`."""
    import ctypes  # noqa: PLC0415 - only where it is needed

    try:
        numbers = (ctypes.c_uint64 * 12)()  # a UUID takes two
        failed = ctypes.CDLL(None).proc_pid_rusage(pid, 0, numbers)
    except (OSError, AttributeError):
        return None
    return None if failed else int(numbers[9])


def _resident_on_windows(pid: int) -> int | None:
    import ctypes  # noqa: PLC0415

    kernel = ctypes.CDLL("kernel32")
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(kernel.OpenProcess(0x1000, False, pid))  # limited information
    if not handle:
        return None
    numbers = (ctypes.c_size_t * 10)()  # two counters of 32 bits, then the peak, then the present
    worked = kernel.K32GetProcessMemoryInfo(handle, numbers, ctypes.sizeof(numbers))
    kernel.CloseHandle(handle)
    present = 2 if ctypes.sizeof(ctypes.c_size_t) == 8 else 3
    return int(numbers[present]) if worked else None


@cache
def memory() -> int | None:
    """The bytes of memory that this process can have; None where the system does not say it."""
    try:
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (OSError, ValueError, AttributeError):
        found = []
    found += _of_control_groups()
    return min((size for size in found if size > 0), default=None)


def _of_control_groups() -> list[int]:
    """The limits of the control groups that this process is in, as containers have them."""
    found = []
    with suppress(OSError, ValueError):
        with open("/proc/self/cgroup") as stream:
            lines = [line.rstrip("\n").split(":", 2) for line in stream]
        for number, names, path in lines:
            is_new = number == "0"
            if not is_new and "memory" not in names.split(","):
                continue
            root = "/sys/fs/cgroup" if is_new else "/sys/fs/cgroup/memory"
            name = "memory.max" if is_new else "memory.limit_in_bytes"
            parts = path.strip("/").split("/")
            for depth in range(len(parts) + 1):
                folder = "/".join([root, *parts[:depth]])
                with suppress(OSError, ValueError), open(f"{folder}/{name}") as stream:
                    found.append(int(stream.read()))
    return found


def dies_with_parent() -> bool:
    """Have the system kill this process when the one that started it ends, if it can."""
    if sys.platform != "linux":
        return False
    import ctypes  # noqa: PLC0415
    import signal  # noqa: PLC0415

    parent = os.getppid()
    try:
        failed = ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        return False
    if os.getppid() != parent:  # it ended meanwhile
        os._exit(2)
    return not failed


def adopt_orphans() -> bool:
    """Have those processes become children of this one whose parents end before them, if it can."""
    if sys.platform != "linux":
        return False
    import ctypes  # noqa: PLC0415

    try:
        return not ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    except (OSError, AttributeError):
        return False


def end_children() -> None:
    """End all children of this process, and theirs."""
    import signal  # noqa: PLC0415

    with suppress(OSError):  # there are none any more
        while True:
            for thread in os.listdir("/proc/self/task"):
                with open(f"/proc/self/task/{thread}/children") as stream:
                    for pid in map(int, stream.read().split()):
                        os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)


def leave_no_core() -> None:
    """Write no image of this process to the disk if it crashes."""
    with suppress(ImportError, ValueError, OSError):
        import resource  # noqa: PLC0415 - not on Windows

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def allow_allocations() -> None:
    """Take back what `refuse_allocations` refuses."""
    if sys.platform == "linux":
        with suppress(ImportError, ValueError, OSError):
            import resource  # noqa: PLC0415 - not on Windows

            hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
            resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


@cache
def _processors() -> int:
    return os.cpu_count() or 1  # which reads a file each time


def refuse_allocations(size: int) -> None:
    """Refuse this process more memory than `size` bytes and what its threads reserve.

    Linux counts in RLIMIT_DATA what can be written and belongs to one process. Address space, which
    RLIMIT_AS counts, says nothing: TensorFlow maps several times what it uses.
    """
    if sys.platform != "linux":
        return
    with suppress(ImportError, ValueError, OSError):
        import resource  # noqa: PLC0415

        most = size + _PER_THREAD * _THREADS * _processors() + _ROOM
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
