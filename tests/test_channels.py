"Alarms on their way out, against real listeners on this machine: told once, tried again, never in the way, never where they must not go."
import hmac, json, socket, ssl, sys, threading, time
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import psutil, pytest
from mlcycle.alarms import Alarm, acknowledge_alarm, mute_alarm, ring_again
from mlcycle.contacts_desk import contact_act
from mlcycle.channels import deliver, notices, signature, tell, told
from mlcycle.core import Project, SettingsError
from mlcycle.desk import Desk
from mlcycle.log import logs_folder
from ports import free_port
from waiting import PATIENCE, until

SECRET, EVENING = 'a secret of sixteen characters', datetime(2026, 3, 1, 20, tzinfo=timezone.utc)
TOML = '''
[project]
name = "Loans"
[problem]
task = "binary"
target = "y"
[data]
sources = [{{name = "loans", path = "loans.csv"}}]
[alarms]
hosts = ["localhost", "127.0.0.1", "metadata.internal"]
{channels}
'''


def project_with(folder, *channels: str) -> Project:
    text = ''.join(f'[[alarms.channels]]\n{c}\n' for c in channels)
    (folder/'mlcycle.toml').write_text(TOML.format(channels=text))
    return Project(folder, actor='Ada')


def webhook(port: int, more: str='', scheme: str='http', host: str='localhost', path: str='/hook', seconds: float=PATIENCE) -> str:
    return f'name = "pager"\nkind = "webhook"\nurl = "{scheme}://{host}:{port}{path}"\nsecret = "${{PAGER_SECRET}}"\nprivate = true\nseconds = {seconds}\n{more}'


def raise_alarm(project, column='income', **facts) -> Alarm:
    alarm = Alarm(id=f'{abs(hash(column)) % 16**10:010x}', version='1', cause='drift', column=column, state='raised', since='2026-02-01', why='larger', **facts)
    project.record(alarm, subject=alarm.id)
    return alarm


@pytest.fixture(autouse=True)
def secrets(monkeypatch): monkeypatch.setenv('PAGER_SECRET', SECRET)


class Hook(BaseHTTPRequestHandler):
    "Keeps what came; answers as the test says, or hangs or drips until the test is over, or answers when so many have come at once."
    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length']))
        self.server.seen.append((self.path, dict(self.headers), body))
        answer = self.server.answers.pop(0) if self.server.answers else 200
        if answer == 'hang': return self.server.over.wait()
        if answer == 'together': answer = (self.server.together.wait(), 200)[1]
        if answer == 'drip':
            while not self.server.over.wait(.2):
                try: self.wfile.write(b'H'); self.wfile.flush()
                except OSError: return
            return
        self.send_response(answer)
        if answer == 302: self.send_header('Location', f'http://localhost:{self.server.server_address[1]}/elsewhere')
        self.end_headers()

    def log_message(self, *arguments): pass


@pytest.fixture
def hook():
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hook)
    server.seen, server.answers, server.daemon_threads = [], [], True
    server.over, server.together = threading.Event(), threading.Barrier(3, timeout=PATIENCE)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.over.set(); server.shutdown(); server.server_close()


def test_a_webhook_is_signed_and_told_once(tmp_path, hook):
    project = project_with(tmp_path, webhook(hook.server_address[1], path='/hook?team=a'))
    alarm, begun = raise_alarm(project), int(time.time())
    (notice,) = deliver(project)
    assert (notice.state, notice.alarm, notice.event, notice.ring) == ('delivered', alarm.id, 'raised', 1)
    ((path, headers, body),) = hook.seen
    assert path == '/hook?team=a' and json.loads(body)['alarms'][0]['column'] == 'income'
    assert hmac.compare_digest(headers['Mlcycle-Signature'], signature(SECRET, headers['Mlcycle-Timestamp'], body))
    assert signature(SECRET, headers['Mlcycle-Timestamp'], body.replace(b'income', b'incame')) != headers['Mlcycle-Signature']
    assert begun <= int(headers['Mlcycle-Timestamp']) <= time.time()
    assert deliver(project) == [] and len(hook.seen) == 1 and told(project) == {alarm.id: ['pager']}
    assert SECRET not in b''.join(f.read_bytes() for f in tmp_path.rglob('*') if f.is_file()).decode(errors='ignore')


