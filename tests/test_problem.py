"The problem card, the risk class and feasibility: C02-C04, D09, D18 of the reliability cases, and real data."
import json, time
from concurrent.futures import ThreadPoolExecutor
import numpy as np, pandas as pd, pytest
from bs4 import BeautifulSoup
from mlcycle.core import Criterion, DataError, Estimate, Project, SettingsError
from mlcycle.gates import required_signatures
from mlcycle.problem import Feasibility, ProblemCard, assess_feasibility, seal_problem
from mlcycle.questionnaire import CLASSES, EU, QUESTIONS, SR, TIERS, check_answers, risk_class
from mlcycle.statistics import Resampling
from mlcycle.trials import extrapolate, learning_curve, make_trial, rows_needed, trivial, usable_rows

def make(folder, problem='', *, target='y', task='binary', data='', name='p', more='') -> Project:
    folder.mkdir(parents=True, exist_ok=True)
    (folder/'mlcycle.toml').write_text(f'[project]\nname = {json.dumps(name)}\n{more}\n[problem]\ntarget = {json.dumps(target)}\ntask = "{task}"\n'
                                       f'{problem}\n[data]\nsources = [{{path = "rows.csv"}}]\n{data}\n', encoding='utf-8')
    return Project(folder, actor='Ada')

