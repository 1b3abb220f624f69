"""Starts commands as processes that need not import torch and Flower first.

It imports them once, and forks for each request. A request is a line of JSON on standard input:
{"start": CODE, "arguments", "environment", "folder", "log"} is answered by the process's number,
and {"poll": NUMBER} by its exit status, or null as long as it runs.
"""

import json
import os
import sys
from typing import Any

import fedclip.cli
import fedclip.federate.flower.keys
import fedclip.federate.flower.link
import fedclip.federate.flower.node
import fedclip.federate.report.terminal  # noqa: F401


def requested() -> dict[str, Any] | None:
    """Answer requests; return one that this process, just forked, is to do, or None in the end."""
    statuses: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer: int | None
        if "start" in request:
            answer = os.fork()
            if not answer:
                return dict(request)
        else:
            number = request["poll"]
            if number not in statuses:
                pid, status = os.waitpid(number, os.WNOHANG)
                if pid:
                    statuses[number] = os.waitstatus_to_exitcode(status)
            answer = statuses.get(number)
        print(json.dumps(answer), flush=True)
    return None


request = requested()
if request is not None:
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    for descriptor, path in enumerate((os.devnull, request["log"], request["log"])):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.argv = ["fedclip", *request["arguments"]]
    exec(request["start"], {"__name__": "__main__"})