def test_a_failing_target_is_tried_again_and_delivered_once(tmp_path, hook):                                              # M10
    within = lambda seconds: project_with(tmp_path, webhook(hook.server_address[1], seconds=seconds))
    alarm = raise_alarm(within(PATIENCE))
    reasons, now = [], EVENING
    for attempt, answer in enumerate([500, 302, 'hang', 'drip']):           # the last two go on until the test is over
        hook.answers.append(answer)
        project = within(PATIENCE if isinstance(answer, int) else 1.5)
        (notice,) = deliver(project, now=now)
        assert notice.state == 'failed' and notice.attempts == attempt+1
        assert deliver(project, now=now+timedelta(seconds=30)) == []          # not before its time
        reasons.append(notice.why)
        now = datetime.fromisoformat(notice.next)
    assert reasons == ['it answered 500.', 'it answered 302; redirects are not followed.', 'no answer within 1.5 s', 'no answer within 1.5 s']
    assert [n.next[11:16] for n in notices(project)] == ['20:01', '20:03', '20:07', '20:15']
    project = within(PATIENCE)
    (last,) = deliver(project, now=now)
    assert (last.state, last.attempts) == ('delivered', 5) and deliver(project, now=now+timedelta(days=1)) == []
    assert [p for p, _, _ in hook.seen] == ['/hook']*5 and len({h['Mlcycle-Message'] for _, h, _ in hook.seen}) == 1
    assert told(project) == {alarm.id: ['pager']}


def test_a_target_that_is_down_for_an_hour_hears_of_everything_at_once(tmp_path):
    port = free_port()
    project = project_with(tmp_path, webhook(port), 'name = "notes"\nkind = "file"\npath = "alarms.jsonl"')
    raise_alarm(project)
    for minute in range(0, 60, 10): deliver(project, now=EVENING+timedelta(minutes=minute))
    raise_alarm(project, 'age')
    failed = [n for n in notices(project, 'pager')]
    assert 4 <= len(failed) <= 5 and all('ConnectionRefused' in n.why for n in failed) and len((tmp_path/'alarms.jsonl').read_text().splitlines()) == 1
    server = ThreadingHTTPServer(('127.0.0.1', port), Hook)
    server.seen, server.answers = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: found = deliver(project, now=EVENING+timedelta(hours=2))
    finally: server.shutdown(); server.server_close()
    assert [n.channel for n in found if n.state == 'delivered'].count('pager') == 2 and len(server.seen) == 1
    assert [a['column'] for a in json.loads(server.seen[0][2])['alarms']] == ['income', 'age']


@pytest.mark.parametrize('url, why', [
    ('https://hooks.example.com/x', "host 'hooks.example.com' is not allowed"), ('ftp://localhost/x', 'must begin with https://'),
    ('http://user@localhost/x', 'no user name'), ('https://metadata.internal/latest', 'no public address'), ('http://localhost@hooks.example.com/', 'is not allowed')])
def test_a_webhook_goes_nowhere_else(tmp_path, monkeypatch, url, why):
    real = socket.getaddrinfo
    fake = lambda host, port, *a, **k: [(2, 1, 6, '', ('169.254.169.254', port))] if host == 'metadata.internal' else real(host, port, *a, **k)
    monkeypatch.setattr(socket, 'getaddrinfo', fake)
    project = project_with(tmp_path, webhook(1).replace('http://localhost:1/hook', url))
    raise_alarm(project)
    assert why in deliver(project)[0].why


def test_private_addresses_need_a_word_and_the_checked_address_is_called(tmp_path, hook, monkeypatch):
    "A name that resolves to this machine is refused without `private`; a second resolution, to somewhere else, is never asked for."
    port = hook.server_address[1]
    project = project_with(tmp_path, webhook(port, scheme='https').replace('private = true\n', ''))
    raise_alarm(project)
    assert 'is no public address. If that is meant, set private = true' in deliver(project, now=EVENING)[0].why and not hook.seen
    asked, real = [], socket.getaddrinfo
    def rebinding(host, p, *a, **k):
        if host != 'localhost': return real(host, p, *a, **k)
        asked.append(host)
        return [(2, 1, 6, '', ('127.0.0.1' if len(asked) == 1 else '169.254.169.254', p))]
    monkeypatch.setattr(socket, 'getaddrinfo', rebinding)
    project = project_with(tmp_path, webhook(port))
    assert deliver(project, now=EVENING+timedelta(hours=1))[0].state == 'delivered' and asked == ['localhost']


