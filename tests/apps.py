"An app behind its door, as a person starts it, for the tests of the apps."
import os, signal, subprocess, sys, urllib.request
from contextlib import contextmanager
from pathlib import Path
import pytest
from ports import free_port
from waiting import PATIENCE, until

TOKEN = 'a-token-of-the-tests-0123456789'
ARGUMENTS = ('--no-sandbox --disable-gpu --disable-quic --disable-background-networking --disable-component-update --disable-sync').split()
needs_chromium = pytest.mark.skipif(not Path('/usr/bin/chromium').exists(), reason='no Chromium on this machine')


FOCUSED = """() => { let view = window, at = document.activeElement
  while (at && at.tagName === 'IFRAME') { view = at.contentWindow; at = at.contentDocument.activeElement }
  if (!at || at.tagName === 'BODY') return ['', false]
  const style = view.getComputedStyle(at), label = at.labels && at.labels.length ? at.labels[0].innerText : at.innerText
  return [label.trim(), style.outlineStyle === 'solid' && parseFloat(style.outlineWidth) >= 2] }"""


def start(folder, name: str, *options: str, port: int | None=None) -> tuple[subprocess.Popen, int]:
    "`mlcycle app` as a process, answering."
    port = port or free_port()
    server = subprocess.Popen([sys.executable, '-c', 'from mlcycle.cli import main; main()', 'app', name, '--project', str(folder), '--port', str(port), *options],
                              env=os.environ | {'MLCYCLE_TOKEN': TOKEN}, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    def answers() -> bool:
        assert server.poll() is None, f'the app ended with {server.returncode}'
        try: urllib.request.urlopen(f'http://127.0.0.1:{port}/health', timeout=10).close()
        except OSError: return False
        return True
    until(answers)
    return server, port


def stop(server: subprocess.Popen) -> None:
    server.send_signal(signal.SIGTERM)
    try: server.wait(PATIENCE)
    except subprocess.TimeoutExpired: server.kill(); raise


@contextmanager
def served(folder, name: str, *options: str):
    server, port = start(folder, name, *options)
    try: yield port
    finally: stop(server)


class Looking:
    "A page in Chromium: what it asked for, what was refused, what its kernel sent."
    def __init__(self, browser, port: int, **context):
        self.port, self.asked, self.refused, self.frames, self.errors = port, [], [], [], []
        self.page = browser.new_context(viewport={'width': 1366, 'height': 768}, **context).new_page()
        self.page.set_default_timeout(PATIENCE*1000)
        self.page.on('request', lambda r: self.asked.append(r.url))
        self.page.on('requestfailed', lambda r: self.refused.append((r.url, r.failure)))
        self.page.on('websocket', lambda w: w.on('framereceived', lambda f: self.frames.append(f)))
        self.page.on('response', lambda r: self.errors.append((r.url, r.status)) if r.status >= 400 else None)

    def open(self):
        "Come in by the printed link; the page as it was drawn last is there at once."
        self.page.goto(f'http://127.0.0.1:{self.port}/?token={TOKEN}')
        assert 'token' not in self.page.url
        return self

    def live(self):
        "The frame of the live page, once it has taken the drawn one's place."
        self.page.wait_for_selector('body[data-live=yes]', state='attached')
        return next(f for f in self.page.frames if '/live/' in f.url)

    def told(self, live, *words: str, selectors: int) -> str:
        "The words of the live page, once it is whole: these are among them, so many selectors stand there, every picture is drawn."
        for word in words: live.wait_for_function('word => document.body.innerText.includes(word)', arg=word)
        live.wait_for_function("n => document.querySelectorAll('select').length >= n && [...document.querySelectorAll('.mlc img')].every(i => i.naturalWidth > 0)", arg=selectors)
        return live.inner_text('body')

    def walk(self, stops: int=30) -> list[str]:
        "What the Tab key reaches, in order, until it leaves the page: labels of selectors, words of the rest; each must have a ring around it."
        reached = []
        for _ in range(stops):
            self.page.keyboard.press('Tab')
            name, ringed = self.page.evaluate(FOCUSED)
            if not name: return reached
            assert ringed, f'nothing shows that the keyboard stands on {name!r}'
            reached.append(name)
        raise AssertionError(f'the keyboard does not leave the page: {reached}')

    def tab_to(self, name: str) -> None:
        "Press Tab until the keyboard stands on something."
        for _ in range(40):
            self.page.keyboard.press('Tab')
            if self.page.evaluate(FOCUSED)[0] == name: return
        raise AssertionError(f'the keyboard does not reach {name!r}')

    def strangers(self) -> set[str]:
        "What was asked of anybody but the app."
        home = (f'http://127.0.0.1:{self.port}/', f'ws://127.0.0.1:{self.port}/', 'data:', 'blob:', 'about:')
        return {u for u in self.asked if not u.startswith(home)}


@contextmanager
def chromium():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path='/usr/bin/chromium', args=ARGUMENTS)
        try: yield browser
        finally: browser.close()
