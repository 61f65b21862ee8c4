"""The demo, as the README has it: nine stages, and almost nothing to do the second time."""
import json, subprocess, sys
from pathlib import Path
import pytest
from waiting import on_one_day, today

MLCYCLE = Path(sys.executable).parent/'mlcycle'


@pytest.fixture(scope='session')
def demo(tmp_path_factory) -> tuple[Path, str, str]: # folder, what was said, the day on which it was begun
    folder, day = tmp_path_factory.mktemp('demo')/'life', today()
    done = subprocess.run([MLCYCLE, 'demo', folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout+done.stderr
    return folder, done.stdout, day


def test_demo_does_the_nine_stages(demo):
    folder, told, _ = demo
    assert 'SYNTHETIC' in told and 'Sample Signer One' in told and 'mlcycle status' in told
    status = json.loads(subprocess.run([MLCYCLE, 'status', '--json', '--project', folder], capture_output=True, text=True, check=True).stdout)
    assert all(s['state'] == 'done' or s['why'] == 'changed since: date' for s in status['stages']) and len(status['stages']) == 9     # the date: at midnight
    assert status['champion'] == '1' and status['metrics']['roc_auc']['low'] > 0.6
    assert len(list(folder.glob('reports/*/*.html'))) >= 9
    assert not any('<script' in p.read_text() for p in folder.glob('reports/*/*.html'))


def test_demo_again_finds_nothing_changed(demo):
    folder, _, day = demo
    done = on_one_day(lambda: subprocess.run([MLCYCLE, 'demo', folder], capture_output=True, text=True), day)
    assert done.returncode == 0 and done.stdout.count('unchanged') == 9, done.stdout+done.stderr


def test_demo_is_unbroken_and_its_retirement_was_a_dry_run(demo):
    folder, *_ = demo
    from mlcycle.core import Project
    from mlcycle.ledger import kept_heads
    project = Project(folder, read_only=True)
    assert project.ledger.verify(kept_heads(project)).ok
    assert project.ledger.entries('retirement') == [] and project.ledger.entries('window')
    kinds = {e.kind for e in project.ledger.entries()}
    assert {'problem', 'feasibility', 'schema', 'snapshot', 'split', 'leaderboard', 'model', 'validation', 'approval', 'promotion', 'bundle', 'window', 'decision', 'card'} <= kinds


def test_sample_people_sign_nobodys_own_project(tmp_path):
    from mlcycle.core import Project
    from mlcycle.project import Outline, scaffold
    (tmp_path/'rows.csv').write_text('a,left\n'+'\n'.join(f'{i},{"yes" if i % 3 else "no"}' for i in range(40))+'\n')
    scaffold(tmp_path/'own', Outline(data=str(tmp_path/'rows.csv'), target='left'))
    done = subprocess.run([MLCYCLE, 'demo', tmp_path/'own'], capture_output=True, text=True)
    assert done.returncode == 2 and 'sample people sign nothing else' in done.stderr and Project(tmp_path/'own').ledger.entries() == []
    Project(tmp_path/'own').update_settings({'project.author': 'Sample Author'})   # a demo, but on other data
    done = subprocess.run([MLCYCLE, 'demo', tmp_path/'own'], capture_output=True, text=True)
    assert done.returncode == 2 and "'own' is a demo on rows" in done.stderr and Project(tmp_path/'own').ledger.entries() == []
