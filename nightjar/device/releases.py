"""Releases on a board: which there are, which is current, switch, go back; sent to boards, standard library only.

    DEPLOYED/NAME/releases/ID/…    a bundle each, as its manifest.json says
    DEPLOYED/NAME/current          -> releases/ID, renamed into place: it is the old release or the new one, never none
    DEPLOYED/NAME/history.json     ids that were current, oldest first, each until it is gone back from

`current` alone decides. The history is written before a switch to a new release and after a switch back, so that after
a kill at any moment it ends with what is current once everything behind that is cut off.
"""

from __future__ import annotations  # boards have older Pythons

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

ID = re.compile(r"[0-9a-f]{16}")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
MANIFEST_BYTES = 1 << 22
TOLD = ("model", "target", "precision", "port")


class Refused(Exception):
    """What is asked for cannot be done, and nothing was changed."""


class Releases:
    """One deployment's folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder, self.link = root, root / "releases", root / "current"

    def current(self) -> str:
        """Return the id of the current release, empty for none or a link that is not ours."""
        try:
            folder, _, name = os.readlink(str(self.link)).rpartition("/")  # noqa: PTH115 (3.9)
        except OSError:
            return ""
        return name if folder == "releases" and ID.fullmatch(name) else ""

    def history(self) -> list[dict[str, Any]]:
        """Return what was current, oldest first, what is current last."""
        said = _read_json(self.root / "history.json")
        entries = [
            {"id": entry["id"], "time_s": float(entry["time_s"])}
            for entry in (said if isinstance(said, list) else [])
            if isinstance(entry, dict)
            and isinstance(entry.get("id"), str)
            and ID.fullmatch(entry["id"])
            and isinstance(entry.get("time_s"), (int, float))
        ]
        current = self.current()
        while entries and entries[-1]["id"] != current:  # a switch that did not come, or a way back that did
            entries.pop()
        if current and not entries:  # set by hand
            entries = [{"id": current, "time_s": 0.0}]
        return entries

    def there(self) -> list[str]:
        """List the release folders; what has another name is somebody else's."""
        try:
            return sorted(path.name for path in self.folder.iterdir() if ID.fullmatch(path.name))
        except OSError:
            return []

    def state(self) -> dict[str, Any]:
        """Say which releases there are, newest first, which is current and what each is."""
        entries = self.history()
        when = {entry["id"]: entry["time_s"] for entry in entries}
        order = [entry["id"] for entry in reversed(entries)] + self.there()
        listed = []
        for name in dict.fromkeys(order):
            manifest = _read_json(self.folder / name / "manifest.json")
            about = manifest if isinstance(manifest, dict) else {}
            listed.append(
                {
                    "id": name,
                    "whole": (self.folder / name).is_dir() and name in when,
                    "time_s": when.get(name, 0.0),
                    "about": {key: about.get(key) for key in TOLD},
                }
            )
        return {
            "root": str(self.root),
            "current": self.current(),
            "history": [entry["id"] for entry in entries],
            "releases": listed,
        }

    def check(self, name: str) -> str:
        """Return what is wrong with a release, empty when every file is what its manifest says; all is then on disk."""
        folder = self.folder / name
        manifest = _read_json(folder / "manifest.json")
        files = manifest.get("files") if isinstance(manifest, dict) else None
        if not isinstance(files, dict) or manifest.get("id") != name:
            return "it has no manifest.json of its own"
        for path, said in files.items():
            if path.startswith("/") or ".." in path.split("/"):
                return f"its manifest.json names {ascii(path)[:100]}, which is outside"
            try:
                with (folder / path).open("rb") as file:
                    hashed = hashlib.sha256()
                    for data in iter(lambda: file.read(1 << 20), b""):
                        hashed.update(data)
                    os.fsync(file.fileno())
            except OSError as error:
                return f"{path}: {error.strerror}"
            if hashed.hexdigest() != said[1]:
                return f"{path} is not what was sent"
        return ""

    def begin(self, name: str) -> dict[str, Any]:
        """Make room before an upload: what was never current and is not this one goes."""
        known = {entry["id"] for entry in self.history()} | {name}
        for other in self.there():
            if other not in known:
                shutil.rmtree(str(self.folder / other), ignore_errors=True)
        return self.state()

    def drop(self, name: str) -> dict[str, Any]:
        """Delete a release that failed, unless it was current before."""
        if name not in {entry["id"] for entry in self.history()}:
            shutil.rmtree(str(self.folder / name), ignore_errors=True)
        return self.state()

    def switch(self, name: str, keep: int) -> dict[str, Any]:
        """Make a whole release current and keep so many; raises Refused."""
        if wrong := self.check(name):
            raise Refused(f"release {name} is damaged: {wrong}")
        entries = self.history()
        if self.current() != name:
            entries.append({"id": name, "time_s": time.time()})
            self._write_history(entries)
            self._point(name)
        kept = []
        for entry in reversed(entries):
            if entry["id"] not in kept:
                kept.append(entry["id"])
        with contextlib.suppress(OSError):  # the switch is made; what is too many goes the next time
            left = [entry for entry in entries if entry["id"] in kept[:keep]]
            turns = [number for number, entry in enumerate(left) if not number or entry["id"] != left[number - 1]["id"]]
            self._write_history([left[number] for number in turns])
            for other in self.there():
                if other not in kept[:keep]:
                    shutil.rmtree(str(self.folder / other), ignore_errors=True)
        return self.state()

    def back(self, to: str) -> dict[str, Any]:
        """Make the release before the current one current again, or the one asked for; raises Refused."""
        entries = self.history()
        before = [entry["id"] for entry in entries[:-1]]
        if to and to not in before:
            raise Refused(f"release {to} was never current, or is gone; before this one: {', '.join(before) or 'none'}")
        if not before:
            raise Refused("there is no release before this one" if entries else "nothing is deployed")
        at = max(number for number, name in enumerate(before) if not to or name == to)
        if wrong := self.check(before[at]):
            raise Refused(f"release {before[at]} is damaged: {wrong}")
        self._point(before[at])
        self._write_history(entries[: at + 1])
        return self.state()

    def _point(self, name: str) -> None:
        new = self.root / ".current.new"
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        new.symlink_to("releases/" + name)
        new.replace(self.link)
        _sync(self.root)

    def _write_history(self, entries: list[dict[str, Any]]) -> None:
        new = self.root / ".history.new"
        with new.open("w", encoding="utf-8") as file:
            json.dump(entries[-1000:], file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.root / "history.json")
        _sync(self.root)


