"""A worker to be killed: takes tasks and hands them on as results, until it is killed."""

from __future__ import annotations

import sys

from broker.keys import RESULTS, TASKS
from broker.lease import LeaseKeeper
from broker.queue import Broker
from ops.errors import UnavailableError


def main(url: str, namespace: str, consumer: str, lease_s: float) -> None:
    broker = Broker(url, namespace, consumer, lease_s)
    lease = LeaseKeeper(broker, TASKS, lease_s)
    while True:
        try:
            for entry in broker.take(TASKS, 4, 20):
                with lease.holding(entry.id):
                    outputs = [(RESULTS, entry.payload)]
                    broker.hand_off(TASKS, entry.id, outputs, {"done": 1}, "job")
        except UnavailableError:
            continue


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]))