@pytest.mark.parametrize('secret, why', [(None, 'PAGER_SECRET is not set'), ('short', 'at least 16 characters')])
def test_a_secret_that_is_missing_or_short_is_said(tmp_path, hook, monkeypatch, secret, why):
    monkeypatch.delenv('PAGER_SECRET') if secret is None else monkeypatch.setenv('PAGER_SECRET', secret)
    project = project_with(tmp_path, webhook(hook.server_address[1]))
    raise_alarm(project)
    assert why in deliver(project)[0].why and not hook.seen


def certificate(folder):
    "A certificate for localhost that signs itself."
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    key, name, now = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, 'localhost')]), datetime.now(timezone.utc)
    made = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1).not_valid_before(now-timedelta(days=1))
            .not_valid_after(now+timedelta(days=1)).add_extension(x509.SubjectAlternativeName([x509.DNSName('localhost')]), False)
            .add_extension(x509.BasicConstraints(True, None), True).sign(key, hashes.SHA256()))
    file = folder/'cert.pem'
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM)+key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return file, context


def test_a_webhook_over_tls_needs_a_certificate_that_is_trusted(tmp_path, hook, monkeypatch):
    file, context = certificate(tmp_path)
    hook.socket = context.wrap_socket(hook.socket, server_side=True)
    project = project_with(tmp_path, webhook(hook.server_address[1], scheme='https'))
    raise_alarm(project)
    assert 'CERTIFICATE_VERIFY_FAILED' in deliver(project, now=EVENING)[0].why
    monkeypatch.setenv('SSL_CERT_FILE', str(file))
    assert deliver(project, now=EVENING+timedelta(hours=1))[0].state == 'delivered' and len(hook.seen) == 1


class Mailbox:
    "What an SMTP server does with a mail."
    def __init__(self): self.mails, self.refuse = [], ''
    async def handle_DATA(self, server, session, envelope):
        if self.refuse: return self.refuse
        self.mails.append(envelope)
        return '250 OK'


def smtp_server(handler, **options):
    from aiosmtpd.controller import Controller
    controller = Controller(handler, hostname='localhost', port=free_port(), ready_timeout=PATIENCE, **options)
    controller.start()
    return controller


def email(port: int, more: str) -> str:
    return f'name = "desk"\nkind = "email"\nhost = "localhost"\nport = {port}\nsender = "mlcycle@example.com"\nto = ["ops@example.com", "ada@example.com"]\nseconds = {PATIENCE}\n{more}'


def log_in(server, session, envelope, mechanism, data):
    from aiosmtpd.smtp import AuthResult
    return AuthResult(success=(data.login, data.password) == (b'ada', SECRET.encode()))


@pytest.mark.parametrize('tls', ['none', 'starttls', 'tls'])
def test_mail(tmp_path, monkeypatch, tls):
    file, context = certificate(tmp_path)
    monkeypatch.setenv('SSL_CERT_FILE', str(file))
    box = Mailbox()
    safe = {'authenticator': log_in, 'auth_required': True}
    options = {'none': {}, 'starttls': {'tls_context': context, 'require_starttls': True, **safe}, 'tls': {'ssl_context': context, **safe, 'auth_require_tls': False}}[tls]
    server = smtp_server(box, **options)
    try:
        project = project_with(tmp_path, email(server.port, f'tls = "{tls}"'+('' if tls == 'none' else '\nuser = "ada"\npassword = "${PAGER_SECRET}"')))
        alarm = raise_alarm(project, 'income\r\nBcc: everybody@example.com')
        (notice,) = deliver(project)
    finally: server.stop()
    assert notice.state == 'delivered', notice.why
    (mail,) = box.mails
    assert mail.rcpt_tos == ['ops@example.com', 'ada@example.com'] and f'mlcycle alarm ack {alarm.id}' in mail.content.decode()
    assert b'\nBcc:' not in mail.content.partition(b'\r\n\r\n')[0]


