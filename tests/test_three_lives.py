"""One notebook, three lives: a person's in JupyterLab, the night's without one, and a reader's; the same figures to the last digit."""
import os, re, shutil, subprocess, sys, time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
import nbformat, numpy as np, pandas as pd, pytest
from bs4 import BeautifulSoup
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from mlcycle.core import FACTS, Project
from mlcycle.pipeline import STEPS
from mlcycle.summary import figures
from apps import ARGUMENTS, chromium, needs_chromium
from ports import free_port
from waiting import PATIENCE, today

MLCYCLE = Path(sys.executable).parent/'mlcycle'
STAGES = list(STEPS)


def call(*words) -> str:
    done = subprocess.run([MLCYCLE, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0 and 'Traceback' not in done.stderr, (words, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture(scope='module')
def begun(tmp_path_factory) -> Path:
    "A small project whose first version answers, with rows that came in since and their outcomes."
    root, rng = tmp_path_factory.mktemp('lives'), np.random.default_rng(0)
    x = rng.normal(size=360)
    df = pd.DataFrame({'age': rng.integers(18, 80, 360), 'income': (x*10+50).round(2), 'region': rng.choice(list('NSEW'), 360),
                       'left': np.where(x+rng.normal(size=360) > 0, 'yes', 'no')})
    df[:300].to_csv(root/'data.csv', index=False)
    df[300:].drop(columns='left').to_csv(root/'new.csv', index=False)
    home = root/'p'
    call('new', home, '--data', root/'data.csv', '--target', 'left', '--protected', 'region')
    toml = home/'mlcycle.toml'
    toml.write_text(re.sub('trials = 30\nseconds = 60', 'trials = 2\nseconds = 600', toml.read_text()).replace('# signatures = 2', 'signatures = 0'))
    call('run', 'problem', 'data', 'development', 'validation', '--project', home)
    call('promote', '1', '--project', home)
    call('score', root/'new.csv', '--out', root/'scores.csv', '--project', home)
    pd.DataFrame({'prediction_id': pd.read_csv(root/'scores.csv').prediction_id, 'label': df.left[300:].to_numpy()}).to_csv(root/'labels.csv', index=False)
    call('label', root/'labels.csv', '--project', home)
    return home


@pytest.fixture(scope='module')
def night(begun) -> dict[str, Path]:
    "The project after all nine stages in warm kernels, and a copy of it whose nine stages were all run anew by papermill's."
    homes = {'warm': begun, 'papermill': begun.with_name('papermill')}
    shutil.copytree(begun, homes['papermill'])
    call('run', '--project', homes['warm'])
    call('run', '--force', '--kernels', 'papermill', '--project', homes['papermill'])
    return homes


def newest(home: Path, suffix: str) -> dict[str, Path]: # stage → file
    "What the last run of each stage left."
    return {stage: max(home.glob(f'reports/*/{STEPS[stage].notebook}')).with_suffix(suffix) for stage in STAGES}


def told(cells: list) -> list[tuple[str, list[str]]]: # headline and all numbers of what is shown, a result each
    "What the results of executed cells say; in which order a table of figures stands is no figure, nor is how long the ledger is by now."
    return [(headline, numbers(text)) for headline, text in results(cells)]


def results(cells: list) -> list[tuple[str, str]]: # headline and text, a result each
    shown = [o['data'] for c in cells for o in c.get('outputs', []) if FACTS in o.get('data', {})]
    return [(d[FACTS]['headline'], BeautifulSoup(d['text/html'], 'html.parser').get_text(' ')) for d in shown]


def numbers(text: str) -> list[str]: return sorted(n.rstrip('.,') for n in re.findall(r'\d[\d.,]*', re.sub(r'entry \d+', '', text)))


def words(text: str) -> list[str]: return re.findall(r'[\w%]+(?:[.,]\w+)*', re.sub(r'entry \d+', '', text))


def lived(home: Path, tmp_path: Path, *, mark: dict={}, **environment) -> dict[str, list]: # stage → its executed cells
    "The nine notebooks in one real kernel, one after another, each in an empty namespace; messages carry a mark."
    parts = {s: [c for c in nbformat.read(home/'notebooks'/STEPS[s].notebook, 4).cells if c.cell_type == 'code'] for s in STAGES}
    whole = new_notebook(cells=[c for s in STAGES for c in [*parts[s], new_code_cell('%reset -f')]])
    client = NotebookClient(whole, timeout=900, kernel_name='python3', resources={'metadata': {'path': str(home)}})
    env = {k: v for k, v in os.environ.items() if not k.startswith('MLCYCLE_') and k != 'PYTEST_CURRENT_TEST'} | environment
    with client.setup_kernel(env=env):
        client.kc.session.metadata = mark
        for i, cell in enumerate(whole.cells): client.execute_cell(cell, i)
    return parts


def test_both_kinds_of_kernels_leave_the_same_figures_in_all_nine_stages(night):
    "Every estimate of the newest entry of each kind, bit by bit, and every headline, but for the number of the version."
    kept = {}
    for kind, home in night.items():
        newest_of = {(e.stage, e.kind): e for e in Project(home, read_only=True).ledger.entries() if e.kind not in ('run', 'page')}
        kept[kind] = {key: {k: v.body() for k, v in figures(e.body).items()} for key, e in newest_of.items()}
    assert kept['warm'] == kept['papermill'] and sum(map(len, kept['warm'].values())) > 40
    assert {stage for stage, _ in kept['warm']} >= {'problem', 'data', 'development', 'validation', 'deployment', 'monitoring', 'retraining', 'governance'}
    pages = [{s: [re.sub(r'(version|Version|--successor) \w', r'\1 N', h) for h, _ in told(nbformat.read(p, 4).cells)] for s, p in newest(home, '.ipynb').items()}
             for home in night.values()]
    assert pages[0] == pages[1] and all(pages[0].values())


def test_a_person_and_a_reader_see_what_the_night_left(night, tmp_path):
    "In JupyterLab the stages that hold are shown, with widgets; read-only nothing is written; each figure is the report's."
    home = night['warm']
    ledger = Project(home, read_only=True).ledger
    before = ledger.head()
    report = {s: told(nbformat.read(p, 4).cells) for s, p in newest(home, '.ipynb').items()}
    reader = lived(home, tmp_path, MLCYCLE_READ_ONLY='1')
    assert ledger.head() == before
    person = lived(home, tmp_path, mark={'cellId': 'a-cell'})
    one_day = ledger.last('run', 'retraining').at[:10] == today()   # a decision of yesterday is made anew
    for stage in STAGES if one_day else [s for s in STAGES if s != 'retraining']:
        seen, live = told(reader[stage]), told(person[stage])
        assert all(r in live and (r in seen or r[0].startswith('Replay')) for r in report[stage]), (stage, report[stage], seen, live)
        kinds = {k for c in person[stage] for o in c.outputs for k in o.get('data', {})}
        assert 'application/vnd.jupyter.widget-view+json' in kinds, stage
        assert not {k for c in reader[stage] for o in c.outputs for k in o.get('data', {}) if 'widget' in k}, stage
    again = [e for e in ledger.entries(since=before[0]) if e.kind in ('leaderboard', 'validation', 'schema', 'problem', 'feasibility', 'bundle')+('decision',)*one_day]
    assert again == []   # nothing was made a second time


UNDER_THE_MOUSE = """() => { const point = document.querySelector('svg circle title')?.parentElement;
  if (!point) return '';
  point.scrollIntoView({block: 'center'});
  const {x, y, width, height} = point.getBoundingClientRect();
  return document.elementFromPoint(x+width/2+4, y+height/2)?.querySelector('title')?.textContent || '' }"""   # a little beside its middle


@needs_chromium
def test_reports_open_offline_without_a_kernel_and_hold_no_dead_control(night):
    "Every page by its file, in Chromium with the network off: all pictures drawn, nothing asked of anybody, nothing to press in vain."
    from playwright.sync_api import sync_playwright
    pages = [*newest(night['warm'], '.html').values()]
    pages.append(pages[-1].with_name('index.html'))
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path='/usr/bin/chromium', args=ARGUMENTS)
        context = browser.new_context(offline=True, viewport={'width': 1366, 'height': 768})
        page, asked, errors, drawn, told = context.new_page(), [], [], 0, {}
        page.on('request', lambda r: asked.append(r.url))
        page.on('console', lambda m: errors.append(m.text) if m.type == 'error' else None)
        for path in pages:
            page.goto(path.as_uri())
            assert page.locator('input, select, textarea, button, [role=button], script, iframe').count() == 0, path.name
            assert page.evaluate('[...document.images].every(i => i.complete && i.naturalWidth > 20)'), path.name
            assert page.evaluate("[...document.images].every(i => i.src.startsWith('data:image/svg') && i.alt.length > 20 && !i.alt.startsWith('No '))"), path.name
            told |= {path.stem: page.evaluate(UNDER_THE_MOUSE)}
            assert page.evaluate('document.documentElement.scrollWidth <= 1366'), path.name
            drawn += page.evaluate('document.images.length')
        browser.close()
    assert all(re.search(r': [\d.]+ \[[\d.]+, [\d.]+\]', told[step]) for step in ('01_problem', '03_development')), told   # a figure with its interval
    assert drawn >= 4 and errors == [] and all(url.startswith(('file:', 'data:')) for url in asked)


@contextmanager
def voila(home: Path):
    "Voilà over the nine notebooks, read-only, with kernels out of one nursery; its port."
    port = free_port()
    server = subprocess.Popen([Path(sys.executable).parent/'voila', 'notebooks', '--no-browser', f'--port={port}', '--Voila.ip=127.0.0.1', '--KernelManager.transport=ipc',
                               '--MappingKernelManager.kernel_manager_class=mlcycle.app_kernels.AppKernel', '--strip_sources=True'],
                              cwd=home, env=os.environ | {'MLCYCLE_READ_ONLY': '1', 'MLCYCLE_APP': 'portfolio'}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try: yield port
    finally: server.terminate(); server.wait(PATIENCE)


def opened(page, url: str) -> None:
    "Go there, also while the server is still starting."
    from playwright.sync_api import Error
    until = time.monotonic()+PATIENCE
    while True:
        try: return page.goto(url, timeout=PATIENCE*1000)
        except Error as error:
            if 'ERR_CONNECTION_REFUSED' not in str(error) or time.monotonic() > until: raise
            time.sleep(.3)


@needs_chromium
def test_a_reader_sees_all_nine_stages_in_voila(night):
    "In Chromium: every word and every figure of the report's results stand on the page, no error does, and none of the notebook's code."
    home = night['warm']
    ledger = Project(home, read_only=True).ledger
    before = ledger.head()
    with voila(home) as port, chromium() as browser:
        page = browser.new_page(viewport={'width': 1366, 'height': 768})
        for stage, report in newest(home, '.ipynb').items():
            opened(page, f'http://127.0.0.1:{port}/voila/render/{STEPS[stage].notebook}')
            page.wait_for_function("document.querySelector('.jp-OutputArea-output') && !document.querySelector('#loading')?.offsetParent", timeout=PATIENCE*1000)
            text = page.locator('body').inner_text()
            for headline, said in results(nbformat.read(report, 4).cells):
                assert headline.startswith('Replay') or not Counter(words(said))-Counter(words(text)), (stage, headline)   # a replay is made where one may write
            assert 'Traceback' not in text and '_desk(here)' not in page.content(), stage
    assert ledger.head() == before


def test_nbconvert_executes_a_step_and_jupyter_scheduler_runs_one_with_parameters(night, tmp_path):
    "`nbconvert --execute` as it is; a job of jupyter-scheduler through its own API, manager and process, with parameters."
    home = night['papermill']
    done = subprocess.run([sys.executable, '-m', 'nbconvert', '--to', 'notebook', '--execute', '--output', str(tmp_path/'out.ipynb'), str(home/'notebooks'/'09_retirement.ipynb')],
                          capture_output=True, text=True, cwd=home/'notebooks')
    assert done.returncode == 0, done.stderr
    assert told(nbformat.read(tmp_path/'out.ipynb', 4).cells)[0][0] == told(nbformat.read(newest(home, '.ipynb')['retirement'], 4).cells)[0][0]
    from jupyter_scheduler.environments import CondaEnvironmentManager
    from jupyter_scheduler.models import CreateJob
    from jupyter_scheduler.orm import create_tables
    from jupyter_scheduler.scheduler import Scheduler
    url = f'sqlite:///{tmp_path/"jobs.sqlite"}'
    create_tables(url)
    scheduler = Scheduler(root_dir=str(home), environments_manager=CondaEnvironmentManager(), db_url=url)
    scheduler.staging_path, scheduler.task_runner = str(tmp_path/'staging'), None
    job = scheduler.create_job(CreateJob(name='card', input_uri='notebooks/08_governance.ipynb', runtime_environment_name=os.path.basename(sys.executable),
                                         output_formats=['ipynb', 'html'], parameters={'project': repr(str(home)), 'view': repr('plain')}))   # it writes them into the notebook as they are
    until = time.monotonic()+PATIENCE
    while (state := scheduler.get_job(job, False)).status not in ('COMPLETED', 'FAILED'):   # 'STOPPED' is also what a job is before it begins
        assert time.monotonic() < until, state.status
        time.sleep(.3)
    assert state.status == 'COMPLETED', state.status_message
    made = [t for p in (tmp_path/'staging').rglob('*.ipynb') if (t := told(nbformat.read(p, 4).cells))]   # the executed copy beside the one that was taken in
    assert len(made) == 1 and 'plain' in made[0][0][0] and Project(home, read_only=True).ledger.last('card').body['view'] == 'plain'
