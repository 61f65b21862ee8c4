"""How soon the monitoring app says something, and whether twenty people can look at once.

    python benchmarks/app_paint.py [--project DIR] [--data ../shared/data] [--rounds 7] [--viewers 20] [--places 12] [--chromium /usr/bin/chromium]

DIR is a finished project, such as `mlcycle demo DIR` makes. Without it one is made first, in some minutes: 6,000 hotel bookings taken
through the nine stages, the newest fifth replayed as production. The peer is a plain Voilà of the same environment, with one kernel that it
has heated before: a notebook that opens the project, imports pandas and plotly, and plots the windows on its own. Both are asked by
the same Chromium, in turns, warm: the first round counts for neither. Painted is when a person can read the verdict and see the
timeline; for the peer, when its figure is drawn. Then everybody looks at once, in one context of the browser each: who was served, how long it
took, what the server and all its kernels weigh (proportional set size, so that shared memory counts once). Two crowds come, one after
the other. The bars: painted within 1.5 s at the median, everybody served without an error, no more than 2 GB in all, and no more than a
tenth more after the second crowd than after the first. Exit status 1 where one is not met.
"""
import argparse, os, secrets, shutil, signal, socket, statistics, subprocess, sys, tempfile, time, urllib.request
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


def make_project(data: Path, folder: Path) -> str:
    "A finished project on real data: hotel bookings by the day they were made, their outcomes weeks later."
    import pandas as pd
    from mlcycle.core import Project
    from mlcycle.demo import BUDGET, demo
    from mlcycle.project import Outline, scaffold
    rows = pd.read_csv(data/'hotel_bookings_h1/H1.csv', keep_default_na=False, dtype=str)
    arrival = pd.to_datetime(rows.ArrivalDateYear+' '+rows.ArrivalDateMonth+' '+rows.ArrivalDateDayOfMonth, format='%Y %B %d')
    rows['BookedAt'] = (arrival-pd.to_timedelta(rows.LeadTime.astype(int), unit='D')).dt.strftime('%Y-%m-%d')
    rows.sample(6_000, random_state=0).sort_index().to_csv(folder/'bookings.csv', index=False)
    scaffold(folder/'project', Outline(data=str(folder/'bookings.csv'), target='IsCanceled', positive='1', time='BookedAt',
        label_time='ReservationStatusDate', protected=('Country',), drop=('ReservationStatus',)))
    Project(folder/'project').update_settings(BUDGET | {'problem.objective': 'Tell early which bookings will be cancelled'})
    print(demo(folder/'project'), '\n')
    return str(folder/'project')


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


def in_turns(args, url: str, peer_url: str) -> tuple[list, list, list]: # seconds: ours painted, ours live, the peer painted
    "Both asked by the same browser, one after the other; the first round is left out."
    from playwright.sync_api import sync_playwright
    ours, theirs = [], []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=args.chromium, args=ARGUMENTS)
        for _ in range(args.rounds+1):
            ours.append(paint(browser, url, ours_painted, ours_live))
            theirs.append(paint(browser, peer_url, peer_painted)[0])
            time.sleep(8)   # the peer heats its next kernel
        browser.close()
    return [a for a, _ in ours[1:]], [b for _, b in ours[1:]], theirs[1:]


def tell_rounds(first: list, live: list, theirs: list, peer_weight: tuple) -> None:
    print(f'load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {len(first)} rounds after one to warm up\n')
    print(f'{"":44}{"median":>9}{"fastest":>9}{"slowest":>9}')
    for name, values in (('mlcycle: verdict and timeline to be seen', first), ('mlcycle: selectors live', live), ('plain Voilà, preheated: figure to be seen', theirs)):
        print(f'{name:44}{statistics.median(values):8.2f}s{min(values):8.2f}s{max(values):8.2f}s')
    ratio = statistics.median(theirs)/statistics.median(first)
    print(f'\nplain Voilà takes {ratio:.1f} times as long as the first paint, and weighs {peer_weight[0]:,.0f} MB in {peer_weight[1]} processes')


def served(seen: list[dict]) -> int: return sum(v['status'] == 200 and not v['bad'] for v in seen)


def tell_crowd(args, result: dict) -> None:
    seen = result['viewers']
    print(f'\n{len(seen)} viewers at once, {args.places} live places: {served(seen)} served without an error, '
          f'{sum(v["live"] for v in seen)} with live selectors, {sum(not v["live"] for v in seen)} with the page as drawn last')
    painted = sorted(v['painted'] for v in seen)
    print(f'to be seen after {statistics.median(painted):.2f} s (median), {painted[-1]:.2f} s (last); selectors of the last after {max(v["end"] for v in seen):.1f} s')
    print(f'server, Voilà and all kernels: {result["MB"]:,.0f} MB in {result["processes"]} processes')
    for note in sorted({v['note'] for v in seen if v['note']}): print(f'  said to who has no live place: {note}')


def tell_bars(first: list, crowds: list[dict]) -> int: # exit status
    most = sum(len(c['viewers']) for c in crowds)
    rows = [('first paint, median, s', statistics.median(first), '<', 1.5), ('viewers served without an error', sum(served(c['viewers']) for c in crowds), '>=', most),
            ('memory with everybody, MB', max(c['MB'] for c in crowds), '<', 2_048), ('memory, second crowd to first', crowds[1]['MB']/crowds[0]['MB'], '<', 1.1)]
    held = [value < bar if sign == '<' else value >= bar for _, value, sign, bar in rows]
    print()
    for (name, value, sign, bar), ok in zip(rows, held): print(f'{name:34}{value:10,.2f}   bar {sign} {bar:g}: {"met" if ok else "NOT met"}')
    return 0 if all(held) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--project', help='a finished project; made when it is not given')
    parser.add_argument('--data', type=Path, default=Path(__file__).resolve().parents[2]/'shared/data')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--viewers', type=int, default=20)
    parser.add_argument('--places', type=int, default=12)
    parser.add_argument('--chromium', default='/usr/bin/chromium')
    return parser.parse_args()


def main() -> int: # exit status
    import asyncio
    args, folder = arguments(), Path(tempfile.mkdtemp())
    project = args.project or make_project(args.data, folder)
    started = []
    try:
        server, url = start_ours(project, args.places)
        started.append(server)
        peer, peer_url = start_peer(project, folder)
        started.append(peer)
        time.sleep(20)   # both are warm: Voilà is up, the peer's kernel has run its notebook
        times = in_turns(args, url, peer_url)
        tell_rounds(*times, weight(peer))
        stop(peer)
        crowds = []
        for _ in range(2):
            time.sleep(45)   # the places of who has left are free again
            crowds.append(asyncio.run(crowd(args, url, server)))
            tell_crowd(args, crowds[-1])
        return tell_bars(times[0], crowds)
    finally:
        for s in started:
            if s.poll() is None: stop(s)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == '__main__': sys.exit(main())
