"""A headless Chromium, driven over the DevTools protocol as by a person: by what is to be read, with mouse and keys."""

import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT_S = 90.0  # the machine that tests run on is slow, and busy

# The innermost element that says `text`, or matches `selector`, and can be seen; the last one, as dialogs come last.
FIND = """((selector, text) => {
  const seen = e => e.getClientRects().length && getComputedStyle(e).visibility !== 'hidden';
  const said = e => (e.innerText || e.getAttribute('aria-label') || '').trim();
  let all = [...document.querySelectorAll(selector)].filter(seen);
  if (text !== null) all = all.filter(e => said(e) === text);
  return all.filter(e => !all.some(other => other !== e && e.contains(other))).at(-1) ?? null;
})"""

# The input that a label belongs to, by `for` or by lying beside it.
LABELLED = """(text => {
  const label = [...document.querySelectorAll('label')].filter(e => e.getClientRects().length)
    .find(e => e.innerText.trim().replace(/\\s*\\*$/, '').replace(/ \\(Optional\\)$/, '') === text);
  if (!label) return null;
  const wanted = 'input, textarea, button[role=combobox], button[role=switch], .cm-content';
  const own = label.htmlFor && document.getElementById(label.htmlFor);
  if (own) return own.matches(wanted) ? own : own.querySelector(wanted) ?? own;
  for (let up = label.parentElement; up; up = up.parentElement) {
    const found = up.querySelector(wanted);
    if (found) return found;
  }
  return null;
})"""


class Page:
    """One tab: what is on it, and hands."""

    HEARD = frozenset({"Runtime.exceptionThrown"})  # what the browser says by itself and is kept as a complaint

    def __init__(self, address: str, screenshots: Path) -> None:
        self._socket = connect(address, max_size=None, open_timeout=60, ping_interval=None)
        self._numbers = itertools.count(1)
        self._shots, self.screenshots = itertools.count(1), screenshots
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=120))
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                result: dict[str, Any] = message["result"]
                return result
            if message.get("method") in self.HEARD:
                self.complaints.append(json.dumps(message["params"])[:500])

    def js(self, expression: str) -> Any:
        """Evaluate an expression on the page and return its value."""
        done = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, (expression, done["exceptionDetails"])
        return done["result"].get("value")

    def text(self) -> str:
        """Return what is to be read."""
        return str(self.js("document.body ? document.body.innerText : ''"))

    def goto(self, address: str) -> None:
        """Open an address."""
        self.send("Page.navigate", url=address)

    def wait(self, expression: str, what: str, limit_s: float = WAIT_S) -> Any:
        """Wait until an expression is true, and return it."""
        end = time.monotonic() + limit_s
        while True:
            with contextlib.suppress(AssertionError):  # a page on its way to another one
                if value := self.js(expression):
                    return value
            if time.monotonic() > end:
                self.shot("not-found")
                raise AssertionError(
                    f"{what} did not come within {limit_s:.0f} s; the page says:\n{self.text()[:3000]}"
                )
            time.sleep(0.2)

    def sees(self, text: str, limit_s: float = WAIT_S) -> None:
        """Wait until the page says something."""
        self.wait(f"document.body.innerText.includes({json.dumps(text)})", f"{text!r}", limit_s)

    def click(self, text: str | None, selector: str = "button, a, [role=menuitem], [role=option], [role=tab]") -> None:
        """Click what says `text`, or what matches a selector."""
        self._click_on(f"{FIND}({json.dumps(selector)}, {json.dumps(text)})", f"{text or selector}")

    def fill(self, label: str, value: str) -> None:
        """Type into the field of a label, in place of what is there."""
        found = f"{LABELLED}({json.dumps(label)})"
        for _ in range(20):  # a list that is still closing takes the first click for itself
            self._click_on(found, f"the field {label}")
            if self.js(f"{found} === document.activeElement"):
                break
            time.sleep(0.2)
        self._key("a", 65, modifiers=2)
        self._key("Delete", 46)
        self.send("Input.insertText", text=value)
        said = f"(e => (e.value ?? e.innerText).trim())({found})"
        self.wait(f"{said} === {json.dumps(value)}", f"{value!r} in the field {label}", 10)

    def choose(self, label: str, option: str) -> None:
        """Choose an option of the field of a label."""
        self._click_on(f"{LABELLED}({json.dumps(label)})", f"the field {label}")
        self.click(option, "[role=option]")

    def shot(self, name: str, width: int = 1280, height: int = 1000) -> Path:
        """Keep a picture of the page as it is, and what it says beside it."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        time.sleep(0.6)  # charts and drawers move
        taken = self.send("Page.captureScreenshot", format="png")
        self.screenshots.mkdir(parents=True, exist_ok=True)
        path = self.screenshots / f"{next(self._shots):02d}-{name}.png"
        path.write_bytes(base64.b64decode(taken["data"]))
        return path

    def _click_on(self, found: str, what: str) -> None:
        self.wait(f"{found} !== null && !{found}.disabled", what)
        middle = (
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect();"
            f" return [r.x + r.width / 2, r.y + r.height / 2] }})({found})"
        )
        x, y = self.js(middle)
        for _ in range(10):  # it may still be moving into place
            time.sleep(0.1)
            before, (x, y) = (x, y), self.js(middle)
            if before == (x, y):
                break
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            held = {"button": "left", "clickCount": 1} if kind != "mouseMoved" else {}
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **held)

    def _key(self, key: str, code: int, modifiers: int = 0) -> None:
        commands = ["selectAll"] if modifiers else []
        for kind in ("rawKeyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                windowsVirtualKeyCode=code,
                modifiers=modifiers,
                commands=commands if kind == "rawKeyDown" else [],
            )

    def close(self) -> None:
        """Leave the tab."""
        self._socket.close()


class Browser:
    """A Chromium of our own, with an empty profile."""

    def __init__(self, folder: Path) -> None:
        assert CHROMIUM is not None
        self._log = (folder / "chromium.log").open("w")
        self._process = subprocess.Popen(
            [
                *(CHROMIUM, "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={folder / 'profile'}"),
                *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars"),
                *("--window-size=1280,1000", "--disable-background-networking", "--disable-extensions", "--lang=en-GB"),
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            env={**os.environ, "HOME": str(folder)},
            start_new_session=True,
        )
        said = folder / "profile" / "DevToolsActivePort"
        end = time.monotonic() + 120
        while not (said.exists() and len(said.read_text().splitlines()) == 2):
            assert time.monotonic() < end, "chromium does not start"
            assert self._process.poll() is None, "chromium ended"
            time.sleep(0.1)
        self._port = said.read_text().splitlines()[0]

    def page(self, screenshots: Path) -> Page:
        """Open a tab whose pictures go into a folder."""
        import httpx

        made = httpx.put(f"http://127.0.0.1:{self._port}/json/new?about:blank", timeout=60).json()
        return Page(made["webSocketDebuggerUrl"], screenshots)

    def close(self) -> None:
        """End it, and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()
