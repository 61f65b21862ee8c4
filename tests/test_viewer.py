"The door of the apps: who comes in, what can be reached, what is left when it is ended hard."
import os, re, socket, subprocess, sys, uuid, urllib.error, urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from apps import TOKEN, start, stop
from ports import free_port
from mlcycle.gateway import Seats
from waiting import PATIENCE, until
from test_monitoring import project_at

CANARY = f'canary-{uuid.uuid4().hex}'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = project_at(tmp_path_factory.mktemp('door')/'loans').folder
    for name in ('.env', 'notes.py', 'rows.csv'): (folder/name).write_text(CANARY)
    return folder


@pytest.fixture(scope='module')
def door(folder):
    server, port = start(folder, 'monitoring', '--viewers', '2')
    yield port
    stop(server)


def ask(port: int, path: str, *, method: str='GET', **headers: str) -> tuple[int, str]:
    "Status and body; redirects are not followed."
    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *args): return None
    request = urllib.request.Request(f'http://127.0.0.1:{port}{path}', method=method, headers={k.replace('_', '-'): v for k, v in headers.items()},
                                     data=b'' if method == 'POST' else None)
    try:
        with urllib.request.build_opener(Stay).open(request, timeout=PATIENCE) as answer: return answer.status, answer.read().decode('utf-8', 'replace')
    except urllib.error.HTTPError as answer: return answer.code, answer.read().decode('utf-8', 'replace')


def inside(port: int, path: str, **more) -> tuple[int, str]: return ask(port, path, Authorization=f'Bearer {TOKEN}', **more)


@pytest.mark.parametrize('path', ['/', '/live/', '/live/voila/static/voila.js', '/live/api/kernels/00000000-0000-0000-0000-000000000000', '/shown/a/monitoring', '/nothing'])
def test_nothing_without_a_token(door, path):                                                                          # W01
    assert ask(door, path)[0] == 401 and ask(door, path, Authorization='Bearer wrong')[0] == 401
    assert ask(door, path+'?token=wrong')[0] == 401


def test_the_link_lets_in_once_and_the_cookie_afterwards(door):
    request = urllib.request.Request(f'http://127.0.0.1:{door}/?token={TOKEN}')
    with urllib.request.build_opener(urllib.request.HTTPCookieProcessor()).open(request, timeout=PATIENCE) as answer:
        assert answer.status == 200 and 'token' not in answer.url and 'mlc-live' in answer.read().decode()
        assert "default-src 'none'" in answer.headers['Content-Security-Policy'] and answer.headers['X-Content-Type-Options'] == 'nosniff'


def test_other_names_and_other_sites_stay_out(door):                                                                   # W02
    assert inside(door, '/', Host='evil.example')[0] == 403
    assert inside(door, '/', Origin='http://evil.example')[0] == 403


@pytest.mark.parametrize('path', ['voila/files/.env', 'voila/files/../notes.py', 'voila/static/../../rows.csv', 'voila/static/%2e%2e/rows.csv', 'voila/static/%252e%252e/x',
                                  'voila/static//etc/passwd', 'voila/tree', 'api/contents', 'voila/render/monitoring.ipynb', 'monitoring.ipynb', 'api/kernels'])
def test_no_file_is_within_reach(door, path):                                                                          # W05
    status, body = inside(door, f'/live/{path}')
    assert status in (400, 403, 404) and CANARY not in body and 'Traceback' not in body


@pytest.mark.parametrize('query', ['template=../../x', 'theme=<script>', 'debug=1', 'unknown=1'])
def test_what_is_asked_behind_the_path_is_dropped(door, query):                                                        # W09
    assert inside(door, f'/?{query.replace("<", "%3C").replace(">", "%3E")}')[0] == 302


def test_errors_have_an_id_and_no_trace(door):
    status, body = inside(door, '/nothing')
    assert status == 404 and re.search(r'[0-9a-f]{12}', body) and 'Traceback' not in body and '/site-packages' not in body


