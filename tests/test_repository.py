"""What the repository promises about itself: front page, commands, steps, packaging."""
import json, re, subprocess, sys, zipfile
from pathlib import Path
import nbformat, pytest

HERE = Path(__file__).resolve().parents[1]
STEPS = sorted((HERE/'nbs/steps').glob('0[1-9]_*.ipynb'))
HOME = HERE/'nbs/steps/00_home.ipynb'
APPS = sorted((HERE/'nbs/apps').glob('*.ipynb'))
TEST_COMMAND = "python3.11 -m venv .venv && .venv/bin/pip install -q -e '.[dev]' && .venv/bin/python tests/gate.py"
DEMO_COMMAND = 'python3.11 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/mlcycle demo'


def test_readme_is_made_from_the_front_page_and_short():
    from mlcycle.report import readme
    text = (HERE/'README.md').read_text()
    assert text == readme(HERE/'nbs/index.ipynb')
    assert len(text.split()) < 500
    assert TEST_COMMAND in text and DEMO_COMMAND in text and TEST_COMMAND in (HERE/'.ci/run').read_text()


def test_the_workflow_runs_the_same_gate():
    assert 'bash .ci/run' in (HERE/'.github/workflows/gate.yml').read_text()


def test_nine_steps_and_three_apps_have_typed_explained_parameters():
    from mlcycle.pipeline import STEPS as known, parameters_of
    assert [p.name for p in STEPS] == [s.notebook for s in known.values()]
    assert [p.stem for p in APPS] == ['explainability', 'monitoring', 'portfolio']
    for path in [HOME, *STEPS, *APPS]:
        notebook = nbformat.read(path, as_version=4)
        parameters = list(parameters_of(notebook, path.name).values())
        assert parameters[0].name == 'project' and parameters[0].default == '.' and all(p.type and p.help for p in parameters), path.name
        source = '\n'.join(c.source for c in notebook.cells if c.cell_type == 'code')
        assert len(notebook.cells) < 15 and not re.search(r'^\s*(def|class) ', source, flags=re.M), path.name


def test_every_command_has_help_and_is_documented():
    from mlcycle.cli import main
    prose = ''.join(''.join(c['source']) for c in json.loads((HERE/'nbs/13_cli.ipynb').read_text())['cells'] if c['cell_type'] == 'markdown')
    for name, command in main.commands.items():
        assert command.help and f'`mlcycle {name}`' in prose, name
        for part in [command, *getattr(command, 'commands', {}).values()]:
            assert part.help, (name, part.name)
            assert all(p.param_type_name == 'argument' or p.help for p in part.params), (name, part.name)


def test_the_reference_shows_every_kind_of_evidence_key_and_command():
    from html import unescape
    from mlcycle.cli import main
    from mlcycle.core import Settings
    from mlcycle.reference import COMMAND_STAGES, commands, evidence, settings_keys
    assert set(COMMAND_STAGES) == set(main.commands)
    keys = settings_keys()
    assert {k.split('.')[0].removesuffix('[]') for k in keys.key} == set(Settings.model_fields) and (keys.meaning.str.len() > 3).all()
    cells = json.loads((HERE/'nbs/13a_reference.ipynb').read_text())['cells']
    page = unescape(''.join(''.join(o['data']['text/html']) for c in cells for o in c.get('outputs', [])))
    for table in (evidence(), keys, commands()):   # what is committed is what the code says today
        for row in table.astype(str).to_numpy(): assert all(f'>{text}<' in page for text in row), f'{row}: execute nbs/13a_reference.ipynb anew'


def test_quarto_lists_the_real_pages():
    import yaml
    listed = re.findall(r'[\w./-]+\.ipynb', (HERE/'_quarto.yml').read_text())
    pages = {str(p.relative_to(HERE/'nbs')) for p in (HERE/'nbs').glob('*.ipynb')} | {str(p.relative_to(HERE/'nbs')) for p in (HERE/'nbs/tutorials').glob('*.ipynb')}
    assert sorted(listed) == sorted(pages) and yaml.safe_load((HERE/'_quarto.yml').read_text())['project']['type'] == 'website'


def test_no_notebook_holds_an_error_or_a_path_of_a_machine():
    for path in (HERE/'nbs').rglob('*.ipynb'):
        for cell in json.loads(path.read_text())['cells']:
            for output in cell.get('outputs', []):
                assert output['output_type'] != 'error', path.name
                assert not re.search(r'/(tmp|home|root|work)/\w', json.dumps({k: v for k, v in output.get('data', output).items() if k != 'image/png'})), path.name


def test_no_notebook_carries_the_state_of_widgets_that_it_does_not_show():
    for path in (HERE/'nbs').rglob('*.ipynb'): assert 'widgets' not in json.loads(path.read_text())['metadata'], path.name


def test_wheel_carries_steps_and_apps(tmp_path):
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', tmp_path, HERE], check=True, capture_output=True)
    names = zipfile.ZipFile(next(tmp_path.glob('*.whl'))).namelist()
    for path in [HOME, *STEPS]: assert f'mlcycle/steps/{path.name}' in names
    for path in APPS: assert f'mlcycle/apps/{path.name}' in names
    assert 'mlcycle/cli.py' in names and not any('.ipynb_checkpoints' in n for n in names)


def test_the_installed_package_finds_its_steps():
    from importlib.resources import files
    assert {f.name for f in files('mlcycle.steps').iterdir()} >= {p.name for p in STEPS}
