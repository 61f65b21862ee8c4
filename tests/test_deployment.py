"""Deployment: every file by a public validator, the gates, hashes, names of strangers, and a clean environment that gives the golden answers."""
import json, os, re, shutil, subprocess, sys, urllib.error, urllib.request
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from mlcycle.core import Blocked, IntegrityError, MissingEvidence, Project, SettingsError
from mlcycle.deployment import Bundle, build_bundle, golden_inputs, pinned_requirements, serving_modules
from mlcycle.inputs import InputColumn
from mlcycle.manifests import image_name, service_name
from mlcycle.scoring import predictions
from mlcycle.bundle import BundleService, check_bundle, check_golden
from mlcycle.service import collect
from ports import free_port
from waiting import PATIENCE, until
from served import FORMULA, HTML, crown, new_project, register, retire, sign, strange_rows

TOKEN = 'a-token-for-tests-0123456789'


@pytest.fixture(scope='module')
def project(tmp_path_factory) -> Project:
    project = new_project(tmp_path_factory.mktemp('deployment')/'project', data='id = "id"\nprotected = ["sex"]\ndrop = ["sex"]')
    crown(project, register(project, strange_rows(), LogisticRegression()))
    return project


@pytest.fixture(scope='module')
def bundle(project) -> tuple[Bundle, Path]:
    built = build_bundle(project)
    return built, project.folder/built.folder


def test_every_file_is_listed_with_its_hash_and_the_entry_names_them(project, bundle):
    built, folder = bundle
    there = {p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file()}
    assert there == {*built.files['path'], 'manifest.json'} and check_bundle(folder)['digest'] == built.digest
    assert {'model.skops', 'schema.json', 'requirements.txt', 'golden.json', 'server.py', 'Dockerfile', 'compose.yaml', '.github/workflows/deploy.yml', 'README.md',
            'mlcycle/serving.py', 'mlcycle/features.py'} < there
    entry = project.ledger.last('bundle', '1')
    assert Bundle.from_body(entry.body) == built and str(project.folder) not in json.dumps(entry.body)
    assert str(project.folder) not in ''.join(p.read_text(errors='replace') for p in folder.rglob('*') if p.is_file())
    assert build_bundle(project) == built     # the same bytes, and the folder is left as it is


# --- public validators, offline