def test_no_kernel_runs_what_a_viewer_sends(door):                                                                     # W04
    import asyncio, json, tornado.httpclient, tornado.websocket
    html = inside(door, '/live/?template=../../x')[1]
    kernel = re.search(r'"kernelId": ?"([0-9a-f-]{36})"', html)[1]
    async def talk() -> list[str]:
        url = f'ws://127.0.0.1:{door}/live/api/kernels/{kernel}/channels'
        with pytest.raises(tornado.httpclient.HTTPError): await tornado.websocket.websocket_connect(url)
        connection = await tornado.websocket.websocket_connect(tornado.httpclient.HTTPRequest(url, headers={'Authorization': f'Bearer {TOKEN}'}))
        for kind in ('execute_request', 'inspect_request', 'complete_request', 'history_request', 'kernel_info_request'):
            header = {'msg_id': kind, 'msg_type': kind, 'session': 's', 'username': '', 'version': '5.3', 'date': ''}
            content = {'code': f'open("/tmp/{CANARY}", "w")', 'silent': False, 'cursor_pos': 3, 'detail_level': 0, 'hist_access_type': 'tail', 'n': 5}
            await connection.write_message(json.dumps({'header': header, 'parent_header': {}, 'metadata': {}, 'content': content, 'channel': 'shell'}))
        heard = []
        while not any('kernel_info_reply' in m for m in heard): heard.append(str(await asyncio.wait_for(connection.read_message(), PATIENCE)))
        connection.close()
        return heard
    heard = asyncio.run(talk())
    assert not any(f'{kind}_reply' in m for m in heard for kind in ('execute', 'inspect', 'complete', 'history'))
    assert not Path(f'/tmp/{CANARY}').exists()
    assert inside(door, f'/live/voila/api/shutdown/{kernel}', method='POST')[0] == 204


def test_past_the_cap_a_viewer_is_told_and_the_page_is_still_there(door):                                              # W07
    with ThreadPoolExecutor(2) as at_once: held = [*at_once.map(lambda _: inside(door, '/live/'), range(2))]   # who shows no sign of life for long gives way
    assert [status for status, _ in held] == [200, 200]
    status, body = inside(door, '/live/')
    assert status == 503 and 'All 2 live places are taken' in body and 'mlcycle-refusal' in body
    assert inside(door, '/')[0] == 200
    for _, html in held: inside(door, f'/live/voila/api/shutdown/{re.search("[0-9a-f]{8}-[0-9a-f-]{27}", html)[0]}', method='POST')
    assert inside(door, '/live/')[0] == 200


def test_what_is_ended_hard_leaves_nothing_and_comes_back(folder):                                                     # W11
    server, port = start(folder, 'monitoring')
    try:
        assert inside(port, '/live/')[0] == 200
        child, *_ = psutil.Process(server.pid).children()
        family = child.children(recursive=True)
        assert len(family) >= 2   # what kernels come from, and a kernel
        child.kill()
        gone, alive = psutil.wait_procs(family, timeout=PATIENCE)
        assert not alive and inside(port, '/')[0] == 200   # the page as it was drawn last is there all the while
        until(lambda: inside(port, '/live/')[0] == 200)
        family = psutil.Process(server.pid).children(recursive=True)
    finally:
        server.kill()
        server.wait(PATIENCE)
    gone, alive = psutil.wait_procs(family, timeout=PATIENCE)
    assert len(family) >= 3 and not alive
    server, port = start(folder, 'monitoring', port=port)
    stop(server)


def test_it_does_not_listen_to_others_without_a_token(folder):
    environment = {k: v for k, v in os.environ.items() if k != 'MLCYCLE_TOKEN'}
    done = subprocess.run([sys.executable, '-c', 'from mlcycle.cli import main; main()', 'app', '--project', str(folder), '--host', '0.0.0.0', '--port', str(free_port())],
                          env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1 and 'MLCYCLE_TOKEN' in done.stderr


def test_a_taken_port_is_said(folder):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen()
        done = subprocess.run([sys.executable, '-c', 'from mlcycle.cli import main; main()', 'app', '--project', str(folder), '--port', str(s.getsockname()[1])], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2 and '--port' in done.stderr and 'Traceback' not in done.stderr


def test_seats_give_way_only_when_idle():
    now = [0.]
    seats = Seats(1, idle=300, leaving=20, clock=lambda: now[0])
    seat, _ = seats.take()
    seat.kernel, seat.open = 'k', 1
    now[0] = 299
    assert seats.take() == (None, '')
    now[0] = 301
    assert seats.take()[1] == 'k' and len(seats.taken) == 1
