"""Three servers that share a database and a folder of tables, and nothing else: one log, one history, one split, one rollback."""
import os, shutil, signal, threading
from concurrent.futures import ThreadPoolExecutor
import httpx
import pytest
from sklearn.linear_model import LogisticRegression
from mlcycle.core import Blocked, Project
from mlcycle.governance import history
from mlcycle.ledger import roles
from mlcycle.registry import promote, rollback
from mlcycle.scoring import labelled, predictions
from mlcycle.spool import waiting
from mlcycle.traffic import arms, set_traffic
from served import crown, new_project, register, strange_rows
from ports import free_port
from test_serving import TOKEN, start
from test_workers import HEADERS, record_of
from waiting import PATIENCE, until

IDS = [f'person {i}' for i in range(30)]


@pytest.fixture(scope='module')
def machines(tmp_path_factory, postgres):
    "Three folders as on three machines: the same settings and model files; ledger and tables elsewhere, in one place."
    home = tmp_path_factory.mktemp('servers')
    store = f'[store]\nledger = "{postgres}"\ntables = "{home}/tables"'
    first = new_project(home/'a', data='id = "id"\nprotected = ["sex"]\ndrop = ["sex"]', more=store)
    for seed in (0, 5): crown(first, register(first, strange_rows(seed=seed), LogisticRegression()))
    for name in 'bc': shutil.copytree(home/'a', home/name)
    return [first, *(Project(home/name, actor='Ada') for name in 'bc')]


@pytest.fixture(scope='module')
def servers(machines):
    ports = [free_port() for _ in machines]
    with ThreadPoolExecutor(3) as at_once: running = list(at_once.map(lambda p, port: start(p, port=port), machines, ports))
    yield list(zip(running, ports))
    for run in running:
        if run.poll() is None: run.kill()
        run.wait(PATIENCE)
        run.stderr.close()


def ask(port: int, record: dict, ids: list[str]) -> dict[str, tuple[str, str]]: # id → version, prediction id
    body = {'records': [record | {'id': i} for i in ids]}
    told = httpx.post(f'http://127.0.0.1:{port}/predict', json=body, headers=HEADERS, timeout=PATIENCE).raise_for_status().json()['predictions']
    return {i: (t['version'], t['prediction_id']) for i, t in zip(ids, told, strict=True)}


def test_one_log_one_history_one_split_and_one_rollback(machines, servers):
    record, ports, said = record_of(machines[0]), [port for _, port in servers], {}
    def everywhere() -> list[dict[str, str]]:
        answers = [ask(port, record, IDS) for port in ports]
        said.update({prediction: (i, version) for answer in answers for i, (version, prediction) in answer.items()})
        return [{i: version for i, (version, _) in answer.items()} for answer in answers]
    assert everywhere() == [dict.fromkeys(IDS, '2')]*3
    split = set_traffic(machines[1], {'1': .5}, because='a test')     # told to one machine
    wanted = dict(zip(IDS, arms(split, IDS)))
    until(lambda: everywhere() == [wanted]*3)                         # and divided alike by all
    assert set(wanted.values()) == {'1', '2'}
    rollback(machines[2], because='a test')
    until(lambda: everywhere() == [dict.fromkeys(IDS, '1')]*3)
    one = next(p for p, (_, version) in said.items() if version == '1')
    for port in ports:                                                # an outcome may be told to any of them
        httpx.post(f'http://127.0.0.1:{port}/label', json={'labels': [{'prediction_id': one, 'label': 'yes'}]}, headers=HEADERS, timeout=PATIENCE).raise_for_status()
    os.kill(servers[0][0].pid, signal.SIGKILL)
    for run, _ in servers[1:]: run.terminate()
    for run, _ in servers: run.wait(PATIENCE)
    lost = waiting(machines[0], 'predictions')                        # of the one that was killed: still on its own disk
    assert len(predictions(machines[1])) == len(said)-lost and len(predictions(machines[0])) == len(said)
    logs = [predictions(m).sort_values('prediction_id', ignore_index=True) for m in machines]
    assert all(log.equals(logs[0]) for log in logs)
    assert {p: (i, v) for p, i, v in logs[0][['prediction_id', 'id', 'version']].itertuples(index=False)} == said
    assert logs[0].loc[logs[0]['epoch'] == split.epoch, 'version'].nunique() == 2
    assert labelled(machines[2])['prediction_id'].tolist() == [one]
    pasts = [history(m) for m in machines]
    assert pasts[0] == pasts[1] == pasts[2] and [h['version'] for h in pasts[0] if h['role'] == 'champion'] == ['1', '2', '1']
    assert all(m.ledger.verify().ok for m in machines) and len({m.ledger.head() for m in machines}) == 1


def test_of_two_machines_that_decide_at_one_moment_one_wins(machines, monkeypatch):
    both, real = threading.Barrier(2), type(machines[0].registry).load
    def load(self, version):
        model = real(self, version)
        both.wait(PATIENCE)
        return model
    monkeypatch.setattr(type(machines[0].registry), 'load', load)
    def decide(machine: Project, role: str) -> str:
        try: return promote(machine, '2', to=role, because='a test').body['role']
        except Blocked as error: return str(error)
    with ThreadPoolExecutor(2) as people: told = sorted(people.map(decide, machines[:2], ('challenger', 'shadow')), key=len)
    assert told[0] in ('challenger', 'shadow') and 'Meanwhile Ada recorded another promotion' in told[1]
    assert roles(machines[2].ledger)[told[0]] == '2' and machines[2].ledger.verify().ok