def table(n=300, signal=2.0, seed=0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    x = random.normal(size=n)
    return pd.DataFrame({'x': x.round(3), 'noise': random.normal(size=n).round(3), 'group': random.choice(['a', 'b'], n),
                         'y': (random.random(n) < 1/(1+np.exp(-signal*x))).astype(int)})

# ---- the risk class

ALL = dict(prohibited_practice='none', area='none', product_safety='no', meets_people='no', exposure='small', purpose='internal analysis',
           reliance='a person, the model is one input')

def test_answered_mildly_is_mild():
    risk = risk_class(ALL)
    assert (risk.eu_ai_act, risk.sr_26_2, risk.reasons, risk.unanswered) == ('minimal', 'low', [], [])

@pytest.mark.parametrize('key', ALL)
def test_each_unanswered_question_is_read_carefully_and_said(key):
    risk = risk_class({k: v for k, v in ALL.items() if k != key})
    levels, got = (CLASSES, risk.eu_ai_act) if QUESTIONS[key]['frame'] == EU else (TIERS, risk.sr_26_2)
    assert levels.index(got) > 0 and key in risk.unanswered and any(repr(key) in r and 'unanswered' in r for r in risk.reasons)

@pytest.mark.parametrize('key,answer', [(k, a) for k, q in QUESTIONS.items() for a in q['answers'] if k in ALL])
def test_the_class_is_the_highest_indicated(key, answer):
    risk = risk_class(ALL | {key: answer} | (dict(narrow_task='no', profiles_people='no') if key == 'area' else {}))
    assert (risk.eu_ai_act if QUESTIONS[key]['frame'] == EU else risk.sr_26_2) == QUESTIONS[key]['answers'][answer]

def test_the_exemption_must_be_claimed_in_full():
    credit = ALL | dict(area='essential services')
    assert risk_class(credit).eu_ai_act == 'high-risk'
    assert risk_class(credit | dict(narrow_task='yes')).eu_ai_act == 'high-risk'
    assert risk_class(credit | dict(narrow_task='yes', profiles_people='yes')).eu_ai_act == 'high-risk'
    exempt = risk_class(credit | dict(narrow_task='yes', profiles_people='no'))
    assert exempt.eu_ai_act == 'minimal' and any('Art. 6(4)' in r for r in exempt.reasons)
    assert risk_class({k: v for k, v in credit.items() if k != 'area'} | dict(narrow_task='yes', profiles_people='no')).eu_ai_act == 'high-risk'

def test_wrong_answers_are_all_named():
    with pytest.raises(SettingsError) as caught: check_answers({'aera': 'none', 'area': 'jobs', 'exposure': 3})
    assert all(word in str(caught.value) for word in ("did you mean 'area'", "'jobs'", "'3'", 'small, moderate, large'))
    assert check_answers({'area': '  Employment ', 'meets_people': True, 'exposure': ''}) == {'area': 'employment', 'meets_people': 'yes'}

def test_it_indicates_and_claims_nothing():
    text = json.dumps(risk_class({}).body()).lower()
    assert 'not legal advice' in text and '2 december 2027' in text and 'compliant' not in text

def test_signatures_follow_the_sealed_tier(tmp_path):
    careful = make(tmp_path/'a')
    assert required_signatures(careful) == 2
    seal_problem(careful)
    assert required_signatures(careful) == 2
    mild = make(tmp_path/'b', f'questionnaire = {{{", ".join(f"{k} = {json.dumps(v)}" for k, v in ALL.items())}}}')
    seal_problem(mild)
    assert required_signatures(mild) == 1

# ---- the card

def test_nothing_is_invented(tmp_path):
    card = seal_problem(make(tmp_path/'p'))
    assert card.objective == card.decision == card.owner == '' and card.stakeholders == [] and not card.success_declared
    assert [c.text for c in card.success] == ['roc_auc >= baseline'] and card.kill == []
    for word in ('objective', 'decision', 'owner', 'stakeholders', 'out of scope', 'kill', 'protected', 'success', 'costs', 'risk questions'):
        assert any(word in gap for gap in card.gaps), word

@pytest.mark.parametrize('task,default', [('binary', 'roc_auc >= baseline'), ('multiclass', 'log_loss <= baseline'), ('regression', 'rmse <= baseline')])
def test_default_criterion_by_task(tmp_path, task, default):
    assert seal_problem(make(tmp_path/'p', task=task)).success[0].text == default

def test_sealing(tmp_path):
    project = make(tmp_path/'p')
    first = seal_problem(project)
    assert seal_problem(Project(project.folder)) == first == ProblemCard.from_body(project.ledger.last('problem').body)
    assert len(project.ledger.entries('problem')) == 1
    project.update_settings({'problem.out_of_scope': 'Children', 'problem.costs': dict(false_negative=5.0, false_positive=1.0)})
    second = seal_problem(project)
    assert (second.version, [c['field'] for c in second.changed]) == (2, ['out_of_scope', 'costs'])
    project.update_settings({'problem.out_of_scope': '', 'problem.costs': dict(false_negative=1.0, false_positive=1.0)})
    back = seal_problem(project)
    assert back.version == 3 and back.digest == first.digest   # put back, and still a change that can be seen

def test_what_is_not_the_problem_does_not_break_the_seal(tmp_path):
    project = make(tmp_path/'p')
    seal_problem(project)
    project.update_settings({'deployment.port': 9000})
    assert seal_problem(project).version == 1

def test_a_full_card_has_no_gaps(tmp_path):
    problem = '''objective = "Fewer defaults"
decision = "Grant a loan"
stakeholders = ["applicants"]
intended_use = "Consumer loans"
out_of_scope = "Mortgages"
success = [{metric = "roc_auc", direction = ">=", threshold = 0.75}]
kill = [{metric = "roc_auc", direction = "<=", threshold = 0.6}]
costs = {false_positive = 1.0, false_negative = 5.0}
questionnaire = {'''+', '.join(f'{k} = {json.dumps(v)}' for k, v in ALL.items())+'}'
    card = seal_problem(make(tmp_path/'p', problem, data='protected = ["sex"]', more='owner = "Grace"\nauthor = "Ada"'))
    assert card.gaps == [] and 'no gaps' in card.headline

@pytest.mark.parametrize('criterion', ['{metric = "roc_auc", direction = ">="}', '{metric = "roc_auc", direction = ">=", threshold = nan}',
    '{metric = "roc_auc", threshold = 0.7}', '{metric = "roc_auc", direction = ">=", threshold = "high"}', '{metric = "roc_auk", direction = ">=", threshold = 0.7}',
    '{metric = "rmse", direction = "<=", threshold = 1}', '{metric = "roc_auc", direction = ">=", treshold = 0.8}'])
def test_a_criterion_that_says_nothing_is_refused_at_the_start(tmp_path, criterion): # C03, C04
    with pytest.raises(SettingsError, match='success'): make(tmp_path/'p', f'success = [{criterion}]')

@pytest.mark.parametrize('text', ['{{7*7}}', '{% for x in y %}', '${x}', '%(x)s', '<img src=x onerror=alert(1)>', '\u202egnp', "=cmd|' /C calc'!A0", 'x'*200])
def test_hostile_words_are_shown_as_words(tmp_path, text): # C02, D01
    name = text.replace('"', '')
    card = seal_problem(make(tmp_path/'p', f'objective = {json.dumps(text)}\ndecision = {json.dumps(text)}', name=name, target=text))
    page = BeautifulSoup(card._repr_html_(), 'html.parser')
    assert not page.find_all(['img', 'script']) and text[:150].replace('\u202e', '\\u202e') in page.get_text()

def test_sealing_at_once_leaves_one_digest(tmp_path):
    folder = make(tmp_path/'p').folder
    with ThreadPoolExecutor(4) as pool: cards = list(pool.map(lambda _: seal_problem(Project(folder)), range(4)))
    assert len({c.digest for c in cards}) == 1 and Project(folder).ledger.verify().ok

# ---- the curve

def power_law(c, noise, seed, folds=5):
    sizes = np.repeat([100, 200, 400, 800, 1600], folds)
    return pd.DataFrame({'rows': sizes, 'loss': 0.1+2*sizes**-c+np.random.default_rng(seed).normal(0, noise, len(sizes))})

def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    truth = 0.1+2*3200**-0.6
    hits = [(r := extrapolate(power_law(0.6, 0.01, seed), [3200], how=Resampling(resamples=400)).iloc[0]).low <= truth <= r.high for seed in range(150)]
    assert 0.85 <= np.mean(hits) <= 1

def test_a_flat_curve_stays_flat_and_loss_never_falls_below_zero():
    flat = pd.DataFrame({'rows': np.repeat([100, 200, 400], 3), 'loss': 0.3})
    assert np.allclose(extrapolate(flat, [400, 4000])[['loss', 'low', 'high']], 0.3)
    steep = pd.DataFrame({'rows': np.repeat([10, 20, 40], 3), 'loss': np.repeat([0.4, 0.1, 0.001], 3)})
    assert (extrapolate(steep, [400, 4000])[['loss', 'low']] >= 0).all(axis=None)

def test_rows_needed():
    curve = pd.DataFrame(dict(rows=[100, 1000], value=[0.78, 0.85], low=[0.7, 0.8], high=[0.85, 0.9], source='carried forward'))
    now = Estimate(metric='roc_auc', value=0.78, low=0.70, high=0.85, n=100)
    goal = lambda t, d='>=': Criterion(metric='roc_auc', direction=d, threshold=t)
    assert rows_needed(curve, now, goal(0.8)) == 1000 and rows_needed(curve, now, goal(0.84)) is None and rows_needed(curve, now, goal(0.6)) == 100
    assert rows_needed(curve, now, goal('baseline'), baseline=0.5) == 100 and rows_needed(curve, now, goal('baseline')) is None
    assert rows_needed(curve.iloc[:0], now, goal(0.6)) is None and rows_needed(curve, Estimate.undefined('roc_auc', 'x'), goal(0.6)) is None

# ---- feasibility

KILL, GOAL = 'kill = [{metric = "roc_auc", direction = "<=", threshold = 0.6}]', 'success = [{metric = "roc_auc", direction = ">=", threshold = 0.86}]'

def test_go(tmp_path):
    project = make(tmp_path/'p', KILL, data='protected = ["group"]')
    found = assess_feasibility(project, table())
    assert found.verdict == 'go' and found.baselines['roc_auc'].value == 0.5 and found.estimate.low > 0.5
    assert {'roc_auc', 'log_loss', 'accuracy'} <= set(found.baselines) and set(found.groups.attribute) == {'y', 'group'}
    assert Feasibility.from_body(project.ledger.last('feasibility').body) == found and found.rows == found.used == 300
    assert list(found.plot().get_legend().get_texts()) and found.headline.startswith('Feasibility: go.')

def test_noise_without_a_line_cannot_tell_and_with_one_is_no_go(tmp_path):
    noise = table(1000, signal=0)
    open_ = assess_feasibility(make(tmp_path/'a'), noise)
    assert open_.verdict in ('cannot tell', 'get more data') and open_.criteria.now[0] != 'pass'
    closed = assess_feasibility(make(tmp_path/'b', KILL), noise)
    assert closed.verdict == 'no-go' and 'kill criterion' in closed.reasons[0]

def test_short_of_the_goal(tmp_path):
    found = assess_feasibility(make(tmp_path/'p', GOAL), table(200))
    assert found.verdict in ('get more data', 'cannot tell') and 'ten times the rows' in found.reasons[0]

def test_a_leak_does_not_say_go(tmp_path): # D18
    df = table(600, signal=0).assign(copy=lambda d: d.y.map({0: 'no', 1: 'yes'}))
    found = assess_feasibility(make(tmp_path/'p', KILL), df)
    assert 'copy' in list(found.suspects.column) and found.verdict == 'no-go' and any('copy' in r for r in found.reasons)

def test_few_rows_of_an_outcome_are_not_enough(tmp_path):
    df = table(300)
    df = pd.concat([df[df.y == 0], df[df.y == 1].head(12)])
    found = assess_feasibility(make(tmp_path/'p'), df)
    assert found.verdict == 'get more data' and '12 rows' in found.reasons[0]

@pytest.mark.parametrize('df,match', [(table().assign(y=1), 'one value only|has one'), (table().drop(columns='y'), "No column 'y'"), (table().head(0), 'rows? ha(s|ve) an outcome'),
    (table().head(1), 'rows? ha(s|ve) an outcome'), (table().assign(y=np.nan), 'rows? ha(s|ve) an outcome'), (table()[['y']], 'No column is left'),
    (table().assign(y=['a', 'b', 'c']*100), 'problem.positive')])
def test_data_that_cannot_be_used_is_named(tmp_path, df, match): # D09
    project = make(tmp_path/'p')
    with pytest.raises(DataError, match=match): assess_feasibility(project, df)
    assert project.ledger.last('feasibility') is None

def test_odd_columns_survive(tmp_path): # D01, D09, D17
    df = table().assign(**{'<img src=x onerror=alert(1)>': 1.5, "=cmd|' /C calc'!A0": table().x, 'all missing': np.nan, 'x'*500: 'v', 'a\nb': table().noise, '$x^2$': 1})
    found = assess_feasibility(make(tmp_path/'p', data='protected = ["<img src=x onerror=alert(1)>"]'), df)
    page = BeautifulSoup(found._repr_html_(), 'html.parser')
    assert found.verdict == 'go' and not page.find_all(['img', 'script']) and found.quality['constant_columns'] >= 3
    found.plot().figure.canvas.draw()

def test_outcomes_that_are_missing_are_counted_not_used(tmp_path):
    df = table(400)
    df['y'] = df.y.astype(object).where(df.index >= 100, None)
    found = assess_feasibility(make(tmp_path/'p', 'positive = 1'), df)
    assert found.rows == found.used == 300 and found.quality['rows_without_outcome'] == 100

def test_time_order_keeps_the_newest_rows_unseen(tmp_path):
    df = table(500).assign(day=pd.date_range('2025-01-01', periods=500))
    project = make(tmp_path/'p', data='time = "day"\nsplit = {test = 0.2, live = 0.1}')
    trial = make_trial(usable_rows(df, project.settings), project.settings)
    assert trial.split == 'time' and len(trial.rows) == 350 and trial.rows.day.max() == df.day[349]
    assert all(train.max() < test.min() for train, test in trial.folds)
    assert assess_feasibility(project, df).split == 'time'

def test_same_seed_same_answer(tmp_path):
    first, second = (assess_feasibility(make(tmp_path/n), table()) for n in 'ab')
    assert first == second

def test_tasks(tmp_path):
    random = np.random.default_rng(0)
    x = random.normal(size=400)
    quantity = assess_feasibility(make(tmp_path/'r', task='regression'), pd.DataFrame({'x': x, 'y': 3*x+random.normal(size=400)}))
    assert quantity.verdict == 'go' and quantity.metric == 'rmse' and abs(quantity.baselines['r2'].value) < 1e-9 and quantity.groups.empty
    kinds = pd.DataFrame({'x': x, 'y': pd.cut(x+random.normal(0, .3, 400), 3, labels=['low', 'mid', 'high']).astype(str)})
    several = assess_feasibility(make(tmp_path/'m', task='multiclass'), kinds)
    assert several.metric == 'log_loss' and several.baselines['log_loss'].value > several.estimate.high

def test_group_criteria_are_left_to_validation(tmp_path):
    goal = 'success = [{metric = "recall", direction = "<=", threshold = 0.1, group_by = "group"}]'
    found = assess_feasibility(make(tmp_path/'p', goal, data='protected = ["group"]'), table())
    assert found.verdict == 'cannot tell' and 'about groups' in found.reasons[0]

def test_read_only_records_nothing(tmp_path):
    project = make(tmp_path/'p')
    seal_problem(project)
    viewer = Project(project.folder, read_only=True)
    assert seal_problem(viewer).version == 1   # unchanged: nothing to record

# ---- real data

def test_adult_in_seconds(tmp_path, data_dir):
    project = make(tmp_path/'p', 'positive = ">50K"\nkill = [{metric = "roc_auc", direction = "<=", threshold = 0.7}]', target='income-per-year',
                   data='protected = ["sex", "race"]')
    df, start = pd.read_csv(data_dir/'adult'/'adult.csv'), time.process_time()
    found = assess_feasibility(project, df)
    assert time.process_time()-start < 60 and found.verdict == 'go' and found.estimate.low > 0.9 and found.used == 20_000
    races = found.groups[found.groups.attribute == 'race']
    assert list(races.group)[:2] == ['Other', 'Amer-Indian-Eskimo'] and list(races.rows)[:2] == [271, 311]
    assert len(json.dumps(found.body())) < 20_000

def test_bike_leaks_are_left_out(tmp_path, data_dir):
    df = pd.read_csv(data_dir/'bike_sharing_hourly'/'hour.csv', parse_dates=['dteday'])
    found = assess_feasibility(make(tmp_path/'p', target='cnt', task='regression', data='time = "dteday"'), df)
    assert {'casual', 'registered'} <= set(found.suspects.column) and found.estimate.value > 20 and found.split == 'time'

def test_penguins_and_titanic(tmp_path, data_dir):
    assert assess_feasibility(make(tmp_path/'a', target='species', task='multiclass'), pd.read_csv(data_dir/'penguins'/'penguins.csv')).verdict == 'go'
    titanic = assess_feasibility(make(tmp_path/'b', target='survived', data='protected = ["sex", "age"]'), pd.read_csv(data_dir/'titanic'/'titanic.csv'))
    assert titanic.verdict == 'go' and (titanic.groups.attribute == 'age').sum() == 5   # four quarters, and missing
