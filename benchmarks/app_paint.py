"""How soon the monitoring app says something, and whether twenty people can look at once.

    python benchmarks/app_paint.py --project DIR [--rounds 7] [--viewers 20] [--places 12] [--chromium /usr/bin/chromium]

DIR is a finished project, such as `mlcycle demo DIR` makes. The peer is a plain Voilà of the same environment, with one kernel that it
has heated before: a notebook that opens the project, imports pandas and plotly, and plots the windows on its own. Both are asked by
the same Chromium, in turns, warm: the first round counts for neither. Painted is when a person can read the verdict and see the
timeline; for the peer, when its figure is drawn. Then everybody looks at once, in one context of the browser each: who was served, how long it
took, what the server and all its kernels weigh (proportional set size, so that shared memory counts once).
"""
import argparse, json, os, secrets, signal, socket, statistics, subprocess, sys, tempfile, time, urllib.request
from pathlib import Path
import psutil

ARGUMENTS = ('--no-sandbox --disable-gpu --disable-quic --disable-background-networking --disable-component-update --disable-sync').split()
TOKEN = secrets.token_urlsafe(24)
PEER = '''
import os, pandas as pd, plotly.graph_objects as go
from mlcycle.core import Project
from mlcycle.monitoring import recorded
report = recorded(Project(os.environ['MLCYCLE_PROJECT'], read_only=True))
figures = [(w.start[:10], w.performance[report.metric]) for w in report.windows if report.metric in w.performance]
known = [(at, e.value, e.high-e.value, e.value-e.low) for at, e in figures if e.status == 'ok']
table = pd.DataFrame(known, columns=['at', 'value', 'up', 'down'])
bars = dict(array=table['up'], arrayminus=table['down'])
go.FigureWidget([go.Scatter(x=table['at'], y=table['value'], error_y=bars)])
'''


def free_port() -> int:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def start_ours(project: str, places: int) -> tuple[subprocess.Popen, str]:
    port = free_port()
    code = 'from mlcycle.cli import main; main()'
    server = subprocess.Popen([sys.executable, '-c', code, 'app', 'monitoring', '--project', project, '--port', str(port), '--viewers', str(places)],
                              env=os.environ | {'MLCYCLE_TOKEN': TOKEN}, stdout=subprocess.DEVNULL, start_new_session=True)
    wait(f'http://127.0.0.1:{port}/health')
    return server, f'http://127.0.0.1:{port}/?token={TOKEN}'


