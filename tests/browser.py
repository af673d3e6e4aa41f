"""A headless Chromium, driven through its debugging pipe: no package is needed."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium():
    """The path of the program, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """Chromium with an empty profile; use as a context manager."""

    def __init__(self, profile, width=1300, height=1500):
        to_read, self._out = os.pipe()
        self._in, to_write = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        # Chromium reads from descriptor 3 and writes to 4.
        command = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, chromium(), *flags, "about:blank"],
            pass_fds=(to_read, to_write),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer, self._number = b"", 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def call(self, method, session=None, **parameters):
        """The result of a command of the DevTools protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(self._out, json.dumps({**message, **({"sessionId": session} if session else {})}).encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                part = os.read(self._in, 1 << 20)
                if not part:
                    raise RuntimeError("Chromium has ended.")
                self._buffer += part
            text, _, self._buffer = self._buffer.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def open(self, address):
        """A page in a profile of its own, as another user has it."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url=address, browserContextId=context)["targetId"]
        return Page(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])


class Page:
    """One page of a `Browser`."""

    def __init__(self, browser, session):
        self._browser, self._session = browser, session

    def run(self, script):
        """The value of an expression of JavaScript."""
        try:
            found = self._browser.call("Runtime.evaluate", self._session, expression=script, returnByValue=True)
        except RuntimeError as error:
            if "execution context" in str(error):  # the page has not begun to load
                return None
            raise
        return found["result"].get("value")

    def text(self):
        """What is written on the page."""
        return self.run("document.body ? document.body.innerText : ''") or ""

    def wait_for(self, words, seconds=240):
        """Wait until these words stand on the page."""
        end = time.monotonic() + seconds
        while words not in self.text():
            if time.monotonic() > end:
                raise AssertionError(f"'{words}' is not on the page:\n{self.text()}")
            time.sleep(0.3)

    def click(self, words):
        """Click the visible button or tab with these words."""
        self.run(
            f"[...document.querySelectorAll('button')].find(b => b.innerText.trim() == {json.dumps(words)}"
            " && b.offsetParent).click()"
        )

    def fill(self, label, value, number=0):
        """Put a value into the visible field of this label; `number` counts those that share it."""
        self.run(
            "(() => { const field = [...document.querySelectorAll('label')].filter(l => l.offsetParent"
            f" && l.innerText.trim().startsWith({json.dumps(label)}))[{number}].querySelector('input');"
            f"field.focus(); field.value = {json.dumps(str(value))};"
            "for (const kind of ['input', 'change', 'blur'])"
            " field.dispatchEvent(new Event(kind, {bubbles: true})); })()"
        )

    def screenshot(self, path):
        """Write the page as a picture."""
        found = self._browser.call("Page.captureScreenshot", self._session, captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(found["data"]))
