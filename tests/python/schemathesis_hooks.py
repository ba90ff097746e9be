"""What Schemathesis changes in valid requests, so that they are harmless and do not depend on chance.

Invalid requests are sent as they are: the daemon must refuse them.
"""

import itertools

import schemathesis

COMMANDS = ["true", "echo", "pwd"]
# A file can be created at each, and no directory.
PATHS = ["st-a", "st-b", "st-c/d"]

# Processes and terminal sessions that the test has started. Half of all requests about one are about one of these, the
# others about one that does not exist.
processes = []
sessions = []
keys = itertools.count()


@schemathesis.hook
def after_call(context, case, response):
    if response.status_code == 201:
        started = response.json()
        processes.extend([started["pid"]] if "pid" in started else [])
        sessions.extend([started["session_id"]] if "session_id" in started else [])


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.operation.path == "/events" and (case.query or {}).get("follow") in (None, True, "true"):
        # Otherwise a valid request is answered for as long as the daemon runs.
        case.query = {**(case.query or {}), "follow": "false"}
    if case.operation.path.endswith("/wait") and "timeout" not in (case.query or {}):
        # The same for a wait.
        case.query = {**(case.query or {}), "timeout": 0.1}
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if case.headers and "Idempotency-Key" in case.headers:
        # A key that was used before is refused unless the whole request is the same.
        case.headers["Idempotency-Key"] = f"key-{next(keys)}"
    body, query, in_path = case.body, case.query or {}, case.path_parameters or {}
    if isinstance(body, dict) and "command" in body:
        # Ends at once, needs no particular user or directory, and prints little.
        body["command"] = COMMANDS[len(body["command"]) % len(COMMANDS)]
        body["user"] = body["working_dir"] = None
        if isinstance(body.get("limits"), dict):
            # The others depend on the machine: on its size, and on the controllers of its cgroups.
            body["limits"] = {"open_files": 64} if body["limits"].get("open_files") else {}
        body["env"] = {name: value for name, value in (body.get("env") or {}).items() if not name.startswith("LD_")}
    if "path" in query:
        query["path"] = "." if case.operation.path == "/files/list" else PATHS[len(query["path"]) % len(PATHS)]
        query.pop("user", None)
    for name, known in {"process": processes, "id": sessions}.items():
        if known and len(in_path.get(name, "")) % 2:
            # One of the last: the daemon forgets the oldest.
            in_path[name] = str(known[-1 - len(in_path[name]) % min(len(known), 20)])
    if case.operation.path.endswith("/wait"):
        query["timeout"] = 0.1
