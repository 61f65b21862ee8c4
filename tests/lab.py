"JupyterLab and Chromium for the tests that click: a server on loopback, a page of 1,366 px, and what a person does there."
import os, re, signal, subprocess, sys, time, urllib.request
from contextlib import contextmanager
from pathlib import Path
from ports import free_port
from waiting import PATIENCE

ARGUMENTS = ('--no-sandbox --disable-gpu --disable-quic --disable-background-networking --disable-component-update '
             '--disable-sync').split()
THREADS = {'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE'}   # sums over several threads differ in the last digit


@contextmanager
def lab_server(folder: Path, home: Path):
    "`mlcycle lab` in a folder; yields the address with its token. `home` keeps Jupyter's own settings away from the account's."
    port, token = free_port(), 'for-this-test'
    env = {**os.environ, 'JUPYTER_TOKEN': token, 'JUPYTER_CONFIG_DIR': str(home/'config'), 'JUPYTER_DATA_DIR': str(home/'data'),
           'JUPYTER_RUNTIME_DIR': str(home/'runtime'), 'JUPYTERLAB_SETTINGS_DIR': str(home/'settings'), 'JUPYTERLAB_WORKSPACES_DIR': str(home/'workspaces'),
           **THREADS}
    env.pop('MLCYCLE_EXECUTION', None)
    with (home/'server.log').open('w') as log:
        server = subprocess.Popen([Path(sys.executable).parent/'mlcycle', '--project', folder, 'lab', '--port', str(port), '--no-browser'], cwd=folder,
                                  env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic()+PATIENCE
        while time.monotonic() < until:
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}/api?token={token}', timeout=10); break
            except OSError: time.sleep(.2)
        else: raise AssertionError((home/'server.log').read_text())
        yield f'http://127.0.0.1:{port}', token
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try: server.wait(15)
        except subprocess.TimeoutExpired: os.killpg(server.pid, signal.SIGKILL)


