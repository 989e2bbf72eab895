"""What runs in the place of `python`: the request to the server, signals there, the exit code back.

Arguments: the server's socket, the plain Python, and what Python was to be started with.
"""

from __future__ import annotations

import marshal
import os
import signal
import socket
import struct
import sys
from contextlib import suppress

_MOST_DESCRIPTORS = 128
_FORWARDED = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGQUIT", "SIGCONT")


def main() -> int:
    address, plain, *arguments = sys.argv[1:]
    options, warnings, unbuffered = list(arguments), [], False
    while options and (options[0] in ("-u", "-B") or options[0].startswith("-W")):
        option = options.pop(0)
        unbuffered |= option == "-u"
        if option.startswith("-W"):
            warnings.append(option[2:] or options.pop(0))
    # anything but a module, a code or a script, or with other options, is not for a fork
    if not options or (options[0].startswith("-") and options[0] not in ("-m", "-c")):
        os.execv(plain, [plain, *arguments])
    waiting: list[int] = []
    child = 0

    def forward(number: int, _frame: object) -> None:
        if child:
            with suppress(ProcessLookupError):  # it is about to be told that it has ended
                os.kill(child, number)
        else:
            waiting.append(number)

    ignored = [int(s) for s in signal.valid_signals() if signal.getsignal(s) == signal.SIG_IGN]
    for name in _FORWARDED:
        number = getattr(signal, name)
        if number not in ignored:
            signal.signal(number, forward)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        server.connect(address)
    except OSError:
        os.execv(plain, [plain, *arguments])
    umask = os.umask(0)
    os.umask(umask)
    descriptors = [d for d in range(_MOST_DESCRIPTORS) if _is_inherited(d)]
    request = marshal.dumps(
        {
            "arguments": options,
            "unbuffered": unbuffered,
            "warnings": warnings,
            "environment": dict(os.environb),
            "folder": os.getcwd(),  # noqa: PTH109 # pathlib takes longer to import than all else
            "ignored": ignored,
            "umask": umask,
            "cores": list(os.sched_getaffinity(0)),
            "descriptors": descriptors,
            "executable": f"{address.rpartition('/')[0]}/python",
        }
    )
    socket.send_fds(server, [struct.pack("q", len(request))], descriptors)
    server.sendall(request)
    child = _number_from(server)
    for number in waiting:
        forward(number, None)
    status = _number_from(server)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
        os.kill(os.getpid(), number)
    return os.waitstatus_to_exitcode(status)


def _is_inherited(descriptor: int) -> bool:
    try:
        return os.get_inheritable(descriptor)
    except OSError:  # there is none
        return False


def _number_from(server: socket.socket) -> int:
    content = b""
    while len(content) < 8:
        piece = server.recv(8 - len(content))
        if not piece:
            raise SystemExit("the server of warm Python processes has gone")
        content += piece
    return int(struct.unpack("q", content)[0])


if __name__ == "__main__":
    code = main()
    os._exit(code)