def run(*command: str) -> None:
    done = subprocess.run([str(Path(sys.executable).parent/command[0]), *command[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout+done.stderr


def test_compose_file_and_pipelines_fit_their_schemas(bundle):
    run('check-jsonschema', '--builtin-schema', 'vendor.compose-spec', str(bundle[1]/'compose.yaml'))
    run('check-jsonschema', '--builtin-schema', 'vendor.github-workflows', str(bundle[1]/'.github/workflows/deploy.yml'))
    run('check-jsonschema', '--builtin-schema', 'custom.github-workflows-require-timeout', str(bundle[1]/'.github/workflows/deploy.yml'))
    run('check-jsonschema', '--builtin-schema', 'vendor.gitlab-ci', '--data-transform', 'gitlab-ci', str(bundle[1]/'.gitlab-ci.yml'))


def test_both_pipelines_test_build_scan_push_deploy_and_roll_back(bundle):
    import yaml
    github = yaml.safe_load((bundle[1]/'.github/workflows/deploy.yml').read_text())
    gitlab = yaml.safe_load((bundle[1]/'.gitlab-ci.yml').read_text())
    said = {'github': ' '.join(s.get('run', '') for job in github['jobs'].values() for s in job['steps']),
            'gitlab': ' '.join(' '.join(job['script']) for job in gitlab.values() if isinstance(job, dict) and 'script' in job)}
    for name, text in said.items():
        for part in ('server.py check', 'pip_audit', 'docker build', 'image.tar', '--exit-code 1', 'docker push', 'kubectl set image', 'kubectl rollout undo'):
            assert part in text, (name, part)
        own, applied, rest = text.partition('kubectl apply --filename kubernetes/')     # one change a release, so that undoing one is the release before
        assert 'kubectl set image --local' in own and applied and 'set image' not in rest and rest.index('rollout status') < rest.index('rollout undo')
    assert github['jobs']['rollback']['if'] == "inputs.action == 'rollback'" and gitlab['rollback']['rules'][0]['when'] == 'manual'
    assert gitlab['stages'] == ['test', 'build', 'scan', 'push', 'deploy'] and {gitlab[j]['stage'] for j in gitlab['stages']} == set(gitlab['stages'])
    scanning = next(s for s in github['jobs']['image']['steps'] if s.get('name') == 'Scan')
    assert 'env' not in scanning and 'docker.sock' not in said['github']     # what scans gets a file and no secret


def test_kubernetes_objects_fit_the_published_schemas(bundle):
    files = sorted(f for f in (bundle[1]/'kubernetes').rglob('*.yaml') if f.parent.name != 'prometheus')
    assert len(files) == 6
    for version in ('1.37', '1.33'): run('kubernetes-validate', '--strict', '-k', version, *map(str, files))
    import yaml
    objects = {o['kind']: o for f in files if f.parent.name != 'canary' for o in yaml.safe_load_all(f.read_text())}
    assert set(objects) == {'Deployment', 'Service', 'HorizontalPodAutoscaler', 'PodDisruptionBudget', 'NetworkPolicy'} and objects['HorizontalPodAutoscaler']['apiVersion'] == 'autoscaling/v2'
    container = objects['Deployment']['spec']['template']['spec']['containers'][0]
    assert {'startupProbe', 'livenessProbe', 'readinessProbe'} <= set(container) and set(container['resources']) == {'requests', 'limits'}
    assert container['securityContext']['readOnlyRootFilesystem'] and objects['Deployment']['spec']['template']['spec']['securityContext']['runAsNonRoot']


def test_a_pod_is_left_the_time_to_drain_and_answers_to_its_names(bundle, monkeypatch):
    "What the kubelet, compose and systemd wait is longer than what the server may take; Prometheus asks by address, callers by the Service's names."
    import inspect, yaml
    from mlcycle.access import access_for, refusal
    from mlcycle.workers import LINGER, TAKEN
    from mlcycle import serving
    pod = yaml.safe_load((bundle[1]/'kubernetes/deployment.yaml').read_text())['spec']['template']['spec']
    drain = int(re.search(r'timeout_graceful_shutdown=(\d+)', inspect.getsource(serving.serve))[1])+LINGER+TAKEN
    waits = int(pod['containers'][0]['lifecycle']['preStop']['exec']['command'][1])
    assert pod['terminationGracePeriodSeconds'] >= waits+drain+5
    assert int(yaml.safe_load((bundle[1]/'compose.yaml').read_text())['services']['server']['stop_grace_period'][:-1]) >= drain+5
    assert int(re.search(r'TimeoutStopSec=(\d+)', (bundle[1]/'systemd/server.service').read_text())[1]) >= drain+5
    hosts = next(e for e in pod['containers'][0]['env'] if e['name'] == 'MLCYCLE_HOSTS')['value']
    monkeypatch.setenv('MLCYCLE_HOSTS', hosts.replace('$(NAMESPACE)', 'models').replace('$(POD_IP)', '10.1.2.3'))
    access, name = access_for(TOKEN), yaml.safe_load((bundle[1]/'kubernetes/service.yaml').read_text())['metadata']['name']
    told = lambda host: refusal(access, '/metrics', {'host': [host], 'authorization': [f'Bearer {TOKEN}']})
    assert [told(h) for h in (f'{name}:8000', f'{name}.models', f'{name}.models.svc.cluster.local:8000', '10.1.2.3:8000')] == [None]*4
    assert told('10.1.2.4:8000')[0] == told(f'{name}.others')[0] == 400
    monitor = yaml.safe_load((bundle[1]/'kubernetes/prometheus/servicemonitor.yaml').read_text())['spec']
    key = next(e for e in pod['containers'][0]['env'] if e['name'] == 'MLCYCLE_TOKEN')['valueFrom']['secretKeyRef']
    service = yaml.safe_load((bundle[1]/'kubernetes/service.yaml').read_text())
    assert monitor['endpoints'][0]['authorization']['credentials'] == key and monitor['endpoints'][0]['port'] == service['spec']['ports'][0]['name']
    assert monitor['selector']['matchLabels'].items() <= service['metadata']['labels'].items()


def test_systemd_takes_the_unit(bundle, tmp_path):
    if not shutil.which('systemd-analyze'): pytest.skip('systemd-analyze is not installed')
    text = (bundle[1]/'systemd/server.service').read_text()
    (tmp_path/'model.service').write_text(re.sub(r'/opt/[^ ]+/venv/bin/python', sys.executable, text))
    done = subprocess.run(['systemd-analyze', 'verify', str(tmp_path/'model.service')], capture_output=True, text=True)
    assert done.returncode == 0 and 'model.service' not in done.stderr, done.stderr     # an unknown setting is a line with its name
    assert 'KillMode=mixed' in text and 'MLCYCLE_TOKEN' not in text


def test_the_canary_is_the_same_pod_beside_the_others_and_the_service_finds_both(bundle):
    import yaml
    read = lambda name: yaml.safe_load((bundle[1]/'kubernetes'/name).read_text())
    stable, canary = read('deployment.yaml'), read('canary/deployment.yaml')
    assert canary['metadata']['name'] == stable['metadata']['name']+'-canary' and canary['spec']['replicas'] == 1
    labels = [d['spec']['template']['metadata'].pop('labels') for d in (stable, canary)]
    assert canary['spec']['template'] == stable['spec']['template']
    service, chosen = read('service.yaml')['spec']['selector'], lambda selector, pod: selector.items() <= pod.items()
    assert all(chosen(service, pod) for pod in labels)
    own = [d['spec']['selector']['matchLabels'] for d in (stable, canary)]
    assert [[chosen(o, pod) for pod in labels] for o in own] == [[True, False], [False, True]]
    assert [chosen(read('disruption.yaml')['spec']['selector']['matchLabels'], pod) for pod in labels] == [True, False]


def test_the_autoscaler_counts_what_the_server_exports(project, bundle):
    import yaml
    from mlcycle.serving import Counters
    metrics = yaml.safe_load((bundle[1]/'kubernetes/autoscaler.yaml').read_text())['spec']['metrics']
    pods = next(m['pods'] for m in metrics if m['type'] == 'Pods')
    import prometheus_client
    counters = Counters({'/predict'})
    counters.seen('/predict', 200, .01)
    assert f'{pods["metric"]["name"]}_total'.encode() in prometheus_client.generate_latest(counters.registry)
    assert pods['target'] == {'type': 'AverageValue', 'averageValue': str(project.settings.deployment.pod_requests)}


EXTENSION = {'minReplicas', 'maxReplicas', 'scaleMetric', 'scaleTarget', 'timeout'}     # KServe's ComponentExtensionSpec, serving.kserve.io/v1beta1; all else is a PodSpec

def test_kserve_gets_a_valid_pod_and_its_own_fields(bundle, tmp_path):
    import yaml
    made = yaml.safe_load((bundle[1]/'kserve/inferenceservice.yaml').read_text())
    assert (made['apiVersion'], made['kind'], set(made['spec'])) == ('serving.kserve.io/v1beta1', 'InferenceService', {'predictor'})
    predictor = made['spec']['predictor']
    own = {k: predictor.pop(k) for k in EXTENSION & set(predictor)}
    assert own['scaleMetric'] in ('cpu', 'memory', 'concurrency', 'rps') and 0 < own['minReplicas'] <= own['maxReplicas'] and own['scaleTarget'] > 0
    pod = tmp_path/'pod.yaml'
    pod.write_text(yaml.safe_dump({'apiVersion': 'v1', 'kind': 'Pod', 'metadata': made['metadata'], 'spec': predictor}))
    for version in ('1.37', '1.33'): run('kubernetes-validate', '--strict', '-k', version, str(pod))
    assert predictor['containers'][0]['name'] == 'kserve-container' and predictor['containers'][0]['ports'][0]['name'] == 'http1'


def engine() -> str:
    "A container engine that answers, or nothing."
    for name in ('docker', 'podman'):
        if shutil.which(name) and subprocess.run([name, 'info'], capture_output=True).returncode == 0: return name
    return ''


def unreachable(engine: str, image: str) -> str:
    "Why the engine neither holds `image` nor reaches its registry, or nothing. A registry that knows no such image is reachable."
    if subprocess.run([engine, 'image', 'inspect', image], capture_output=True).returncode == 0: return ''
    pulled = subprocess.run([engine, 'pull', image], capture_output=True, text=True)
    return '' if pulled.returncode == 0 or re.search('manifest unknown|manifest for .* not found|access .*denied', pulled.stderr) else pulled.stderr


def test_the_image_builds_and_runs_shut_and_answers(bundle):
    name = engine()
    if not name: pytest.skip('no container engine answers here (docker info, podman info)')
    base = re.search(r'^FROM (\S+)', (bundle[1]/'Dockerfile').read_text(), re.M)[1]
    if reason := unreachable(name, base): pytest.skip(f'{name} neither holds {base} nor reaches its registry: {reason}')
    run_engine = lambda *args: subprocess.run([name, *args], check=True, capture_output=True, text=True).stdout.strip()
    run_engine('build', '--tag', 'mlcycle-test', str(bundle[1]))
    container = run_engine('run', '--detach', '--read-only', '--tmpfs', '/tmp', '--cap-drop', 'ALL', '--env', f'MLCYCLE_TOKEN={TOKEN}', '--publish', '127.0.0.1::8000', 'mlcycle-test')
    try:
        port = int(run_engine('port', container, '8000').rpartition(':')[2])
        until(lambda: ready(port))
        golden = json.loads((bundle[1]/'golden.json').read_text())
        answers = ask(port, '/predict', {'records': golden['inputs']})['predictions']
        assert [a['decision'] for a in answers] == [g['decision'] for g in golden['outputs']]
        assert run_engine('exec', container, 'id', '-u') == '10001'
        with pytest.raises(subprocess.CalledProcessError): run_engine('exec', container, 'touch', '/app/own')
        run_engine('exec', container, *json.loads(re.search(r'^HEALTHCHECK .* CMD (.*)$', (bundle[1]/'Dockerfile').read_text(), re.M)[1]))
        run_engine('stop', '--time', '45', container)
        assert run_engine('inspect', '--format', '{{.State.ExitCode}}', container) == '0'
        assert not re.search('Traceback|ERROR', subprocess.run([name, 'logs', container], check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout)
    finally:
        run_engine('rm', '--force', container)
        run_engine('rmi', '--force', 'mlcycle-test')


def test_dockerfile_is_read_by_the_builders_own_parser(bundle):
    import dockerfile
    steps = dockerfile.parse_file(str(bundle[1]/'Dockerfile'))
    said = [s.cmd.upper() for s in steps]
    assert said.count('FROM') == 2 and 'HEALTHCHECK' in said and said.index('USER') < said.index('ENTRYPOINT')
    user = next(s for s in steps if s.cmd.upper() == 'USER')
    assert user.value == ('10001:10001',) and all(':' in s.value[0] for s in steps if s.cmd.upper() == 'FROM')
    assert 'TOKEN' not in ' '.join(' '.join(s.value) for s in steps if s.cmd.upper() in ('ENV', 'ARG'))     # no secret in a layer


# --- gates

def test_nothing_is_built_while_a_gate_is_closed(tmp_path):
    project = new_project(tmp_path/'p')
    with pytest.raises(Blocked, match='mlcycle run development'): build_bundle(project)
    register(project, strange_rows(60), LogisticRegression())
    with pytest.raises(Blocked, match='mlcycle run validation'): build_bundle(project, '1')
    sign(project, '1')
    with pytest.raises(Blocked, match='mlcycle promote 1'): build_bundle(project, '1')
    crown(project, '1')
    project.update_settings({'gates': [{'name': 'carded', 'before': 'deployment', 'evidence': 'card', 'field': 'complete', 'equals': True}]})
    with pytest.raises(Blocked, match='carded: missing.*mlcycle run governance'): build_bundle(project)
    with pytest.raises(Blocked, match='read-only'): build_bundle(_shut(project, gates=[]))
    project.settings = project.settings.model_copy(update={'gates': []})
    shutil.rmtree(project.store/'tables'/'train')
    with pytest.raises(MissingEvidence, match='trained on are gone'): build_bundle(project)
    retire(project, '1', successor='2')
    with pytest.raises(Blocked, match='Ask version 2'): build_bundle(project, '1')
    assert not (project.folder/'bundles').exists() and project.ledger.last('bundle') is None


def _shut(project: Project, **changes) -> Project:
    shut = Project(project.folder, read_only=True)
    shut.settings = shut.settings.model_copy(update=changes)
    return shut


# --- whole or not at all

def test_a_fault_at_any_write_leaves_the_old_bundle_or_the_new_one(project, bundle, monkeypatch, tmp_path):
    built, folder = bundle
    out = tmp_path/'bundle'
    shutil.copytree(folder, out)
    (out/'README.md').write_text('touched')     # so that it has to be written again
    import mlcycle.core
    real, left = os.replace, [0]
    def failing(*args):
        left[0] -= 1
        if left[0] == 0: raise OSError(28, 'No space left on device')
        return real(*args)
    for n in (1, 2, len(built.files)//2, len(built.files), len(built.files)+1):
        left[0] = n
        with monkeypatch.context() as patch:
            patch.setattr(mlcycle.core.os, 'replace', failing)
            with pytest.raises(OSError): build_bundle(project, out=out)
        assert (out/'README.md').read_text() == 'touched' and [p.name for p in tmp_path.iterdir()] == ['bundle']
    build_bundle(project, out=out)
    assert check_golden(out) == 20 and [p.name for p in tmp_path.iterdir()] == ['bundle']


def test_every_changed_byte_is_found_before_anything_is_loaded(bundle, tmp_path):
    out = tmp_path/'bundle'
    for path in ('model.skops', 'mlcycle/features.py', 'schema.json', 'Dockerfile'):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(bundle[1], out)
        content = bytearray((out/path).read_bytes()); content[len(content)//2] ^= 1
        (out/path).write_bytes(content)
        with pytest.raises(IntegrityError, match=re.escape(path)): BundleService(out)
    (out/path).unlink()
    with pytest.raises(IntegrityError, match='Dockerfile'): BundleService(out)
    manifest = json.loads((out/'manifest.json').read_text())
    (out/'manifest.json').write_text(json.dumps(manifest | {'files': {'../../etc/passwd': '0'*64}}))
    with pytest.raises(IntegrityError, match='passwd'): BundleService(out)
    with pytest.raises(SettingsError, match='no readable manifest'): BundleService(tmp_path)


# --- what it carries

def test_golden_pairs_carry_nobody_away(bundle):
    golden = json.loads((bundle[1]/'golden.json').read_text())
    rows = strange_rows()
    assert len(golden['inputs']) == len(golden['outputs']) == 20 and not {'id', 'sex', 'label'} & set(golden['inputs'][0])
    known = set(zip(rows[HTML], rows['score']))
    assert not [r for r in golden['inputs'] if (r[HTML], r['score']) in known]
    people = pd.DataFrame({'name': [f'person {i}' for i in range(50)], 'town': ['Bonn']*30+['Ulm']*19+['Nowhere']})
    drawn = golden_inputs(people, [InputColumn(name=c, type='category', accepts='string', nullable=False) for c in people], n=200)
    assert set(drawn['name']) == {'any'} and set(drawn['town']) == {'Bonn', 'Ulm'}


def test_requirements_are_pinned_and_small_and_follow_the_estimator():
    plain, boosted = pinned_requirements(LogisticRegression()), None
    assert all(re.fullmatch(r'[a-z0-9-]+==[\w.+!-]+', r) for r in plain) and len(plain) < 40
    assert not {r.partition('==')[0] for r in plain} & {'mlflow', 'deltalake', 'matplotlib', 'shap', 'optuna', 'duckdb'}
    lightgbm = pytest.importorskip('lightgbm')
    boosted = pinned_requirements(lightgbm.LGBMClassifier())
    assert {r.partition('==')[0] for r in boosted} >= {r.partition('==')[0] for r in plain} | {'lightgbm'}
    assert 'mlcycle/serving.py' in serving_modules() and not {'mlcycle/cli.py', 'mlcycle/deployment.py', 'mlcycle/spool.py'} & set(serving_modules())


@pytest.mark.parametrize('name', ['Churn', 'é', '模型', '-', '../..', 'a'*200, '0', 'x\ny: z', '{{ x }}<% y %><< z >>', '"""', '\\N{BAD}', '# syntax=evil'])
def test_a_name_of_any_kind_makes_valid_files(project, tmp_path, name):
    import dockerfile, yaml
    from mlcycle.manifests import manifests
    project = Project(project.folder)
    project.settings = project.settings.model_copy(update={'project': project.settings.project.model_copy(update={'name': name})})
    assert re.fullmatch('[a-z]([a-z0-9-]{0,38}[a-z0-9])?', service_name(project)) and image_name(project, '1').endswith(':1')
    files = {p: c.decode() for p, c in manifests(project, '1', requirements=[]).items()}
    compile(files['server.py'], 'server.py', 'exec')
    assert len(dockerfile.parse_string(files['Dockerfile'])) > 5 and not files['Dockerfile'].lower().startswith(('# syntax=', '# escape='))
    for path in files:
        if path.endswith(('.yaml', '.yml')): assert isinstance(yaml.safe_load(files[path]), dict), path
    assert yaml.safe_load(files['kubernetes/service.yaml'])['metadata']['name'] == service_name(project)


@pytest.mark.parametrize('image', ['registry.example/team/model', 'registry.example:5000/model', 'model:2.1'])
def test_image_names(project, image):
    project.settings = project.settings.model_copy(update={'deployment': project.settings.deployment.model_copy(update={'image': image})})
    assert image_name(project, '7') == (image if image.endswith('2.1') else f'{image}:7')
    for bad in ('Model', 'a b', 'x\nRUN evil', 'a/../b', '$(evil)', 'a:b:c/', '<<x>>'):
        project.settings = project.settings.model_copy(update={'deployment': project.settings.deployment.model_copy(update={'image': bad})})
        with pytest.raises(SettingsError, match='deployment.image'): image_name(project, '7')
    project.settings = project.settings.model_copy(update={'deployment': project.settings.deployment.model_copy(update={'image': ''})})


# --- in a clean environment

def ask(port: int, path: str, body: dict | None=None) -> dict:
    request = urllib.request.Request(f'http://127.0.0.1:{port}{path}', data=None if body is None else json.dumps(body).encode(),
                                     headers={'Authorization': f'Bearer {TOKEN}', 'Content-Type': 'application/json'})
    return json.loads(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=PATIENCE).read())


def ready(port: int) -> bool:
    try: return bool(ask(port, '/ready'))
    except OSError: return False


def test_a_clean_environment_built_from_the_bundle_alone_gives_the_golden_answers_and_serves(project, bundle, tmp_path):
    away = tmp_path/'away'
    shutil.copytree(bundle[1], away)
    subprocess.run([sys.executable, '-m', 'venv', str(tmp_path/'venv')], check=True)
    python, env = str(tmp_path/'venv'/'bin'/'python'), {k: v for k, v in os.environ.items() if not k.startswith(('PYTHON', 'VIRTUAL_ENV', 'MLCYCLE'))}
    done = subprocess.run([python, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', '-r', 'requirements.txt'], cwd=away, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'mlcycle' not in subprocess.run([python, '-m', 'pip', 'list'], env=env, capture_output=True, text=True).stdout
    done = subprocess.run([python, str(away/'server.py'), 'check'], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == '20 golden outputs reproduced', done.stderr
    port = free_port()
    env |= {'MLCYCLE_TOKEN': TOKEN, 'MLCYCLE_PORT': str(port), 'MLCYCLE_LOG': str(tmp_path/'log.jsonl')}
    server = subprocess.Popen([python, str(away/'server.py')], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    try:
        def started() -> bool:
            assert server.poll() is None, server.stderr.read()
            return ready(port)
        until(started)
        golden = json.loads((away/'golden.json').read_text())
        answers = ask(port, '/predict', {'records': golden['inputs']})['predictions']
        assert max(abs(a['score']-g['score']) for a, g in zip(answers, golden['outputs'], strict=True)) <= 1e-9
        assert [a['decision'] for a in answers] == [g['decision'] for g in golden['outputs']]
        ask(port, '/label', {'labels': [{'prediction_id': answers[0]['prediction_id'], 'label': 'yes'}]})
        assert 'on disk' in ask(port, '/model')['kept_in']
        assert subprocess.run([python, str(away/'server.py'), 'probe'], env=env).returncode == 0
        (away/'retired.json').write_text(json.dumps({'at': '2026-11-01', 'successor': '2', 'because': 'a test'}))
        with pytest.raises(urllib.error.HTTPError) as gone: ask(port, '/predict', {'records': golden['inputs']})
        assert gone.value.code == 410 and json.loads(gone.value.read())['retired']['successor'] == '2'
        assert subprocess.run([python, str(away/'server.py'), 'probe'], env=env, capture_output=True).returncode == 1
    finally: server.terminate(); server.wait(PATIENCE); server.stderr.close()
    before = len(predictions(project))
    assert collect(project, tmp_path/'log.jsonl') == 20 and collect(project, tmp_path/'log.jsonl') == 0     # its log comes home, once
    assert len(predictions(project)) == before+20 and not (away/'mlcycle'/'__pycache__').exists()


def test_a_bundle_needs_nothing_that_a_plain_install_lacks():
    from importlib import metadata
    from packaging.requirements import Requirement
    from sklearn.linear_model import LogisticRegression
    plain, waiting = set(), ['mlcycle']
    while waiting:
        name = re.sub('[-_.]+', '-', waiting.pop()).lower()
        if name in plain: continue
        plain.add(name)
        needs = [Requirement(text) for text in metadata.requires(name) or []]
        waiting += [r.name for r in needs if r.marker is None or r.marker.evaluate({'extra': ''})]
    assert {line.partition('==')[0] for line in pinned_requirements(LogisticRegression())} <= plain