def test_a_mail_server_that_refuses_or_is_silent(tmp_path, monkeypatch):
    monkeypatch.setenv('PAGER_SECRET', 'wrong-password-here')
    box = Mailbox()
    box.refuse = '554 5.7.1 wrong-password-here is spam'
    server = smtp_server(box)
    try:
        project = project_with(tmp_path, email(server.port, 'tls = "none"'), 'name = "x"\nkind = "file"\npath = "x"\non = ["resolved"]',
                               webhook(1).replace('pager', 'other'))
        raise_alarm(project)
        refused = {n.channel: n.why for n in deliver(project, now=EVENING)}
    finally: server.stop()
    assert refused['desk'] == "SMTPDataError: (554, b'5.7.1 *** is spam')"                # what it repeats of our secrets is masked
    with socket.socket() as silent:
        silent.bind(('127.0.0.1', 0)); silent.listen()
        project = project_with(tmp_path, email(silent.getsockname()[1], 'tls = "none"').replace(f'seconds = {PATIENCE}', 'seconds = 1'))
        (notice,) = deliver(project, now=EVENING+timedelta(hours=2))
    assert notice.state == 'failed' and notice.why == 'no answer within 1 s'               # it would have been silent for ever


def test_channels_do_not_wait_for_each_other(tmp_path, hook):
    "None of three is answered before all three have called."
    hook.answers += ['together']*3
    port = hook.server_address[1]
    project = project_with(tmp_path, *(webhook(port).replace('pager', f'pager{i}') for i in range(3)), 'name = "notes"\nkind = "file"\npath = "a.jsonl"')
    raise_alarm(project)
    assert {n.channel: n.state for n in deliver(project)} == {'pager0': 'delivered', 'pager1': 'delivered', 'pager2': 'delivered', 'notes': 'delivered'}


def test_a_command_gets_json_no_shell_and_no_longer_than_its_time(tmp_path):
    code = 'import json,sys; m=json.load(sys.stdin); open("came","w").write(m["alarms"][0]["column"]+" "+sys.argv[1])'
    project = project_with(tmp_path, f'name = "tell"\nkind = "command"\ncommand = {json.dumps([sys.executable, "-c", code, "$(touch pwned); `id`"])}\nseconds = {PATIENCE}')
    raise_alarm(project)
    assert deliver(project)[0].state == 'delivered'
    assert (tmp_path/'came').read_text() == 'income $(touch pwned); `id`' and not (tmp_path/'pwned').exists()
    sleepy = 'sleep 3600 & echo $! > pid; sleep 3600'
    project = project_with(tmp_path, f'name = "slow"\nkind = "command"\ncommand = {json.dumps(["sh", "-c", sleepy])}\nseconds = 3')
    (notice,) = deliver(project)
    assert 'did not end within' in notice.why or 'no answer within' in notice.why
    child = int((tmp_path/'pid').read_text())
    until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)     # nothing stays behind
    missing = project_with(tmp_path, 'name = "none"\nkind = "command"\ncommand = ["no-such-program"]')
    assert 'FileNotFoundError' in deliver(missing)[0].why


def test_a_file_stays_in_the_project(tmp_path):
    project = project_with(tmp_path, 'name = "notes"\nkind = "file"\npath = "../outside.jsonl"')
    raise_alarm(project)
    assert 'leaves the project folder' in deliver(project)[0].why and not (tmp_path.parent/'outside.jsonl').exists()


def test_rings_answers_and_ends(tmp_path):
    "A mute that ends calls again; what somebody answered before it went out is not told; the end is told to those who heard of the beginning."
    project = project_with(tmp_path, 'name = "notes"\nkind = "file"\npath = "a.jsonl"', 'name = "ends"\nkind = "file"\npath = "b.jsonl"\non = ["resolved"]')
    events = lambda: [(a['column'], a['event'], a['rings']) for line in (tmp_path/'a.jsonl').read_text().splitlines() for a in json.loads(line)['alarms']]
    alarm = raise_alarm(project)
    deliver(project)
    mute_alarm(project, alarm.id, until='2999-01-01', by='Grace', because='known')
    assert deliver(project) == []
    ring_again(project, datetime(2999, 1, 2, tzinfo=timezone.utc))
    deliver(project)
    other = raise_alarm(project, 'age')
    acknowledge_alarm(project, other.id, by='Grace', because='seen on the page')
    assert deliver(project) == [] and events() == [('income', 'raised', 1), ('income', 'raised', 2)]
    for a in (alarm.model_copy(update={'rings': 2}), other): project.record(a.model_copy(update={'state': 'resolved', 'until': '2026-05-01'}), subject=a.id)
    deliver(project)
    assert events()[2:] == [('income', 'resolved', 2)] and not (tmp_path/'b.jsonl').exists()


