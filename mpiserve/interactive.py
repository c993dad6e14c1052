"""What interactive shells are told of sessions: IPython completes the names of their services."""

from __future__ import annotations

import re
import sys
from typing import Any

from mpiserve.errors import Error

# What stands before the cursor: session.service("fl
CALL = re.compile(r"""([A-Za-z_][\w.]*)\.service\(\s*(?:name\s*=\s*)?(["'])([^"'\\]*)$""")


def complete_services(session: type[Any]) -> None:
    """Let IPython complete the name in `session.service("`, if this process is its shell.

    Local; a second call changes nothing.

    Args:
        session: The class of sessions; the names are those of its `services`.
    """
    shell = _shell()
    if shell is None or any(hasattr(each, "of_mpiserve") for each in _matchers(shell)):
        return
    from IPython.core.completer import SimpleCompletion, context_matcher

    @context_matcher()
    def names(context: Any) -> dict[str, Any]:
        found = CALL.search(context.text_until_cursor)
        begun = found[3] if found else ""
        known = names_of(_named(shell.user_ns, found[1]), session) if found else []
        fitting = [SimpleCompletion(name) for name in known if name.startswith(begun)]
        return {"completions": fitting, "matched_fragment": begun, "suppress": bool(fitting)}

    names.of_mpiserve = True
    _matchers(shell).append(names)


def names_of(value: Any, session: type[Any]) -> list[str]:
    """Return the names of the services of a session; of anything else none."""
    try:
        return [service.name for service in value.services] if isinstance(value, session) else []
    except Error:  # it is closed, or an inference rank's
        return []


def _shell() -> Any:
    """Return IPython's shell, without importing IPython; None: there is none."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython and hasattr(ipython, "get_ipython") else None


def _matchers(shell: Any) -> list[Any]:
    return getattr(shell.Completer, "custom_matchers", [])


def _named(variables: dict[str, Any], path: str) -> Any:
    """Follow a path such as `job.session`, without running properties; None: it leads nowhere."""
    first, *rest = path.split(".")
    value = variables.get(first)
    for name in rest:
        value = getattr(value, "__dict__", {}).get(name)
    return value
