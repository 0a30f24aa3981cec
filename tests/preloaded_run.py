"""The process that stands for a program of `tests.preloaded`: `preloaded_run.py SOCKET MODULE WORDS…`.

It imports little, so that it starts in 20 ms. Signals are passed on; the exit status is that of the program.
"""

import json
import os
import signal
import socket
import sys


def main() -> None:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
    request = json.dumps({"argv": sys.argv[2:], "environment": dict(os.environ), "directory": os.getcwd()}).encode()
    socket.send_fds(connection, [len(request).to_bytes(4, "big")], [0, 1, 2])
    passed_on = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
    # The program may run before this process goes on, and a signal may come then.
    signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)
    connection.sendall(request)
    for number in passed_on:
        signal.signal(number, lambda received, frame: connection.sendall(bytes([received])))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
    status = int.from_bytes(connection.recv(4), "big")
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) != signal.SIGKILL:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


main()
