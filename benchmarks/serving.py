"""One model, five servers, one client: how long a caller waits, how many callers a second, how many rows in batches.

    python benchmarks/serving.py --mlflow-python PATH --bentoml-python PATH [--seconds 4] [--rounds 3] [--only NAME]...

The model is a ColumnTransformer (scaler, one-hot) over 20 numeric and 10 categorical columns before histogram gradient boosting.
Each server runs alone, answers the same bodies from the same client (`load.py`), and is stopped before the next one starts; all have several
turns, and what is told are medians over these.
Peers need environments of their own (a peer that is not given is left out, and said to be):

    python3.11 -m venv PEER1 && PEER1/bin/pip install 'mlflow==3.17.*' 'scikit-learn==1.9.*' 'pandas==3.*' skops
    python3.11 -m venv PEER2 && PEER2/bin/pip install bentoml 'scikit-learn==1.9.*' 'pandas==3.*' skops

The yardstick for the durable log is measured in the same run, after each server: the median time of appending 1 kB to a file and
`fdatasync`, back to back, and with a pause before each as long as that between two answers, which is how a log meets the disk (a machine that
has waited takes longer to begin). Beside it stands what the disk alone takes for such a record in a file that was written in advance, as
the log's segments are. `no log` is a bundle, which has no project beside it; both are told.
"""
import argparse, json, os, shutil, signal, socket, subprocess, sys, tempfile, textwrap, time, urllib.request
from pathlib import Path
import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
TOKEN = 'a-token-for-benchmarks-0123456789'
NUMBERS, WORDS = [f'n{i}' for i in range(20)], [f'c{i}' for i in range(10)]
ALONE = {**os.environ, 'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1', 'MLFLOW_DISABLE_TELEMETRY': 'true', 'DO_NOT_TRACK': '1', 'BENTOML_DO_NOT_TRACK': 'true'}


def rows(n: int, seed: int=0) -> pd.DataFrame:
    "Synthetic rows: 20 numbers, 10 words of 8 levels, and a label that depends on both."
    draw = np.random.default_rng(seed)
    df = pd.DataFrame({c: draw.normal(size=n).round(4) for c in NUMBERS} | {c: draw.choice([f'level {k}' for k in range(8)], n) for c in WORDS})
    signal = df[NUMBERS[:8]].sum(axis=1)+df['n0']*df['n1']+2*(df['c0'] == 'level 3')-2*(df['c1'] == 'level 5')
    return df.assign(label=np.where(signal+draw.normal(size=n) > 0, 'yes', 'no'))


def pipeline():
    "The model, not yet fitted."
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler
    encode = ColumnTransformer([('numbers', StandardScaler(), NUMBERS), ('words', OneHotEncoder(handle_unknown='ignore', sparse_output=False), WORDS)])
    return Pipeline([('encode', encode), ('model', HistGradientBoostingClassifier(early_stopping=False, random_state=0))])


def make_project(folder: Path, train: pd.DataFrame):
    "A project whose champion is the model."
    from mlcycle.core import Project
    from mlcycle.plans import encode_target, infer_plan
    from mlcycle.gates import approval_digest
    from mlcycle.registry import promote
    folder.mkdir(parents=True)
    (folder/'mlcycle.toml').write_text('[project]\nname = "bench"\nauthor = "Ada"\n[problem]\ntask = "binary"\ntarget = "label"\n[data]\n'
                                       'sources = [{name = "rows", path = "rows.csv"}]\n[governance]\nsignatures = 1\n')
    project = Project(folder, actor='Ada')
    plan, stored = infer_plan(train, project.settings), project.tables.write('train', train)
    project.record(stored, subject='train')
    fitted = pipeline().fit(train[plan.inputs], encode_target(train['label'], project.settings))
    version = project.registry.register(fitted, example=train[plan.inputs].head(), facts={'algorithm': 'boosting', 'plan': plan.body(), 'data': stored.hash, 'threshold': .5}).version
    project.ledger.append(stage='validation', kind='validation', subject=version, body={'verdict': 'pass'}, actor='Ada')
    body = {'version': version, 'by': 'Grace', 'because': 'a benchmark', 'digest': approval_digest(project, version)}
    project.ledger.append(stage='governance', kind='approval', subject=version, body=body, actor='Grace')
    promote(project, version, to='champion', because='a benchmark')
    return project, fitted


# --- the servers: each is (command, environment, path, form of a body)