class Seat:
    "A person in front of JupyterLab."
    def __init__(self, page, address: str, token: str, shots: Path | None=None):
        self.address, self.token, self.shots, self.strangers = address, token, shots, []
        self.sit(page)

    def sit(self, page) -> None:
        self.page = page
        page.set_default_timeout(PATIENCE*1000)
        page.on('request', lambda r: self.strangers.append(r.url) if not re.match(r'(http|ws)://127\.0\.0\.1|data:|blob:|about:', r.url) else None)

    def come_back(self) -> None:
        "Close the browser's window as it stands, and take a new one that knows nothing of it."
        old = self.page
        self.sit(old.context.browser.new_page(viewport=old.viewport_size))
        old.context.close()

    def open(self, notebook: str) -> None:
        "Open one notebook with a fresh view of it, and run it all."
        self.page.goto(f'{self.address}/lab/tree/{notebook}?reset&token={self.token}')
        self.page.locator('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook').wait_for()
        self.sheet.locator('.jp-Toolbar-kernelName', has_text='Python 3').wait_for()
        self.page.locator('#jp-main-statusbar').get_by_text('| Idle').first.wait_for()

    def run_all(self) -> None:
        self.page.locator('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook').click(position={'x': 5, 'y': 5})
        self.page.get_by_role('menuitem', name='Run', exact=True).click()
        self.page.get_by_role('menuitem', name='Run All Cells', exact=True).click()

    @property
    def sheet(self): return self.page.locator('.jp-NotebookPanel:not(.lm-mod-hidden)')

    def press(self, name: str) -> None: self.sheet.locator('button', has_text=re.compile(f'{re.escape(name)}$')).first.click()

    def see(self, text: str | re.Pattern, seconds: float=PATIENCE) -> None: self.sheet.get_by_text(text, exact=False).first.wait_for(timeout=seconds*1000)

    def part(self, heading: str):
        "A part of a desk by its heading."
        return self.sheet.locator('.widget-vbox').filter(has=self.page.locator('h4', has_text=re.compile(f'^{re.escape(heading)}$'))).last

    def row(self, name: str, part: str=''):
        "The line of a form by its label."
        place = self.part(part) if part else self.sheet
        return place.locator('.widget-hbox').filter(has=self.page.locator('b', has_text=re.compile(f'^{re.escape(name)}$'))).last

    def type(self, name: str, text: str, part: str='') -> None: self.row(name, part).locator('input[type=text], textarea').first.fill(text)
    def choose(self, name: str, option: str) -> None: self.row(name).locator('select').first.select_option(label=option)
    def act(self, part: str, deed: str, **typed: str) -> None:
        "Fill in an act's fields, press its button, and wait until it says what happened."
        for name, text in typed.items(): self.type(name.capitalize(), text, part)
        self.part(part).locator('button', has_text=re.compile(f'^{re.escape(deed)}$')).first.click()
        self.part(part).get_by_text('Done.').first.wait_for()

    def tag(self, name: str, text: str) -> None:
        box = self.row(name).locator('.jupyter-widget-taginput')
        if not box.is_visible(): self.row(name).locator('.jupyter-widget-tagsinput').last.click(position={'x': 372, 'y': 10})   # beside the tags
        box.fill(text); box.press('Tab')   # leaving the box takes what was typed
        self.row(name).locator('.jupyter-widget-tag', has_text=text).wait_for()

    def turn(self, part: str, key: str, times: int) -> None:
        "Move a dial by the keyboard, and wait until what hangs on it has moved."
        dial, handle = self.part(part), self.part(part).locator('input[type=range]').first
        before = dial.inner_text()
        handle.focus()
        for _ in range(times): handle.press(key)
        for _ in range(10*PATIENCE):
            if dial.inner_text() != before: return
            self.page.wait_for_timeout(100)
        raise AssertionError(f'{part} does not follow {key}')

    def run_to_desk(self) -> None:
        "Press ▶ from the first cell until the desk stands there; its own buttons do the rest."
        self.sheet.locator('.jp-Cell').first.click(position={'x': 60, 'y': 10})
        for _ in range(4): self.page.keyboard.press('Shift+Enter')   # title, parameters, imports, desk
        self.sheet.locator('.mlcycle-desk-part').first.wait_for()

    def write(self, part: str) -> None:
        "Press a form's own button."
        self.part(part).locator('button', has_text='Write to mlcycle.toml').first.click()
        self.part(part).get_by_text('Written:').first.wait_for()

    def agree(self, start: str) -> None:
        self.sheet.locator('.widget-checkbox', has_text=re.compile(re.escape(start))).locator('input').first.check()

    def shot_of(self, heading: str, name: str) -> None:
        "Scroll a part of a desk into view, and take its picture."
        if self.shots is None: return
        self.sheet.locator('.mlcycle-desk-part h4', has_text=heading).first.evaluate("e => e.scrollIntoView({block: 'start'})")
        self.page.wait_for_timeout(300)
        self.shot(name)

    def shot(self, name: str) -> None:
        if self.shots is None: return
        self.shots.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=self.shots/f'{name}.png')


@contextmanager
def seat_at(folder: Path, home: Path, *, shots: Path | None=None, dark: bool=False):
    "A server, a browser and a person."
    from playwright.sync_api import sync_playwright
    if dark:
        theme = home/'settings/@jupyterlab/apputils-extension/themes.jupyterlab-settings'
        theme.parent.mkdir(parents=True)
        theme.write_text('{"theme": "JupyterLab Dark"}')
    with lab_server(folder, home) as (address, token), sync_playwright() as p:
        browser = p.chromium.launch(executable_path='/usr/bin/chromium', args=ARGUMENTS)
        try: yield Seat(browser.new_page(viewport={'width': 1366, 'height': 900}), address, token, shots)
        finally: browser.close()
