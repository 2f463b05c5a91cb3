"""Whether a server answers, in one word of why not."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from flows.server import server_problem


class Answers(BaseHTTPRequestHandler):
    """Answer `/401/health` with 401, and so on."""

    def do_GET(self) -> None:
        code, _, asked = self.path.strip("/").partition("/")
        self.send_response(int(code) if asked == "health" else 400)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("code", "why"), [(200, ""), (401, ""), (403, ""), (404, "404"), (500, "500")])
def test_a_server_is_there_when_it_is_healthy_or_asks_who_is_there(url: str, code: int, why: str) -> None:
    for said in (server_problem(f"{url}/{code}"), server_problem(f"{url}/{code}/")):
        assert why in said
        assert bool(said) == bool(why)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/api", "localhost:4200/api", "no address", "http://a b/api"])
def test_where_nobody_answers_there_is_a_reason_of_one_line(address: str) -> None:
    said = server_problem(address)
    assert said
    assert "\n" not in said