ECHO = '''
    import sys, uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse
    app = FastAPI()
    @app.post('/predict')
    async def echo(request: Request): return JSONResponse(await request.json())
    uvicorn.run(app, host='127.0.0.1', port=int(sys.argv[1]), log_level='warning', access_log=False)
'''
OURS = '''
    import sys
    from mlcycle.core import Project
    from mlcycle.serving import serve
    from pathlib import Path
    if __name__ == '__main__':
        source = sys.argv[2] if (Path(sys.argv[2])/'manifest.json').exists() else Project(sys.argv[2])
        serve(source, port=int(sys.argv[1]), **({'workers': int(sys.argv[3])} if len(sys.argv) > 3 else {}))
'''
BENTO = '''
    import bentoml, numpy as np, pandas as pd, skops.io
    @bentoml.service(workers=1)
    class Bench:
        def __init__(self):
            self.model = skops.io.load('model.skops', trusted=skops.io.get_untrusted_types(file='model.skops'))
        @bentoml.api
        def predict(self, records: list[dict]) -> list[float]: return self.model.predict_proba(pd.DataFrame(records))[:, 1].tolist()
'''
MLFLOW = '''
    import sys, mlflow, pandas as pd, skops.io
    model = skops.io.load('model.skops', trusted=skops.io.get_untrusted_types(file='model.skops'))
    rows = pd.read_parquet('rows.parquet')
    mlflow.sklearn.save_model(model, 'mlflow-model', signature=mlflow.models.infer_signature(rows, model.predict_proba(rows)[:, 1]), pyfunc_predict_fn='predict_proba', serialization_format='cloudpickle')
'''


def script(folder: Path, name: str, text: str) -> str:
    (folder/name).write_text(textwrap.dedent(text))
    return str(folder/name)


def records(df: pd.DataFrame) -> str: return json.dumps({'records': df.to_dict('records')})
def split(df: pd.DataFrame) -> str: return json.dumps({'dataframe_split': df.to_dict('split', index=False)})


def servers(folder: Path, peers: dict) -> dict:
    "Name → (command of a port, form of a body, path, extra environment)."
    echo, ours = script(folder, 'echo.py', ECHO), script(folder, 'ours.py', OURS)
    here = [sys.executable]
    found = {'FastAPI echo': (lambda port: [*here, echo, str(port)], records, '/predict', {}),
             'mlcycle, no log': (lambda port: [*here, ours, str(port), str(folder/'bundle')], records, '/predict', {'MLCYCLE_LOG': 'off'}),
             'mlcycle, durable log': (lambda port: [*here, ours, str(port), str(folder/'project')], records, '/predict', {}),
             'mlcycle, durable log, float32 ONNX': (lambda port: [*here, ours, str(port), str(folder/'onnx')], records, '/predict', {}),
             'mlcycle, durable log, 2 workers': (lambda port: [*here, ours, str(port), str(folder/'project'), '2'], records, '/predict', {})}
    if peers.get('mlflow'):
        subprocess.run([peers['mlflow'], script(folder, 'save.py', MLFLOW)], cwd=folder, check=True, env=ALONE, capture_output=True)
        program = str(Path(peers['mlflow']).parent/'mlflow')
        serving = lambda port, *more: [program, 'models', 'serve', '-m', 'mlflow-model', '-p', str(port), '-h', '127.0.0.1', '--env-manager', 'local', *more]
        path = {'PATH': f'{Path(program).parent}{os.pathsep}{os.environ["PATH"]}'}
        found['mlflow models serve'] = (serving, split, '/invocations', path)
        found['mlflow models serve, 2 workers'] = (lambda port: serving(port, '--workers', '2'), split, '/invocations', path)
    if peers.get('bentoml'):
        script(folder, 'service.py', BENTO)
        bento = str(Path(peers['bentoml']).parent/'bentoml')
        found['BentoML'] = (lambda port: [bento, 'serve', 'service:Bench', '--port', str(port), '--host', '127.0.0.1'], records, '/predict', {'BENTOML_HOME': str(folder/'bento')})
    return found


def free_port() -> int:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def ask(port: int, path: str, body: str) -> bytes:
    request = urllib.request.Request(f'http://127.0.0.1:{port}{path}', data=body.encode(), headers={'Content-Type': 'application/json', 'Authorization': f'Bearer {TOKEN}'})
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10).read()


