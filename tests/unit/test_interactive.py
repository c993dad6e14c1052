"""IPython completes the names of services."""

import sys
from types import SimpleNamespace

import pytest
from IPython.core.interactiveshell import InteractiveShell

from mpiserve import interactive
from mpiserve.errors import Code, Error


class Session:
    """What has services, as a session has them."""

    @property
    def services(self):
        return SimpleNamespace(name="product"), SimpleNamespace(name="flow")


class Closed(Session):
    @property
    def services(self):
        raise Error(Code.ESTATE, "the session is closed")


@pytest.fixture(scope="module")
def completed():
    """What IPython offers behind a text."""
    shell = InteractiveShell.instance(user_ns={"session": Session(), "closed": Closed()})
    shell.user_ns["job"] = SimpleNamespace(session=Session())
    for _ in range(2):
        interactive.complete_services(Session)
    yield lambda text: shell.Completer.complete(line_buffer=text)[1]
    InteractiveShell.clear_instance()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('session.service("', ["flow", "product"]),
        ("y = session.service('pr", ["product"]),
        ('job.session.service(name="f', ["flow"]),
    ],
)
def test_names_of_services_are_offered(completed, text, names):
    assert completed(text) == names


@pytest.mark.parametrize("text", ['nothing.service("', 'closed.service("', 'session.other("'])
def test_other_texts_are_left_to_others(completed, text):
    assert "flow" not in completed(text)


def test_a_program_without_a_shell_loads_no_ipython(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert interactive.complete_services(Session) is None
    assert "IPython" not in sys.modules
