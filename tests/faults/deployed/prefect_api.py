"""A Prefect server's API as the UI uses it: plain HTTP, past Prefect's client and our code."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

ENDS = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class WrongOutcome(AssertionError):
    """A trial did not come to what it should."""


def until(what: str, true: Callable[[], Any], timeout: float = 60, *, pause: float = 0.2) -> Any:
    """Ask until the answer is true, and give it.

    Raises:
        WrongOutcome: It is not in time.
    """
    deadline = time.monotonic() + timeout
    while not (found := true()):
        if time.monotonic() > deadline:
            raise WrongOutcome(f"not within {timeout:.0f} s: {what}")
        time.sleep(pause)
    return found


class PrefectApi:
    """Calls of the UI.

    Args:
        url: Of the API.
    """

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=30, trust_env=False)

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Ask, and again for a while where the database is locked, or the server is not there yet."""
        deadline = time.monotonic() + 30
        while True:
            try:
                answer = self._client.request(method, path, json=body)
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                    break
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.3)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def run_deployment(self, name: str, parameters: Mapping[str, Any]) -> str:
        """Create a flow run, to start now."""
        deployment = self.request("GET", f"/deployments/name/{name}")["id"]
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return str(self.request("POST", f"/deployments/{deployment}/create_flow_run", body)["id"])

    def state(self, flow_run: str) -> dict[str, Any]:
        """The state of a flow run now."""
        found: dict[str, Any] = self.request("GET", f"/flow_runs/{flow_run}")["state"] or {"type": "", "name": ""}
        return found

    def set_state(self, flow_run: str, type_: str, name: str) -> None:
        """Ask for a state, as the UI's buttons do."""
        body = {"state": {"type": type_, "name": name, "message": f"{name}, by a trial"}}
        answer = self.request("POST", f"/flow_runs/{flow_run}/set_state", body)
        if answer["status"] not in ("ACCEPT", "REJECT"):
            raise WrongOutcome(f"Prefect answered to {name}: {answer}")

    def cancel(self, flow_run: str) -> float:
        """What the button Cancel does; gives the time of the call."""
        at = time.time()
        self.set_state(flow_run, "CANCELLING", "Cancelling")
        return at

    def retry(self, flow_run: str) -> None:
        """What the button Retry does."""
        self.set_state(flow_run, "SCHEDULED", "AwaitingRetry")

    def ended(self, flow_run: str, expected: str, timeout: float, *, after: Sequence[str] = ()) -> dict[str, Any]:
        """Wait until a flow run is in a final state, and check which.

        Args:
            flow_run: Its id.
            expected: The type of state that is right.
            timeout: Seconds to wait.
            after: Final states that it may still be in from before.
        """
        ends = [end for end in ENDS if end not in after or end == expected]
        last: dict[str, Any] = {}

        def over() -> bool:
            nonlocal last
            last = self.state(flow_run)
            return last["type"] in ends

        try:
            until(expected, over, timeout, pause=0.4)
        except WrongOutcome:
            raise WrongOutcome(f"expected {expected} within {timeout:.0f} s, still {last['name']}") from None
        if last["type"] != expected:
            raise WrongOutcome(f"expected {expected}, came {last['name']}: {last.get('message')}")
        return last

    def log(self, flow_run: str) -> list[str]:
        """The log of a flow run and its child flow runs, of each entry the first line."""
        children = self.request(
            "POST", "/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [flow_run]}}}
        )
        ids = [flow_run, *(child["id"] for child in children)]
        found = self.request(
            "POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": ids}}, "limit": 200, "sort": "TIMESTAMP_ASC"}
        )
        return [f"{entry['timestamp'][11:19]} {entry['message'].partition(chr(10))[0]}" for entry in found]

    def crashed(self, flow_run: str) -> None:
        """Wait until a worker has said all that it says of a flow that was killed.

        It sets Crashed twice, and a Retry between the two is lost.
        """
        self.ended(flow_run, "CRASHED", 90)
        last = "exceeded its memory allocation"  # Prefect's guess at why
        until("the worker's last word", lambda: any(last in line for line in self.log(flow_run)), 60)

    def states(self, flow_run: str) -> list[str]:
        """All states that a flow run was in, with their times."""
        found = self.request("GET", f"/flow_run_states/?flow_run_id={flow_run}")
        return [f"{state['timestamp'][11:19]} {state['name']}: {(state['message'] or '')[:160]}" for state in found]

    def origin(self) -> str:
        """The random id that our package gave the server."""
        return str(self.request("GET", "/variables/name/prefect_mantik_origin")["value"])