class Server:
    "A server of its own process group, ready when entered, gone when left."
    def __init__(self, folder: Path, command, environment: dict, path: str, body: str):
        self.port = free_port()
        self.log = open(folder/'server.log', 'ab')
        self.process = subprocess.Popen(command(self.port), cwd=folder, env={**ALONE, 'MLCYCLE_TOKEN': TOKEN, **environment}, stdout=self.log, stderr=self.log, start_new_session=True)
        self.path, self.body = path, body

    def __enter__(self):
        for _ in range(600):
            if self.process.poll() is not None: raise SystemExit(f'a server ended: {Path(self.log.name).read_text()[-2000:]}')
            try: self.first = ask(self.port, self.path, self.body); return self
            except OSError: time.sleep(.1)
        raise SystemExit(f'a server did not start: {Path(self.log.name).read_text()[-2000:]}')

    def __exit__(self, *error) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        try: self.process.wait(15)
        except subprocess.TimeoutExpired: os.killpg(self.process.pid, signal.SIGKILL); self.process.wait()
        self.log.close()


def load(folder: Path, server: Server, bodies: list[str], *, clients: int, seconds: float) -> dict:
    "What the client saw."
    plan = {'host': '127.0.0.1', 'port': server.port, 'path': server.path, 'bodies': bodies, 'clients': clients, 'seconds': seconds, 'warm': min(2, seconds/4),
            'headers': {'Authorization': f'Bearer {TOKEN}'}}
    (folder/'plan.json').write_text(json.dumps(plan))
    done = subprocess.run([sys.executable, str(HERE/'load.py'), str(folder/'plan.json')], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    if set(found['statuses']) != {'200'}: print('   statuses', found['statuses'], found['shown'][-300:])
    return found


PAUSE = .0003   # seconds between two answers to one client, about


def disk(folder: Path, n: int=200) -> tuple[float, float, float]: # medians, seconds
    "Appending 1 kB and fdatasync: back to back, and at the pace of answers; and what no log is quicker than, the same bytes into a file written in advance."
    times, ready = {'append': [], 'paced': [], 'least': []}, os.open(folder/'ready', os.O_RDWR | os.O_CREAT)
    os.pwrite(ready, bytes(1024*n), 0); os.fsync(ready)
    with open(folder/'disk', 'wb', buffering=0) as f:
        def append(): f.write(b'x'*1024); os.fdatasync(f.fileno())
        for i in range(n):
            started = time.perf_counter()
            append()
            between = time.perf_counter()
            os.pwrite(ready, b'x'*1024, 1024*i); os.fdatasync(ready)
            times['append'].append(between-started), times['least'].append(time.perf_counter()-between)
        for i in range(n):
            time.sleep(PAUSE)
            started = time.perf_counter()
            append()
            times['paced'].append(time.perf_counter()-started)
    os.close(ready)
    return tuple(float(np.median(times[k])) for k in ('append', 'paced', 'least'))


def distances(*projects) -> list[str]:
    "How each project's version computes its scores, and how far they are from scikit-learn's."
    from mlcycle.paths import ScoringPath
    from mlcycle.service import ProjectService
    said = []
    for project in projects:
        ProjectService(project).close()
        path = project.latest(ScoringPath, subject='1')
        said.append(f'{project.folder.name:8} {path.path}: {path.changed} of {path.rows:,} decisions differ, scores by up to {path.distance:.2g}. {path.why}')
    return said


def measure(folder: Path, found: dict, test: pd.DataFrame, *, seconds: float, rounds: int) -> pd.DataFrame:
    "One row a server: medians over the rounds, in each of which every server has its turn, so that a slow minute of the machine is nobody's own."
    out = []
    for _ in range(rounds):
        for name, (command, form, path, environment) in found.items():
            one, many = [form(test.iloc[[i]]) for i in range(200)], [form(test.iloc[i*1000:(i+1)*1000]) for i in range(3)]
            with Server(folder, command, environment, path, one[0]) as server:
                ask(server.port, path, many[0])
                single, crowd = load(folder, server, one, clients=1, seconds=seconds), load(folder, server, one, clients=16, seconds=seconds)
                batch = load(folder, server, many, clients=1, seconds=seconds)
            append, paced, least = disk(folder)
            out.append({'server': name, 'one_ms': single['median']*1e3, 'one_p99_ms': single['p99']*1e3, 'rate16': crowd['rate'], 'median16_ms': crowd['median']*1e3,
                        'p99_16_ms': crowd['p99']*1e3, 'batch_rows_s': batch['rate']*1000, 'fdatasync_ms': append*1e3, 'paced_ms': paced*1e3, 'least_ms': least*1e3})
            print('  ', {k: round(v, 3) if isinstance(v, float) else v for k, v in out[-1].items()}, flush=True)
    return pd.DataFrame(out).groupby('server', sort=False).median()


def ratios(t: pd.DataFrame) -> list[tuple[str, float, str]]: # what, figure, bar
    "The promises, as far as the servers in the table allow."
    has, out = lambda *names: set(names) <= set(t.index), []
    ours, kept, two, echo, peer, bento = 'mlcycle, no log', 'mlcycle, durable log', 'mlcycle, durable log, 2 workers', 'FastAPI echo', 'mlflow models serve', 'BentoML'
    one, sync, paced = t['one_ms'], float(t['fdatasync_ms'].median()), float(t['paced_ms'].median())
    if has(ours, echo): out.append(('one record: median, over the echo', one[ours]/one[echo], '<= 1.6'))
    if has(ours, peer): out.append(('one record: MLflow, over ours', one[peer]/one[ours], '>= 40'))
    if has(ours, bento): out.append(('one record: BentoML, over ours', one[bento]/one[ours], '>= 15'))
    if has(kept, echo): out.append((f'one record, durable log: median, over 1.6 echos and 1.5 fdatasyncs ({sync:.2f} ms, back to back)', one[kept]/(1.6*one[echo]+1.5*sync), '<= 1'))
    if has(ours, kept):
        out.append((f'durable log: what it adds, in medians of fdatasync at the pace of answers ({paced:.2f} ms)', (one[kept]-one[ours])/paced, '<= 1.5'))
        out.append((f'durable log: what it adds, in medians of fdatasync back to back ({sync:.2f} ms)', (one[kept]-one[ours])/sync, '<= 1.5'))
    if kept in t.index: out.append(('  of which the disk: pwrite and fdatasync of as many bytes, and nothing else', float(t['least_ms'].median())/sync, 'no bar'))
    best = max((n for n in (kept, two) if n in t.index), key=lambda n: t['rate16'][n], default=None)
    if best and has(peer):
        other = t['rate16'][[n for n in t.index if n.startswith(peer)]].max()
        out.append((f'16 clients: requests/s over the better of MLflow with 1 and 2 workers ({best})', t['rate16'][best]/other, '>= 30'))
    if best: out.append(('16 clients: p99 over median', t['p99_16_ms'][best]/t['median16_ms'][best], '< 10'))
    if has(kept, peer): out.append(('batches of 1,000: rows/s over MLflow, durable log', t['batch_rows_s'][kept]/t['batch_rows_s'][peer], '>= 2.5'))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--mlflow-python'), parser.add_argument('--bentoml-python')
    parser.add_argument('--seconds', type=float, default=4, help='of each measurement')
    parser.add_argument('--rounds', type=int, default=3, help='in each of which every server has its turn')
    parser.add_argument('--rows', type=int, default=20_000, help='to train on')
    parser.add_argument('--only', action='append', help='servers whose name holds this')
    parser.add_argument('--out', help='a JSON file for the table')
    parser.add_argument('--folder', default='.', help='where the servers write: the disk that is measured')
    given = parser.parse_args()
    from mlcycle.deployment import build_bundle
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        folder = Path(place).resolve()
        data = rows(given.rows+4000)
        train, test = data.iloc[:given.rows].reset_index(drop=True), data.iloc[given.rows:].drop(columns='label').reset_index(drop=True)
        project, fitted = make_project(folder/'project', train)
        import skops.io
        skops.io.dump(fitted, folder/'model.skops')
        test.head(5).to_parquet(folder/'rows.parquet')
        shutil.copytree(folder/'project', folder/'onnx')
        quick = type(project)(folder/'onnx', actor='Ada')
        quick.update_settings({'deployment.scorer': 'onnx'})
        far = distances(project, quick)
        build_bundle(project, out=folder/'bundle')
        found = servers(folder, {'mlflow': given.mlflow_python, 'bentoml': given.bentoml_python})
        found = {n: s for n, s in found.items() if not given.only or any(o in n for o in given.only)}
        table = measure(folder, found, test, seconds=given.seconds, rounds=given.rounds)
    print(table.round(3).to_string(), *far, sep='\n')
    for what, figure, bar in ratios(table): print(f'{what:90} {figure:8.2f}   {bar}')
    for peer in ('mlflow', 'bentoml'):
        if not getattr(given, f'{peer}_python'): print(f'{peer} was not measured: --{peer}-python was not given')
    if given.out: Path(given.out).write_text(json.dumps({'table': table.reset_index().to_dict('records'), 'ratios': ratios(table)}, indent=1))


if __name__ == '__main__': main()