def deployments(deployed: Path) -> list[str]:
    """List the names of what is deployed."""
    try:
        return sorted(path.name for path in deployed.iterdir() if NAME.fullmatch(path.name))
    except OSError:
        return []


def _sync(folder: Path) -> None:
    opened = os.open(str(folder), os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _read_json(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            data = file.read(MANIFEST_BYTES + 1)
        return json.loads(data.decode("utf-8")) if len(data) <= MANIFEST_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked for; raises Refused."""
    deployed = Path(asked["deployed"]).expanduser()
    if asked["do"] == "list":
        return {"deployments": {name: Releases(deployed / name).state() for name in deployments(deployed)}}
    if not NAME.fullmatch(asked["name"]):
        raise Refused(f"no deployment can be called {ascii(asked['name'])[:100]}")
    if asked.get("id") and not ID.fullmatch(asked["id"]):
        raise Refused(f"no release can be called {ascii(asked['id'])[:100]}")
    one = Releases(deployed / asked["name"])
    if asked["do"] == "begin":
        return one.begin(asked["id"])
    if asked["do"] == "drop":
        return one.drop(asked["id"])
    if asked["do"] == "check":
        return {"wrong": one.check(asked["id"])}
    if asked["do"] == "switch":
        return one.switch(asked["id"], int(asked["keep"]))
    return one.back(asked.get("id", ""))


if __name__ == "__main__":
    try:
        print(json.dumps(answer(json.loads(sys.argv[1]))))
    except Refused as error:
        print(json.dumps({"refused": str(error)}))
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
