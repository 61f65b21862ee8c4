"The desks in a real JupyterLab, by clicks and typing alone, and the night that follows from what was clicked."
import shutil, subprocess, sys
import pytest
from mlcycle.core import Project
from mlcycle.pipeline import status
from mlcycle.validation import Validation
from mlcycle.development import Leaderboard
import walk

pytest.importorskip('playwright')


@pytest.fixture(scope='module')
def walked(data_dir, tmp_path_factory):
    "Adult, a part of it, from a folder with nothing but the file to a validated version; what the page asked strangers for."
    folder = walk.lay_out(walk.ADULT, tmp_path_factory.mktemp('desk'), rows=700)
    seat = walk.walk(walk.ADULT, folder, stages=walk.FIRST)
    return Project(folder/'adult', read_only=True), seat.strangers


def test_a_person_reaches_a_validated_version_by_clicks_alone(walked):
    project, strangers = walked
    stages = {s['stage']: s for s in status(project)['stages']}
    assert {stages[s]['state'] for s in ('data', 'development', 'validation')} == {'done'} and stages['monitoring']['state'] == 'missing'
    assert stages['problem']['why'].startswith('changed since: settings')   # the split was decided after the seal, and it says so
    assert project.settings.problem.objective == walk.ADULT.objective and project.settings.development.trials == walk.ADULT.trials
    assert [e.subject for e in project.ledger.entries('look')] == ['1'] and project.latest(Validation).version == '1'
    assert len(project.ledger.entries('schema')) == 1   # Run all of a step that is done has shown it, not done it again
    assert strangers == []


def test_what_was_clicked_gives_the_same_figures_at_night_in_a_fresh_copy(walked, tmp_path):
    project, _ = walked
    shutil.copytree(project.folder, tmp_path/'adult', ignore=shutil.ignore_patterns('store', 'reports'))
    shutil.copy(project.folder.parent/'adult.csv', tmp_path)
    subprocess.run([sys.executable, '-c', 'from mlcycle.cli import main; main()', '--project', tmp_path/'adult', 'run', 'problem', 'data', 'development', 'validation'],
                   check=True, capture_output=True, timeout=300)
    night = Project(tmp_path/'adult', read_only=True)
    for result in (Leaderboard, Validation):
        by_day, by_night = (p.latest(result).body() for p in (project, night))
        own = {'budget', 'model_hash'}   # seconds spent, and the bytes of a file with its date
        assert {k: v for k, v in by_day.items() if k not in own} == {k: v for k, v in by_night.items() if k not in own}