def test_two_at_once_tell_once(tmp_path, hook):
    project = project_with(tmp_path, webhook(hook.server_address[1]))
    raise_alarm(project)
    threads = [threading.Thread(target=lambda: deliver(Project(tmp_path, actor='Ada'))) for _ in range(6)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(hook.seen) == 1 and [n.state for n in notices(project)] == ['delivered']


def test_no_channel_no_trace(tmp_path):
    project = project_with(tmp_path)
    raise_alarm(project)
    assert deliver(project) == [] and tell(project, 'run ended', {}) == {} and not logs_folder(project).exists()


@pytest.mark.parametrize('text, why', [
    ('name = "a"\nkind = "webhook"\nurl = "https://x"\nsecret = "plain"', 'a secret is never written here'),
    ('name = "a"\nkind = "email"\nhost = "h"\nsender = "s"\nto = ["t"]\nuser = "u"\npassword = "${P}"\ntls = "none"', 'tls = "starttls" or "tls"'),
    ('name = "a"\nkind = "email"\nhost = "h"\nsender = "s"\nto = ["t"]\nurl = "https://x"', "url is not for kind 'email'"),
    ('name = "a"\nkind = "file"', "kind 'file' needs path"), ('name = "a"\nkind = "pigeon"', 'email'),
    ('name = "a"\nkind = "email"\nhost = "h"\nsender = "s\\nBcc: x"\nto = ["t"]', 'line breaks'),
    ('name = "a"\nkind = "file"\npath = "x"\n[[alarms.channels]]\nname = "a"\nkind = "file"\npath = "y"', 'different names')])
def test_settings_that_cannot_work_are_refused(tmp_path, text, why):
    with pytest.raises(SettingsError, match='alarms') as refused: project_with(tmp_path, text)
    assert why in str(refused.value) and 'plain' not in str(refused.value)


def test_a_channel_is_filled_in_and_tried_on_a_form_against_a_real_listener(tmp_path, hook):
    "By a form alone: what cannot work is said, the host needs its tick, no secret is written, and the test arrives signed."
    project, url = project_with(tmp_path), f'http://127.0.0.2:{hook.server_address[1]}/hook'
    act = contact_act(project, 'webhook')
    Desk(project, 'Contacts', [act]).widget()
    keep, trial, _ = act.panels
    fill = lambda **typed: [setattr(act.controls[k], 'value', v) for k, v in typed.items()]
    def press(panel):
        assert not panel.button.disabled, panel.why.value
        panel.button.click(); act.thread.join()
        return act.said.value
    fill(name='pager', url=url, secret=SECRET.replace(' ', '-'))
    assert keep.button.disabled and 'never type a secret' in keep.why.value and trial.button.disabled
    fill(secret='PAGER_SECRET')
    assert "may not call &#x27;127.0.0.2&#x27; yet" in keep.why.value
    fill(allow_host=True)
    press(keep)
    assert project.settings.alarms.hosts[-1] == '127.0.0.2' and 'must begin with https' in press(trial) and not hook.seen
    fill(url=url.replace('127.0.0.2', '127.0.0.1'), private=True)
    press(keep)
    assert 'pager took the test' in press(trial)
    ((_, headers, body),) = hook.seen
    assert headers['Mlcycle-Signature'] == signature(SECRET, headers['Mlcycle-Timestamp'], body) and json.loads(body)['event'] == 'test'
    hook.answers += [500]
    assert 'it answered 500' in press(trial) and notices(project) == []                   # a test is not an alarm, and is not tried again
    assert SECRET.replace(' ', '-') not in (tmp_path/'mlcycle.toml').read_text()
    assert Project(tmp_path).settings.alarms.channels[0].secret == '${PAGER_SECRET}'
