#!/usr/bin/env python3
"""flufl_counter.py FILE N: adds 1 to `counter` in the JSON object in FILE, N times, each under the
lock FILE.lock of the package flufl.lock: a participant that nobody here wrote."""

import json
import sys
from datetime import timedelta

from flufl.lock import Lock

path, times = sys.argv[1], int(sys.argv[2])
lock = Lock(path + ".lock", lifetime=timedelta(seconds=15))
for _ in range(times):
    with lock:
        with open(path) as file:
            data = json.load(file)
        data["counter"] += 1
        with open(path, "w") as file:
            json.dump(data, file)