def start_peer(project: str, folder: Path) -> tuple[subprocess.Popen, str]:
    "Plain Voilà with one preheated kernel."
    import nbformat
    cell = nbformat.v4.new_code_cell(PEER)
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'}})
    nbformat.write(notebook, folder/'peer.ipynb')
    port = free_port()
    server = subprocess.Popen([sys.executable, '-m', 'voila', str(folder/'peer.ipynb'), '--no-browser', f'--port={port}', '--preheat_kernel=True', '--pool_size=1'],
                              env=os.environ | {'MLCYCLE_PROJECT': project}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    wait(f'http://127.0.0.1:{port}/voila/static/voila.js')
    return server, f'http://127.0.0.1:{port}/'


def wait(url: str, seconds: float=90) -> None:
    until = time.monotonic()+seconds
    while time.monotonic() < until:
        try: return urllib.request.urlopen(url, timeout=5).close()
        except OSError: time.sleep(.2)
    raise SystemExit(f'{url} does not answer')


def stop(server: subprocess.Popen) -> None:
    family = [server, *psutil.Process(server.pid).children(recursive=True)]
    server.send_signal(signal.SIGTERM)
    try: server.wait(20)
    except subprocess.TimeoutExpired: pass
    for process in family[::-1]:
        try: process.kill()
        except (psutil.Error, OSError): pass


def weight(server: subprocess.Popen) -> tuple[float, int]: # MB, processes
    processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    total = 0
    for p in processes:
        try: total += p.memory_full_info().pss
        except psutil.Error: pass
    return total/2**20, len(processes)


OURS = "() => { const i = document.querySelector('.mlc img'); return document.querySelector('.mlc .verdict b') && i && i.complete && i.naturalWidth > 0; }"


def paint(browser, url: str, ready, after=None) -> tuple[float, float]: # seconds to the picture, and to the selectors
    context = browser.new_context(viewport={'width': 1366, 'height': 768}, bypass_csp=True)   # the probe polls by evaluation; pages keep their scripts
    page = context.new_page()
    began = time.perf_counter()
    page.goto(url, wait_until='commit')
    ready(page)
    painted, live = time.perf_counter()-began, float('nan')
    if after:
        after(page)
        live = time.perf_counter()-began
    context.close()
    return painted, live


def ours_painted(page): page.wait_for_function(OURS, timeout=60_000, polling=20)
def ours_live(page): page.wait_for_selector('body[data-live=yes]', state='attached', timeout=120_000)
def peer_painted(page): page.wait_for_selector('.js-plotly-plot .main-svg', timeout=120_000)


async def crowd(args, url: str, server: subprocess.Popen) -> dict:
    "Everybody at once."
    import asyncio
    from playwright.async_api import async_playwright
    async with async_playwright() as p:
        browser = await p.chromium.launch(executable_path=args.chromium, args=ARGUMENTS)
        async def look() -> dict:
            context = await browser.new_context(viewport={'width': 1366, 'height': 768}, bypass_csp=True)
            page, began, bad = await context.new_page(), time.perf_counter(), []
            page.on('response', lambda r: bad.append(r.status) if r.status >= 400 and '/live/' not in r.url else None)
            answer = await page.goto(url, wait_until='commit', timeout=120_000)
            await page.wait_for_function(OURS, timeout=120_000, polling=50)
            painted = time.perf_counter()-began
            try:
                await page.wait_for_function("document.body.dataset.live === 'yes' || !document.getElementById('mlc-live')", timeout=150_000, polling=200)
                live = await page.evaluate("document.body.dataset.live === 'yes'")
                note = '' if live else await page.inner_text('#mlc-note')
            except Exception as error: live, note = False, f'no end: {type(error).__name__}'
            return {'status': answer.status, 'bad': bad, 'painted': painted, 'live': live, 'note': note, 'end': time.perf_counter()-began, 'page': page}
        found = await asyncio.gather(*(look() for _ in range(args.viewers)))
        held = weight(server)
        for f in found: f.pop('page')
        await browser.close()
    return {'viewers': found, 'MB': held[0], 'processes': held[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--project', required=True)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--viewers', type=int, default=20)
    parser.add_argument('--places', type=int, default=12)
    parser.add_argument('--chromium', default='/usr/bin/chromium')
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright
    folder = Path(tempfile.mkdtemp())
    server, url = start_ours(args.project, args.places)
    peer, peer_url = start_peer(args.project, folder)
    try:
        time.sleep(20)   # both are warm: Voilà is up, the peer's kernel has run its notebook
        ours, theirs = [], []
        with sync_playwright() as p:
            browser = p.chromium.launch(executable_path=args.chromium, args=ARGUMENTS)
            for i in range(args.rounds+1):
                ours.append(paint(browser, url, ours_painted, ours_live))
                theirs.append(paint(browser, peer_url, peer_painted))
                time.sleep(8)   # the peer heats its next kernel
            browser.close()
        peer_weight = weight(peer)
        stop(peer)
        import asyncio
        time.sleep(3)
        print(f'load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {args.rounds} rounds after one to warm up\n')
        first, live, other = (statistics.median(v) for v in ([a for a, _ in ours[1:]], [b for _, b in ours[1:]], [a for a, _ in theirs[1:]]))
        print(f'{"":44}{"median":>9}{"fastest":>9}{"slowest":>9}')
        for name, values in (('mlcycle: verdict and timeline to be seen', [a for a, _ in ours[1:]]), ('mlcycle: selectors live', [b for _, b in ours[1:]]),
                             ('plain Voilà, preheated: figure to be seen', [a for a, _ in theirs[1:]])):
            print(f'{name:44}{statistics.median(values):8.2f}s{min(values):8.2f}s{max(values):8.2f}s')
        print(f'\nplain Voilà takes {other/first:.1f} times as long as the first paint, and weighs {peer_weight[0]:,.0f} MB in {peer_weight[1]} processes')
        result = asyncio.run(crowd(args, url, server))
        seen = result['viewers']
        print(f'\n{len(seen)} viewers at once, {args.places} live places: {sum(v["status"] == 200 and not v["bad"] for v in seen)} served without an error, '
              f'{sum(v["live"] for v in seen)} with live selectors, {sum(not v["live"] for v in seen)} with the page as drawn last')
        painted = sorted(v['painted'] for v in seen)
        print(f'to be seen after {statistics.median(painted):.2f} s (median), {painted[-1]:.2f} s (last); selectors of the last after {max(v["end"] for v in seen):.1f} s')
        print(f'server, Voilà and all kernels: {result["MB"]:,.0f} MB in {result["processes"]} processes')
        for note in sorted({v['note'] for v in seen if v['note']}): print(f'  said to who has no live place: {note}')
    finally:
        for s in (server, peer):
            if s.poll() is None: stop(s)


if __name__ == '__main__': main()
